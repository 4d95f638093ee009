//! The table of the functions that are probed, and of what their arguments mean. The allocators that a user names
//! (`--allocator`) are rows of the same kind. Looking for the functions in a file is left to `findings`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::find::notation::{self, Action, Allocator, FilePattern, SpecError, Verb};

/// A function of an allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The function's name in messages: the symbol without its family's prefix.
    pub name: Cow<'static, str>,
    pub family: Family,
    pub action: Action,
}

/// Functions that belong together: they give out and take back the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// The functions with this prefix, which is empty for the C library's own names.
    Prefix(&'static str),
    /// C++'s operators new and delete. They are part of whatever allocator their file defines.
    Operators,
    /// The functions of one allocator that the user names, by its number.
    User(usize),
}

impl Row {
    /// Whether a local symbol of this name is the function, too. No other function would have a prefixed name, but a
    /// local `malloc` may be anything.
    pub fn may_be_local(&self) -> bool {
        !matches!(self.family, Family::Prefix("") | Family::Operators)
    }
}

/// Which BPF program a function's probes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeProgram {
    /// Runs at entry and return.
    EntryReturn,
    /// Runs at entry.
    Entry,
    /// Runs at the entry of a function that may throw, and at the places where the function returns.
    Throwing,
}

impl Action {
    /// Which program the function's probes run.
    pub fn program(self) -> ProbeProgram {
        match self.verb {
            Verb::Alloc | Verb::Realloc | Verb::Reallocf | Verb::Resize | Verb::FreeScope => {
                ProbeProgram::EntryReturn
            }
            Verb::Free | Verb::FreeAgain | Verb::Start | Verb::Inside => ProbeProgram::Entry,
            Verb::New
            | Verb::NewNothrow
            | Verb::Renew
            | Verb::FreeScopeThrows
            | Verb::Return
            | Verb::Left
            | Verb::Unfollowed => ProbeProgram::Throwing,
        }
    }

    /// Whether the function may leave by an exception. Such a function must not have a return probe.
    pub fn may_throw(self) -> bool {
        matches!(
            self.verb,
            Verb::New | Verb::NewNothrow | Verb::Renew | Verb::FreeScopeThrows
        )
    }

    /// The same function if no exception leaves it, so that it can have a return probe.
    pub fn without_exceptions(self) -> Self {
        let verb = match self.verb {
            Verb::New | Verb::NewNothrow => Verb::Alloc,
            Verb::Renew => Verb::Realloc,
            Verb::FreeScopeThrows => Verb::FreeScope,
            other => other,
        };
        Action { verb, ..self }
    }

    /// Whether the function gives out blocks.
    pub fn allocates(self) -> bool {
        self.size != 0
    }

    /// Whether the function takes a block back and does nothing else.
    pub fn frees(self) -> bool {
        matches!(
            self.verb,
            Verb::Free | Verb::FreeAgain | Verb::FreeScope | Verb::FreeScopeThrows
        )
    }

    /// Numbers of the arguments that the function's program reads.
    pub fn arguments(self) -> Vec<u8> {
        let all = [self.size, self.count, self.block, self.out];
        all.into_iter().filter(|&n| n != 0).collect()
    }
}

/// Functions in the notation of [`notation::function`], under each of the prefixes.
struct Rows {
    prefixes: &'static [&'static str],
    functions: &'static [(Verb, &'static str)],
}

/// The prefixes under which programs bundle jemalloc: redis and others, and Rust's tikv-jemallocator.
const JEMALLOC: [&str; 4] = ["", "je_", "_rjem_", "__rjem_"];

