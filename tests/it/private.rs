//! `--probes=private`: the probes are on copies that only the command sees. Nobody outside pays, the copies are like
//! their files, and mounts pass as without memleak. Nothing is left, and the counts are those of shared probes.
//!
//! `MEMLEAK_TEST_PROBES=private cargo test --test it launch::` runs the tests of another module with private probes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::expected::{assert_counted, counts};
use crate::common::fixtures::{compiled_in, without_call};
use crate::common::newcomers::{Kind, Place, mapped, run};
use crate::common::probes::run_words;
use crate::common::root::require_root;
use crate::common::side_by_side::side_by_side;
use crate::common::switches::switch;
use crate::common::unprobed::Unprobed;
use crate::common::{Job, Report, code, fixture};

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");
const PRIVATE: &str = "--probes=private";

/// The option, unless all jobs of this run of the tests have it.
fn private() -> Vec<String> {
    match run_words().contains(&PRIVATE) {
        true => Vec::new(),
        false => vec![PRIVATE.to_owned()],
    }
}

fn job(script: &str) -> Job {
    Job::shell(script).options(private())
}

/// Runs a script in a mount namespace of its own, in which all mounts are shared, as systemd makes them. `$ML` is
/// memleak, `$1` is the place.
fn among_shared_mounts(place: &Place, script: &str) -> Output {
    require_root();
    let script = format!("mount --make-rshared / || exit 99\n{script}");
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(place.path(""))
        .env("ML", MEMLEAK)
        .output()
        .expect("unshare is installed")
}

#[track_caller]
fn assert_printed(output: &Output, expected: &str) {
    let [printed, said] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert_eq!(printed, expected, "{}: {said}", output.status);
    assert!(output.status.success(), "{}: {said}", output.status);
}

// ---- who pays ------------------------------------------------------------------------------------------

/// The number of bytes in which the code that a process has mapped differs from the files that it comes from.
fn bytes_of_breakpoints(pid: &str) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut compared = 0;
    let mut different = 0;
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        if !words.last().is_some_and(|path| path.starts_with('/')) {
            continue;
        }
        let (start, end) = words[0].split_once('-').expect("a range");
        let number = |hex| u64::from_str_radix(hex, 16).expect("a number");
        let (start, end, offset) = (number(start), number(end), number(words[2]));
        let file = File::open(format!("/proc/{pid}/map_files/{}", words[0])).expect("root may");
        // The last page of a file goes on with zeros in memory.
        let size = file.metadata().expect("an open file").len();
        let length = (end - start).min(size - offset) as usize;
        let (mut here, mut there) = (vec![0; length], vec![0; length]);
        memory
            .read_exact_at(&mut here, start)
            .expect("it is mapped");
        file.read_exact_at(&mut there, offset).expect("it has that");
        compared += length;
        different += here.iter().zip(&there).filter(|(a, b)| a != b).count();
    }
    assert!(compared > 1_000_000, "at least libc was compared: {maps}");
    different
}

