//! Probes that do nothing. `doctor` measures with them what a probe costs, and `warmth` makes the first attach quick.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_rs::ProgramAttachType;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::find::sites::ProbeSite;
use crate::kernel::attach::{self, Attached, How, Programs, Target};
use crate::kernel::method::Method;
use crate::kernel::pins::Pins;
use crate::kernel::skeletons::{EmptySkel, EmptySkelBuilder, FloorSkel, FloorSkelBuilder};

/// Probes that stay attached until this is dropped. Dropping takes some 50 ms.
pub struct EmptyProbes {
    method: Method,
    links: Vec<Attached>,
    skel: EmptySkel<'static>,
    _allocating: Option<FloorSkel<'static>>,
}

impl EmptyProbes {
    /// Attaches programs that do nothing to an allocator, as memleak attaches those that count. Takes session
    /// uprobes (Linux 6.13). If it `walks`, they ask the kernel for the stack to which each call returns
    /// (`bpf_get_stackid`).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn on_allocator(
        path: PathBuf,
        file: &File,
        sites: Vec<ProbeSite>,
        walks: bool,
    ) -> Result<Self> {
        let context = "cannot load programs that do nothing";
        // Loaded once, and needed until memleak exits.
        let mut open = FloorSkelBuilder::default()
            .open(Box::leak(Box::new(MaybeUninit::uninit())))
            .context(context)?;
        let rodata = open.maps.rodata_data.as_deref_mut();
        rodata.context("the programs have no settings")?.walks = walks;
        if !walks {
            open.maps.found_stacks.set_autocreate(false)?;
        }
        let floor = open.load().context(context)?;
        let skel = load(Method::Session)?;
        let programs = Programs {
            alloc: (&floor.progs.alloc_session).into(),
            alloc_return: None,
            entry: (&skel.progs.entry_only).into(),
            throwing: (&skel.progs.entry_only).into(),
        };
        let target = Target {
            path,
            index: 0,
            sites,
            first_site: 0,
        };
        let links = attach::attach(How::everywhere(Method::Session), &programs, &target, file)?;
        Ok(Self {
            method: Method::Session,
            links,
            skel,
            _allocating: Some(floor),
        })
    }

    /// Attaches a program that does nothing to offsets in a file.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(method: Method, file: &File, offsets: &[u64]) -> Result<Self> {
        // The program needs no cookie.
        let method = method.min(Method::PerfEvent);
        let mut probes = Self {
            method,
            links: Vec::new(),
            skel: load(method)?,
            _allocating: None,
        };
        probes.attach_again(file, offsets)?;
        Ok(probes)
    }

    /// Leaves the probes in place until memleak ends.
    pub(super) fn pin(&mut self, pins: &mut Pins) -> io::Result<()> {
        for link in self.links.drain(..) {
            match link {
                Attached::Link(link) => pins.keep(link.as_fd())?,
                Attached::Fd(fd) => pins.keep(fd.as_fd())?,
            }
        }
        Ok(())
    }

    /// Attaches the program to further offsets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_again(&mut self, file: &File, offsets: &[u64]) -> Result<()> {
        let program = &self.skel.progs.entry_only;
        let links = attach::attach_at(How::everywhere(self.method), program.into(), file, offsets)
            .context("cannot attach a program that does nothing")?;
        self.links.extend(links);
        Ok(())
    }
}

fn load(method: Method) -> Result<EmptySkel<'static>> {
    let context = "cannot load a program that does nothing";
    // Loaded once, and needed until memleak exits.
    let mut open = EmptySkelBuilder::default()
        .open(Box::leak(Box::new(MaybeUninit::uninit())))
        .context(context)?;
    if method == Method::PerfEvent {
        let program = &mut open.progs.entry_only;
        program.set_attach_type(ProgramAttachType::CgroupInetIngress);
    }
    open.load().context(context)
}
