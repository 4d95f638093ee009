//! `memleak report`: reads what sessions have saved, adds it up, and reports and judges it as one session.
//!
//! It reads one line at a time. What it keeps is bounded, except for the places where processes leaked, and with suppressions or
//! a baseline for the processes of one file that leaked, until their call stacks have come.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::model::baseline::Comparison;
use crate::model::exit::{Finish, Outcome};
use crate::model::finished::About;
use crate::model::gathering::{Gathering, SiteShare};
use crate::model::grouping::{Grouping, Groups};
use crate::model::image::{End, Image, Labels, Losses};
use crate::model::ledger::Ledger;
use crate::model::reach::Amount;
use crate::model::stack::NamedStack;
use crate::model::stack_coverage::StackCoverage;
use crate::options::merge::Merge;
use crate::os::capabilities;
use crate::os::say::say;
use crate::report::destination::{self, Standard};
use crate::report::{Format, Options, Report, Unwritten, Verbosity, verdict_line};
use crate::saved::{Record, SavedLines, SavedProcesses, SavedStack, SavedSummary, SharedFrames};
use crate::session::books::{Destinations, say_more_sites};
use crate::session::run::{comparison, ending, gate};
use crate::session::sifting::{ImageLeaks, LeakOwner, ShownLeaks, Sifter, enter};
use crate::text::units::counted;

/// Reads the files and reports them. Returns how memleak must end.
///
/// # Errors
/// A file cannot be read, or is none of memleak's.
pub fn merged(options: &Merge) -> Result<Finish> {
    let mut outputs = options.report.outputs().into_iter();
    let are_metrics = |(format, _)| matches!(format, Format::Prometheus | Format::Influx);
    if options.grouping().is_some() && outputs.any(are_metrics) {
        bail!(
            "--by adds up what tables, JSON and CSV show, and metrics are made of each process: leave out --by, or \
             prometheus and influx"
        );
    }
    capabilities::keep_what_is_used()?;
    spare_what_is_read(options)?;
    let shown = ShownLeaks::new(&options.leaks, None, options.top)?;
    let comparison = comparison(&options.gate)?;
    let ledger = Ledger::new(gate(&options.gate)?);
    let destinations = Destinations::open(&options.report, Standard::Output, None)?;
    let mut merger = Merger::new(options, &shown, destinations, ledger);
    merger.comparison = comparison;
    for file in &options.files {
        merger.file(file)?;
    }
    Ok(merger.close())
}

/// Fails if a file is to be read and to be written: to open it for writing would empty it.
fn spare_what_is_read(options: &Merge) -> Result<()> {
    let identity = |path: &Path| {
        let facts = fs::metadata(path).ok()?;
        facts.is_file().then(|| (facts.dev(), facts.ino()))
    };
    let read = || {
        let files = options.files.iter().chain(&options.gate.baseline);
        files.chain(&options.leaks.suppressions)
    };
    for (_, output) in options.report.outputs() {
        let Some(output) = output else { continue };
        let output = destination::expanded(output)?;
        let written = identity(&output);
        let same = |file: &&PathBuf| written.is_some() && identity(file) == written;
        if let Some(file) = read().find(same) {
            bail!(
                "{} is to be read and, by -o {}, to be written: name another file for -o",
                file.display(),
                output.display()
            );
        }
    }
    Ok(())
}

/// Whose a call stack is: the executable and the command name of its process.
struct OwnerProgram {
    exe: Option<PathBuf>,
    comm: Vec<u8>,
    labels: Labels,
}

/// A process whose call stacks have yet to come.
struct SavedOwner {
    program: Arc<OwnerProgram>,
    end: End,
    /// Whether a gate judges it.
    judged: bool,
    /// The image and what it leaked, if the gate waits for its call stacks.
    waits: Option<Box<(Image, ImageLeaks)>>,
}

/// What is known of a file so far.
#[derive(Default)]
struct SavedFile {
    /// The file's name without its directory and suffix.
    name: String,
    /// The losses of its images.
    losses: Losses,
    summary: Option<SavedSummary>,
    programs: HashMap<(Option<PathBuf>, Vec<u8>, Labels), Arc<OwnerProgram>>,
    owners: SavedProcesses<SavedOwner>,
    /// How many processes have leaked, and have no call stacks.
    without_stacks: u64,
}

