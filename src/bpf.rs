//! The compiled BPF objects, and the types that kernel and user space share (declared in `bpf/memleak.h`).

/// The programs that count.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod memleak {
    include!(concat!(env!("OUT_DIR"), "/memleak.skel.rs"));
}

/// The same for older kernels.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod older {
    include!(concat!(env!("OUT_DIR"), "/older.skel.rs"));
}

/// Programs that do nothing, to measure against.
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, dead_code, unused)]
mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

pub use floor::{FloorSkel, FloorSkelBuilder};
pub use memleak::{MemleakSkel, MemleakSkelBuilder, OpenMemleakSkel, types};
pub use older::{OlderSkel, OlderSkelBuilder, types as older_types};
