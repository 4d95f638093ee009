//! Decides what the facts about this machine mean for `memleak run`. Pure: `machine` reads the facts.

use crate::doctor::check::Check;
use crate::doctor::machine::{Lockdown, Machine};
use crate::doctor::trial::{Cause, Trial};
use crate::doctor::verdict::not_tried;
use crate::kernel::features::BTF;
use crate::os::capabilities::{CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN};
use crate::os::release::version;
use crate::text::units::megabytes;

/// This kernel and later ones have all that the programs use. Distributions backport it into older kernels.
const NEEDED: (u32, u32) = (5, 8);

/// From this kernel on, the memory of maps counts against the control group, not against RLIMIT_MEMLOCK.
const COUNTS_BY_CGROUP: (u32, u32) = (5, 11);

/// The checks that need no trial. They never contradict a trial: if memleak ran, no fact prevented it.
pub fn machine(machine: &Machine, trial: &Trial) -> Vec<Check> {
    let ran = trial.ran().is_some();
    let mut checks = vec![
        kernel(machine),
        btf(machine),
        capabilities(machine, ran),
        seccomp(machine, trial),
        lockdown(machine, ran),
    ];
    checks.extend(sysctls(machine));
    checks.extend([
        descriptors(machine, trial),
        memory(machine, trial),
        pid_namespace(machine),
        cgroup(machine),
    ]);
    checks
}

fn kernel(machine: &Machine) -> Check {
    let found = format!("Linux {}, {}", machine.release, machine.architecture);
    match version(&machine.release) {
        Some(version) if version < NEEDED => Check::warn(
            "kernel",
            format!(
                "{found}; it lacks features that memleak needs, unless the distribution has backported them"
            ),
            format!(
                "where the programs cannot be loaded, use Linux {}.{} or later",
                NEEDED.0, NEEDED.1
            ),
        ),
        _ => Check::ok("kernel", found),
    }
}