/// Runs memleak beside a process that it does not follow. The numbers of bytes that are changed in the code of that
/// process and of memleak's command.
fn changed_beside_and_inside(probes: &str) -> [usize; 2] {
    const SCRIPT: &str = r#"
        sleep 100 &
        beside=$!
        echo $beside
        "$0" run -q "$1" -- sh -c 'echo $$; read line'
        code=$?
        kill $beside
        exit $code"#;
    require_root();
    let unprobed = Unprobed::new();
    let mut child = Command::new("unshare")
        .args(unprobed.words(&["sh", "-c", SCRIPT, MEMLEAK, probes]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare is installed");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let pids = [(); 2].map(|()| lines.next().expect("a line").expect("UTF-8"));
    let changed = pids.map(|pid| bytes_of_breakpoints(&pid));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"go on\n").expect("it reads");
    assert!(child.wait().expect("a child").success());
    changed
}

#[test]
fn a_process_outside_has_no_breakpoints() {
    let [beside, inside] = changed_beside_and_inside(PRIVATE);
    assert_eq!(beside, 0, "private probes are in a process outside");
    assert!(inside > 10, "{inside}: malloc and the loader have probes");
    let [beside, inside] = changed_beside_and_inside("--probes=shared");
    assert_eq!(beside, inside, "shared probes are in every process");
}

#[test]
fn valgrind_outside_works_as_ever() {
    const SCRIPT: &str = r#"
        "$0" run -q "$1" -- sh -c 'echo ready; read line' < "$3" > "$4" &
        exec 8> "$3"
        read ready < "$4"
        valgrind -q --error-exitcode=9 --leak-check=full "$2"
        code=$?
        echo go on >&8
        wait $! || exit 98
        exit $code"#;
    require_root();
    let run = |probes: &str| {
        let unprobed = Unprobed::new();
        let place = Place::new();
        let pipes = ["in", "out"].map(|name| place.path(name));
        for pipe in &pipes {
            run(Command::new("mkfifo").arg(pipe));
        }
        let program = fixture("frees_all");
        let [input, output] = pipes.each_ref().map(|path| path.to_str().unwrap());
        let words = [
            "sh",
            "-c",
            SCRIPT,
            MEMLEAK,
            probes,
            program.to_str().unwrap(),
            input,
            output,
        ];
        let output = Command::new("unshare")
            .args(unprobed.words(&words))
            .output();
        output.expect("unshare is installed")
    };
    let beside = run(PRIVATE);
    let said = String::from_utf8_lossy(&beside.stderr);
    assert_eq!((beside.status.code(), &*said), (Some(0), ""));
    let beside = run("--probes=shared");
    let died = beside.status.code() == Some(128 + libc::SIGTRAP)
        || beside.status.signal() == Some(libc::SIGTRAP);
    assert!(died, "valgrind meets shared probes: {beside:?}");
}

// ---- the counts ----------------------------------------------------------------------------------------

#[test]
fn the_counts_are_those_of_shared_probes() {
    let names = [
        "leaks_2mb",
        "whole_family",
        "realloc_forms",
        "threads_free_each_other",
        "leader_leaves_first",
        "exec_from_thread",
        "exec_chain",
        "child_frees_inherited",
        "vfork_exec",
        "runs leaks_2mb",
        "dies_of_signal segv",
        "jumps_out_of_calloc altstack",
        "fork_storm",
    ];
    side_by_side(names, |name| assert_counted(name, &private()));
}

#[test]
fn every_method_of_attaching_takes_private_copies() {
    side_by_side(["session", "multi", "perf-event", "separate"], |method| {
        let mut options = private();
        options.push(switch("method", method));
        assert_counted("leaks_2mb", &options);
    });
}

#[test]
fn a_program_with_an_allocator_of_its_own_is_copied_and_keeps_its_name() {
    let place = Place::new();
    let program = place.copy(&Kind::Static.build("leaks_2mb"), "static");
    let report = Job::new(&program, [""; 0]).options(private()).run();
    report.assert_complete();
    let row = report.only_row();
    assert!(row.counts.leaked_bytes >= 2_000_000, "{row:#?}");
    assert_eq!(row.exe.as_ref(), Some(&program));
    assert_eq!(row.allocators, [program]);
}

/// Sandboxes, other users and processes 1 of pid namespaces run in mount namespaces that lead to the copies. Where a
/// mount leads around them, as an overlay does, the file itself gets the probes.
#[test]
fn a_program_in_a_sandbox_or_of_another_user_is_counted() {
    require_root();
    let place = Place::new();
    let program = place.copy(&fixture("leaks_2mb"), "program");
    let name = program.to_str().expect("UTF-8");
    let root = place.directory("root");
    for link in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).expect("a new name");
    }
    place.copy(&program, "root/program");
    fs::create_dir(root.join("usr")).expect("a new name");
    let root = root.display();
    let scripts = [
        format!("bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all --die-with-parent {name}"),
        format!("bwrap --dev-bind / / {name}"),
        format!(
            "bwrap --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev \
             --ro-bind {name} /program --unshare-all /program"
        ),
        format!("su games -s /bin/sh -c {name}"),
        format!("su games -s /bin/sh -c 'bwrap --ro-bind / / --unshare-all {name}'"),
        format!("sudo -u games {name}"),
        format!("unshare --pid --fork --mount-proc {name}"),
        format!("unshare --pid --fork --kill-child --mount-proc sh -c 'sleep 1000 & {name}; exit 0'"),
        format!("unshare --user --map-root-user --mount {name}"),
        format!(
            "unshare --mount sh -c 'mount --bind /usr {root}/usr && chroot {root} /program && umount {root}/usr &&
             mount --rbind /usr {root}/usr && chroot {root} /program'"
        ),
        format!(
            "unshare --mount sh -c 'mount -t tmpfs none {root}/usr && cd {root}/usr && mkdir upper work all &&
             mount -t overlay none -o lowerdir=/usr,upperdir=upper,workdir=work all && mount --bind all {root}/usr &&
             chroot {root} /program'"
        ),
    ];
    side_by_side(scripts, |script| {
        let report = job(&format!("{script}; exit $?")).run();
        assert_eq!(code(report.status), 0, "{script}: {}", report.stderr);
        let rows = report.rows.iter().filter(|row| row.comm == "program");
        let counted: Vec<_> = rows.map(|row| (row.counts, row.complete)).collect();
        let expected = (counts(2_000_000, 1, 0, 2_000_000, 1), true);
        let times = 1 + usize::from(script.contains("--rbind"));
        assert_eq!(
            counted,
            vec![expected; times],
            "{script}: {:#?}",
            report.rows
        );
    });
}

