//! A Slurm cluster on loopback. munged, slurmctld and slurmd have all their files in one directory, and ports of their
//! own. All processes that the daemons started end with the cluster.
//!
//! Jobs run on the node `node`, and in the partition `both` also on the node `second`. Both are this machine. But the
//! second slurmd has its own name of the machine, which is the same as the node's.

use std::fs::{self, File};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, Pid, User, access};

use super::TIMEOUT;
use super::machine::{self, Held};
use super::newcomers::{Place, run};
use super::proc;
use super::root::require_root;

/// The search path for programs of the daemons and the jobs.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// The cluster that the tests use, one test at a time. Starting the cluster takes as long as a test, so it stays while
/// another test waits for it.
static SHARED: Mutex<Option<Cluster>> = Mutex::new(None);

/// The number of tests that use the cluster or wait for it.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// What Slurm may do with control groups on this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// Nothing. That is so where systemd owns them, too: it would have to know of this slurmd.
    Unused,
    Version1,
    Version2,
}

impl Groups {
    pub fn here() -> Self {
        let at = Path::new(GROUPS);
        let can_write = |below: &str| access(&at.join(below), AccessFlags::W_OK).is_ok();
        let controllers = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        if Path::new("/run/systemd/system").exists() {
            Self::Unused
        } else if controllers.contains("memory") && can_write("cgroup.subtree_control") {
            Self::Version2
        } else if ["memory/tasks", "freezer/tasks"].into_iter().all(can_write) {
            Self::Version1
        } else {
            Self::Unused
        }
    }

    /// The lines of slurm.conf. Without groups, slurmstepd itself looks how much memory a job uses.
    fn plugins(self) -> &'static str {
        match self {
            Self::Unused => {
                "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
                 JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=1\n\
                 JobAcctGatherParams=OverMemoryKill"
            }
            Self::Version1 | Self::Version2 => {
                "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup"
            }
        }
    }

    /// cgroup.conf.
    fn settings(self) -> &'static str {
        match self {
            Self::Unused => "",
            Self::Version1 => {
                "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\n"
            }
            Self::Version2 => {
                "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\n"
            }
        }
    }
}

struct Entry;

impl Entry {
    fn new() -> Self {
        USERS.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        USERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A test's turn with the cluster.
pub struct Turn {
    cluster: MutexGuard<'static, Option<Cluster>>,
    _machine: Held,
    _entry: Entry,
}

impl Deref for Turn {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster.as_ref().expect("the cluster runs")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The last test ends the cluster. So does a test that fails, because it may leave anything behind.
        if USERS.load(Ordering::SeqCst) == 1 || thread::panicking() {
            *self.cluster = None;
        }
    }
}

pub struct Cluster {
    pub place: Place,
    /// The user that submits jobs.
    pub user: User,
    daemons: Vec<Child>,
    /// The daemons, and the processes that they start for themselves.
    own: Vec<Pid>,
}

impl Cluster {
    /// Starts the cluster, or resets the one that runs. Its prolog, epilog and task prolog are the scripts of
    /// `examples/slurm`. Their settings are `settings`, and the setting of the spool, which is `spool`.
    #[track_caller]
    pub fn start(settings: &str) -> Turn {
        require_root();
        let entry = Entry::new();
        let mut cluster = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = machine::watched();
        match &*cluster {
            Some(cluster) => cluster.reset(settings),
            None => *cluster = Some(Self::new(settings)),
        }
        Turn {
            cluster,
            _machine: machine,
            _entry: entry,
        }
    }

    fn new(settings: &str) -> Self {
        let user = User::from_name("games").expect("users can be looked up");
        let mut cluster = Self {
            place: Place::new(),
            user: user.expect("Debian and Fedora have the user games"),
            daemons: Vec::new(),
            own: Vec::new(),
        };
        cluster.place.directory("state");
        install(&cluster.place, settings);
        let out = cluster.place.directory("out");
        let (uid, gid) = (cluster.user.uid.as_raw(), cluster.user.gid.as_raw());
        chown(&out, Some(uid), Some(gid)).expect("the test owns the directory");
        cluster.configure();
        cluster.run_daemons();
        cluster.own = cluster.processes();
        cluster
    }