fn btf(machine: &Machine) -> Check {
    match machine.btf {
        Some(bytes) => Check::ok("btf", format!("{BTF}, {} MB", megabytes(bytes))),
        None => Check::fail(
            "btf",
            format!("the kernel shows no type information ({BTF} is missing)"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount /sys",
        ),
    }
}

fn capabilities(machine: &Machine, ran: bool) -> Check {
    const NAME: &str = "capabilities";
    let Some(capabilities) = machine.capabilities else {
        return Check::unknown(NAME, "they cannot be read");
    };
    let all = [
        (CAP_BPF, "CAP_BPF"),
        (CAP_PERFMON, "CAP_PERFMON"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    ];
    let has: Vec<_> = all
        .iter()
        .filter(|(number, _)| capabilities.has(*number))
        .map(|(_, name)| *name)
        .collect();
    let found = match &has[..] {
        [] => "neither CAP_BPF nor CAP_PERFMON".to_owned(),
        has => has.join(", "),
    };
    let enough = capabilities.has(CAP_SYS_ADMIN)
        || (capabilities.has(CAP_BPF) && capabilities.has(CAP_PERFMON));
    if ran {
        let found = match capabilities.has(CAP_SYS_ADMIN) {
            true => found,
            false => format!("{found}; CAP_SYS_ADMIN only matters below Linux 6.6"),
        };
        return Check::ok(NAME, found);
    }
    if machine.first_user_namespace == Some(false) && !has.is_empty() {
        return Check::fail(
            NAME,
            format!(
                "{found}, but only within a user namespace, as in a rootless container: they give no rights to BPF"
            ),
            "run memleak outside of it, as root",
        );
    }
    if enough {
        return Check::ok(NAME, found);
    }
    if machine.no_new_privs {
        return Check::fail(
            NAME,
            format!(
                "{found}, and no_new_privs is set: sudo and a file's capabilities have no effect here"
            ),
            "run memleak as root where it is not set (systemd: NoNewPrivileges=no; docker: without no-new-privileges)",
        );
    }
    let has = match &has[..] {
        [] => found,
        _ => format!("only {found}"),
    };
    Check::fail(
        NAME,
        has,
        "run memleak as root (sudo memleak …), or give its file CAP_BPF and CAP_PERFMON (setcap \
         cap_bpf,cap_perfmon=ep; not on a file system mounted nosuid)",
    )
}

/// Whether something other than missing capabilities refuses bpf(2). That is so if memleak has the capabilities, and
/// the kernel still said that the rights are missing.
fn seccomp(machine: &Machine, trial: &Trial) -> Check {
    const NAME: &str = "seccomp";
    let refused = matches!(trial, Trial::Refused(refusal) if refusal.cause == Cause::Rights);
    let entitled = machine.first_user_namespace != Some(false)
        && machine.capabilities.is_some_and(|capabilities| {
            capabilities.has(CAP_SYS_ADMIN)
                || (capabilities.has(CAP_BPF) && capabilities.has(CAP_PERFMON))
        });
    match (machine.filtered, trial) {
        (false, _) => Check::ok(NAME, "memleak is under no filter"),
        (true, Trial::Ran(_)) => {
            Check::ok(NAME, "memleak is under a filter, which lets bpf(2) through")
        }
        (true, _) if refused && entitled => Check::fail(
            NAME,
            "memleak is under a seccomp filter, which seems to refuse bpf(2)",
            "run memleak outside of the container or service, or with a filter that allows bpf and perf_event_open",
        ),
        (true, _) => Check::unknown(
            NAME,
            "memleak is under a filter; whether the filter lets bpf(2) through could not be determined",
        ),
    }
}

fn lockdown(machine: &Machine, ran: bool) -> Check {
    const NAME: &str = "lockdown";
    match machine.lockdown {
        Lockdown::Off => Check::ok(NAME, "none"),
        Lockdown::Integrity => {
            Check::ok(NAME, "integrity, which lets BPF read the kernel's memory")
        }
        Lockdown::Confidentiality if ran => Check::ok(NAME, "confidentiality"),
        Lockdown::Confidentiality => Check::fail(
            NAME,
            "confidentiality, which forbids BPF to read the kernel's memory",
            "boot with lockdown=integrity or none",
        ),
        Lockdown::Hidden => Check::unknown(
            NAME,
            "/sys/kernel/security (securityfs) is not mounted or cannot be read",
        ),
    }
}

/// Neither sysctl restricts a process that has the capabilities. Neither gives rights to a process without them.
fn sysctls(machine: &Machine) -> [Check; 2] {
    let traces = machine.capabilities.is_some_and(|capabilities| {
        [CAP_PERFMON, CAP_SYS_ADMIN]
            .iter()
            .any(|&number| capabilities.has(number))
    });
    [
        ("unprivileged_bpf_disabled", machine.unprivileged_bpf_disabled),
        ("perf_event_paranoid", machine.perf_event_paranoid),
    ]
    .map(|(name, value)| match value {
        None => Check::unknown(name, format!("/proc/sys/kernel/{name} cannot be read")),
        Some(value) if traces => {
            Check::ok(name, format!("{value}, which does not matter with these capabilities"))
        }
        Some(value) => Check::warn(
            name,
            format!("{value}, which does not matter, as programs that trace need CAP_PERFMON at any value"),
            "see capabilities".to_owned(),
        ),
    })
}

fn descriptors(machine: &Machine, trial: &Trial) -> Check {
    const NAME: &str = "descriptors";
    let limit = machine
        .descriptors
        .map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
    match trial {
        Trial::Ran(ran) => Check::ok(
            NAME,
            format!(
                "{} of at most {limit} used; each file with an allocator takes two or three more",
                ran.descriptors
            ),
        )
        .with_figure("used", ran.descriptors),
        Trial::Refused(refusal) if refusal.cause == Cause::Descriptors => Check::fail(
            NAME,
            format!("at most {limit}, which are too few"),
            "raise the hard limit (ulimit -Hn 4096 as root; systemd: LimitNOFILE=)",
        ),
        Trial::Refused(_) => Check::ok(NAME, format!("at most {limit}")),
    }
}

fn memory(machine: &Machine, trial: &Trial) -> Check {
    const NAME: &str = "memory";
    let limited = version(&machine.release).is_some_and(|version| version < COUNTS_BY_CGROUP);
    match trial {
        Trial::Ran(ran) => Check::ok(
            NAME,
            format!(
                "the tables take {} MB of the kernel's memory (see --max-allocs)",
                megabytes(ran.kernel_bytes)
            ),
        )
        .with_figure("kernel_bytes", ran.kernel_bytes),
        Trial::Refused(refusal) if refusal.cause == Cause::Memory => Check::fail(
            NAME,
            "there is not enough memory for the tables",
            "give run a lower --max-allocs, or the control group more memory",
        ),
        Trial::Refused(_) if limited => Check::warn(
            NAME,
            format!(
                "this kernel counts the tables against the limit of locked memory, {} MB",
                megabytes(machine.memlock.unwrap_or_default())
            ),
            "raise it (ulimit -l unlimited)".to_owned(),
        ),
        Trial::Refused(refusal) => not_tried(NAME, refusal),
    }
}

fn pid_namespace(machine: &Machine) -> Check {
    const NAME: &str = "pid_namespace";
    match machine.proc_above {
        _ if !machine.has_proc => Check::fail(
            NAME,
            "/proc is not mounted",
            "mount it (mount -t proc proc /proc)",
        ),
        0 => Check::ok(NAME, "/proc shows memleak's own pid namespace"),
        levels => Check::warn(
            NAME,
            format!(
                "/proc shows another pid namespace, {levels} above memleak's own: the PIDs in reports are not those that ps shows"
            ),
            "mount a /proc of memleak's namespace (unshare --mount-proc, or mount -t proc proc /proc)".to_owned(),
        ),
    }
}

fn cgroup(machine: &Machine) -> Check {
    const NAME: &str = "cgroup";
    match &machine.cgroup_tree {
        Some(tree) => Check::ok(NAME, format!("version 2 at {}", tree.display())),
        None => Check::warn(
            NAME,
            "no control group tree of version 2 is mounted, so --cgroup cannot be used",
            "mount it (mount -t cgroup2 none /sys/fs/cgroup), or boot with systemd.unified_cgroup_hierarchy=1".to_owned(),
        ),
    }
}
