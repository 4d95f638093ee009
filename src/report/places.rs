//! The call stacks by which processes leaked most, for people: what leaked, and below it a line for each call.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use crate::model::places::{LeakPlace, Located};
use crate::model::stack::{NamedFrame, NamedStack, WalkEnd};
use crate::model::unfreed::Unfreed;
use crate::report::cells::{direct_and_indirect, in_blocks, name};
use crate::stacks::own_frame;
use crate::text::escape;
use crate::text::units::counted;

/// The most lines of one stack.
const MOST_FRAMES: usize = 24;

/// How many places are suggested to who has asked for none.
const FEW: usize = 10;

/// The widest column of functions. A longer name moves its own line's location only.
const WIDEST: usize = 44;

/// A block of lines for each place, with an empty line before each. `alone`: there is only one process.
pub(super) fn place_lines(located: &Located, alone: bool) -> String {
    let (places, directory) = (&located.places, located.directory.as_deref());
    let mut lines = String::new();
    for place in &places.shown {
        lines.push_str(&format!("\n{}\n", head(place, alone)));
        for line in frame_lines(&place.stack, MOST_FRAMES, directory) {
            lines.push_str(&format!("    {line}\n"));
        }
    }
    if places.more > 0 {
        let more = counted(places.more as u64, "more place", "more places");
        let mut top = match places.shown.len() {
            0 => FEW,
            shown => shown,
        };
        while top < places.all {
            top *= 2;
        }
        lines.push_str(&format!("\n{more}: --top {top}\n"));
    }
    lines
}

/// What leaked: first what was lost, then what may be lost, and then what was not judged.
fn head(place: &LeakPlace, alone: bool) -> String {
    let Unfreed { reached, unknown } = place.unfreed;
    let mut parts: Vec<String> = Vec::new();
    for (capitals, word, amount) in [
        ("LOST", "lost", reached.lost()),
        ("POSSIBLY LOST", "possibly lost", reached.possible),
        ("LEAKED", "leaked", unknown),
    ] {
        if amount.blocks == 0 {
            continue;
        }
        let word = if parts.is_empty() { capitals } else { word };
        let detail = match amount == reached.lost() && reached.indirect.blocks > 0 {
            true => direct_and_indirect(reached),
            false => String::new(),
        };
        parts.push(format!("{word} {}{detail}", in_blocks(amount)));
    }
    let leaked = parts.join(", ");
    if alone {
        return leaked;
    }
    let processes = match place.processes {
        1 => String::new(),
        processes => format!(" ({})", counted(processes, "process", "processes")),
    };
    format!("{leaked}, {}{processes}", name(&place.comm))
}

/// A line for each call, at most `most`. Paths of sources below `directory` are shown without it.
pub(super) fn frame_lines(
    stack: &NamedStack,
    most: usize,
    directory: Option<&Path>,
) -> Vec<String> {
    // What calls `main` is the same in all programs.
    let is_main = |frame: &NamedFrame| !frame.inlined && frame.function.as_deref() == Some("main");
    let main = stack.frames().position(is_main);
    let is_start = |frame: &NamedFrame| frame.function.as_deref() == Some("__libc_start_call_main");
    let start = stack.frames().position(is_start);
    let count = main.map(|main| main + 1).or(start);
    let count = count.unwrap_or(stack.frames.len());
    let frames = &stack.frames[..count.min(most)];
    let cells: Vec<_> = frames
        .iter()
        .map(|frame| (function(frame), location(frame, directory)))
        .collect();
    let widths = cells.iter().map(|(function, _)| function.chars().count());
    let width = widths.filter(|width| *width <= WIDEST).max().unwrap_or(0);
    let mut lines: Vec<String> = cells
        .iter()
        .map(|(function, location)| match location.is_empty() {
            true => function.clone(),
            false => format!("{function:width$}  {location}"),
        })
        .collect();
    if count > frames.len() {
        let more = counted((count - frames.len()) as u64, "more call", "more calls");
        lines.push(format!("… {more}"));
    }
    let is_whole = count < stack.frames.len() || stack.end == WalkEnd::Complete;
    if !is_whole {
        lines.push(format!("? {}", stack.end.phrase()));
    }
    lines
}

