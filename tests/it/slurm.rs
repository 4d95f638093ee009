//! Tests `examples/slurm` in a Slurm cluster of the test's own. The leaks of a job are in the report beside the job's
//! output. No failure of memleak stops a job or takes a node out of service.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use memleak::kernel::settings::MAX_LABELS;
use nix::sys::signal::{Signal, kill};

use crate::common::expected::{End, counts};
use crate::common::group::Group;
use crate::common::newcomers::{Place, run};
use crate::common::proc;
use crate::common::slurm;
use crate::common::slurm::{Cluster, Groups, install, memleak, program, set};
use crate::common::watch::rows;
use crate::common::{Counts, Row, fixture};

/// A job that takes longer than this to begin was delayed.
const DELAYED: Duration = Duration::from_secs(10);

/// The rows of `program` in a report, sorted by their leaked bytes. Fails unless the report is complete.
#[track_caller]
fn leaks(report: &Path, program: &Path) -> Vec<Row> {
    let text =
        fs::read_to_string(report).unwrap_or_else(|error| panic!("{}: {error}", report.display()));
    let last = text
        .lines()
        .last()
        .expect("the report has at least a summary");
    assert!(last.contains(r#""type":"summary""#), "cut off: {last}");
    let mut rows = rows(report);
    rows.retain(|row| row.exe.as_deref() == Some(program));
    rows.sort_by_key(|row| row.counts.leaked_bytes);
    rows
}

/// Fails unless the rows have exactly these counts, each from a process followed from its start to its exit.
#[track_caller]
fn assert_leaks(rows: &[Row], uid: u32, expected: &[Counts]) {
    let found: Vec<_> = rows.iter().map(|row| row.counts).collect();
    assert_eq!(found, expected, "{rows:#?}");
    for row in rows {
        assert_eq!(
            (End::of(row), &*row.from, row.uid, row.complete),
            (End::Exit(0), "start", uid, true),
            "{row:#?}"
        );
    }
}

/// The signal that ended the only process of this name.
#[track_caller]
fn signal_of(report: &Path, comm: &str) -> Option<i32> {
    let mut rows = rows(report);
    rows.retain(|row| row.comm == comm);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    rows[0].signal
}

fn leaked(blocks: u64, bytes: u64) -> Counts {
    counts(blocks * bytes, blocks, 0, blocks * bytes, blocks)
}

/// A copy of a fixture that every user may execute.
fn copy(place: &Place, name: &str) -> PathBuf {
    place.copy(&fixture(name), name)
}

#[test]
fn the_report_beside_a_jobs_output_has_the_jobs_leaks() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "leak_known");
    let out = cluster.place.path("out");
    let script = format!("mkdir -p logs; {0} && srun {0}", program.display());
    fs::create_dir(out.join("logs")).expect("the test's own directory");
    let owner = (cluster.user.uid.as_raw(), cluster.user.gid.as_raw());
    std::os::unix::fs::chown(out.join("logs"), Some(owner.0), Some(owner.1))
        .expect("the test runs as root");
    let job = cluster.submit(&["-o", "logs/%j.out"], &script);
    assert_eq!(cluster.finish(&job), "COMPLETED");

    let report = out.join(format!("logs/memleak-{job}.node.json"));
    let rows = leaks(&report, &program);
    let (child, parent) = (
        leaked(250, 1000),
        counts(2_000_000, 2000, 1000, 1_000_000, 1000),
    );
    assert_leaks(&rows, owner.0, &[child, child, parent, parent]);
    let file = report.metadata().expect("the file exists");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o777),
        (owner.0, owner.1, 0o600)
    );
    // Nothing is left of the job: no process, no file in the spool, and no line in the log.
    cluster.assert_nothing_left();
    assert!(!cluster.place.path(&format!("spool/job.{job}")).exists());
    assert_eq!(cluster.log(), "");
}

