//! Tests of the formats that are written when all is known: where they go, and that the programs that read them find in
//! them what memleak counted.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::common::fixtures::fixture;
use crate::common::root;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// `memleak run OPTIONS… -- COMMAND…` in a directory.
fn run(directory: &Path, options: &[&str], command: &[&str]) -> Output {
    root::require_root();
    let mut memleak = Command::new(MEMLEAK);
    memleak.arg("run").args(options).arg("--").args(command);
    memleak.current_dir(directory).output().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

#[test]
fn a_document_is_there_when_it_is_complete_and_nothing_is_left_beside_it() {
    let directory = TempDir::new().unwrap();
    let stacks = directory.path().join("stacks");
    fs::write(&stacks, "of the run before\n").unwrap();
    let seen = "cat stacks; ls -A | grep -c part";
    let options = [
        "-q",
        "-o",
        "collapsed=stacks",
        "-o",
        "collapsed=/dev/stdout",
    ];
    let output = run(directory.path(), &options, &["sh", "-c", seen]);
    let said = String::from_utf8(output.stdout).unwrap();
    let rest = said.strip_prefix("of the run before\n1\n").expect(&said);
    assert_eq!(fs::read_to_string(&stacks).unwrap(), rest);
    assert!(rest.lines().any(|line| line.starts_with("sh;")), "{rest}");
    assert_eq!(names(directory.path()), ["stacks"]);
    assert!(output.stderr.is_empty());
}

#[test]
fn a_document_that_cannot_be_written_stops_the_start_and_a_start_that_fails_leaves_the_old_one() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("stacks");
    fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink("nowhere/stacks", directory.path().join("link")).unwrap();
    for (options, said) in [
        (
            &["-o", "collapsed=missing/stacks"][..],
            "No such file or directory",
        ),
        (&["-o", "collapsed=."], "Is a directory"),
        (
            &["-o", "collapsed=stacks", "-o", "json=stacks"],
            "are the same file",
        ),
        (
            &["-o", "collapsed=new", "-o", "collapsed=./new"],
            "are the same file",
        ),
        (
            &["-o", "collapsed=stacks", "--user", "nobody-here"],
            "there is no user",
        ),
    ] {
        let output = run(directory.path(), options, &["touch", "ran"]);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{line}");
        assert!(line.contains(said) && line.lines().count() == 1, "{line}");
        // Rows would have come at once.
        let expected = if options.contains(&"json=stacks") {
            ""
        } else {
            "old"
        };
        assert_eq!(fs::read_to_string(&file).unwrap(), expected, "{options:?}");
        fs::write(&file, "old").unwrap();
        assert_eq!(names(directory.path()), ["link", "stacks"], "{options:?}");
    }
}

#[test]
fn a_document_goes_through_a_link_and_into_a_pipe_and_keeps_the_rights_of_its_file() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("public")).unwrap();
    fs::write(path("public/stacks"), "old").unwrap();
    fs::set_permissions(path("public/stacks"), fs::Permissions::from_mode(0o604)).unwrap();
    std::os::unix::fs::symlink("public/stacks", path("link")).unwrap();
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A pipe without a reader is refused. This one is open before memleak starts.
    let pipe = fs::File::options()
        .read(true)
        .write(true)
        .open(path("pipe"))
        .unwrap();
    let leaks = fixture("leak_known");
    let leaks = leaks.to_str().unwrap();
    let options = ["-q", "-o", "collapsed=link", "-o", "collapsed=pipe"];
    let output = run(directory.path(), &options, &[leaks]);
    assert!(output.stderr.is_empty(), "{output:?}");
    let written = fs::read_to_string(path("public/stacks")).unwrap();
    assert!(!written.is_empty() && written != "old");
    let mode = path("public/stacks")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o604);
    assert!(path("link").symlink_metadata().unwrap().is_symlink());
    let mut read = vec![0; written.len()];
    (&pipe).read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), written);
    assert_eq!(names(directory.path()), ["link", "pipe", "public"]);
}

