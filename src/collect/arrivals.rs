//! Files that followed processes map to execute: which are known, which are asked about, and the probes
//! that the answers put in.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{Link, MapCore, MapFlags};

use super::{Collector, bytes_of, close, shared};
use crate::allocator::mapped::Mapping;
use crate::allocator::{Examined, Identity};
use crate::bpf::types::{file_flags, file_id, file_state, file_version, limits, site};
use crate::elf_file::Class;
use crate::probe::attach::{Method, Programs, Target, attach, attach_hooks};
use crate::probe::elf::Site;

/// A file that a process waits for to be examined.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub mapping: Mapping,
    file: file_id,
    version: file_version,
}

/// What is known of the files examined so far, by their device and inode.
#[derive(Default)]
pub(super) struct Known {
    files: HashMap<(u64, u64), Entry>,
    sites: u32,
}

/// A file that carries probes.
#[derive(Default)]
struct Entry {
    index: Option<u16>,
    sites: Vec<Site>,
    hooks: Vec<u64>,
    links: Vec<Link>,
}

impl Known {
    pub(super) fn take_links(&mut self) -> Vec<Link> {
        self.files
            .values_mut()
            .flat_map(|entry| std::mem::take(&mut entry.links))
            .collect()
    }
}

impl Collector {
    /// The files that wait to be examined. Each must be answered, by [`answer`](Self::answer) or
    /// [`give_up`](Self::give_up), then all of them at once by [`answered`](Self::answered).
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn arrivals(&mut self) -> Result<Vec<Arrival>> {
        self.arrivals
            .consume()
            .context("cannot read the ring of files to examine")?;
        let unseen = std::mem::take(&mut *self.unseen.borrow_mut());
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

    /// Puts probes on a file if it has anything to probe, before anyone is followed who could map it.
    ///
    /// # Errors
    /// The kernel refuses the probes, or there are more files than it can number.
    pub fn expect(&mut self, examined: Examined) -> Result<()> {
        let identity = examined.identity;
        let state = self.probe(examined)?;
        // The kernel's number of a device, as stat(2) tells it: where a file system has several under one
        // name (btrfs, overlayfs), the file will be asked about when it comes.
        let device =
            u64::from(libc::major(identity.device)) << 20 | u64::from(libc::minor(identity.device));
        let file = file_id {
            inode: identity.inode,
            device,
        };
        let version = file_version {
            changed_sec: identity.changed.0,
            changed_nsec: identity.changed.1 as u32,
            ..file_version::default()
        };
        self.learn(&file, file_state { version, ..state })
    }

    /// Tells the kernel what a file is that a process waits for, and puts probes on it if it has anything to
    /// probe.
    ///
    /// # Errors
    /// The kernel refuses the probes, or there are more files than it can number: [`give_up`](Self::give_up).
    pub fn answer(&mut self, arrival: &Arrival, examined: Examined) -> Result<()> {
        let state = self.probe(examined)?;
        let version = arrival.version;
        self.learn(&arrival.file, file_state { version, ..state })
    }

    /// A file that waits cannot be examined. If nobody has it mapped any more (`forget`), the next one who
    /// has may ask again; else whoever maps it is told to be uncovered.
    ///
    /// # Errors
    /// The kernel cannot be told.
    pub fn give_up(&mut self, arrival: &Arrival, forget: bool) -> Result<()> {
        if forget {
            // Who else asks meanwhile may have an answer already.
            let _ = self.skel.maps.files.delete(bytes_of(&arrival.file));
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

    /// Lets those who wait look at the answers.
    pub fn answered(&mut self) {
        if let Some(bss) = self.skel.maps.bss_data.as_deref_mut() {
            shared(&mut bss.answers).fetch_add(1, Ordering::Release);
        }
    }

    /// From now on nobody waits for answers.
    pub(super) fn stop_answering(&mut self) {
        if let Some(bss) = self.skel.maps.bss_data.as_deref_mut() {
            bss.nobody_answers = 1;
        }
    }

    fn learn(&self, file: &file_id, state: file_state) -> Result<()> {
        let files = &self.skel.maps.files;
        files
            .update(bytes_of(file), bytes_of(&state), MapFlags::ANY)
            .context("cannot tell the kernel of a file that was examined")
    }

    /// Probes a file, unless that was done before. Returns what the kernel is to know of it, but for its
    /// version.
    fn probe(&mut self, examined: Examined) -> Result<file_state> {
        let mut flags = 0;
        if examined.findings.stripped {
            flags |= file_flags::FILE_NO_SYMBOLS.0;
        }
        if examined.class == Class::Bits32 {
            flags |= file_flags::FILE_32BIT.0;
        }
        let Identity { device, inode, .. } = examined.identity;
        let mut known = self
            .known
            .files
            .remove(&(device, inode))
            .unwrap_or_default();
        let findings = examined.findings;
        let mut sites = Vec::new();
        if examined.is_allocator {
            sites = findings.sites;
        }
        let hooks = findings.loader_hooks;
        if known.sites != sites || known.hooks != hooks {
            // Another file has been written over it: the old probes would sit inside its instructions.
            close(std::mem::take(&mut known.links));
            known = Entry::default();
            if !hooks.is_empty() {
                known.links = self.attach_hooks(&examined.path, &examined.file, &hooks)?;
                known.hooks = hooks;
            }
            if !sites.is_empty() {
                let target = self.target(examined.path, sites.clone())?;
                known.index = Some(target.index);
                known.links.extend(self.attach(&target, &examined.file)?);
                known.sites = sites;
                self.context.files.push(target.path.clone());
                self.targets.push(target);
            }
        }
        let index = known.index.map_or(limits::NO_INDEX.0, u32::from);
        if !known.links.is_empty() {
            self.known.files.insert((device, inode), known);
        }
        Ok(file_state {
            index,
            flags,
            ..file_state::default()
        })
    }

    /// A file with probes to be, with its number and those of its sites.
    fn target(&mut self, path: PathBuf, sites: Vec<Site>) -> Result<Target> {
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
                entry_before: found.placement.offset,
            };
            self.skel
                .maps
                .sites
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

    fn attach(&self, target: &Target, file: &File) -> Result<Vec<Link>> {
        let progs = &self.skel.progs;
        let programs = match (&self.floor, self.method) {
            (Some(floor), _) => Programs::Session {
                alloc: &floor.progs.alloc_session,
                entry: &floor.progs.entry_only,
            },
            (None, Method::Session) => Programs::Session {
                alloc: &progs.alloc_session,
                entry: &progs.entry_only,
            },
            (None, _) => Programs::EntryReturn {
                alloc: &progs.alloc_enter,
                alloc_return: &progs.alloc_return,
                entry: &progs.entry_only,
            },
        };
        attach(self.method, &programs, target, file)
    }

    fn attach_hooks(&self, path: &Path, file: &File, hooks: &[u64]) -> Result<Vec<Link>> {
        if !self.holds.at_loader() {
            return Ok(Vec::new());
        }
        let program = &self.skel.progs.loader_maps;
        attach_hooks(self.method, program, path, file, hooks)
    }
}

fn unexamined() -> file_state {
    file_state {
        index: limits::NO_INDEX.0,
        flags: file_flags::FILE_UNEXAMINED.0,
        ..file_state::default()
    }
}