/// The allocators that memleak knows. If one address has several of these names, the first one counts.
const KNOWN: [Rows; 8] = [
    // The C library's family, under its own names and those of bundled allocators.
    Rows {
        prefixes: &["", "je_", "_rjem_", "__rjem_", "tc_", "mi_"],
        functions: &[
            (Verb::Alloc, "malloc(size)"),
            (Verb::Alloc, "calloc(count, size)"),
            (Verb::Realloc, "realloc(block, size)"),
            (Verb::Realloc, "reallocarray(block, count, size)"),
            (Verb::Reallocf, "reallocf(block, size)"),
            (Verb::Alloc, "posix_memalign(out, align, size)"),
            (Verb::Alloc, "memalign(align, size)"),
            (Verb::Alloc, "aligned_alloc(align, size)"),
            (Verb::Alloc, "valloc(size)"),
            (Verb::Alloc, "pvalloc(size)"),
            (Verb::Free, "free(block)"),
            // Only old programs have these.
            (Verb::Free, "cfree(block)"),
            (Verb::Free, "vfree(block)"),
            // New in C23.
            (Verb::Free, "free_sized(block, _)"),
            (Verb::Free, "free_aligned_sized(block, align, _)"),
        ],
    },
    Rows {
        prefixes: &[""],
        functions: &[(Verb::Start, "__libc_start_main")],
    },
    Rows {
        prefixes: &JEMALLOC,
        functions: &[
            (Verb::Alloc, "mallocx(size, _)"),
            (Verb::Realloc, "rallocx(block, size, _)"),
            (Verb::Resize, "xallocx(block, size, _, _)"),
            (Verb::Free, "dallocx(block, _)"),
            (Verb::Free, "sdallocx(block, _, _)"),
        ],
    },
    Rows {
        prefixes: &["tc_"],
        functions: &[
            (Verb::Alloc, "malloc_skip_new_handler(size)"),
            (Verb::New, "new(size)"),
            (Verb::New, "newarray(size)"),
            (Verb::NewNothrow, "new_nothrow(size, _)"),
            (Verb::NewNothrow, "newarray_nothrow(size, _)"),
            (Verb::New, "new_aligned(size, align)"),
            (Verb::New, "newarray_aligned(size, align)"),
            (Verb::NewNothrow, "new_aligned_nothrow(size, align, _)"),
            (Verb::NewNothrow, "newarray_aligned_nothrow(size, align, _)"),
            (Verb::Free, "delete(block)"),
            (Verb::Free, "deletearray(block)"),
            (Verb::Free, "delete_sized(block, _)"),
            (Verb::Free, "deletearray_sized(block, _)"),
            (Verb::Free, "delete_nothrow(block, _)"),
            (Verb::Free, "deletearray_nothrow(block, _)"),
            (Verb::Free, "delete_aligned(block, align)"),
            (Verb::Free, "deletearray_aligned(block, align)"),
            (Verb::Free, "delete_sized_aligned(block, _, align)"),
            (Verb::Free, "deletearray_sized_aligned(block, _, align)"),
            (Verb::Free, "delete_aligned_nothrow(block, align, _)"),
            (Verb::Free, "deletearray_aligned_nothrow(block, align, _)"),
        ],
    },
    Rows {
        prefixes: &["mi_"],
        functions: &[
            (Verb::Alloc, "malloc_small(size)"),
            (Verb::Alloc, "zalloc(size)"),
            (Verb::Alloc, "zalloc_small(size)"),
            (Verb::Alloc, "mallocn(count, size)"),
            (Verb::Realloc, "reallocn(block, count, size)"),
            (Verb::Realloc, "expand(block, size)"),
            (Verb::Realloc, "rezalloc(block, size)"),
            (Verb::Realloc, "recalloc(block, count, size)"),
            (Verb::Alloc, "malloc_aligned(size, align)"),
            (Verb::Alloc, "malloc_aligned_at(size, align, _)"),
            (Verb::Alloc, "zalloc_aligned(size, align)"),
            (Verb::Alloc, "zalloc_aligned_at(size, align, _)"),
            (Verb::Alloc, "calloc_aligned(count, size, align)"),
            (Verb::Alloc, "calloc_aligned_at(count, size, align, _)"),
            (Verb::Realloc, "realloc_aligned(block, size, align)"),
            (Verb::Realloc, "realloc_aligned_at(block, size, align, _)"),
            (Verb::Realloc, "rezalloc_aligned(block, size, align)"),
            (Verb::Realloc, "rezalloc_aligned_at(block, size, align, _)"),
            (Verb::Realloc, "recalloc_aligned(block, count, size, align)"),
            (
                Verb::Realloc,
                "recalloc_aligned_at(block, count, size, align, _)",
            ),
            (Verb::New, "new(size)"),
            (Verb::New, "new_n(count, size)"),
            (Verb::NewNothrow, "new_nothrow(size)"),
            (Verb::New, "new_aligned(size, align)"),
            (Verb::NewNothrow, "new_aligned_nothrow(size, align)"),
            (Verb::Renew, "new_realloc(block, size)"),
            (Verb::Renew, "new_reallocn(block, count, size)"),
            (Verb::Free, "free_size(block, _)"),
            (Verb::Free, "free_size_aligned(block, _, align)"),
            (Verb::Free, "free_aligned(block, align)"),
        ],
    },
    // The same functions for a heap that the caller passes.
    Rows {
        prefixes: &["mi_"],
        functions: &[
            (Verb::Alloc, "heap_malloc(_, size)"),
            (Verb::Alloc, "heap_malloc_small(_, size)"),
            (Verb::Alloc, "heap_zalloc(_, size)"),
            (Verb::Alloc, "heap_calloc(_, count, size)"),
            (Verb::Alloc, "heap_mallocn(_, count, size)"),
            (Verb::Realloc, "heap_realloc(_, block, size)"),
            (Verb::Realloc, "heap_reallocn(_, block, count, size)"),
            (Verb::Reallocf, "heap_reallocf(_, block, size)"),
            (Verb::Realloc, "heap_rezalloc(_, block, size)"),
            (Verb::Realloc, "heap_recalloc(_, block, count, size)"),
            (Verb::Alloc, "heap_malloc_aligned(_, size, align)"),
            (Verb::Alloc, "heap_malloc_aligned_at(_, size, align, _)"),
            (Verb::Alloc, "heap_zalloc_aligned(_, size, align)"),
            (Verb::Alloc, "heap_zalloc_aligned_at(_, size, align, _)"),
            (Verb::Alloc, "heap_calloc_aligned(_, count, size, align)"),
            (
                Verb::Alloc,
                "heap_calloc_aligned_at(_, count, size, align, _)",
            ),
            (Verb::Realloc, "heap_realloc_aligned(_, block, size, align)"),
            (
                Verb::Realloc,
                "heap_realloc_aligned_at(_, block, size, align, _)",
            ),
            (
                Verb::Realloc,
                "heap_rezalloc_aligned(_, block, size, align)",
            ),
            (
                Verb::Realloc,
                "heap_rezalloc_aligned_at(_, block, size, align, _)",
            ),
            (
                Verb::Realloc,
                "heap_recalloc_aligned(_, block, count, size, align)",
            ),
            (
                Verb::Realloc,
                "heap_recalloc_aligned_at(_, block, count, size, align, _)",
            ),
            (Verb::New, "heap_alloc_new(_, size)"),
            (Verb::New, "heap_alloc_new_n(_, count, size)"),
        ],
    },
    // operator new and new[]: plain, nothrow, aligned, aligned and nothrow. Not even the nothrow forms get a return
    // probe, unless it is proved that no exception leaves them: in an allocator that is written in C, a new-handler may
    // throw through them.
    Rows {
        prefixes: &[OPERATOR],
        functions: &[
            (Verb::New, "_Znwm(size)"),
            (Verb::New, "_Znam(size)"),
            (Verb::NewNothrow, "_ZnwmRKSt9nothrow_t(size, _)"),
            (Verb::NewNothrow, "_ZnamRKSt9nothrow_t(size, _)"),
            (Verb::New, "_ZnwmSt11align_val_t(size, align)"),
            (Verb::New, "_ZnamSt11align_val_t(size, align)"),
            (
                Verb::NewNothrow,
                "_ZnwmSt11align_val_tRKSt9nothrow_t(size, align, _)",
            ),
            (
                Verb::NewNothrow,
                "_ZnamSt11align_val_tRKSt9nothrow_t(size, align, _)",
            ),
        ],
    },
    // operator delete and delete[]: plain, sized, nothrow, and each of these aligned.
    Rows {
        prefixes: &[OPERATOR],
        functions: &[
            (Verb::Free, "_ZdlPv(block)"),
            (Verb::Free, "_ZdaPv(block)"),
            (Verb::Free, "_ZdlPvm(block, _)"),
            (Verb::Free, "_ZdaPvm(block, _)"),
            (Verb::Free, "_ZdlPvRKSt9nothrow_t(block, _)"),
            (Verb::Free, "_ZdaPvRKSt9nothrow_t(block, _)"),
            (Verb::Free, "_ZdlPvSt11align_val_t(block, align)"),
            (Verb::Free, "_ZdaPvSt11align_val_t(block, align)"),
            (Verb::Free, "_ZdlPvmSt11align_val_t(block, _, align)"),
            (Verb::Free, "_ZdaPvmSt11align_val_t(block, _, align)"),
            (
                Verb::Free,
                "_ZdlPvSt11align_val_tRKSt9nothrow_t(block, align, _)",
            ),
            (
                Verb::Free,
                "_ZdaPvSt11align_val_tRKSt9nothrow_t(block, align, _)",
            ),
        ],
    },
];

