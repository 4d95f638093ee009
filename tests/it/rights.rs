//! Tests the rights of the command and the rights with which memleak writes its report: `--user`, sudo, and file
//! capabilities, with real users.
//!
//! Each test has its own mount namespace with its own user database, its own sudoers and a file system for privileged
//! programs. The users are real to all programs that run in the namespace. The namespace leaves nothing behind, however
//! a test ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::files;
use crate::common::fixtures::{fixture, without_call};
use crate::common::root;
use crate::common::switches::switch;
use tempfile::TempDir;

const ALICE: u32 = 54321;
/// The id of the group `helpers`, which alice is a member of.
const HELPERS: u32 = 54322;
/// A user id without a user.
const NOBODY: u32 = 54399;

/// The file capabilities of a memleak that its users run without sudo.
const CAPABILITIES: &str = "cap_bpf,cap_perfmon=ep";

/// Shows the user, the groups and the capabilities of a process.
const SHOW: &str = "id; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";

/// Sets up the namespace and executes the command. `$1` is the world's directory, `$2` is memleak, and `$3` are its
/// capabilities.
const ENTER: &str = r#"
    world=$1 memleak=$2 capabilities=$3; shift 3
    for file in passwd group shadow sudoers; do
        mount --bind "$world/etc/$file" "/etc/$file" || exit 99
    done
    # The world is in /tmp, which may be mounted nosuid.
    mount -t tmpfs -o mode=755 none "$world/bin" || exit 99
    cp "$memleak" "$world/bin/memleak" && cp "$(command -v id)" "$world/bin/root-id" || exit 99
    chmod u+s "$world/bin/root-id"
    for program in "$world"/privileged/*; do
        [ ! -e "$program" ] || { cp "$program" "$world/bin/" && chmod u+s "$world/bin/${program##*/}"; } || exit 99
    done
    case $capabilities in
    '') ;;
    setuid) chmod u+s "$world/bin/memleak" ;;
    *) setcap "$capabilities" "$world/bin/memleak" || exit 99 ;;
    esac
    exec "$@""#;

/// A directory, with the files that cover this system's own files in the namespace.
struct World {
    directory: TempDir,
    capabilities: &'static str,
}

impl World {
    fn new() -> Self {
        Self::with_capabilities("")
    }

    fn with_capabilities(capabilities: &'static str) -> Self {
        root::require_root();
        let directory = TempDir::new().unwrap();
        let world = Self {
            directory,
            capabilities,
        };
        let path = |name: &str| world.path(name);
        for (name, mode) in [("", 0o755), ("etc", 0o755), ("bin", 0o755), ("tmp", 0o1777)] {
            fs::create_dir_all(path(name)).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let home = path("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(ALICE), Some(ALICE)).unwrap();
        let (name, home) = ("alice", home.display());
        world.overlay(
            "passwd",
            &format!("{name}:x:{ALICE}:{ALICE}:Alice:{home}:/bin/sh\n"),
        );
        world.overlay(
            "group",
            &format!("{name}:x:{ALICE}:\nhelpers:x:{HELPERS}:{name}\n"),
        );
        world.overlay("shadow", &format!("{name}:*:19000:0:99999:7:::\n"));
        let sudoers = format!(
            "root ALL=(ALL:ALL) ALL\n{name} ALL=(root) NOPASSWD: ALL\nDefaults env_reset\n"
        );
        fs::write(path("etc/sudoers"), sudoers).unwrap();
        fs::set_permissions(path("etc/sudoers"), fs::Permissions::from_mode(0o440)).unwrap();
        world
    }

    /// Writes a copy of a file of `/etc` with lines added.
    fn overlay(&self, name: &str, lines: &str) {
        let own = Path::new("/etc").join(name);
        let new = self.path("etc").join(name);
        let text = fs::read_to_string(&own).unwrap() + lines;
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, own.metadata().unwrap().permissions()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn root<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", ENTER, "sh"])
            .arg(self.directory.path())
            .args([env!("CARGO_BIN_EXE_memleak"), self.capabilities])
            .args(words)
            .env("LC_ALL", "C")
            .current_dir("/");
        // `sudo make test` sets the SUDO_* variables.
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SLURM_SCRIPT_CONTEXT"] {
            command.env_remove(name);
        }
        command
    }

    /// The same as `root`, with alice's ids, groups and home, and without capabilities.
    fn alice<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        let login = [
            "setpriv",
            "--reuid",
            "alice",
            "--regid",
            "alice",
            "--init-groups",
        ];
        let clean = ["--inh-caps=-all", "--ambient-caps=-all", "--"];
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        let login = login.into_iter().chain(clean).map(OsString::from);
        let mut command = self.root(login.chain(words));
        command
            .env("HOME", self.path("home"))
            .env("USER", "alice")
            .env("LOGNAME", "alice");
        command
    }

