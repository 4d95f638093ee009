//! The size of a terminal, and the time of day that people read on it.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The columns and lines of a terminal that does not know them, such as a serial line.
pub const USUAL_SIZE: (usize, usize) = (80, 24);

/// A terminal's columns and lines. `None`: it is no terminal, or does not know its size.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(usize, usize)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the call fills in the structure. If it fails, the structure is still zeroed, and its integers are valid.
    let size = unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr());
        size.assume_init()
    };
    let (columns, lines) = (usize::from(size.ws_col), usize::from(size.ws_row));
    (columns > 0 && lines > 0).then_some((columns, lines))
}

/// The local time of day of a time since the Unix epoch, as `14:02:10`. Empty if the time zone cannot be read.
pub fn time_of_day(unix: Duration) -> String {
    let Ok(seconds) = libc::time_t::try_from(unix.as_secs()) else {
        return String::new();
    };
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call. Whether it fails or not, the zeroed structure is valid.
    let parts = unsafe {
        if libc::localtime_r(&raw const seconds, parts.as_mut_ptr()).is_null() {
            return String::new();
        }
        parts.assume_init()
    };
    format!(
        "{:02}:{:02}:{:02}",
        parts.tm_hour, parts.tm_min, parts.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_has_no_size_of_a_terminal() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(size(file.as_fd()), None);
    }

    #[test]
    fn a_time_of_day_has_three_pairs_of_digits() {
        let time = time_of_day(Duration::from_secs(1_761_153_785));
        assert_eq!(time.len(), 8, "{time}");
        // No time zone is off by seconds today.
        assert!(time.ends_with(":05"), "{time}");
    }
}
