//! Names the frames of call stacks.

use std::cell::RefCell;
use std::rc::Rc;

use crate::model::stack::{CallStack, CodePlace, NamedFrame, NamedStack};
use crate::stacks::code_files::CodeFiles;

/// Names frames by the files that they are in.
pub struct Namer {
    files: Rc<RefCell<CodeFiles>>,
}

impl Namer {
    pub fn new(files: Rc<RefCell<CodeFiles>>) -> Self {
        Self { files }
    }

    /// The stack with names.
    pub fn name(&mut self, stack: &CallStack) -> NamedStack {
        let files = self.files.borrow();
        let frames = stack.frames.iter().map(|frame| {
            let mut named = NamedFrame::default();
            match frame.place {
                CodePlace::Address(address) => named.offset = address,
                CodePlace::File { module, offset } => {
                    if let Some(file) = files.get(module) {
                        named.module = Some(file.path.clone());
                        named.build_id.clone_from(&file.build_id);
                        named.offset = file.address(offset).unwrap_or(offset);
                    }
                }
            }
            named
        });
        NamedStack {
            frames: frames.collect(),
            end: stack.end,
            guessed: stack.guessed,
        }
    }
}