    /// `memleak run OPTIONS… -- COMMAND…`
    fn memleak<'a>(&self, options: &[&'a str], command: &[&'a str]) -> Vec<OsString> {
        let memleak = self.path("bin/memleak").into_os_string();
        let words = ["run"].iter().chain(options).chain(&["--"]).chain(command);
        std::iter::once(memleak)
            .chain(words.map(OsString::from))
            .collect()
    }

    /// Fails unless memleak exits with 125, prints exactly one line, and does not start its command. The command would
    /// touch a file. Returns the line.
    #[track_caller]
    fn refusal(&self, options: &[&str], run: impl FnOnce(Vec<OsString>) -> Command) -> String {
        let touched = self.path("tmp/touched");
        let touch = format!(": > {}", touched.display());
        let output = output(&mut run(self.memleak(options, &["sh", "-c", &touch])));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{options:?}: {said}");
        assert!(!touched.exists(), "{options:?}: the command ran");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("memleak: "), "{said}");
        assert!(output.stdout.is_empty());
        said
    }
}

#[track_caller]
fn output(command: &mut Command) -> Output {
    let output = command.output().expect("unshare is installed");
    assert_ne!(
        output.status.code(),
        Some(99),
        "the namespace cannot be made: {}",
        text(&output.stderr)
    );
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The standard output of a run, which must exit with 0.
#[track_caller]
fn stdout_of(command: &mut Command) -> String {
    let output = output(command);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    text(&output.stdout)
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in {line:?}");
    }
}

// ---- another user ------------------------------------------------------------------------------------

#[test]
fn case_40_through_sudo_the_command_runs_as_the_caller_would_start_it() {
    let world = World::new();
    let script = format!(
        r#"{SHOW}; echo "$HOME $USER $LOGNAME"; "$0/bin/root-id" -u; : > "$HOME/file"; stat -c '%u %g' "$HOME/file"
        rm "$HOME/file""#
    );
    let directory = world.path("");
    let command = ["sh", "-c", &script, directory.to_str().unwrap()];
    let direct = stdout_of(&mut world.alice(command));
    let through = ["--probes=shared", "--probes=private"].map(|probes| {
        let words = world.memleak(&["-q", probes, "--user", "sudo"], &command);
        let sudo = ["sudo", "-n"].map(OsString::from).into_iter();
        stdout_of(&mut world.alice(sudo.chain(words)))
    });
    assert_says(
        &direct,
        &[
            "uid=54321(alice) gid=54321(alice) groups=54321(alice),54322(helpers)",
            "CapPrm:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t0",
            // The output of the set-user-ID program.
            "\n0\n",
            "\n54321 54321\n",
        ],
    );
    assert_eq!(through, [direct.clone(), direct]);
}

#[test]
fn a_user_can_be_given_by_name_and_by_id_and_gets_its_groups() {
    let world = World::new();
    let (all, one) = ("54321 54322\n", "54322\n");
    for (user, uid, gid, groups) in [
        ("alice", ALICE, ALICE, all),
        ("54321", ALICE, ALICE, all),
        ("alice:54322", ALICE, HELPERS, one),
        ("54321:54322", ALICE, HELPERS, one),
        ("54399:54322", NOBODY, HELPERS, one),
    ] {
        let show = ["sh", "-c", "id -u; id -g; id -G"];
        let words = world.memleak(&["-q", "--user", user], &show);
        assert_eq!(
            stdout_of(&mut world.root(words)),
            format!("{uid}\n{gid}\n{groups}"),
            "{user}"
        );
    }
}

