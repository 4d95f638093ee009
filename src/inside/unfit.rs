//! Why a C library is not edited.

/// What in a file is not as the code needs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("counting inside is only there for x86_64")]
    Machine,
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it has no {0}")]
    Lacks(&'static str),
    #[error("its symbol {0} is not as expected")]
    Symbol(String),
    #[error("programs can replace its functions by {0}")]
    Hook(&'static str),
    #[error("its code uses the word of a thread's control block that is needed")]
    Word,
    #[error("its chunks do not look as expected")]
    Chunks,
    #[error("it calls its allocator from {0:#x} without a symbol")]
    Call(u64),
    #[error("it points to its allocator at {0:#x}")]
    Pointer(u64),
    #[error("its segments or its tables for exceptions are not as expected")]
    Layout,
}

impl From<object::read::Error> for Unfit {
    fn from(error: object::read::Error) -> Self {
        Unfit::Damaged(error.to_string())
    }
}