/// Where a place is, in a few words: `make(int) at src/leak.cpp:7`. The function is the first that is not one of the C or
/// C++ libraries.
pub(super) fn in_short(stack: &NamedStack, directory: Option<&Path>) -> Option<String> {
    let frame = own_frame(stack)?;
    let (function, location) = (function(frame), location(frame, directory));
    Some(match (location.is_empty(), frame.line) {
        (true, _) => function,
        (false, Some(_)) => format!("{function} at {location}"),
        (false, None) => format!("{function} in {location}"),
    })
}

fn function(frame: &NamedFrame) -> String {
    match (&frame.function, &frame.module) {
        (Some(function), _) => escape::escaped(function.as_bytes()),
        (None, Some(module)) => format!("[{}+{:#x}]", base(module), frame.offset),
        (None, None) => format!("[{:#x}]", frame.offset),
    }
}

/// The source line, else the file with the code.
fn location(frame: &NamedFrame, directory: Option<&Path>) -> String {
    match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => {
            let file = plain(file);
            let below = directory.and_then(|directory| file.strip_prefix(directory).ok());
            let file = below.unwrap_or(&file);
            let file = escape::escaped(file.as_os_str().as_bytes());
            format!("{file}:{line}")
        }
        (_, _, Some(module)) if frame.function.is_some() => base(module),
        _ => String::new(),
    }
}

/// The innermost call in short, as printable text: `make_node list.c:31`, or what is known of that.
pub fn innermost_call(stack: &NamedStack) -> String {
    let Some(frame) = stack.frames.first() else {
        return String::new();
    };
    let place = match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => Some(format!("{}:{line}", base(file))),
        (_, _, Some(module)) if frame.function.is_some() => Some(base(module)),
        _ => None,
    };
    let words: Vec<_> = [Some(function(frame)), place]
        .into_iter()
        .flatten()
        .collect();
    words.join(" ")
}

