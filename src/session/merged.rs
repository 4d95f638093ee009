//! `memleak report`: reads what sessions have saved, adds it up, and reports and judges it as one session.
//!
//! It reads one line at a time. What it keeps is bounded, except for the places where processes leaked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::model::commands;
use crate::model::exit::{Finish, Outcome};
use crate::model::finished::About;
use crate::model::gathering::{Gathering, SiteShare};
use crate::model::grouping::Groups;
use crate::model::image::{End, Image, Labels, Losses};
use crate::model::ledger::Ledger;
use crate::model::places::{LeakPlaces, Located, PlaceShare};
use crate::model::reach::Amount;
use crate::model::stack::NamedStack;
use crate::model::stack_coverage::StackCoverage;
use crate::model::unfreed::Unfreed;
use crate::options::DEFAULT_PLACES;
use crate::options::merge::Merge;
use crate::os::capabilities;
use crate::os::say::say;
use crate::report::destination::{self, Standard};
use crate::report::{Format, Options, Report, StackRow, Unwritten, Verbosity, verdict_line};
use crate::saved::{Record, SavedImage, SavedStack, SavedSummary, record};
use crate::session::books::Destinations;
use crate::session::run::{ending, gate};

/// The longest line that is read. A record of a call stack with the most frames is far shorter.
const LONGEST_LINE: u64 = 16 << 20;

/// Of how many processes of one file the names are remembered for their call stacks, which come after them.
const MOST_OWNERS: usize = 1 << 20;

