//! Tests of `judge` and `verdict` with facts made by hand.

use std::path::PathBuf;
use std::sync::Arc;

use crate::doctor::c_library::{Libc, Unusable};
use crate::doctor::check::{COUNT, Check, Diagnosis, Status};
use crate::doctor::machine::{Lockdown, Machine};
use crate::doctor::patient::{BLOCK, BLOCKS, FREED, IN_HANDLER, KEPT, NOT_EXECUTED, NOT_FILTERED};
use crate::doctor::price::Price;
use crate::doctor::trial::{Cause, LOOK, Ran, Refusal, Stage, Trial};
use crate::doctor::{diagnose, judge, lost, output, stacks, verdict};
use crate::kernel::method::{Holds, Method};
use crate::kernel::settings::NoStacks;
use crate::launch::running::Ended;
use crate::model::image::samples::image;
use crate::model::image::{Image, Losses, Uncovered};
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::stack::{CallStack, CodePlace, Frame, StackShare, WalkEnd};
use crate::options::DoctorFormat;
use crate::os::capabilities::{CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, Capabilities};
use crate::os::ptrace::Access;
use crate::report::Verbosity;

fn capabilities(numbers: &[u32]) -> Option<Capabilities> {
    Some(Capabilities {
        effective: numbers.iter().map(|number| 1 << number).sum(),
        ..Capabilities::default()
    })
}

fn machine() -> Machine {
    Machine {
        release: "6.18.5-generic".to_owned(),
        architecture: "x86_64".to_owned(),
        btf: Some(5_520_272),
        capabilities: capabilities(&[CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN]),
        first_user_namespace: Some(true),
        no_new_privs: false,
        filtered: false,
        lockdown: Lockdown::Off,
        access: Access {
            capable: true,
            scope: 0,
            callable: true,
        },
        unprivileged_bpf_disabled: Some(2),
        perf_event_paranoid: Some(4),
        descriptors: Some(4096),
        memlock: Some(8_388_608),
        has_proc: true,
        proc_above: 0,
        cgroup_tree: Some(PathBuf::from("/sys/fs/cgroup")),
    }
}

/// The images of a child of which every call was counted.
fn images() -> Vec<Image> {
    let with_more = |number, blocks: u64, freed: u64| {
        let mut image = image();
        image.image = number;
        let counters = &mut image.counters;
        counters.alloc_count = 20 + blocks;
        counters.total_allocs_bytes = 3000 + blocks * BLOCK;
        counters.free_count = 15 + freed;
        counters.leaked_blocks = 5 + blocks - freed;
        counters.leaked_bytes = 700 + (blocks - freed) * BLOCK;
        image
    };
    let mut last = with_more(3, BLOCKS, FREED);
    let amount = |bytes, blocks| Amount { bytes, blocks };
    last.reach = Reach::Known(Reached {
        definite: amount((BLOCKS - FREED) * BLOCK, BLOCKS - FREED),
        reachable: amount(KEPT + 700, 6),
        ..Reached::default()
    });
    last.stacks = Some(vec![in_handler()]);
    vec![
        with_more(0, 0, 0),
        with_more(1, 0, 0),
        with_more(2, BLOCKS, FREED),
        last,
    ]
}

/// The block that is allocated in a handler: by a function that the C library calls.
fn in_handler() -> StackShare {
    let frame = |offset| Frame {
        place: CodePlace::File { module: 1, offset },
        interrupted: offset == 4,
    };
    StackShare {
        stack: Arc::new(CallStack {
            frames: (1..=6).map(frame).collect(),
            end: WalkEnd::Complete,
            guessed: 0,
        }),
        alloc_bytes: IN_HANDLER,
        alloc_count: 1,
        leaked_bytes: IN_HANDLER,
        leaked_blocks: 1,
        reached: None,
    }
}

fn ran() -> Ran {
    Ran {
        method: Method::Session,
        holds: Holds::Everywhere,
        kernel_bytes: 43_041_032,
        descriptors: 49,
        images: images(),
        no_stacks: None,
        ended: Ok(Ended::Exited(0)),
    }
}

fn refused(stage: Stage, cause: Cause, error: &str, remedy: &'static str) -> Trial {
    Trial::Refused(Refusal {
        stage,
        cause,
        error: error.to_owned(),
        remedy,
        said: vec!["libbpf: no".to_owned()],
    })
}

