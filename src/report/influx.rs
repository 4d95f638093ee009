//! InfluxDB's line protocol: a point for each process that has ended (`memleak_process`), and at each interval one for
//! each process that runs and holds something (`memleak_live`). Telegraf reads it, too.
//!
//! InfluxDB takes two points with the same tags and the same time for one. The pid is a field, so that it makes no
//! series of its own, and no two points of a report have the same time. Integers above 2^63−1 would be refused, and are
//! written as 2^63−1.

use std::io;
use std::time::Duration;

use crate::model::bounds::{Bounds, Verdict};
use crate::model::image::{End, Image};
use crate::model::ledger::Summary;
use crate::model::live::Live;
use crate::model::reach::Reach;
use crate::report::render::{Render, Screen, Window, end_name};
use crate::text::escape;

#[derive(Default)]
pub(super) struct Influx {
    /// The time of the last point, in nanoseconds since the Unix epoch.
    last: u64,
}

impl Render for Influx {
    fn image(&mut self, image: &Image, _verdict: Option<Verdict>) -> io::Result<Vec<u8>> {
        Ok(self.ended(image).into_bytes())
    }

    fn window(&mut self, window: &Window) -> io::Result<Vec<u8>> {
        let points = window.images.iter().map(|image| self.ended(image));
        Ok(points.collect::<String>().into_bytes())
    }

    fn live(&mut self, _live: &Live, _screen: Option<&Screen>) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn measures(&self) -> bool {
        true
    }

    fn measure(&mut self, live: &Live, _rows_lost: u64) -> io::Result<Vec<u8>> {
        let rows = live.rows.iter().chain(&live.rest);
        let rows = rows.filter(|row| row.image.counters.leaked_bytes > 0 || row.growth != 0);
        let points = rows.map(|row| {
            let mut point = InfluxPoint::new("memleak_live", &row.image);
            point.integer("live_bytes", row.image.counters.leaked_bytes);
            point.integer("live_blocks", row.image.counters.leaked_blocks);
            if let Some(rate) = row.rate {
                point.integer("growth_bytes_per_hour", rate);
            }
            point.finish(self.time(live.time))
        });
        Ok(points.collect::<String>().into_bytes())
    }

    fn summary(&mut self, _summary: &Summary) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

impl Influx {
    /// The point of an image. One that an exec replaced is no process that ended, and has none.
    fn ended(&mut self, image: &Image) -> String {
        match image.end {
            End::Exec => return String::new(),
            End::Exited(_) | End::Signaled { .. } | End::Running => {}
        }
        let counters = &image.counters;
        let mut point = InfluxPoint::new("memleak_process", image);
        point.tag("end", end_name(image.end));
        point.integer("allocated_bytes", counters.total_allocs_bytes);
        point.integer("leaked_bytes", counters.leaked_bytes);
        point.integer("leaked_blocks", counters.leaked_blocks);
        if let Some(peak) = counters.peak_live_bytes {
            point.integer("peak_live_bytes", peak);
        }
        if let Reach::Known(_) = image.reach {
            point.integer("lost_bytes", Bounds::of_lost(image).lower);
        }
        match image.end {
            End::Exited(code) => point.integer("exit_code", code.into()),
            End::Signaled { signal, .. } => point.integer("signal", signal.into()),
            End::Exec | End::Running => {}
        }
        point.field("complete", &image.complete().to_string());
        point.finish(self.time(image.end_time))
    }

    /// A time of its own for a point: the given one, or one a little later.
    fn time(&mut self, time: Duration) -> u64 {
        let wanted = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.last = wanted.max(self.last.saturating_add(1));
        self.last
    }
}

/// A line while it is made.
struct InfluxPoint {
    /// The name and the tags.
    series: String,
    fields: String,
}

impl InfluxPoint {
    /// Begins with the tags and the field that every point of a process has.
    fn new(name: &str, image: &Image) -> Self {
        let mut point = Self {
            series: name.to_owned(),
            fields: String::new(),
        };
        point.tag("comm", &escape::escaped(&image.comm));
        let user = match &image.user {
            Some(user) => escape::escaped(user.as_bytes()),
            None => image.uid.to_string(),
        };
        point.tag("user", &user);
        if let Some(origin) = image.origin.as_deref() {
            for (key, value) in [("host", &origin.host), ("job", &origin.job)] {
                let value = value.as_deref().unwrap_or_default();
                point.tag(key, &escape::escaped(value.as_bytes()));
            }
        }
        point.integer("pid", image.pid.into());
        point
    }

    /// Adds a tag. One without a value would be refused.
    fn tag(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.series
                .push_str(&format!(",{key}={}", tag_value(value)));
        }
    }