struct Merger<'a> {
    options: &'a Merge,
    ledger: Ledger,
    report: Report,
    gathering: Option<Gathering>,
    groups: Option<Groups>,
    shown: &'a ShownLeaks,
    sifter: Sifter<'a>,
    comparison: Option<Comparison>,
    frames: SharedFrames,
    about: About,
    /// The losses that belong to no image.
    losses: Losses,
    /// How the command of the only file ended.
    outcome: Option<Outcome>,
    has_stacks: bool,
    /// How far the call stacks of the images that have ended are known.
    coverage: StackCoverage,
    table_on_stderr: bool,
    unwritten: Vec<String>,
}

impl<'a> Merger<'a> {
    fn new(
        options: &'a Merge,
        shown: &'a ShownLeaks,
        destinations: Destinations,
        ledger: Ledger,
    ) -> Self {
        let mut report = Report::default();
        let mut table_on_stderr = false;
        let labels = destinations.labels();
        let has_page = destinations.have_page();
        for (format, output) in destinations.into_outputs() {
            let look = &options.shown;
            table_on_stderr |= output.is_stderr && format == Format::Table;
            let look = Options {
                verbosity: match output.is_file {
                    true => Verbosity::of(false, look.verbose),
                    false => look.verbosity(),
                },
                color: look.color.wanted(output.terminal, destination::no_color()),
                refresh: false,
                order: options.sort,
                args: options.args,
                lost: true,
                stacks_left_out: false,
                has_page,
                labels,
            };
            report.add(format, look, output);
        }
        Self {
            options,
            ledger,
            gathering: report.has_documents().then(Gathering::default),
            report,
            groups: options.grouping().map(Groups::new),
            shown,
            sifter: Sifter::new(shown),
            comparison: None,
            frames: SharedFrames::default(),
            about: About {
                directory: std::env::current_dir().ok(),
                began: Duration::MAX,
                ..About::default()
            },
            losses: Losses::default(),
            outcome: None,
            has_stacks: false,
            coverage: StackCoverage::default(),
            table_on_stderr,
            unwritten: Vec::new(),
        }
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        let file = BufReader::with_capacity(1 << 18, file);
        let stem = path.file_stem().unwrap_or_default();
        let mut state = SavedFile {
            name: stem.to_string_lossy().into_owned(),
            ..SavedFile::default()
        };
        for line in SavedLines::new(file) {
            let line = line.with_context(|| format!("cannot read {name}"))?;
            let number = line.number;
            match line.record {
                Ok(record) => self.record(record, &mut state),
                Err(_) if line.is_cut && number > 1 => {
                    say(&format!(
                        "{name}:{number}: the line is cut off, and left out"
                    ));
                }
                Err(error) => bail!("{name}:{number}: {error}"),
            }
        }
        self.settle(state.owners.take());
        self.say_what_is_missing(path, &state);
        match state.summary {
            Some(summary) => {
                self.losses += of_session(summary.losses, state.losses);
                self.outcome = summary.outcome;
            }
            None => {
                say(&format!(
                    "{name} ends without a summary: its session still runs, or was killed; what may be missing counts \
                     as a missed row"
                ));
                self.losses.rows_lost += 1;
            }
        }
        Ok(())
    }

    fn record(&mut self, record: Record, state: &mut SavedFile) {
        match record {
            Record::Process(saved) => {
                self.settle(state.owners.complete());
                if !saved.is_look {
                    self.image(saved.image, state);
                }
            }
            Record::Stack(saved) if saved.is_look => {}
            Record::Stack(mut saved) => {
                self.frames.share(&mut saved.stack);
                self.stack(&saved, state);
            }
            Record::Summary(summary) => state.summary = Some(summary),
            Record::Other => {}
        }
    }

    fn image(&mut self, image: Image, state: &mut SavedFile) {
        let (judged, may_judge) = (self.ledger.judges(&image), self.ledger.may_judge(&image));
        let by_stack = (self.comparison.as_ref()).is_some_and(Comparison::is_by_stack);
        let has_leaked = has_ended(image.end) && image.counters.leaked_blocks > 0;
        let waits = has_leaked
            && (judged && self.shown.may_suppress(&image)
                || may_judge && by_stack && image.stacks.is_some());
        let verdict = enter(&image, waits, self.comparison.as_mut(), &mut self.ledger);
        state.losses += image.losses;
        if let Some(coverage) = StackCoverage::of(&image) {
            self.has_stacks = true;
            if has_ended(image.end) {
                self.coverage += coverage;
            }
        } else if has_leaked {
            state.without_stacks += 1;
        }
        self.about.began = self.about.began.min(image.start_time);
        self.about.ended = self.about.ended.max(image.end_time);
        if let Some(host) = image
            .origin
            .as_ref()
            .and_then(|origin| origin.host.as_ref())
            && !self.about.hosts.contains(host)
            && self.about.hosts.len() < MOST_HOSTS
        {
            self.about.hosts.push(host.clone());
        }
        match &mut self.groups {
            Some(groups) => groups.image(&image, &state.name),
            None => {
                let unwritten = self.report.image(&image, verdict);
                self.check(unwritten);
            }
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.image(&image);
        }
        if self.wants_stacks() {
            let without_room = state.own(image, judged, waits);
            self.settle(without_room);
        }
    }

