//! Metrics for Prometheus: the text format, and OpenMetrics for readers that ask for it.
//!
//! The whole is written each time, with the sums since memleak began. No sample has a timestamp: node_exporter refuses
//! a file with one. A pid is never a label.

use std::io;

use crate::model::bounds::Verdict;
use crate::model::image::Image;
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::metrics::{LEAK_CLASSES, MOST_SERIES, MetricLabels, Metrics, SeriesSums};
use crate::report::render::{Render, Screen, Window};

/// The syntax of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// The text format, version 0.0.4.
    Text,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Exposition {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The syntax for a reader that accepts these media types, each with its parameters. OpenMetrics is for those that
    /// name it, and do not like the other one better.
    pub fn negotiated<'a>(accepted: impl Iterator<Item = &'a str>) -> Self {
        let (mut text, mut open_metrics) = (0.0, 0.0);
        for accepted in accepted {
            let mut parts = accepted.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut known) = (1.0_f64, true);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => known = matches!(value.trim(), "1.0.0" | "0.0.1"),
                    _ => {}
                }
            }
            match &*kind {
                "application/openmetrics-text" if known => open_metrics = quality.max(open_metrics),
                "text/plain" | "text/*" => text = quality.max(text),
                _ => {}
            }
        }
        match open_metrics > 0.0 && open_metrics >= text {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }
}

pub(super) struct Prometheus {
    metrics: Metrics,
    exposition: Exposition,
    /// Whether processes may be scanned for what they lost.
    lost: bool,
    noted: bool,
}

impl Prometheus {
    pub(super) fn new(exposition: Exposition, labels: MetricLabels, lost: bool) -> Self {
        Self {
            metrics: Metrics::new(labels),
            exposition,
            lost,
            noted: false,
        }
    }

    fn page(&self) -> Vec<u8> {
        page(&self.metrics, self.exposition, self.lost).into_bytes()
    }
}

impl Render for Prometheus {
    fn image(&mut self, image: &Image, _verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        self.metrics.add(image);
        Ok(Vec::new())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        for image in &window.images {
            self.metrics.add(image);
        }
        Ok(Vec::new())
    }

    fn live(&mut self, _live: &Live, _screen: Option<&Screen>) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn measures(&self) -> bool {
        true
    }

