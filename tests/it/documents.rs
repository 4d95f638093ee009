//! The manual page and the shells' completions are generated from the parser's definitions. `make docs` writes them.
//! These tests fail if the files no longer match the definitions.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, roman};
use tempfile::TempDir;

use memleak::cli::Cli;
use memleak::cli::manual::{DOCTOR, EXIT_CODES, REPORTING, SIGNALS, SIZES, SLURM, WATCHING};
use memleak::report::Format;

/// Fails unless a file of this tree has the wanted content. With WRITE_DOCS, as in `make docs`, writes the file first.
#[track_caller]
pub fn assert_matches(path: &str, wanted: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().expect("in a directory")).unwrap();
        fs::write(&path, wanted).unwrap();
    }
    assert!(
        fs::read(&path).unwrap_or_default() == wanted,
        "{} does not match what it is made from: run `make docs`",
        path.display()
    );
}

/// The command line as clap defines it, and the modes `run`, `doctor` and `report` as users write them.
fn command_line() -> (clap::Command, [clap::Command; 3]) {
    let mut memleak = Cli::command();
    memleak.build();
    let modes = ["run", "doctor", "report"].map(|mode| {
        let mode = memleak.find_subcommand(mode).expect("there is this mode");
        mode.clone().disable_version_flag(true)
    });
    (memleak, modes)
}

// ---- the manual page -----------------------------------------------------------------------------------

fn section(page: &mut Vec<u8>, name: &str, fill: impl FnOnce(&mut Roff)) {
    let mut roff = Roff::new();
    roff.control("SH", [name]);
    fill(&mut roff);
    roff.to_writer(page).unwrap();
}

fn paragraphs(roff: &mut Roff, texts: &[&str]) {
    for text in texts {
        roff.control("PP", []).text([roman(*text)]);
    }
}

fn tagged(roff: &mut Roff, tag: &str, text: &str) {
    roff.control("TP", []).text([bold(tag)]).text([roman(text)]);
}

