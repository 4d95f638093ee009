//! Files that followed processes map executable: files that are new to the kernel side, and the answers to its
//! questions about them. An answer may put probes on the file.
//!
//! Examining a file is left to `find`. How processes wait is in `bpf/arrivals.bpf.h`.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread as threads;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore, MapFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::elf::file::Class;
use crate::find::Examined;
use crate::find::hooks::{Hook, LoaderHooks};
use crate::find::sites::ProbeSite;
use crate::kernel::attach::{Attached, How, Target, attach, attach_at, attach_hooks};
use crate::kernel::collector::Collector;
use crate::kernel::detach;
use crate::kernel::error::errno_of;
use crate::kernel::files::{
    Arrival, Key, Mapped, ProbedFile, by_stat, map_sites, unexamined, unexamined_for_now,
};
use crate::kernel::keeper;
use crate::kernel::method::{Holds, Method};
use crate::kernel::object::Object;
use crate::kernel::restore::restore;
use crate::kernel::rings::bytes_of;
use crate::kernel::skeletons::types::{
    file_flags, file_id, file_state, file_version, limits, site,
};
use crate::os::mapping::Mapping;
use crate::os::mount::in_own_mount;

/// How long the kernel may be too busy to look at one of memleak's own mappings.
const IDENTIFIED_WITHIN: Duration = Duration::from_secs(1);