/// What comes while the tree runs is probed in its own file, and counted as with shared probes.
#[test]
fn what_other_namespaces_and_roots_bring_is_counted() {
    let program = fixture("leaks_2mb");
    let name = program.display();
    let script = format!(
        "unshare --mount {name} && nsenter --mount=/proc/$PPID/ns/mnt {name} && chroot / {name} &&
         unshare --mount sh -c 'umount -l {libc} && {name}'; exit $?",
        libc = mapped("libc").display(),
    );
    let report = job(&script).run();
    assert_eq!(code(report.status), 0, "{}", report.stderr);
    report.assert_complete();
    let rows = report
        .rows
        .iter()
        .filter(|row| row.exe.as_ref() == Some(&program));
    let counted: Vec<_> = rows.map(|row| row.counts).collect();
    assert_eq!(counted, [counts(2_000_000, 1, 0, 2_000_000, 1); 4]);
}

#[test]
fn a_memleak_in_a_memleak_counts_the_same() {
    let program = fixture("fork_1000_50");
    let place = Place::new();
    let inner = place.path("inner.json");
    let script = format!(
        "{MEMLEAK} run {PRIVATE} -o {} -- {}; exit $?",
        inner.display(),
        program.display()
    );
    let outer = job(&script).run();
    assert_eq!(code(outer.status), 0, "{}", outer.stderr);
    let inner = fs::read_to_string(inner).expect("there is a report");
    for bytes in [1000, 50] {
        let is_it = |bytes: u64| format!("\"leaked_bytes\":{bytes},");
        assert!(inner.contains(&is_it(bytes)), "{inner}");
        let rows = outer.rows.iter();
        let rows = rows.filter(|row| row.end == "exited" && row.counts.leaked_bytes == bytes);
        assert_eq!(rows.count(), 1, "{:#?}", outer.rows);
    }
    assert!(inner.contains("\"complete\":true"), "{inner}");
}

#[test]
fn pid_1_of_a_namespace_counts_with_private_probes() {
    for options in [&["--mount-proc"][..], &[]] {
        let words = [&["unshare", "--pid", "--fork"], options].concat();
        let job = Job::fixture("leaks_2mb", &[]).options(private());
        let report = job.under(&words).run();
        report.assert_complete();
        assert_eq!(report.only_row().counts.leaked_bytes, 2_000_000);
    }
}

// ---- the copies ----------------------------------------------------------------------------------------

/// A library with an allocator, which jobs preload.
fn library(place: &Place, name: &str) -> PathBuf {
    place.copy(&compiled_in("libjemalloc.so"), name)
}

#[test]
fn a_copy_has_the_content_owner_mode_times_and_attributes_of_its_file() {
    let place = Place::new();
    let library = library(&place, "library.so");
    std::os::unix::fs::chown(&library, Some(1234), Some(2345)).expect("root may");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o6755)).expect("root may");
    run(Command::new("touch")
        .args(["-m", "-d", "2001-02-03 04:05:06.789"])
        .arg(&library));
    run(Command::new("setcap").arg("cap_net_raw=ep").arg(&library));
    let trusted = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&library, "trusted.memleak", b"a value", trusted).expect("root may");
    const SHOW: &str = r#"
        stat -c '%n %f %u %g %s %Y %y %F' "$1"
        getcap "$1"
        cksum < "$1"
        python3 -c 'import os, sys
