use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::github::github;
use super::gitlab::gitlab;
use super::junit::junit;
use super::markdown::markdown;
use super::sarif::sarif;
use crate::model::exit::Outcome;
use crate::model::finished::{About, Finished, Site};
use crate::model::gate::Gate;
use crate::model::image::{End, Image, Losses, samples};
use crate::model::ledger::Ledger;
use crate::model::limits::{Allowed, Limits};
use crate::model::reach::{Amount, Reach, ReachUnknown, Reached};
use crate::model::selection::Selection;
use crate::model::stack::{NamedFrame, NamedStack, WalkEnd};
use crate::text::globs::CommNames;
use crate::text::paths::ExePaths;

/// A name in which each of the formats has something to escape.
const HOSTILE: &str = "a\n::error::x,y%0A|``<b>]]>&amp;\"'\u{202e}[x](y)\x1b[2J##[error]";

const DIRECTORY: &str = "/home/alice/shop";

fn amount(bytes: u64, blocks: u64) -> Amount {
    Amount { bytes, blocks }
}

fn image(exe: &str, leaked: Amount, reach: Reach) -> Image {
    let mut image = samples::image();
    image.exe = Some(exe.into());
    let comm = Path::new(exe).file_name().unwrap().as_bytes();
    image.comm = comm[..comm.len().min(15)].to_vec();
    image.counters.leaked_bytes = leaked.bytes;
    image.counters.leaked_blocks = leaked.blocks;
    image.reach = reach;
    image
}

fn known(definite: Amount, reachable: Amount) -> Reach {
    Reach::Known(reached(definite, reachable))
}

fn reached(definite: Amount, reachable: Amount) -> Reached {
    Reached {
        definite,
        reachable,
        ..Reached::default()
    }
}

fn frame(function: &str, file: &str, line: u32) -> NamedFrame {
    NamedFrame {
        function: Some(function.to_owned()),
        linkage: None,
        module: Some("/home/alice/shop/build/shop".into()),
        build_id: None,
        offset: 0x1234,
        file: (!file.is_empty()).then(|| file.into()),
        line: (line > 0).then_some(line),
        inlined: false,
    }
}

fn site(image: &Image, identity: u64, reached: Reached, frames: &[NamedFrame]) -> Site {
    let leaked = reached.lost() + reached.possible + reached.reachable;
    Site {
        exe: image.exe.clone(),
        comm: image.comm.clone(),
        labels: image.labels.clone(),
        stack: NamedStack {
            identity,
            frames: frames.iter().cloned().map(Arc::new).collect(),
            end: WalkEnd::Complete,
            guessed: 0,
        },
        allocated: leaked,
        leaked,
        reached: Some(reached),
        images: 1,
    }
}

fn finished(images: Vec<Image>, sites: Vec<Site>, allowed: Allowed, paths: &[&str]) -> Finished {
    let globs: Vec<_> = paths.iter().map(|path| path.parse().unwrap()).collect();
    let selection = Selection {
        names: CommNames::default(),
        paths: ExePaths::new(&globs, Path::new(DIRECTORY)).unwrap(),
    };
    let mut ledger = Ledger::new(Gate::new(allowed, selection.clone()));
    for image in &images {
        ledger.record(image);
    }
    Finished {
        about: About {
            command: vec![b"make".to_vec(), b"check".to_vec()],
            directory: Some(DIRECTORY.into()),
            began: Duration::from_secs(1_761_153_780),
            ended: Duration::from_secs(1_761_153_790),
            ..About::default()
        },
        images,
        more_images: 0,
        has_more_sites: false,
        sites,
        selection,
        summary: ledger.finish(Losses::default(), Outcome::Exited(0)),
    }
}

const NO_LOST: Allowed = Allowed {
    leak: Limits {
        process: None,
        total: None,
    },
    lost: Limits {
        process: Some(0),
        total: None,
    },
};

