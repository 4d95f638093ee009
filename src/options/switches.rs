//! The switches that only memleak's own tests use: one hidden option, `--test KEY=VALUE`, which may be repeated.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::find::functions::NAMES;
use crate::kernel::method::{Holds, Method};
use crate::stacks::rules::RuleKind;

/// The hidden option.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct TestArgs {
    #[arg(long = "test", value_name = "KEY=VALUE", hide = true, value_parser = parse)]
    switches: Vec<Switch>,
}

impl TestArgs {
    /// All switches. If a switch is given twice, the last one counts.
    pub fn switches(&self) -> Switches {
        let mut all = Switches::default();
        self.switches.iter().for_each(|switch| all.set(switch));
        all
    }
}

/// The switches and their values. The default is the behaviour that users get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switches {
    /// `method=session|multi|perf-event|separate`: attach the probes by this method, not by the best one that works.
    pub method: Option<Method>,
    /// `holds=nowhere|loader|everywhere`: hold processes only at these places until their files are examined.
    pub holds: Holds,
    /// `hold-delay=MILLISECONDS`: hold processes for this much longer.
    pub hold_delay: Duration,
    /// `attach-delay=MILLISECONDS`: take so much longer to attach probes of a kind to a file.
    pub attach_delay: Duration,
    /// `read-delay=MILLISECONDS`: hold processes at their ends for this much longer.
    pub read_delay: Duration,
    /// `rules-delay=MILLISECONDS`: take so much longer to read the unwind rules of a file of 8 MiB or more.
    pub rules_delay: Duration,
    /// `missed-events=TIMES`: let the BPF programs ignore half of all forks, execs and exits. They ignore the first
    /// TIMES (0 to 2) of the kernel's reports of each.
    pub missed_events: u32,
    /// `late-threads=yes`: keep the state of every started thread in the slower table.
    pub late_threads: bool,
    /// `without-probe=NAME`: probe no function of this name. May be repeated.
    pub without_probe: Vec<String>,
    /// `stages=yes`: say when each stage of the start and of the end is over.
    pub stages: bool,
    /// `mount-groups=no`: behave as kernels before 5.15, which cannot put a mount into the group of another one.
    pub no_mount_groups: bool,
    /// `compare=yes`: what is counted inside is counted by probes, too, and must be the same.
    pub compare: bool,
    /// `stack-table=ENTRIES`: a table of call stacks of this size.
    pub stack_table: Option<u32>,
    /// `few-walks=NUMBER`: so many of a thread's first walks are neither remembered nor looked up.
    pub few_walks: Option<u32>,
    /// `without-rules=KIND`: unwind no frame whose rule is of this kind.
    pub without_rules: Option<RuleKind>,
    /// `patient=init|bare|more|seal`: be the child whose allocations the doctor counts.
    pub patient: Option<Patient>,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            method: None,
            holds: Holds::Everywhere,
            hold_delay: Duration::ZERO,
            attach_delay: Duration::ZERO,
            read_delay: Duration::ZERO,
            rules_delay: Duration::ZERO,
            missed_events: 0,
            late_threads: false,
            without_probe: Vec::new(),
            stages: false,
            no_mount_groups: false,
            compare: false,
            stack_table: None,
            few_walks: None,
            without_rules: None,
            patient: None,
        }
    }
}

/// The images of the doctor's child, in the order in which they execute each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Patient {
    Init,
    Bare,
    More,
    Seal,
}

/// One switch, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Switch {
    Method(Method),
    Holds(Holds),
    HoldDelay(Duration),
    AttachDelay(Duration),
    ReadDelay(Duration),
    RulesDelay(Duration),
    MissedEvents(u32),
    LateThreads,
    WithoutProbe(&'static str),
    Stages,
    NoMountGroups,
    Compare,
    StackTable(u32),
    FewWalks(u32),
    WithoutRules(RuleKind),
    Patient(Patient),
}

impl Switches {
    fn set(&mut self, switch: &Switch) {
        match *switch {
            Switch::Method(method) => self.method = Some(method),
            Switch::Holds(holds) => self.holds = holds,
            Switch::HoldDelay(delay) => self.hold_delay = delay,
            Switch::AttachDelay(delay) => self.attach_delay = delay,
            Switch::ReadDelay(delay) => self.read_delay = delay,
            Switch::RulesDelay(delay) => self.rules_delay = delay,
            Switch::MissedEvents(times) => self.missed_events = times,
            Switch::LateThreads => self.late_threads = true,
            Switch::WithoutProbe(name) => self.without_probe.push(name.to_owned()),
            Switch::Stages => self.stages = true,
            Switch::NoMountGroups => self.no_mount_groups = true,
            Switch::Compare => self.compare = true,
            Switch::StackTable(entries) => self.stack_table = Some(entries),
            Switch::FewWalks(number) => self.few_walks = Some(number),
            Switch::WithoutRules(kind) => self.without_rules = Some(kind),
            Switch::Patient(patient) => self.patient = Some(patient),
        }
    }
}

