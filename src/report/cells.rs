//! The words and cells that the formats and closing lines share.

use std::time::Duration;

use crate::model::image::{From, Image, Uncovered};
use crate::text::escape;
use crate::text::units::megabytes;

/// Shown for an empty command name. An empty cell would shift the columns of its row. No other name is shown as a lone
/// `\0`.
const EMPTY_NAME: &str = r"\0";

/// The cells of the columns with which every table begins.
pub(super) fn first_cells(image: &Image) -> [String; 5] {
    let user = image.user.as_ref();
    [
        image.uid.to_string(),
        user.map_or_else(|| image.uid.to_string(), |user| name(user.as_bytes())),
        image.pid.to_string(),
        name(&image.comm),
        megabytes(image.counters.total_allocs_bytes),
    ]
}

pub(super) fn signed_megabytes(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", megabytes(bytes.unsigned_abs()))
}

/// A time in its two largest units: `12s`, `3m12s`, `4h05m`, `2d03h`.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

pub(super) fn name(name: &[u8]) -> String {
    if name.is_empty() {
        EMPTY_NAME.to_owned()
    } else {
        escape::escaped(name)
    }
}

pub(super) fn note(image: &Image) -> String {
    let mut notes = Vec::new();
    if let Some(why) = image.uncovered {
        notes.push(uncovered(why).to_owned());
    }
    if !image.losses.is_empty() {
        notes.push(format!("incomplete: {} lost", image.losses.count()));
    }
    if image.from == From::Attach {
        notes.push("since attach".to_owned());
    }
    notes.join("; ")
}

pub(super) fn uncovered(why: Uncovered) -> &'static str {
    match why {
        Uncovered::NoAllocator => "no probed allocator",
        Uncovered::NoSymbols => "no allocator symbols",
        Uncovered::ThirtyTwoBit => "32-bit program",
        Uncovered::Late => "allocator probed late",
        Uncovered::Unexamined => "allocator not examined",
        Uncovered::Unreached => "not reached by every probe",
    }
}

/// A command line as one would type it: words with blanks, quotes or nothing in them are quoted.
pub(super) fn args(image: &Image) -> String {
    let Some(line) = &image.args else {
        return String::new();
    };
    let plain = |c: char| !c.is_whitespace() && !"'\"\\$`!*?[](){}<>|&;#~".contains(c);
    let mut words: Vec<String> = line
        .words
        .iter()
        .map(|word| {
            let shown = escape::escaped(word);
            match !shown.is_empty() && shown.chars().all(plain) {
                true => shown,
                false => format!("'{}'", shown.replace('\'', r"'\''")),
            }
        })
        .collect();
    if line.is_cut {
        words.push("\u{2026}".to_owned());
    }
    words.join(" ")
}