/// `memleak report OPTIONS… FILES…`, which needs no rights.
fn report(directory: &Path, options: &[&str]) -> Output {
    let mut memleak = Command::new(MEMLEAK);
    memleak.arg("report").args(options).current_dir(directory);
    memleak.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_saved_report_is_reported_and_judged_as_the_run_was() {
    let directory = TempDir::new().unwrap();
    let leaks = fixture("leak_known");
    let leaks = leaks.to_str().unwrap();
    let gate = ["--fail-on-leak", "0"];
    let options = [
        "--stacks",
        "--lost=always",
        "-o",
        "json=a.json",
        "-o",
        "csv=a.csv",
    ];
    let documents = [
        "-o",
        "collapsed=a.folded",
        "-o",
        "dhat=a.dhat",
        "-o",
        "a.pb.gz",
    ];
    let first = run(
        directory.path(),
        &[&gate[..], &options, &documents].concat(),
        &[leaks],
    );
    assert_eq!(first.status.code(), Some(23), "{first:?}");
    let again = [
        "-o",
        "csv=b.csv",
        "-o",
        "json=b.json",
        "-o",
        "collapsed=b.folded",
    ];
    let saved = report(directory.path(), &[&gate[..], &again, &["a.json"]].concat());
    assert_eq!(saved.status.code(), Some(23));
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    for (one, other) in [
        ("a.json", "b.json"),
        ("a.csv", "b.csv"),
        ("a.folded", "b.folded"),
    ] {
        assert_eq!(read(one), read(other));
    }
    assert!(text(&saved.stderr).contains("memleak: gate failed: "));
    // The rest of the table is that of the run.
    let from_leaks = |table: &str| {
        let (_, rest) = table.split_once("\nLOST ").expect(table);
        rest.to_owned()
    };
    assert_eq!(
        from_leaks(text(&saved.stdout)),
        from_leaks(text(&first.stderr))
    );
    // A higher limit.
    let passes = report(directory.path(), &["--fail-on-leak", "1GB", "a.json"]);
    assert_eq!(passes.status.code(), Some(0), "{passes:?}");
}

#[test]
fn several_saved_reports_are_added_up_by_what_their_processes_have_in_common() {
    let directory = TempDir::new().unwrap();
    for name in ["one", "two"] {
        let json = format!("json={name}.json");
        let command = "ls / >/dev/null; ls /usr >/dev/null";
        run(
            directory.path(),
            &["-q", "--stacks", "-o", &json],
            &["sh", "-c", command],
        );
    }
    let by = |by: &str, format: &str| {
        let options = ["--by", by, "--format", format, "one.json", "two.json"];
        let output = report(directory.path(), &options);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        text(&output.stdout).to_owned()
    };
    let names = |csv: &str| {
        // The last row is their sum.
        let rows = csv.lines().skip(1).filter(|row| !row.starts_with("all,"));
        let mut names: Vec<_> = rows
            .map(|row| row.split(',').skip(1).take(2).collect::<Vec<_>>().join(" "))
            .collect();
        names.sort_unstable();
        names
    };
    // The shell may execute its last command itself.
    let comms = names(&by("comm", "csv"));
    assert!(comms.contains(&"ls 4".to_owned()), "{comms:?}");
    let nodes = names(&by("node", "csv"));
    let host = nix::unistd::gethostname().unwrap();
    let host = format!("{} ", host.to_string_lossy());
    assert!(nodes.len() == 1 && nodes[0].starts_with(&host), "{nodes:?}");
    let functions = by("function", "json");
    assert!(
        functions.contains(r#""type":"group","by":"function""#),
        "{functions}"
    );
    assert!(by("user", "table").starts_with("USER  "));
    assert_eq!(by("process", "csv"), {
        let both = report(
            directory.path(),
            &["--format", "csv", "one.json", "two.json"],
        );
        text(&both.stdout).to_owned()
    });
}

#[test]
fn a_saved_report_that_is_cut_off_is_used_and_one_of_something_else_is_named() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    run(
        directory.path(),
        &["-q", "-o", "json=whole.json"],
        &["true"],
    );
    let whole = fs::read_to_string(path("whole.json")).unwrap();
    let (row, rest) = whole.split_once('\n').unwrap();
    fs::write(path("cut.json"), format!("{row}\n{}", &rest[..40])).unwrap();
    let cut = report(directory.path(), &["--fail-on-leak", "1GB", "cut.json"]);
    assert_eq!(cut.status.code(), Some(125), "{cut:?}");
    let said = text(&cut.stderr);
    assert!(said.contains("cut.json:2: the line is cut off"), "{said}");
    assert!(said.contains("cut.json ends without a summary"), "{said}");
    assert!(text(&cut.stdout).contains("memleak: 1 process, "));
    assert!(text(&cut.stdout).contains("1 row missed"));
    for (content, said) in [
        ("UID  USER\n", "other:1: this is no JSON of memleak"),
        (
            &format!("{row}\n{{}}\n"),
            "other:2: this is no JSON of memleak",
        ),
        (
            &row.replace("memleak/1", "memleak/2"),
            "other:1: this has the schema memleak/2",
        ),
    ] {
        fs::write(path("other"), content).unwrap();
        let output = report(directory.path(), &["whole.json", "other"]);
        assert_eq!(output.status.code(), Some(125));
        let error = text(&output.stderr);
        assert!(
            error.contains(said) && error.lines().count() == 1,
            "{error}"
        );
    }
    // What is read is not emptied.
    std::os::unix::fs::symlink("whole.json", path("link")).unwrap();
    for output in ["json=whole.json", "collapsed=link", "./link"] {
        let refused = report(directory.path(), &["-o", output, "whole.json"]);
        assert_eq!(refused.status.code(), Some(125));
        assert!(text(&refused.stderr).contains("whole.json is to be read and"));
        assert_eq!(fs::read_to_string(path("whole.json")).unwrap(), whole);
    }
    let missing = report(directory.path(), &["nowhere.json"]);
    assert_eq!(missing.status.code(), Some(125));
    assert!(text(&missing.stderr).contains("cannot read nowhere.json: No such file"));
    let none = report(directory.path(), &[]);
    assert!(text(&none.stderr).contains("no files"), "{none:?}");
}