#[test]
fn home_user_and_logname_are_set_if_the_user_has_an_entry() {
    let world = World::new();
    let show = ["sh", "-c", r#"echo "$HOME $USER $LOGNAME $MAIL""#];
    let home = world.path("home");
    let alices = format!("{} alice alice kept\n", home.display());
    for (options, shown) in [
        (&["-q", "--user", "alice"][..], alices.as_str()),
        (&["-q", "--user", "54399:1"], "/root root root kept\n"),
        (&["-q"], "/root root root kept\n"),
    ] {
        let mut command = world.root(world.memleak(options, &show));
        command
            .env("HOME", "/root")
            .env("USER", "root")
            .env("LOGNAME", "root")
            .env("MAIL", "kept");
        assert_eq!(stdout_of(&mut command), shown, "{options:?}");
    }
}

#[test]
fn another_user_gets_no_capability_and_can_still_run_set_user_id_programs() {
    let world = World::new();
    let script = format!("{SHOW}; {}/bin/root-id -u", world.path("").display());
    let words = world.memleak(&["-q", "--user", "alice"], &["sh", "-c", &script]);
    let holding = [
        "setpriv",
        "--inh-caps=+net_raw,+chown",
        "--ambient-caps=+net_raw",
    ];
    let holding = holding.into_iter().map(OsString::from);
    let shown = stdout_of(&mut world.root(holding.chain(words)));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_says(&shown, &[&format!("{set}:\t0000000000000000")]);
    }
    assert_says(&shown, &["NoNewPrivs:\t0", "\n0\n"]);
    let bounding = stdout_of(&mut world.root(["grep", "CapBnd", "/proc/self/status"]));
    assert_says(&shown, &[&bounding]);
}

#[test]
fn a_user_that_cannot_be_used_is_named_with_the_reason() {
    let world = World::new();
    let with = |name: &'static str, value: &'static str| {
        let world = &world;
        move |words| {
            let mut command = world.root::<OsString>(words);
            command.env(name, value);
            command
        }
    };
    let none = || with("A", "B");
    for (line, words) in [
        (
            world.refusal(&["--user", "no-such-user"], none()),
            &["no user", "no-such-user", "UID:GID"][..],
        ),
        (
            world.refusal(&["--user", "54399"], none()),
            &["54399", "--user 54399:GID"],
        ),
        (
            world.refusal(&["--user", "sudo"], none()),
            &["SUDO_UID is not set", "--user NAME"],
        ),
        (
            world.refusal(&["--user", "sudo"], with("SUDO_UID", "x")),
            &["SUDO_UID is 'x'"],
        ),
        (
            world.refusal(&["--user", "sudo"], with("SUDO_UID", "54399")),
            &["SUDO_UID is 54399", "SUDO_GID"],
        ),
        (
            world.refusal(&["--user", "alice:"], none()),
            &["--user", "'alice:' names no user"],
        ),
        (
            world.refusal(&["--user", "alice"], |words| world.alice(words)),
            &["--user needs root", "sudo memleak run --user"],
        ),
    ] {
        assert_says(&line, words);
    }
}

#[test]
fn a_root_that_may_not_change_users_does_not_start_the_command() {
    let world = World::new();
    for (capability, step) in [("setgid", "setgroups"), ("setuid", "setuid")] {
        let without = format!("--bounding-set=-{capability}");
        let line = world.refusal(&["--user", "alice"], |words| {
            let setpriv = ["setpriv", &without].map(OsString::from);
            world.root(setpriv.into_iter().chain(words))
        });
        assert_says(&line, &["--user", step, "Operation not permitted"]);
    }
}

// ---- report files ------------------------------------------------------------------------------------

/// Starts memleak as sudo does for alice.
fn sudo(world: &World, words: Vec<OsString>) -> Command {
    let mut command = world.root(words);
    command
        .env("SUDO_UID", ALICE.to_string())
        .env("SUDO_GID", ALICE.to_string());
    command
}