/// Marks the operators among the prefixes of [`KNOWN`]. No symbol begins with this text.
const OPERATOR: &str = "operator ";

/// Names of the C library's rows, for `--without-probe`.
pub const NAMES: [&str; 10] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "memalign",
    "valloc",
    "pvalloc",
    "free",
    "start",
];

/// The functions that every C library must define.
const REQUIRED: [&str; 4] = ["malloc", "calloc", "realloc", "free"];

/// All rows, by symbol.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Row>,
    by_symbol: HashMap<String, usize>,
    user: Vec<UserRows>,
}

/// An allocator that the user names, with its rows.
#[derive(Clone, Debug)]
struct UserRows {
    allocator: Allocator,
    /// Device and inode of the file that the user's path led to when memleak started.
    file: Option<(u64, u64)>,
    rows: Vec<(String, Row)>,
}

impl Table {
    /// A table of the rows that memleak knows and of the rows that the user names.
    ///
    /// # Errors
    /// A row cannot be read.
    pub fn new(user: Vec<Allocator>) -> Result<Self, SpecError> {
        let mut table = Table {
            rows: Vec::new(),
            by_symbol: HashMap::new(),
            user: Vec::new(),
        };
        for known in &KNOWN {
            for &prefix in known.prefixes {
                for &(verb, text) in known.functions {
                    table.add(prefix, verb, text)?;
                }
            }
        }
        for (number, allocator) in user.into_iter().enumerate() {
            let rows = allocator
                .functions
                .iter()
                .map(|function| {
                    let row = Row {
                        name: Cow::Owned(function.symbol.clone()),
                        family: Family::User(number),
                        action: function.action,
                    };
                    (function.symbol.clone(), row)
                })
                .collect();
            let file = match &allocator.file {
                FilePattern::Path(path) => fs::metadata(path)
                    .ok()
                    .map(|metadata| (metadata.dev(), metadata.ino())),
                FilePattern::Name(_) => None,
            };
            table.user.push(UserRows {
                allocator,
                file,
                rows,
            });
        }
        Ok(table)
    }

