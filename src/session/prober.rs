//! Keeps probes on all allocators. It finds allocators before the command starts, or in the files that running
//! processes have mapped. While processes are held, it examines the files that they map later.
//!
//! Which functions a file has is found in `find`. Probes are attached in `kernel`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::thread::sleep;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::elf::file::Class;
use crate::find::functions::Table;
use crate::find::loader::Environment;
use crate::find::notation::{self, Spec};
use crate::find::sites::ProbeSite;
use crate::find::{self, Examined};
use crate::kernel::attach::Target;
use crate::kernel::collector::Collector;
use crate::kernel::files::Arrival;
use crate::kernel::method::Holds;
use crate::kernel::settings::{Recorded, Scope, Settings, Wanted};
use crate::launch::Suspended;
use crate::options::switches::Switches;
use crate::options::watch::Watch;
use crate::options::{Probes, Probing};
use crate::os::copies::CoveredFile;
use crate::os::mapping::Mapping;
use crate::os::namespace::MountNamespace;
use crate::os::processes::{self, Process, levels_of_proc_above};
use crate::os::root::Root;
use crate::os::say::say;
use crate::os::stages;
use crate::session::inside;

/// Raises memleak's limit of descriptors. Each file with probes needs two descriptors, and a tree may map hundreds of
/// files. The command is forked already, and keeps its original limit.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If this fails, a later attach reports that the descriptors are too few.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The most processes that get probes for themselves only. Each call of one of them walks over the probes of all. With
/// more processes that costs more than it spares others.
const MOST_FILTERED: usize = 8;

/// The kernel's side, and what is needed to examine files.
pub struct Prober {
    pub collector: Collector,
    /// The functions that are searched for.
    table: Table,
    /// Names of functions that get no probe. Tests use this to check that memleak notices the gap.
    left_out: Vec<String>,
    verbose: bool,
    /// Delay before arrivals are examined. Tests use this to observe processes that are held.
    delay: Duration,
}

impl Prober {
    /// Loads the programs, attaches the probes, and follows the command from its exec on.
    ///
    /// # Errors
    /// The kernel refuses, or there is nothing to probe.
    pub fn start(
        probing: &Probing,
        probes: Probes,
        recorded: Recorded,
        switches: Switches,
        verbose: bool,
        command: &Suspended,
    ) -> Result<Self> {
        let environment = Environment::of_the_command();
        let mut settings = settings(probing, &switches, recorded);
        settings.inside = probes == Probes::Inside;
        settings.compares = settings.inside && switches.compare;
        let table = table(probing)?;
        let found = |table: &Table| find::at_start(command.candidates(), &environment, table);
        let private = command
            .namespace()
            .map(|namespace| private_files(found(&table)?, namespace, probes, &switches, verbose));
        let private = private.transpose()?;
        let expected = |table: &Table| match &private {
            // There is only one copy of each, and nobody can change it.
            Some(files) => {
                let files = files.iter().map(Examined::try_clone);
                files
                    .collect::<io::Result<_>>()
                    .context("cannot duplicate the descriptors of private copies")
            }
            None => found(table),
        };
        let (mut prober, ()) = Self::load(table, switches, settings, verbose, |prober| {
            let files = expected(&prober.table)?;
            stages::mark("files read");
            prober.expect(files)
        })?;
        prober.collector.follow(command.pid(), command.pidfd())?;
        prober.collector.watch_signals(command.pid());
        Ok(prober)
    }