#[test]
fn under_sudo_no_report_is_written_where_the_user_may_not_write() {
    let world = World::new();
    let roots = world.path("roots");
    fs::write(&roots, "root's own\n").unwrap();
    let link = world.path("tmp/report");
    symlink(&roots, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(ALICE), Some(ALICE)).unwrap();
    let new = world.path("new");
    // A document is written beside its file, and renamed.
    let names = [&link, &roots, &new].map(|path| path.to_str().unwrap());
    let documents = names.map(|name| format!("collapsed={name}"));
    let options = names
        .into_iter()
        .chain(documents.iter().map(String::as_str));
    for option in options {
        let line = world.refusal(&["-o", option], |words| sudo(&world, words));
        assert_says(
            &line,
            &[
                option.trim_start_matches("collapsed="),
                "user alice (SUDO_UID)",
                "Permission denied",
                "env -u SUDO_UID",
            ],
        );
    }
    assert_eq!(fs::read_to_string(&roots).unwrap(), "root's own\n");
    assert!(!new.exists());

    // Follows the message's advice: runs without SUDO_UID.
    let words = world.memleak(&["-o", new.to_str().unwrap()], &["true"]);
    stdout_of(&mut world.root(words));
    assert_eq!(new.metadata().unwrap().uid(), 0);
}

#[test]
fn under_sudo_a_report_belongs_to_the_user_and_may_use_the_users_groups() {
    let world = World::new();
    let shared = world.path("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(0), Some(HELPERS)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o770)).unwrap();
    let report = shared.join("report.csv");
    let document = shared.join("stacks");
    let collapsed = format!("collapsed={}", document.display());
    let options = ["-o", report.to_str().unwrap(), "-o", &collapsed, "-q"];
    let words = world.memleak(&options, &["sh", "-c", SHOW]);
    let shown = stdout_of(&mut sudo(&world, words));
    let written = fs::read_to_string(&report).unwrap();
    assert!(written.lines().count() > 2, "{written}");
    for file in [&report, &document] {
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (ALICE, ALICE));
    }
    // The command still runs as root.
    let directly = stdout_of(&mut sudo(
        &world,
        ["sh", "-c", SHOW].map(OsString::from).into(),
    ));
    assert_eq!(shown, directly);
}

#[test]
fn an_invalid_sudo_uid_is_refused_before_a_report_is_opened() {
    let world = World::new();
    let report = world.path("tmp/report");
    let line = world.refusal(&["-o", report.to_str().unwrap()], |words| {
        let mut command = world.root(words);
        command.env("SUDO_UID", "-1");
        command
    });
    assert_says(&line, &["SUDO_UID is '-1'"]);
    assert!(!report.exists());
}

#[test]
fn percent_patterns_in_a_report_name_are_replaced() {
    let world = World::new();
    let pattern = world.path("tmp/%q{JOB}.%h.%p.100%%");
    let script = ["sh", "-c", "echo $PPID"];
    let mut command = world.root(world.memleak(&["-o", pattern.to_str().unwrap()], &script));
    let pid = stdout_of(command.env("JOB", "a job"));
    let host = nix::unistd::gethostname().unwrap();
    let name = format!("a job.{}.{}.100%", host.display(), pid.trim());
    let report = fs::read_to_string(world.path("tmp").join(&name)).expect(&name);
    assert!(report.starts_with("UID "), "{report}");
}

#[test]
fn a_report_can_go_to_a_descriptor_of_the_caller() {
    let world = World::new();
    let file = world.path("tmp/both");
    let script = format!(
        r#"echo before > {0}; "$@" >> {0} 7>> {0}; echo after >> {0}"#,
        file.display()
    );
    for name in ["/dev/stdout", "/dev/fd/7", "/proc/self/fd/7"] {
        let options = ["--lost=never", "--stacks=never", "-o", name];
        let words = world.memleak(&options, &["echo", "the command's"]);
        let shell = ["sh", "-c", &script, "sh"].map(OsString::from);
        stdout_of(&mut sudo(&world, shell.into_iter().chain(words).collect()));
        let written = fs::read_to_string(&file).unwrap();
        let is_hint = |line: &&str| line.starts_with("memleak: where: ");
        let lines: Vec<_> = written.lines().filter(|line| !is_hint(line)).collect();
        assert_eq!(lines.len(), 6, "{name}: {written}");
        assert_eq!(lines[..2], ["before", "the command's"]);
        assert!(
            lines[2].starts_with("UID ") && lines[5] == "after",
            "{written}"
        );
    }
    for name in ["/dev/fd/0", "/dev/fd/5", "/dev/fd/99"] {
        let line = world.refusal(&["-o", name], |words| world.root(words));
        assert_says(&line, &[name, "not open for writing"]);
    }
}

