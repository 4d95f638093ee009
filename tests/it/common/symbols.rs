//! The names of functions, from the symbol tables of files.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use object::{Object, ObjectSymbol, SymbolFlags, elf};

use super::unwinder::Frame;

struct Symbol {
    start: u64,
    end: u64,
    name: String,
}

type Table = Arc<Vec<Symbol>>;

/// The functions of a file, in the order of their addresses.
fn functions(path: &Path) -> Table {
    static KNOWN: LazyLock<Mutex<HashMap<Arc<Path>, Table>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().expect("no test panics here");
    let found = known.entry(path.into()).or_insert_with(|| {
        let mut table = Vec::new();
        let data = fs::read(path).unwrap_or_default();
        if let Ok(file) = object::File::parse(&*data) {
            // The symbol of an indirect function is not the function that runs, and has another kind.
            let is_function = |s: &object::Symbol| match s.flags() {
                SymbolFlags::Elf { st_info, .. } => {
                    st_info.st_type() == elf::STT_FUNC && s.is_definition()
                }
                _ => false,
            };
            for symbol in file.symbols().chain(file.dynamic_symbols()) {
                if is_function(&symbol) {
                    table.push(Symbol {
                        start: symbol.address(),
                        end: symbol.address() + symbol.size(),
                        name: symbol.name().unwrap_or_default().to_string(),
                    });
                }
            }
        }
        table.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
        table.dedup_by(|a, b| (a.start, &a.name) == (b.start, &b.name));
        Arc::new(table)
    });
    Arc::clone(found)
}

/// All names of the function that has the frame. `interrupted`: by a signal. The address of another frame is where a
/// call returns to, which may be the next function's beginning.
pub fn names(frame: &Frame, interrupted: bool) -> Vec<String> {
    let Some(module) = &frame.module else {
        return Vec::new();
    };
    let address = frame.offset - u64::from(!interrupted);
    let table = functions(module);
    let up_to = table.partition_point(|symbol| symbol.start <= address);
    let Some(nearest) = table[..up_to].last() else {
        return Vec::new();
    };
    // Names of one function have one start. A symbol without a size has no end that is known.
    let same = |symbol: &&Symbol| symbol.start == nearest.start;
    table[..up_to]
        .iter()
        .rev()
        .take_while(same)
        .filter(|symbol| address < symbol.end || symbol.end == symbol.start)
        .map(|symbol| symbol.name.clone())
        .collect()
}

/// A frame as a person reads it: module, offset, function and line, as far as addr2line knows them.
pub fn readable(frame: &Frame) -> String {
    let mut text = format!("{frame:?}");
    let Some(module) = &frame.module else {
        return text;
    };
    if let Some(name) = names(frame, false).first() {
        text = format!("{text} {name}");
    }
    let output = Command::new("addr2line")
        .arg("-e")
        .arg(&**module)
        .arg(format!("{:#x}", frame.offset - 1))
        .output();
    let line = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
    match line {
        Ok(line) if !line.is_empty() && !line.starts_with('?') => format!("{text} ({line})"),
        _ => text,
    }
}