/// Each task of an array is a job with a report of its own.
#[test]
fn each_task_of_an_array_has_a_report_of_its_own() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!(
        "echo $SLURM_JOB_ID >number.$SLURM_ARRAY_TASK_ID; exec {} $SLURM_ARRAY_TASK_ID 100",
        program.display()
    );
    let array = cluster.submit(&["--array=7,8"], &script);
    for task in [7, 8] {
        let state = cluster.finish(&format!("{array}_{task}"));
        assert_eq!(state, "COMPLETED", "{task}");
    }
    let out = cluster.place.path("out");
    for task in [7, 8] {
        let number = fs::read_to_string(out.join(format!("number.{task}")));
        let job = number.expect("the task ran").trim().to_owned();
        // Without control groups of version 2, the report may have the user's other job, too.
        let mut rows = leaks(&out.join(format!("memleak-{job}.node.json")), &program);
        rows.retain(|row| row.job.as_ref() == Some(&job));
        assert_leaks(&rows, cluster.user.uid.as_raw(), &[leaked(task, 100)]);
    }
    cluster.assert_unharmed();
}

#[test]
fn each_of_four_tasks_is_a_rank_of_the_report() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!(
        "srun true; srun -n4 sh -c 'exec {0} $((SLURM_PROCID + 1)) 100'; exec {0} 5 100",
        program.display()
    );
    let job = cluster.submit(&["-n4"], &script);
    assert_eq!(cluster.finish(&job), "COMPLETED");
    let report = cluster.place.path(&format!("out/memleak-{job}.node.json"));
    let rows = leaks(&report, &program);
    let expected: Vec<_> = (1..=5).map(|blocks| leaked(blocks, 100)).collect();
    assert_leaks(&rows, cluster.user.uid.as_raw(), &expected);
    let places: Vec<_> = rows
        .iter()
        .map(|row| (row.job.as_deref(), row.step.as_deref(), row.rank))
        .collect();
    let of_step = |rank| (Some(&*job), Some("1"), Some(rank));
    assert_eq!(places[..4], [0, 1, 2, 3].map(of_step));
    // The batch script is a task, too. Only its control group says of which step.
    let step = (Groups::here() == Groups::Version2).then_some("batch");
    assert_eq!(places[4], (Some(&*job), step, Some(0)));
    cluster.assert_nothing_left();
}

/// Both nodes are one machine, so each memleak may see the tasks of both. The variable tells the nodes apart.
#[test]
fn each_node_of_a_job_has_a_report_and_they_can_be_added_up() {
    let options = "MEMLEAK_OPTIONS=(--label-env SLURMD_NODENAME)";
    let spool = "MEMLEAK_SPOOL=$MEMLEAK_SPOOL${SLURMD_NODENAME#node}";
    let cluster = Cluster::start(&format!("{}\n{options}\n{spool}", memleak()));
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!(
        "srun -n2 sh -c 'exec {} $((SLURM_PROCID + 1)) 100'",
        program.display()
    );
    let job = cluster.submit(&["-p", "both", "-N2", "-n2"], &script);
    assert_eq!(cluster.finish(&job), "COMPLETED");
    let own = nix::unistd::gethostname().expect("a host has a name");
    let hosts = [own.to_str().expect("the name is UTF-8"), "second"];
    let reports = ["node", "second"].map(|node| {
        let report = format!("out/memleak-{job}.{node}.json");
        (node, cluster.place.path(&report))
    });
    for (rank, ((node, report), host)) in reports.iter().zip(hosts).enumerate() {
        let rank = u32::try_from(rank).expect("two ranks");
        let mut rows = leaks(report, &program);
        rows.retain(|row| row.labels["SLURMD_NODENAME"] == *node);
        let blocks = u64::from(rank) + 1;
        assert_leaks(&rows, cluster.user.uid.as_raw(), &[leaked(blocks, 100)]);
        let row = &rows[0];
        let place = (row.job.as_deref(), row.step.as_deref(), row.rank);
        assert_eq!(place, (Some(&*job), Some("0"), Some(rank)));
        assert_eq!(row.host.as_deref(), Some(host));
    }
    let sums = run(Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["report", "--by", "node"])
        .args(reports.iter().map(|(_, report)| report)));
    for ((_, report), host) in reports.iter().zip(hosts) {
        // Each process has one row that no exec of it follows.
        let ended = rows(report).iter().filter(|row| row.end != "exec").count();
        let is_host = |line: &&str| line.split_whitespace().next() == Some(host);
        let line = sums.lines().find(is_host);
        let line = line.unwrap_or_else(|| panic!("no {host}: {sums}"));
        let processes = line.split_whitespace().nth(1);
        assert_eq!(processes, Some(&*ended.to_string()), "{sums}");
    }
    cluster.assert_nothing_left();
    assert_eq!(
        (cluster.state_in("both").as_str(), &*cluster.log()),
        ("idle", "")
    );
}

