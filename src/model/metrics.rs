//! Sums for systems that watch many machines: what processes allocated and leaked, by labels.
//!
//! Each combination of label values makes a series of every metric, and costs the reader memory for a long time. So
//! there are at most [`MOST_SERIES`] combinations at a time, never one a process. What finds no room is added up as
//! `other`.

use std::collections::HashMap;
use std::time::Duration;

use clap::ValueEnum;

use crate::model::bounds::Bounds;
use crate::model::image::{End, Image};
use crate::model::live::Live;
use crate::model::origin::Origin;
use crate::text::escape;

/// How many combinations of label values are told apart. One takes about 400 bytes here.
pub const MOST_SERIES: usize = 500;

/// For so long, nothing must have happened to a combination before a new one takes its place. The reader then begins
/// again at 0, as after a restart of memleak.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// The value of every label of what found no room.
const OTHER: &str = "other";

/// A property of processes by which sums are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Label {
    Comm,
    User,
    Cgroup,
    Jobid,
    Container,
    Pod,
}

impl Label {
    pub fn name(self) -> &'static str {
        match self {
            Self::Comm => "comm",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Jobid => "jobid",
            Self::Container => "container",
            Self::Pod => "pod",
        }
    }

    /// The value for an image, as one line of printable text.
    fn value(self, image: &Image) -> String {
        match self {
            Self::Comm => escape::escaped(&image.comm),
            Self::User => match &image.user {
                Some(user) => escape::escaped(user.as_bytes()),
                None => image.uid.to_string(),
            },
            Self::Cgroup => of_origin(image, |origin| origin.cgroup.as_ref()),
            Self::Jobid => of_origin(image, |origin| origin.job.as_ref()),
            Self::Container => of_origin(image, |origin| origin.container.as_ref()),
            Self::Pod => of_origin(image, |origin| origin.pod.as_ref()),
        }
    }
}

/// What is known of where a process belongs, or nothing, which is as good as no label.
fn of_origin(image: &Image, field: impl Fn(&Origin) -> Option<&String>) -> String {
    let origin = image.origin.as_deref();
    let value = origin.and_then(field);
    value.map_or_else(String::new, |value| escape::escaped(value.as_bytes()))
}

/// A set of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricLabels(u8);

impl Default for MetricLabels {
    fn default() -> Self {
        Self::of(&[Label::Comm, Label::User])
    }
}

impl MetricLabels {
    pub fn of(labels: &[Label]) -> Self {
        let bits = labels.iter().map(|label| 1 << *label as u8);
        Self(bits.fold(0, |set, bit| set | bit))
    }

    /// The labels, always in the same order.
    pub fn iter(self) -> impl Iterator<Item = Label> + Clone {
        let all = Label::value_variants().iter().copied();
        all.filter(move |label| self.0 & 1 << *label as u8 != 0)
    }
}

/// The upper bounds of the histogram of what processes leaked, in bytes. There is one more class for what is larger.
pub const LEAK_CLASSES: [u64; 8] = [
    0,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];

/// The sums of one combination of label values. Bytes are lower bounds where something was missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesSums {
    /// Processes that have exited or died.
    pub ended: u64,
    /// By all images, those that an exec replaced included.
    pub allocated_bytes: u64,
    pub leaked_bytes: u64,
    pub leaked_blocks: u64,
    /// What certainly could not have been freed any more, as far as processes were scanned.
    pub lost_bytes: u64,
    /// Processes that were not counted completely.
    pub incomplete: u64,
    /// How many processes leaked so much, by the classes of [`LEAK_CLASSES`].
    pub classes: [u64; LEAK_CLASSES.len() + 1],
    /// What running processes hold.
    pub live_bytes: u64,
    /// By how many bytes an hour the running processes grow in the long run. `None` if that is not known of any.
    pub growth_per_hour: Option<u64>,
    /// How many processes run.
    running: u64,
    /// When something last happened, since the Unix epoch.
    changed: Duration,
}