fn without_rights() -> Trial {
    refused(
        Stage::Load,
        Cause::Rights,
        "no right to load BPF programs",
        "run memleak as root",
    )
}

fn diagnosis(machine: &Machine, trial: &Trial, libc: &Result<Option<Libc>, Unusable>) -> Diagnosis {
    diagnose(machine, trial, libc, |_| {
        Ok(Price {
            emulated_ns: 300,
            single_stepped_ns: 6000,
        })
    })
}

fn shown(diagnosis: &Diagnosis) -> String {
    let format = DoctorFormat::Table;
    output::render(diagnosis, format, Verbosity::Normal, false).unwrap()
}

fn glibc() -> Libc {
    Libc {
        path: PathBuf::from("/lib/libc.so.6"),
        name: "glibc 2.36".to_owned(),
        sites: Vec::new(),
    }
}

#[track_caller]
fn assert_check(check: &Check, status: Status, words: &[&str]) {
    assert_eq!(check.status, status, "{check:?}");
    let text = format!(
        "{}; {}",
        check.found,
        check.remedy.clone().unwrap_or_default()
    );
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in {text:?}");
    }
}

fn named(checks: Vec<Check>, name: &str) -> Check {
    let mut checks = checks.into_iter();
    checks.find(|check| check.name == name).unwrap()
}

#[test]
fn a_machine_on_which_all_is_well() {
    let diagnosis = diagnosis(&machine(), &Trial::Ran(ran()), &Ok(Some(glibc())));
    assert!(diagnosis.works());
    insta::assert_snapshot!(shown(&diagnosis));
}

#[test]
fn a_user_without_rights() {
    let mut machine = machine();
    machine.capabilities = capabilities(&[]);
    let diagnosis = diagnosis(&machine, &without_rights(), &Ok(Some(glibc())));
    assert!(!diagnosis.works());
    insta::assert_snapshot!(shown(&diagnosis));
}

#[test]
fn a_kernel_on_which_nothing_is_well() {
    let machine = Machine {
        release: "5.4.0".to_owned(),
        btf: None,
        lockdown: Lockdown::Confidentiality,
        unprivileged_bpf_disabled: None,
        has_proc: false,
        cgroup_tree: None,
        ..machine()
    };
    let trial = refused(
        Stage::Load,
        Cause::Other,
        "this kernel has no type information",
        "use one that has",
    );
    let diagnosis = diagnosis(&machine, &trial, &Ok(None));
    assert!(!diagnosis.works());
    insta::assert_snapshot!(shown(&diagnosis));
}

#[test]
fn every_warning_and_every_failure_has_a_remedy() {
    let mut machine = machine();
    machine.capabilities = capabilities(&[]);
    machine.cgroup_tree = None;
    let diagnosis = diagnosis(&machine, &without_rights(), &Ok(None));
    for check in diagnosis.checks {
        let wanted = matches!(check.status, Status::Fail | Status::Warn);
        assert_eq!(check.remedy.is_some(), wanted, "{check:?}");
    }
}

#[test]
fn cap_sys_admin_or_both_other_capabilities_are_enough() {
    let refused = without_rights();
    let check = |numbers: &[u32], change: fn(&mut Machine), trial: &Trial| {
        let mut machine = machine();
        machine.capabilities = capabilities(numbers);
        change(&mut machine);
        named(judge::machine(&machine, trial), "capabilities")
    };
    let both = [CAP_BPF, CAP_PERFMON];
    assert_check(
        &check(&both, |_| (), &refused),
        Status::Ok,
        &["CAP_BPF, CAP_PERFMON"],
    );
    assert_check(&check(&[CAP_SYS_ADMIN], |_| (), &refused), Status::Ok, &[]);
    for lacking in [CAP_BPF, CAP_PERFMON] {
        let check = check(&[lacking], |_| (), &refused);
        assert_check(&check, Status::Fail, &["only CAP_", "setcap"]);
    }
    let nested = check(
        &both,
        |machine| machine.first_user_namespace = Some(false),
        &refused,
    );
    assert_check(&nested, Status::Fail, &["user namespace", "outside"]);
    let bound = check(&[], |machine| machine.no_new_privs = true, &refused);
    assert_check(
        &bound,
        Status::Fail,
        &["no_new_privs", "NoNewPrivileges=no"],
    );
    // If memleak ran, the user namespace did not prevent it.
    let worked = Trial::Ran(ran());
    let nested = check(
        &both,
        |machine| machine.first_user_namespace = Some(false),
        &worked,
    );
    assert_check(&nested, Status::Ok, &[]);
}

