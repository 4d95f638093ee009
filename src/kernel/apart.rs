//! The programs that run where functions allocate. They are the largest, and the verifier takes most of a start. So a
//! thread loads them, in an object of their own with the same maps, while the others are loaded.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle, available_parallelism};

use libbpf_rs::AsRawLibbpf as _;
use libbpf_rs::libbpf_sys::{bpf_map__fd, bpf_object__prepare};
use libbpf_rs::skel::OpenSkel as _;

use crate::kernel::method::Method;
use crate::kernel::newer::{choose_allocating, leave_out_stacks, open_with};
use crate::kernel::skeletons::{MemleakSkel, OpenMemleakSkel};

type LoadedApart = libbpf_rs::Result<MemleakSkel<'static>>;

/// Maps by their names.
type Maps = HashMap<OsString, OwnedFd>;

/// These programs, before their maps are there.
pub(super) struct Apart {
    maps: Sender<Maps>,
    thread: JoinHandle<LoadedApart>,
}

impl Apart {
    /// Begins to read the object. `None`: nothing would be gained, or there can be no thread.
    pub(super) fn begin(types: &File, method: Method, stacks: bool) -> Option<Self> {
        let is_useful =
            method <= Method::Multi && available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        if !is_useful {
            return None;
        }
        let types = types.try_clone().ok()?;
        let (maps, given) = channel();
        let thread = Builder::new().spawn(move || load(&types, &given, method, stacks));
        let thread = thread.ok()?;
        Some(Self { maps, thread })
    }

    /// Leaves these programs out of an object, makes the object's maps, and loads the programs with them. Returns what
    /// waits for the programs.
    ///
    /// # Errors
    /// The maps cannot be made.
    pub(super) fn load(self, open: &mut OpenMemleakSkel<'_>) -> libbpf_rs::Result<Loading> {
        let progs = &mut open.progs;
        for program in [
            &mut progs.alloc_session,
            &mut progs.alloc_enter,
            &mut progs.alloc_return,
            &mut progs.throwing,
        ] {
            program.set_autoload(false);
        }
        let object = open.open_object();
        // SAFETY: the object is open, and nobody else uses it.
        let prepared = unsafe { bpf_object__prepare(object.as_libbpf_object().as_ptr()) };
        if prepared < 0 {
            return Err(libbpf_rs::Error::from_raw_os_error(-prepared));
        }
        let mut maps = Maps::new();
        for map in object.maps().filter(|map| map.autocreate()) {
            // SAFETY: the map belongs to the object.
            let number = unsafe { bpf_map__fd(map.as_libbpf_object().as_ptr()) };
            if number >= 0 {
                // SAFETY: the object keeps the descriptor open.
                let fd = unsafe { BorrowedFd::borrow_raw(number) };
                maps.insert(map.name().to_owned(), fd.try_clone_to_owned()?);
            }
        }
        // A thread that has already failed says why when it is waited for.
        let _ = self.maps.send(maps);
        Ok(Loading(self.thread))
    }
}

/// These programs, while the verifier works.
pub(super) struct Loading(JoinHandle<LoadedApart>);

impl Loading {
    /// Waits for the programs.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub(super) fn wait(self) -> LoadedApart {
        let loaded = self.0.join();
        loaded.unwrap_or_else(|_| Err(io::Error::other("a thread of memleak failed").into()))
    }
}

/// Loads the programs as soon as their maps are there.
fn load(types: &File, given: &Receiver<Maps>, method: Method, stacks: bool) -> LoadedApart {
    // Needed until memleak exits.
    let place = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut open = open_with(types, place)?;
    for mut program in open.open_object_mut().progs_mut() {
        program.set_autoload(false);
    }
    choose_allocating(&mut open, method);
    open.progs.throwing.set_autoload(true);
    if !stacks {
        leave_out_stacks(&mut open)?;
    }
    let maps = given.recv();
    let maps = maps.map_err(|_| io::Error::other("the other programs could not be loaded"))?;
    for mut map in open.open_object_mut().maps_mut() {
        if let Some(fd) = maps.get(map.name()) {
            map.reuse_fd(fd.as_fd())?;
        }
    }
    open.load()
}
