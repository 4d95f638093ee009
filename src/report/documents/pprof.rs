//! A profile for `go tool pprof` and all that read its format, gzipped
//! (github.com/google/pprof/blob/main/proto/profile.proto).
//!
//! It has four values of each call stack: what it allocated, and what was never freed. The names of the values are those
//! of Go's heap profiles, so that a reader knows what to show first. What is lost has no value there.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::model::finished::Finished;
use crate::model::stack::NamedFrame;
use crate::report::documents::gzip;
use crate::report::documents::protobuf::Message;
use crate::report::documents::rows::{
    NumberedTexts, ProfileRow, STACK_UNKNOWN, function, missing_callers, rows,
};
use crate::text::escape;

/// Makes the document.
pub(in crate::report) fn pprof(finished: &Finished) -> Vec<u8> {
    gzip::packed(&profile(finished))
}

/// The profile before it is packed.
pub(super) fn profile(finished: &Finished) -> Vec<u8> {
    let mut profile = Profile::default();
    let mut message = Message::default();
    // The text with the number 0 is empty.
    profile.text("");
    for (kind, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        message.message(1, &profile.value_type(kind, unit));
    }
    if let Some(frame) = main_file(finished) {
        profile.mapping(frame);
    }
    let has_stacks = !finished.sites.is_empty();
    for row in rows(finished) {
        let sample = profile.sample(&row, has_stacks);
        message.message(2, &sample);
    }
    let about = &finished.about;
    let period = profile.value_type("space", "bytes");
    let default = profile.text("inuse_space");
    let comments: Vec<u64> = comments(finished)
        .iter()
        .map(|text| profile.text(text))
        .collect();
    for (field, messages) in [
        (3, &profile.mappings.messages),
        (4, &profile.locations.messages),
        (5, &profile.functions.messages),
    ] {
        for part in messages {
            message.message(field, part);
        }
    }
    for text in &profile.texts.in_order {
        message.bytes(6, text.as_bytes());
    }
    message.number(9, nanoseconds(about.began));
    message.number(10, nanoseconds(about.ended.saturating_sub(about.began)));
    message.message(11, &period);
    message.number(12, 1);
    message.numbers(13, comments);
    message.number(14, default);
    message.into_bytes()
}

/// A frame in the program that leaked most. Readers take the first mapping for the program.
fn main_file(finished: &Finished) -> Option<&NamedFrame> {
    let site = finished.sites.first()?;
    let exe = site.exe.as_deref()?.file_name()?;
    let is_in = |frame: &&NamedFrame| {
        let module = frame.module.as_deref();
        module.and_then(Path::file_name) == Some(exe)
    };
    site.stack.frames().find(is_in)
}

/// What is said of the whole profile.
fn comments(finished: &Finished) -> Vec<String> {
    let command = finished.about.command.iter();
    let command: Vec<_> = command.map(|word| escape::escaped(word)).collect();
    let command = (!command.is_empty()).then(|| format!("command: {}", command.join(" ")));
    let hosts = finished.about.hosts.iter();
    let hosts = hosts.map(|host| format!("host: {}", escape::escaped(host.as_bytes())));
    command.into_iter().chain(hosts).collect()
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    signed(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Values are signed in a profile.
fn signed(value: u64) -> u64 {
    value.min(i64::MAX as u64)
}

/// The tables of a profile. What is used is in them once, and has a number.
#[derive(Default)]
struct Profile {
    texts: NumberedTexts,
    mappings: Numbered<(String, String)>,
    functions: Numbered<(String, String, String)>,
    locations: Numbered<LocationKey>,
}

/// Mapping, address, and the functions and lines.
type LocationKey = (u64, u64, Vec<(u64, u64)>);

/// Messages with numbers from 1 on.
struct Numbered<K> {
    numbers: HashMap<K, u64>,
    messages: Vec<Message>,
}

impl<K> Default for Numbered<K> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            messages: Vec::new(),
        }
    }
}

impl<K: Eq + Hash> Numbered<K> {
    fn find(&self, key: &K) -> Option<u64> {
        self.numbers.get(key).copied()
    }

    /// Adds a message, which begins with its number.
    fn add(&mut self, key: K, fill: impl FnOnce(&mut Message)) -> u64 {
        let number = self.messages.len() as u64 + 1;
        let mut message = Message::default();
        message.number(1, number);
        fill(&mut message);
        self.messages.push(message);
        self.numbers.insert(key, number);
        number
    }
}

