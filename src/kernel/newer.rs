//! How the object for newer kernels is opened, and which parts of it are left out.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;

use libbpf_rs::ProgramAttachType;
use libbpf_rs::libbpf_sys::bpf_object_open_opts;
use libbpf_rs::skel::SkelBuilder as _;

use crate::kernel::method::Method;
use crate::kernel::skeletons::{MemleakSkelBuilder, OpenMemleakSkel};

/// Opens the object for newer kernels. If there are `types`, libbpf looks up the types that the programs read there,
/// and not in the kernel's own, which would take a third of the time that loading takes. It reads the file only when it
/// loads the object.
pub(super) fn open(types: Option<&File>) -> libbpf_rs::Result<OpenMemleakSkel<'static>> {
    // Loaded once, and needed until memleak exits.
    let place = Box::leak(Box::new(MaybeUninit::uninit()));
    let Some(types) = types else {
        return MemleakSkelBuilder::default().open(place);
    };
    let path = CString::new(format!("/proc/self/fd/{}", types.as_raw_fd()));
    let path = path.map_err(|error| libbpf_rs::Error::from(io::Error::from(error)))?;
    let options = bpf_object_open_opts {
        sz: size_of::<bpf_object_open_opts>() as _,
        btf_custom_path: path.as_ptr(),
        ..bpf_object_open_opts::default()
    };
    MemleakSkelBuilder::default().open_opts(options, place)
}

/// Reads the kernel's own types, in which libbpf looks up tracepoints and kernel functions. It would read them when it
/// loads the object. There may be something to wait for until then.
pub(super) fn read_kernel_types(open: &mut OpenMemleakSkel<'_>) -> libbpf_rs::Result<()> {
    // As in the program's section. Naming the tracepoint is what makes libbpf read.
    let program = &mut open.progs.sched_process_exit;
    program.set_attach_target(0, Some("sched_process_exit".to_owned()))
}

/// Makes none of the maps that only call stacks need. The programs' code for call stacks is not verified then.
pub(super) fn leave_out_stacks(open: &mut OpenMemleakSkel<'_>) -> libbpf_rs::Result<()> {
    let maps = &mut open.maps;
    for map in [
        &mut maps.stack_walks,
        &mut maps.first_rows,
        &mut maps.rows,
        &mut maps.rules,
        &mut maps.modules,
        &mut maps.frame_cache,
        &mut maps.known_walks,
        &mut maps.page_cache,
        &mut maps.last_pages,
        &mut maps.layouts,
        &mut maps.rule_cache,
        &mut maps.stack_sums,
        &mut maps.new_stacks,
        &mut maps.told_stacks,
    ] {
        map.set_autocreate(false)?;
    }
    Ok(())
}

/// Loads the programs for functions that allocate that the method takes, and not the others.
pub(super) fn choose_allocating(open: &mut OpenMemleakSkel<'_>, method: Method) {
    let progs = &mut open.progs;
    let session = method == Method::Session;
    progs.alloc_session.set_autoload(session);
    for program in [&mut progs.alloc_enter, &mut progs.alloc_return] {
        program.set_autoload(!session);
        if method == Method::Multi {
            program.set_attach_type(ProgramAttachType::TraceUprobeMulti);
        }
    }
}