#[test]
fn a_cancelled_job_has_a_report_of_what_it_did() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!("{} 3 100; touch began; sleep 600", program.display());
    let job = cluster.submit(&[], &script);
    let out = cluster.place.path("out");
    cluster.until("the job runs", |_| out.join("began").exists());
    cluster.cancel(&job);
    assert_eq!(cluster.finish(&job), "CANCELLED");
    let report = out.join(format!("memleak-{job}.node.json"));
    let uid = cluster.user.uid.as_raw();
    assert_leaks(&leaks(&report, &program), uid, &[leaked(3, 100)]);
    // Slurm sends SIGTERM, and SIGKILL after it.
    let signal = signal_of(&report, "sleep");
    assert!([Some(15), Some(9)].contains(&signal), "{signal:?}");
    cluster.assert_unharmed();
}

#[test]
fn a_job_that_runs_out_of_memory_has_a_report_of_what_it_did() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let fills = copy(&cluster.place, "fills_memory");
    let script = format!("{} 3 100; exec {}", program.display(), fills.display());
    let job = cluster.submit(&["--mem=100"], &script);
    // Without control groups, Slurm itself looks at the memory, and kills the job.
    let state = match Groups::here() {
        Groups::Unused => "FAILED",
        Groups::Version1 | Groups::Version2 => "OUT_OF_MEMORY",
    };
    assert_eq!(cluster.finish(&job), state);
    let report = cluster.place.path(&format!("out/memleak-{job}.node.json"));
    let uid = cluster.user.uid.as_raw();
    assert_leaks(&leaks(&report, &program), uid, &[leaked(3, 100)]);
    assert_eq!(signal_of(&report, "fills_memory"), Some(9));
    cluster.assert_unharmed();
}

#[test]
fn the_prolog_returns_and_its_memleak_shares_nothing_with_slurmd() {
    let cluster = Cluster::start("");
    let conf = cluster.place.path("slurm/memleak.conf");
    // The second round uses a memleak that does not start watching in time.
    let slow = cluster.place.script("slow", "#!/bin/sh\nexec sleep 20\n");
    for setting in [memleak(), program(&slow)] {
        set(&conf, &cluster.place, &setting);
        let began = Instant::now();
        let job = cluster.submit(
            &[],
            "touch began; until [ -e go ]; do sleep 0.1; done; rm began go",
        );
        let out = cluster.place.path("out");
        cluster.until("the job runs", |_| out.join("began").exists());
        assert!(began.elapsed() < DELAYED, "{:?}", began.elapsed());

        assert!(!cluster.is_running("prolog.sh"));
        let pid = cluster
            .memleak_of(&job)
            .expect("the prolog left memleak's pid");
        let process = proc::Process::of(pid).expect("the process runs");
        assert_eq!((process.session, process.group), (pid, pid), "{process:?}");
        let log = cluster.place.path(&format!("spool/job.{job}/log"));
        for (fd, leads_to) in [
            (0, Path::new("/dev/null")),
            (1, Path::new("/dev/null")),
            (2, &log),
        ] {
            let link =
                fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("the descriptor is open");
            assert_eq!(link, leads_to);
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs") {
            let link = fs::read_link(entry.expect("a descriptor").path());
            let link = link.unwrap_or_default();
            assert!(!link.to_string_lossy().starts_with("pipe:"), "{link:?}");
        }

        fs::write(out.join("go"), "").expect("the test's own file");
        assert_eq!(cluster.finish(&job), "COMPLETED");
        assert!(!proc::Process::is_alive(pid));
        cluster.assert_nothing_left();
    }
    assert!(cluster.log().contains("starts before memleak counts"));
    assert!(cluster.log().contains("there is no report"));
    assert_eq!(cluster.node_state(), "idle");
}

