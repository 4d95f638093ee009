//! Inputs that once caused a fault, and inputs made to cause one. Each reader of unknown bytes must read them in
//! bounded time and memory. `make fuzz` searches for more such inputs. Its finds go to `fuzz/found/`, minimised.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::{HELD, MOST, alone, debug_info, inputs};

/// The bytes that reading an input may hold: unpacked symbols and the dictionary for them.
const ENOUGH: usize = 160 << 20;

/// The time that reading an input may take, in a build that is not optimised, on a machine with other work.
const LONG: Duration = Duration::from_secs(5);

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 13] = [
    ("elf", inputs::elf),
    ("code", inputs::code),
    ("handlers", inputs::handlers),
    ("ld_cache", inputs::ld_cache),
    ("maps", inputs::maps),
    ("allocators_toml", inputs::allocators_toml),
    ("events", inputs::events),
    ("reach", inputs::reach),
    ("shadow", inputs::shadow),
    ("suppressions", inputs::suppressions),
    ("symbols", inputs::symbols),
    ("edited", inputs::edited),
    ("saved", inputs::saved),
];

/// Reads an input. The error names the fault of the reader.
fn judge(target: Target, bytes: Vec<u8>, long: Duration) -> Result<(), String> {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let (done, finished) = channel();
    thread::spawn(move || {
        let read = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        // After the timeout, the receiver no longer exists.
        let _ = done.send(read.is_ok());
    });
    match finished.recv_timeout(long) {
        Ok(true) => {}
        Ok(false) => return Err("reading panics".to_owned()),
        Err(RecvTimeoutError::Timeout) => return Err(format!("reading takes more than {long:?}")),
        Err(RecvTimeoutError::Disconnected) => return Err("reading ends the thread".to_owned()),
    }
    match MOST.load(Relaxed).saturating_sub(before) {
        most if most > ENOUGH => Err(format!("reading takes {most} bytes")),
        _ => Ok(()),
    }
}

/// A process that remembers a block in each cell of a leaf.
fn full_leaf() -> Vec<u8> {
    let change = |kind: u8, place: u16, word: u64| {
        let [low, high] = place.to_le_bytes();
        [&[kind, 0, low, high], &word.to_le_bytes()[..]].concat()
    };
    let mut changes = change(1, 0, inputs::first_leaf());
    for place in 0..1 << 14 {
        changes.extend(change(2, place, u64::MAX / 255));
        changes.extend(change(4, place, 0x21));
    }
    changes
}

