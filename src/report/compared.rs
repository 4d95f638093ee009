//! What a report says of a baseline: what is new, known and gone.

use serde::Serialize;

use crate::model::baseline::{Compared, NewLeak};
use crate::report::cells::name;
use crate::text::units::{counted, grouped};

/// How many leaks of a kind are named.
const NAMED: usize = 10;

/// In how many places something leaked that a baseline has not, has, or has alone.
#[derive(Serialize)]
pub(super) struct BaselineObject {
    new: usize,
    new_bytes: u64,
    known: u64,
    known_bytes: u64,
    gone: usize,
}

impl From<&Compared> for BaselineObject {
    fn from(compared: &Compared) -> Self {
        Self {
            new: compared.new.len(),
            new_bytes: compared.new_bytes(),
            known: compared.known,
            known_bytes: compared.known_bytes,
            gone: compared.gone.len(),
        }
    }
}

/// For the end of a table: a line with the sums, then a line for each leak that is new or gone.
pub(super) fn baseline_lines(compared: &Compared) -> Vec<String> {
    let mut lines = vec![format!("baseline: {}", sums(compared))];
    let new = compared.new.iter().map(|(_, leak)| leak);
    for (what, leaks) in [
        ("new", new.collect::<Vec<_>>()),
        ("gone", compared.gone.iter().collect()),
    ] {
        let shown = leaks.iter().take(NAMED);
        lines.extend(shown.map(|leak| format!("    {what}: {}", leak_text(leak))));
        if leaks.len() > NAMED {
            lines.push(format!("    {what}: {} more", leaks.len() - NAMED));
        }
    }
    lines
}

/// For a gate's line: the sums, and the largest leak that is new.
pub(super) fn baseline_clause(compared: &Compared) -> String {
    let largest = compared.new.first();
    let largest = largest.map(|(_, leak)| format!(" (most: {})", leak_text(leak)));
    format!(
        "baseline: {}{}",
        sums(compared),
        largest.unwrap_or_default()
    )
}

fn sums(compared: &Compared) -> String {
    let bytes = |bytes| match bytes {
        1 => "1 byte".to_owned(),
        bytes => format!("{} bytes", grouped(bytes)),
    };
    format!(
        "{} ({}), {} known ({}), {} gone",
        counted(compared.new.len() as u64, "new leak", "new leaks"),
        bytes(compared.new_bytes()),
        compared.known,
        bytes(compared.known_bytes),
        compared.gone.len()
    )
}

/// As `70 bytes, make_node list.c:31, app`, or `70 bytes more, …` if the baseline has the place with less.
fn leak_text(leak: &NewLeak) -> String {
    let unit = if leak.bytes == 1 { "byte" } else { "bytes" };
    let more = if leak.grown { " more" } else { "" };
    let size = format!("{} {unit}{more}", grouped(leak.bytes));
    let place = (!leak.place.is_empty()).then(|| leak.place.clone());
    let parts: Vec<_> = [Some(size), place, Some(name(&leak.comm))]
        .into_iter()
        .flatten()
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::baseline::LeakKey;

    fn leak(bytes: u64, place: &str, grown: bool) -> NewLeak {
        NewLeak {
            bytes,
            comm: b"a\x1bpp".to_vec(),
            place: place.to_owned(),
            grown,
        }
    }

    #[test]
    fn new_and_gone_leaks_are_named_and_known_ones_counted() {
        let compared = Compared {
            new: vec![
                (LeakKey::Stack(1), leak(7_000, "make_node list.c:31", false)),
                (LeakKey::Rest(b"app".to_vec()), leak(1, "", true)),
            ],
            known: 3,
            known_bytes: 1_234,
            gone: vec![leak(50, "fill", false); 12],
        };
        let lines = baseline_lines(&compared);
        assert_eq!(
            lines[..4],
            [
                "baseline: 2 new leaks (7,001 bytes), 3 known (1,234 bytes), 12 gone",
                r"    new: 7,000 bytes, make_node list.c:31, a\x1bpp",
                r"    new: 1 byte more, a\x1bpp",
                r"    gone: 50 bytes, fill, a\x1bpp",
            ]
        );
        assert_eq!(lines.last().unwrap(), "    gone: 2 more");
        assert_eq!(
            baseline_clause(&compared),
            r"baseline: 2 new leaks (7,001 bytes), 3 known (1,234 bytes), 12 gone (most: 7,000 bytes, make_node list.c:31, a\x1bpp)"
        );
        assert_eq!(
            baseline_lines(&Compared::default()),
            ["baseline: 0 new leaks (0 bytes), 0 known (0 bytes), 0 gone"]
        );
    }
}
