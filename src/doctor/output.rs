//! Prints the checks: for people a line each, or a JSON object each.

use std::fmt::Write as _;
use std::io;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::doctor::check::{Check, Diagnosis, Status};
use crate::options::DoctorFormat;
use crate::report::{SCHEMA, Verbosity};
use crate::text::escape;

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// Widths of the longest status and of the longest name, in columns.
const STATUS: usize = 7;
const NAME: usize = 25;

/// The whole report. A quiet report only has the checks that are not ok.
///
/// # Errors
/// A value cannot be written as JSON.
pub fn render(
    diagnosis: &Diagnosis,
    format: DoctorFormat,
    verbosity: Verbosity,
    color: bool,
) -> io::Result<String> {
    let quiet = verbosity == Verbosity::Quiet;
    let mut out = String::new();
    for check in &diagnosis.checks {
        if quiet && check.status == Status::Ok {
            continue;
        }
        match format {
            DoctorFormat::Table => line(&mut out, check, verbosity, color),
            DoctorFormat::Json => out += &json(&CheckLine::new(check))?,
        }
    }
    if !quiet || !diagnosis.works() {
        out += &match format {
            DoctorFormat::Table => closing_line(diagnosis, color),
            DoctorFormat::Json => json(&DoctorLine::new(diagnosis))?,
        };
    }
    Ok(out)
}

fn line(out: &mut String, check: &Check, verbosity: Verbosity, color: bool) {
    let Check {
        name,
        status,
        found,
        remedy,
        details,
        ..
    } = check;
    let word = painted(&format!("{:<STATUS$}", status.word()), *status, color);
    *out += &format!("{word} {name:<NAME$} {}", escape::escaped(found.as_bytes()));
    if let Some(remedy) = remedy {
        *out += &format!("; remedy: {}", escape::escaped(remedy.as_bytes()));
    }
    out.push('\n');
    if verbosity == Verbosity::Verbose {
        for detail in details {
            let detail = escape::escaped(detail.as_bytes());
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:STATUS$} {:NAME$} {detail}", "", "");
        }
    }
}

fn closing_line(diagnosis: &Diagnosis, color: bool) -> String {
    let (line, status) = match diagnosis.method {
        Some(method) if diagnosis.works() => {
            (format!("memleak run works here, by {method}"), Status::Ok)
        }
        _ => {
            let failed: Vec<_> = diagnosis.failed().collect();
            let failed = match &failed[..] {
                [] => "it could not be tried".to_owned(),
                failed => format!("see {}", failed.join(", ")),
            };
            let line = format!("memleak run does not work here: {failed}");
            (line, Status::Fail)
        }
    };
    painted(&line, status, color) + "\n"
}

fn painted(words: &str, status: Status, color: bool) -> String {
    let paint = match status {
        Status::Ok => GREEN,
        Status::Warn | Status::Unknown => YELLOW,
        Status::Fail => RED,
    };
    match color {
        true => format!("{paint}{words}{PLAIN}"),
        false => words.to_owned(),
    }
}

#[derive(Serialize)]
struct CheckLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    check: &'static str,
    status: &'static str,
    found: &'a str,
    remedy: Option<&'a str>,
    #[serde(flatten)]
    figures: Figures<'a>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    details: &'a [String],
}

/// The figures of a check, each as a field of its line.
struct Figures<'a>(&'a [(&'static str, u64)]);

impl Serialize for Figures<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl<'a> CheckLine<'a> {
    fn new(check: &'a Check) -> Self {
        Self {
            schema: SCHEMA,
            r#type: "check",
            check: check.name,
            status: check.status.word(),
            found: &check.found,
            remedy: check.remedy.as_deref(),
            figures: Figures(&check.figures),
            details: &check.details,
        }
    }
}

#[derive(Serialize)]
struct DoctorLine {
    schema: &'static str,
    r#type: &'static str,
    ok: bool,
    method: Option<String>,
    holds: Option<String>,
    failed: Vec<&'static str>,
}

impl DoctorLine {
    fn new(diagnosis: &Diagnosis) -> Self {
        Self {
            schema: SCHEMA,
            r#type: "doctor",
            ok: diagnosis.works(),
            method: diagnosis.method.and_then(value_name),
            holds: diagnosis.holds.and_then(value_name),
            failed: diagnosis.failed().collect(),
        }
    }
}

/// How the command line spells a value.
fn value_name(value: impl ValueEnum) -> Option<String> {
    let value = value.to_possible_value()?;
    Some(value.get_name().to_owned())
}

fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::COUNT;
    use crate::kernel::method::{Holds, Method};

    fn mixed() -> Diagnosis {
        Diagnosis {
            checks: vec![
                Check::ok("kernel", "Linux 6.18.5, x86_64"),
                Check::fail("btf", "there is none", "use another kernel"),
                Check::warn("method", "perf-event uprobes", Some("Linux 6.6".to_owned())),
                Check::unknown("lockdown", "\x1b[2Jno securityfs\n"),
                Check::ok("price", "an emulated probe takes 300 ns")
                    .with_figure("emulated_ns", 300)
                    .with_figure("single_stepped_ns", 6000)
                    .with_details(vec!["ten rounds".to_owned()]),
                Check::unknown(COUNT, "not tried"),
            ],
            method: None,
            holds: None,
        }
    }

    fn working() -> Diagnosis {
        Diagnosis {
            checks: vec![
                Check::ok(COUNT, "right"),
                Check::warn("cgroup", "none", None),
            ],
            method: Some(Method::PerfEvent),
            holds: Some(Holds::Loader),
        }
    }

    /// All reports, each followed by a line of `---`.
    fn all(format: DoctorFormat) -> String {
        use Verbosity::{Normal, Quiet, Verbose};
        let mut out = String::new();
        for diagnosis in [mixed(), working()] {
            for verbosity in [Normal, Quiet, Verbose] {
                out += &render(&diagnosis, format, verbosity, false).unwrap();
                out += "---\n";
            }
        }
        out
    }

    #[test]
    fn as_lines() {
        insta::assert_snapshot!(all(DoctorFormat::Table));
    }

    #[test]
    fn as_json() {
        let out = all(DoctorFormat::Json);
        for line in out.lines().filter(|line| *line != "---") {
            let _: serde_json::Value = serde_json::from_str(line).unwrap();
        }
        insta::assert_snapshot!(out);
    }

    #[test]
    fn in_colour_only_the_status_and_the_last_line_are_painted() {
        let out = render(&mixed(), DoctorFormat::Table, Verbosity::Normal, true).unwrap();
        insta::assert_snapshot!(out.replace('\x1b', "ESC"));
        // Without colours, the words are the same.
        let mut plain = out.replace(PLAIN, "");
        for paint in [GREEN, YELLOW, RED] {
            plain = plain.replace(paint, "");
        }
        let without = render(&mixed(), DoctorFormat::Table, Verbosity::Normal, false).unwrap();
        assert_eq!(plain, without);
    }
}