/// Reads `KEY=VALUE`.
fn parse(word: &str) -> Result<Switch, String> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    match key {
        "method" => one_of(value).map(Switch::Method),
        "holds" => one_of(value).map(Switch::Holds),
        "hold-delay" => number(value).map(|ms| Switch::HoldDelay(Duration::from_millis(ms))),
        "attach-delay" => number(value).map(|ms| Switch::AttachDelay(Duration::from_millis(ms))),
        "read-delay" => number(value).map(|ms| Switch::ReadDelay(Duration::from_millis(ms))),
        "rules-delay" => number(value).map(|ms| Switch::RulesDelay(Duration::from_millis(ms))),
        "missed-events" => match number(value)? {
            times @ 0..=2 => Ok(Switch::MissedEvents(times as u32)),
            _ => Err("missed-events is 0, 1 or 2".to_owned()),
        },
        "late-threads" if value == "yes" => Ok(Switch::LateThreads),
        "late-threads" => Err("late-threads is yes".to_owned()),
        "without-probe" => match NAMES.iter().find(|name| **name == value) {
            Some(name) => Ok(Switch::WithoutProbe(name)),
            None => Err(format!("without-probe is one of {}", NAMES.join(", "))),
        },
        "compare" if value == "yes" => Ok(Switch::Compare),
        "compare" => Err("compare is yes".to_owned()),
        "stages" if value == "yes" => Ok(Switch::Stages),
        "stages" => Err("stages is yes".to_owned()),
        "mount-groups" if value == "no" => Ok(Switch::NoMountGroups),
        "mount-groups" => Err("mount-groups is no".to_owned()),
        "stack-table" => match number(value)? {
            entries @ 1..=0x1000_0000 => Ok(Switch::StackTable(entries as u32)),
            _ => Err("stack-table is a number from 1 to 268435456".to_owned()),
        },
        "few-walks" => match u32::try_from(number(value)?) {
            Ok(number) => Ok(Switch::FewWalks(number)),
            Err(_) => Err("few-walks is a number below 4294967296".to_owned()),
        },
        "without-rules" => one_of(value).map(Switch::WithoutRules),
        "patient" => patient(value).map(Switch::Patient),
        _ => Err("the keys are method, holds, hold-delay, attach-delay, read-delay, rules-delay, missed-events, late-threads, without-probe, stages, mount-groups, compare, stack-table, few-walks, without-rules, patient".to_owned()),
    }
}

/// Reads the name of a patient. All names have the same length, and this function allocates the same for each of them.
/// clap's own parser of enumerations does not.
fn patient(name: &str) -> Result<Patient, String> {
    match name {
        "init" => Ok(Patient::Init),
        "bare" => Ok(Patient::Bare),
        "more" => Ok(Patient::More),
        "seal" => Ok(Patient::Seal),
        _ => Err("patient is init, bare, more or seal".to_owned()),
    }
}

fn one_of<T: ValueEnum>(value: &str) -> Result<T, String> {
    T::from_str(value, false).map_err(|_| format!("it is one of {}", names::<T>()))
}

/// The names of all values.
pub(super) fn names<T: ValueEnum>() -> String {
    let values = T::value_variants().iter().filter_map(T::to_possible_value);
    let names: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
    names.join(", ")
}

fn number(value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| "it is a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_reaches_its_value() {
        let words = [
            "method=multi",
            "method=separate",
            "holds=loader",
            "hold-delay=250",
            "attach-delay=450",
            "read-delay=350",
            "rules-delay=550",
            "missed-events=2",
            "late-threads=yes",
            "without-probe=free",
            "without-probe=calloc",
            "stages=yes",
            "mount-groups=no",
            "compare=yes",
            "stack-table=1000",
            "few-walks=0",
            "without-rules=indirect",
            "patient=more",
        ];
        let given = TestArgs {
            switches: words.map(|word| parse(word).unwrap()).to_vec(),
        };
        let expected = Switches {
            method: Some(Method::Separate),
            holds: Holds::Loader,
            hold_delay: Duration::from_millis(250),
            attach_delay: Duration::from_millis(450),
            read_delay: Duration::from_millis(350),
            rules_delay: Duration::from_millis(550),
            missed_events: 2,
            late_threads: true,
            without_probe: vec!["free".to_owned(), "calloc".to_owned()],
            stages: true,
            no_mount_groups: true,
            compare: true,
            stack_table: Some(1000),
            few_walks: Some(0),
            without_rules: Some(RuleKind::Indirect),
            patient: Some(Patient::More),
        };
        assert_eq!(given.switches(), expected);
        assert_eq!(TestArgs::default().switches(), Switches::default());
    }

    #[test]
    fn an_unknown_key_or_value_is_refused_with_the_list_of_valid_ones() {
        for (word, says) in [
            ("", "the keys are"),
            ("methods=multi", "the keys are"),
            ("method", "session, multi, perf-event, separate"),
            ("method=fast", "session, multi, perf-event, separate"),
            ("holds=here", "nowhere, loader, everywhere"),
            ("hold-delay=soon", "a number"),
            ("read-delay=soon", "a number"),
            ("missed-events=3", "0, 1 or 2"),
            ("late-threads", "yes"),
            ("without-probe=main", "malloc"),
            ("mount-groups=yes", "no"),
            ("compare=no", "yes"),
            ("patient=Bare", "init, bare, more or seal"),
        ] {
            let error = parse(word).unwrap_err();
            assert!(error.contains(says), "{word}: {error}");
        }
    }

    #[test]
    fn all_names_of_patients_have_the_same_length() {
        for patient in Patient::value_variants() {
            let name = patient.to_possible_value().unwrap();
            assert_eq!(name.get_name().len(), 4);
            assert_eq!(super::patient(name.get_name()), Ok(*patient));
        }
    }
}