// ---- without sudo ------------------------------------------------------------------------------------

#[test]
fn case_05_without_rights_memleak_names_the_remedy() {
    for capabilities in [
        "",
        "cap_bpf=ep",
        "cap_perfmon=ep",
        "cap_sys_ptrace,cap_dac_override=ep",
    ] {
        let world = World::with_capabilities(capabilities);
        let line = world.refusal(&[], |words| world.alice(words));
        assert_says(
            &line,
            &["no right", "sudo memleak", "setcap cap_bpf,cap_perfmon=ep"],
        );
    }
}

#[test]
fn with_file_capabilities_a_user_needs_no_sudo_and_the_counts_are_right() {
    let world = World::with_capabilities(CAPABILITIES);
    let program = fixture("leak_known");
    let copy = world.path("tmp/leak_known");
    files::copy(program, &copy);
    let report = world.path("home/report");
    let options = ["--format", "json", "-o", report.to_str().unwrap()];
    let words = world.memleak(&options, &[copy.to_str().unwrap()]);
    let rows = |mode| -> Vec<serde_json::Value> {
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).unwrap();
        stdout_of(&mut world.alice(&words));
        let report = fs::read_to_string(&report).unwrap();
        let lines = report.lines();
        let lines = lines.map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|row: &serde_json::Value| row["type"] != "stack")
            .collect()
    };
    // If alice may not read a program, memleak cannot tell whether it has an allocator of its own.
    let unreadable = rows(0o711);
    assert_eq!(unreadable[0]["uncovered"], "unexamined", "{unreadable:#?}");
    assert_eq!(unreadable[0]["complete"], false);
    assert_eq!(unreadable[0]["leaked_bytes"], 250_000);

    let rows = rows(0o755);
    let leaked: Vec<_> = rows
        .iter()
        .map(|row| row["leaked_bytes"].as_u64())
        .collect();
    assert_eq!(leaked, [Some(250_000), Some(1_000_000), Some(1_250_000)]);
    assert!(rows.iter().all(|row| row["complete"] == true), "{rows:#?}");
    assert_eq!(rows[0]["uid"], ALICE);
    assert_eq!(rows[0]["user"], "alice");
}

#[test]
fn multi_uprobes_need_no_more_rights_than_session_uprobes() {
    let world = World::with_capabilities(CAPABILITIES);
    let words = world.memleak(&[&switch("method", "multi")], &["sh", "-c", "exit 3"]);
    let output = output(&mut world.alice(words));
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));

    // Kernels before Linux 6.6 have only this method.
    let options = switch("method", "perf-event");
    let options = [options.as_str()];
    let line = world.refusal(&options, |words| world.alice(words));
    assert_says(&line, &["malloc", "root, or CAP_SYS_ADMIN"]);
    let world = World::with_capabilities("cap_bpf,cap_perfmon,cap_sys_admin=ep");
    let words = world.memleak(&options, &["sh", "-c", "exit 3"]);
    assert_eq!(world.alice(words).output().unwrap().status.code(), Some(3));
}

/// Compares everything that a binary with capabilities could give to the command, or take from it.
#[test]
fn with_file_capabilities_the_command_inherits_the_same_as_without_memleak() {
    // These are more capabilities than memleak uses. None of them may reach the command.
    let capabilities = "cap_bpf,cap_perfmon,cap_sys_admin,cap_dac_override,cap_setuid=ep";
    let world = World::with_capabilities(capabilities);
    let secret = world.path("secret");
    fs::write(&secret, "root's own\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let script = format!(
        r#"{SHOW}; stat -c '%u %g %a' /proc/self/environ; ulimit -a; cat /proc/self/coredump_filter
        "$0/bin/root-id" -u; cat "$0/secret" || echo not mine"#
    );
    let directory = world.path("");
    let shown = same_as_without_memleak(
        &world,
        &[],
        &["sh", "-c", &script, directory.to_str().unwrap()],
    );
    assert_says(
        &shown,
        &[
            "uid=54321(alice) gid=54321(alice) groups=54321(alice),54322(helpers)",
            "CapPrm:\t0000000000000000",
            "NoNewPrivs:\t0",
            "54321 54321 400\n",
            "\n0\nnot mine\n",
        ],
    );
}