#[test]
fn a_memleak_that_fails_stops_no_job_and_drains_no_node() {
    let cluster = Cluster::start("");
    let conf = cluster.place.path("slurm/memleak.conf");
    let fails = "#!/bin/sh\necho 'memleak: no rights' >&2\nexit 125\n";
    let fails = cluster.place.script("fails", fails);
    let plain = cluster.place.path("plain");
    fs::write(&plain, "").expect("the test's own file");
    let missing = cluster.place.path("missing");
    let no_spool = format!("{}\nMEMLEAK_SPOOL={}", memleak(), plain.display());
    let open_spool = cluster.place.directory("open");
    fs::set_permissions(&open_spool, PermissionsExt::from_mode(0o777))
        .expect("the test's own file");
    let open_spool = format!("{}\nMEMLEAK_SPOOL={}", memleak(), open_spool.display());
    for (setting, why) in [
        (
            program(&fails),
            Some("memleak ended with 125: memleak: no rights"),
        ),
        (program(&missing), Some("is no program")),
        (program(&plain), Some("is no program")),
        (no_spool, None),
        (open_spool, None),
        ("syntax error (".to_owned(), None),
    ] {
        set(&conf, &cluster.place, &setting);
        let job = cluster.submit(&["-o", "%j.out"], "echo it ran");
        assert_eq!(cluster.finish(&job), "COMPLETED", "{setting}");
        let said = fs::read_to_string(cluster.place.path(&format!("out/{job}.out")));
        assert_eq!(said.expect("the job's output"), "it ran\n");
        let log = cluster.log();
        if let Some(why) = why {
            let line = log
                .lines()
                .find(|line| line.contains(&format!("job {job}: ")));
            assert!(line.is_some_and(|line| line.contains(why)), "{why}: {log}");
        }
        assert_eq!(cluster.node_state(), "idle", "{setting}");
    }
    cluster.assert_nothing_left();
    let in_open_spool = fs::read_dir(cluster.place.path("open")).expect("the file exists");
    assert_eq!(
        in_open_spool.count(),
        0,
        "memleak used a spool that other users may write"
    );
}

/// memleak dies in the middle of a job. What it had reported by then is beside the job's output.
#[test]
fn a_memleak_that_is_killed_leaves_its_windows_and_harms_nobody() {
    let cluster = Cluster::start(&format!("{}\nMEMLEAK_INTERVAL=0.2", memleak()));
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!(
        "{0} 3 100; until [ -e go ]; do sleep 0.1; done; {0} 4 100; echo it ran",
        program.display()
    );
    let job = cluster.submit(&["-o", "%j.out"], &script);
    let growing = cluster.place.path(&format!("spool/job.{job}/report"));
    cluster.until("the first window is reported", |_| {
        fs::read_to_string(&growing).is_ok_and(|text| text.contains("holds_blocks"))
    });
    let pid = cluster.memleak_of(&job).expect("memleak runs");
    kill(pid, Signal::SIGKILL).expect("memleak runs");
    // The kernel takes its probes away before the process has ended.
    cluster.until("memleak is dead", |_| !proc::Process::is_alive(pid));
    let out = cluster.place.path("out");
    fs::write(out.join("go"), "").expect("the test's own file");
    assert_eq!(cluster.finish(&job), "COMPLETED");
    let said = fs::read_to_string(out.join(format!("{job}.out")));
    assert_eq!(said.expect("the job's output"), "it ran\n");
    let mut rows = rows(&out.join(format!("memleak-{job}.node.json")));
    rows.retain(|row| row.exe.as_deref() == Some(&program));
    assert_leaks(&rows, cluster.user.uid.as_raw(), &[leaked(3, 100)]);
    cluster.assert_nothing_left();
    let why = format!("job {job}: memleak ended before the job did");
    assert!(cluster.log().contains(&why), "{}", cluster.log());
    assert_eq!(cluster.node_state(), "idle");
}

#[test]
fn a_memleak_that_ignores_the_epilog_is_killed_and_drains_no_node() {
    let cluster = Cluster::start("");
    let deaf = "#!/bin/sh\ntrap '' TERM\necho 'memleak: attached by nobody' >&2\nexec sleep 600\n";
    let deaf = cluster.place.script("deaf", deaf);
    let setting = format!("{}\nMEMLEAK_STOP_WAIT=500", program(&deaf));
    set(
        &cluster.place.path("slurm/memleak.conf"),
        &cluster.place,
        &setting,
    );
    let job = cluster.submit(&[], "until [ -e go ]; do sleep 0.1; done");
    cluster.until("memleak runs", |cluster| cluster.memleak_of(&job).is_some());
    let pid = cluster.memleak_of(&job).expect("memleak runs");
    let out = cluster.place.path("out");
    fs::write(out.join("go"), "").expect("the test's own file");
    assert_eq!(cluster.finish(&job), "COMPLETED");
    assert!(!proc::Process::is_alive(pid));
    cluster.assert_nothing_left();
    let why = format!("job {job}: memleak (process {pid}) does not end: killed");
    assert!(cluster.log().contains(&why), "{}", cluster.log());
    assert_eq!(cluster.node_state(), "idle");
}