#[test]
fn a_seccomp_filter_is_blamed_only_if_the_capabilities_are_enough() {
    let check = |numbers: &[u32], filtered, trial: &Trial| {
        let mut machine = machine();
        machine.capabilities = capabilities(numbers);
        machine.filtered = filtered;
        named(judge::machine(&machine, trial), "seccomp")
    };
    let all = [CAP_BPF, CAP_PERFMON];
    let refused = without_rights();
    assert_check(
        &check(&all, true, &refused),
        Status::Fail,
        &["bpf(2)", "outside"],
    );
    assert_check(&check(&[], true, &refused), Status::Unknown, &[]);
    assert_check(
        &check(&all, true, &Trial::Ran(ran())),
        Status::Ok,
        &["lets bpf(2)"],
    );
    assert_check(&check(&all, false, &refused), Status::Ok, &["no filter"]);
}

#[test]
fn lockdown_is_a_failure_only_at_its_highest_level_and_only_if_the_trial_was_refused() {
    let check = |lockdown, trial: &Trial| {
        let machine = Machine {
            lockdown,
            ..machine()
        };
        named(judge::machine(&machine, trial), "lockdown")
    };
    let (refused, worked) = (without_rights(), Trial::Ran(ran()));
    assert_check(
        &check(Lockdown::Confidentiality, &refused),
        Status::Fail,
        &["lockdown="],
    );
    assert_check(&check(Lockdown::Confidentiality, &worked), Status::Ok, &[]);
    assert_check(
        &check(Lockdown::Integrity, &refused),
        Status::Ok,
        &["integrity"],
    );
    assert_check(
        &check(Lockdown::Hidden, &refused),
        Status::Unknown,
        &["securityfs"],
    );
}

#[test]
fn a_limit_is_blamed_for_a_refusal_that_it_caused() {
    let trial = refused(
        Stage::Attach,
        Cause::Descriptors,
        "cannot attach: too many",
        LOOK,
    );
    let few = named(judge::machine(&machine(), &trial), "descriptors");
    assert_check(&few, Status::Fail, &["4096", "ulimit -Hn"]);
    let trial = refused(Stage::Load, Cause::Memory, "no memory", "give less");
    let little = named(judge::machine(&machine(), &trial), "memory");
    assert_check(&little, Status::Fail, &["--max-allocs"]);
    let old = Machine {
        release: "5.10.0".to_owned(),
        ..machine()
    };
    let locked = named(judge::machine(&old, &without_rights()), "memory");
    assert_check(&locked, Status::Warn, &["8.389 MB", "ulimit -l"]);
}

fn count(change: impl FnOnce(&mut Ran)) -> Check {
    let mut ran = ran();
    change(&mut ran);
    named(verdict::trial(&Trial::Ran(ran)), COUNT)
}

#[test]
fn a_count_that_is_wrong_by_one_byte_is_a_failure() {
    assert_check(&count(|_| ()), Status::Ok, &["to the byte"]);
    let wrong: [fn(&mut Ran); 5] = [
        |ran| ran.images[2].counters.total_allocs_bytes -= 1,
        |ran| ran.images[2].counters.alloc_count += 1,
        |ran| ran.images[2].counters.free_count -= 1,
        |ran| ran.images[2].counters.leaked_bytes += 1,
        |ran| ran.images[2].counters.failed_allocs += 1,
    ];
    for change in wrong {
        assert_check(
            &count(change),
            Status::Fail,
            &["memleak counted", "report this"],
        );
    }
    let fewer = count(|ran| ran.images[2].counters.alloc_count = 0);
    assert_check(&fewer, Status::Fail, &["fewer than without"]);
    assert!(fewer.figures.is_empty());
    // The figures of images that are not compared do not matter.
    let other = count(|ran| ran.images[0].counters.alloc_count = 7);
    assert_check(&other, Status::Ok, &[]);
}

