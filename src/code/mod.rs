//! Machine instructions: where in a function a probe goes, and where the function returns. Pure: takes bytes, returns
//! values. Reading the bytes from a file is left to `elf` and `find`.

pub mod follow;
pub mod placement;