fn manual_page() -> Vec<u8> {
    let (memleak, [run, doctor, report]) = command_line();
    let about = memleak.get_about().expect("it says what it is").to_string();
    let version = memleak.get_version().expect("it has a version").to_owned();
    // The options of -p and -a are the options without a subcommand.
    let watching = memleak.clone().disable_version_flag(true);
    let watching = clap_mangen::Man::new(watching);
    let mut page = format!(".TH memleak 1 \"\" \"memleak {version}\"\n").into_bytes();
    section(&mut page, "NAME", |roff| {
        let (_, what) = about.split_once(": ").expect("what it is: what it does");
        roff.text([roman(format!("memleak - {what}"))]);
    });
    section(&mut page, "SYNOPSIS", |roff| {
        for arguments in [
            " run [OPTIONS] [--] COMMAND [ARGS]...",
            " -p PID [INTERVAL] [OPTIONS]",
            " -a [INTERVAL] [OPTIONS]",
            " doctor [OPTIONS]",
            " report [OPTIONS] FILE...",
            " --help | --version",
        ] {
            roff.text([bold("memleak"), roman(arguments)]);
            roff.control("br", []);
        }
    });
    section(&mut page, "DESCRIPTION", |roff| {
        paragraphs(
            roff,
            &[
                "memleak run starts COMMAND, and counts in the kernel (eBPF) what every process of its tree \
                 allocates and never frees. It prints a row for each process when the process ends. It ends as \
                 the command does. Nothing is recompiled, preloaded or traced with ptrace. The report goes to \
                 standard error or to a file, never to the command's standard output.",
                "memleak -p attaches to running processes, memleak -a to every process of the machine. Both report, \
                 window by window, the processes that have ended.",
                "memleak report adds up and judges what sessions have saved as JSON.",
                "memleak needs root, or the capabilities CAP_BPF and CAP_PERFMON on its file. Before Linux 6.6 it also \
                 needs CAP_SYS_ADMIN.",
                SIZES,
            ],
        );
    });
    let [run, doctor, report] = [run, doctor, report].map(clap_mangen::Man::new);
    for (part, of) in [
        (run, "run"),
        (watching, "-p AND -a"),
        (doctor, "doctor"),
        (report, "report"),
    ] {
        let mut options = Vec::new();
        part.render_options_section(&mut options).unwrap();
        let options = String::from_utf8(options).unwrap();
        assert!(options.contains(".SH OPTIONS\n"), "{options}");
        // The same headings come in several modes.
        for line in options.lines() {
            let line = match line.strip_prefix(".SH ") {
                Some(heading) => format!(".SH \"{heading} OF {of}\"\n"),
                None => format!("{line}\n"),
            };
            page.extend(line.into_bytes());
        }
    }
    section(&mut page, "WATCHING", |roff| paragraphs(roff, &WATCHING));
    section(&mut page, "DOCTOR", |roff| paragraphs(roff, &DOCTOR));
    section(&mut page, "REPORTING", |roff| paragraphs(roff, &REPORTING));
    section(&mut page, "EXIT STATUS", |roff| {
        for (code, meaning) in EXIT_CODES {
            tagged(roff, code, meaning);
        }
        paragraphs(roff, &[SLURM]);
    });
    section(&mut page, "SIGNALS", |roff| paragraphs(roff, &SIGNALS));
    section(&mut page, "ENVIRONMENT", |roff| {
        tagged(
            roff,
            "NO_COLOR",
            "If set and not empty, memleak uses no colour, unless --color=always is given.",
        );
        tagged(
            roff,
            "SUDO_UID, SUDO_GID",
            "For root: the user who called sudo. memleak opens report files with the rights of this user, and --user \
             sudo runs the command as this user.",
        );
        tagged(
            roff,
            "SLURM_SCRIPT_CONTEXT",
            "Set by Slurm. Says whether memleak runs in a prolog or epilog; see EXIT STATUS.",
        );
    });
    section(&mut page, "EXAMPLES", |roff| {
        for (line, what) in [
            (
                "sudo memleak run -- ./my_app args",
                "Show what the program leaks.",
            ),
            (
                "sudo memleak doctor",
                "Test whether memleak run works here, and show what to do if it does not.",
            ),
            (
                "sudo memleak run --user sudo -- ./my_app args",
                "Run the command as the user who called sudo.",
            ),
            (
                "sudo env LD_LIBRARY_PATH=$PWD/lib memleak run -- ./my_app",
                "Pass a variable that sudo would remove.",
            ),
            (
                "sudo memleak run --fail-on-lost 0 --gate-exe './**' -- make check",
                "Use memleak as a gate in CI.",
            ),
            (
                "sudo memleak run -o html=leaks.html -- ./my_app",
                "Write a page to look at, with the call stacks of what leaked.",
            ),
            (
                "memleak report --by node --fail-on-total-lost 1GB node*.json",
                "Add up by machine what several memleaks have saved, and judge it.",
            ),
            (
                "sudo memleak -p 1234 10",
                "Watch a running process, its children and all that they start. Report every ten seconds which processes have ended.",
            ),
            (
                "sudo memleak -a 5 --live --user-name alice",
                "Watch all processes of a user, and report every five seconds what each of them holds.",
            ),
        ] {
            tagged(roff, line, what);
        }
    });
    section(&mut page, "SEE ALSO", |roff| {
        roff.text([roman(
            "valgrind(1), sudo(8), setcap(8), capabilities(7), bpf(2)",
        )]);
    });
    // Each part has its own definition of the apostrophe. The page needs only one.
    let page = String::from_utf8(page).unwrap();
    let definition = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    (definition.to_owned() + &page.replace(definition, "")).into_bytes()
}

#[test]
fn the_manual_page_matches_the_parser() {
    assert_matches("man/memleak.1", &manual_page());
}

#[test]
fn the_manual_page_contains_every_option_exit_code_and_signal_rule() {
    let page = String::from_utf8(manual_page()).unwrap();
    // The text as a reader sees it: without escapes of hyphens and without changes of font.
    let read = page
        .replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fR", "");
    let read = read
        .replace("\\fI", "")
        .replace("\\*(Aq", "'")
        .replace("\\(aq", "'");
    let (memleak, modes) = command_line();
    let modes = modes.iter().flat_map(|mode| mode.get_arguments());
    let options = memleak.get_arguments().chain(modes);
    for option in options.filter(|option| !option.is_hide_set()) {
        if let Some(long) = option.get_long() {
            assert!(read.contains(&format!("--{long}")), "--{long}");
        }
    }
    for hidden in ["--test", "without-probe", "late-threads"] {
        assert!(!read.contains(hidden), "{hidden}");
    }
    for (code, _) in EXIT_CODES {
        assert!(read.contains(&format!(".TP\n{code}\n")), "{code}");
    }
    for heading in [
        "\"EXIT STATUS\"",
        "SIGNALS",
        "\"OPTIONS OF run\"",
        "EXAMPLES",
    ] {
        assert!(read.contains(&format!(".SH {heading}\n")), "{heading}");
    }
    let headings = read.lines().filter(|line| line.starts_with(".SH "));
    let headings: Vec<_> = headings.collect();
    let different: std::collections::BTreeSet<_> = headings.iter().collect();
    assert_eq!(different.len(), headings.len(), "{headings:?}");
    assert!(read.contains("Ctrl-Z stops both"));
}

// ---- completions ---------------------------------------------------------------------------------------