    /// Brings the cluster back to the state after its start, with other settings.
    fn reset(&self, settings: &str) {
        let jobs = run(self.command("squeue").args(["-h", "-o", "%A"]));
        if !jobs.trim().is_empty() {
            run(self.command("scancel").args(jobs.split_whitespace()));
        }
        self.until("no job is left", |cluster| {
            run(cluster.command("squeue").arg("-h")).trim().is_empty()
        });
        // Other states end by themselves.
        for (node, partition) in [("node", "all"), ("second", "both")] {
            let state = self.state_in(partition);
            if ["drain", "down"].iter().any(|word| state.contains(word)) {
                let node = format!("nodename={node}");
                let words = ["update", &node, "state=resume"];
                run(self.command("scontrol").args(words));
            }
        }
        self.until("the nodes are idle", |cluster| {
            cluster.state_in("both") == "idle"
        });
        self.assert_nothing_left();
        for directory in ["", "out"] {
            let entries =
                fs::read_dir(self.place.path(directory)).expect("the test owns the directory");
            for entry in entries {
                let entry = entry.expect("the test owns the directory");
                let name = entry.file_name().into_string().expect("the name is UTF-8");
                let daemons = [
                    "munge",
                    "slurm.conf",
                    "cgroup.conf",
                    "slurmctld",
                    "slurmd",
                    "state",
                    "unshare",
                ];
                let stays = daemons.iter().any(|prefix| name.starts_with(prefix)) || name == "out";
                if directory.is_empty() && stays {
                    continue;
                }
                let removed = match entry.file_type().expect("the entry exists").is_dir() {
                    true => fs::remove_dir_all(entry.path()),
                    false => fs::remove_file(entry.path()),
                };
                removed.expect("the test owns the file");
            }
        }
        install(&self.place, settings);
    }