/// The loader removes some of these variables from the environment of a program with file capabilities.
#[test]
fn with_file_capabilities_the_command_has_the_callers_environment_byte_for_byte() {
    let world = World::with_capabilities(CAPABILITIES);
    let variables = [
        "A=1",
        "LD_LIBRARY_PATH=/no/such/directory",
        "TMPDIR=/var/tmp",
        "PATH=/usr/bin:/bin",
        "GLIBC_TUNABLES=glibc.malloc.check=0:glibc.malloc.tcache_count=3",
        "LD_PRELOAD=",
        "MALLOC_ARENA_MAX=2",
        "LOCPATH=/none",
        "EMPTY=",
        "A=2",
        "Z=a\nb",
    ];
    let shown = same_as_without_memleak(&world, &variables, &["env"]);
    // env itself keeps one variable of each name.
    let expected = variables.join("\n").replace("A=2\n", "");
    assert_eq!(shown, expected.replace("A=1", "A=2") + "\n");
}

/// The output of the command when alice runs it with these variables. It must be the same under memleak. Without
/// variables the command gets the whole environment.
#[track_caller]
fn same_as_without_memleak(world: &World, variables: &[&str], command: &[&str]) -> String {
    let directly = command.iter().map(OsString::from).collect();
    let [without, with] = [directly, world.memleak(&["-q"], command)].map(|words| {
        let empty = (!variables.is_empty()).then_some("-i");
        let env = ["env"]
            .into_iter()
            .chain(empty)
            .chain(variables.iter().copied());
        stdout_of(&mut world.alice(env.map(OsString::from).chain(words)))
    });
    assert_eq!(with, without);
    without
}

#[test]
fn with_file_capabilities_a_file_is_executed_with_the_users_rights_alone() {
    let world =
        World::with_capabilities("cap_bpf,cap_perfmon,cap_dac_override,cap_dac_read_search=ep");
    let hidden = world.path("hidden");
    fs::create_dir(&hidden).unwrap();
    files::copy("/bin/true", hidden.join("program"));
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
    let words = world.memleak(&["-q"], &[hidden.join("program").to_str().unwrap()]);
    let output = output(&mut world.alice(words));
    assert_eq!(output.status.code(), Some(126), "{}", text(&output.stderr));
}

#[test]
fn with_file_capabilities_a_report_is_opened_with_the_users_rights_alone() {
    let world =
        World::with_capabilities("cap_bpf,cap_perfmon,cap_dac_override,cap_chown,cap_fowner=ep");
    let roots = world.path("roots");
    fs::write(&roots, "root's own\n").unwrap();
    let line = world.refusal(&["-o", roots.to_str().unwrap()], |words| world.alice(words));
    assert_says(&line, &["-o", "Permission denied"]);
    assert_eq!(fs::read_to_string(&roots).unwrap(), "root's own\n");

    // SUDO_UID has no meaning without sudo. The report's name may use a variable that the loader removes.
    let tmp = world.path("tmp");
    let words = world.memleak(&["-o", "%q{TMPDIR}/report"], &["true"]);
    let mut command = world.alice(words);
    stdout_of(command.env("TMPDIR", &tmp).env("SUDO_UID", "0"));
    assert_eq!(tmp.join("report").metadata().unwrap().uid(), ALICE);
}

#[test]
fn with_file_capabilities_memleak_counts_in_the_commands_own_libraries() {
    let world = World::with_capabilities(CAPABILITIES);
    let libraries = world.path("tmp/libraries");
    fs::create_dir(&libraries).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"))
        .unwrap();
    let copy = libraries.join("libc.so.6");
    files::copy(libc, &copy);
    for (name, value) in [("LD_LIBRARY_PATH", &libraries), ("LD_PRELOAD", &copy)] {
        let report = world.path("home/report");
        let options = ["--format", "json", "-o", report.to_str().unwrap()];
        // Only the command gets the variable, from memleak. The programs before it use their own libc.
        let words = world.memleak(&options, &["/bin/sh", "-c", "exit 3"]);
        let variable = OsString::from(format!("{name}={}", value.display()));
        let env = [OsString::from("env"), variable];
        let output = output(&mut world.alice(env.into_iter().chain(words)));
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        let report = fs::read_to_string(&report).unwrap();
        let row: serde_json::Value = serde_json::from_str(report.lines().next().unwrap()).unwrap();
        assert_eq!(
            row["allocators"],
            serde_json::json!([copy.to_str().unwrap()]),
            "{name}: {report}"
        );
        assert!(row["alloc_count"].as_u64() > Some(0), "{report}");
    }
}