#[test]
fn a_failed_gate_in_a_prolog_drains_the_node_only_with_allow_drain() {
    let cluster = Cluster::start("");
    let report = cluster.place.path("gate.json");
    let leaks = copy(&cluster.place, "leak_known");
    for (option, state) in [("", "idle"), ("--allow-drain", "drained")] {
        let _ = fs::remove_file(&report);
        let prolog = format!(
            "#!/bin/sh\nexec {} run {option} --fail-on-leak 1kB --format json -o {} -- {}\n",
            env!("CARGO_BIN_EXE_memleak"),
            report.display(),
            leaks.display(),
        );
        cluster.place.script("slurm/prolog.sh", &prolog);
        let job = cluster.submit(&["--no-requeue"], "true");
        if option.is_empty() {
            assert_eq!(cluster.finish(&job), "COMPLETED");
        }
        cluster.until(state, |cluster| cluster.node_state() == state);
        let said = fs::read_to_string(&report).expect("the prolog ran");
        assert!(said.contains(r#""verdict":"failed""#), "{said}");
    }
}

#[test]
fn the_report_is_not_written_through_links_that_a_user_planted() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let out = cluster.place.path("out");
    let precious = cluster.place.path("precious");
    fs::write(&precious, "precious").expect("the test's own file");
    let roots = cluster.place.directory("roots");
    let uid = cluster.user.uid.as_raw();

    let leak = format!("{} 3 100", program.display());
    let planted = "memleak-$SLURM_JOB_ID.node";
    let script = format!(
        "ln -s {} {planted}.json; ln -s {}/new {planted}.1.json; {leak}",
        precious.display(),
        roots.display()
    );
    let job = cluster.submit(&[], &script);
    assert_eq!(cluster.finish(&job), "COMPLETED");
    let report = out.join(format!("memleak-{job}.node.2.json"));
    assert_leaks(&leaks(&report, &program), uid, &[leaked(3, 100)]);
    assert_eq!(
        report.symlink_metadata().expect("the file exists").uid(),
        uid
    );

    // At the job's end the report's directory belongs to another user.
    let script = format!(
        "mkdir logs; cd ..; mv out/logs out/old; ln -s {} out/logs; {leak}",
        roots.display()
    );
    let options = ["-o", "%j.out", "-D"];
    let logs = out.join("logs");
    let job = cluster.submit(
        &[&options[..], &[logs.to_str().expect("plain")]].concat(),
        &script,
    );
    cluster.finish(&job);
    let kept = cluster.place.path(&format!("spool/job.{job}/report"));
    assert!(kept.exists(), "{}", cluster.log());
    let why = format!("job {job}: the report stays in");
    assert!(cluster.log().contains(&why), "{}", cluster.log());

    assert_eq!(
        fs::read_to_string(&precious).expect("the test's own file"),
        "precious"
    );
    assert_eq!(
        fs::read_dir(&roots).expect("the test's own file").count(),
        0
    );
    assert_eq!(cluster.node_state(), "idle");
}

#[test]
fn each_task_has_its_own_report_if_the_job_asks_for_it() {
    let cluster = Cluster::start(&memleak());
    let program = copy(&cluster.place, "holds_blocks");
    let script = format!(
        "export {}\n\
         srun -n2 memleak-task.sh sh -c 'exec {1} $((SLURM_PROCID + 1)) 100'\n\
         srun -n1 memleak-task.sh {1} 5 1000\n\
         export MEMLEAK_TASK_OPTIONS=--probes=private\n\
         srun -n2 memleak-task.sh sh -c 'exec {1} $((SLURM_PROCID + 1)) 10'",
        slurm::program(Path::new(env!("CARGO_BIN_EXE_memleak"))),
        program.display()
    );
    let job = cluster.submit_as_root(&["-n2"], &script);
    assert_eq!(cluster.finish(&job), "COMPLETED");
    for (name, blocks, bytes) in [
        ("0", 1, 100),
        ("1", 2, 100),
        ("1.0", 5, 1000),
        ("2.0", 1, 10),
        ("2.1", 2, 10),
    ] {
        let report = cluster.place.path(&format!("out/{job}.{name}.json"));
        assert_leaks(&leaks(&report, &program), 0, &[leaked(blocks, bytes)]);
    }
    // There is no report for the whole of root's job, because it would cover the whole node.
    assert!(cluster.log().contains("is not watched: it is root's"));
    cluster.assert_nothing_left();
}

/// Job 77 of the user nobody, without a Slurm. Dropping this value ends the job's memleak, if it still runs.
struct Job<'a> {
    scripts: PathBuf,
    out: PathBuf,
    /// The value of SLURM_JOB_SLUID.
    sluid: Option<&'a str>,
    /// Words that run the scripts in a control group.
    inside: Vec<String>,
}