for name in sorted(os.listxattr(sys.argv[1])): print(name, os.getxattr(sys.argv[1], name))' "$1""#;
    let words = ["-c", SHOW, "sh", library.to_str().unwrap()];
    let show = |options: &[String]| {
        let job = Job::new("sh", words).env("LD_PRELOAD", &library);
        let report = job.options(options).run();
        assert_eq!(code(report.status), 0, "{}", report.stderr);
        report.stdout
    };
    let outside = run(Command::new("sh").args(words));
    assert!(
        outside.contains("1234 2345") && outside.contains("trusted.memleak"),
        "{outside}"
    );
    assert!(outside.contains("cap_net_raw"), "{outside}");
    assert_eq!(show(&private()), outside);
}

#[test]
fn a_copy_is_mounted_with_the_flags_of_its_file_and_cannot_be_written() {
    let place = Place::new();
    let program = Kind::Static.build("shows_its_user");
    let show = |options: &str| {
        let script = format!(
            r#"
            mount -t tmpfs -o mode=755,{options} none "$1" || exit 99
            cp {} "$1/program" && chmod u+s "$1/program" || exit 99
            "$ML" run -q {PRIVATE} --user 54399:54399 -- "$1/program"
            "$ML" run -q {PRIVATE} -- "$1/program"
            "$ML" run -q {PRIVATE} -- sh -c "grep ' $1/program ' /proc/self/mountinfo"
            "$ML" run -q {PRIVATE} --allocator "$1/program:alloc=malloc(size),free=free(block)" -- "$1/program"
            exit 0"#,
            program.display()
        );
        let output = among_shared_mounts(&place, &script);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(show("suid"), "54399 0\n0 0\n0 0\n");
    assert_eq!(show("nosuid"), "54399 54399\n0 0\n0 0\n");
    assert_eq!(show("noexec"), "", "not executable, as without memleak");
    let library = library(&place, "library.so");
    let name = library.display();
    let report = job(&format!(
        "grep ' {name} ' /proc/self/mountinfo; : 2>&1 >> {name}; exit 0"
    ))
    .env("LD_PRELOAD", &library)
    .run();
    let said = format!("{}{}", report.stdout, report.stderr);
    assert!(
        said.contains(" ro,") && said.contains("- tmpfs memleak"),
        "{said}"
    );
    assert!(said.contains("Read-only file system"), "{said}");
}

#[test]
fn what_inspects_the_library_inside_finds_it_as_ever() {
    let inspect = format!(
        "ldd /bin/true | sed 's/ (0x.*//'; readelf -n {libc} | grep Build; cksum < {libc}
         stat -c '%A %U %G %s %y' {libc}; ldconfig -p | grep libc.so.6; ! command -v dpkg > /dev/null || dpkg -V libc6; echo $?",
        libc = mapped("libc").display(),
    );
    let outside = run(Command::new("sh").args(["-c", &inspect]).env("LC_ALL", "C"));
    let report = job(&format!("{inspect}; exit 0")).run();
    assert_eq!(report.stdout, outside);
}

#[test]
fn gdb_inside_works_as_with_shared_probes() {
    let place = Place::new();
    let program = place.newcomer(Kind::Dynamic, "newcomer");
    let script = format!(
        "gdb -nx -q -batch -ex 'set startup-with-shell off' -ex 'break main' -ex run -ex next \
         -ex 'print argc' -ex 'break last' -ex continue -ex backtrace -ex delete -ex continue \
         --args {} 50; exit 0",
        program.display()
    );
    let report = job(&script).run();
    let said = &report.stdout;
    for words in ["exited normally", "$1 = 2", "Breakpoint 2, last ()"] {
        assert!(said.contains(words), "{said}");
    }
    report.assert_complete();
}

// ---- files that are replaced ---------------------------------------------------------------------------

#[test]
fn inside_a_copied_file_cannot_be_replaced() {
    let place = Place::new();
    let library = library(&place, "library.so");
    let new = place.copy(&library, "new.so");
    let script = format!("mv {} {} 2>&1; exit 0", new.display(), library.display());
    let report = job(&script).env("LD_PRELOAD", &library).run();
    assert!(report.stdout.contains("busy"), "{}", report.stdout);
    assert!(new.exists());
}

#[test]
fn a_library_that_is_replaced_outside_is_replaced_inside_and_counted() {
    let place = Place::new();
    let library = library(&place, "library.so");
    let new = place.copy(&library, "new.so");
    let (ready, go_on) = (place.path("ready"), place.path("go-on"));
    let script = format!(
        "grep -c ' {library} ' /proc/self/mountinfo; : > {}; while [ ! -e {} ]; do sleep 0.05; done
         grep -c ' {library} ' /proc/self/mountinfo; LD_PRELOAD={library} {}; exit $?",
        ready.display(),
        go_on.display(),
        fixture("fork_1000_50").display(),
        library = library.display(),
    );
    let running = job(&script).env("LD_PRELOAD", &library).start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready.exists() {
        assert!(Instant::now() < deadline, "the command does not run");
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::rename(&new, &library).expect("outside, nothing is in the way");
    fs::write(&go_on, "").expect("the test owns the directory");
    let report = running.wait();
    assert_eq!(report.stdout, "1\n0\n", "{}", report.stderr);
    report.assert_complete();
    let counted = |report: &Report| -> Vec<_> {
        let rows = report.rows.iter();
        let rows = rows.filter(|row| row.exe.as_deref() == Some(&*fixture("fork_1000_50")));
        rows.map(|row| (row.counts, row.allocators.len())).collect()
    };
    let expected = Job::fixture("fork_1000_50", &[]).env("LD_PRELOAD", &library);
    let expected = counted(&expected.run());
    assert_eq!(expected.len(), 2);
    assert_eq!(counted(&report), expected);
}

// ---- mounts --------------------------------------------------------------------------------------------

/// Mounts a file system inside, and one outside, and prints how many of them the other side sees. Then prints how many
/// of memleak's mounts can be seen outside.
const MOUNT_ON_BOTH_SIDES: &str = r#"
    mkdir "$1/in" "$1/out" || exit 99
    $RUN -- sh -c '
        mount -t tmpfs inside "$1/in"
        : > "$1/ready"
        while [ ! -e "$1/go-on" ]; do sleep 0.05; done
        grep -c " $1/out " /proc/self/mountinfo
        exit 0' sh "$1" &
    while [ ! -e "$1/ready" ]; do sleep 0.05; done
    grep -c " $1/in " /proc/self/mountinfo
    grep -c ' memleak ' /proc/self/mountinfo
    mount -t tmpfs outside "$1/out"
    : > "$1/go-on"
    wait $!"#;

#[test]
fn mounts_pass_in_both_directions() {
    let both = |options: &str| {
        let place = Place::new();
        // A copied file is on the file system on which both sides mount.
        let library = library(&place, "library.so");
        let script = format!(
            "RUN=\"env LD_PRELOAD={} $ML run {options}\"\n{MOUNT_ON_BOTH_SIDES}",
            library.display()
        );
        // Canonical, as the kernel shows mounts.
        among_shared_mounts(
            &place,
            &script.replace("$1/", &format!("{}/", directory(&place))),
        )
    };
    assert_printed(&both(&format!("-q {PRIVATE}")), "1\n0\n1\n");
    let apart = both(&format!("-v {PRIVATE} {}", switch("mount-groups", "no")));
    let said = String::from_utf8_lossy(&apart.stderr).into_owned();
    assert_printed(&apart, "0\n0\n0\n");
    let told = said
        .lines()
        .filter(|line| line.contains("mounts that the command makes may stay"));
    assert_eq!(told.count(), 1, "{said}");
}

fn directory(place: &Place) -> String {
    let path = fs::canonicalize(place.path("")).expect("it exists");
    path.to_str().expect("the path is UTF-8").to_owned()
}

#[test]
fn in_a_root_directory_that_is_no_mount_the_command_has_private_probes() {
    let place = Place::new();
    // /tmp may be a mount of its own.
    let script = r#"
        mkdir "$1/root" && cd "$1/root" || exit 99
        for name in usr proc sys dev bin lib lib64; do
            [ -e "/$name" ] || continue
            mkdir "$name" && mount --rbind "/$name" "$name" || exit 99
        done
        cp "$ML" memleak && mkdir in || exit 99
        chroot . /memleak run -q --probes=private -- sh -c 'mount -t tmpfs inside /in
            grep -c " memleak " /proc/self/mountinfo'
        grep -c " $1/root/in " /proc/self/mountinfo
        grep -c " memleak " /proc/self/mountinfo
        exit 0"#;
    let script = script.replace("$1/", &format!("{}/", directory(&place)));
    assert_printed(&among_shared_mounts(&place, &script), "2\n1\n0\n");
}

#[test]
fn a_memleak_that_is_killed_at_any_moment_leaves_no_mount() {
    let place = Place::new();
    let script = r#"
        before=$(sort /proc/self/mountinfo)
        for after in 0.00 0.002 0.004 0.006 0.008 0.01 0.012 0.014 0.016 0.02 0.03 0.05 0.1 0.15 0.2; do
            "$ML" run -q --probes=private -- true &
            sleep $after
            kill -KILL $! 2> /dev/null
            wait $! 2> /dev/null
            [ "$(sort /proc/self/mountinfo)" = "$before" ] || exit 1
        done
        "$ML" run -q --probes=private -- true
        [ "$(sort /proc/self/mountinfo)" = "$before" ] && echo the same"#;
    assert_printed(&among_shared_mounts(&place, script), "the same\n");
}

// ---- the launcher ---------------------------------------------------------------------------------------

/// Some of the launcher's cases. CONTRIBUTING.md says how to run all of them.
#[test]
fn the_launcher_keeps_its_promises() {
    require_root();
    let cases = [
        "case_01_every_exit_code_is_passed_on",
        "case_08_memleak_dies_of_the_commands_sigkill_after_the_report",
        "case_21_a_signal_to_the_group_reaches_the_command_once",
        "case_23_the_command_has_the_dispositions_and_the_mask_of_the_caller",
        "case_26_memleak_holds_no_copy_of_the_commands_input",
        "case_28_ctrl_z_before_the_release_also_stops_the_job",
        "case_30_a_memleak_killed_before_the_release_leaves_no_process_behind",
        "case_30_memleak_dies_of_the_signal_that_killed_the_command_before_the_release",
        "case_32_a_memleak_killed_after_the_release_leaves_the_command_undisturbed",
        "case_33_the_command_inherits_the_same_as_without_memleak",
        "case_34_children_from_before_memleak_are_not_taken_for_the_command",
    ];
    let own = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(own);
    command.args(["--exact", "--test-threads=2"]);
    command.args(cases.map(|case| format!("launch::{case}")));
    let output = command.env("MEMLEAK_TEST_PROBES", "private").output();
    let output = output.expect("this program can be run again");
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = format!(" {} passed; 0 failed", cases.len());
    assert!(output.status.success() && said.contains(&passed), "{said}");
}

// ---- rights --------------------------------------------------------------------------------------------

/// The line with which memleak, started by way of a wrapper, refuses to start the command.
#[track_caller]
fn refusal(command: &mut Command, memleak: &Path) -> String {
    command.arg(memleak).args(["run", PRIVATE]);
    command.args(["--", "echo", "ran"]);
    let output = command.output().expect("the wrapper is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{command:?}: {said}");
    assert_eq!(output.stdout, b"", "{command:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn without_the_rights_the_command_is_not_started() {
    require_root();
    let wrappers = [
        [
            "setpriv",
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
        ]
        .map(OsString::from),
        ["setpriv", "--reuid=54399", "--clear-groups"].map(OsString::from),
        without_call(libc::SYS_unshare, libc::EPERM),
    ];
    let place = Place::new();
    // Another user must be able to execute it.
    let memleak = place.copy(Path::new(MEMLEAK), "memleak");
    for wrapper in wrappers {
        let said = refusal(Command::new(&wrapper[0]).args(&wrapper[1..]), &memleak);
        assert!(
            said.contains("mount namespace") && said.contains("--probes=shared"),
            "{said}"
        );
    }
}

/// Each of these takes a right that memleak lacks here.
#[test]
fn a_file_that_cannot_be_copied_is_named() {
    require_root();
    let place = Place::new();
    let library = library(&place, "library.so");
    std::os::unix::fs::chown(&library, Some(1234), Some(2345)).expect("root may");
    let wrappers = [
        &["setpriv", "--bounding-set=-chown", "--inh-caps=-chown"][..],
        &[
            "setpriv",
            "--bounding-set=-sys_resource",
            "prlimit",
            "--fsize=1000",
        ],
    ];
    for wrapper in wrappers {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).env("LD_PRELOAD", &library);
        let said = refusal(&mut command, Path::new(MEMLEAK));
        assert!(
            said.contains("private copy of /") && said.contains("--probes=shared"),
            "{said}"
        );
    }
}

/// The limit of the length of files is the command's, and not that of the copies.
#[test]
fn the_command_keeps_its_limit_of_the_length_of_files() {
    let report = Job::shell("ulimit -f; exit 0").options(private());
    let report = report.under(&["prlimit", "--fsize=4096:unlimited"]).run();
    assert_eq!(report.stdout, "8\n", "{}", report.stderr);
}
