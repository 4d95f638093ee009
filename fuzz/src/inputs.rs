//! Runs memleak's code on unknown bytes, with one function for each kind of input. A function does everything
//! that memleak would do with the bytes, and checks what must hold for the result. The fuzz targets use it, and
//! so does `tests/bounds/found.rs`, which replays the inputs that fuzzing found.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use memleak::code::follow::{self, LONGEST, Pointer, Probed, Text, Work};
use memleak::code::placement::{self, Kind, Reason};
use memleak::elf::file::ElfFile;
use memleak::elf::handlers;
use memleak::elf::symbols::{self, Companions};
use memleak::elf::unwind::UnwindTable;
use memleak::find::functions::Table;
use memleak::find::loader::{Environment, mapped_at_start};
use memleak::find::notation::{self, Spec};
use memleak::find::{Examined, ld_cache};
use memleak::inside;
use memleak::kernel::records::{self, Context};
use memleak::kernel::settings::Reading;
use memleak::kernel::shadow::Shadow;
use memleak::kernel::skeletons::types::{arrival, inside_limits, memory};
use memleak::lost::{
    self, Allocators, Area, Backing, Block, Buffer, Copied, ExitFrame, Snapshot, Thread,
};
use memleak::model::baseline::{Comparison, LeakSize};
use memleak::model::exit::Outcome;
use memleak::model::gate::Gate;
use memleak::model::image::{Image, Losses};
use memleak::model::ledger::Ledger;
use memleak::model::limits::{Allowed, Limits};
use memleak::model::reach::Amount;
use memleak::model::selection::Selection;
use memleak::os::clock::Clock;
use memleak::os::root::Root;
use memleak::os::{maps, memory_file};
use memleak::report::destination::Output;
use memleak::report::{
    Format, Options, Report, StackRow, Verbosity, Window, innermost_call, suppressed_lines,
};
use memleak::saved::{Record, SavedLines, SavedProcesses, read_baseline};
use memleak::stacks::demangle::demangled;
use memleak::stacks::file_rules::FileRules;
use memleak::stacks::identity;
use memleak::stacks::module::Module;
use memleak::stacks::perf_map::PerfMap;
use memleak::stacks::symbols::{SymbolLimits, Symbolizer};
use memleak::stacks::{
    FrameText, Generated, LeakKind, LeakKinds, Matcher, StackText, SuppressedSums, Suppressions,
    generate,
};

/// The functions that memleak looks for, and some that a user describes.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let Ok(Spec::One(own)) = notation::parse("program:alloc=my_alloc,new=main,free=my_free") else {
        panic!("the text describes one allocator");
    };
    Table::new(vec![own]).expect("the table has room")
});

/// This system's C library; empty if it is in another place.
static LIBC: LazyLock<Vec<u8>> =
    LazyLock::new(|| fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap_or_default());

/// A patch of a file: an offset, and eight bytes.
const PATCH: usize = 12;

/// Patches of the C library: makes a library that counts by itself, if that is possible still.
pub fn edited(bytes: &[u8]) {
    let mut libc = LIBC.clone();
    for patch in bytes.chunks_exact(PATCH) {
        let (offset, value) = patch.split_at(4);
        let offset = u32::from_le_bytes(offset.try_into().expect("four bytes")) as usize;
        if let Some(place) = libc.get_mut(offset..offset.saturating_add(value.len())) {
            place.copy_from_slice(value);
        }
    }
    let _ = inside::uses_own_word(&libc);
    if let Ok(edited) = inside::edit(&libc) {
        assert!(edited.announced < edited.bytes.len() as u64);
        assert!(edited.bytes.len() < libc.len() + (4 << 20));
        if let Ok(elf) = ElfFile::in_memory(&*edited.bytes) {
            assert!(elf.text_segment(edited.announced).is_some());
        }
    }
}