/// Two processes of a program that loses memory, one that a signal ended, a compiler that is not judged, and a program
/// with a hostile name.
fn shop() -> Finished {
    let lost = reached(amount(7_050, 100), amount(72_704, 1));
    let one = image(
        "/home/alice/shop/build/shop",
        amount(79_754, 101),
        Reach::Known(lost),
    );
    let mut other = one.clone();
    other.pid += 1;
    other.end_time += Duration::from_millis(500);
    let mut killed = image(
        "/home/alice/shop/build/crash",
        amount(16, 1),
        Reach::Unknown(ReachUnknown::Signal),
    );
    killed.end = End::Signaled {
        signal: 11,
        core: false,
    };
    let gcc = image(
        "/usr/bin/gcc",
        amount(500, 5),
        known(amount(500, 5), amount(0, 0)),
    );
    let hostile = image(
        &format!("/home/alice/shop/build/{HOSTILE}"),
        amount(3, 1),
        known(amount(3, 1), amount(0, 0)),
    );
    let main = frame("main", "/home/alice/shop/src/main.cpp", 40);
    let make = frame("make(int)", "/home/alice/shop/build/../src/sh,el f.cpp", 7);
    let both = reached(amount(14_100, 200), Amount::default());
    let pool = reached(Amount::default(), amount(145_408, 2));
    let mut leak = site(
        &one,
        0x6f1d_0c5a_93b2_e847,
        both,
        &[
            frame(
                "std::vector<int>::reserve",
                "/usr/include/c++/12/bits/vector.tcc",
                70,
            ),
            make.clone(),
            main.clone(),
        ],
    );
    leak.images = 2;
    let library = [NamedFrame::default(), frame("f", "", 0)];
    let hostile_frames = [
        frame(HOSTILE, &format!("/home/alice/shop/{HOSTILE}.c"), 1),
        main.clone(),
    ];
    let sites = vec![
        site(&one, 2, pool, &[frame("pool", "", 0)]),
        leak,
        site(
            &gcc,
            3,
            reached(amount(500, 5), Amount::default()),
            std::slice::from_ref(&main),
        ),
        site(
            &hostile,
            4,
            reached(amount(2, 1), Amount::default()),
            &hostile_frames,
        ),
        site(
            &hostile,
            5,
            reached(amount(1, 0), Amount::default()),
            &library,
        ),
        Site {
            reached: None,
            ..site(
                &killed,
                6,
                reached(amount(16, 1), Amount::default()),
                &[main],
            )
        },
    ];
    finished(
        vec![one, other, killed, gcc, hostile],
        sites,
        NO_LOST,
        &["./**"],
    )
}

/// The same without a gate.
fn ungated() -> Finished {
    let Finished { images, sites, .. } = shop();
    finished(images, sites, Allowed::default(), &[])
}

/// The same without call stacks.
fn without_stacks() -> Finished {
    finished(shop().images, Vec::new(), NO_LOST, &["./**"])
}