/// Inputs made to cause a fault, too long for files in the tree: for each its name, its reader and its bytes.
fn nasty() -> Vec<(&'static str, Target, Vec<u8>)> {
    let mut inputs: Vec<(&str, Target, Vec<u8>)> = Vec::new();
    // Each group is `lea n(%rip),%rax`, a `je` to the next group, and a `jmp *%rax`.
    let mut jumps = vec![0x80];
    for n in 0_u32..1500 {
        jumps.extend([0x48, 0x8d, 0x05]);
        jumps.extend(n.to_le_bytes());
        jumps.extend([0x74, 0x02, 0xff, 0xe0]);
    }
    inputs.push(("jumps from everywhere to everywhere", inputs::code, jumps));
    // Each instruction calls the next one.
    let calls = [&[0x80][..], &[0xe8, 0, 0, 0, 0].repeat(500)].concat();
    inputs.push(("calls of everything", inputs::code, calls));

    // 5,000 calls with landing pads, each with a chain of actions that leads back to its start.
    let mut handlers = vec![0; 8];
    handlers.extend([0xff, 0x9b, 0xff, 0xff, 0x03, 0x01, 0xa0, 0x9c, 0x01]);
    handlers.extend([1, 1, 1, 1].repeat(5_000));
    handlers.extend([0, 0x7f]);
    handlers.resize(1 << 17, 0);
    inputs.push(("actions in a circle", inputs::handlers, handlers));
    let all = [0xff; 1 << 17].to_vec();
    inputs.push(("values without an end", inputs::handlers, all));

    let mut endless = Vec::new();
    for _ in 0..100_000 {
        endless.extend(b"1-2 r-xp 0 0:0 1 /\\012 \xff\x1b[2J\n");
    }
    inputs.push(("many mappings of one file", inputs::maps, endless));
    inputs.push((
        "a line without an end",
        inputs::maps,
        [b"1-2 r-xp 0 0:0 1 ".as_slice(), &vec![b'x'; 1 << 20]].concat(),
    ));

    // Words that are addresses in each mapping, in all orders.
    let mut state = 1_u32;
    let mixed: Vec<u8> = (0..1 << 19)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    inputs.push(("addresses of everything", inputs::reach, mixed));
    inputs.push(("blocks at one place", inputs::reach, vec![0x41; 1 << 19]));
    inputs.push(("a block in each cell", inputs::shadow, full_leaf()));

    for (name, text) in [
        ("brackets in brackets", "[".repeat(20_000)),
        ("arrays in arrays", format!("a={}", "[".repeat(50_000))),
        ("tables in tables", format!("a={}", "{a=".repeat(20_000))),
        ("names in names", format!("{}=1", "a.".repeat(20_000))),
        ("parentheses", format!("x:alloc={}", "(".repeat(50_000))),
        ("commas", format!("x:alloc=f{}", ",".repeat(50_000))),
        (
            "a name that clears the screen",
            "\x1b[2J\u{9b}2J:alloc=f(\x1b[2J)".to_owned(),
        ),
    ] {
        inputs.push((name, inputs::allocators_toml, text.into_bytes()));
    }

    let block = |frames: String| format!("{{\nn\nMemcheck:Leak\n{frames}}}\n");
    for (name, text) in [
        ("stars and stars", format!("leak:{}b", "a*".repeat(100_000))),
        ("blocks in blocks", "{\n".repeat(100_000)),
        (
            "frames without an end",
            format!("{{\nn\nMemcheck:Leak\n{}", "...\n".repeat(400)),
        ),
        (
            "any frames between any frames",
            block("...\nfun:*a*\n".repeat(250)).repeat(50),
        ),
        (
            "long names",
            block(format!("fun:{}\n", "?a*".repeat(50_000))),
        ),
        ("many suppressions", "leak:x\n".repeat(100_000)),
        (
            "parentheses in names",
            format!("leak:{}", "(".repeat(100_000)),
        ),
    ] {
        inputs.push((name, inputs::suppressions, text.into_bytes()));
    }

    for (name, byte) in [
        ("all counts at their limit", 0xff),
        ("nothing but zeros", 0),
    ] {
        for shape in [0, 7] {
            let mut bytes = vec![byte; 2 + 3 * 128 + 64 + 600];
            bytes[0] = shape;
            inputs.push((name, inputs::events, bytes));
        }
    }
    inputs.push(("names that repaint and compute", inputs::events, {
        let text = b"=1+1\x1b[2J\n-2\t@x\r\0";
        [&[0], &text.repeat(60)[..]].concat()
    }));

    // A record of a stack, whose frames are these.
    let stack = |frames: &str| {
        let amounts = r#""alloc_bytes":1,"alloc_count":1,"leaked_bytes":1,"leaked_blocks":1"#;
        let head = r#"{"schema":"memleak/1","type":"stack","pid":1,"image":0,"stack":"1","#;
        format!("{head}{amounts},\"walk\":\"complete\",\"frames\":[{frames}]}}\n")
    };
    let frame = r#"{"function":"\u001b[2J","module":"/\u009b","build_id":"é","offset":1,"file":"\ud800","line":1,"inlined":true}"#;
    for (name, text) in [
        ("lists in lists", format!("{{\"a\":{}", "[".repeat(200_000))),
        ("objects in objects", "{\"a\":".repeat(100_000)),
        ("a line that does not end", "x".repeat(20 << 20)),
        ("lines without anything", "\n".repeat(200_000)),
        ("frames in one stack", stack(&vec![frame; 5_000].join(","))),
        (
            "a schema that repaints",
            "{\"schema\":\"\\u001b[2J\\n\",\"type\":\"process\"}".to_owned(),
        ),
        ("stacks of nobody", stack("").repeat(5_000)),
    ] {
        inputs.push((name, inputs::saved, text.into_bytes()));
    }
    inputs
}

#[test]
fn every_known_bad_input_is_read_in_bounded_time_and_memory() {
    let _alone = alone();
    // `judge` detects a panic, too much memory, and a read that does not end.
    const MOMENT: Duration = Duration::from_millis(50);
    assert!(judge(|_| panic!("this panic is intended"), Vec::new(), LONG).is_err());
    assert!(judge(|_| drop(vec![1_u8; 2 * ENOUGH]), Vec::new(), LONG).is_err());
    assert!(judge(|_| thread::sleep(10 * MOMENT), Vec::new(), MOMENT).is_err());

    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    let debug_info = debug_info::nasty().into_iter();
    let debug_info = debug_info.map(|(name, bytes)| (name, inputs::symbols as Target, bytes));
    for (name, target, bytes) in nasty().into_iter().chain(debug_info) {
        if let Err(error) = judge(target, bytes, LONG) {
            wrong.push(format!("{name}: {error}"));
        }
        names.insert(name);
    }
    assert!(names.len() > 10, "{names:?}");
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/found");
    for (name, target) in TARGETS {
        let inputs = fs::read_dir(found.join(name)).expect("each target has a directory");
        for input in inputs {
            let path = input.unwrap().path();
            if let Err(error) = judge(target, fs::read(&path).unwrap(), LONG) {
                wrong.push(format!("{}: {error}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
