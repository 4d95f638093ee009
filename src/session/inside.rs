//! `run --probes=inside`: which files get a copy that counts by itself, and which probes stay on it. The copy is made in
//! `inside`.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::code::placement::{Kind, Placement, Reason};
use crate::find::Examined;
use crate::find::functions::{Family, Row};
use crate::find::notation::{Action, Verb};
use crate::find::sites::ProbeSite;
use crate::inside::{Edited, Unfit, edit, uses_own_word};
use crate::kernel::features::tells_before_memory_goes;
use crate::kernel::method::Method;
use crate::options::Run;
use crate::options::switches::Switches;
use crate::os::say::say;

/// # Errors
/// Counting inside is impossible here, or an option was given that it cannot do.
pub(super) fn check(options: &Run) -> Result<()> {
    if let Some(other) = options.against_inside() {
        bail!("--probes=inside cannot do {other}: use --probes=private");
    }
    // The programs for older kernels, which a test chooses, read no counters either.
    let chosen = options.probing.test.switches().method;
    ensure!(
        tells_before_memory_goes() && chosen != Some(Method::Separate),
        "--probes=inside needs Linux 6.16: older kernels tell of the end of a process when its memory, and with it what \
         was counted there, has gone. Use --probes=private"
    );
    Ok(())
}

/// Makes copies of the C libraries that count by themselves, by their paths. Changes the findings: what a copy counts
/// needs no probe. A library that is not edited keeps its probes.
///
/// # Errors
/// A file cannot be read.
pub(super) fn edit_libraries(
    files: &mut [Examined],
    switches: &Switches,
    verbose: bool,
) -> Result<HashMap<PathBuf, Vec<u8>>> {
    let loader = files.iter().filter(|file| file.findings.is_loader);
    let loaders_fit = loader
        .map(|loader| Ok(uses_own_word(&content(loader)?) == Ok(false)))
        .collect::<Result<Vec<_>>>()?;
    let mut edited = HashMap::new();
    for file in files {
        let findings = &file.findings;
        if !findings.is_libc || findings.is_loader || findings.is_static {
            continue;
        }
        let copy = match loaders_fit.contains(&false) || loaders_fit.is_empty() {
            true => Err(Unfit::Word),
            false => edit(&content(file)?),
        };
        match copy.and_then(|copy| probe_less(file, copy, switches)) {
            Ok(copy) => {
                edited.insert(file.path.clone(), copy);
            }
            Err(why) if verbose => say(&format!(
                "{} is counted by uprobes: {why}",
                file.path.display()
            )),
            Err(_) => {}
        }
    }
    Ok(edited)
}

fn content(file: &Examined) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut opened = &file.file;
    opened
        .rewind()
        .and_then(|()| opened.read_to_end(&mut content))
        .with_context(|| format!("cannot read {}", file.path.display()))?;
    Ok(content)
}

/// Leaves out the probes on what a copy counts, and adds the one at which a process tells of its counters. Returns the
/// copy.
fn probe_less(file: &mut Examined, copy: Edited, switches: &Switches) -> Result<Vec<u8>, Unfit> {
    let sites = &mut file.findings.sites;
    let counted = |site: &ProbeSite| {
        let mut counted = copy.counted.iter();
        counted
            .find(|(name, _)| *name == site.symbol)
            .map(|found| found.1)
    };
    // What the copy does not count would call what it counts.
    let other = |site: &&ProbeSite| counted(site).is_none() && site.row.action.verb != Verb::Start;
    if let Some(other) = sites.iter().find(other) {
        return Err(Unfit::Symbol(other.symbol.clone()));
    }
    // Beside a library that counts by itself, the probes then count less.
    if !switches.without_probe.is_empty() && !switches.compare {
        return Err(Unfit::Lacks("probes of all its functions (a test)"));
    }
    match switches.compare {
        false => sites.retain(|site| counted(site).is_none()),
        true => {
            for site in &mut *sites {
                if let Some(entry) = counted(site) {
                    move_to(site, entry, &copy);
                }
            }
            // Some functions lead to the code of another one.
            let mut entries = HashSet::new();
            sites.retain(|site| counted(site).is_none() || entries.insert(site.file_offset));
        }
    }
    let mut announced = ProbeSite {
        row: Row {
            name: "inside".into(),
            family: Family::Prefix(""),
            action: Action::bare(Verb::Inside),
        },
        symbol: "inside_announced".to_owned(),
        file_offset: copy.announced,
        placement: Placement {
            offset: 0,
            instruction: "nop".to_owned(),
            kind: Kind::Emulated,
            reason: Reason::Entry,
        },
        text_before: 0,
        text_after: 0,
        own_before: 0,
        own_after: 0,
    };
    announced.text_after = copy.bytes.len() as u64 - announced.file_offset;
    sites.push(announced);
    Ok(copy.bytes)
}

/// Puts a probe at the entry of what a function's symbol leads to in a copy. The code that was added is the allocator's
/// own. It is behind the library's.
fn move_to(site: &mut ProbeSite, entry: u64, copy: &Edited) {
    site.file_offset = entry;
    site.placement.offset = 0;
    site.text_before = entry;
    site.text_after = copy.bytes.len() as u64 - entry;
    let first = copy.counted.iter().map(|&(_, entry)| entry).min();
    site.own_before = entry - first.unwrap_or(entry);
    site.own_after = site.text_after;
}