    fn integer(&mut self, key: &str, value: u64) {
        self.field(key, &format!("{}i", value.min(i64::MAX as u64)));
    }

    fn field(&mut self, key: &str, value: &str) {
        let comma = if self.fields.is_empty() { "" } else { "," };
        self.fields.push_str(&format!("{comma}{key}={value}"));
    }

    fn finish(self, time: u64) -> String {
        format!("{} {} {time}\n", self.series, self.fields)
    }
}

/// A value of a tag, from one line of text. A backslash at the end would escape what follows, and there is no way to
/// write one there.
fn tag_value(value: &str) -> String {
    let mut shown = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, ',' | '=' | ' ') {
            shown.push('\\');
        }
        shown.push(c);
    }
    if shown.ends_with('\\') {
        shown.push('.');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::samples::image;
    use crate::model::live::Growing;
    use crate::model::origin::Origin;

    fn point(influx: &mut Influx, image: &Image) -> String {
        String::from_utf8(influx.image(image, None).unwrap()).unwrap()
    }

    #[test]
    fn a_process_that_ended_is_a_point() {
        let mut killed = image();
        killed.comm = b"a b,c=d".to_vec();
        killed.user = None;
        killed.counters.peak_live_bytes = None;
        killed.counters.leaked_bytes = u64::MAX;
        killed.end = End::Signaled {
            signal: 9,
            core: false,
        };
        let mut influx = Influx::default();
        assert_eq!(
            point(&mut influx, &image()),
            "memleak_process,comm=python3,user=alice,end=exited pid=12345i,allocated_bytes=7208122i,leaked_bytes=0i,\
             leaked_blocks=0i,peak_live_bytes=1892331i,exit_code=0i,complete=true 1761153781500000000\n"
        );
        assert_eq!(
            point(&mut influx, &killed),
            "memleak_process,comm=a\\ b\\,c\\=d,user=1001,end=signaled pid=12345i,allocated_bytes=7208122i,\
             leaked_bytes=9223372036854775807i,leaked_blocks=0i,signal=9i,complete=true 1761153781500000001\n"
        );
    }

    #[test]
    fn the_host_and_the_job_are_tags() {
        let mut image = image();
        let origin = Origin {
            host: Some("node 1".to_owned()),
            job: Some("7".to_owned()),
            ..Origin::default()
        };
        image.origin = Some(origin.into());
        let line = point(&mut Influx::default(), &image);
        let tags = r"memleak_process,comm=python3,user=alice,host=node\ 1,job=7,end=exited ";
        assert!(line.starts_with(tags), "{line}");
    }

    #[test]
    fn a_tag_never_ends_in_a_backslash_and_is_never_empty() {
        for (comm, tag) in [
            ("a\\", r",comm=a\\.,"),
            ("a\n", r",comm=a\x0a,"),
            ("", ",user="),
        ] {
            let mut image = image();
            image.comm = comm.into();
            let line = point(&mut Influx::default(), &image);
            assert!(line.starts_with(&format!("memleak_process{tag}")), "{line}");
        }
    }

    #[test]
    fn no_two_points_have_the_same_time() {
        let mut influx = Influx::default();
        let mut times = Vec::new();
        let mut early = image();
        early.end_time = Duration::from_secs(1);
        for image in [image(), image(), early] {
            let line = point(&mut influx, &image);
            let time: u64 = line.trim().rsplit_once(' ').unwrap().1.parse().unwrap();
            times.push(time);
        }
        assert!(times.is_sorted_by(|one, other| one < other), "{times:?}");
    }

    #[test]
    fn what_runs_has_a_point_if_it_holds_something_or_did() {
        let row = |pid, held, growth| {
            let mut image = image();
            image.pid = pid;
            image.counters.leaked_bytes = held;
            Growing {
                id: 0,
                image,
                growth,
                rate: (pid == 3).then_some(9),
                places: Vec::new(),
            }
        };
        let live = Live {
            time: Duration::from_secs(7),
            since: Duration::from_secs(2),
            rows: vec![row(1, 5, 5), row(2, 0, 0)],
            rest: vec![row(3, 0, -5)],
            held_bytes: 5,
            growth_bytes: 0,
            older: None,
        };
        let lines = Influx::default().measure(&live, 0).unwrap();
        let expected = "\
            memleak_live,comm=python3,user=alice pid=1i,live_bytes=5i,live_blocks=0i 7000000000\n\
            memleak_live,comm=python3,user=alice pid=3i,live_bytes=0i,live_blocks=0i,growth_bytes_per_hour=9i 7000000001\n";
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }

    #[test]
    fn an_image_that_an_exec_replaced_has_no_point() {
        let mut exec = image();
        exec.end = End::Exec;
        assert_eq!(point(&mut Influx::default(), &exec), "");
    }
}