/// A file that a process of the tree executes: finds its allocator, the places of the probes, and the files that
/// its loader would map.
pub fn elf(bytes: &[u8]) {
    // The process that maps the file has a root directory with no other file.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("program");
    fs::write(&path, bytes).expect("it can be written");
    let root = Root::at(directory.path()).expect("it is a directory");
    let seen_as = PathBuf::from("/program");
    let file = File::open(&path).expect("it is there");
    if let Ok(examined) = Examined::look(seen_as.clone(), file, &root, &TABLE) {
        for site in &examined.findings.sites {
            assert!(site.file_offset < bytes.len() as u64, "{site:?}");
            assert_one_line(&site.placement.to_string());
        }
    }
    let environment = Environment {
        library_path: "/lib".into(),
        preload: "program".into(),
    };
    if let Ok(files) = mapped_at_start(&seen_as, &environment, &root) {
        assert_eq!(files[0], seen_as);
    }
    let Ok(elf) = ElfFile::in_memory(bytes) else {
        return;
    };
    let _ = (elf.shape(), elf.interpreter(), elf.build_id());
    assert_in_order(&FileRules::read(&elf), bytes.len());
    let _ = symbols::exported(&elf, "_rtld_global");
    // Reads the symbols as those of a program with debug data beside it, whatever the file seems to be.
    let names = symbols::Names::new(["malloc", "free", "_Znwm", "je_malloc", "main"]);
    let companions = Companions {
        root: &root,
        path: &seen_as,
    };
    let _ = symbols::find(&elf, &names, Some(companions));
    if let Some(table) = UnwindTable::read(&elf) {
        for segment in elf.segments() {
            if let Some(covered) = table.covering(segment.address) {
                assert!(covered.range.contains(&segment.address));
            }
        }
    }
}

/// Fails unless the rules of a file of so many bytes are in order, and no more than its tables can have: a byte for each
/// row, in each of two sections, and those that are added at the entry point.
pub fn assert_in_order(rules: &FileRules, bytes: usize) {
    let is_sorted = rules.rows.is_sorted_by(|(one, _), (next, _)| one < next);
    assert!(is_sorted && rules.rows.len() <= 2 * bytes + 2);
}

/// A function's table of exception handlers, at any address.
pub fn handlers(bytes: &[u8]) {
    let Some((address, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let address = u64::from_le_bytes(*address);
    if let Some(pads) = handlers::stops_all(bytes, address, !address) {
        assert!(pads.is_sorted() && pads.len() <= bytes.len());
    }
}

/// A file whose functions and lines are shown, or what is no ELF file: a perf map, and a list of mangled names.
pub fn symbols(bytes: &[u8]) {
    // Less than a run has, so that an input that takes too much shows.
    const LIMITS: SymbolLimits = SymbolLimits {
        memory: 32 << 20,
        files: 2,
    };
    let map = PerfMap::parse(bytes.to_vec());
    let numbers = bytes.chunks_exact(8).map(|word| {
        let word = <[u8; 8]>::try_from(word).expect("eight bytes");
        u64::from_le_bytes(word)
    });
    for address in numbers.take(16) {
        assert!(map.name(address).is_none_or(|name| !name.is_empty()));
    }
    let Ok(elf) = ElfFile::in_memory(bytes) else {
        for name in String::from_utf8_lossy(bytes).lines().take(64) {
            assert!(demangled(name).len() <= 4096);
            assert!(identity::stable_name(name).len() <= name.len());
        }
        return;
    };
    let mut addresses = Vec::new();
    for segment in elf.segments().iter().take(4) {
        let step = (segment.size / 16).max(1);
        addresses.extend((0..16).map(|n| segment.address.wrapping_add(n * step)));
    }
    addresses.push(u64::MAX);
    let file = memory_file::file_of(c"file", bytes).expect("there is memory");
    // The process has a root directory without any file.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = Rc::new(Root::at(directory.path()).expect("it is a directory"));
    let module = Module::new(0, &file, b"/bin/file", root).expect("it has a status");
    let mut symbolizer = Symbolizer::new(LIMITS);
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(1);
        let names = symbolizer.name(&module, &addresses, deadline);
        assert_eq!(names.len(), addresses.len());
        for names in names {
            for (left, named) in names.iter().rev().enumerate() {
                assert_eq!(named.inlined, left > 0);
                assert!(named.function.len() <= 4096 && !named.linkage.is_empty());
            }
        }
    }
    assert_eq!(symbolizer.left_out().failed, 0);
}

/// Code at the beginning of the address space, at its end, or between. The bytes say where pointers are.
struct Code<'a> {
    base: u64,
    bytes: &'a [u8],
}

impl Code<'_> {
    fn at(&self, address: u64) -> &[u8] {
        let at = address
            .checked_sub(self.base)
            .and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }
}