impl Collector {
    /// The files that wait to be examined. The caller must answer each one, by [`answer`](Self::answer) or
    /// [`give_up`](Self::give_up). Then the caller calls [`answered`](Self::answered) once for all of them.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn arrivals(&mut self) -> Result<Vec<Arrival>> {
        if let Some(ring) = &self.arrivals {
            ring.consume()
                .context("cannot read the ring of files to examine")?;
        }
        let unseen = std::mem::take(&mut *self.unseen.borrow_mut());
        if !unseen.is_empty() {
            self.start_keeper();
        }
        Ok(unseen
            .into_iter()
            .map(|arrival| Arrival {
                mapping: Mapping {
                    pid: arrival.pid,
                    start: arrival.start,
                    end: arrival.end,
                    inode: arrival.file.inode,
                },
                file: arrival.file,
                version: arrival.version,
            })
            .collect())
    }

    /// Readable when a process wants to sleep that is held at its end. `None` if there is a keeper to read it.
    pub(super) fn sleepers(&self) -> Option<BorrowedFd<'_>> {
        let is_needed = self.readings.is_some() && self.keeper.get().is_none();
        let skel = self.object.newer().filter(|_| is_needed)?;
        Some(skel.maps.sleepers.as_fd())
    }

    /// Starts the keeper if a process wants to sleep.
    pub(super) fn start_keeper_if_needed(&self) {
        let Some(sleepers) = self.sleepers() else {
            return;
        };
        let mut fds = [PollFd::new(sleepers, PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            self.start_keeper();
        }
    }

    /// Lets processes sleep while they wait, from now on.
    fn start_keeper(&self) {
        self.keeper.get_or_init(|| match self.object.newer() {
            Some(skel) if self.holds == Holds::Everywhere => keeper::start(skel, &self.globals),
            _ => None,
        });
    }

    /// Probes a file, if it has anything to probe, before any process that could map it is followed. Returns the
    /// file's index among the files with probes, if it is one of them.
    ///
    /// # Errors
    /// The kernel refuses the probes, or there are more files than it can number.
    pub fn expect(&mut self, examined: Examined) -> Result<Option<u16>> {
        let (file, version) = self
            .identify(&examined.file)
            .with_context(|| format!("cannot map {}", examined.path.display()))?;
        let state = self.probe(&file, version, examined, None)?;
        self.learn(&file, file_state { version, ..state })?;
        Ok(u16::try_from(state.index).ok())
    }

    /// How the kernel identifies an open file, and the time of the file's last change.
    fn identify(&self, file: &File) -> Result<(file_id, file_version)> {
        let mapping = Mapped::at(file, 0)?;
        let address = mapping.address.as_ptr() as u64;
        let began = Instant::now();
        loop {
            let error = match self.object.identify_file(&self.globals, address) {
                Ok(identified) => return Ok((identified.file, identified.version)),
                Err(error) => error,
            };
            match errno_of(&error) {
                // The kernel has one lock for this on each CPU. An interrupt releases it.
                Some(libc::EBUSY) if began.elapsed() < IDENTIFIED_WITHIN => {
                    threads::sleep(Duration::from_micros(100));
                }
                // These are the programs for older kernels, loaded on a newer one. stat(2) does not tell a file of a
                // file system that lies over another from the file below.
                Some(libc::ENOENT) if matches!(self.object, Object::Older(_)) => {
                    return Ok(by_stat(&file.metadata()?));
                }
                _ => return Err(error.into()),
            }
        }
    }

    /// Tells the kernel what is known of a file that a process waits for. Puts probes on the file if it has
    /// anything to probe.
    ///
    /// # Errors
    /// The kernel refuses the probes, or there are more files than it can number. Then the caller must call
    /// [`give_up`](Self::give_up).
    pub fn answer(&mut self, arrival: &Arrival, examined: Examined) -> Result<()> {
        let pid = arrival.mapping.pid;
        let version = arrival.version;
        let state = self.probe(&arrival.file, version, examined, Some(pid))?;
        self.learn(&arrival.file, file_state { version, ..state })
    }

    /// Answers for a file that cannot be examined. With `forget`, no process has the file mapped any more, and
    /// the next process that maps it may ask again. Otherwise each process that maps it is reported as uncovered.
    ///
    /// # Errors
    /// The kernel cannot be told.
    pub fn give_up(&mut self, arrival: &Arrival, forget: bool) -> Result<()> {
        if forget {
            // Another process may have asked meanwhile, and may have its answer already.
            if let Some(skel) = self.object.newer() {
                let _ = skel.maps.files.delete(bytes_of(&arrival.file));
            }
            return Ok(());
        }
        let version = arrival.version;
        self.learn(
            &arrival.file,
            file_state {
                version,
                ..unexamined()
            },
        )
    }

    /// Lets the waiting processes look at the answers.
    pub fn answered(&mut self) {
        self.globals.answers.add(1);
    }

    /// Attaches probes, which may take seconds where the kernel does so one by one. The waiting processes wait on.
    fn attaching<T>(&self, attach: impl FnOnce() -> Result<T>) -> Result<T> {
        self.globals.attaching.set(1);
        threads::sleep(self.attach_delay);
        let attached = attach();
        self.globals.attaching.set(0);
        attached
    }

    /// From now on no process waits for answers.
    pub(super) fn stop_answering(&mut self) {
        self.globals.nobody_answers.set(1);
    }

    fn learn(&self, file: &file_id, state: file_state) -> Result<()> {
        // Only the object for newer kernels has processes that ask.
        let Some(skel) = self.object.newer() else {
            return Ok(());
        };
        let files = &skel.maps.files;
        files
            .update(bytes_of(file), bytes_of(&state), MapFlags::ANY)
            .context("cannot tell the kernel what is known of an examined file")
    }

    /// Probes a file, unless its probes are in place already. Returns what the kernel has to know of the file, except
    /// its version.
    fn probe(
        &mut self,
        id: &file_id,
        version: file_version,
        examined: Examined,
        pid: Option<u32>,
    ) -> Result<file_state> {
        let mut flags = 0;
        if examined.findings.stripped {
            flags |= file_flags::FILE_NO_SYMBOLS.0;
        }
        if examined.class == Class::Bits32 {
            flags |= file_flags::FILE_32BIT.0;
        }
        let key = (id.device, id.inode);
        let closing = self.closing.get(&key);
        if closing.is_some_and(|old| !old.is_finished()) {
            return Ok(unexamined_for_now());
        }
        let mut known = self.known.files.remove(&key).unwrap_or_default();
        let module = match &mut self.stacks {
            Some(stacks) => stacks.add_file(&examined.path, &examined.file, pid)?,
            None => 0,
        };
        let is_allocator = examined.findings.is_allocator();
        let findings = examined.findings;
        let mut sites = Vec::new();
        if is_allocator {
            sites = findings.sites;
        }
        let hooks = self.hooks(findings.loader_hooks);
        let exits = match self.readings {
            Some(_) => findings.exits,
            None => Vec::new(),
        };
        if known.sites != sites || known.hooks != hooks || known.exits != exits {
            if !known.links.is_empty() {
                let (path, file) = (&examined.path, &examined.file);
                return self.detach_overwritten(key, known, path, file, pid);
            }
            let _mapped = map_sites(&examined.file, &sites)
                .with_context(|| format!("cannot map {}", examined.path.display()))?;
            // A file that cannot get a mount of its own keeps the mount that it has.
            let own = in_own_mount(&examined.file, pid);
            let file = own.as_ref().unwrap_or(&examined.file);
            let path = examined.path.display().to_string();
            known = ProbedFile::default();
            if !hooks.is_empty() {
                known.links = self.attach_hooks(&examined.path, file, &hooks)?;
                known.hooks = hooks;
                self.object
                    .loaders()
                    .update(bytes_of(id), bytes_of(&version), MapFlags::ANY)
                    .context("cannot tell the kernel which dynamic loaders have probes")?;
            }
            if !sites.is_empty() {
                let target = self.target(examined.path, sites.clone())?;
                if let Some(readings) = &self.readings {
                    let frames = findings.exit_functions.frames(&examined.file);
                    readings.add_file(findings.heap, frames);
                }
                known.index = Some(target.index);
                known.links.extend(self.attach(&target, file)?);
                known.sites = sites;
                self.context.files.push(target.path.clone());
                self.targets.push(target);
            }
            if !exits.is_empty() {
                let links = self.attach_exits(file, &exits);
                let links = links.with_context(|| format!("cannot attach to _exit in {path}"))?;
                known.links.extend(links);
                known.exits = exits;
            }
        }
        let index = known.index.map_or(limits::NO_INDEX.0, u32::from);
        if !known.links.is_empty() {
            self.known.files.insert(key, known);
        }
        Ok(file_state {
            index,
            flags,
            module,
            ..file_state::default()
        })
    }

    /// Handles a file with probes that has other content now, so that the probes are inside its instructions.
    ///
    /// The probes are removed. The process that has just mapped the file gets the file's own bytes back. New probes
    /// must wait until the kernel has forgotten the old ones, and it does not do that while a process is held. So
    /// this process is reported as uncovered, and the next process that maps the file asks again.
    fn detach_overwritten(
        &mut self,
        key: Key,
        old: ProbedFile,
        path: &Path,
        file: &File,
        pid: Option<u32>,
    ) -> Result<file_state> {
        let offsets: Vec<u64> = old
            .sites
            .iter()
            .map(|site| site.file_offset)
            .chain(old.hooks.iter().map(|hook| hook.offset))
            .chain(old.exits.iter().copied())
            .collect();
        self.closing
            .insert(key, threads::spawn(move || detach::close(old.links)));
        if let Some(pid) = pid {
            restore(pid, file, &offsets).with_context(|| {
                format!(
                    "cannot take old breakpoints out of {}, which was overwritten",
                    path.display()
                )
            })?;
        }
        Ok(unexamined_for_now())
    }

    /// Makes the target for a file that is to be probed: assigns the indexes of the file and of its sites.
    fn target(&mut self, path: PathBuf, sites: Vec<ProbeSite>) -> Result<Target> {
        let first_site = self.known.sites;
        let next_site = first_site + sites.len() as u32;
        ensure!(
            self.targets.len() < limits::MAX_FILES.0 as usize && next_site <= limits::MAX_SITES.0,
            "cannot probe {}: {} files with allocators are being probed already",
            path.display(),
            self.targets.len()
        );
        for (found, number) in sites.iter().zip(first_site..) {
            let value = site {
                text_before: found.text_before,
                text_after: found.text_after,
                own_before: found.own_before,
                own_after: found.own_after,
                entry_before: found.placement.offset,
            };
            self.object
                .sites()
                .update(&number.to_ne_bytes(), bytes_of(&value), MapFlags::ANY)
                .context("cannot fill the table of probe sites")?;
        }
        self.known.sites = next_site;
        Ok(Target {
            index: self.targets.len() as u16,
            first_site,
            path,
            sites,
        })
    }

    fn attach(&self, target: &Target, file: &File) -> Result<Vec<Attached>> {
        let programs = self.object.programs(self.method);
        self.attaching(|| attach(self.how(), &programs, target, file))
    }

    fn how(&self) -> How<'_> {
        How {
            method: self.method,
            only: &self.only,
        }
    }

    /// The places in a loader that get probes. Perf-event uprobes are ended one by one, so they are few.
    fn hooks(&self, hooks: LoaderHooks) -> Vec<Hook> {
        match self.method <= Method::Multi || self.holds != Holds::Nowhere {
            true => hooks.cheap,
            false => hooks.few,
        }
    }

    fn attach_exits(&self, file: &File, exits: &[u64]) -> Result<Vec<Attached>> {
        let Some(program) = self.object.at_end(self.holds) else {
            return Ok(Vec::new());
        };
        self.attaching(|| attach_at(self.how(), program, file, exits))
    }

    fn attach_hooks(&self, path: &Path, file: &File, hooks: &[Hook]) -> Result<Vec<Attached>> {
        let program = self.object.at_loader(self.holds);
        self.attaching(|| attach_hooks(self.how(), program, path, file, hooks))
    }
}