impl Job<'_> {
    fn run(&self, script: &str) -> ExitStatus {
        let script = self.scripts.join(format!("{script}.sh"));
        let mut words = self
            .inside
            .iter()
            .map(OsStr::new)
            .chain([script.as_os_str()]);
        let status = Command::new(words.next().expect("at least the script"))
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs([("SLURM_JOB_ID", "77"), ("SLURMD_NODENAME", "node")])
            .envs([("SLURM_JOB_UID", "65534"), ("SLURM_JOB_GID", "65534")])
            .envs(self.sluid.map(|sluid| ("SLURM_JOB_SLUID", sluid)))
            .env("SLURM_JOB_WORK_DIR", &self.out)
            .stdin(Stdio::null())
            .status();
        status.expect("the script can be run")
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.run("epilog");
    }
}

const SLUID: &str = "sEKNKTV3WPV500";

#[test]
fn with_control_groups_for_jobs_the_report_omits_other_processes_of_the_user() {
    for (sluid, own, in_job) in [
        // Before 25.11 a job has no SLUID.
        (None, "job_77", false),
        // 25.11, and 26.05 with CgroupJobIdPaths=yes.
        (Some(SLUID), "job_77", false),
        // 26.05.
        (Some(SLUID), SLUID, false),
        // PrologFlags=RunInJob.
        (Some(SLUID), "job_77", true),
        (Some(SLUID), SLUID, true),
        // A name that would lead elsewhere is not used.
        (Some("s/../../x"), "job_77", false),
    ] {
        let place = Place::new();
        let group = Group::new();
        let scope = group.path.join("slurmstepd.scope");
        fs::create_dir(&scope).expect("control groups can be created");
        let setting = format!("{}\nMEMLEAK_SCOPE={}", memleak(), scope.display());
        install(&place, &setting);
        let leaker = copy(&place, "holds_blocks");
        let uid = 65534;
        let out = place.directory("out");
        std::os::unix::fs::chown(&out, Some(uid), Some(uid)).expect("the test runs as root");
        let own = scope.join(own);
        let external = own.join("step_extern");
        let mut job = Job {
            scripts: place.path("slurm"),
            out: out.clone(),
            sluid,
            inside: Vec::new(),
        };
        if in_job {
            fs::create_dir_all(&external).expect("control groups can be created");
            job.inside = Group::enter(&external).to_vec();
        }
        let script = |name: &str| assert!(job.run(name).success());
        let leak = |path: &Path, blocks: &str| {
            run(Command::new("sh")
                .args(&Group::enter(path)[1..])
                .args(["setpriv", "--reuid=65534"])
                .arg(&leaker)
                .args([blocks, "100"])
                .env_remove("LD_LIBRARY_PATH"));
        };
        script("prolog");
        // A job has one memleak, even if Slurm runs the prolog again.
        script("prolog");
        let log = fs::read_to_string(place.path("spool/log")).expect("the log exists");
        assert!(
            log.contains("job 77: is not watched: it is already"),
            "{log}"
        );
        // Slurm does the same: it uses the job's existing group, and makes one group below it for each step.
        for step in ["step_0", "step_1"] {
            fs::create_dir(own.join(step)).expect("the prolog made the job's group");
        }
        leak(&own.join("step_0"), "1");
        leak(&group.path, "2");
        leak(&own.join("step_1"), "3");
        for step in ["step_0", "step_1"] {
            fs::remove_dir(own.join(step)).expect("the groups are empty");
        }
        // When a step ends, it removes the job's group if it can. memleak would not watch a new group that replaces it.
        assert!(fs::remove_dir(&own).is_err());
        script("epilog");
        let rows = leaks(&out.join("memleak-77.node.json"), &leaker);
        assert_leaks(&rows, uid, &[leaked(1, 100), leaked(3, 100)]);
        // By its number, also where the group has the SLUID.
        let jobs = rows.iter().map(|row| row.job.as_deref());
        assert!(jobs.eq([Some("77"); 2]), "{rows:#?}");
        if in_job {
            job.inside.clear();
            // Slurm's own groups stay.
            let names = fs::read_dir(&own).expect("the group exists");
            let directories =
                names.filter(|entry| entry.as_ref().expect("an entry").path().is_dir());
            assert_eq!(directories.count(), 1);
            fs::remove_dir(&external).expect("the group is empty");
            fs::remove_dir(&own).expect("the group is empty");
        }
        let left = fs::read_dir(&scope).expect("the group exists");
        let left = left.map(|entry| entry.expect("an entry").path());
        let left: Vec<_> = left.filter(|path| path.is_dir()).collect();
        assert!(left.is_empty(), "{left:?}");
        fs::remove_dir(&scope).expect("the group is empty");
    }
}