impl Text for Code<'_> {
    fn code<'b>(&self, address: u64, buffer: &'b mut [u8; LONGEST]) -> &'b [u8] {
        let code = self.at(address);
        let length = code.len().min(LONGEST);
        buffer[..length].copy_from_slice(&code[..length]);
        &buffer[..length]
    }

    fn pointer(&self, address: u64) -> Pointer {
        match *self.at(address) {
            [0, low, high, ..] => Pointer::Here(
                self.base
                    .wrapping_add(u64::from(low) | u64::from(high) << 8),
            ),
            [1, ..] => Pointer::NeverReturns,
            [2, ..] => Pointer::Probed,
            _ => Pointer::Unknown,
        }
    }

    fn function(&self, address: u64) -> Option<Probed> {
        match address % 64 {
            16 => Some(Probed::Allocates),
            32 => Some(Probed::MayThrow),
            48 => Some(Probed::Frees),
            _ => None,
        }
    }
}

/// A function's code: finds the place of its probe, and where the function returns.
pub fn code(bytes: &[u8]) {
    let Some((&place, bytes)) = bytes.split_first() else {
        return;
    };
    let placement = placement::place(bytes, &[place & 7, place >> 3 & 7]);
    assert!(placement.offset == 0 || placement.offset < bytes.len() as u64);
    // The probe leaves the entry only for a better place.
    let better = placement.kind == Kind::Emulated || placement.reason == Reason::FirstTaken;
    assert!(placement.offset == 0 || better);
    assert_one_line(&placement.to_string());
    assert_one_line(&placement::placed_on(bytes).0);
    let base = match place >> 6 {
        0 => 0,
        1 => u64::MAX - (bytes.len() as u64).saturating_sub(1),
        2 => 1 << 47,
        _ => 0x1000,
    };
    let text = Code { base, bytes };
    for work in [Work::Allocates, Work::Frees, Work::FreesAndThrows] {
        let Ok(followed) = follow::follow(&text, base, work) else {
            continue;
        };
        for at in followed.returns.iter().chain(&followed.exits) {
            assert!(!text.at(*at).is_empty(), "{at:x} is not in the code");
        }
        for at in followed.calls.iter().chain(&followed.tables) {
            assert!(!text.at(*at).is_empty(), "{at:x} is not in the code");
        }
        follow::calls_below(&text, followed.callees);
    }
    let _ = follow::follow_part(&text, base);
    follow::calls_below(&text, BTreeSet::from([base]));
}

/// The loader's cache, in the root directory of a command.
pub fn ld_cache(bytes: &[u8]) {
    // The name to look up is that of a real library, or any bytes.
    let length = usize::from(bytes.first().copied().unwrap_or_default() % 32);
    let any = bytes.get(1..=length).unwrap_or_default();
    for cache in [bytes, bytes.get(1 + length..).unwrap_or_default()] {
        for name in [b"libc.so.6", any] {
            if let Some(path) = ld_cache::look_up(cache, name, &["x86-64-v3", "x86-64-v2"]) {
                assert!(path.as_os_str().len() <= cache.len());
            }
        }
    }
}

/// The mappings of a process, as /proc shows them.
pub fn maps(bytes: &[u8]) {
    let lines = bytes.split(|&byte| byte == b'\n').count();
    let mut found = 0;
    let read = maps::executables(bytes, |mapping| {
        found += 1;
        assert!(mapping.inode != 0 && !mapping.addresses.is_empty());
        Ok(())
    });
    assert!(read.is_ok() && found <= lines);
}