impl SeriesSums {
    fn add(&mut self, image: &Image) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        let counters = &image.counters;
        self.changed = self.changed.max(image.end_time);
        add(&mut self.allocated_bytes, counters.total_allocs_bytes);
        match image.end {
            End::Exited(_) | End::Signaled { .. } => {}
            End::Exec => return,
            End::Running => return self.add_running(image),
        }
        add(&mut self.ended, 1);
        add(&mut self.leaked_bytes, counters.leaked_bytes);
        add(&mut self.leaked_blocks, counters.leaked_blocks);
        add(&mut self.lost_bytes, Bounds::of_lost(image).lower);
        add(&mut self.incomplete, u64::from(!image.complete()));
        let class = LEAK_CLASSES.partition_point(|most| *most < counters.leaked_bytes);
        add(&mut self.classes[class], 1);
    }

    fn add_running(&mut self, image: &Image) {
        let held = image.counters.leaked_bytes;
        self.live_bytes = self.live_bytes.saturating_add(held);
        self.running += 1;
    }
}

/// The sums so far.
#[derive(Clone, Debug)]
pub struct Metrics {
    labels: MetricLabels,
    series: HashMap<Vec<String>, SeriesSums>,
    /// What found no room. `None`: all has.
    other: Option<SeriesSums>,
    /// Rows that memleak missed as a whole.
    pub rows_lost: u64,
}

impl Metrics {
    pub fn new(labels: MetricLabels) -> Self {
        Self {
            labels,
            series: HashMap::new(),
            other: None,
            rows_lost: 0,
        }
    }

    /// Adds an image that has ended, or that memleak leaves running at its own end.
    pub fn add(&mut self, image: &Image) {
        self.sums_of(image).add(image);
    }

    /// Replaces what is known of the running processes.
    pub fn measure(&mut self, live: &Live) {
        for sums in self.series.values_mut().chain(&mut self.other) {
            sums.live_bytes = 0;
            sums.growth_per_hour = None;
            sums.running = 0;
        }
        for row in live.rows.iter().chain(&live.rest) {
            let sums = self.sums_of(&row.image);
            sums.changed = live.time;
            sums.add_running(&row.image);
            if let Some(rate) = row.rate {
                let sum = sums.growth_per_hour.unwrap_or(0);
                sums.growth_per_hour = Some(sum.saturating_add(rate));
            }
        }
    }

    /// Whether something was added up as `other`.
    pub fn is_full(&self) -> bool {
        self.other.is_some()
    }

    /// The names of the labels.
    pub fn label_names(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.labels.iter().map(Label::name)
    }

