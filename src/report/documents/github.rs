//! Commands of GitHub's workflows, which put a leak beside the line of a pull request that it comes from.
//!
//! The runner reads them from the standard output of a step. It shows ten of each kind.
//! (<https://docs.github.com/actions/using-workflows/workflow-commands-for-github-actions>)

use crate::model::bounds::Verdict;
use crate::model::finished::Finished;
use crate::report::closing::{closing_line, verdict_line};
use crate::report::documents::findings::{Finding, Weight, findings};
use crate::text::escape;

/// How many annotations of a kind GitHub shows of a step.
const MOST: usize = 10;

/// The commands, the heaviest leaks first. A gate that failed or is unknown comes before them.
pub fn github(finished: &Finished) -> Vec<u8> {
    let mut commands = Vec::new();
    let mut room = [MOST; 3];
    let verdict = finished.summary.verdict();
    if let Some(line) = verdict_line(&finished.summary) {
        let weight = match verdict {
            Some(Verdict::Failed | Verdict::Unknown) => Weight::Error,
            _ => Weight::Warning,
        };
        room[weight as usize] -= 1;
        commands.push(command(weight, None, "memleak", &line));
    }
    let mut left_out = 0;
    for finding in findings(finished) {
        let room = &mut room[finding.weight as usize];
        if *room == 0 {
            left_out += 1;
            continue;
        }
        *room -= 1;
        commands.push(annotation(&finding));
    }
    if left_out > 0 {
        commands.push(said(&format!("{left_out} more leaks have no annotation")));
    }
    let lost = finished.summary.lost.is_known();
    commands.push(said(&closing_line(&finished.summary, lost)));
    commands.concat().into_bytes()
}

/// A line of the log. The runner also knows an older form of commands, which may be anywhere in a line.
fn said(text: &str) -> String {
    format!("memleak: {}\n", text.replace("##[", "# #["))
}

fn annotation(finding: &Finding) -> String {
    let place = finding.own.as_ref().and_then(|own| {
        let file = own.file.to_str()?;
        let is_plain = file.chars().all(escape::is_printable);
        is_plain.then(|| format!("file={},line={}", property(file), own.line))
    });
    let title = format!("memleak: {}", finding.title());
    command(finding.weight, place, &title, &finding.text())
}

fn command(weight: Weight, place: Option<String>, title: &str, message: &str) -> String {
    let name = match weight {
        Weight::Error => "error",
        Weight::Warning => "warning",
        Weight::Note => "notice",
    };
    let title = format!("title={}", property(title));
    let properties: Vec<_> = place.into_iter().chain([title]).collect();
    format!("::{name} {}::{}\n", properties.join(","), data(message))
}

/// A message, as the runner reads it.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// The value of a property, as the runner reads it.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