/// The sample of all documents.
#[test]
fn the_session_in_each_format_for_ci() {
    let finished = crate::model::finished::samples::finished();
    insta::assert_snapshot!("session_junit", text(junit(&finished)));
    insta::assert_snapshot!("session_sarif", text(sarif(&finished)));
    insta::assert_snapshot!("session_github", text(github(&finished)));
    insta::assert_snapshot!("session_gitlab", text(gitlab(&finished)));
    insta::assert_snapshot!("session_markdown", text(markdown(&finished)));
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn each_format_shows_a_failed_gate() {
    insta::assert_snapshot!("failed_junit", text(junit(&shop())));
    insta::assert_snapshot!("failed_sarif", text(sarif(&shop())));
    insta::assert_snapshot!("failed_github", text(github(&shop())));
    insta::assert_snapshot!("failed_gitlab", text(gitlab(&shop())));
    insta::assert_snapshot!("failed_markdown", text(markdown(&shop())));
}

#[test]
fn without_a_gate_nothing_fails() {
    let finished = ungated();
    assert!(!text(junit(&finished)).contains("<failure"));
    assert!(!text(github(&finished)).starts_with("::error"));
    assert!(!text(github(&finished)).contains("\n::error"));
    let levels = json(&sarif(&finished));
    let results = levels["runs"][0]["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["level"] == "warning"));
    // Nobody excluded the compiler.
    assert_eq!(results.len(), 4);
    insta::assert_snapshot!("ungated_markdown", text(markdown(&finished)));
}

#[test]
fn without_call_stacks_junit_and_markdown_say_less_and_the_others_nothing() {
    let finished = without_stacks();
    insta::assert_snapshot!("stackless_junit", text(junit(&finished)));
    insta::assert_snapshot!("stackless_markdown", text(markdown(&finished)));
    assert_eq!(json(&gitlab(&finished)), serde_json::json!([]));
    assert_eq!(
        json(&sarif(&finished))["runs"][0]["results"],
        serde_json::json!([])
    );
    // The gate's verdict and the closing line.
    assert_eq!(text(github(&finished)).lines().count(), 2);
}

#[test]
fn a_finished_session_without_anything_is_a_document_in_each_format() {
    let nothing = finished(Vec::new(), Vec::new(), NO_LOST, &[]);
    assert!(text(junit(&nothing)).contains("tests=\"1\" failures=\"0\" errors=\"1\""));
    assert!(text(markdown(&nothing)).contains("gate unknown"));
    assert_eq!(json(&gitlab(&nothing)), serde_json::json!([]));
    assert_eq!(json(&sarif(&nothing))["version"], "2.1.0");
    assert!(text(github(&nothing)).starts_with("::error title=memleak::gate unknown"));
}

#[test]
fn a_label_is_a_case_of_all_its_processes() {
    let mut all = shop().images;
    for (at, image) in all.iter_mut().enumerate() {
        let name = ["list::grows", "list::shrinks"][at / 3];
        image.labels = [("NEXTEST_TEST_NAME".to_owned(), name.into())].into();
    }
    let finished = finished(all, Vec::new(), NO_LOST, &["./**"]);
    let xml = text(junit(&finished));
    let cases: Vec<_> = xml
        .lines()
        .filter(|line| line.contains("<testcase"))
        .collect();
    assert_eq!(cases.len(), 2, "{xml}");
    for (case, name) in cases.iter().zip(["list::grows", "list::shrinks"]) {
        let names = format!("classname=\"memleak.NEXTEST_TEST_NAME\" name=\"{name}\"");
        assert!(case.contains(&names), "{case}");
    }
}

/// The time of processes that ran at the same time counts once.
#[test]
fn the_time_of_a_case_is_that_in_which_any_of_its_processes_ran() {
    let mut images = Vec::new();
    for (start, end) in [(10, 20), (12, 14), (18, 25), (30, 31)] {
        let mut image = image("/bin/a", Amount::default(), Reach::NotJudged);
        image.start_time = Duration::from_secs(start);
        image.end_time = Duration::from_secs(end);
        images.push(image);
    }
    let xml = text(junit(&finished(
        images,
        Vec::new(),
        Allowed::default(),
        &[],
    )));
    assert!(
        xml.contains("name=\"/bin/a\" time=\"16.000000\"/>"),
        "{xml}"
    );
}

#[test]
fn a_total_that_is_too_large_is_a_case_of_its_own() {
    let images = || vec![image("/bin/a", amount(10, 1), Reach::NotJudged); 3];
    let total = |total| Allowed {
        leak: Limits {
            process: None,
            total: Some(total),
        },
        lost: Limits::default(),
    };
    let over = finished(images(), Vec::new(), total(29), &[]);
    let xml = text(junit(&over));
    assert!(
        xml.contains("tests=\"2\" failures=\"1\" errors=\"0\""),
        "{xml}"
    );
    assert!(xml.contains("3 processes leaked 30 bytes together, more than 29 bytes</failure>"));
    let within = finished(images(), Vec::new(), total(30), &[]);
    assert!(text(junit(&within)).contains("tests=\"2\" failures=\"0\" errors=\"0\""));
}

/// The formats name what the gate has judged, and with the weight that the gate gives it.
#[test]
fn only_leaks_of_processes_over_the_limit_are_errors() {
    let over = image("/home/alice/shop/a", amount(200, 1), Reach::NotJudged);
    let within = image("/home/alice/shop/b", amount(50, 1), Reach::NotJudged);
    let line = frame("f", "/home/alice/shop/f.c", 3);
    let sites = [&over, &within].map(|image| {
        let leaked = amount(image.counters.leaked_bytes, 1);
        let identity = leaked.bytes;
        Site {
            reached: None,
            ..site(
                image,
                identity,
                reached(leaked, Amount::default()),
                std::slice::from_ref(&line),
            )
        }
    });
    let allowed = Allowed {
        leak: Limits {
            process: Some(100),
            total: None,
        },
        lost: Limits::default(),
    };
    let document = finished(vec![over, within], sites.to_vec(), allowed, &[]);
    let log = json(&sarif(&document));
    let results = log["runs"][0]["results"].as_array().unwrap();
    let levels: Vec<_> = results.iter().map(|result| &result["level"]).collect();
    assert_eq!(levels, ["error", "note"]);
    let issues = json(&gitlab(&document));
    assert_eq!(issues[0]["severity"], "major");
    assert_eq!(issues[1]["severity"], "info");
}

/// What the parts of SARIF must be: its readers do not check all of them.
#[test]
fn every_sarif_result_has_what_github_demands() {
    let log = json(&sarif(&shop()));
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    for rule in rules {
        for text in ["shortDescription", "fullDescription", "help"] {
            assert!(!rule[text]["text"].as_str().unwrap().is_empty());
        }
    }
    assert!(
        run["automationDetails"]["id"]
            .as_str()
            .unwrap()
            .ends_with('/')
    );
    let results = run["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for result in results {
        let rule = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(result["ruleId"], rules[rule]["id"]);
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let place = &result["locations"][0]["physicalLocation"];
        let uri = place["artifactLocation"]["uri"].as_str().unwrap();
        let plain = |byte: u8| byte.is_ascii_graphic() && !b":\\\"<>".contains(&byte);
        assert!(uri.bytes().all(plain) && !uri.starts_with('/'), "{uri}");
        for field in ["startLine", "startColumn", "endLine", "endColumn"] {
            assert!(place["region"][field].as_u64().unwrap() > 0);
        }
        let hash = result["partialFingerprints"]["primaryLocationLineHash"].as_str();
        assert_eq!(hash.unwrap().len(), 16);
    }
}

fn many(count: u64) -> Finished {
    let image = image(
        "/home/alice/shop/a",
        amount(count, count),
        known(amount(count, count), Amount::default()),
    );
    let frames =
        |length, count| vec![frame(&"é".repeat(length), "/home/alice/shop/f.c", 3); count];
    let (long, short) = (frames(600, 26), frames(2, 2));
    let sites = (1..=count).map(|at| {
        let frames = if at + 60 > count { &long } else { &short };
        let lost = reached(amount(at, 1), Amount::default());
        site(&image, at, lost, frames)
    });
    let sites = sites.collect();
    finished(vec![image], sites, NO_LOST, &[])
}

#[test]
fn the_limits_of_the_readers_are_kept_and_the_largest_leaks_come_first() {
    let large = many(5_010);
    let log = json(&sarif(&large));
    let run = &log["runs"][0];
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 5_000);
    assert!(
        results[0]["message"]["text"]
            .as_str()
            .unwrap()
            .starts_with("lost 5,010 bytes in 1 block")
    );
    let notes = &run["invocations"][0]["toolExecutionNotifications"];
    assert_eq!(notes[0]["message"]["text"], "10 smaller leaks are left out");

    let commands = text(github(&many(40)));
    let errors: Vec<_> = commands
        .lines()
        .filter(|line| line.starts_with("::error"))
        .collect();
    // The first one is the gate's verdict.
    assert_eq!(errors.len(), 10);
    assert!(errors[1].contains("lost 40 bytes in 1 block"));
    assert!(commands.contains("memleak: 31 more leaks have no annotation"));

    let summary = markdown(&large);
    assert!(summary.len() < 1 << 20, "{}", summary.len());
    assert!(text(summary).contains("more leaks\n"));
    assert!(junit(&large).len() < 30_000_000);
}

/// A runner reads a command from each line that begins with `::`.
#[test]
fn no_name_makes_a_command_of_a_workflow() {
    let commands = text(github(&shop()));
    for line in commands.lines() {
        // Only in what is a command already, the older form is none.
        assert!(line.starts_with("::") || !line.contains("##["), "{line}");
        let kinds = ["::error ", "::warning ", "::notice ", "memleak: "];
        assert!(kinds.iter().any(|kind| line.starts_with(kind)), "{line}");
        let Some(rest) = line.strip_prefix("::") else {
            continue;
        };
        // The runner's own rules: the properties end at the first `::`, and are parted by commas.
        let (head, _) = rest.split_once("::").unwrap();
        let (_, properties) = head.split_once(' ').unwrap();
        for property in properties.split(',') {
            let (name, _) = property.split_once('=').unwrap();
            assert!(["file", "line", "title"].contains(&name), "{property}");
        }
    }
}

/// What a reader of Markdown sees of a document: headings, cells and code.
fn seen(document: &str) -> Vec<pulldown_cmark::Event<'_>> {
    pulldown_cmark::Parser::new_ext(document, pulldown_cmark::Options::ENABLE_TABLES).collect()
}

