//! Turns the measurements into Markdown. This module takes values and returns text.

use crate::crowd::{self, Crowd};
use crate::inside::{self, Inside};
use crate::latency::Latency;
use crate::lost::{Lost, Spread};
use crate::machine;
use crate::neighbours::Neighbours;
use crate::outside::Outside;
use crate::stacks::{self, How as Walk, Stacks};
use crate::tool::{Tool, Toolbox};
use crate::workload::{Cell, Measured, taken};

/// Where a page has what one of the parts prints.
pub struct Block {
    begin: &'static str,
    end: &'static str,
}

pub const ALL: Block = Block {
    begin: "<!-- bench:begin -->",
    end: "<!-- bench:end -->",
};

pub const LOST: Block = Block {
    begin: "<!-- lost:begin -->",
    end: "<!-- lost:end -->",
};

pub const STACKS: Block = Block {
    begin: "<!-- stacks:begin -->",
    end: "<!-- stacks:end -->",
};

pub const INSIDE: Block = Block {
    begin: "<!-- inside:begin -->",
    end: "<!-- inside:end -->",
};

pub fn markdown(
    toolbox: &Toolbox,
    rounds: usize,
    results: &[Measured],
    neighbours: &Neighbours,
    outside: &Outside,
    latency: &Latency,
    crowd: &Crowd,
) -> String {
    let mut text = format!(
        "{}\nIn brackets: how many times bare. Floor: empty programs on the same probes.\n\n",
        machine::caption(rounds)
    );
    text += &workloads(results);
    text += &notes(toolbox, results);
    text += "\n| memleaks at once | watched, a malloc+free pair | bystander | watched, `--probes=private` \
             | bystander, `--probes=private` |\n|---|--:|--:|--:|--:|\n";
    text += &format!("| none | {0} | {0} | {0} | {0} |\n", time(neighbours.alone));
    for crowd in &neighbours.crowds {
        let [watched, beside] = [crowd.watched, crowd.bystander]
            .map(|both| both.map(|taken| against(taken, Some(neighbours.alone))));
        text += &format!("| {} ", crowd.memleaks);
        text += &format!(
            "| {} | {} | {} | {} |\n",
            watched[0], beside[0], watched[1], beside[1]
        );
    }
    text += "\n| beside a memleak | a malloc+free pair |\n|---|--:|\n";
    text += &format!("| no memleak | {} |\n", time(outside.alone));
    for (name, taken) in &outside.watched {
        text += &format!("| {name} | {} |\n", against(*taken, Some(outside.alone)));
    }
    text += "\n| | ms |\n|---|--:|\n";
    text += &format!("| `true` | {:.1} |\n", latency.bare);
    if let Some(floor) = latency.floor {
        text += &format!("| empty probes around `true`: more | {floor:.1} |\n");
    }
    text += &format!(
        "| `memleak run -- true`: more, detaching included | {:.1} |\n",
        latency.memleak
    );
    text += &format!(
        "| from the end of a process that leaks 1,000,000 blocks to its row | {:.1} |\n",
        latency.row
    );
    text += &format!(
        "\n| {} processes through one memleak | |\n|---|--:|\n",
        grouped(crowd::PROCESSES)
    );
    text += &format!("| a process, fork to row | {:.0} µs |\n", crowd.each);
    text += &format!(
        "| resident memory after {} rows | {:.1} MB |\n",
        grouped(crowd::EARLY),
        crowd.early_kb as f64 / 1e3
    );
    text += &format!(
        "| most resident memory later | {:.1} MB |\n",
        crowd.most_kb as f64 / 1e3
    );
    text
}