    /// Whether it matters what is in call stacks.
    fn wants_stacks(&self) -> bool {
        let groups = self.groups.as_ref().map(Groups::by);
        groups.is_none_or(Grouping::is_of_stacks)
            || self.gathering.is_some()
            || self.comparison.is_some()
            || self.shown.suppresses()
    }

    /// Lets the gate judge the processes that have waited for their call stacks.
    fn settle(&mut self, owners: impl IntoIterator<Item = SavedOwner>) {
        for owner in owners {
            if let Some(waits) = owner.waits {
                let (image, leaks) = &*waits;
                let comparison = self.comparison.as_mut();
                leaks.judge(image, self.shown, comparison, &mut self.ledger);
            }
        }
    }

    fn stack(&mut self, saved: &SavedStack, state: &mut SavedFile) {
        self.has_stacks = true;
        if !self.wants_stacks() {
            return;
        }
        let id = (saved.pid, saved.image);
        let mut owner = state.owners.of_stack(id, saved.leaked());
        let whose = LeakOwner {
            pid: saved.pid,
            image: saved.image,
            comm: owner.as_ref().map_or(b"", |owner| &owner.program.comm),
            has_ended: owner.as_ref().is_some_and(|owner| has_ended(owner.end)),
            judged: owner.as_ref().is_some_and(|owner| owner.judged),
        };
        let report = Some(&mut self.report).filter(|_| self.groups.is_none());
        let (share, stack) = (&saved.share, &saved.stack);
        let (sifted, unwritten) = self.sifter.add(&whose, share, stack, true, report);
        if let Some((_, leaks)) = owner.as_mut().and_then(|owner| owner.waits.as_deref_mut()) {
            leaks.add(stack, &sifted, self.comparison.is_some());
        }
        let allocated = Amount {
            bytes: share.alloc_bytes,
            blocks: share.alloc_count,
        };
        if let Some(groups) = self.groups.as_mut().filter(|_| sifted.is_shown) {
            let amounts = [allocated, sifted.leaked()];
            groups.stack(id, stack, amounts, sifted.reached());
        }
        if let Some(gathering) = &mut self.gathering {
            let program = owner.as_ref().map(|owner| &owner.program);
            let no_labels = Labels::default();
            let share = SiteShare {
                image: id,
                exe: program.and_then(|program| program.exe.as_deref()),
                comm: program.map_or(b"", |program| &program.comm),
                labels: program.map_or(&no_labels, |program| &program.labels),
                end: owner.as_ref().map_or(End::Running, |owner| owner.end),
                allocated,
                leaked: sifted.leaked(),
                reached: sifted.reached(),
            };
            gathering.stack(share, stack);
        }
        self.check(unwritten);
    }

    /// Says what cannot be done with a file without call stacks.
    fn say_what_is_missing(&self, path: &Path, state: &SavedFile) {
        if state.without_stacks == 0 {
            return;
        }
        let without = counted(state.without_stacks, "process", "processes");
        let name = path.display();
        let by_stack = (self.comparison.as_ref()).is_some_and(Comparison::is_by_stack);
        let mut said = Vec::new();
        if by_stack {
            said.push("they are compared with the baseline by executable");
        }
        if self.shown.suppresses() {
            said.push("no suppression can match them");
        }
        if self.shown.chooses() {
            said.push("--only-stack shows none of them");
        }
        if !said.is_empty() {
            say(&format!(
                "{name}: the leaks of {without} have no call stacks: {} (record them by memleak run --stacks)",
                said.join(", ")
            ));
        }
    }