#[test]
fn in_markdown_names_are_code_and_nothing_else() {
    use pulldown_cmark::{Event, Tag};
    let document = text(markdown(&shop()));
    let events = seen(&document);
    assert!(!events.iter().any(|event| matches!(
        event,
        Event::Html(_) | Event::InlineHtml(_) | Event::Start(Tag::Link { .. } | Tag::Image { .. })
    )));
    let cells = events
        .iter()
        .filter(|event| matches!(event, Event::Start(Tag::TableCell)));
    // The head, and three programs.
    assert_eq!(cells.count(), 4 * 5);
    let hostile = crate::text::escape::escaped(HOSTILE.as_bytes());
    let codes = events.iter().filter_map(|event| match event {
        Event::Code(code) => Some(code.to_string()),
        _ => None,
    });
    let codes: Vec<_> = codes.collect();
    assert!(
        codes.contains(&format!("/home/alice/shop/build/{hostile}")),
        "{codes:?}"
    );
    assert!(codes.contains(&format!("{hostile}.c:1")), "{codes:?}");
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<char>().prop_map(|c| c.to_string().into_bytes()),
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(vec![
            "`", "|", "\\", "<", "&", "]]>", "\"", "\n", "::", "%", "~"
        ])
        .prop_map(|text| text.into()),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| {
        pieces
            .concat()
            .into_iter()
            .filter(|byte| !b"\0/".contains(byte))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_name_leaves_each_document_whole(bytes in any_name()) {
        let mut finished = shop();
        let exe = Path::new(DIRECTORY).join(OsStr::from_bytes(&bytes));
        for image in &mut finished.images {
            image.exe = Some(exe.clone());
            image.comm = bytes.clone();
        }
        for site in &mut finished.sites {
            site.exe = Some(exe.clone());
            site.comm = bytes.clone();
            for frame in site.stack.frames.iter_mut().map(Arc::make_mut) {
                frame.function = Some(String::from_utf8_lossy(&bytes).into_owned());
                frame.file = Some(exe.clone());
                frame.line = Some(1);
            }
        }
        json(&gitlab(&finished));
        json(&sarif(&finished));
        let document = text(markdown(&finished));
        let rows = seen(&document).iter().filter(|event| matches!(event, pulldown_cmark::Event::Start(pulldown_cmark::Tag::TableRow))).count();
        prop_assert_eq!(rows, 1);
        let commands = text(github(&finished));
        let is_command = |line: &str| line.starts_with("::") || line.starts_with("memleak: ");
        prop_assert!(commands.lines().all(is_command), "{}", commands);
        let xml = text(junit(&finished));
        let markup: Vec<_> = xml.split('<').skip(1).map(|part| part.split(['>', ' ', '/']).next().unwrap()).collect();
        let known = ["?xml", "testsuites", "testsuite", "testcase", "failure", "error", "system-out", ""];
        prop_assert!(markup.iter().all(|tag| known.contains(tag)), "{}", xml);
        prop_assert!(xml.chars().all(|c| !c.is_control() || c == '\n'));
    }
}