    /// Loads the programs, attaches probes to the files that these processes and their running children have mapped, and
    /// follows them from now on. Returns how many children there are, with their children.
    ///
    /// # Errors
    /// The kernel refuses, or one of `processes` has nothing to probe.
    pub fn watch(options: &Watch, wanted: &Wanted, processes: &[Process]) -> Result<(Self, usize)> {
        let switches = options.probing.test.switches();
        let mut settings = settings(&options.probing, &switches, options.recorded());
        let children = !options.no_children;
        settings.scope = Scope::Chosen { children };
        settings.wanted = wanted.clone();
        // Probes for single processes would miss a child's first calls. The kernel knows a process by its leader.
        if options.no_children
            && processes.len() <= MOST_FILTERED
            && processes.iter().all(Process::has_leader)
        {
            settings.only = processes.iter().map(|process| process.pid).collect();
        }
        let verbose = options.shown.verbose;
        let table = table(&options.probing)?;
        let expect = |prober: &mut Self| {
            let mut subtree = Subtree::of(processes);
            for process in processes {
                prober.collector.choose(process)?;
                prober.expect_mapped_by(process, &mut subtree.files)?;
            }
            if children {
                prober.expect_children(&mut subtree)?;
            }
            prober.explain(0);
            Ok(subtree)
        };
        let (mut prober, mut subtree) = Self::load(table, switches, settings, verbose, expect)?;
        prober.collector.adopt()?;
        if children {
            // These were started after the last look, and were adopted with the others.
            let known = prober.collector.targets().len();
            prober.expect_new_children(&mut subtree)?;
            prober.explain(known);
        }
        Ok((prober, subtree.children))
    }