/// What the search for lost blocks costs.
pub fn lost(rounds: usize, lost: &Lost) -> String {
    let mut text = format!(
        "{} In brackets: lowest and highest.\n\n| the process has | it is held | until its verdict |\n|---|--:|--:|\n",
        machine::caption(rounds)
    );
    let cell = |spread: &Spread, unit: &str| {
        let digits = if spread.median < 10.0 { 2 } else { 0 };
        format!(
            "{:.digits$}{unit} ({:.digits$}–{:.digits$})",
            spread.median, spread.lowest, spread.highest
        )
    };
    for (title, [held, verdict]) in &lost.held {
        let (held, verdict) = (cell(held, " ms"), cell(verdict, " ms"));
        text += &format!("| {title} | {held} | {verdict} |\n");
    }
    text += "\n| command | `--lost=never` | with a search | how many times |\n|---|--:|--:|--:|\n";
    for (title, option, [never, other, ratio]) in &lost.commands {
        let (never, other) = (cell(never, " ms"), cell(other, " ms"));
        let ratio = cell(ratio, " ×");
        text += &format!("| {title} | {never} | `{option}` {other} | {ratio} |\n");
    }
    text
}

/// The cells of a row, one for each way to run the program. The first way is without any tool.
fn cells<How: Copy + PartialEq>(all: &[How], times: &[(How, f64)]) -> String {
    let bare = all.first().and_then(|first| taken(times, *first));
    let cells = all.iter().enumerate().map(|(at, how)| {
        let cell = match taken(times, *how) {
            Some(taken) if at == 0 => time(taken),
            Some(taken) => against(taken, bare),
            None => "–".to_owned(),
        };
        format!(" {cell} |")
    });
    cells.collect()
}

/// What call stacks cost.
pub fn stacks(rounds: usize, stacks: &Stacks) -> String {
    let heads = stacks::ALL.iter().map(|how| how.name());
    let mut text = format!(
        "{} In brackets: how many times bare.\n\n| | {} | call stacks / counting |\n|---|{}\n",
        machine::caption(rounds),
        heads.collect::<Vec<_>>().join(" | "),
        "--:|".repeat(stacks::ALL.len() + 1)
    );
    for (title, times) in &stacks.times {
        text += &format!("| {title} |{}", cells(&stacks::ALL, times));
        let ratio = taken(times, Walk::Stacks).zip(taken(times, Walk::Counting));
        let ratio = ratio.map_or(f64::NAN, |(stacks, counting)| stacks / counting);
        text += &format!(" {ratio:.2} |\n");
    }
    let [counting, with] = stacks.starts;
    text += &format!(
        "\nA frame costs {:.0} ns. `memleak run -- true` takes {counting:.0} ms if it only counts, and {with:.0} ms with \
         call stacks, both without a search for lost memory. `python3 -c pass` takes {:.0} ms longer with call stacks.\n",
        stacks.frame, stacks.python
    );
    text
}

/// What counting inside costs.
pub fn inside(rounds: usize, inside: &Inside) -> String {
    let heads: Vec<_> = inside::ALL.iter().map(|how| how.name()).collect();
    let mut text = format!(
        "{} In brackets: how many times bare.\n\n| | {} |\n|---|{}\n",
        machine::caption(rounds),
        heads.join(" | "),
        "--:|".repeat(heads.len())
    );
    for (title, times) in &inside.times {
        text += &format!("| {title} |{}", cells(&inside::ALL, times));
        text.push('\n');
    }
    for (index, what) in ["resident memory", "address space"].into_iter().enumerate() {
        text += &format!("| {what} with 100,000 live blocks of up to 1,000 bytes |");
        for how in inside::ALL {
            let found = inside.memory.iter().find(|(of, _)| *of == how);
            let cell = found.map_or("–".to_owned(), |(_, kilobytes)| {
                format!("{:.1} MB", kilobytes[index] as f64 / 1e3)
            });
            text += &format!(" {cell} |");
        }
        text.push('\n');
    }
    let [shared, counted] = inside.starts;
    text += &format!(
        "\n`memleak run -- true` takes {shared:.0} ms with shared probes, and {counted:.0} ms inside, both without call \
         stacks and without a search for lost memory.\n"
    );
    text
}

