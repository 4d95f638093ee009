//! Command lines in the report: with --args, and never without.

use std::process::Command;

use crate::common::switches::switch;
use crate::common::watch::Watch;
use crate::common::{Job, Report, Row};

fn args_of<'a>(report: &'a Report, comm: &str) -> Vec<&'a [String]> {
    let rows = report.rows.iter().filter(|row| row.comm == comm);
    rows.filter_map(|row| row.args.as_deref()).collect()
}

fn check(method: &str) {
    let long = "x".repeat(3_000);
    let script = format!("(:; :) & wait; printf '' 'a b' '' {long}; exec cat /dev/null");
    let job = Job::shell(&script.replace("printf", "/usr/bin/printf"));
    let report = job
        .options(["--args"])
        .options([switch("method", method)])
        .run();
    report.assert_complete();
    let cat = ["cat", "/dev/null"].map(str::to_owned);
    assert_eq!(args_of(&report, "cat"), [&cat[..]], "{method}");
    let printf = report.rows.iter().find(|row| row.comm == "printf").unwrap();
    let words = printf.args.as_deref().unwrap();
    assert_eq!(words[..4], ["/usr/bin/printf", "", "a b", ""]);
    assert!(printf.args_cut);
    let kept: usize = words.iter().map(|word| word.len() + 1).sum();
    // The last word lost its end, and with it its NUL.
    assert_eq!(kept, 1_023 + 1);
    // A child that executes nothing has its parent's command line, and so has the replaced image.
    let shells: Vec<&Row> = report.rows.iter().filter(|row| row.comm == "sh").collect();
    assert!(shells.len() >= 2, "{shells:#?}");
    for shell in shells {
        let words = shell.args.as_deref().unwrap();
        assert_eq!(words[..2], ["sh", "-c"], "{method}");
        assert!(shell.args_cut);
    }
}

#[test]
fn every_image_has_the_words_that_it_was_executed_with() {
    check("session");
}

#[test]
fn with_the_older_programs_every_image_has_its_words_too() {
    check("separate");
}

#[test]
fn without_the_option_no_word_of_a_command_line_is_in_a_report() {
    let report = Job::shell("true secret_word; /bin/true other_secret").run();
    assert!(report.rows.iter().all(|row| row.args.is_none()));
}

#[test]
fn a_process_that_was_there_before_has_its_words() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let watch = Watch::pid(child.id(), &["--args"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let rows = watch.wait().rows;
    let words = rows.iter().find_map(|row| row.args.clone()).unwrap();
    assert_eq!(words, ["sleep", "1000"]);
}
