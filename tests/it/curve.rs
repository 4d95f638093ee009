//! docs/metrics.md shows what memleak took in twenty minutes, as tests/long.txt records it. `make docs` draws the
//! picture, and writes the table, anew.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::documents::assert_matches;

const RECORDED: &str = "tests/long.txt";
const TEST: &str = "long::memleaks_memory_stays_what_it_is_for_twenty_minutes (";

const DOCUMENT: &str = "docs/metrics.md";
const PICTURE: &str = "docs/endurance.svg";

/// Between these lines the document has the table.
const BEGIN: &str = "<!-- endurance:begin -->\n";
const END: &str = "<!-- endurance:end -->\n";

/// Of these minutes the table has rows.
const MINUTES: [f64; 5] = [2.0, 6.0, 10.0, 14.0, 18.0];

/// What a line of the record says.
#[derive(Clone, Copy)]
struct Moment {
    minute: f64,
    resident_mb: f64,
    kernel_mb: f64,
    percent: f64,
    ended: f64,
}

/// The record of a run.
struct Recorded {
    /// The date, the kernel and the number of processors.
    when_and_where: [String; 3],
    moments: Vec<Moment>,
}

impl Recorded {
    fn read(text: &str) -> Self {
        let (_, paragraph) = text.split_once(TEST).expect("the test is recorded");
        let mut lines = paragraph.lines().take_while(|line| !line.is_empty());
        let mut head = lines.next().expect("a head").split(", ");
        let when_and_where = [(); 3].map(|()| head.next().expect("a part").to_owned());
        let moments = lines.filter_map(|line| {
            let words = line.split_whitespace();
            let figures: Option<Vec<f64>> = words
                .map(|word| word.trim_end_matches('%').parse().ok())
                .collect();
            match figures?[..] {
                [second, resident, kernel, percent, ended, ..] => Some(Moment {
                    minute: second / 60.0,
                    resident_mb: resident / 1000.0,
                    kernel_mb: kernel / 1000.0,
                    percent,
                    ended,
                }),
                _ => None,
            }
        });
        let moments: Vec<Moment> = moments.collect();
        assert!(moments.len() >= 10, "{} moments", moments.len());
        Self {
            when_and_where,
            moments,
        }
    }

    fn at(&self, minute: f64) -> Moment {
        let by_distance = |moment: &&Moment| (moment.minute - minute).abs();
        let nearest = self
            .moments
            .iter()
            .min_by(|one, other| by_distance(one).total_cmp(&by_distance(other)));
        *nearest.expect("there are moments")
    }

    fn table(&self) -> String {
        let [date, kernel, processors] = &self.when_and_where;
        let mut table =
            "| after | resident | in the kernel | of one processor | processes that had ended |\n\
             |--:|--:|--:|--:|--:|\n"
                .to_owned();
        for minute in MINUTES {
            let at = self.at(minute);
            let ended = at.ended.to_string();
            let (thousands, rest) = ended.split_at(ended.len() - 3);
            let _ = writeln!(
                table,
                "| {minute} min | {:.1} MB | {:.1} MB | {:.1} % | {thousands},{rest} |",
                at.resident_mb, at.kernel_mb, at.percent
            );
        }
        let release = kernel.split('-').next().expect("a part");
        let _ = write!(
            table,
            "\n{release}, a virtual machine with {processors}, a release build, {date}.\n"
        );
        table
    }

    fn picture(&self) -> String {
        let ended: Vec<[f64; 2]> = self.curve(|at| at.ended / 1000.0);
        let panels = [
            Panel {
                top: 40.0,
                unit: "MB",
                step: 20.0,
                curves: vec![
                    ("in the kernel", "#e5c07b", self.curve(|at| at.kernel_mb)),
                    ("resident", "#61afef", self.curve(|at| at.resident_mb)),
                ],
            },
            Panel {
                top: 200.0,
                unit: "thousand",
                step: 50.0,
                curves: vec![("processes that had ended", "#6a9955", ended)],
            },
        ];
        let mut picture = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\">\n\
             <title>What memleak takes stays the same for twenty minutes, while processes end</title>\n\
             <style>\n\
             text {{ font: 13px ui-sans-serif, system-ui, \"DejaVu Sans\", sans-serif; fill: #d4d4d4 }}\n\
             line {{ stroke: #444 }} polyline {{ fill: none; stroke-width: 2 }} .unit {{ text-anchor: end }}\n\
             </style>\n\
             <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1e1e1e\"/>\n"
        );
        for panel in &panels {
            picture.push_str(&panel.drawn());
        }
        let bottom = panels[1].top + TALL + 20.0;
        for minute in (0..=20).step_by(5) {
            let x = across(f64::from(minute));
            let _ = writeln!(
                picture,
                "<text x=\"{x:.0}\" y=\"{bottom:.0}\" text-anchor=\"middle\">{minute} min</text>"
            );
        }
        picture + "</svg>\n"
    }

    fn curve(&self, value: impl Fn(&Moment) -> f64) -> Vec<[f64; 2]> {
        let points = self.moments.iter().map(|at| [at.minute, value(at)]);
        points.collect()
    }
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 350.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 690.0;
/// The height of a panel.
const TALL: f64 = 120.0;
/// The end of the time axis.
const LAST_MINUTE: f64 = 20.0;

/// Where a minute is.
fn across(minute: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * minute / LAST_MINUTE
}

/// Curves over one axis, which begins at 0.
struct Panel {
    top: f64,
    unit: &'static str,
    /// From one line of the grid to the next.
    step: f64,
    /// Each with its name and its colour.
    curves: Vec<(&'static str, &'static str, Vec<[f64; 2]>)>,
}

impl Panel {
    fn drawn(&self) -> String {
        let values = self.curves.iter().flat_map(|(_, _, points)| points);
        let most = values.map(|point| point[1]).fold(0.0, f64::max);
        let steps = (most / self.step).ceil().max(1.0);
        let scale = TALL / (steps * self.step);
        let bottom = self.top + TALL;
        let mut drawn = String::new();
        for step in 0..=steps as u32 {
            let value = f64::from(step) * self.step;
            let y = bottom - value * scale;
            let unit = if step == steps as u32 { self.unit } else { "" };
            let _ = writeln!(
                drawn,
                "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" class=\"unit\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                format!("{value} {unit}").trim_end()
            );
        }
        for (name, colour, points) in &self.curves {
            let places = points.iter().map(|[minute, value]| {
                format!("{:.1},{:.1}", across(*minute), bottom - value * scale)
            });
            let places: Vec<String> = places.collect();
            let [minute, value] = points[points.len() / 2];
            let _ = writeln!(
                drawn,
                "<polyline stroke=\"{colour}\" points=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" style=\"fill: {colour}\">{name}</text>",
                places.join(" "),
                across(minute) + 8.0,
                bottom - value * scale + 18.0
            );
        }
        drawn
    }
}

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).expect("the file can be read")
}

#[test]
fn the_documents_show_the_endurance_that_is_recorded() {
    let recorded = Recorded::read(&file(RECORDED));
    assert_matches(PICTURE, recorded.picture().as_bytes());
    let document = file(DOCUMENT);
    let (before, rest) = document.split_once(BEGIN).expect("the first mark");
    let (_, after) = rest.split_once(END).expect("the second mark");
    let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", recorded.table());
    assert_matches(DOCUMENT, wanted.as_bytes());
}