fn workloads(results: &[Measured]) -> String {
    let mut text = String::from("| |");
    let mut rule = String::from("|---|");
    for tool in Tool::ALL {
        text += &format!(" {} |", tool.name());
        rule += "--:|";
        if tool == Tool::Memleak {
            text += " memleak / floor |";
            rule += "--:|";
        }
    }
    text = format!("{text}\n{rule}\n");
    for measured in results {
        text += &format!("| {} |", measured.title);
        let bare = measured.median(Tool::Bare);
        for tool in Tool::ALL {
            let cell = match measured.cell(tool) {
                Cell::Took { median, .. } if tool == Tool::Bare => time(*median),
                Cell::Took { median, .. } => against(*median, bare),
                Cell::Absent | Cell::Unable | Cell::NotTried => "–".to_owned(),
                Cell::Failed(_) => "failed".to_owned(),
            };
            text += &format!(" {cell} |");
            if tool == Tool::Memleak {
                let ratio = measured
                    .median(Tool::Memleak)
                    .zip(measured.median(Tool::Floor))
                    .map_or("–".to_owned(), |(memleak, floor)| {
                        format!("{:.2}", memleak / floor)
                    });
                text += &format!(" {ratio} |");
            }
        }
        text.push('\n');
    }
    text
}

/// Says why cells are empty, and which tool did less than the title says: lines for each tool that needs them.
fn notes(toolbox: &Toolbox, results: &[Measured]) -> String {
    let mut text = String::from("\n");
    for tool in Tool::ALL {
        let clauses = match toolbox.has(tool) {
            true => clauses(tool, results),
            false => vec![toolbox.state(tool).to_owned()],
        };
        for clause in clauses {
            text += &format!("- {}: {clause}.\n", tool.name());
        }
    }
    match text.trim() {
        "" => String::new(),
        _ => text,
    }
}

/// What is to be said of a tool that is there.
fn clauses(tool: Tool, results: &[Measured]) -> Vec<String> {
    let mut fewer = Vec::new();
    let mut not_tried = Vec::new();
    let mut failed = Vec::new();
    let mut is_unable = false;
    for measured in results {
        match measured.cell(tool) {
            Cell::Unable => is_unable = true,
            Cell::NotTried => not_tried.push(what(measured.title)),
            Cell::Failed(reason) => {
                failed.push(format!("{} failed ({reason})", what(measured.title)))
            }
            Cell::Took { operations, .. } => {
                // The title states the bare command's number. In a loop, fewer calls give the same mean. Fewer blocks
                // held at once, processes or records do not.
                if let Some((at, named)) = number_in(measured.title)
                    && *operations < named
                {
                    fewer.push(format!(
                        "{} of {}",
                        grouped(*operations),
                        what(&measured.title[at..])
                    ));
                }
            }
            Cell::Absent => {}
        }
    }
    let mut clauses = Vec::new();
    // Two in a sentence: more are hard to read.
    for fewer in fewer.chunks(2) {
        clauses.push(format!("ran only {}", fewer.join(", and ")));
    }
    if !not_tried.is_empty() {
        clauses.push(format!("{} would take too long", not_tried.join(", ")));
    }
    if is_unable {
        clauses.push(
            "does not follow children, so none of the cases with several processes".to_owned(),
        );
    }
    clauses.extend(failed);
    clauses
}

/// The beginning of a title, which tells it from the others.
fn what(title: &str) -> &str {
    title.split_once(", ").map_or(title, |(what, _)| what)
}

/// The first number in a title, and where it begins. `1,000,000` is one number.
fn number_in(title: &str) -> Option<(usize, u64)> {
    let mut at = 0;
    title.split(' ').find_map(|word| {
        let begin = at;
        at += word.len() + 1;
        Some((begin, word.replace(',', "").parse().ok()?))
    })
}

/// A time in the unit that gives it two to four digits.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{} ns", grouped(ns.round() as u64)),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

/// A time, and in brackets its ratio to the reference.
fn against(nanoseconds: f64, reference: Option<f64>) -> String {
    let ratio = match reference.map(|reference| nanoseconds / reference) {
        None => return time(nanoseconds),
        Some(ratio) if ratio < 10.0 => format!("{ratio:.2}"),
        Some(ratio) => grouped(ratio.round() as u64),
    };
    format!("{} ({ratio} ×)", time(nanoseconds))
}

/// The number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `page` with the text of a block replaced. `None` if it has no such block.
pub fn replace_block(page: &str, block: &Block, text: &str) -> Option<String> {
    let Block { begin, end } = block;
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}