#[test]
fn a_memleak_that_does_not_start_leaves_no_control_group() {
    let place = Place::new();
    let group = Group::new();
    let scope = group.path.display();
    let fails = place.script("fails", "#!/bin/sh\nexit 125\n");
    let setting = program(&fails);
    install(
        &place,
        &format!("{setting}\nMEMLEAK_START_WAIT=30000\nMEMLEAK_SCOPE={scope}"),
    );
    let job = Job {
        scripts: place.path("slurm"),
        out: place.directory("out"),
        sluid: Some(SLUID),
        inside: Vec::new(),
    };
    assert!(job.run("prolog").success());
    let log = fs::read_to_string(place.path("spool/log")).expect("the log exists");
    assert!(log.contains("memleak ended with 125"), "{log}");
    let left = fs::read_dir(&group.path).expect("the group exists");
    let left = left.filter(|entry| entry.as_ref().expect("an entry").path().is_dir());
    assert_eq!(left.count(), 0);
}

#[test]
fn the_prolog_asks_for_no_more_variables_than_memleak_takes() {
    for (options, asked) in [
        ("", "SLURM_PROCID SLURM_STEP_ID SLURM_JOB_ID"),
        (
            "--label-env PMI_RANK --min-leak 1MB",
            "SLURM_PROCID SLURM_STEP_ID SLURM_JOB_ID PMI_RANK",
        ),
        (
            "--label-env=PMI_RANK --label-env SLURM_JOB_ID",
            "SLURM_PROCID SLURM_STEP_ID =PMI_RANK SLURM_JOB_ID",
        ),
        (
            "--label-env A --label-env B --label-env C --label-env D",
            "A B C D",
        ),
    ] {
        let place = Place::new();
        let words = place.path("words");
        let tells = format!("#!/bin/sh\necho \"$*\" >{}\nexit 125\n", words.display());
        let setting = program(&place.script("tells", &tells));
        let setting = format!(
            "{setting}\nMEMLEAK_START_WAIT=30000\nMEMLEAK_FILTER=uid\nMEMLEAK_OPTIONS=({options})"
        );
        install(&place, &setting);
        let job = Job {
            scripts: place.path("slurm"),
            out: place.directory("out"),
            sluid: None,
            inside: Vec::new(),
        };
        assert!(job.run("prolog").success());
        let words = fs::read_to_string(&words).expect("the prolog started memleak");
        let words: Vec<_> = words.split_whitespace().collect();
        let named = words.iter().enumerate().filter_map(|(at, word)| {
            let before = at.checked_sub(1).map(|before| words[before]);
            match word.strip_prefix("--label-env") {
                Some("") | None => (before == Some("--label-env")).then_some(*word),
                with_value => with_value,
            }
        });
        let named: Vec<_> = named.collect();
        assert_eq!(named.join(" "), asked, "{options}");
        assert!(named.len() <= MAX_LABELS);
    }
}
