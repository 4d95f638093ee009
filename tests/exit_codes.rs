//! Every exit code of a command is memleak's: all 256 of them, by the launcher and by what decides memleak's end, in a
//! process of its own each time. `tests/it/launch.rs` has some of them from end to end, and `make test-long` all.
//!
//! Apart from the other tests, and without their harness, as what launches must have one thread.

use std::ffi::OsString;

use memleak::launch::Suspended;
use memleak::launch::descriptors::Stderr;
use memleak::launch::running::Ended;
use memleak::model::exit::{self, LeakExit, Outcome};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const NAME: &str = "every_exit_code_is_passed_on_by_the_launcher";

/// What memleak does for `memleak run -- sh -c 'exit CODE'`, but for counting. Its own code.
fn launched(code: u8) -> u8 {
    let command = ["sh".into(), "-c".into(), format!("exit {code}").into()];
    let command: &[OsString] = &command;
    let suspended = Suspended::fork(command, None).expect("it can be forked");
    let mut running = suspended.release(Stderr::Keep).expect("sh is there");
    let Ended::Exited(code) = running.wait().expect("it can be waited for") else {
        panic!("{:?}", running.ended());
    };
    exit::finish(Outcome::Exited(code), None, LeakExit::default()).code()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        println!("{NAME}: test");
        return;
    }
    for code in 0..=u8::MAX {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Child => std::process::exit(launched(code).into()),
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).expect("a child");
                assert_eq!(status, WaitStatus::Exited(child, code.into()));
            }
        }
    }
    println!("test {NAME} ... ok");
}
