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
