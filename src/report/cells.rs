//! The words and cells that the formats and closing lines share.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::model::bounds::Bounds;
use crate::model::image::{CountedBy, End, From, Image, Uncovered};
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::stack_coverage::StackCoverage;
use crate::text::escape;
use crate::text::units::{counted, grouped, megabytes};

/// Shown for an empty command name. An empty cell would shift the columns of its row. No other name is shown as a lone
/// `\0`.
const EMPTY_NAME: &str = r"\0";

/// Shown for a figure that is not known.
pub(super) const UNKNOWN: &str = "?";

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

/// As ` (2,000 direct, 5,050 indirect)`, of bytes that were lost.
pub(super) fn direct_and_indirect(reached: Reached) -> String {
    let [definite, indirect] = [reached.definite, reached.indirect].map(|lost| grouped(lost.bytes));
    format!(" ({definite} direct, {indirect} indirect)")
}

/// As `7,050 bytes in 100 blocks`.
pub(super) fn in_blocks(amount: Amount) -> String {
    let unit = if amount.bytes == 1 { "byte" } else { "bytes" };
    let block = if amount.blocks == 1 {
        "block"
    } else {
        "blocks"
    };
    let [bytes, blocks] = [amount.bytes, amount.blocks].map(grouped);
    format!("{bytes} {unit} in {blocks} {block}")
}

pub(super) fn name(name: &[u8]) -> String {
    if name.is_empty() {
        EMPTY_NAME.to_owned()
    } else {
        escape::escaped(name)
    }
}

/// What an image lost, in megabytes. `–` if there is nothing to judge, `?` if it is not known.
pub(super) fn lost(image: &Image) -> String {
    match image.reach {
        Reach::Known(reached) => megabytes(reached.lost().bytes),
        Reach::NotJudged => "\u{2013}".to_owned(),
        Reach::Unknown(_) if Bounds::of_lost(image) == Bounds::ZERO => megabytes(0),
        Reach::Unknown(_) => UNKNOWN.to_owned(),
    }
}

/// The Slurm job that a process belongs to, with its step: `1234.0`. Empty if there is none.
pub(super) fn job(image: &Image) -> String {
    let origin = image.origin.as_deref();
    let Some(job) = origin.and_then(|origin| origin.job.as_ref()) else {
        return String::new();
    };
    let step = origin.and_then(|origin| origin.step.as_ref());
    let whole = step.map_or_else(|| job.clone(), |step| format!("{job}.{step}"));
    escape::escaped(whole.as_bytes())
}

/// The container that a process belongs to: of an id the first digits, as container managers show it. Empty if there is
/// none.
pub(super) fn container(image: &Image) -> String {
    const SHOWN: usize = 12;
    let origin = image.origin.as_deref();
    let container = origin.and_then(|origin| origin.container.as_deref());
    match container.unwrap_or_default() {
        id if id.len() == 64 && id.is_ascii() => id[..SHOWN].to_owned(),
        name => escape::escaped(name.as_bytes()),
    }
}

/// What is special about an image. `lost`: also why it is not known what the image lost.
pub(super) fn note(image: &Image, lost: bool) -> String {
    let mut notes = Vec::new();
    if let Some(why) = image.uncovered {
        notes.push(uncovered(why).to_owned());
    }
    if !image.losses.is_empty() {
        notes.push(format!("incomplete: {} missed", image.losses.count()));
    }
    if image.from == From::Attach {
        notes.push("since attach".to_owned());
    }
    if let Reach::Unknown(why) = image.reach
        && lost
        && why != ReachUnknown::Off
        && Bounds::of_lost(image) != Bounds::ZERO
    {
        notes.push(format!("lost unknown: {}", why.phrase()));
    }
    if let Some(coverage) = StackCoverage::of(image)
        && coverage.leaked.blocks > 0
        && !matches!(image.end, End::Exec | End::Running)
    {
        let blocks = counted(coverage.leaked.blocks, "block", "blocks");
        notes.push(format!("stack unknown: {blocks}"));
    }
    notes.join("; ")
}

/// The same, and by what an image was counted if not only by probes.
pub(super) fn verbose_note(image: &Image, lost: bool) -> String {
    let by = match image.counted_by {
        CountedBy::Uprobes => return note(image, lost),
        CountedBy::Inside => "counted inside",
        CountedBy::Both => "counted inside and by uprobes",
    };
    match note(image, lost) {
        note if note.is_empty() => by.to_owned(),
        note => format!("{note}; {by}"),
    }
}

pub(super) fn uncovered(why: Uncovered) -> &'static str {
    match why {
        Uncovered::NoAllocator => "no probed allocator",
        Uncovered::NoSymbols => "no allocator symbols",
        Uncovered::ThirtyTwoBit => "32-bit program",
        Uncovered::Late => "allocator probed late",
        Uncovered::Unexamined => "allocator not examined",
        Uncovered::Unreached => "not reached by every probe",
        Uncovered::Unread => "counters not readable",
        Uncovered::Twice => "two ways of counting",
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

/// A text that is at most so many columns wide.
pub(super) fn cut(text: String, columns: usize) -> String {
    if text.width() <= columns {
        return text;
    }
    let mut kept = String::new();
    for c in text.chars() {
        if kept.width() + c.width().unwrap_or(0) >= columns {
            break;
        }
        kept.push(c);
    }
    kept + "\u{2026}"
}

/// The same with the end of the text, as paths have their names there.
pub(super) fn cut_front(text: String, columns: usize) -> String {
    if text.width() <= columns {
        return text;
    }
    let mut kept = text.as_str();
    while kept.width() >= columns {
        let mut chars = kept.chars();
        if chars.next().is_none() {
            break;
        }
        kept = chars.as_str();
    }
    format!("\u{2026}{kept}")
}
