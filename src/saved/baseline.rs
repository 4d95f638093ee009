//! Makes a baseline of a saved report.

use std::io::BufRead;

use anyhow::{Context as _, Result, ensure};

use crate::model::baseline::{Baseline, BaselineProcess, LeakSize, StackLeak};
use crate::model::image::{End, Image};
use crate::model::reach::Amount;
use crate::model::stack::StackShare;
use crate::model::unfreed::Unfreed;
use crate::report::innermost_call;
use crate::saved::lines::{SavedLine, SavedLines};
use crate::saved::processes::SavedProcesses;
use crate::saved::record::Record;

/// Reads a report, of one run or of several. A line that was cut off at the end, as by a full disk, is an error.
///
/// # Errors
/// It cannot be read, or it is no report in JSON.
pub fn read_baseline(report: impl BufRead) -> Result<Baseline> {
    let mut processes: SavedProcesses<BaselineProcess> = SavedProcesses::default();
    let mut baseline = Baseline::default();
    let mut is_report = false;
    for line in SavedLines::new(report) {
        let SavedLine { number, record, .. } = line?;
        let record = record.with_context(|| format!("line {number}"))?;
        is_report = true;
        match record {
            Record::Process(saved) => {
                add(&mut baseline, processes.complete());
                if !saved.is_look
                    && matches!(saved.image.end, End::Exited(_) | End::Signaled { .. })
                {
                    let process = process(&saved.image);
                    let kept = processes.add(&saved.image, process);
                    add(&mut baseline, kept.err());
                }
            }
            Record::Stack(saved) if saved.is_look => {}
            Record::Stack(saved) => {
                let id = (saved.pid, saved.image);
                if let Some(process) = processes.of_stack(id, saved.leaked()) {
                    process.stacks.push(StackLeak {
                        identity: saved.stack.identity,
                        size: size(&saved.share),
                        place: innermost_call(&saved.stack),
                    });
                }
            }
            // The next run has its own pids.
            Record::Summary(_) => add(&mut baseline, processes.take()),
            Record::Other => {}
        }
    }
    ensure!(is_report, "it is empty (write a baseline by -o json=FILE)");
    add(&mut baseline, processes.take());
    Ok(baseline)
}

fn add(baseline: &mut Baseline, processes: impl IntoIterator<Item = BaselineProcess>) {
    processes
        .into_iter()
        .for_each(|process| baseline.add(process));
}

fn process(image: &Image) -> BaselineProcess {
    BaselineProcess {
        exe: image.exe.clone(),
        comm: image.comm.clone(),
        size: LeakSize::of(image),
        stacks: Vec::new(),
    }
}

fn size(share: &StackShare) -> LeakSize {
    let unfreed = Unfreed::of(share);
    let is_known = unfreed.unknown == Amount::default();
    LeakSize {
        leaked: share.leaked_bytes,
        lost: is_known.then(|| unfreed.reached.lost().bytes),
    }
}