    /// Reports the sums. Returns how memleak must end.
    fn close(mut self) -> Finish {
        let ledger = std::mem::replace(&mut self.ledger, Ledger::new(None));
        let selection = ledger.selection();
        let mut summary = ledger.finish(self.losses, Outcome::Saved);
        let verdict = summary.verdict();
        if let [_] = &self.options.files[..]
            && let Some(outcome) = self.outcome
        {
            summary.outcome = outcome;
        }
        if let Some(groups) = self.groups.take() {
            let by = groups.by();
            if by.is_of_stacks() && !self.has_stacks {
                say("the files have no call stacks: record them by memleak run --stacks");
            }
            let mut grouped = groups.finish();
            grouped.sort(self.options.sort);
            if grouped.is_partial() {
                say(
                    "there are too many ranks and nodes to remember all: those that leaked least are left out, so the \
                     smallest and the median are unknown",
                );
            }
            let unwritten = self.report.groups(&grouped);
            self.check(unwritten);
        }
        let sifter = std::mem::replace(&mut self.sifter, Sifter::new(self.shown));
        let coverage = std::mem::take(&mut self.coverage);
        summary.located = (self.has_stacks || self.shown.suppresses()).then(|| {
            // All of them have their names.
            sifter.finish(coverage, |stack| NamedStack {
                identity: 0,
                frames: Vec::new(),
                end: stack.end,
                guessed: stack.guessed,
            })
        });
        let comparison = self.comparison.take();
        summary.baseline = comparison.map(|comparison| comparison.finish(&selection));
        let unwritten = self.report.summary(&summary);
        self.check(unwritten);
        if !self.table_on_stderr
            && let Some(line) = verdict_line(&summary)
        {
            say(&line);
        }
        if let Some(gathering) = self.gathering.take() {
            let mut about = std::mem::take(&mut self.about);
            about.began = about.began.min(about.ended);
            let finished = gathering.finish(about, selection, summary);
            say_more_sites(&finished);
            let unwritten = self.report.documents(&finished);
            self.check(unwritten);
        }
        ending(Outcome::Saved, verdict, &self.options.gate)
    }

    /// Says once of each place that it cannot be written.
    fn check(&mut self, unwritten: Vec<Unwritten>) {
        for Unwritten { to, error } in unwritten {
            if !self.unwritten.contains(&to) {
                say(&format!("cannot write the report to {to}: {error}"));
                self.unwritten.push(to);
            }
        }
    }
}

/// How many hosts are named.
const MOST_HOSTS: usize = 64;

impl SavedFile {
    /// Keeps whose the call stacks of an image are. Without room for that, returns it.
    fn own(&mut self, image: Image, judged: bool, waits: bool) -> Option<SavedOwner> {
        let key = (image.exe.clone(), image.comm.clone(), image.labels.clone());
        let program = self.programs.entry(key).or_insert_with(|| {
            Arc::new(OwnerProgram {
                exe: image.exe.clone(),
                comm: image.comm.clone(),
                labels: image.labels.clone(),
            })
        });
        let owner = |waits| SavedOwner {
            program: Arc::clone(program),
            end: image.end,
            judged,
            waits,
        };
        match waits {
            false => self.owners.add(&image, owner(None)).err(),
            true => {
                let waits = Box::new((image.clone(), ImageLeaks::default()));
                self.owners.add(&image, owner(Some(waits))).err()
            }
        }
    }
}

/// Whether an image that ended so has leaked what it never freed.
fn has_ended(end: End) -> bool {
    !matches!(end, End::Exec | End::Running)
}

/// What a session has missed beside what its images have.
fn of_session(all: Losses, images: Losses) -> Losses {
    Losses {
        blocks_not_recorded: all
            .blocks_not_recorded
            .saturating_sub(images.blocks_not_recorded),
        bytes_not_recorded: all
            .bytes_not_recorded
            .saturating_sub(images.bytes_not_recorded),
        calls_without_return: (all.calls_without_return)
            .saturating_sub(images.calls_without_return),
        calls_in_flight: (all.calls_in_flight).saturating_sub(images.calls_in_flight),
        rows_lost: all.rows_lost.saturating_sub(images.rows_lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_session_has_missed_is_what_its_images_have_not() {
        let losses = |calls_without_return, rows_lost| Losses {
            calls_without_return,
            rows_lost,
            ..Losses::default()
        };
        assert_eq!(of_session(losses(5, 2), losses(3, 0)), losses(2, 2));
        // The file lacks rows that its summary counts, or has some twice.
        assert_eq!(of_session(losses(1, 0), losses(3, 0)), losses(0, 0));
    }
}
