//! memleak ends with the command's exit code. This tests all 256 codes with the launcher and with the function that
//! decides memleak's exit code, each in a process of its own. `tests/it/launch.rs` tests some codes from end to end.
//! `make test-long` tests all of them.
//!
//! This program is apart from the other tests and has no test harness, because a process that launches must have one
//! thread.

use std::ffi::OsString;

use memleak::launch::descriptors::Stderr;
use memleak::launch::running::Ended;
use memleak::launch::{Mounts, Suspended};
use memleak::model::exit::{self, LeakExit, Outcome};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const NAME: &str = "every_exit_code_is_passed_on_by_the_launcher";

/// Does what `memleak run -- sh -c 'exit CODE'` does, without counting. Returns memleak's own exit code.
fn launched(code: u8) -> u8 {
    let command = ["sh".into(), "-c".into(), format!("exit {code}").into()];
    let command: &[OsString] = &command;
    let suspended =
        Suspended::fork(command, None, Mounts::Callers).expect("the command can be forked");
    let mut running = suspended.release(Stderr::Keep).expect("sh can be executed");
    let Ended::Exited(code) = running.wait().expect("the command can be waited for") else {
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
        match unsafe { fork() }.expect("a process can be created") {
            ForkResult::Child => std::process::exit(launched(code).into()),
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).expect("the child can be waited for");
                assert_eq!(status, WaitStatus::Exited(child, code.into()));
            }
        }
    }
    println!("test {NAME} ... ok");
}
