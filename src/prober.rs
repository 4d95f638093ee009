//! Keeps the probes where the allocators are: finds them before the command starts, and looks at what its
//! tree brings later while it waits.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::allocator::{self, Examined, loader::Environment, mapped::Mapping};
use crate::cli;
use crate::collect::{Arrival, Collector, Holds, Settings};
use crate::launch::Suspended;
use crate::probe::attach::Target;
use crate::probe::placement::Placement;
use crate::probe::sites::Site;
use crate::probe::spec::{self, Spec};
use crate::probe::table::Table;
use crate::root::Root;
use crate::say::say;

/// Each file with probes takes two descriptors, and a tree may bring hundreds. The command, forked already,
/// keeps the limit that it was given.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // What is not enough will show where it is not.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The kernel's side, and what is needed to look at files.
pub struct Prober {
    pub collector: Collector,
    /// The functions that are looked for.
    table: Table,
    /// Rows of the table that get no probe, to see that this is noticed.
    left_out: Vec<String>,
    verbose: bool,
    /// Waited before arrivals are looked at, for tests of what happens meanwhile.
    delay: Duration,
}

impl Prober {
    /// Loads the programs, puts the probes in, and follows the command from its exec on.
    ///
    /// # Errors
    /// The kernel refuses, or there is nothing to probe.
    pub fn start(options: &cli::Run, command: &Suspended) -> Result<Self> {
        raise_descriptor_limit();
        let environment = Environment::of_the_command();
        let mut settings = Settings {
            max_blocks: options.max_allocs,
            method: options.method,
            floor: options.floor,
            all_late: options.late_threads,
            holds: options.holds,
        };
        let table = Table::new(user_allocators(&options.allocator)?)?;
        loop {
            let mut prober = Prober {
                collector: Collector::load(&settings)?,
                table: table.clone(),
                left_out: options.without_probe.clone(),
                verbose: options.report.verbose,
                delay: Duration::from_millis(options.hold_delay),
            };
            let expected = allocator::at_start(command.candidates(), &environment, &table)?;
            match prober.expect(expected) {
                Ok(()) => {
                    prober.collector.follow(command.pidfd())?;
                    prober.collector.watch_signals(command.pid());
                    return Ok(prober);
                }
                // What loads need not be something that this kernel can attach.
                Err(error) => match prober.collector.method().next_best() {
                    Some(next) if options.method.is_none() => settings.method = Some(next),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Puts probes on the files that the command is known to map.
    fn expect(&mut self, files: Vec<Examined>) -> Result<()> {
        for file in files {
            let file = self.with_wanted(file);
            self.collector.expect(file)?;
        }
        ensure!(
            !self.collector.targets().is_empty() || self.collector.holds() == Holds::Everywhere,
            "no C library found: neither the command nor /bin/sh is a dynamically linked program"
        );
        self.explain(0);
        Ok(())
    }

    /// Examines the files that processes of the tree have brought, while they wait for it.
    ///
    /// # Errors
    /// The kernel cannot be asked, or told. What is wrong with a single file is said, and shows in the rows of
    /// those who use it.
    pub fn examine_arrivals(&mut self) -> Result<()> {
        let arrivals = self.collector.arrivals()?;
        if arrivals.is_empty() {
            return Ok(());
        }
        sleep(self.delay);
        let known = self.collector.targets().len();
        for arrival in &arrivals {
            self.examine(arrival)?;
            self.collector.answered();
        }
        self.explain(known);
        Ok(())
    }

    fn examine(&mut self, arrival: &Arrival) -> Result<()> {
        let (path, file) = match arrival.mapping.open() {
            Ok(opened) => opened,
            Err(error) => {
                let gone = error.kind() == io::ErrorKind::NotFound;
                if !gone {
                    let Mapping { pid, inode, .. } = arrival.mapping;
                    say(&format!(
                        "cannot examine a file (inode {inode}) that process {pid} executes: {error}"
                    ));
                }
                return self.collector.give_up(arrival, gone);
            }
        };
        // Where the process is gone, nobody needs what was split off its file.
        let root = Root::of_process(arrival.mapping.pid).unwrap_or_else(|_| Root::ours());
        let examined =
            Examined::look(path, file, &root, &self.table).map(|file| self.with_wanted(file));
        if let Ok(Examined { path, findings, .. }) = &examined {
            for (symbol, given_as) in &findings.user_missing {
                say(&format!(
                    "--allocator {given_as}: {} has no function '{symbol}'",
                    path.display()
                ));
            }
        }
        match examined.and_then(|examined| self.collector.answer(arrival, examined)) {
            Ok(()) => Ok(()),
            Err(error) => {
                say(&format!("{error:#}"));
                self.collector.give_up(arrival, false)
            }
        }
    }

    fn with_wanted(&self, mut file: Examined) -> Examined {
        let unwanted = |site: &Site| self.left_out.iter().any(|name| *name == site.row.name);
        file.findings.sites.retain(|site| !unwanted(site));
        file
    }

    /// Says where each probe sits, and why there, from the file with number `from` on.
    fn explain(&self, from: usize) {
        if !self.verbose {
            return;
        }
        for Target { sites, path, .. } in &self.collector.targets()[from..] {
            for site in sites {
                let Placement {
                    offset,
                    instruction,
                    kind,
                    reason,
                } = &site.placement;
                say(&format!(
                    "probe {} in {}: {:+} {instruction} ({kind}): {reason}",
                    site.symbol,
                    path.display(),
                    // Where a function returns may lie before it.
                    offset.cast_signed(),
                ));
            }
        }
    }
}

/// The allocators that the user describes.
fn user_allocators(specs: &[Spec]) -> Result<Vec<spec::Allocator>> {
    let mut allocators = Vec::new();
    for spec in specs {
        match spec {
            Spec::One(allocator) => allocators.push(allocator.clone()),
            Spec::File(path) => {
                let context = || format!("--allocator {}", path.display());
                let text = fs::read_to_string(path).with_context(context)?;
                allocators.extend(spec::parse_toml(&text, path).with_context(context)?);
            }
        }
    }
    Ok(allocators)
}