    fn measure(&mut self, live: &Live, rows_lost: u64) -> io::Result<Vec<u8>> {
        self.metrics.measure(live);
        self.metrics.rows_lost = rows_lost;
        Ok(self.page())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<Vec<u8>> {
        self.metrics.rows_lost = summary.losses.rows_lost;
        Ok(self.page())
    }

    fn notice(&mut self) -> Option<String> {
        if self.noted || !self.metrics.is_full() {
            return None;
        }
        self.noted = true;
        let labels: Vec<&str> = self.metrics.label_names().collect();
        Some(format!(
            "metrics: there are more than {MOST_SERIES} combinations of {}, and what is beyond has the value 'other' \
             (fewer labels: --metrics-labels)",
            labels.join(" and ")
        ))
    }
}

/// The type of a family of metrics.
#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// A name with its meaning.
struct MetricFamily {
    /// Without the suffix that the type adds.
    name: &'static str,
    kind: MetricKind,
    /// The end of the name, if it is a unit.
    unit: &'static str,
    help: &'static str,
}

/// A family with one value for each series.
struct SummedFamily {
    family: MetricFamily,
    value: fn(&SeriesSums) -> u64,
}

const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> MetricFamily {
    MetricFamily {
        name,
        kind: MetricKind::Counter,
        unit,
        help,
    }
}

/// The families whose values are sums. Other programs' files in the same directory must not have other HELP texts for
/// the same names, so these texts are part of the interface.
const SUMMED: [SummedFamily; 5] = [
    SummedFamily {
        family: counter(
            "memleak_processes_ended",
            "",
            "Processes that have ended since memleak began.",
        ),
        value: |sums| sums.ended,
    },
    SummedFamily {
        family: counter(
            "memleak_allocated_bytes",
            "bytes",
            "Bytes that processes which have ended had allocated in their lives.",
        ),
        value: |sums| sums.allocated_bytes,
    },
    SummedFamily {
        family: counter(
            "memleak_leaked_bytes",
            "bytes",
            "Bytes that processes which have ended had never freed.",
        ),
        value: |sums| sums.leaked_bytes,
    },
    SummedFamily {
        family: counter(
            "memleak_leaked_blocks",
            "",
            "Blocks that processes which have ended had never freed.",
        ),
        value: |sums| sums.leaked_blocks,
    },
    SummedFamily {
        family: counter(
            "memleak_incomplete_processes",
            "",
            "Processes that have ended and of which not all calls were counted.",
        ),
        value: |sums| sums.incomplete,
    },
];

/// Only if processes may be scanned.
const LOST: SummedFamily = SummedFamily {
    family: counter(
        "memleak_lost_bytes",
        "bytes",
        "Bytes that processes which have ended could not have freed any more.",
    ),
    value: |sums| sums.lost_bytes,
};

const LIVE: SummedFamily = SummedFamily {
    family: MetricFamily {
        name: "memleak_live_bytes",
        kind: MetricKind::Gauge,
        unit: "bytes",
        help: "Bytes that running processes hold, of those that memleak saw them allocate.",
    },
    value: |sums| sums.live_bytes,
};

const GROWTH: MetricFamily = MetricFamily {
    name: "memleak_growth_bytes_per_second",
    kind: MetricKind::Gauge,
    unit: "bytes_per_second",
    help: "By how much running processes grow in the long run.",
};

const LEAKS: MetricFamily = MetricFamily {
    name: "memleak_process_leaked_bytes",
    kind: MetricKind::Histogram,
    unit: "bytes",
    help: "What each process that has ended had never freed.",
};

const ROWS_LOST: MetricFamily = counter(
    "memleak_rows_lost",
    "",
    "Processes, or executed programs of one, that memleak may have missed as a whole.",
);

const BUILD: MetricFamily = MetricFamily {
    name: "memleak_build",
    kind: MetricKind::Info,
    unit: "",
    help: "The memleak that made these metrics.",
};

/// All metrics as text.
fn page(metrics: &Metrics, exposition: Exposition, lost: bool) -> String {
    let names: Vec<&str> = metrics.label_names().collect();
    let series: Vec<(String, &SeriesSums)> = metrics
        .series()
        .into_iter()
        .map(|(values, sums)| (labels(names.iter().copied().zip(values)), sums))
        .collect();
    let mut page = MetricsPage {
        text: String::new(),
        exposition,
    };
    for summed in SUMMED.iter().chain(lost.then_some(&LOST)).chain([&LIVE]) {
        page.head(&summed.family);
        for (labels, sums) in &series {
            page.value(&summed.family, labels, (summed.value)(sums));
        }
    }
    page.head(&GROWTH);
    for (labels, sums) in &series {
        // What is not known yet is no sample: 0 would say that nothing grows.
        if let Some(rate) = sums.growth_per_hour {
            #[expect(clippy::cast_precision_loss, reason = "a reader has no more digits")]
            let rate = rate as f64 / 3600.0;
            page.sample(&GROWTH.sample(), labels, &rate.to_string());
        }
    }
    page.head(&LEAKS);
    for (labels, sums) in &series {
        page.histogram(&LEAKS, labels, sums);
    }
    page.head(&ROWS_LOST);
    page.value(&ROWS_LOST, "", metrics.rows_lost);
    page.head(&BUILD);
    let version = labels([("version", env!("CARGO_PKG_VERSION"))].into_iter());
    page.value(&BUILD, &version, 1);
    if exposition == Exposition::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

struct MetricsPage {
    text: String,
    exposition: Exposition,
}

impl MetricsPage {
    fn head(&mut self, family: &MetricFamily) {
        let name = match self.exposition {
            Exposition::Text => family.sample(),
            Exposition::OpenMetrics => family.name.to_owned(),
        };
        let kind = match (family.kind, self.exposition) {
            (MetricKind::Counter, _) => "counter",
            (MetricKind::Histogram, _) => "histogram",
            (MetricKind::Info, Exposition::OpenMetrics) => "info",
            (MetricKind::Info, Exposition::Text) | (MetricKind::Gauge, _) => "gauge",
        };
        self.line(&["# HELP ", &name, " ", family.help]);
        self.line(&["# TYPE ", &name, " ", kind]);
        if self.exposition == Exposition::OpenMetrics && !family.unit.is_empty() {
            self.line(&["# UNIT ", &name, " ", family.unit]);
        }
    }

    fn value(&mut self, family: &MetricFamily, labels: &str, value: u64) {
        self.sample(&family.sample(), labels, &value.to_string());
    }

    fn sample(&mut self, name: &str, labels: &str, value: &str) {
        match labels {
            "" => self.line(&[name, " ", value]),
            labels => self.line(&[name, "{", labels, "} ", value]),
        }
    }

    fn histogram(&mut self, family: &MetricFamily, labels: &str, sums: &SeriesSums) {
        let mut below = 0_u64;
        let bucket = format!("{}_bucket", family.name);
        let bounds = LEAK_CLASSES.iter().map(|most| bound(*most));
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, processes) in bounds.zip(sums.classes) {
            below = below.saturating_add(processes);
            let comma = if labels.is_empty() { "" } else { "," };
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            self.sample(&bucket, &labels, &below.to_string());
        }
        let leaked = sums.leaked_bytes.to_string();
        self.sample(&format!("{}_sum", family.name), labels, &leaked);
        self.sample(
            &format!("{}_count", family.name),
            labels,
            &below.to_string(),
        );
    }

    fn line(&mut self, parts: &[&str]) {
        self.text.extend(parts.iter().copied());
        self.text.push('\n');
    }
}

impl MetricFamily {
    /// The name of its samples.
    fn sample(&self) -> String {
        let suffix = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Info => "_info",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        format!("{}{suffix}", self.name)
    }
}

/// The upper bound of a class as OpenMetrics writes it: `1000.0`, from 10^6 on `1e+06`. Both syntaxes have it so, as it
/// is part of a series' name.
fn bound(bytes: u64) -> String {
    match bytes {
        1_000_000.. => format!("1e+{:02}", bytes.ilog10()),
        _ => format!("{bytes}.0"),
    }
}

fn labels<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs.map(|(name, value)| {
        let value = value.replace('\\', r"\\").replace('"', "\\\"");
        format!("{name}=\"{value}\"")
    });
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::image::End;
    use crate::model::image::samples::image;
    use crate::model::live::Growing;
    use crate::model::metrics::Label;