    fn add(
        &mut self,
        prefix: &'static str,
        verb: Verb,
        text: &'static str,
    ) -> Result<(), SpecError> {
        let function = notation::function(verb, text)?;
        let name = match verb {
            Verb::Start => "start",
            _ => &text[..function.symbol.len()],
        };
        let (symbol, family) = if prefix == OPERATOR {
            (function.symbol, Family::Operators)
        } else {
            (
                format!("{prefix}{}", function.symbol),
                Family::Prefix(prefix),
            )
        };
        self.by_symbol.insert(symbol, self.rows.len());
        self.rows.push(Row {
            name: Cow::Borrowed(name),
            family,
            action: function.action,
        });
        Ok(())
    }

    /// The rows for a file. The user's rows come first.
    pub fn for_file(&self, path: &Path, file: &File) -> FileTable<'_> {
        let identity = file
            .metadata()
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_meant = |user: &&UserRows| match &user.allocator.file {
            FilePattern::Path(given) => {
                user.file.is_some() && user.file == identity || given == path
            }
            FilePattern::Name(pattern) => pattern.matches(&name),
        };
        FileTable {
            table: self,
            user: self.user.iter().filter(is_meant).collect(),
        }
    }
}

/// The rows that apply to a file.
pub struct FileTable<'table> {
    table: &'table Table,
    user: Vec<&'table UserRows>,
}