#[test]
fn a_child_that_was_not_counted_to_its_end_is_a_failure() {
    let missed = count(|ran| {
        ran.images[1].losses = Losses {
            rows_lost: 1,
            ..Losses::default()
        }
    });
    assert_check(&missed, Status::Fail, &["missed"]);
    let late = count(|ran| ran.images[2].uncovered = Some(Uncovered::Late));
    assert_check(&late, Status::Fail, &["before its allocator was probed"]);
    let unread = count(|ran| ran.images[1].uncovered = Some(Uncovered::Unexamined));
    assert_check(&unread, Status::Fail, &["may not read", "chmod a+r"]);
    let missing = count(|ran| ran.images.truncate(2));
    assert_check(&missing, Status::Fail, &["2 rows"]);
    let stuck = count(|ran| ran.ended = Err("it did not end".to_owned()));
    assert_check(&stuck, Status::Fail, &["it did not end"]);
    let unable = count(|ran| ran.ended = Ok(Ended::Exited(NOT_EXECUTED)));
    assert_check(&unable, Status::Fail, &["execute itself"]);
}

#[test]
fn a_child_that_dies_under_a_seccomp_filter_is_a_warning_and_no_failure() {
    let died = |ran: &mut Ran| {
        ran.ended = Ok(Ended::Signaled {
            signal: 31,
            core: false,
        });
        ran.images[3].counters.alloc_count = 20;
    };
    assert_check(&count(died), Status::Ok, &[]);
    let check = |change: &dyn Fn(&mut Ran)| {
        let mut ran = ran();
        change(&mut ran);
        verdict::return_probes(&Trial::Ran(ran), &machine())
    };
    assert_check(&check(&|_| ()), Status::Ok, &["survived"]);
    assert_check(&check(&died), Status::Warn, &["signal 31", "cf6cb56ef244"]);
    let unfiltered = |ran: &mut Ran| ran.ended = Ok(Ended::Exited(NOT_FILTERED));
    assert_check(&check(&unfiltered), Status::Unknown, &["could not be put"]);
    let unseen = |ran: &mut Ran| ran.images[3].counters.alloc_count = 20;
    assert_check(&check(&unseen), Status::Unknown, &["no child reached them"]);
}

#[test]
fn what_the_child_lost_must_be_told_from_what_it_kept() {
    let check = |change: &dyn Fn(&mut Ran), machine: &Machine| {
        let mut ran = ran();
        change(&mut ran);
        lost::lost(&Trial::Ran(ran), machine)
    };
    let all = machine();
    assert_check(&check(&|_| (), &all), Status::Ok, &["told from"]);
    let loader = check(&|ran| ran.holds = Holds::Loader, &all);
    assert_check(&loader, Status::Warn, &["where asked for", "6.18"]);
    // An amount that is wrong.
    let wrong: [fn(&mut Reached); 4] = [
        |reached| reached.definite.blocks -= 11,
        |reached| reached.indirect.blocks += 11,
        |reached| reached.definite.bytes += KEPT,
        |reached| reached.reachable.bytes -= 701,
    ];
    for change in wrong {
        let change = |ran: &mut Ran| {
            if let Reach::Known(reached) = &mut ran.images[3].reach {
                change(reached);
            }
        };
        assert_check(&check(&change, &all), Status::Warn, &["report this"]);
    }
    let unknown = |why| {
        move |ran: &mut Ran| {
            ran.images[3].reach = Reach::Unknown(why);
        }
    };
    for (why, words) in [
        (ReachUnknown::Kernel, ["cannot hold", "6.7"]),
        (ReachUnknown::Rights, ["may not read", "CAP_SYS_PTRACE"]),
        (ReachUnknown::Memory, ["too large", "control group"]),
        (ReachUnknown::TooLong, ["--lost-timeout", "less to do"]),
    ] {
        assert_check(&check(&unknown(why), &all), Status::Warn, &words);
    }
    // What is missing is named.
    let mut restricted = machine();
    restricted.access.capable = false;
    let own = check(&|_| (), &restricted);
    assert_check(&own, Status::Ok, &["own user", "CAP_SYS_PTRACE"]);
    restricted.access.scope = 2;
    let rights = check(&unknown(ReachUnknown::Rights), &restricted);
    assert_check(&rights, Status::Warn, &["ptrace_scope is 2", "as root"]);
    let killed = |ran: &mut Ran| ran.ended = Ok(Ended::Exited(NOT_FILTERED));
    assert_check(&check(&killed, &all), Status::Unknown, &["its end"]);
    let not_tried = lost::lost(&without_rights(), &all);
    assert_check(&not_tried, Status::Unknown, &["could not be loaded"]);
}

