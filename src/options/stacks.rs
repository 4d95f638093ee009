//! The options that decide whether allocations are attributed to the calls that made them, and which of what leaked is
//! shown.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use crate::kernel::rule_reading::RuleOptions;
use crate::kernel::settings::StackSettings;
use crate::options::switches::Switches;
use crate::stacks::Generated;
use crate::text::wildcards::Wildcard;

/// Entries in the table of call stacks: one for each stack of each running process. The compiler of GCC 12 has 94,000
/// for one large file.
const TABLE: u32 = 1 << 18;

/// The walks of a thread that are neither remembered nor looked up. Most programs are small ones, and make few walks
/// twice.
const FEW_WALKS: u32 = 256;

/// Whether call stacks are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StackArgs {
    /// Tell which calls allocated what leaked
    ///
    /// auto, always or never. Each allocation is attributed to its exact call stack, which needs no frame pointers. auto:
    /// in run, where the kernel can do it, and with an option that needs call stacks; reports have the stacks of what
    /// leaked. always: reports have all stacks. Without a value: always.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(hide_possible_values = true)]
    pub stacks: StacksWhen,

    #[command(flatten)]
    pub leaks: LeakArgs,

    /// Print a suppression for each place that is shown
    ///
    /// In the syntax of valgrind or lsan. Without a value: valgrind, which names that leak alone. Implies --stacks.
    #[arg(long, value_name = "SYNTAX", hide_short_help = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "valgrind")]
    pub gen_suppressions: Option<Generated>,
}

/// Which leaks count for gates, and which are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct LeakArgs {
    /// Ignore leaks that FILE names
    ///
    /// FILE has suppressions in the syntax of LeakSanitizer or of valgrind. What they match counts for no gate, and is
    /// not shown. How much that is, is always said. May be repeated. Implies --stacks. A saved report must have call
    /// stacks.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub suppressions: Vec<PathBuf>,

    /// Show what the C and C++ libraries keep as any other leak
    ///
    /// Without this option, what these libraries keep until the end on purpose is one line. It counts for gates in any
    /// case.
    #[arg(long, hide_short_help = true)]
    pub no_default_suppressions: bool,

    /// Show only leaks with such a function or file on their stack
    ///
    /// GLOB is compared with the functions, with and without their parameters, and with the paths and names of programs
    /// and libraries. * and ? are wildcards. Gates judge all leaks. May be repeated: one of them must match. Implies
    /// --stacks. A saved report must have call stacks.
    #[arg(long, value_name = "GLOB", value_parser = parse_stack_glob, hide_short_help = true)]
    pub only_stack: Vec<Wildcard>,
}

/// When to record call stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StacksWhen {
    /// In `run`, where the kernel can do it, and where another option needs them; elsewhere as `Never`.
    #[default]
    Auto,
    Always,
    Never,
}

impl StackArgs {
    /// How call stacks are recorded. `None`: not at all. `auto`: whether `auto` records them here.
    pub(super) fn wanted(&self, auto: bool, switches: &Switches) -> Option<StackSettings> {
        let wanted = match self.stacks {
            StacksWhen::Always => true,
            StacksWhen::Auto => auto || self.needed_by().is_some(),
            StacksWhen::Never => false,
        };
        wanted.then(|| StackSettings {
            required: self.stacks == StacksWhen::Always || self.needed_by().is_some(),
            all: self.stacks == StacksWhen::Always,
            ..settings(switches)
        })
    }

    /// The option that needs call stacks, if there is one.
    pub fn needed_by(&self) -> Option<&'static str> {
        if !self.leaks.suppressions.is_empty() {
            Some("--suppressions")
        } else if self.gen_suppressions.is_some() {
            Some("--gen-suppressions")
        } else if !self.leaks.only_stack.is_empty() {
            Some("--only-stack")
        } else {
            None
        }
    }

    /// An option that cannot have an effect, because no call stacks are to be recorded.
    pub fn without_effect(&self) -> Option<&'static str> {
        self.needed_by()
            .filter(|_| self.stacks == StacksWhen::Never)
    }
}

/// How call stacks are recorded where no option says more.
pub fn settings(switches: &Switches) -> StackSettings {
    StackSettings {
        table: switches.stack_table.unwrap_or(TABLE).next_power_of_two(),
        required: false,
        all: false,
        older: None,
        few_walks: switches.few_walks.unwrap_or(FEW_WALKS),
        reading: RuleOptions {
            left_out: switches.without_rules,
            delay: switches.rules_delay,
        },
    }
}

fn parse_stack_glob(text: &str) -> Result<Wildcard, String> {
    match text {
        "" => Err("it is the name of a function or of a file; * and ? are wildcards".to_owned()),
        text => Ok(Wildcard::whole(text.as_bytes())),
    }
}