#[test]
fn only_root_can_inspect_a_memleak_with_capabilities() {
    let world = World::with_capabilities(CAPABILITIES);
    // The user may not read memleak's environment, memory and descriptors, but may send signals to memleak.
    let script =
        "cd /proc/$PPID; cat environ mem; readlink -v fd/0; kill -0 $PPID && echo signalled";
    let words = world.memleak(&["-q"], &["sh", "-c", script]);
    let output = output(&mut world.alice(words));
    assert_eq!(text(&output.stdout), "signalled\n");
    let said = text(&output.stderr);
    assert_eq!(said.matches("Permission denied").count(), 3, "{said}");
}

#[test]
fn a_set_user_id_memleak_refuses_to_run() {
    let world = World::with_capabilities("setuid");
    let line = world.refusal(&[], |words| world.alice(words));
    assert_says(&line, &["set-user-ID", "chmod ug-s", "setcap"]);
}

// ---- reading processes -------------------------------------------------------------------------------

/// What is known of the processes of a run, by their names: the bytes that each lost, or why that is not known.
#[track_caller]
fn lost(command: &mut Command, report: &Path) -> Vec<(String, Result<u64, String>)> {
    let output = output(command);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let report = fs::read_to_string(report).unwrap();
    let rows = report.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let lost = &row["reach"]["definite_bytes"];
        let why = row["reach_unknown"].as_str().map(str::to_owned);
        let lost = lost.as_u64().ok_or_else(|| why.unwrap_or_default());
        (row["comm"].as_str().unwrap_or_default().to_owned(), lost)
    });
    // The last line is the sum.
    rows.filter(|(comm, _)| !comm.is_empty()).collect()
}

