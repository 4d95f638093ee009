//! Where a process belongs: the machine, the job of a batch system, the container. Found in the path of its control
//! group and, of a command that memleak launched, in memleak's own environment. Pure.

/// What is known of where a process belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub host: Option<String>,
    /// The path of the control group, from the root of their tree.
    pub cgroup: Option<String>,
    /// The number of a Slurm job, or its SLUID where the control group has only that.
    pub job: Option<String>,
    /// The step within the job: a number, or `batch`, `extern`, `interactive`.
    pub step: Option<String>,
    /// The rank within an MPI program.
    pub rank: Option<u32>,
    /// The id of a container (64 hexadecimal digits), or its name where it has no id.
    pub container: Option<String>,
    /// The UID of a Kubernetes pod.
    pub pod: Option<String>,
}

/// The variables that have a rank, in the order in which they are believed. With several launchers in one step,
/// SLURM_PROCID counts the launchers.
const RANKS: [&str; 4] = [
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMI_RANK",
    "SLURM_PROCID",
];

/// Numbers of steps that stand for a name (slurm.h).
const NAMED_STEPS: [(&str, &str); 3] = [
    ("4294967291", "batch"),
    ("4294967292", "extern"),
    ("4294967290", "interactive"),
];

impl Origin {
    /// What the path of a control group says.
    pub fn of_cgroup(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').collect();
        let (job, step) = slurm(&parts);
        // The innermost: a container may run others.
        let container = parts.iter().rev().find_map(|part| container(part));
        Self {
            host: None,
            cgroup: Some(path.to_owned()),
            job,
            step,
            rank: None,
            container: container.or_else(|| machine(&parts)),
            pod: parts.iter().rev().find_map(|part| pod(part)),
        }
    }

    /// What the environment of a task says.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.parse().ok();
        let step = variable("SLURM_STEP_ID");
        let named = |step: &String| {
            let name = NAMED_STEPS.iter().find(|(number, _)| step == number);
            name.map(|(_, name)| (*name).to_owned())
        };
        Self {
            job: variable("SLURM_JOB_ID"),
            step: step.map(|step| named(&step).unwrap_or(step)),
            rank: RANKS.into_iter().find_map(number),
            ..Self::default()
        }
    }

    /// This, and what only the other one knows.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            host: self.host.or(other.host),
            cgroup: self.cgroup.or(other.cgroup),
            job: self.job.or(other.job),
            step: self.step.or(other.step),
            rank: self.rank.or(other.rank),
            container: self.container.or(other.container),
            pod: self.pod.or(other.pod),
        }
    }
}

/// The job and the step, below a group of slurmd: `slurmstepd.scope` (version 2) or `slurm` (version 1). The rank is not
/// there: of `task_N`, N counts the tasks of the step or only those of the node, depending on Slurm's version and plugins.
fn slurm(parts: &[&str]) -> (Option<String>, Option<String>) {
    let is_slurm = |part: &&str| {
        part.ends_with("slurmstepd.scope") || *part == "slurm" || part.starts_with("slurm_")
    };
    let Some(at) = parts.iter().position(is_slurm) else {
        return (None, None);
    };
    let below = &parts[at + 1..];
    let named = |prefix: &str| {
        let mut parts = below.iter();
        parts.find_map(|part| part.strip_prefix(prefix).map(str::to_owned))
    };
    let sluid = || below.first().filter(|part| is_sluid(part));
    let job = named("job_").or_else(|| sluid().map(|part| (*part).to_owned()));
    let step = job.as_ref().and_then(|_| named("step_"));
    (job, step)
}

/// As `sEKNKTV3WPV500`: 13 of Crockford's 32 digits, which are no I, L, O or U. Beside the jobs there is a group `system`.
fn is_sluid(part: &str) -> bool {
    part.strip_prefix('s').is_some_and(|rest| {
        let is_digit =
            |c: char| c.is_ascii_digit() || c.is_ascii_uppercase() && !"ILOU".contains(c);
        rest.len() == 13 && rest.chars().all(is_digit)
    })
}

/// The id of a container at the end of a part: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope`,
/// `libpod-ID.scope`, or ID alone. Amazon's ids are 32 digits and a number.
fn container(part: &str) -> Option<String> {
    // What watches a container is not in it.
    if part.contains("-conmon-") {
        return None;
    }
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    };
    let last = |length: usize| part.get(part.len().checked_sub(length)?..);
    if let Some(id) = last(64).filter(|id| is_hex(id, 64)) {
        return Some(id.to_owned());
    }
    let (task, number) = part.split_once('-')?;
    let is_number = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
    (is_hex(task, 32) && is_number).then(|| part.to_owned())
}