/// The command line without its hidden options. clap_complete would offer those, too.
fn shown(command: &clap::Command) -> clap::Command {
    let mut shown = clap::Command::new(&*command.get_name().to_owned().leak())
        .propagate_version(command.is_propagate_version_set())
        .disable_help_subcommand(command.is_disable_help_subcommand_set())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()))
        .subcommands(command.get_subcommands().map(shown));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(&*version.to_owned().leak());
    }
    shown
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(&Cli::command()), "memleak", &mut script);
    script
}

#[test]
fn the_completions_match_the_parser() {
    assert_matches("completions/memleak.bash", &completion(Shell::Bash));
    assert_matches("completions/_memleak", &completion(Shell::Zsh));
    assert_matches("completions/memleak.fish", &completion(Shell::Fish));
}

/// The completions that bash offers for the last of `words`.
fn offered_by_bash(words: &[&str]) -> Vec<String> {
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _memleak memleak "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("completions/memleak.bash");
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"].map(OsStr::new))
        .arg(file)
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let offered = String::from_utf8(output.stdout).unwrap();
    offered.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_options_and_their_values() {
    assert_eq!(offered_by_bash(&["memleak", "ru"]), ["run"]);
    assert_eq!(offered_by_bash(&["memleak", "-a", "--liv"]), ["--live"]);
    assert_eq!(
        offered_by_bash(&["memleak", "run", "--fail"]),
        [
            "--fail-on-leak",
            "--fail-on-total-leak",
            "--fail-on-lost",
            "--fail-on-total-lost"
        ]
    );
    let formats = Format::value_variants().iter();
    let formats: Vec<_> = formats.filter_map(Format::to_possible_value).collect();
    let formats: Vec<_> = formats.iter().map(|format| format.get_name()).collect();
    assert_eq!(
        offered_by_bash(&["memleak", "run", "--format", ""]),
        formats
    );
    assert_eq!(
        offered_by_bash(&["memleak", "doctor", "--format", ""]),
        ["table", "json"]
    );
}

// ---- claims of the design documents -------------------------------------------------------------------

/// All Rust files below a directory.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension() == Some(OsStr::new("rs")) {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

#[test]
fn every_test_listed_for_a_threat_or_a_fault_exists() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources(&tree.join("src")) + &sources(&tree.join("tests"));
    for page in ["docs/design/security.md", "docs/design/faults.md"] {
        let page = fs::read_to_string(tree.join(page)).unwrap();
        // The page has one table. The last column of each row names tests.
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let mut threats = 0;
        // The first row is the heading.
        for row in rows.skip(1) {
            let tests = row.trim_end_matches([' ', '|']).rsplit("| ").next();
            let tests = tests.unwrap_or_default().split_whitespace();
            let mut named = 0;
            for test in tests {
                let name = test.trim_matches('`');
                // The test is a function in the source, or a macro makes it.
                let exists = [format!("fn {name}("), format!("\n    {name}:\n")]
                    .iter()
                    .any(|text| sources.contains(text));
                assert!(exists, "{name}: {row}");
                named += 1;
            }
            assert!(named > 0, "no test: {row}");
            threats += 1;
        }
        assert!(threats > 10, "{threats}");
    }
}

/// The table of memleak's own suppressions: the comments and frames of the list.
fn known_suppressions() -> String {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/src/stacks/known.supp");
    let list = fs::read_to_string(list).expect("the list can be read");
    // The first lines are about the whole list.
    let (_, list) = list.split_once("\n\n").expect("a head");
    let mut rows = String::new();
    let mut reason: Vec<&str> = Vec::new();
    for block in list.split_inclusive("}\n") {
        let lines: Vec<_> = block.lines().map(str::trim).collect();
        let comments = lines.iter().filter_map(|line| line.strip_prefix("# "));
        let comments: Vec<_> = comments.collect();
        if !comments.is_empty() {
            reason = comments;
        }
        let from = lines.iter().position(|line| *line == "{").expect("a brace");
        let (name, frames) = (lines[from + 1], &lines[from + 4..lines.len() - 1]);
        let frames: Vec<_> = frames.iter().map(|line| format!("`{line}`")).collect();
        rows.push_str(&format!(
            "| {name} | {} | {} |\n",
            reason.join(" "),
            frames.join(" ")
        ));
        reason = vec!["the same"];
    }
    rows
}

#[test]
fn the_page_about_suppressions_has_memleaks_own_list() {
    let path = "docs/suppressions.md";
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let page = fs::read_to_string(page).expect("the page can be read");
    let rule = "frames, innermost first |\n|---|---|---|\n";
    let (before, _) = page.split_once(rule).expect("the page has the table");
    let rows = known_suppressions();
    assert!(rows.lines().count() > 25, "{rows}");
    assert_matches(path, format!("{before}{rule}{rows}").as_bytes());
}

// ---- installation ----------------------------------------------------------------------------------------------