/// The memory of a process and its blocks: a heap, a library's data and an anonymous mapping, whose words are mostly
/// addresses in these.
pub fn reach(bytes: &[u8]) {
    const STARTS: [u64; 4] = [
        0x5555_0000_0000,
        0x7f00_0000_0000,
        0x7e00_0000_0000,
        1 << 46,
    ];
    let Some((&shape, bytes)) = bytes.split_first() else {
        return;
    };
    // A word is a number, or an address: two bits of the byte say in which mapping, and seven how far from its start.
    let words = bytes.chunks_exact(2).map(|pair| {
        let (low, high) = (u64::from(pair[0]), u64::from(pair[1]));
        match high >> 6 {
            0 => low | high << 8,
            1 => STARTS[(low & 3) as usize] + (high & 0x3f) * 16 + (low & 0x1c),
            2 => STARTS[(low & 3) as usize] + (low >> 2) * 64 * 8 + (high & 0x3f) * 8,
            _ => u64::MAX << (low & 63),
        }
    });
    let words: Vec<u64> = words.collect();
    let (blocks, contents) = words.split_at(words.len() / 4);
    let blocks: Vec<Block> = blocks
        .chunks_exact(2)
        .map(|pair| Block {
            address: pair[0],
            size: pair[1],
            stack: 0,
        })
        .collect();
    let part = contents.len() / STARTS.len();
    let mut buffer = Buffer::new(contents.len() * 8).expect("there is memory");
    for (to, word) in buffer.bytes_mut().chunks_exact_mut(8).zip(contents) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let backings = [
        Backing::Heap,
        Backing::File,
        Backing::Anonymous,
        Backing::Stack,
    ];
    let mut areas = Vec::new();
    let mut copies = Vec::new();
    let mut order = [0, 2, 1, 3];
    order.sort_by_key(|&at| STARTS[at]);
    for at in order {
        let (start, end) = (STARTS[at], STARTS[at] + part as u64 * 8);
        areas.push(Area {
            start: start - 4096,
            end: start,
            offset: 0,
            readable: shape & 1 != 0,
            writable: false,
            executable: true,
            shared: false,
            backing: Backing::File,
        });
        areas.push(Area {
            start,
            end: end.next_multiple_of(4096).max(start + 4096),
            offset: 0,
            readable: true,
            writable: shape & 2 == 0,
            executable: false,
            shared: false,
            backing: backings[at],
        });
        copies.push(Copied {
            start,
            end,
            at: at * part,
            is_files: false,
        });
    }
    let word = |at: usize| contents.get(at).copied().unwrap_or_default();
    let threads = vec![Thread {
        registers: contents.iter().take(16).copied().collect(),
        sp: word(17),
        tls: word(18),
        at_end: shape & 4 != 0,
    }];
    let frames = [ExitFrame {
        return_offset: word(19) & 4095,
        size: word(20),
        left_out: vec![word(21)..word(22), 8..word(20)],
    }];
    let snapshot = Snapshot::new(areas, copies, threads, buffer);
    for allocators in [Allocators::Glibc, Allocators::Mappings, Allocators::Unknown] {
        let judged = lost::judge(&snapshot, blocks.clone(), allocators, &frames);
        let sums = judged.reached;
        let all = sums.lost() + sums.possible + sums.reachable;
        assert_eq!(all.blocks, judged.states().count() as u64);
        assert!(all.blocks <= blocks.len() as u64);
    }
}

/// Where the process of [`shadow`] keeps what it remembers, and where its heap is: a zone of its own.
const REMEMBERED: u64 = 0x7f00_0000_0000;
const ZONE: u64 = 0x5555_5540_0000;

/// An entry of the table of leaves: the first leaf of the process covers its heap.
pub fn first_leaf() -> u64 {
    let leaf = REMEMBERED + offset_of!(memory, pool) as u64;
    let zone = ZONE >> inside_limits::ZONE_BITS.0;
    leaf >> inside_limits::PAGE_BITS.0 << inside_limits::ZONE_NUMBER_BITS.0 | zone
}

