//! The options that decide whether allocations are attributed to the calls that made them.

use clap::{Args, ValueEnum};

use crate::kernel::settings::StackSettings;
use crate::options::switches::Switches;

/// Entries in the table of call stacks: one for each stack of each running process. The compiler of GCC 12 has 94,000
/// for one large file.
const TABLE: u32 = 1 << 18;

/// Whether call stacks are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StackArgs {
    /// Tell which calls allocated what leaked
    ///
    /// auto, always or never. Each allocation is attributed to its exact call stack, which needs no frame pointers. auto:
    /// in run, where the kernel can do it, and reports have the stacks of what leaked. always: reports have all stacks.
    /// Without a value: always.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    #[arg(hide_possible_values = true)]
    pub stacks: StacksWhen,
}

/// When to record call stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StacksWhen {
    /// In `run`, where the kernel can do it; elsewhere as `Never`.
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
            StacksWhen::Auto => auto,
            StacksWhen::Never => false,
        };
        wanted.then(|| StackSettings {
            table: switches.stack_table.unwrap_or(TABLE).next_power_of_two(),
            required: self.stacks == StacksWhen::Always,
            all: self.stacks == StacksWhen::Always,
            left_out: switches.without_rules,
        })
    }
}