    /// All series with the values of their labels, in the order of these values.
    pub fn series(&self) -> Vec<(Vec<&str>, &SeriesSums)> {
        let named = self.series.iter().map(|(values, sums)| {
            let values = values.iter().map(String::as_str);
            (values.collect(), sums)
        });
        let other = self.other.iter();
        let other = other.map(|sums| (vec![OTHER; self.labels.iter().count()], sums));
        let mut all: Vec<(Vec<&str>, &SeriesSums)> = named.chain(other).collect();
        all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    fn sums_of(&mut self, image: &Image) -> &mut SeriesSums {
        let values: Vec<String> = self.labels.iter().map(|label| label.value(image)).collect();
        // A process may have the name that stands for all others.
        let is_other = !values.is_empty() && values.iter().all(|value| value == OTHER);
        let has_room = self.series.contains_key(&values) || self.make_room(image.end_time);
        match has_room && !is_other {
            true => self.series.entry(values).or_default(),
            false => self.other.get_or_insert_default(),
        }
    }

    /// Whether there is room for one more series, if necessary in the place of one that is long over.
    fn make_room(&mut self, now: Duration) -> bool {
        if self.series.len() < MOST_SERIES {
            return true;
        }
        let over = self.series.iter().filter(|(_, sums)| sums.running == 0);
        let oldest = over.min_by_key(|(_, sums)| sums.changed);
        let over = oldest
            .filter(|(_, sums)| now.saturating_sub(sums.changed) >= FORGOTTEN_AFTER)
            .map(|(values, _)| values.clone());
        over.is_some_and(|values| self.series.remove(&values).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::From;
    use crate::model::image::samples::image;
    use crate::model::live::Growing;

    const LABELS: [Label; 2] = [Label::User, Label::Comm];

    fn ended(comm: &str, leaked: u64) -> Image {
        let mut image = image();
        image.comm = comm.into();
        image.counters.total_allocs_bytes = 10_000_000;
        image.counters.leaked_bytes = leaked;
        image.counters.leaked_blocks = leaked.min(1);
        image
    }

    fn live(images: Vec<Image>, time: Duration) -> Live {
        let mut rows = images.into_iter().map(|image| Growing {
            id: 0,
            image,
            growth: 0,
            rate: Some(7),
            places: Vec::new(),
        });
        Live {
            time,
            since: time,
            rows: rows.by_ref().take(1).collect(),
            rest: rows.collect(),
            held_bytes: 0,
            growth_bytes: 0,
            older: None,
        }
    }

    /// The series with these values.
    #[track_caller]
    fn find<'a>(metrics: &'a Metrics, values: &[&str]) -> &'a SeriesSums {
        let all = metrics.series();
        let found = all.iter().find(|(found, _)| found == values);
        found.unwrap_or_else(|| panic!("no {values:?}")).1
    }

    #[test]
    fn processes_with_the_same_labels_are_added_up() {
        let mut metrics = Metrics::new(MetricLabels::of(&LABELS));
        let mut blind = ended("a", 1_001);
        blind.from = From::Attach;
        let mut nameless = ended("a", 0);
        (nameless.user, nameless.uid) = (None, 77);
        for image in [ended("a", 0), ended("a", 1_000), blind, nameless] {
            metrics.add(&image);
        }
        let names: Vec<&str> = metrics.label_names().collect();
        assert_eq!(names, ["comm", "user"]);
        let sums = find(&metrics, &["a", "alice"]);
        assert_eq!((sums.ended, sums.incomplete), (3, 1));
        assert_eq!((sums.leaked_bytes, sums.leaked_blocks), (2_001, 2));
        assert_eq!(sums.allocated_bytes, 30_000_000);
        // A class contains its upper bound.
        assert_eq!(sums.classes, [1, 1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(find(&metrics, &["a", "77"]).ended, 1);
    }

    #[test]
    fn an_image_that_an_exec_replaced_has_allocated_and_is_no_end() {
        let mut metrics = Metrics::new(MetricLabels::of(&LABELS));
        let mut exec = ended("sh", 500);
        exec.end = End::Exec;
        metrics.add(&exec);
        let sums = find(&metrics, &["sh", "alice"]);
        let expected = (10_000_000, 0, 0, 0);
        let found = (
            sums.allocated_bytes,
            sums.ended,
            sums.leaked_bytes,
            sums.live_bytes,
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn what_runs_replaces_what_ran_before_and_is_not_limited_to_what_is_shown() {
        let mut metrics = Metrics::new(MetricLabels::of(&[Label::Comm]));
        let time = Duration::from_secs(9);
        metrics.measure(&live(
            vec![ended("a", 1), ended("a", 2), ended("b", 4)],
            time,
        ));
        let sums = find(&metrics, &["a"]);
        assert_eq!((sums.live_bytes, sums.growth_per_hour), (3, Some(14)));
        metrics.measure(&live(vec![ended("b", 5)], time));
        let sums = find(&metrics, &["a"]);
        assert_eq!((sums.live_bytes, sums.growth_per_hour), (0, None));
        assert_eq!(find(&metrics, &["b"]).live_bytes, 5);
        assert_eq!(find(&metrics, &["b"]).allocated_bytes, 0);
    }

    #[test]
    fn growth_is_unknown_until_that_of_one_process_is_known() {
        let mut metrics = Metrics::new(MetricLabels::of(&[Label::Comm]));
        let mut running = live(vec![ended("a", 1), ended("a", 2)], Duration::ZERO);
        for (rates, expected) in [
            ([None, None], None),
            ([None, Some(0)], Some(0)),
            ([Some(5), None], Some(5)),
        ] {
            (running.rows[0].rate, running.rest[0].rate) = (rates[0], rates[1]);
            metrics.measure(&running);
            assert_eq!(find(&metrics, &["a"]).growth_per_hour, expected);
        }
    }

    #[test]
    fn beyond_the_limit_the_rest_is_other_and_nothing_is_dropped() {
        let mut metrics = Metrics::new(MetricLabels::of(&LABELS));
        let images = (0..MOST_SERIES + 9).map(|n| ended(&format!("n{n}"), 1));
        images.for_each(|image| metrics.add(&image));
        assert!(metrics.is_full());
        assert_eq!(metrics.series().len(), MOST_SERIES + 1);
        assert_eq!(find(&metrics, &["other", "other"]).ended, 9);
        let all = metrics
            .series()
            .iter()
            .map(|(_, sums)| sums.ended)
            .sum::<u64>();
        assert_eq!(all, MOST_SERIES as u64 + 9);
    }

    #[test]
    fn a_series_takes_the_place_of_one_that_has_been_over_for_an_hour() {
        let mut metrics = Metrics::new(MetricLabels::of(&[Label::Comm]));
        let begin = image().end_time;
        let at = |name: &str, seconds| {
            let mut image = ended(name, 1);
            image.end_time = begin + Duration::from_secs(seconds);
            image
        };
        for n in 0..MOST_SERIES as u64 {
            metrics.add(&at(&format!("n{n}"), n));
        }
        // It still runs.
        metrics.measure(&live(vec![ended("n0", 7)], begin));
        metrics.add(&at("early", 3_600));
        assert_eq!(find(&metrics, &["other"]).ended, 1);
        metrics.add(&at("late", 3_601));
        assert_eq!(find(&metrics, &["late"]).ended, 1);
        let names = metrics.series();
        let is_there = |name| names.iter().any(|(values, _)| values == &[name]);
        assert!(is_there("n0") && !is_there("n1") && is_there("n2"));
    }

    #[test]
    fn jobs_and_control_groups_are_labels_where_they_are_known() {
        let mut metrics = Metrics::new(MetricLabels::of(&[Label::Jobid, Label::Cgroup]));
        let mut of_job = ended("a", 1);
        let path = "/system.slice/slurmstepd.scope/job_7/step_0";
        of_job.origin = Some(Origin::of_cgroup(path).into());
        metrics.add(&of_job);
        metrics.add(&ended("a", 2));
        assert_eq!(find(&metrics, &[path, "7"]).leaked_bytes, 1);
        assert_eq!(find(&metrics, &["", ""]).leaked_bytes, 2);
    }

    #[test]
    fn containers_and_pods_are_labels_and_bounded_as_all_others() {
        let labels = [Label::Pod, Label::Container];
        let mut metrics = Metrics::new(MetricLabels::of(&labels));
        let names: Vec<&str> = metrics.label_names().collect();
        assert_eq!(names, ["container", "pod"]);
        let pod = "1a2b3c4d-5e6f-7081-92a3-b4c5d6e7f809";
        for n in 0..MOST_SERIES + 3 {
            let mut image = ended("a", 7);
            let path = format!("/kubepods/burstable/pod{pod}/{n:064x}");
            image.origin = Some(Origin::of_cgroup(&path).into());
            metrics.add(&image);
        }
        let last = format!("{:064x}", MOST_SERIES - 1);
        assert_eq!(find(&metrics, &[&last, pod]).leaked_bytes, 7);
        assert_eq!(find(&metrics, &["other", "other"]).leaked_bytes, 21);
    }

    #[test]
    fn a_process_that_is_named_other_is_no_series_of_its_own() {
        let mut metrics = Metrics::new(MetricLabels::of(&[Label::Comm]));
        metrics.add(&ended("other", 1));
        assert_eq!(metrics.series().len(), 1);
        assert_eq!(find(&metrics, &["other"]).ended, 1);
    }

    #[test]
    fn without_labels_there_is_one_series() {
        let mut metrics = Metrics::new(MetricLabels::of(&[]));
        metrics.add(&ended("a", 1));
        metrics.add(&ended("b", 1));
        assert_eq!(find(&metrics, &[]).ended, 2);
    }
}