/// The blocks that a process remembers itself. The input has changes of 12 bytes: what is changed (0 to 4), nothing, the
/// place, and a word.
pub fn shadow(bytes: &[u8]) {
    const HEAP_SIZE: usize = 1 << 19;
    const MOST: usize = 10_000;
    let mut remembered = vec![0_u64; size_of::<memory>() / 8];
    let mut heap = vec![0_u64; HEAP_SIZE / 8];
    remembered[0] = u64::from_le_bytes(*b"memleak1");
    for change in bytes.chunks_exact(12) {
        let place = usize::from(u16::from_le_bytes([change[2], change[3]]));
        let word = u64::from_le_bytes(change[4..].try_into().expect("there are eight bytes"));
        let (words, from) = match change[0] % 5 {
            0 => (&mut remembered, 0),
            1 => (&mut remembered, offset_of!(memory, leaves)),
            2 => (&mut remembered, offset_of!(memory, pool)),
            3 => (&mut remembered, offset_of!(memory, wiped)),
            _ => (&mut heap, 0),
        };
        if let Some(at) = words.get_mut(from / 8 + place) {
            *at = word;
        }
    }
    let mut buffer = Buffer::new((remembered.len() + heap.len()) * 8).expect("there is memory");
    let words = heap.iter().chain(&remembered);
    for (to, word) in buffer.bytes_mut().chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let copy = |start: u64, words: &[u64], at: usize| Copied {
        start,
        end: start + words.len() as u64 * 8,
        at,
        is_files: false,
    };
    let copies = vec![
        copy(ZONE, &heap, 0),
        copy(REMEMBERED, &remembered, heap.len()),
    ];
    let snapshot = Snapshot::new(Vec::new(), copies, Vec::new(), buffer);
    if let Ok(found) = Shadow::read(&snapshot, REMEMBERED, MOST) {
        assert!(found.live.blocks.len() <= MOST);
        let judged = lost::judge(&snapshot, found.live, Allocators::Glibc, &[]);
        let sums = judged.reached;
        let all = sums.lost() + sums.possible + sums.reachable;
        assert_eq!(all.blocks, judged.states().count() as u64);
    }
}

/// The description of an allocator, on the command line and in a file.
pub fn allocators_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let own = match notation::parse(text) {
        Ok(Spec::One(allocator)) => vec![allocator],
        Ok(Spec::File(_)) => Vec::new(),
        Err(error) => {
            assert_one_line(&error.to_string());
            Vec::new()
        }
    };
    let listed = notation::parse_toml(text, Path::new("allocators.toml")).unwrap_or_else(|error| {
        assert_one_line(&error.to_string());
        Vec::new()
    });
    for allocators in [own, listed] {
        if let Err(error) = Table::new(allocators) {
            assert_one_line(&error.to_string());
        }
    }
}

/// A file of suppressions, tried on stacks. The lines of the file also name the frames of a stack.
pub fn suppressions(bytes: &[u8]) {
    let mut list = Suppressions::default();
    if let Err(error) = list.add("a\x1b[2J.supp", bytes) {
        assert_one_line(&error.to_string());
        assert!(list.is_empty());
    }
    let text = String::from_utf8_lossy(bytes);
    let names: Vec<&str> = text.lines().take(40).collect();
    let after = |line: &'_ str, prefix| line.trim().strip_prefix(prefix).map(str::to_owned);
    let named: Vec<_> = names
        .iter()
        .map(|line| after(line, "fun:").or(after(line, "leak:")))
        .collect();
    let frames: Vec<FrameText> = names
        .iter()
        .zip(&named)
        .enumerate()
        .map(|(at, (line, name))| FrameText {
            function: name.as_deref(),
            linkage: (at % 3 == 0).then_some(*line),
            file: (at % 2 == 0).then_some(*line),
            line: Some(at as u32),
            module: if at % 5 == 0 { line } else { "/lib/liba.so" },
            inlined: at % 7 == 1,
        })
        .collect();
    let stack = StackText {
        allocator: FrameText {
            function: Some("malloc"),
            ..FrameText::default()
        },
        frames: &frames,
    };
    let mut sums = SuppressedSums::new(&list);
    let mut matcher = Matcher::new(&list);
    let found = matcher.find(&stack, LeakKind::Definite);
    // The frames are remembered, and the answer is the same.
    assert_eq!(found, matcher.find(&stack, LeakKind::Definite));
    let amount = Amount {
        bytes: 1,
        blocks: 1,
    };
    sums.add(
        &found
            .map(|number| (number, amount))
            .into_iter()
            .collect::<Vec<_>>(),
    );
    for line in suppressed_lines(&sums.uses(&list)) {
        assert_one_line(&line);
    }
    for syntax in [Generated::Valgrind, Generated::Lsan] {
        let Some(made) = generate(syntax, &stack, LeakKinds::ALL) else {
            continue;
        };
        let mut list = Suppressions::default();
        let read = list.add("made", made.as_bytes());
        assert!(read.is_ok(), "{read:?}: {made}");
        assert_eq!(list.list().len(), 1, "{made}");
        let found = Matcher::new(&list).find(&stack, LeakKind::Definite);
        assert_eq!(found, Some(0), "{made}");
    }
}