/// Reads the files and reports them. Returns how memleak must end.
///
/// # Errors
/// A file cannot be read, or is none of memleak's.
pub fn merged(options: &Merge) -> Result<Finish> {
    if options.gate.baseline.is_some() {
        bail!("--baseline compares the leaks of a run: give it to memleak run");
    }
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
    let destinations = Destinations::open(&options.report, Standard::Output, None)?;
    let mut merger = Merger::new(options, destinations, Ledger::new(gate(&options.gate)?));
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
    for (_, output) in options.report.outputs() {
        let Some(output) = output else { continue };
        let output = destination::expanded(output)?;
        let written = identity(&output);
        let same = |file: &&PathBuf| written.is_some() && identity(file) == written;
        if let Some(file) = options.files.iter().find(same) {
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
struct Owner {
    exe: Option<PathBuf>,
    comm: Vec<u8>,
    labels: Labels,
}

/// What is known of a file so far.
#[derive(Default)]
struct SavedFile {
    /// The file's name without its directory and suffix.
    name: String,
    /// The losses of its images.
    losses: Losses,
    summary: Option<SavedSummary>,
    programs: HashMap<(Option<PathBuf>, Vec<u8>, Labels), Arc<Owner>>,
    /// The images, by pid and number, and whether a gate judges them.
    owners: HashMap<(u32, u32), (Arc<Owner>, End, bool)>,
}

struct Merger<'a> {
    options: &'a Merge,
    ledger: Ledger,
    report: Report,
    gathering: Option<Gathering>,
    groups: Option<Groups>,
    places: LeakPlaces,
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
    fn new(options: &'a Merge, destinations: Destinations, ledger: Ledger) -> Self {
        let mut report = Report::default();
        let mut table_on_stderr = false;
        let labels = destinations.labels();
        for (format, output) in destinations.into_outputs() {
            let shown = &options.shown;
            table_on_stderr |= output.is_stderr && format == Format::Table;
            let look = Options {
                verbosity: match output.is_file {
                    true => Verbosity::of(false, shown.verbose),
                    false => shown.verbosity(),
                },
                color: shown.color.wanted(output.terminal, destination::no_color()),
                refresh: false,
                order: options.sort,
                args: options.args,
                lost: true,
                stacks_left_out: false,
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
            places: LeakPlaces::default(),
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
        let mut file = BufReader::with_capacity(1 << 18, file);
        let stem = path.file_stem().unwrap_or_default();
        let mut state = SavedFile {
            name: stem.to_string_lossy().into_owned(),
            ..SavedFile::default()
        };
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let mut part = (&mut file).take(LONGEST_LINE);
            let read = part.read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read {name}"))? == 0 {
                break;
            }
            let is_whole = line.last() == Some(&b'\n');
            match record(line.trim_ascii()) {
                Ok(record) => self.record(record, &mut state),
                Err(_) if !is_whole && number > 1 && (line.len() as u64) < LONGEST_LINE => {
                    say(&format!(
                        "{name}:{number}: the line is cut off, and left out"
                    ));
                }
                Err(_) if line.trim_ascii().is_empty() => {}
                Err(error) => bail!("{name}:{number}: {error}"),
            }
        }
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
            Record::Process(saved) if saved.is_look => {}
            Record::Process(saved) => self.image(&saved, state),
            Record::Stack(saved) => self.stack(&saved, state),
            Record::Summary(summary) => state.summary = Some(summary),
            Record::Other => {}
        }
    }

    fn image(&mut self, saved: &SavedImage, state: &mut SavedFile) {
        let image = &saved.image;
        let verdict = self.ledger.record(image);
        state.losses += image.losses;
        if let Some(coverage) = StackCoverage::of(image) {
            self.has_stacks = true;
            if !matches!(image.end, End::Exec | End::Running) {
                self.coverage += coverage;
            }
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
            Some(groups) => groups.image(image, &state.name),
            None => {
                let unwritten = self.report.image(image, verdict);
                self.check(unwritten);
            }
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.image(image);
        }
        if self.wants_owners() {
            state.own(image, self.ledger.judges(image));
        }
    }

    /// Whether it matters whose a call stack is.
    fn wants_owners(&self) -> bool {
        self.groups.is_none() || self.gathering.is_some()
    }

    fn stack(&mut self, saved: &SavedStack, state: &SavedFile) {
        self.has_stacks = true;
        let id = (saved.pid, saved.image);
        let share = &saved.share;
        let amount = |bytes, blocks| Amount { bytes, blocks };
        let allocated = amount(share.alloc_bytes, share.alloc_count);
        let leaked = amount(share.leaked_bytes, share.leaked_blocks);
        match &mut self.groups {
            Some(groups) => {
                groups.stack(id, &saved.stack, [allocated, leaked], share.reached);
            }
            None => {
                let owner = state.owners.get(&id);
                let comm = owner.map_or(&b""[..], |(program, ..)| &program.comm);
                // Only an image that has ended has leaked.
                if owner.is_some_and(|(_, end, _)| !matches!(end, End::Exec | End::Running)) {
                    let place = PlaceShare {
                        left: Unfreed::of(share),
                        judged: owner.is_some_and(|(.., judged)| *judged),
                        shown: true,
                        ..PlaceShare::default()
                    };
                    let (identity, named) = (saved.stack.identity, Some(&saved.stack));
                    self.places.add(comm, identity, &share.stack, named, place);
                }
                let unwritten = self.report.stack(&StackRow {
                    pid: saved.pid,
                    image: saved.image,
                    share,
                    stack: &saved.stack,
                    suppressed_by: None,
                    suppressed: Amount::default(),
                    kept: Amount::default(),
                });
                self.check(unwritten);
            }
        }
        if let Some(gathering) = &mut self.gathering {
            let owner = state.owners.get(&id);
            let program = owner.map(|(program, ..)| program);
            let no_labels = Labels::default();
            let share = SiteShare {
                image: id,
                exe: program.and_then(|program| program.exe.as_deref()),
                comm: program.map_or(b"", |program| &program.comm),
                labels: program.map_or(&no_labels, |program| &program.labels),
                end: owner.map_or(End::Running, |(_, end, _)| *end),
                allocated,
                leaked,
                reached: share.reached,
            };
            gathering.stack(share, &saved.stack);
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
            let mut groups = groups.finish();
            commands::sort(&mut groups, self.options.sort);
            let unwritten = self.report.groups(by, &groups);
            self.check(unwritten);
        }
        let places = std::mem::take(&mut self.places);
        summary.located = self.has_stacks.then(|| Located {
            // All of them have their names.
            places: places.largest(DEFAULT_PLACES, |stack| NamedStack {
                identity: 0,
                frames: Vec::new(),
                end: stack.end,
                guessed: stack.guessed,
            }),
            coverage: std::mem::take(&mut self.coverage),
            ..Located::default()
        });
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
    fn own(&mut self, image: &Image, judged: bool) {
        if self.owners.len() >= MOST_OWNERS {
            return;
        }
        let key = (image.exe.clone(), image.comm.clone(), image.labels.clone());
        let program = self.programs.entry(key).or_insert_with(|| {
            Arc::new(Owner {
                exe: image.exe.clone(),
                comm: image.comm.clone(),
                labels: image.labels.clone(),
            })
        });
        let owner = (program.clone(), image.end, judged);
        self.owners.insert((image.pid, image.image), owner);
    }
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
