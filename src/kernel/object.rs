//! The loaded object: the one for newer kernels, or the one for older ones (`bpf/older.bpf.h`). Other modules get here
//! what both objects have, so they need not know which one is loaded.

use std::io::{self, Read};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libbpf_rs::{Iter, MapMut, ProgramInput, ProgramMut};

use crate::kernel::apart::Apart;
use crate::kernel::attach::{Attachable, Programs};
use crate::kernel::method::{Holds, Method};
use crate::kernel::skeletons::types::arrival;
use crate::kernel::skeletons::{MemleakSkel, OlderSkel, older_types};

pub(super) enum Object {
    Newer {
        skel: Box<MemleakSkel<'static>>,
        /// The programs of `skel` that libbpf has not loaded.
        apart: Apart,
    },
    Older(Box<OlderSkel<'static>>),
}

/// A value that both objects have.
macro_rules! either {
    ($object:expr, $skel:ident => $value:expr) => {
        match $object {
            Object::Newer { skel: $skel, .. } => $value,
            Object::Older($skel) => $value,
        }
    };
}

impl Object {
    pub(super) fn heaps(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.heaps)
    }

    pub(super) fn blocks(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.blocks)
    }

    pub(super) fn ended(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.ended)
    }

    pub(super) fn command_lines(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.command_lines)
    }

    pub(super) fn labels(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.labels)
    }

    pub(super) fn loaders(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.loaders)
    }

    pub(super) fn sites(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.sites)
    }

    pub(super) fn signals_seen(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.signals_seen)
    }

    pub(super) fn living(&self) -> &ProgramMut<'static> {
        either!(self, skel => &skel.progs.living)
    }

    pub(super) fn adopt_all(&self) -> &ProgramMut<'static> {
        either!(self, skel => &skel.progs.adopt_all)
    }

    pub(super) fn list_chosen(&self) -> &ProgramMut<'static> {
        either!(self, skel => &skel.progs.list_chosen)
    }

    pub(super) fn found(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.found)
    }

    pub(super) fn wanted_uids(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.wanted_uids)
    }

    pub(super) fn wanted_names(&self) -> &MapMut<'static> {
        either!(self, skel => &skel.maps.wanted_names)
    }

    /// The programs that follow forks, execs, exits and signals.
    pub(super) fn tracepoints(&self) -> [&ProgramMut<'static>; 5] {
        either!(self, skel => [
            &skel.progs.task_newtask,
            &skel.progs.task_rename,
            &skel.progs.sched_process_exec,
            &skel.progs.sched_process_exit,
            &skel.progs.signal_generate,
        ])
    }

    /// Second programs for events that must not be missed, called after the first ones. Each pair holds the first
    /// program, then the second.
    pub(super) fn second_programs(&self) -> Option<[[&ProgramMut<'static>; 2]; 3]> {
        let progs = &self.newer()?.progs;
        Some([
            [&progs.task_newtask, &progs.newtask_again],
            [&progs.sched_process_exec, &progs.exec_again],
            [&progs.sched_process_exit, &progs.exit_again],
        ])
    }

    /// The program that holds a process after its exec, and the second program for the same event.
    pub(super) fn holds_after_exec(&self, holds: Holds) -> Option<[&ProgramMut<'static>; 2]> {
        let progs = &self.newer()?.progs;
        (holds == Holds::Everywhere).then_some([&progs.exec_holds, &progs.exec_holds_again])
    }

    /// Lets the kernel side find memleak's own process and its pid namespace. To be called once.
    pub(super) fn identify(&self) -> libbpf_rs::Result<()> {
        match self {
            Object::Newer { skel, .. } => {
                let identify = &skel.progs.identify;
                identify.test_run(ProgramInput::default()).map(drop)
            }
            Object::Older(skel) => iterate(&skel.progs.identify).map(drop),
        }
    }

    /// How the kernel identifies the file that memleak has mapped at an address.
    ///
    /// # Errors
    /// `ENOENT`: no file is mapped there. `EBUSY`: the kernel cannot look at the moment.
    pub(super) fn identify_file(
        &self,
        globals: &Globals,
        address: u64,
    ) -> libbpf_rs::Result<arrival> {
        let error = match self {
            Object::Newer { skel, .. } => {
                let mut arguments = address.to_ne_bytes();
                let run = skel.progs.identify_file.test_run(ProgramInput {
                    context_in: Some(&mut arguments),
                    ..ProgramInput::default()
                })?;
                run.return_value.cast_signed().wrapping_neg()
            }
            Object::Older(skel) => {
                let older = globals.older()?;
                older.mapped_at.set(address);
                // This error stays if the program is not called at all.
                older.identify_error.set(libc::ENODATA.cast_unsigned());
                iterate(&skel.progs.identify_file)?;
                older.identify_error.get().cast_signed()
            }
        };
        match error {
            0 => Ok(globals.identified()),
            error => Err(libbpf_rs::Error::from_raw_os_error(error)),
        }
    }

    /// The program that holds a process where its dynamic loader reports what it has mapped.
    pub(super) fn at_loader(&self, holds: Holds) -> Attachable<'_, 'static> {
        match self {
            Object::Newer { skel, apart } => apart.or(match holds {
                Holds::Everywhere => &skel.progs.loader_holds,
                Holds::Loader => &skel.progs.loader_waits,
                Holds::Nowhere => &skel.progs.loader_reports,
            }),
            Object::Older(skel) => (&skel.progs.loader_reports).into(),
        }
    }

    /// The program that reads a process where it ends itself. There is none for older kernels.
    pub(super) fn at_end(&self, holds: Holds) -> Option<Attachable<'_, 'static>> {
        match self {
            Object::Newer { skel, apart } => Some(apart.or(match holds {
                Holds::Everywhere => &skel.progs.at_end,
                Holds::Loader | Holds::Nowhere => &skel.progs.at_end_waits,
            })),
            Object::Older(_) => None,
        }
    }

    /// The programs for functions that allocate and free.
    pub(super) fn programs(&self, method: Method) -> Programs<'_, 'static> {
        match self {
            Object::Newer { skel, apart } => {
                let progs = &skel.progs;
                let (alloc, alloc_return) = match method {
                    Method::Session => (&progs.alloc_session, None),
                    _ => (&progs.alloc_enter, Some(&progs.alloc_return)),
                };
                Programs {
                    alloc: apart.or(alloc),
                    alloc_return: alloc_return.map(|program| apart.or(program)),
                    entry: apart.or(&progs.entry_only),
                    throwing: apart.or(&progs.throwing),
                }
            }
            Object::Older(skel) => {
                let progs = &skel.progs;
                Programs {
                    alloc: (&progs.alloc_enter).into(),
                    alloc_return: Some((&progs.alloc_return).into()),
                    entry: (&progs.entry_only).into(),
                    throwing: (&progs.throwing).into(),
                }
            }
        }
    }

    /// The object for newer kernels, for what only that has.
    pub(super) fn newer(&self) -> Option<&MemleakSkel<'static>> {
        match self {
            Object::Newer { skel, .. } => Some(skel),
            Object::Older(_) => None,
        }
    }

    /// The object for older kernels, for what only that has.
    pub(super) fn older(&self) -> Option<&OlderSkel<'static>> {
        match self {
            Object::Newer { .. } => None,
            Object::Older(skel) => Some(skel),
        }
    }

    /// The global variables. To be called once.
    pub(super) fn globals(&mut self) -> Option<Globals> {
        macro_rules! globals {
            ($bss:expr) => {{
                let bss = $bss;
                Globals {
                    proc_level: Shared::of(&mut bss.proc_level),
                    memleak_pid: Shared::of(&mut bss.memleak_pid),
                    command_pid: Shared::of(&mut bss.command_pid),
                    joining: Shared::of(&mut bss.joining),
                    nobody_answers: Shared::of(&mut bss.nobody_answers),
                    answers: Shared::of(&mut bss.answers),
                    attaching: Shared::of(&mut bss.attaching),
                    rows_lost: Shared::of(&mut bss.rows_lost),
                    rows_waiting: Shared::of(&mut bss.rows_waiting),
                    late_count: Shared::of(&mut bss.late_count),
                    dead_blocks: Shared::of(&mut bss.dead_blocks),
                    retold: bss.retold.each_mut().map(Shared::of),
                    ignored: bss
                        .ignored
                        .each_mut()
                        .map(|event| event.each_mut().map(Shared::of)),
                    living_tasks: Shared::of(&mut bss.living_tasks),
                    holds: Shared::of(&mut bss.holds),
                    longest_hold_ns: Shared::of(&mut bss.longest_hold_ns),
                    sleeping: Shared::of(&mut bss.sleeping),
                    last_sleep_ns: Shared::of(&mut bss.last_sleep_ns),
                    older: None,
                    identified: NonNull::from(&mut bss.identified).cast(),
                }
            }};
        }
        // Declared once, in bpf/memleak.h.
        const { assert!(size_of::<arrival>() == size_of::<older_types::arrival>()) };
        match self {
            Object::Newer { skel, .. } => {
                skel.maps.bss_data.as_deref_mut().map(|bss| globals!(bss))
            }
            Object::Older(skel) => skel.maps.bss_data.as_deref_mut().map(|bss| Globals {
                older: Some(OlderGlobals {
                    wanted_pid: Shared::of(&mut bss.wanted_pid),
                    mapped_at: Shared::of(&mut bss.mapped_at),
                    identify_error: Shared::of(&mut bss.identify_error),
                }),
                ..globals!(bss)
            }),
        }
    }
}