/// All files below a directory, by their paths in it, with their permissions.
fn files_below(directory: &Path) -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).expect("the directory can be read") {
            let path = entry.expect("the directory can be read").path();
            let metadata = path.symlink_metadata().expect("the file exists");
            if metadata.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("it is below");
                found.insert(name.to_owned(), metadata.mode() & 0o7777);
            }
        }
    }
    found
}

/// Runs `make` in the source tree.
fn make(words: &[&str]) -> Output {
    let mut make = Command::new("make");
    make.arg("--no-print-directory").args(words);
    // Variables of an outer make would come before these.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    make.current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("make can be run")
}

#[test]
fn make_install_installs_what_packages_have_and_uninstall_removes_it() {
    let place = TempDir::new().expect("a temporary directory");
    let root = place.path().join("a b");
    let destination = format!("DESTDIR={}", root.display());
    let binary = concat!("BINARY=", env!("CARGO_BIN_EXE_memleak"));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A file that is there before stays.
    let other = root.join("opt/x/share/doc/other");
    fs::create_dir_all(other.parent().expect("in a directory")).unwrap();
    fs::write(&other, "").unwrap();

    let installed = make(&["install", "PREFIX=/opt/x", &destination, binary]);
    assert!(installed.status.success(), "{installed:?}");
    let files = files_below(&root.join("opt/x"));
    let mut expected = BTreeMap::from([
        ("bin/memleak".into(), 0o755),
        ("share/man/man1/memleak.1.gz".into(), 0o644),
        ("share/bash-completion/completions/memleak".into(), 0o644),
        ("share/zsh/site-functions/_memleak".into(), 0o644),
        ("share/fish/vendor_completions.d/memleak.fish".into(), 0o644),
        ("share/doc/memleak/LICENSE".into(), 0o644),
        ("share/doc/memleak/README.md".into(), 0o644),
        ("share/doc/memleak/CHANGELOG.md".into(), 0o644),
        ("share/doc/other".into(), 0o644),
    ]);
    for directory in ["docs", "examples/slurm"] {
        for entry in fs::read_dir(tree.join(directory)).expect("the directory exists") {
            let path = entry.expect("the directory can be read").path();
            if path.is_file() {
                let name = path.strip_prefix(tree).expect("it is in the tree");
                expected.insert(Path::new("share/doc/memleak").join(name), 0o644);
            }
        }
    }
    assert_eq!(files, expected);
    let page = root.join("opt/x/share/man/man1/memleak.1.gz");
    let shown = Command::new("man")
        .args(["--warnings", "-l"])
        .arg(&page)
        .envs([("MANPAGER", "cat"), ("LC_ALL", "C")])
        .output()
        .expect("man can be run");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("counts what processes allocate"), "{shown:?}");
    assert_eq!(String::from_utf8_lossy(&shown.stderr), "");
    let version = Command::new(root.join("opt/x/bin/memleak"))
        .arg("--version")
        .output();
    let version = version.expect("the program can be run");
    assert_eq!(
        version.stdout,
        concat!("memleak ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
    );

    let removed = make(&["uninstall", "PREFIX=/opt/x", &destination]);
    assert!(removed.status.success(), "{removed:?}");
    let left = files_below(&root);
    assert_eq!(
        left.into_keys().collect::<Vec<_>>(),
        [Path::new("opt/x/share/doc/other")]
    );
    assert!(!root.join("opt/x/share/doc/memleak").exists());

    for (words, says) in [
        (["PREFIX=/opt/x", "BINARY=no/such"], "run `make` first"),
        (["PREFIX=x", binary], "PREFIX is a path"),
    ] {
        let refused = make(&["install", &destination, words[0], words[1]]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(says), "{said}");
    }
    assert_eq!(files_below(&root).len(), 1, "nothing was installed");
}

#[test]
fn both_kinds_of_packages_have_the_same_files_at_the_same_places() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the manifest can be read");
    let manifest: toml::Table = manifest.parse().expect("the manifest is TOML");
    let metadata = &manifest["package"]["metadata"];
    let text = |value: &toml::Value| value.as_str().expect("a string").to_owned();
    let assets = |package: &str| {
        let assets = metadata[package]["assets"].as_array();
        assets.expect("a list").clone().into_iter()
    };
    let deb = assets("deb").map(|asset| [0, 1, 2].map(|column| text(&asset[column])));
    let rpm = assets("generate-rpm").map(|asset| {
        let [source, target, mode] = ["source", "dest", "mode"].map(|key| text(&asset[key]));
        // Debian has a directory of its own for packages.
        let target = target.replace("site-functions", "vendor-completions");
        [source, target.trim_start_matches('/').to_owned(), mode]
    });
    assert_eq!(deb.collect::<Vec<_>>(), rpm.collect::<Vec<_>>());
}