    fn metrics(labels: &[Label]) -> Metrics {
        let mut metrics = Metrics::new(MetricLabels::of(labels));
        for (comm, leaked) in [("python3", 0), ("python3", 440_807), ("a\"b\\\n\u{e4}", 2)] {
            let mut image = image();
            image.comm = comm.as_bytes().to_vec();
            image.counters.leaked_bytes = leaked;
            image.counters.leaked_blocks = leaked.min(7);
            metrics.add(&image);
        }
        let mut running = image();
        running.end = End::Running;
        running.comm = b"\xff".to_vec();
        running.counters.leaked_bytes = u64::MAX;
        metrics.measure(&Live {
            time: Duration::ZERO,
            since: Duration::ZERO,
            rows: vec![Growing {
                id: 0,
                image: running,
                growth: 0,
                rate: Some(1_000_000),
                places: Vec::new(),
            }],
            rest: Vec::new(),
            held_bytes: 0,
            growth_bytes: 0,
            older: None,
        });
        metrics.rows_lost = 1;
        metrics
    }

    #[test]
    fn the_metrics_in_the_text_format() {
        let metrics = metrics(&[Label::Comm, Label::User]);
        insta::assert_snapshot!(page(&metrics, Exposition::Text, false));
    }

    #[test]
    fn the_metrics_in_the_syntax_of_openmetrics() {
        insta::assert_snapshot!(page(&metrics(&[]), Exposition::OpenMetrics, true));
    }

    #[test]
    fn a_reader_gets_openmetrics_only_if_it_names_it_and_likes_it_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, Exposition::OpenMetrics),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            (
                "Application/OpenMetrics-Text ; charset=utf-8",
                Exposition::OpenMetrics,
            ),
            (
                "application/openmetrics-text;q=0.2, text/plain",
                Exposition::Text,
            ),
            (
                "application/openmetrics-text;version=9.0.0",
                Exposition::Text,
            ),
            ("application/openmetrics-text;q=0", Exposition::Text),
            ("application/openmetrics-text;q=x", Exposition::Text),
            ("text/html, */*", Exposition::Text),
            ("", Exposition::Text),
            (";;;,=;q", Exposition::Text),
        ] {
            assert_eq!(
                Exposition::negotiated(accept.split(',')),
                expected,
                "{accept}"
            );
        }
    }

    #[test]
    fn a_bound_is_written_as_openmetrics_wants_it() {
        let bounds = LEAK_CLASSES.map(bound);
        let expected = [
            "0.0", "1000.0", "10000.0", "100000.0", "1e+06", "1e+07", "1e+08", "1e+09",
        ];
        assert_eq!(bounds, expected);
    }

    #[test]
    fn a_full_table_of_series_is_said_once() {
        let mut render = Prometheus::new(Exposition::Text, MetricLabels::of(&[Label::Comm]), false);
        assert_eq!(render.notice(), None);
        for n in 0..=MOST_SERIES {
            let mut image = image();
            image.comm = n.to_string().into_bytes();
            render.image(&image, None).unwrap();
        }
        let said = render.notice().unwrap();
        assert!(said.contains("500 combinations of comm,"), "{said}");
        assert_eq!(render.notice(), None);
    }
}
