//! GitLab's report of code quality: an array of findings, each at a line of the project's sources.
//!
//! A finding without a line cannot be in it. GitLab shows only one of two findings with the same fingerprint.
//! (<https://docs.gitlab.com/ci/testing/code_quality/>)

use std::os::unix::ffi::OsStrExt as _;

use serde_json::{Value, json};

use crate::model::finished::Finished;
use crate::report::documents::findings::{Finding, Weight, findings};
use crate::text::escape;

/// The report.
pub fn gitlab(finished: &Finished) -> Vec<u8> {
    let findings = findings(finished);
    let issues: Vec<_> = findings.iter().filter_map(issue).collect();
    format!("{:#}\n", Value::from(issues)).into_bytes()
}

fn issue(finding: &Finding) -> Option<Value> {
    let own = finding.own.as_ref()?;
    let severity = match finding.weight {
        Weight::Error => "major",
        Weight::Warning => "minor",
        Weight::Note => "info",
    };
    Some(json!({
        "description": finding.sentence(),
        "check_name": format!("memleak/{}", finding.fate.word()),
        "fingerprint": format!("{:016x}", finding.stack.identity),
        "severity": severity,
        "location": {
            "path": escape::text(own.file.as_os_str().as_bytes()),
            "lines": { "begin": own.line },
        },
    }))
}