/// What memleak has saved: reads its records, writes them again, and compares them with the baseline that they make.
pub fn saved(bytes: &[u8]) {
    let baseline = read_baseline(bytes);
    if let Err(error) = &baseline {
        assert_one_line(&format!("{error:#}"));
    }
    let mut comparison = Comparison::new(baseline.unwrap_or_default(), true);
    let mut ledger = Ledger::new(None);
    let mut processes = SavedProcesses::default();
    let mut numbers = 0;
    for line in SavedLines::new(bytes) {
        let line = line.expect("the bytes are in memory");
        assert!(line.number > numbers);
        numbers = line.number;
        let record = match line.record {
            Ok(record) => record,
            Err(error) => {
                assert_one_line(&error.to_string());
                continue;
            }
        };
        let written = Written::default();
        let mut report = Report::default();
        let memory = Output::new("memory", Box::new(written.clone()));
        report.add(Format::Json, Options::default(), memory);
        match record {
            Record::Process(saved) => {
                let image = &saved.image;
                ledger.record(image);
                comparison.image(image, LeakSize::of(image), None);
                let _ = processes.complete();
                let id = (image.pid, image.image);
                assert_eq!(processes.add(image, id), Ok(()));
                assert!(report.image(image, None).is_empty());
            }
            Record::Stack(saved) => {
                let id = (saved.pid, saved.image);
                let found = processes.of_stack(id, saved.leaked());
                assert!(found.is_none_or(|found| *found == id));
                assert_one_line(&innermost_call(&saved.stack));
                let row = StackRow {
                    pid: saved.pid,
                    image: saved.image,
                    share: &saved.share,
                    stack: &saved.stack,
                    suppressed_by: None,
                    suppressed: Amount::default(),
                    kept: Amount::default(),
                };
                assert!(report.stack(&row).is_empty());
            }
            Record::Summary(_) | Record::Other => continue,
        }
        // What was read can be written, and is the same then.
        let line = written.take();
        let text = std::str::from_utf8(&line).expect("JSON is text");
        assert_one_line(text.trim_end_matches('\n'));
        for line in SavedLines::new(&*line) {
            let read = line.expect("it is in memory").record;
            match read.expect("memleak has written it") {
                Record::Process(saved) => assert!(report.image(&saved.image, None).is_empty()),
                Record::Stack(saved) => assert!(!saved.is_look),
                other => panic!("{other:?} was written"),
            }
        }
    }
    ledger.finish(Losses::default(), Outcome::Saved);
    comparison.finish(&Selection::default());
}

/// What the BPF programs send, up to the report in every format.
pub fn events(bytes: &[u8]) {
    let Some((&shape, rest)) = bytes.split_first() else {
        return;
    };
    let _ = records::plain_from_bytes::<arrival>(rest);
    let (threads, rest) = rest.split_at(rest.len().min(usize::from(shape & 3) * 128));
    let threads = records::thread_sums_from_bytes(threads);
    let (cell, rest) = rest.split_at(rest.len().min(usize::from(shape >> 2 & 1) * 64));
    let cell = records::plain_from_bytes(cell);
    let Some(record) = records::heap_from_bytes(rest) else {
        return;
    };
    let context = Context {
        clock: Clock::beginning_at(Duration::from_secs(1_761_153_780)),
        files: vec!["/lib/libc.so.6".into(), "=lib\x1b[2J/jemalloc".into()],
        reading: Reading::On,
        compares: false,
    };
    records::is_outside(&record, &threads);
    let _ = (records::users(&record), records::joined(&threads));
    let ended = records::ended_image(&record, &context);
    let running = records::running_image(&record, &threads, cell.as_ref(), u64::MAX, &context);
    let named = Image {
        user: Some(String::from_utf8_lossy(&ended.comm).into_owned()),
        ..ended.clone()
    };
    let images = [ended, running, named];
    let limits = Limits {
        process: Some(1 << 20),
        total: Some(u64::MAX),
    };
    let allowed = Allowed {
        leak: limits,
        lost: limits,
    };
    for format in [
        Format::Table,
        Format::Json,
        Format::Csv,
        Format::Prometheus,
        Format::Influx,
    ] {
        let mut ledger = Ledger::new(Gate::new(allowed, Selection::default()));
        let written = Written::default();
        let options = Options {
            verbosity: Verbosity::Verbose,
            lost: true,
            ..Options::default()
        };
        let mut report = Report::default();
        let memory = Output::new("memory", Box::new(written.clone()));
        report.add(format, options, memory);
        for image in &images {
            let verdict = ledger.record(image);
            assert!(report.image(image, verdict).is_empty());
        }
        let window = Window {
            start: Duration::ZERO,
            end: Duration::MAX,
            images: images.to_vec(),
        };
        assert!(report.window(&window).is_empty());
        let summary = ledger.finish(Losses::default(), Outcome::Exited(0));
        assert!(report.summary(&summary).is_empty());
        check(format, &written.take());
    }
}