/// Each process loses 1000 bytes.
#[test]
fn with_file_capabilities_what_a_user_may_not_read_says_so_and_all_else_is_judged() {
    let world = World::with_capabilities(CAPABILITIES);
    let copy = |name: &str, to: &str| {
        let to = world.path(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        files::copy(fixture(name), &to);
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to.display().to_string()
    };
    let own = copy("ends", "tmp/own");
    let resists = copy("resists_reading", "tmp/resists");
    copy("ends", "privileged/roots");
    let roots = world.path("bin/roots").display().to_string();
    let report = world.path("home/report");
    let out = report.to_str().unwrap();
    let script = format!(
        "{own} return 0; {resists} sealed; {resists} hidden; {roots} return 0
        unshare -Ur {own} return 0; unshare -Urpf --mount-proc {own} return 0; exit 3"
    );
    for option in ["--lost=auto", "--lost=always"] {
        let words = world.memleak(
            &[option, "--format", "json", "-o", out],
            &["sh", "-c", &script],
        );
        let rows = lost(&mut world.alice(words), &report);
        let of = |name: &str| -> Vec<_> {
            let rows = rows.iter().filter(|(comm, _)| comm == name);
            rows.map(|(_, lost)| lost.clone()).collect()
        };
        let rights = || Err("rights".to_owned());
        assert_eq!(of("own"), [Ok(1000), Ok(1000), Ok(1000)], "{rows:?}");
        assert_eq!(of("resists"), [Ok(1000), rights()], "{rows:?}");
        assert_eq!(of("roots"), [rights()], "{rows:?}");
    }
}

/// The file's CAP_SYS_PTRACE would let any user read what is root's.
#[test]
fn file_capabilities_do_not_let_a_user_read_programs_of_root() {
    let world = World::with_capabilities("cap_bpf,cap_perfmon,cap_sys_ptrace,cap_sys_admin=ep");
    let roots = world.path("privileged/roots");
    fs::create_dir(roots.parent().unwrap()).unwrap();
    files::copy(fixture("ends"), &roots);
    let roots = world.path("bin/roots").display().to_string();
    let report = world.path("home/report");
    let options = [
        "--lost=always",
        "--format",
        "json",
        "-o",
        report.to_str().unwrap(),
    ];
    let words = world.memleak(&options, &[&roots, "return", "3"]);
    let rows = lost(&mut world.alice(words), &report);
    assert_eq!(rows, [("roots".to_owned(), Err("rights".to_owned()))]);
}

#[test]
fn a_root_that_may_not_read_other_users_does_not_try_unless_asked() {
    let world = World::new();
    let copy = world.path("tmp/ends");
    files::copy(fixture("ends"), &copy);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let report = world.path("report");
    let run = |limits: &[&str], options: &[&str]| {
        let out = ["--format", "json", "-o", report.to_str().unwrap()];
        let command = [copy.to_str().unwrap(), "return", "3"];
        let words = world.memleak(&[options, &out].concat(), &command);
        let limits = limits.iter().map(OsString::from);
        let rows = lost(&mut world.root(limits.chain(words)), &report);
        rows[0].1.clone()
    };
    let unable = ["setpriv", "--bounding-set=-sys_ptrace"];
    let alice = ["--user", "alice"];
    let unknown = |why: &str| Err(why.to_owned());
    // root's own processes need no right.
    assert_eq!(run(&unable, &[]), Ok(1000));
    assert_eq!(run(&[], &alice), Ok(1000));
    assert_eq!(run(&unable, &alice), unknown("off"));
    let asked = [&alice[..], &["--lost=always"]].concat();
    assert_eq!(run(&unable, &asked), unknown("rights"));
    // Where processes are not read, the table says nothing of it.
    let words = world.memleak(&alice, &[copy.to_str().unwrap(), "return", "3"]);
    let words = unable.iter().map(OsString::from).chain(words);
    let said = text(&output(&mut world.root(words)).stderr);
    assert!(
        said.contains("MEM_LEAK_MB") && !said.contains("LOST_MB"),
        "{said}"
    );
    assert!(!said.contains("unknown"), "{said}");
    // A gate that asks cannot be judged.
    let gate = [&alice[..], &["--fail-on-lost", "0"]].concat();
    let words = world.memleak(&gate, &[copy.to_str().unwrap(), "return", "0"]);
    let words = unable.iter().map(OsString::from).chain(words);
    let unjudged = output(&mut world.root(words));
    assert_eq!(unjudged.status.code(), Some(125));
    assert_says(
        &text(&unjudged.stderr),
        &["gate unknown", "memleak may not read it: 1"],
    );
}

#[test]
fn without_the_call_that_reads_a_run_counts_as_ever() {
    let world = World::new();
    let wrapper = without_call(libc::SYS_process_vm_readv, libc::EPERM);
    let ends = fixture("ends").display().to_string();
    let words = world.memleak(&[], &[&ends, "return", "3"]);
    let output = output(&mut world.root(wrapper.into_iter().chain(words)));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("in 1 block leaked") && !said.contains("LOST_MB"),
        "{said}"
    );
}

// ---- Slurm -------------------------------------------------------------------------------------------

#[test]
fn in_a_slurm_prolog_a_failed_gate_does_not_drain_the_node() {
    let world = World::new();
    let program = fixture("leak_known");
    let program = program.to_str().unwrap();
    let gate = ["--fail-on-leak", "1kB"];
    let draining = ["--fail-on-leak", "1kB", "--allow-drain"];
    let exits_3 = format!("{program}; exit 3");
    for (context, options, command, code) in [
        ("prolog_slurmd", &gate[..], &[program][..], 0),
        ("epilog_slurmd", &gate, &[program], 0),
        ("prolog_slurmd", &draining, &[program], 23),
        ("prolog_slurmctld", &gate, &[program], 23),
        ("prolog_slurmd", &gate, &["sh", "-c", &exits_3], 3),
    ] {
        let mut run = world.root(world.memleak(options, command));
        let output = output(run.env("SLURM_SCRIPT_CONTEXT", context));
        let said = text(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{context} {options:?}: {said}"
        );
        // The report says that the gate failed. Where the failure did not count, the report says why.
        assert_says(&said, &["failed"]);
        assert_eq!(said.contains("drains the node"), code == 0, "{said}");
    }
}