/// The programs' global variables that user space uses. They exist as long as the object.
pub(super) struct Globals {
    pub(super) proc_level: Shared<u32>,
    pub(super) memleak_pid: Shared<u32>,
    pub(super) command_pid: Shared<u32>,
    pub(super) joining: Shared<u32>,
    pub(super) nobody_answers: Shared<u32>,
    pub(super) answers: Shared<u64>,
    pub(super) attaching: Shared<u32>,
    pub(super) rows_lost: Shared<u64>,
    pub(super) rows_waiting: Shared<u64>,
    pub(super) late_count: Shared<u64>,
    pub(super) dead_blocks: Shared<u64>,
    /// How often each of the [`second_programs`](Object::second_programs) handled an event that the first one missed.
    /// The last entry is for `holds_after_exec`.
    pub(super) retold: [Shared<u64>; 4],
    /// How many events each program of these pairs ignored on purpose, in tests.
    pub(super) ignored: [[Shared<u64>; 2]; 4],
    pub(super) living_tasks: Shared<u64>,
    pub(super) holds: Shared<u64>,
    pub(super) longest_hold_ns: Shared<u64>,
    pub(super) sleeping: Shared<u64>,
    pub(super) last_sleep_ns: Shared<u64>,
    older: Option<OlderGlobals>,
    identified: NonNull<arrival>,
}