/// The most sentences at the end of a table: sums, the gate's verdict, patterns without a match, what is not known to be
/// lost, what was missed, what still runs, and a hint.
const MOST_SENTENCES: usize = 7;

/// Checks that a report has one line for each item, and no characters that a terminal would act on.
fn check(format: Format, report: &[u8]) {
    let text = std::str::from_utf8(report).expect("a report is text");
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().for_each(|line| assert_one_line(line));
    // The lines are 3 images as they end, 3 images in a window, and the summary. In a table, that has several sentences.
    let is_end = |line: &&&str| line.starts_with("memleak: ");
    let ends = match format {
        Format::Table => lines.iter().filter(is_end).count(),
        _ => 1,
    };
    assert!((1..=MOST_SENTENCES).contains(&ends), "{text}");
    let headings = match format {
        Format::Table => 3,
        Format::Json => 0,
        Format::Csv => 1,
        Format::Influx => return lines.iter().for_each(|line| assert_point(line)),
        Format::Prometheus => return lines.iter().for_each(|line| assert_metric(line)),
        document => panic!("{document:?} has no rows"),
    };
    assert_eq!(lines.len(), headings + 6 + ends, "{text}");
    match format {
        Format::Json => {
            for line in lines {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON");
            }
        }
        Format::Csv => {
            let fields = |line: &str| {
                let mut quoted = false;
                let is_comma = |c| {
                    quoted ^= c == '"';
                    c == ',' && !quoted
                };
                let fields = line.split(is_comma).map(|field| field.trim_matches('"'));
                fields.map(str::to_owned).collect::<Vec<_>>()
            };
            let columns = fields(lines[0]).len();
            for line in &lines {
                let fields = fields(line);
                assert_eq!(fields.len(), columns, "{line}");
                // A spreadsheet takes such a field for a formula. Of the numbers only growth may be negative.
                let formula = |field: &String| field.starts_with(['=', '+', '-', '@']);
                assert!(!fields.iter().any(formula), "{line}");
            }
        }
        _ => {}
    }
}

/// Checks that a line is a point: a name and tags, fields, and a time, with no other space that is not escaped.
fn assert_point(line: &str) {
    let mut spaces = 0;
    let mut escaped = false;
    for c in line.chars() {
        spaces += u32::from(c == ' ' && !escaped);
        // A backslash does not escape another one.
        escaped = c == '\\';
    }
    assert_eq!(spaces, 2, "{line}");
    assert!(
        line.starts_with("memleak_process,") && !line.contains("=,"),
        "{line}"
    );
}

/// Checks that a line is a comment or a sample: a name, labels whose quotes are balanced, and a number.
fn assert_metric(line: &str) {
    let Some(rest) = line.strip_prefix("memleak_") else {
        return assert!(line.starts_with("# "), "{line}");
    };
    let (series, value) = rest.rsplit_once(' ').expect("a name and a value");
    value.parse::<f64>().expect("a number");
    let Some((_, labels)) = series.split_once('{') else {
        return assert!(!series.contains([' ', '"']), "{line}");
    };
    let mut labels = labels.strip_suffix('}').expect("a brace at the end");
    while !labels.is_empty() {
        let (_, value) = labels.split_once("=\"").expect("a name and a quote");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let rest = &value[end.expect("a closing quote") + 1..];
        labels = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// Checks that the text is one line. A tab is allowed, since it does a terminal no harm.
fn assert_one_line(text: &str) {
    let breaks = |c: char| c.is_control() && c != '\t';
    assert!(!text.contains(breaks), "{text:?}");
}

/// A writer that keeps what is written to it.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().expect("no thread panicked"))
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("no thread panicked")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
