//! The programs at probes. The verifier takes most of a start. So when libbpf has made an object's maps and the final code
//! of its programs, a thread loads these programs, while libbpf loads the others.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::{io, ptr, slice};

use libbpf_rs::libbpf_sys::{
    bpf_attach_type, bpf_func_info, bpf_insn, bpf_object__btf_fd, bpf_object__prepare,
    bpf_prog_load, bpf_prog_load_opts, bpf_prog_type, bpf_program__expected_attach_type,
    bpf_program__func_info, bpf_program__func_info_cnt, bpf_program__type,
};
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::{AsRawLibbpf as _, OpenProgramMut};

use crate::kernel::attach::Attachable;
use crate::kernel::error::add_log;
use crate::kernel::method::Method;
use crate::kernel::separate::descriptor;
use crate::kernel::skeletons::{OpenMemleakSkel, Program};

/// Bytes of the verifier's log that are kept.
const LOG: u32 = 1 << 20;

/// Programs by their names.
#[derive(Default)]
pub(super) struct Apart(HashMap<OsString, OwnedFd>);

impl Apart {
    /// A program of the object, whoever has loaded it.
    pub(super) fn or<'a, 'obj>(&'a self, program: &'a Program<'obj>) -> Attachable<'a, 'obj> {
        match self.0.get(program.name()) {
            Some(fd) => Attachable {
                program,
                fd: fd.as_fd(),
            },
            None => program.into(),
        }
    }
}

/// The programs, while the verifier works.
pub(super) struct Loading(JoinHandle<Result<Apart, Rejected>>);

/// A program that the kernel does not take.
struct Rejected {
    program: OsString,
    error: io::Error,
    /// The verifier's.
    log: Vec<u8>,
}

impl Loading {
    /// Makes the object's maps, and begins to load the programs. Loading the object leaves them out. `None`: nothing would
    /// be gained, there can be no thread, or the kernel takes no types of programs.
    ///
    /// # Errors
    /// The maps cannot be made.
    pub(super) fn begin(
        open: &mut OpenMemleakSkel<'_>,
        method: Method,
        stacks: bool,
    ) -> io::Result<Option<Self>> {
        let is_useful =
            method <= Method::Multi && available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        if !is_useful {
            return Ok(None);
        }
        let object = open.open_object().as_libbpf_object();
        // SAFETY: the object is open, and nobody else uses it.
        let prepared = unsafe { bpf_object__prepare(object.as_ptr()) };
        if prepared < 0 {
            return Err(io::Error::from_raw_os_error(-prepared));
        }
        // SAFETY: reads a number.
        let types = unsafe { bpf_object__btf_fd(object.as_ptr()) };
        if types < 0 {
            return Ok(None);
        }
        // SAFETY: the object keeps the descriptor open.
        let types = unsafe { BorrowedFd::borrow_raw(types) };
        let types = types.try_clone_to_owned()?;
        let mut programs = at_probes(open, stacks);
        let codes: Vec<_> = programs
            .iter()
            .map(|program| FinalCode::of(program))
            .collect();
        let load = move || {
            let loaded = codes.iter().map(|code| code.load(types.as_fd()));
            Ok(Apart(loaded.collect::<Result<_, _>>()?))
        };
        let thread = Builder::new().spawn(load);
        let Ok(thread) = thread else {
            return Ok(None);
        };
        for program in &mut programs {
            program.set_autoload(false);
        }
        Ok(Some(Self(thread)))
    }

    /// Waits for the programs.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub(super) fn wait(self) -> io::Result<Apart> {
        let Ok(loaded) = self.0.join() else {
            return Err(io::Error::other("a thread of memleak failed"));
        };
        loaded.map_err(|refusal| {
            add_log(&refusal.program, &refusal.log);
            refusal.error
        })
    }

    /// Waits until the programs of an object that was not loaded are no longer tried. Without its maps, nothing that the
    /// verifier says of them is true.
    pub(super) fn forget(self) {
        let _ = self.0.join();
    }
}

/// The programs of the object that the thread is to load.
fn at_probes<'a, 'obj>(
    open: &'a mut OpenMemleakSkel<'obj>,
    stacks: bool,
) -> Vec<&'a mut OpenProgramMut<'obj>> {
    let progs = &mut open.progs;
    let mut programs = vec![
        &mut progs.alloc_session,
        &mut progs.alloc_enter,
        &mut progs.alloc_return,
        &mut progs.throwing,
        &mut progs.entry_only,
    ];
    // With the code for call stacks, those above take as long as all others together.
    if !stacks {
        programs.extend([&mut progs.loader_holds, &mut progs.at_end]);
    }
    programs.retain(|program| program.autoload());
    programs
}

/// What the kernel is to load. None of these programs may sleep.
struct FinalCode {
    name: OsString,
    kind: bpf_prog_type,
    attached_as: bpf_attach_type,
    instructions: Vec<bpf_insn>,
    functions: Vec<bpf_func_info>,
}

impl FinalCode {
    /// The code of a program of an object whose maps are made.
    fn of(program: &OpenProgramMut<'_>) -> Self {
        let raw = program.as_libbpf_object().as_ptr();
        // SAFETY: the program's object is open, so all of this stays where it is.
        let functions = unsafe {
            let first = bpf_program__func_info(raw);
            match first.is_null() {
                true => &[][..],
                false => slice::from_raw_parts(first, bpf_program__func_info_cnt(raw) as usize),
            }
        };
        Self {
            name: program.name().to_owned(),
            // SAFETY: reads a number.
            kind: unsafe { bpf_program__type(raw) },
            // SAFETY: reads a number.
            attached_as: unsafe { bpf_program__expected_attach_type(raw) },
            instructions: program.insns().to_vec(),
            functions: functions.to_vec(),
        }
    }

    fn load(&self, types: BorrowedFd<'_>) -> Result<(OsString, OwnedFd), Rejected> {
        let loaded = self.load_with(types, &mut []).or_else(|_| {
            // Once more, for the verifier's log.
            let mut log = vec![0; LOG as usize];
            self.load_with(types, &mut log).map_err(|error| Rejected {
                program: self.name.clone(),
                error,
                log,
            })
        });
        Ok((self.name.clone(), loaded?))
    }

    fn load_with(&self, types: BorrowedFd<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
        let name = CString::new(OsStr::as_bytes(&self.name))?;
        let mut options = bpf_prog_load_opts {
            sz: size_of::<bpf_prog_load_opts>() as _,
            expected_attach_type: self.attached_as,
            prog_btf_fd: types.as_raw_fd().cast_unsigned(),
            func_info: self.functions.as_ptr().cast(),
            func_info_cnt: self.functions.len() as u32,
            func_info_rec_size: size_of::<bpf_func_info>() as u32,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: match log {
                [] => ptr::null_mut(),
                log => log.as_mut_ptr().cast(),
            },
            ..bpf_prog_load_opts::default()
        };
        // SAFETY: all that the options point to outlives the call, and the log is as long as they say.
        let program = unsafe {
            bpf_prog_load(
                self.kind,
                name.as_ptr(),
                c"GPL".as_ptr(),
                self.instructions.as_ptr(),
                self.instructions.len() as _,
                &raw mut options,
            )
        };
        descriptor(program.into())
    }
}