/// What only the object for older kernels has: arguments and results of programs that take none there.
pub(super) struct OlderGlobals {
    pub(super) wanted_pid: Shared<u32>,
    mapped_at: Shared<u64>,
    identify_error: Shared<u32>,
}

impl Globals {
    /// The variables that only the object for older kernels has.
    pub(super) fn older(&self) -> io::Result<&OlderGlobals> {
        self.older
            .as_ref()
            .ok_or_else(|| io::Error::other("this is the BPF object for newer kernels"))
    }

    /// What `identify_file` has found. To be read after that program has ended.
    fn identified(&self) -> arrival {
        // SAFETY: the pointer comes from a reference to a variable of this type, or of the older object's type, which
        // has the same layout. The owner of the object owns this value, too.
        unsafe { self.identified.read_volatile() }
    }
}

/// A variable that programs may read or write at any time. Every writer of such a variable writes atomically.
pub(super) struct Shared<T>(NonNull<T>);

impl<T> Shared<T> {
    fn of(variable: &mut T) -> Self {
        Self(NonNull::from(variable))
    }
}

impl Shared<u32> {
    fn atomic(&self) -> &AtomicU32 {
        // SAFETY: the pointer comes from a reference, so it is aligned. The variable exists as long as the object,
        // and the owner of the object owns this value, too.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr()) }
    }

    pub(super) fn get(&self) -> u32 {
        self.atomic().load(Ordering::Acquire)
    }

    pub(super) fn set(&self, value: u32) {
        self.atomic().store(value, Ordering::Release);
    }
}

/// Calls an iterator's program for all that it iterates over. Returns the program's output.
pub(super) fn iterate(program: &ProgramMut<'_>) -> libbpf_rs::Result<Vec<u8>> {
    let link = program.attach()?;
    let mut bytes = Vec::new();
    Iter::new(&link)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Shared<u64> {
    fn atomic(&self) -> &AtomicU64 {
        // SAFETY: as for u32.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr()) }
    }

    pub(super) fn get(&self) -> u64 {
        self.atomic().load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.atomic().store(value, Ordering::Release);
    }

    pub(super) fn add(&self, more: u64) {
        self.atomic().fetch_add(more, Ordering::Release);
    }

    pub(super) fn subtract(&self, less: u64) {
        self.atomic().fetch_sub(less, Ordering::Relaxed);
    }
}