impl Profile {
    fn text(&mut self, text: &str) -> u64 {
        self.texts.number(text.to_owned()) as u64
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> Message {
        let (kind, unit) = (self.text(kind), self.text(unit));
        let mut message = Message::default();
        message.number(1, kind);
        message.number(2, unit);
        message
    }

    fn sample(&mut self, row: &ProfileRow, has_stacks: bool) -> Message {
        let process = row.process();
        let mut locations = Vec::new();
        if let Some(stack) = row.stack {
            // The frames that a compiler has put into another one come before that.
            for frames in stack.frames.split_inclusive(|frame| !frame.inlined) {
                locations.push(self.location(frames));
            }
            locations.extend(missing_callers(stack).map(|name| self.place(name)));
        } else if has_stacks {
            locations.push(self.place(STACK_UNKNOWN));
        }
        if locations.is_empty() {
            locations.push(self.place(&process));
        }
        let (allocated, leaked) = (row.allocated, row.leaked);
        let values = [
            allocated.blocks,
            allocated.bytes,
            leaked.blocks,
            leaked.bytes,
        ];
        let mut sample = Message::default();
        sample.numbers(1, locations);
        sample.numbers(2, values.map(signed));
        sample.message(3, &self.label("process", &process));
        if let Some(exe) = row.exe {
            sample.message(3, &self.label("exe", &shown(exe)));
        }
        sample
    }

    fn label(&mut self, key: &str, value: &str) -> Message {
        let (key, value) = (self.text(key), self.text(value));
        let mut label = Message::default();
        label.number(1, key);
        label.number(2, value);
        label
    }

    /// A physical frame, with the frames in it.
    fn location(&mut self, frames: &[Arc<NamedFrame>]) -> u64 {
        let lines: Vec<_> = frames.iter().map(|frame| self.line(frame)).collect();
        let physical = frames.last();
        let mapping = physical.map_or(0, |frame| self.mapping(frame));
        let address = physical.map_or(0, |frame| frame.offset);
        self.location_of(mapping, address, lines)
    }

    /// What is no place in code.
    fn place(&mut self, name: &str) -> u64 {
        let function = self.function(name, name, "");
        self.location_of(0, 0, vec![(function, 0)])
    }

    fn location_of(&mut self, mapping: u64, address: u64, lines: Vec<(u64, u64)>) -> u64 {
        let key = (mapping, address, lines);
        if let Some(number) = self.locations.find(&key) {
            return number;
        }
        let lines = key.2.clone();
        self.locations.add(key, |location| {
            location.number(2, mapping);
            location.number(3, address);
            for (function, number) in lines {
                let mut line = Message::default();
                line.number(1, function);
                line.number(2, number);
                location.message(4, &line);
            }
        })
    }

    /// The numbers of a frame's function and source line.
    fn line(&mut self, frame: &NamedFrame) -> (u64, u64) {
        let name = function(frame);
        let linkage = frame.linkage.as_deref();
        let linkage = linkage.map_or_else(|| name.clone(), |it| escape::escaped(it.as_bytes()));
        let file = frame.file.as_deref().map(shown).unwrap_or_default();
        let function = self.function(&name, &linkage, &file);
        (function, frame.line.unwrap_or(0).into())
    }

    fn function(&mut self, name: &str, linkage: &str, file: &str) -> u64 {
        let key = (name.to_owned(), linkage.to_owned(), file.to_owned());
        if let Some(number) = self.functions.find(&key) {
            return number;
        }
        let texts = [name, linkage, file].map(|text| self.text(text));
        self.functions.add(key, |function| {
            for (field, text) in (2..).zip(texts) {
                function.number(field, text);
            }
        })
    }

    /// The file with the code. 0: there is none.
    fn mapping(&mut self, frame: &NamedFrame) -> u64 {
        let Some(module) = &frame.module else {
            return 0;
        };
        let build_id = frame.build_id.as_deref();
        let key = (
            shown(module),
            build_id.map(escape::hexadecimal).unwrap_or_default(),
        );
        if let Some(number) = self.mappings.find(&key) {
            return number;
        }
        let (file, build_id) = (self.text(&key.0), self.text(&key.1));
        self.mappings.add(key, |mapping| {
            mapping.number(5, file);
            mapping.number(6, build_id);
            // There is nothing to look up any more: functions, files, lines and inlined frames are there.
            (7..=10).for_each(|field| mapping.number(field, 1));
        })
    }
}

fn shown(path: &Path) -> String {
    escape::escaped(path.as_os_str().as_bytes())
}
