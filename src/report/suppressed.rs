//! The lines that say which suppressions matched, and how much.

use crate::report::cells::in_blocks;
use crate::stacks::{SuppressedSums, Suppression, Suppressions, Used};
use crate::text::escape;
use crate::text::units::counted;

/// The most suppressions that are named, of those that matched and of those that did not.
const MOST: usize = 10;

/// Which suppressions of the user matched, the largest first, and which did not. There are such lines also where
/// nothing leaks, so that a suppression that is no longer needed is seen. None without suppressions.
pub fn suppressed_lines(suppressions: &Suppressions, sums: &SuppressedSums) -> Vec<String> {
    let all: Vec<_> = suppressions.list().iter().zip(sums.used()).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let (mut matched, unused): (Vec<_>, Vec<_>) = all.iter().partition(|(_, used)| used.stacks > 0);
    matched.sort_by_key(|(_, used)| std::cmp::Reverse(used.amount.bytes));
    let of = counted(all.len() as u64, "suppression", "suppressions");
    if matched.is_empty() {
        return vec![format!("suppressed: nothing, none of {of} matched")];
    }
    let sum = sum(sums.sum());
    let mut lines = vec![format!("suppressed: {sum}, by {} of {of}", matched.len())];
    for (suppression, used) in matched.iter().take(MOST) {
        lines.push(format!("    {}: {}", self::sum(**used), named(suppression)));
    }
    if matched.len() > MOST {
        lines.push(format!("    {} more", matched.len() - MOST));
    }
    if !unused.is_empty() {
        let names = unused.iter().take(MOST);
        let mut names: Vec<_> = names.map(|(suppression, _)| named(suppression)).collect();
        if unused.len() > MOST {
            names.push(format!("{} more", unused.len() - MOST));
        }
        let count = counted(unused.len() as u64, "suppression", "suppressions");
        lines.push(format!("{count} unused: {}", names.join(", ")));
    }
    lines
}

/// What memleak's own suppressions hid, in one line: how much, and what it is. `None` if they hid nothing.
pub fn runtime_line(known: &Suppressions, sums: &SuppressedSums) -> Option<String> {
    let used = known.list().iter().zip(sums.used());
    let mut parts: Vec<(&str, u64)> = Vec::new();
    for (suppression, used) in used.filter(|(_, used)| used.stacks > 0) {
        match parts.iter_mut().find(|(name, _)| *name == suppression.name) {
            Some((_, bytes)) => *bytes = bytes.saturating_add(used.amount.bytes),
            None => parts.push((&suppression.name, used.amount.bytes)),
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
    Some(format!(
        "runtime: {} ({})",
        in_blocks(sums.sum().amount),
        names.join(", ")
    ))
}

fn sum(used: Used) -> String {
    let places = counted(used.stacks, "place", "places");
    format!("{} at {places}", in_blocks(used.amount))
}

/// `leak:make_node (ci.supp:3)`
fn named(suppression: &Suppression) -> String {
    let Suppression { name, line, .. } = suppression;
    let file = escape::escaped(suppression.file.as_bytes());
    format!("{name} ({file}:{line})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::Amount;

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
            suppressed_lines(&list, &sums),
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
            suppressed_lines(&one, &SuppressedSums::new(&one)),
            ["suppressed: nothing, none of 1 suppression matched"]
        );
        let none = Suppressions::default();
        assert!(suppressed_lines(&none, &SuppressedSums::new(&none)).is_empty());
    }

    #[test]
    fn many_suppressions_are_counted_and_not_all_named() {
        let text: String = (0..40).map(|n| format!("leak:f{n}\n")).collect();
        let list = list(&text);
        let mut sums = SuppressedSums::new(&list);
        for n in 0..20 {
            sums.add(&[(n, amount(1_000 - n as u64, 1))]);
        }
        let lines = suppressed_lines(&list, &sums);
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
        assert_eq!(runtime_line(&known, &sums), None);
        sums.add(&[(number("stdio", 0), amount(4_096, 1))]);
        sums.add(&[(number("locale", 0), amount(3_000, 5))]);
        sums.add(&[(number("locale", 1), amount(2_000, 5))]);
        sums.add(&[(number("libstdc++ pool", 0), amount(72_704, 1))]);
        assert_eq!(
            runtime_line(&known, &sums).unwrap(),
            "runtime: 81,800 bytes in 12 blocks (libstdc++ pool, locale, stdio)"
        );
    }
}