/// A path without `.` and `..`, as far as the text says where that leads.
pub(super) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(plain.components().next_back(), Some(Component::Normal(_))) =>
            {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// The last part of a path.
fn base(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    escape::escaped(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::reach::{Amount, Reached};

    fn frame(function: Option<&str>, file: Option<(&str, u32)>) -> NamedFrame {
        NamedFrame {
            function: function.map(str::to_owned),
            module: Some("/usr/lib/libfoo.so.1".into()),
            offset: 0x1234,
            file: file.map(|(file, _)| file.into()),
            line: file.map(|(_, line)| line),
            ..NamedFrame::default()
        }
    }

    fn lines(frames: Vec<NamedFrame>, end: WalkEnd) -> Vec<String> {
        let stack = NamedStack {
            identity: 1,
            frames: frames.into_iter().map(Arc::new).collect(),
            end,
            guessed: 0,
        };
        frame_lines(&stack, MOST_FRAMES, Some(Path::new("/home/a/parser")))
    }

    #[test]
    fn a_call_is_a_function_with_its_line_or_its_file_up_to_main() {
        let frames = vec![
            frame(Some("strdup"), None),
            frame(None, None),
            frame(Some("make(int)"), Some(("./src/../src/list.cpp", 7))),
            frame(Some("main"), Some(("src/list.cpp", 8))),
            frame(Some("__libc_start_call_main"), None),
        ];
        let at = |function: &str, location| format!("{function:20}  {location}");
        let expected = [
            at("strdup", "libfoo.so.1"),
            "[libfoo.so.1+0x1234]".to_owned(),
            at("make(int)", "src/list.cpp:7"),
            at("main", "src/list.cpp:8"),
        ];
        assert_eq!(lines(frames, WalkEnd::Complete), expected);
    }

    #[test]
    fn a_path_below_the_directory_is_shown_without_it() {
        let frames = vec![
            frame(Some("a"), Some(("/home/a/parser/src/../a.c", 1))),
            frame(Some("b"), Some(("/home/a/parser.c", 2))),
        ];
        let expected = ["a  a.c:1", "b  /home/a/parser.c:2"];
        assert_eq!(lines(frames, WalkEnd::Complete), expected);
    }

    #[test]
    fn without_main_the_start_is_cut_and_a_stack_that_ends_early_says_why() {
        let frames = vec![
            frame(Some("a"), None),
            frame(Some("__libc_start_call_main"), None),
        ];
        assert_eq!(lines(frames, WalkEnd::Complete), ["a  libfoo.so.1"]);
        let frames = vec![frame(Some("a"), None)];
        let expected = ["a  libfoo.so.1", "? the stack is deeper"];
        assert_eq!(lines(frames, WalkEnd::TooDeep), expected);
    }

    #[test]
    fn a_long_stack_is_cut_and_a_long_name_moves_only_its_own_line() {
        let long = "n".repeat(60);
        let mut frames = vec![frame(Some(&long), None)];
        frames.extend((0..40).map(|_| frame(Some("f"), None)));
        let lines = lines(frames, WalkEnd::Complete);
        assert_eq!(lines.len(), MOST_FRAMES + 1);
        assert_eq!(lines[0], format!("{long}  libfoo.so.1"));
        assert_eq!(lines[1], "f  libfoo.so.1");
        assert_eq!(lines[MOST_FRAMES], "… 17 more calls");
    }

    #[test]
    fn names_cannot_write_on_the_terminal() {
        let lines = lines(vec![frame(Some("a\x1b[2Jb"), None)], WalkEnd::Complete);
        assert!(!lines[0].contains('\x1b'), "{lines:?}");
    }

    fn place(reached: Reached, unknown: Amount, processes: u64) -> LeakPlace {
        LeakPlace {
            stack: NamedStack {
                identity: 1,
                frames: Vec::new(),
                end: WalkEnd::Complete,
                guessed: 0,
            },
            unfreed: Unfreed { reached, unknown },
            comm: b"leak".to_vec(),
            processes,
        }
    }

    fn amount(bytes: u64, blocks: u64) -> Amount {
        Amount { bytes, blocks }
    }

    #[test]
    fn the_head_says_how_much_leaked_and_in_how_many_processes() {
        let leaked =
            |bytes, blocks, processes| place(Reached::default(), amount(bytes, blocks), processes);
        assert_eq!(
            head(&leaked(1, 1, 1), false),
            "LEAKED 1 byte in 1 block, leak"
        );
        assert_eq!(head(&leaked(1, 1, 1), true), "LEAKED 1 byte in 1 block");
        assert_eq!(
            head(&leaked(705_000, 10_000, 100), false),
            "LEAKED 705,000 bytes in 10,000 blocks, leak (100 processes)"
        );
    }

    #[test]
    fn the_head_says_what_is_lost_first_and_nothing_of_what_is_reachable() {
        let lost = Reached {
            definite: amount(2_000, 50),
            indirect: amount(5_050, 50),
            reachable: amount(9, 9),
            ..Reached::default()
        };
        assert_eq!(
            head(&place(lost, Amount::default(), 1), true),
            "LOST 7,050 bytes in 100 blocks (2,000 direct, 5,050 indirect)"
        );
        let lost = Reached {
            definite: amount(6, 1),
            possible: amount(30, 2),
            ..Reached::default()
        };
        assert_eq!(
            head(&place(lost, amount(5, 1), 2), false),
            "LOST 6 bytes in 1 block, possibly lost 30 bytes in 2 blocks, leaked 5 bytes in 1 block, \
             leak (2 processes)"
        );
        let possible = Reached {
            possible: amount(30, 2),
            ..Reached::default()
        };
        assert_eq!(
            head(&place(possible, Amount::default(), 1), true),
            "POSSIBLY LOST 30 bytes in 2 blocks"
        );
    }
}
