//! The lines that say which suppressions matched, and how much.

use std::cmp::Reverse;

use crate::model::reach::Amount;
use crate::model::suppressed::SuppressionUse;
use crate::report::cells::in_blocks;
use crate::text::escape;
use crate::text::units::counted;

/// The most suppressions that are named, of those that matched and of those that did not.
const MOST: usize = 10;

/// Which suppressions of the user matched, the largest first, and which did not. There are such lines also where
/// nothing leaks, so that a suppression that is no longer needed is seen. None without suppressions.
pub fn suppressed_lines(all: &[SuppressionUse]) -> Vec<String> {
    if all.is_empty() {
        return Vec::new();
    }
    let (mut matched, unused): (Vec<_>, Vec<_>) = all.iter().partition(|used| used.places > 0);
    matched.sort_by_key(|used| Reverse(used.amount.bytes));
    let of = counted(all.len() as u64, "suppression", "suppressions");
    if matched.is_empty() {
        return vec![format!("suppressed: nothing, none of {of} matched")];
    }
    let mut sum = SuppressionUse::default();
    for used in &matched {
        sum.amount += used.amount;
        sum.places += used.places;
    }
    let mut lines = vec![format!(
        "suppressed: {}, by {} of {of}",
        at_places(&sum),
        matched.len()
    )];
    for used in matched.iter().take(MOST) {
        lines.push(format!("    {}: {}", at_places(used), named(used)));
    }
    if matched.len() > MOST {
        lines.push(format!("    {} more", matched.len() - MOST));
    }
    if !unused.is_empty() {
        let mut names: Vec<_> = unused.iter().take(MOST).map(|used| named(used)).collect();
        if unused.len() > MOST {
            names.push(format!("{} more", unused.len() - MOST));
        }
        let count = counted(unused.len() as u64, "suppression", "suppressions");
        lines.push(format!("{count} unused: {}", names.join(", ")));
    }
    lines
}

/// What memleak's own suppressions hid, in one line: how much, and what it is. `None` if they hid nothing.
pub fn runtime_line(known: &[SuppressionUse]) -> Option<String> {
    let (amount, names) = kept(known)?;
    Some(format!("runtime: {} ({names})", in_blocks(amount)))
}

/// How much memleak's own suppressions matched, and the names of what it is, the largest first. `None` if it is nothing.
pub(super) fn kept(known: &[SuppressionUse]) -> Option<(Amount, String)> {
    let mut parts: Vec<(&str, Amount)> = Vec::new();
    let mut sum = Amount::default();
    for used in known.iter().filter(|used| used.places > 0) {
        sum += used.amount;
        match parts.iter_mut().find(|(name, _)| *name == used.name) {
            Some((_, amount)) => *amount += used.amount,
            None => parts.push((&used.name, used.amount)),
        }
    }
    parts.sort_by_key(|(_, amount)| Reverse(amount.bytes));
    let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| (sum, names.join(", ")))
}

fn at_places(used: &SuppressionUse) -> String {
    let places = counted(used.places, "place", "places");
    format!("{} at {places}", in_blocks(used.amount))
}

/// `leak:make_node (ci.supp:3)`
fn named(used: &SuppressionUse) -> String {
    let SuppressionUse { name, line, .. } = used;
    let file = escape::escaped(used.file.as_bytes());
    format!("{name} ({file}:{line})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::{SuppressedSums, Suppressions};

    fn list(text: &str) -> Suppressions {
        let mut list = Suppressions::default();
        list.add("ci.supp", text.as_bytes()).unwrap();
        list
    }

    fn amount(bytes: u64, blocks: u64) -> Amount {
        Amount { bytes, blocks }
    }

    #[test]
    fn what_matched_is_said_with_the_largest_first_and_what_did_not_by_name() {
        let list = list("leak:small\n{\nlarge one\nMemcheck:Leak\nfun:*\n}\nleak:stale\nleak:gone");
        let mut sums = SuppressedSums::new(&list);
        sums.add(&[(0, amount(1, 1))]);
        sums.add(&[(1, amount(7_000, 99)), (0, amount(49, 1))]);
        assert_eq!(
            suppressed_lines(&sums.uses(&list)),
            [
                "suppressed: 7,050 bytes in 101 blocks at 3 places, by 2 of 4 suppressions",
                "    7,000 bytes in 99 blocks at 1 place: large one (ci.supp:2)",
                "    50 bytes in 2 blocks at 2 places: leak:small (ci.supp:1)",
                "2 suppressions unused: leak:stale (ci.supp:7), leak:gone (ci.supp:8)",
            ]
        );
    }

    #[test]
    fn a_clean_run_also_says_that_nothing_matched() {
        let one = list("leak:a");
        assert_eq!(
            suppressed_lines(&SuppressedSums::new(&one).uses(&one)),
            ["suppressed: nothing, none of 1 suppression matched"]
        );
        let none = Suppressions::default();
        assert!(suppressed_lines(&SuppressedSums::new(&none).uses(&none)).is_empty());
    }

    #[test]
    fn many_suppressions_are_counted_and_not_all_named() {
        let text: String = (0..40).map(|n| format!("leak:f{n}\n")).collect();
        let list = list(&text);
        let mut sums = SuppressedSums::new(&list);
        for n in 0..20 {
            sums.add(&[(n, amount(1_000 - n as u64, 1))]);
        }
        let lines = suppressed_lines(&sums.uses(&list));
        assert_eq!(lines.len(), 1 + MOST + 2);
        assert_eq!(lines[MOST + 1], "    10 more");
        assert!(lines[MOST + 2].starts_with("20 suppressions unused: leak:f20 (ci.supp:21), "));
        assert!(lines[MOST + 2].ends_with(", 10 more"));
    }

    #[test]
    fn what_the_runtime_keeps_is_one_line_with_the_largest_part_first() {
        let known = crate::stacks::known().unwrap();
        let number = |name: &str, nth: usize| {
            let list = known.list().iter().enumerate();
            let mut named = list.filter(|(_, suppression)| suppression.name == name);
            named.nth(nth).unwrap().0
        };
        let mut sums = SuppressedSums::new(&known);
        assert_eq!(runtime_line(&sums.uses(&known)), None);
        sums.add(&[(number("stdio", 0), amount(4_096, 1))]);
        sums.add(&[(number("locale", 0), amount(3_000, 5))]);
        sums.add(&[(number("locale", 1), amount(2_000, 5))]);
        sums.add(&[(number("libstdc++ pool", 0), amount(72_704, 1))]);
        assert_eq!(
            runtime_line(&sums.uses(&known)).unwrap(),
            "runtime: 81,800 bytes in 12 blocks (libstdc++ pool, locale, stdio)"
        );
    }
}