impl<'table> FileTable<'table> {
    /// All symbols that have a row.
    pub fn symbols(&self) -> impl Iterator<Item = &'table str> {
        let user = self.user.iter().flat_map(|user| &user.rows);
        let user = user.map(|(symbol, _)| symbol.as_str());
        user.chain(self.table.by_symbol.keys().map(String::as_str))
    }

    /// The row of a symbol, and its rank. Of several symbols at one address, the symbol with the lowest rank counts.
    pub fn find(&self, symbol: &str) -> Option<(&'table Row, usize)> {
        let users = self.user.iter().flat_map(|user| &user.rows);
        if let Some((rank, (_, row))) = users.enumerate().find(|(_, (name, _))| name == symbol) {
            return Some((row, rank));
        }
        let &at = self.table.by_symbol.get(symbol)?;
        Some((&self.table.rows[at], at + 1_000_000))
    }

    /// Names of the functions that every C library must define and that are not among `found`.
    pub fn missing<'row>(
        &self,
        found: impl Iterator<Item = &'row Row> + Clone,
    ) -> Vec<&'static str> {
        let is_there = |name: &&str| {
            found
                .clone()
                .any(|row| row.family == Family::Prefix("") && row.name == **name)
        };
        REQUIRED
            .into_iter()
            .filter(|name| !is_there(name))
            .collect()
    }

    /// The user's functions that are not among `found`, each with the user's description that names it.
    pub fn user_missing<'row>(
        &self,
        found: impl Iterator<Item = &'row Row> + Clone,
    ) -> Vec<(String, String)> {
        // A pattern with wildcards may match files that the user does not mean, so those are not checked.
        let is_certain = |user: &&&UserRows| match &user.allocator.file {
            FilePattern::Path(_) => true,
            FilePattern::Name(pattern) => !pattern.as_str().contains(['*', '?', '[']),
        };
        let all = self.user.iter().filter(is_certain).flat_map(|user| {
            user.rows
                .iter()
                .map(move |(symbol, row)| (user, symbol, row))
        });
        all.filter(|(_, _, row)| !found.clone().any(|found| found == *row))
            .map(|(user, symbol, _)| (symbol.clone(), user.allocator.given_as.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, File, NAMES, Path, ProbeProgram, Table};
    use crate::find::notation::{self, Action};

    fn table() -> Table {
        Table::new(Vec::new()).unwrap()
    }

    fn action(symbol: &str) -> Action {
        let table = table();
        table.rows[table.by_symbol[symbol]].action
    }

    #[test]
    fn every_symbol_has_one_row() {
        let table = table();
        assert_eq!(table.rows.len(), table.by_symbol.len());
    }

    #[test]
    fn the_same_function_has_the_same_arguments_under_every_prefix() {
        for prefix in ["je_", "_rjem_", "tc_", "mi_"] {
            assert_eq!(action(&format!("{prefix}calloc")), action("calloc"));
        }
        assert_eq!(action("_rjem_sdallocx"), action("sdallocx"));
        assert_eq!(action("mi_heap_calloc").count, 2);
    }

    #[test]
    fn no_operator_gets_a_return_probe() {
        let table = table();
        let operators = table
            .rows
            .iter()
            .filter(|row| row.family == Family::Operators);
        assert_eq!(operators.clone().count(), 20);
        for row in operators {
            assert_ne!(
                row.action.program(),
                ProbeProgram::EntryReturn,
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn the_names_of_rows_that_can_be_left_out_are_rows() {
        let table = table();
        for name in NAMES {
            assert!(table.rows.iter().any(|row| row.name == name), "{name}");
        }
    }

    #[test]
    fn the_users_rows_are_for_the_files_that_they_name() {
        let user = |text: &str| match notation::parse(text).unwrap() {
            notation::Spec::One(allocator) => allocator,
            notation::Spec::File(_) => panic!("a file"),
        };
        let table = Table::new(vec![
            user("/bin/sh:alloc=malloc(_, size)"),
            user("lib*.so:alloc=pool"),
        ])
        .unwrap();
        let shell = File::open("/bin/sh").unwrap();
        let find = |path: &str, file: &File, symbol: &str| {
            let file_table = table.for_file(Path::new(path), file);
            file_table
                .find(symbol)
                .map(|(row, _)| (row.family, row.action.size))
        };
        let (user, own) = (Some((Family::User(0), 2)), Some((Family::Prefix(""), 1)));
        // The file is matched by device and inode, however its path is written.
        assert_eq!(find("/bin/../bin/sh", &shell, "malloc"), user);
        let other = File::open("/dev/null").unwrap();
        assert_eq!(find("/dev/null", &other, "malloc"), own);
        assert_eq!(
            find("/x/libpool.so", &other, "pool"),
            Some((Family::User(1), 1))
        );
        assert_eq!(find("/x/libpool.so.1", &other, "pool"), None);
    }
}
