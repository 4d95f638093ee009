//! Variables of environments in the report: with --label-env, and never without.

use std::collections::BTreeMap;
use std::process::Command;

use crate::common::switches::switch;
use crate::common::watch::Watch;
use crate::common::{Job, Report, Row};

fn row<'a>(report: &'a Report, comm: &str) -> &'a Row {
    let mut rows = report.rows.iter();
    rows.find(|row| row.comm == comm)
        .unwrap_or_else(|| panic!("{comm}: {report:#?}"))
}

fn labels<const N: usize>(labels: [(&str, &str); N]) -> BTreeMap<String, String> {
    labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Variables are found behind many others and behind long ones. A name must be the whole name.
fn check(method: &str) {
    let script = "/bin/true; (:); \
                  MEMLEAK_TEST='two words' /usr/bin/cat /dev/null; \
                  XMEMLEAK_TEST=no MEMLEAK_TESTX=no MEMLEAK_TES=no env -u MEMLEAK_TEST /usr/bin/printf ''; \
                  MEMLEAK_TEST= /usr/bin/head -c0 /dev/null";
    let mut job = Job::shell(script)
        .env("MEMLEAK_TEST", "one")
        .env("A_LONG_ONE", "x".repeat(100_000 / 4))
        .env("MEMLEAK_PATH", "y".repeat(600));
    for number in 0..100 {
        job = job.env(&format!("V{number}"), "MEMLEAK_TEST=no");
    }
    let names = ["MEMLEAK_TEST", "MEMLEAK_NONE", "MEMLEAK_PATH"];
    let options = names.map(|name| format!("--label-env={name}"));
    let report = job
        .options(options)
        .options([switch("method", method)])
        .run();
    report.assert_complete();
    let cut = format!("{}\u{2026}", "y".repeat(511));
    let with = |value| labels([("MEMLEAK_TEST", value), ("MEMLEAK_PATH", &*cut)]);
    assert_eq!(row(&report, "true").labels, with("one"), "{method}");
    assert_eq!(row(&report, "cat").labels, with("two words"), "{method}");
    assert_eq!(row(&report, "head").labels, with(""), "{method}");
    let without = labels([("MEMLEAK_PATH", &*cut)]);
    assert_eq!(row(&report, "printf").labels, without, "{method}");
    // A child that executes nothing has its parent's labels.
    let shells: Vec<&Row> = report.rows.iter().filter(|row| row.comm == "sh").collect();
    assert!(shells.len() >= 2, "{shells:#?}");
    assert!(shells.iter().all(|shell| shell.labels == with("one")));
}

#[test]
fn every_image_has_the_variables_of_its_exec() {
    check("session");
}

#[test]
fn with_the_older_programs_every_image_has_its_variables_too() {
    check("separate");
}

#[test]
fn without_the_option_no_variable_is_in_a_report() {
    let report = Job::shell("true").env("MEMLEAK_TEST", "secret_value").run();
    assert!(report.rows.iter().all(|row| row.labels.is_empty()));
}

#[test]
fn a_process_that_was_there_before_has_its_variables() {
    let mut child = Command::new("sleep")
        .arg("1000")
        .env("MEMLEAK_TEST", "before")
        .spawn()
        .unwrap();
    let watch = Watch::pid(child.id(), &["--label-env", "MEMLEAK_TEST"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let rows = watch.wait().rows;
    let found = rows.into_iter().map(|row| row.labels).next().unwrap();
    assert_eq!(found, labels([("MEMLEAK_TEST", "before")]));
}