    /// Does the same for every process of the machine that `wanted` selects.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn watch_all(options: &Watch, wanted: &Wanted) -> Result<Self> {
        let switches = options.probing.test.switches();
        let mut settings = settings(&options.probing, &switches, options.recorded());
        settings.scope = Scope::All;
        settings.wanted = wanted.clone();
        let verbose = options.shown.verbose;
        let table = table(&options.probing)?;
        let (mut prober, ()) = Self::load(table, switches, settings, verbose, Self::expect_all)?;
        prober.collector.adopt()?;
        Ok(prober)
    }

    /// Loads the programs for the best method by which `expect` can attach its probes. Returns the result of `expect`,
    /// too.
    fn load<T>(
        table: Table,
        switches: Switches,
        mut settings: Settings,
        verbose: bool,
        expect: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<(Self, T)> {
        raise_descriptor_limit();
        loop {
            let mut prober = Prober {
                collector: Collector::load(&settings)?,
                table: table.clone(),
                left_out: switches.without_probe.clone(),
                verbose,
                delay: switches.hold_delay,
            };
            match expect(&mut prober) {
                Ok(expected) => return Ok((prober, expected)),
                // A kernel may load programs that it cannot attach.
                Err(error) => match prober.collector.method().next_best() {
                    Some(next) if switches.method.is_none() && !error.is::<Unwatchable>() => {
                        settings.method = Some(next);
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Attaches probes to the files that a process has mapped, and adds them to `files`.
    fn expect_mapped_by(&mut self, process: &Process, files: &mut Looked) -> Result<()> {
        let mut classes = Vec::new();
        let mut stripped = false;
        let mut allocators = 0;
        let mut probed = Vec::new();
        for (mapping, device) in process.mapped()? {
            let Some(examined) = self.look(&mapping)? else {
                continue;
            };
            classes.push(examined.class);
            stripped |= examined.findings.stripped;
            allocators += usize::from(examined.findings.is_allocator());
            let number = self.collector.expect(examined)?;
            files.insert((device, mapping.inode), number);
            probed.extend(number);
        }
        let pid = process.pid;
        self.collector.has_mapped(pid, &probed);
        let why = if allocators > 0 {
            return Ok(());
        } else if classes.contains(&Class::Bits32) {
            "it is a 32-bit program"
        } else if stripped {
            "its program is static and has no symbols (--allocator needs a program with symbols)"
        } else {
            "none of its mapped files has an allocator (--allocator can name functions of the program)"
        };
        Err(Unwatchable { pid, why }.into())
    }

    /// Attaches probes to the files that the running children of the chosen processes have mapped. A child without an
    /// allocator has a row that says so.
    fn expect_children(&mut self, subtree: &mut Subtree) -> Result<()> {
        for _ in 0..MOST_LOOKS {
            let new = self.expect_new_children(subtree)?;
            for (pid, probed) in &new {
                self.collector.has_mapped(*pid, probed);
            }
            if new.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Attaches probes to the files of the children that are not in the subtree yet. Returns their pids, each with the
    /// indexes of its probed files.
    fn expect_new_children(&mut self, subtree: &mut Subtree) -> Result<Vec<(u32, Vec<u16>)>> {
        let chosen = self.collector.chosen()?;
        let mut new = Vec::new();
        for pid in chosen {
            if !subtree.known.insert(pid) {
                continue;
            }
            let Some(child) = Process::open_living(pid)? else {
                continue;
            };
            new.push((pid, self.expect_mapped(child.proc_pid, &mut subtree.files)?));
            subtree.children += 1;
        }
        Ok(new)
    }

    /// Attaches probes to the files that the processes of the machine have mapped. Processes that start meanwhile do
    /// not have to wait for that.
    fn expect_all(&mut self) -> Result<()> {
        // Otherwise /proc shows other pids than the rows have.
        let own_pids = levels_of_proc_above() == 0;
        let mut files = HashMap::new();
        for pid in processes::all()? {
            let probed = self.expect_mapped(pid, &mut files)?;
            if own_pids {
                self.collector.has_mapped(pid, &probed);
            }
            self.examine_arrivals()?;
        }
        self.explain(0);
        Ok(())
    }

    /// Attaches probes to the files that a process has mapped, by its pid in /proc. Returns the indexes of those that
    /// are probed. A file that cannot be examined or probed shows in the rows of the processes that use it.
    fn expect_mapped(&mut self, pid: u32, files: &mut Looked) -> Result<Vec<u16>> {
        let mut probed = Vec::new();
        // A process that has exited, or that has no memory, has nothing mapped.
        for (mapping, device) in processes::mapped(pid).unwrap_or_default() {
            let number = match files.entry((device, mapping.inode)) {
                Entry::Occupied(seen) => *seen.get(),
                Entry::Vacant(unseen) => *unseen.insert(self.expect_file(&mapping)?),
            };
            probed.extend(number);
        }
        Ok(probed)
    }

    /// Attaches probes to a mapped file. Returns the file's index, if it is probed.
    fn expect_file(&mut self, mapping: &Mapping) -> Result<Option<u16>> {
        let Ok(Some(examined)) = self.look(mapping) else {
            return Ok(None);
        };
        self.collector.expect(examined).or_else(|error| {
            // If the first file fails, all files do.
            ensure!(!self.collector.targets().is_empty(), error);
            say(&format!("{error:#}"));
            Ok(None)
        })
    }

    /// Examines a mapped file. `None` if the mapping no longer exists.
    fn look(&self, mapping: &Mapping) -> Result<Option<Examined>> {
        let (path, file) = match mapping.open() {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let Mapping { pid, inode, .. } = mapping;
                return Err(error).with_context(|| {
                    format!("cannot examine a file (inode {inode}) that process {pid} executes")
                });
            }
        };
        // If the process has exited, the file's separate debug file is not needed any more.
        let root = Root::of_process(mapping.pid).unwrap_or_else(|_| Root::ours());
        Examined::look(path, file, &root, &self.table).map(|file| Some(self.with_wanted(file)))
    }

    /// Attaches probes to the files that the command will map, as far as they are known before its start.
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

    /// Examines the files that processes have newly mapped, while these processes are held.
    ///
    /// # Errors
    /// Reading the arrivals from the kernel or answering them fails. An error of a single file is only said, and shows
    /// in the rows of the processes that use the file.
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
        let examined = match self.look(&arrival.mapping) {
            Ok(None) => return self.collector.give_up(arrival, true),
            Ok(Some(examined)) => Ok(examined),
            Err(error) => Err(error),
        };
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
        let unwanted = |site: &ProbeSite| self.left_out.iter().any(|name| *name == site.row.name);
        file.findings.sites.retain(|site| !unwanted(site));
        file
    }

    /// Says for each probe its place and the reason for that place, from the file with index `from` on.
    fn explain(&self, from: usize) {
        if !self.verbose {
            return;
        }
        for Target { sites, path, .. } in &self.collector.targets()[from..] {
            for site in sites {
                say(&format!(
                    "probe {} in {}: {}",
                    site.symbol,
                    path.display(),
                    site.placement,
                ));
            }
        }
    }
}

/// How often memleak looks for new children before it follows them. Two looks find all children of processes that start
/// none meanwhile. What starts after the last look has the same files as its parent, or is examined after its exec.
const MOST_LOOKS: usize = 8;

/// The index of each file that was looked at, if it is probed. A file is known by its device and inode.
type Looked = HashMap<(String, u64), Option<u16>>;

/// The processes of -p and their children, as far as they were found.
struct Subtree {
    /// The pids of all.
    known: HashSet<u32>,
    /// How many children were found alive.
    children: usize,
    /// The files of all.
    files: Looked,
}

impl Subtree {
    fn of(processes: &[Process]) -> Self {
        Self {
            known: processes.iter().map(|process| process.pid).collect(),
            children: 0,
            files: Looked::new(),
        }
    }
}

/// Puts private copies in the place of the files that get probes: in the command's mount namespace, and here.
///
/// # Errors
/// As for [`MountNamespace::cover`].
fn private_files(
    mut files: Vec<Examined>,
    namespace: &MountNamespace,
    probes: Probes,
    switches: &Switches,
    verbose: bool,
) -> Result<Vec<Examined>> {
    raise_descriptor_limit();
    let edited = match probes {
        Probes::Inside => inside::edit_libraries(&mut files, switches, verbose)?,
        Probes::Shared | Probes::Private => HashMap::new(),
    };
    let mut probed: Vec<_> = files
        .iter_mut()
        .filter(|file| file.findings.is_probed())
        .collect();
    let covered = probed.iter().map(|file| CoveredFile {
        file: &file.file,
        content: edited.get(&file.path).map(Vec::as_slice),
    });
    let originals: Vec<_> = covered.collect();
    let covered = namespace
        .cover(&originals, !switches.no_mount_groups)
        .with_context(|| format!("--probes={probes} does not work here, try --probes=shared"))?;
    for (file, copy) in probed.iter_mut().zip(covered.copies) {
        file.file = copy;
    }
    if let Some(why) = covered.apart.filter(|_| verbose) {
        say(&format!(
            "mounts that the command makes may stay in its own mount namespace, and it may not see those made outside: \
             {} (the mounts here are not shared, or Linux is older than 5.15)",
            why.desc()
        ));
    }
    Ok(files)
}

/// Why a process cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} has no allocator that can be probed: {why}")]
struct Unwatchable {
    pid: u32,
    why: &'static str,
}

/// The allocators to look for.
fn table(probing: &Probing) -> Result<Table> {
    Ok(Table::new(user_allocators(&probing.allocator)?)?)
}

fn settings(probing: &Probing, switches: &Switches, recorded: Recorded) -> Settings {
    Settings {
        max_blocks: probing.max_allocs,
        method: switches.method,
        all_late: switches.late_threads,
        misses: switches.missed_events,
        attach_delay: switches.attach_delay,
        holds: switches.holds,
        scope: Scope::Tree,
        only: Vec::new(),
        inside: false,
        compares: false,
        wanted: Wanted::default(),
        recorded,
    }
}

/// The allocators that the user has described.
fn user_allocators(specs: &[Spec]) -> Result<Vec<notation::Allocator>> {
    let mut allocators = Vec::new();
    for spec in specs {
        match spec {
            Spec::One(allocator) => allocators.push(allocator.clone()),
            Spec::File(path) => {
                let context = || format!("--allocator {}", path.display());
                let text = fs::read_to_string(path).with_context(context)?;
                allocators.extend(notation::parse_toml(&text, path).with_context(context)?);
            }
        }
    }
    Ok(allocators)
}
