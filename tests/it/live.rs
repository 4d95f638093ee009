//! `--live` on terminals of several sizes, and after a resize. The terminal is real, and what it shows is found by a
//! terminal emulator.

use std::time::{Duration, Instant};

use crate::common::pty::{PROMPT, Terminal};
use crate::common::watch::Waiting;

const MEMLEAK: &str = env!("CARGO_BIN_EXE_memleak");

/// A terminal in which memleak shows a process, and what is on its screen.
struct Shown {
    terminal: Terminal,
    screen: vt100::Parser,
    target: Waiting,
}

impl Shown {
    fn new(columns: u16, lines: u16, options: &str) -> Self {
        let target = Waiting::fixture("joined_midway", &["1", "1"]);
        let mut terminal = Terminal::open();
        terminal.resize(columns, lines);
        let pid = target.pid();
        terminal.line(&format!(
            "TERM=xterm {MEMLEAK} -p {pid} 0.3 --live {options}"
        ));
        Self {
            terminal,
            screen: vt100::Parser::new(lines, columns, 0),
            target,
        }
    }

    /// The lines of the screen, as soon as they are what is expected.
    #[track_caller]
    fn until(&mut self, expected: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let bytes = self.terminal.shown_within(Duration::from_millis(50));
            self.screen.process(bytes.as_bytes());
            let (_, columns) = self.screen.screen().size();
            let lines: Vec<String> = self.screen.screen().rows(0, columns).collect();
            if expected(&lines) {
                return lines;
            }
            assert!(Instant::now() < deadline, "{lines:#?}");
        }
    }

    /// The row of headings and the row of the process, as soon as these are there.
    #[track_caller]
    fn table(&mut self) -> (String, String) {
        let pid = self.target.pid().to_string();
        // What memleak says at its start also has both, but not as words of their own.
        let is_row = |line: &String| {
            let mut words = line.split_whitespace();
            words.any(|word| word == pid) && words.any(|word| word == "joined_midway")
        };
        let is_heading = |line: &String| line.contains("LIVE_MB");
        let lines = self.until(|lines| lines.iter().any(is_row));
        let found = |is: &dyn Fn(&String) -> bool| lines.iter().filter(|line| is(line)).count();
        assert_eq!((found(&is_heading), found(&is_row)), (1, 1), "{lines:#?}");
        let at = lines.iter().position(is_row).unwrap();
        (lines[at - 1].clone(), lines[at].clone())
    }
}

fn names(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn every_cell_is_whole_and_columns_go_in_their_order() {
    let wide = [
        "UID",
        "USER",
        "PID",
        "COMM",
        "TOTAL_ALLOCS_MB",
        "LIVE_MB",
        "+0.3s_MB",
        "MB/h",
        "AGE",
        "NOTE",
    ];
    for (columns, expected) in [
        (40, &["PID", "COMM", "LIVE_MB"][..]),
        (
            80,
            &["USER", "PID", "COMM", "LIVE_MB", "+0.3s_MB", "MB/h", "AGE"],
        ),
        (132, &wide),
    ] {
        let mut shown = Shown::new(columns, 14, "");
        let (heading, row) = shown.table();
        assert_eq!(names(&heading), expected, "{columns}");
        // One word a column, and two for the note "since attach".
        let cells = expected.len() + usize::from(columns == 132);
        let row = names(&row);
        assert_eq!(row.len(), cells, "{columns}: {row:?}");
        let figure = |name: &str| {
            let at = expected.iter().position(|column| *column == name);
            at.map(|at| row[at].parse::<f64>().expect("a figure"))
        };
        figure("LIVE_MB").expect("a column that is always there");
        figure("+0.3s_MB");
    }
}

#[test]
fn after_a_resize_the_table_fits_and_nothing_is_left_of_the_old_one() {
    let mut shown = Shown::new(132, 24, "");
    shown.table();
    for (columns, lines, width) in [(50, 24, 4), (132, 10, 10), (80, 24, 7)] {
        shown.terminal.resize(columns, lines);
        // The emulator starts with what a terminal may have made of the old lines.
        shown.screen.screen_mut().set_size(lines, columns);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (heading, _) = shown.table();
            if names(&heading).len() == width {
                break;
            }
            assert!(Instant::now() < deadline, "{heading}");
        }
    }
}

#[test]
fn the_heading_says_what_is_shown_and_how_to_end_it() {
    let mut shown = Shown::new(100, 24, "");
    let pid = shown.target.pid();
    let says = format!("memleak -p {pid} 0.3  1 process  ");
    let lines = shown.until(|lines| lines.iter().any(|line| line.contains(&says)));
    let heading = lines.iter().find(|line| line.contains(&says)).unwrap();
    assert!(
        heading.contains(" MB live  +") && heading.ends_with("  Ctrl-C ends"),
        "{heading}"
    );
    let time = heading.split("  ").next().unwrap();
    assert!(
        time.len() == 8 && time.bytes().filter(|byte| *byte == b':').count() == 2,
        "{heading}"
    );
    shown.terminal.press("\u{3}");
    shown.terminal.expect(PROMPT);
    assert_eq!(shown.terminal.output_of("echo $?"), "0\n");
}