/// The name of a container without an id: of systemd-nspawn, or of LXC.
fn machine(parts: &[&str]) -> Option<String> {
    parts.iter().rev().find_map(|part| {
        let nspawn = || {
            let name = part.strip_prefix("systemd-nspawn@")?;
            name.strip_suffix(".service")
        };
        let scope = || {
            let name = part.strip_prefix("machine-")?.strip_suffix(".scope")?;
            // A virtual machine is no container.
            (!name.starts_with("qemu")).then_some(name)
        };
        let lxc = || part.strip_prefix("lxc.payload.");
        let name = nspawn().or_else(scope).or_else(lxc)?;
        Some(name.replace(r"\x2d", "-"))
    })
}

/// The UID of a pod: `kubepods-burstable-podUID.slice` with `_` for `-`, or `podUID`. A static pod's has no `-`. If only
/// the kubelet was told that systemd makes the groups, a container's is named `kubepods-podUID.slice:cri-containerd:ID`.
fn pod(part: &str) -> Option<String> {
    let part = part.split(':').next()?;
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (before, uid) = part.rsplit_once("pod")?;
    if !before.is_empty() && !before.starts_with("kubepods") {
        return None;
    }
    let uid = uid.replace('_', "-");
    let digits = uid.chars().filter(|c| *c != '-');
    let is_uid = digits.clone().count() == 32 && digits.clone().all(|c| c.is_ascii_hexdigit());
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a9c0d1e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1";
    const UID: &str = "1a2b3c4d-5e6f-7081-92a3-b4c5d6e7f809";

    /// The container and the pod.
    fn place(path: &str) -> [Option<String>; 2] {
        let path = path.replace("ID", ID).replace("UU", &UID.replace('-', "_"));
        let found = Origin::of_cgroup(&path.replace("UD", UID));
        [found.container, found.pod]
    }

    #[test]
    fn the_container_and_the_pod_are_in_the_paths_that_container_managers_make() {
        let id = Some(ID);
        let uid = Some(UID);
        let fixed = Some("0123456789abcdef0123456789abcdef");
        for (path, container, pod) in [
            // docker, with the systemd and the cgroupfs driver, and with processes that the container puts into groups
            ("/system.slice/docker-ID.scope", id, None),
            ("/system.slice/docker-ID.scope/init", id, None),
            (
                "/system.slice/docker-ID.scope/system.slice/nginx.service",
                id,
                None,
            ),
            ("/docker/ID", id, None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
                id,
                None,
            ),
            // containerd and cri-o under Kubernetes
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUU.slice/cri-containerd-ID.scope",
                id,
                uid,
            ),
            (
                "/kubepods.slice/kubepods-podUU.slice/cri-containerd-ID.scope",
                id,
                uid,
            ),
            ("/kubepods/besteffort/podUD/ID", id, uid),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUU.slice/crio-ID.scope",
                id,
                uid,
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUU.slice/crio-ID.scope/container",
                id,
                uid,
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUU.slice/crio-conmon-ID.scope",
                None,
                uid,
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUU.slice",
                None,
                uid,
            ),
            // docker under Kubernetes, with both drivers
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUU.slice/docker-ID.scope",
                id,
                uid,
            ),
            ("/kubepods/burstable/podUD/ID", id, uid),
            // a kubelet with systemd's driver, above a containerd without it
            (
                "/system.slice/containerd.service/kubepods-burstable-podUU.slice:cri-containerd:ID",
                id,
                uid,
            ),
            ("/kubepods-podUU.slice:cri-containerd:ID", id, uid),
            // containerd alone: nerdctl, with both drivers, and what the container puts into groups
            ("/system.slice/nerdctl-ID.scope", id, None),
            ("/system.slice/nerdctl-ID.scope/init.scope", id, None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-ID.scope",
                id,
                None,
            ),
            ("/default/ID", id, None),
            ("/system.slice:docker:ID", id, None),
            // the pod of a file, whose UID has no dashes
            (
                "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID",
                id,
                fixed,
            ),
            // k3s and kind: a node in a container
            (
                "/docker/0000000000000000000000000000000000000000000000000000000000000000/kubelet/kubepods/podUD/ID",
                id,
                uid,
            ),
            // podman, of root and of a user
            ("/machine.slice/libpod-ID.scope", id, None),
            ("/machine.slice/libpod-ID.scope/container", id, None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
                id,
                None,
            ),
            ("/machine.slice/libpod-conmon-ID.scope", None, None),
            // podman's own pods, which Kubernetes does not know: only their containers are told
            (
                "/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope/container",
                id,
                None,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_ID.slice/libpod-ID.scope",
                id,
                None,
            ),
            (
                "/machine.slice/machine-libpod_pod_ID.slice/libpod-conmon-ID.scope",
                None,
                None,
            ),
            // systemd-nspawn and LXC
            (
                "/machine.slice/systemd-nspawn@debian.service/payload/system.slice/cron.service",
                Some("debian"),
                None,
            ),
            (
                r"/machine.slice/machine-web\x2d1.scope/payload",
                Some("web-1"),
                None,
            ),
            ("/lxc.payload.c1/init.scope", Some("c1"), None),
            // Amazon ECS
            (
                "/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1234567890",
                Some("0123456789abcdef0123456789abcdef-1234567890"),
                None,
            ),
            // none of these
            ("/", None, None),
            ("/init.scope", None, None),
            ("/system.slice/nginx.service", None, None),
            ("/system.slice/docker.service", None, None),
            (
                r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
                None,
                None,
            ),
            ("/user.slice/user-0.slice/session-3.scope", None, None),
            ("/system.slice/tripod.service", None, None),
            (
                "/a/3f2a9c0d1e4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2eX",
                None,
                None,
            ),
        ] {
            let expected = [container, pod].map(|name| name.map(str::to_owned));
            assert_eq!(place(path), expected, "{path}");
        }
    }

    #[test]
    fn the_job_and_the_step_are_in_the_paths_that_slurm_makes() {
        for (path, job, step) in [
            (
                "/system.slice/slurmstepd.scope/job_123/step_0/user/task_0",
                "123",
                "0",
            ),
            (
                "/system.slice/slurmstepd.scope/job_123/step_batch/user/task_special",
                "123",
                "batch",
            ),
            (
                "/system.slice/slurmstepd.scope/job_123/step_extern/slurm",
                "123",
                "extern",
            ),
            (
                "/system.slice/slurmstepd.scope/job_123/step_interactive/user",
                "123",
                "interactive",
            ),
            ("/system.slice/slurmstepd.scope/job_123", "123", ""),
            (
                "/system.slice/node1_slurmstepd.scope/job_9/step_2+1/user/task_3",
                "9",
                "2+1",
            ),
            (
                "/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_0/user/task_0",
                "sEKNKTV3WPV500",
                "0",
            ),
            ("/slurm/uid_1000/job_77/step_3/task_1", "77", "3"),
            ("/slurm_node1/uid_1000/job_77/step_batch", "77", "batch"),
            ("/system.slice/slurmstepd.scope/system", "", ""),
            // no SLUIDs: too short, and with a letter that none has
            (
                "/system.slice/slurmstepd.scope/sEKNKTV3WPV50/step_0",
                "",
                "",
            ),
            (
                "/system.slice/slurmstepd.scope/sEKNKTV3WPV50O/step_0",
                "",
                "",
            ),
            ("/system.slice/slurmstepd.scope", "", ""),
            ("/system.slice/slurmd.service", "", ""),
            ("/home/job_5/step_1", "", ""),
        ] {
            let found = Origin::of_cgroup(path);
            let found = [found.job, found.step].map(Option::unwrap_or_default);
            assert_eq!(found, [job, step], "{path}");
        }
    }

    #[test]
    fn a_container_within_a_job_has_both() {
        let path =
            format!("/system.slice/slurmstepd.scope/job_5/step_0/user/task_0/libpod-{ID}.scope");
        let found = Origin::of_cgroup(&path);
        assert_eq!(
            (found.job.as_deref(), found.container.as_deref()),
            (Some("5"), Some(ID))
        );
    }

    #[test]
    fn the_rank_is_that_of_the_innermost_launcher() {
        let of = |variables: &[(&str, &str)]| {
            Origin::of_environment(|name| {
                let found = variables.iter().find(|(there, _)| *there == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let slurm = [
            ("SLURM_JOB_ID", "12"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "3"),
        ];
        let found = of(&slurm);
        assert_eq!(
            (found.job.as_deref(), found.step.as_deref(), found.rank),
            (Some("12"), Some("0"), Some(3))
        );
        for (name, rank) in [
            ("PMI_RANK", "4"),
            ("MV2_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_RANK", "6"),
        ] {
            let with = [&slurm[..], &[(name, rank)]].concat();
            assert_eq!(of(&with).rank, rank.parse().ok(), "{name}");
        }
        assert_eq!(
            of(&[("PMI_RANK", "none"), ("SLURM_PROCID", "1")]).rank,
            Some(1)
        );
        assert_eq!(
            of(&[("SLURM_STEP_ID", "4294967291")]).step.as_deref(),
            Some("batch")
        );
        assert_eq!(of(&[]), Origin::default());
    }
}
