//! The types that the programs read, in a file for libbpf. A thread reads them out of the kernel's, while libbpf reads the
//! object.

use std::fs::{self, File};
use std::io::{self, Write as _};

use crate::kernel::ahead::Ahead;
use crate::kernel::btf;
use crate::kernel::features::BTF;
use crate::os::memory_file::empty_file;

pub(super) struct OwnTypes {
    file: File,
    written: Ahead<io::Result<()>>,
}

impl OwnTypes {
    /// Begins to read. `None`: there can be no such file.
    pub(super) fn begin() -> Option<Self> {
        let file = empty_file(c"memleak-types").ok()?;
        let other = file.try_clone().ok()?;
        let written = Ahead::begin(move || write_types(other));
        Some(Self { file, written })
    }

    /// The file, which may not be written yet.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Waits until the file is written. Returns whether it has all types.
    pub(super) fn are_written(&self) -> bool {
        matches!(self.written.get(), Some(Ok(())))
    }
}

fn write_types(mut file: File) -> io::Result<()> {
    let types = btf::of_programs(&fs::read(BTF)?);
    let types = types.ok_or_else(|| io::Error::other("the kernel's types have an unknown form"))?;
    file.write_all(&types)
}
