//! Tests that memleak counts static programs with split-off symbols like other programs, if it can find the symbols.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::files;
use crate::common::{Counts, Job, fixture};
use tempfile::TempDir;

/// Runs a build script in a new directory. In the script `$WHOLE` is the static fixture.
#[track_caller]
fn built(script: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    let output = Command::new("sh")
        .args(["-ec", script])
        .env("WHOLE", fixture("static_leak"))
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    directory
}

/// The counts of the fixture with its own symbols. They include allocations of glibc's start, such as the path of the
/// program's directory.
fn expected(directory: &Path, bytes: &str) -> Counts {
    let whole = directory.join("whole");
    files::copy(fixture("static_leak"), &whole);
    let report = Job::new(whole, [bytes]).run();
    report.assert_complete();
    report.only_row().counts
}

#[track_caller]
fn assert_counted(program: &Path, wrapper: &[&str]) {
    for bytes in ["500", "70000"] {
        let report = Job::new(program, [bytes]).under(wrapper).run();
        assert!(report.status.success(), "{}", report.stderr);
        report.assert_complete();
        let row = report.only_row();
        assert_eq!(row.counts, expected(program.parent().unwrap(), bytes));
        assert_eq!(row.allocators, [PathBuf::from(program)]);
        assert!(row.counts.leaked_bytes >= bytes.parse().unwrap());
    }
}

#[test]
fn a_program_with_packed_symbols_is_counted() {
    // Fedora's find-debuginfo does the same.
    let directory = built(
        r#"
        nm "$WHOLE" --format=posix --defined-only | awk '$2 ~ /[TtWw]/ {print $1}' | sort > keep
        objcopy --only-keep-debug "$WHOLE" debug
        objcopy -S --remove-section .comment --keep-symbols=keep debug mini
        xz mini
        strip -o packed "$WHOLE"
        objcopy --add-section .gnu_debugdata=mini.xz packed"#,
    );
    assert_counted(&directory.path().join("packed"), &[]);
}

#[test]
fn a_program_with_a_debug_file_for_its_build_id_is_counted() {
    let directory = built(
        r#"
        objcopy --only-keep-debug "$WHOLE" debug
        strip -o stripped "$WHOLE"
        id=$(readelf -n stripped | sed -n 's/.*Build ID: //p')
        mkdir -p ".build-id/${id%"${id#??}"}"
        mv debug ".build-id/${id%"${id#??}"}/${id#??}.debug""#,
    );
    let program = directory.path().join("stripped");
    // The debug file is visible only in this mount namespace.
    let script = r#"mkdir -p /usr/lib/debug && mount --bind "$0" /usr/lib/debug && exec "$@""#;
    let below = directory.path().to_str().unwrap();
    assert_counted(&program, &["unshare", "--mount", "sh", "-c", script, below]);
}

#[test]
fn a_program_without_symbols_is_not_reported_as_free_of_leaks() {
    let directory = built(r#"strip -o stripped "$WHOLE""#);
    let report = Job::new(directory.path().join("stripped"), ["500"]).run();
    let row = report.only_row();
    assert!(!row.complete && row.allocators.is_empty(), "{row:#?}");
}
