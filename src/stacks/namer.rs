//! Names the frames of call stacks: function, source file and line.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::model::stack::{CallStack, CodePlace, Frame, NamedFrame, NamedStack};
use crate::stacks::code_files::CodeFiles;
use crate::stacks::identity::{FrameKey, StackIdentity};
use crate::stacks::perf_map::PerfMap;
use crate::stacks::symbols::{FrameName, Symbolizer};

/// How many frames the stacks have whose names are kept. Each takes 8 bytes, as stacks share frames.
const MOST_SHARED: usize = 1 << 21;

/// The names of frames are dropped before more are looked up than this. A look-up at the end of a window adds some
/// thousands.
const MOST_KNOWN: usize = 1 << 17;

/// What is known of a physical frame.
struct KnownFrame {
    /// The functions that the compiler has put into it, the innermost first. The physical function is last.
    frames: Vec<Arc<NamedFrame>>,
    /// The name in the file's own symbol table.
    own_name: Option<String>,
}

/// Names frames by the files that they are in. It belongs to one thread.
pub struct Namer {
    files: Rc<RefCell<CodeFiles>>,
    symbolizer: Symbolizer,
    known: HashMap<Frame, KnownFrame>,
    shared: RefCell<SharedNames>,
}

/// The names of stacks that several processes may share. A stack is kept as long as its names are, so that no other one
/// gets its address.
#[derive(Default)]
struct SharedNames {
    stacks: HashMap<usize, (Arc<CallStack>, Arc<NamedStack>)>,
    frames: usize,
}

impl Namer {
    pub fn new(files: Rc<RefCell<CodeFiles>>) -> Self {
        Self {
            files,
            symbolizer: Symbolizer::default(),
            known: HashMap::new(),
            shared: RefCell::default(),
        }
    }

    /// Looks up the frames of these stacks that are not known yet, those of one file at a time. Only these have names then.
    /// After the deadline, frames get no source lines.
    pub fn look_up<'a>(&mut self, stacks: impl Iterator<Item = &'a CallStack>, deadline: Instant) {
        // Stacks may have frames that were not known before.
        self.shared.take();
        if self.known.len() > MOST_KNOWN {
            self.known.clear();
        }
        let files = self.files.borrow();
        let mut wanted: BTreeMap<u32, Vec<(Frame, u64)>> = BTreeMap::new();
        for frame in stacks.flat_map(|stack| &stack.frames) {
            if let CodePlace::File { module, offset } = frame.place
                && !self.known.contains_key(frame)
                && let Some(file) = files.get(module)
            {
                let address = file.address(offset).unwrap_or(offset);
                wanted.entry(module).or_default().push((*frame, address));
            }
        }
        for (module, mut frames) in wanted {
            let Some(module) = files.get(module) else {
                continue;
            };
            frames.sort_unstable();
            frames.dedup();
            let addresses = frames
                .iter()
                .map(|(frame, address)| called(frame, *address));
            let addresses: Vec<u64> = addresses.collect();
            let names = self.symbolizer.name(module, &addresses, deadline);
            for ((frame, address), names) in frames.into_iter().zip(names) {
                let mut plain = NamedFrame {
                    module: Some(PathBuf::from(OsStr::from_bytes(module.path()))),
                    build_id: module.build_id().map(<[u8]>::to_vec),
                    offset: address,
                    ..NamedFrame::default()
                };
                let own = names.last().filter(|name| name.in_file);
                let own_name = own.map(|name| name.linkage.clone());
                let named = |name: FrameName| {
                    Arc::new(NamedFrame {
                        function: Some(name.function),
                        linkage: Some(name.linkage),
                        file: name.file,
                        line: name.line,
                        inlined: name.inlined,
                        ..plain.clone()
                    })
                };
                let frames: Vec<_> = names.into_iter().map(named).collect();
                let frames = match frames.is_empty() {
                    true => vec![Arc::new(std::mem::take(&mut plain))],
                    false => frames,
                };
                self.known.insert(frame, KnownFrame { frames, own_name });
            }
        }
    }

    /// A stack with the names that were looked up. For all processes that have the stack, it is named once.
    pub fn name(&self, stack: &Arc<CallStack>) -> Arc<NamedStack> {
        let address = Arc::as_ptr(stack) as usize;
        let mut shared = self.shared.borrow_mut();
        if let Some((_, named)) = shared.stacks.get(&address) {
            return Arc::clone(named);
        }
        let named = Arc::new(self.name_with(stack, &PerfMap::default()));
        shared.frames += named.frames.len();
        if shared.frames > MOST_SHARED {
            *shared = SharedNames {
                frames: named.frames.len(),
                ..SharedNames::default()
            };
        }
        let kept = (Arc::clone(stack), Arc::clone(&named));
        shared.stacks.insert(address, kept);
        named
    }

    /// A stack with the names that were looked up, and with those of code that the process made at run time.
    pub fn name_with(&self, stack: &CallStack, made: &PerfMap) -> NamedStack {
        let made = |frame: &Frame| match frame.place {
            CodePlace::Address(address) => made.name(called(frame, address)),
            CodePlace::File { .. } => None,
        };
        let mut frames = Vec::new();
        let mut keys = Vec::new();
        let made_names: Vec<_> = stack.frames.iter().map(made).collect();
        for (frame, function) in stack.frames.iter().zip(&made_names) {
            match (self.known.get(frame), frame.place) {
                (Some(known), _) => frames.extend_from_slice(&known.frames),
                (None, CodePlace::Address(offset) | CodePlace::File { offset, .. }) => {
                    frames.push(Arc::new(NamedFrame {
                        linkage: function.clone(),
                        function: function.clone(),
                        offset,
                        ..NamedFrame::default()
                    }));
                }
            }
        }
        for (frame, function) in stack.frames.iter().zip(&made_names) {
            let known = self.known.get(frame);
            let physical = known.and_then(|known| Some((known.frames.last()?, &known.own_name)));
            let Some((physical, own_name)) = physical else {
                keys.push(FrameKey::Generated(function.as_deref().unwrap_or_default()));
                continue;
            };
            let path = physical.module.as_deref();
            let module = path.map_or(&b""[..], |path| path.as_os_str().as_bytes());
            keys.push(match own_name {
                Some(linkage) => FrameKey::Named { module, linkage },
                None => FrameKey::Unnamed {
                    module,
                    build_id: physical.build_id.as_deref().unwrap_or_default(),
                    offset: physical.offset,
                },
            });
        }
        let StackIdentity(identity) = StackIdentity::of(keys);
        NamedStack {
            identity,
            frames,
            end: stack.end,
            guessed: stack.guessed,
        }
    }
}

/// An address within the instruction at which a frame is. A call that never returns may be the last instruction of its
/// function.
fn called(frame: &Frame, address: u64) -> u64 {
    address.saturating_sub(u64::from(!frame.interrupted))
}