#[test]
fn the_stack_of_a_block_that_a_handler_allocates_must_be_whole() {
    let check = |change: &dyn Fn(&mut Ran)| {
        let mut ran = ran();
        change(&mut ran);
        stacks::stacks(&Trial::Ran(ran))
    };
    assert_check(&check(&|_| ()), Status::Ok, &["is whole"]);
    // A walk that ends at the handler, one that has missed it, and one that has guessed.
    let wrong: [fn(&mut CallStack); 4] = [
        |stack| stack.end = WalkEnd::NoRule,
        |stack| {
            stack
                .frames
                .iter_mut()
                .for_each(|frame| frame.interrupted = false)
        },
        |stack| stack.frames.truncate(4),
        |stack| stack.guessed = 1,
    ];
    for change in wrong {
        let change = |ran: &mut Ran| {
            let share = &mut ran.images[3].stacks.as_mut().unwrap()[0];
            change(Arc::make_mut(&mut share.stack));
        };
        assert_check(&check(&change), Status::Warn, &["report this"]);
    }
    let kernel = |ran: &mut Ran| ran.no_stacks = Some(NoStacks::Kernel);
    assert_check(&check(&kernel), Status::Warn, &["cannot unwind", "6.1"]);
    let memory = |ran: &mut Ran| ran.no_stacks = Some(NoStacks::Memory);
    assert_check(
        &check(&memory),
        Status::Warn,
        &["too little", "control group"],
    );
    let none = |ran: &mut Ran| ran.images[3].stacks = Some(Vec::new());
    assert_check(&check(&none), Status::Unknown, &["no child"]);
    let not_tried = stacks::stacks(&without_rights());
    assert_check(&not_tried, Status::Unknown, &["could not be loaded"]);
}

#[test]
fn without_a_trial_the_kernel_version_decides_about_the_warning() {
    for (release, architecture, status) in [
        ("6.10.14", "x86_64", Status::Unknown),
        ("6.11.0", "x86_64", Status::Warn),
        ("6.13.9", "x86_64", Status::Warn),
        ("6.14.0", "x86_64", Status::Unknown),
        ("6.12.0", "aarch64", Status::Unknown),
    ] {
        let machine = Machine {
            release: release.to_owned(),
            architecture: architecture.to_owned(),
            ..machine()
        };
        let check = verdict::return_probes(&without_rights(), &machine);
        assert_eq!(check.status, status, "{release} {architecture}");
    }
}

#[test]
fn a_failed_attach_has_a_remedy_and_the_checks_that_depend_on_it_are_unknown() {
    let trial = refused(
        Stage::Attach,
        Cause::Other,
        "cannot attach to malloc: no such thing",
        LOOK,
    );
    let checks = verdict::trial(&trial);
    let probes = named(checks.clone(), "probes");
    assert_check(
        &probes,
        Status::Fail,
        &["cannot attach to malloc: no such thing; see what else"],
    );
    assert_eq!(probes.details, ["libbpf: no"]);
    assert_check(&named(checks.clone(), "programs"), Status::Ok, &[]);
    for name in ["method", "holds", COUNT] {
        assert_check(
            &named(checks.clone(), name),
            Status::Unknown,
            &["not tested"],
        );
    }
}

#[test]
fn a_c_library_without_functions_is_a_failure() {
    let error = Unusable {
        found: "/lib/libc.so.6 has no symbol for free".to_owned(),
        remedy: "reinstall the package",
    };
    let [libc, places] = verdict::libc(&Err(error));
    assert_check(&libc, Status::Fail, &["no symbol for free; reinstall"]);
    assert_check(&places, Status::Unknown, &[]);
}