    /// Writes the cluster's configuration, and that of its control groups.
    fn configure(&self) {
        let groups = Groups::here();
        let host = nix::unistd::gethostname().expect("a host has a name");
        let host = host.to_str().expect("the name is UTF-8");
        let host = host.split('.').next().expect("at least one part");
        // All ports stay bound until all are known, so that they differ.
        let ports = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port exists"));
        let [controller, node, second] = ports
            .each_ref()
            .map(|port| port.local_addr().expect("the port is bound").port());
        let at = self.place.path("");
        let at = at
            .to_str()
            .expect("the path is UTF-8")
            .trim_end_matches('/');
        let text = format!(
            "ClusterName=memleak\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\n\
             SlurmctldPort={controller}\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/munge.socket\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/slurmd.%n\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.%n.pid\n\
             {}\nMpiDefault=none\n\
             Prolog={at}/slurm/prolog.sh\nEpilog={at}/slurm/epilog.sh\nTaskProlog={at}/slurm/task_prolog.sh\n\
             SchedulerParameters=bf_interval=1\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU_Memory\n\
             SlurmdParameters=config_overrides\n\
             NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=4 RealMemory=4000\n\
             NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4 RealMemory=4000\n\
             PartitionName=all Nodes=node Default=YES State=UP DefMemPerCPU=400\n\
             PartitionName=both Nodes=node,second State=UP DefMemPerCPU=400\n",
            groups.plugins()
        );
        fs::write(self.place.path("cgroup.conf"), groups.settings())
            .expect("the test owns the file");
        fs::write(self.place.path("slurm.conf"), text).expect("the test owns the file");
        let key = self.place.path("munge.key");
        let random = fs::read("/proc/sys/kernel/random/uuid").expect("/proc is mounted");
        fs::write(&key, random).expect("the test owns the file");
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600))
            .expect("the test owns the file");
    }

    fn run_daemons(&mut self) {
        let at = |name: &str| self.place.path(name);
        let option = |name: &str, file: &str| format!("--{name}={}", at(file).display());
        let munged = [
            "--foreground".to_owned(),
            // Other users may write to /tmp above, but not to this directory.
            "--force".to_owned(),
            option("key-file", "munge.key"),
            option("socket", "munge.socket"),
            option("pid-file", "munged.pid"),
            option("seed-file", "munge.seed"),
            option("log-file", "munged.log"),
        ];
        self.run_daemon("munged", &munged);
        self.until("munged listens", |cluster| {
            cluster.place.path("munge.socket").exists()
        });
        self.run_daemon("slurmctld", &["-D".to_owned()]);
        self.run_daemon("slurmd", &["-D", "-N", "node"].map(str::to_owned));
        let named = "hostname second && exec slurmd -D -N second";
        self.run_daemon("unshare", &["--uts", "sh", "-c", named].map(str::to_owned));
        self.until("the nodes are idle", |cluster| {
            cluster.state_in("both") == "idle"
        });
    }

    fn run_daemon(&mut self, name: &str, arguments: &[String]) {
        let log =
            File::create(self.place.path(&format!("{name}.out"))).expect("the test owns the file");
        let child = self
            .command(name)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the descriptor can be duplicated"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}; see `make install-deps`"));
        self.daemons.push(child);
    }

    /// A command that uses this cluster, as root.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .env_clear()
            .envs([("PATH", PATH), ("LC_ALL", "C")])
            .env("SLURM_CONF", self.place.path("slurm.conf"))
            .current_dir(self.place.path("out"));
        command
    }

    /// Waits until `done` is true. After the timeout, fails and shows the output of the daemons.
    #[track_caller]
    pub fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            if began.elapsed() > *TIMEOUT {
                let logs = [
                    "munged.out",
                    "slurmctld.out",
                    "slurmd.out",
                    "unshare.out",
                    "spool/log",
                ];
                let logs = logs.map(|name| fs::read_to_string(self.place.path(name)));
                panic!("timed out waiting until {what}: {logs:#?}");
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The node's state as sinfo prints it: `idle`, `mixed`, `drained` or another. Empty if slurmctld does not answer.
    pub fn node_state(&self) -> String {
        self.state_in("all")
    }

    /// The same for the nodes of a partition. States that differ are on lines of their own.
    pub fn state_in(&self, partition: &str) -> String {
        let words = ["-h", "-p", partition, "-o", "%T"];
        let output = self.command("sinfo").args(words).output();
        let output = output.expect("sinfo can be run");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Submits a shell script from the directory `out`, as the user. Returns the job's number.
    #[track_caller]
    pub fn submit(&self, options: &[&str], script: &str) -> String {
        let login = format!("--reuid={}", self.user.uid);
        let group = format!("--regid={}", self.user.gid);
        let words = [&login, &group, "--clear-groups", "--", "sbatch"];
        self.submit_by("setpriv", &words, options, script)
    }

    /// As `submit`, but as root.
    #[track_caller]
    pub fn submit_as_root(&self, options: &[&str], script: &str) -> String {
        self.submit_by("sbatch", &[], options, script)
    }

    pub fn cancel(&self, job: &str) {
        run(self.command("scancel").arg(job));
    }

    fn submit_by(&self, program: &str, words: &[&str], options: &[&str], script: &str) -> String {
        let said = run(self
            .command(program)
            .args(words)
            .args(["--parsable", "--export=ALL"])
            .args(options)
            .arg(
                self.place
                    .script("job.sh", &format!("#!/bin/sh\n{script}\n")),
            ));
        said.trim().to_owned()
    }

    /// Waits until a job and its epilog have ended. Returns the job's state.
    #[track_caller]
    pub fn finish(&self, job: &str) -> String {
        let state = || {
            let said = run(self.command("scontrol").args(["-o", "show", "job", job]));
            let mut words = said.split_whitespace();
            let state = words.find_map(|word| word.strip_prefix("JobState="));
            state.unwrap_or_else(|| panic!("{said}")).to_owned()
        };
        let busy = ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING"];
        self.until("the job has ended", |_| !busy.contains(&&*state()));
        self.until("the epilog has ended", |cluster| {
            !cluster.is_running("epilog.sh")
        });
        state()
    }

    /// The pid of the memleak that a job's prolog started and left running.
    pub fn memleak_of(&self, job: &str) -> Option<Pid> {
        let file = self.place.path(&format!("spool/job.{job}/process"));
        let text = fs::read_to_string(file).ok()?;
        let pid = text.split_whitespace().next()?.parse().ok()?;
        Some(Pid::from_raw(pid))
    }

    /// The messages of the prologs and epilogs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.path("spool/log")).unwrap_or_default()
    }

    /// Whether a process of this cluster has `what` in its command line.
    pub fn is_running(&self, what: &str) -> bool {
        let line = |pid: &Pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        self.processes()
            .iter()
            .any(|pid| String::from_utf8_lossy(&line(pid)).contains(what))
    }

    /// All processes that have this cluster's configuration in their environment.
    fn processes(&self) -> Vec<Pid> {
        let ours = format!("SLURM_CONF={}", self.place.path("slurm.conf").display());
        let environment = |pid: Pid| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        proc::all()
            .into_iter()
            .map(|process| process.pid)
            .filter(|pid| String::from_utf8_lossy(&environment(*pid)).contains(&ours))
            .collect()
    }

    /// Fails if a job has left a process, a message, or a node that takes no more jobs.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        self.assert_nothing_left();
        assert_eq!((&*self.node_state(), &*self.log()), ("idle", ""));
    }

    /// Waits until only the daemons and their own processes run.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        self.until("nothing is left", |cluster| {
            let mut processes = cluster.processes().into_iter();
            processes.all(|pid| cluster.own.contains(&pid))
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // slurmd ends first, or it would start the next process. The second round ends processes that were being
        // started during the first.
        for _ in 0..2 {
            for daemon in self.daemons.iter_mut().rev() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
            let ours = self.processes();
            proc::end_all(|process| ours.contains(&process.pid));
        }
        // slurmd leaves its own groups.
        for group in [
            "memory/slurm_node",
            "memory/slurm_second",
            "freezer/slurm_node",
            "freezer/slurm_second",
            "system.slice/node_slurmstepd.scope/system",
            "system.slice/node_slurmstepd.scope",
            "system.slice/second_slurmstepd.scope/system",
            "system.slice/second_slurmstepd.scope",
        ] {
            let _ = fs::remove_dir(Path::new(GROUPS).join(group));
        }
    }
}

/// Installs the scripts of `examples/slurm` in `slurm`, as a site does. Their spool is `spool`.
pub fn install(place: &Place, settings: &str) {
    let directory = place.directory("slurm");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/slurm");
    for entry in fs::read_dir(from).expect("the scripts can be listed") {
        let path = entry.expect("the scripts can be listed").path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            let name = path
                .file_name()
                .expect("a file")
                .to_str()
                .expect("the name is UTF-8");
            place.copy(&path, &format!("slurm/{name}"));
        }
    }
    set(&directory.join("memleak.conf"), place, settings);
}

/// Replaces the settings.
pub fn set(conf: &Path, place: &Place, settings: &str) {
    let spool = place.path("spool");
    let text = format!("MEMLEAK_SPOOL={}\n{settings}\n", spool.display());
    fs::write(conf, text).expect("the test owns the file");
}

/// The setting for memleak's program file.
pub fn program(path: &Path) -> String {
    format!("MEMLEAK={}", path.display())
}

/// The settings for the memleak under test: its program file, and the longest wait needed on a busy machine.
pub fn memleak() -> String {
    let program = program(&PathBuf::from(env!("CARGO_BIN_EXE_memleak")));
    format!("{program}\nMEMLEAK_START_WAIT=30000")
}
