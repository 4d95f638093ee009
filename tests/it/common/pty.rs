//! A real terminal in which a real interactive bash runs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::{Pid, tcgetpgrp};

use super::proc;

const PATIENCE: Duration = Duration::from_secs(30);

/// The shell's prompt. Only the shell prints it, because the terminal does not echo typed input.
pub const PROMPT: &str = "@prompt@";

/// A terminal. Dropping it ends its shell and all jobs of the shell.
pub struct Terminal {
    shell: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// The output that was shown and that `expect` has not consumed yet.
    text: String,
}

impl Terminal {
    /// Opens a terminal. Returns when the shell waits for its first line.
    pub fn open() -> Self {
        // posix_openpt and not openpty: processes that other tests start meanwhile must not inherit the descriptors.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).expect("a pseudo-terminal can be opened");
        grantpt(&master)
            .and_then(|()| unlockpt(&master))
            .expect("a pseudo-terminal can be opened");
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(ptsname_r(&master).expect("a pseudo-terminal can be opened"))
            .expect("a pseudo-terminal can be opened");
        let keyboard = File::from(OwnedFd::from(master));
        let mut reader = keyboard
            .try_clone()
            .expect("the descriptor can be duplicated");
        let stdio = || Stdio::from(slave.try_clone().expect("the descriptor can be duplicated"));
        let mut command = Command::new("bash");
        command
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .env("PS1", PROMPT)
            .env("TERM", "dumb")
            .env("LC_ALL", "C")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        // SAFETY: the closure makes only async-signal-safe calls. It starts a session of its own with this terminal.
        unsafe {
            command.pre_exec(move || {
                if libc::setsid() == -1 || libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            })
        };
        let shell = command.spawn().expect("bash can be run");
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match reader.read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // EIO: the last process has closed the terminal.
                    Ok(0) | Err(_) => return,
                    Ok(length) => {
                        if sender.send(buffer[..length].to_vec()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let mut terminal = Self {
            shell,
            keyboard,
            screen,
            text: String::new(),
        };
        terminal.expect(PROMPT);
        terminal.line("stty -echo");
        terminal.expect(PROMPT);
        terminal
    }

    /// Gives the terminal a size. Its foreground job gets SIGWINCH.
    pub fn resize(&self, columns: u16, lines: u16) {
        let size = libc::winsize {
            ws_col: columns,
            ws_row: lines,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the call only reads the structure.
        let done = unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal is open");
    }

    pub fn line(&mut self, line: &str) {
        self.press(&format!("{line}\n"));
    }

    /// Whether the keyboard's signals go to a job that already runs `program`. Before its exec, the job is still a copy
    /// of the shell, which ignores Ctrl-Z as the shell does.
    pub fn has_in_foreground(&self, program: &str) -> bool {
        let leader = tcgetpgrp(&self.keyboard).expect("the terminal is open");
        let name = fs::read_to_string(format!("/proc/{leader}/comm"));
        name.is_ok_and(|name| name.trim_end() == program)
    }

    /// Waits until `text` is shown. Returns the output before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(text) {
                let before = self.text[..at].to_owned();
                self.text.drain(..at + text.len());
                return before;
            }
            let shown = self.read_until(deadline);
            assert!(
                shown,
                "waited for {text:?}, but the terminal shows {:?}",
                self.text
            );
        }
    }

    /// Waits for `time`. Returns all output that `expect` has not consumed.
    pub fn shown_within(&mut self, time: Duration) -> String {
        let deadline = Instant::now() + time;
        while self.read_until(deadline) {}
        std::mem::take(&mut self.text)
    }

    /// Runs a line in the shell. Returns its output.
    #[track_caller]
    pub fn output_of(&mut self, line: &str) -> String {
        self.line(line);
        self.expect(PROMPT).replace('\r', "")
    }

    fn read_until(&mut self, deadline: Instant) -> bool {
        match self
            .screen
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(bytes) => {
                self.text.push_str(&String::from_utf8_lossy(&bytes));
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(deadline.saturating_duration_since(Instant::now()));
                false
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let session = Pid::from_raw(self.shell.id().cast_signed());
        proc::end_all(|process| process.session == session);
        let _ = self.shell.wait();
    }
}
