//! Tests of the reference for memleak's counts. The interposing counter counts the fixtures exactly, and valgrind
//! agrees. The comparison with memleak finds every difference. These tests need no rights and no BPF.

use std::process::ExitStatus;

use crate::common;
use crate::common::counter::{Image, Kind};
use crate::common::expected::{Case, cases};
use crate::common::{Counts, Job, Losses, Row, code, compare, fixture};

/// Fails unless these are exactly the images that the fixture makes. An image that never calls the allocator may or may
/// not have a file.
#[track_caller]
pub fn assert_exact(case: &Case, images: Vec<Image>, status: ExitStatus, stdout: &str) {
    assert_eq!(code(status), case.code, "{}", case.name);
    let sorted = |counts: Vec<Counts>| {
        let mut counts: Vec<_> = counts
            .into_iter()
            .filter(|&c| c != Counts::default())
            .collect();
        counts.sort();
        counts
    };
    assert_eq!(
        sorted(images.into_iter().map(|image| image.counts).collect()),
        sorted(
            (case.images)(stdout)
                .into_iter()
                .map(|image| image.counts)
                .collect()
        ),
        "{}",
        case.name
    );
}

#[test]
fn the_counter_counts_every_fixture_exactly() {
    for case in cases() {
        let (images, status, stdout) = case.job.count();
        assert_exact(&case, images, status, &stdout);
    }
}

#[test]
fn valgrind_counts_the_same_in_fixtures_and_programs() {
    // The fixtures whole_family and realloc_forms are not in this list. valgrind 3.19 has no pvalloc, and its realloc
    // always moves the block.
    let jobs = [
        Job::fixture("leaks_2mb", &[]),
        Job::fixture("frees_all", &[]),
        Job::fixture("threads_free_each_other", &[]),
        Job::new("ls", ["-l", "/usr"]),
        Job::new("sort", ["/etc/passwd"]),
    ];
    for job in jobs {
        let (images, ..) = job.count();
        let [image] = &images[..] else {
            panic!("expected one image: {images:?}")
        };
        let counts = image.counts;
        assert_eq!(
            (counts.alloc_count, counts.total_allocs_bytes),
            common::valgrind_totals(&job),
            "{}",
            image.comm
        );
    }
}

fn row(pid: u32, image: u32, counts: Counts) -> Row {
    let line = serde_json::json!({
        "pid": pid, "ppid": 1, "uid": 0, "comm": "x", "exe": null, "image": image, "end": "exited",
        "exit_code": 0, "signal": null, "from": "start", "start_time": 0.0, "end_time": 1.0,
        "total_allocs_bytes": counts.total_allocs_bytes, "alloc_count": counts.alloc_count,
        "free_count": counts.free_count, "leaked_bytes": counts.leaked_bytes,
        "leaked_blocks": counts.leaked_blocks, "failed_allocs": counts.failed_allocs,
        "unknown_frees": counts.unknown_frees, "peak_live_bytes": null,
        "allocators": ["/lib/libc.so.6"], "complete": true, "losses": {},
    });
    serde_json::from_value(line).expect("the line is a row")
}

fn image(pid: u32, kind: Kind, start: u64, counts: Counts) -> Image {
    Image {
        pid,
        kind,
        start,
        comm: "x".to_string(),
        exe: "/x".into(),
        counts,
    }
}

fn some() -> Counts {
    Counts {
        total_allocs_bytes: 10,
        alloc_count: 1,
        leaked_bytes: 10,
        leaked_blocks: 1,
        ..Counts::default()
    }
}

#[test]
fn the_comparison_finds_a_difference_in_each_count() {
    let changes: [fn(&mut Counts) -> &mut u64; 7] = [
        |c| &mut c.total_allocs_bytes,
        |c| &mut c.alloc_count,
        |c| &mut c.free_count,
        |c| &mut c.leaked_bytes,
        |c| &mut c.leaked_blocks,
        |c| &mut c.failed_allocs,
        |c| &mut c.unknown_frees,
    ];
    let images = [image(7, Kind::Exec, 1, some())];
    assert_eq!(compare(&[row(7, 0, some())], &images), Ok(()));
    for change in changes {
        let mut counts = some();
        *change(&mut counts) += 1;
        let difference = compare(&[row(7, 0, counts)], &images).expect_err("the counts differ");
        assert_eq!(difference.lines().count(), 1, "{difference}");
        assert!(difference.contains("(+1)"), "{difference}");
    }
}

#[test]
fn the_comparison_finds_an_image_that_is_missing_on_one_side() {
    let rows = [row(7, 0, some()), row(8, 0, some())];
    let images = [
        image(7, Kind::Exec, 1, some()),
        image(8, Kind::Exec, 1, some()),
    ];
    assert_eq!(compare(&rows, &images), Ok(()));
    assert!(compare(&rows[1..], &images).is_err());
    assert!(compare(&rows, &images[..1]).is_err());
    assert!(compare(&[], &images).is_err());
    // If an exec began an image, both sides must have that image, even if it allocated nothing.
    let nothing = Counts::default();
    assert!(compare(&[], &[image(7, Kind::Exec, 1, nothing)]).is_err());
    assert!(compare(&[row(7, 1, nothing)], &[]).is_err());
}

#[test]
fn the_comparison_ignores_only_a_fork_that_never_allocated() {
    let nothing = Counts::default();
    let after = [image(7, Kind::Exec, 5, some())];
    assert_eq!(
        compare(&[row(7, 0, nothing), row(7, 1, some())], &after),
        Ok(())
    );
    assert!(compare(&[row(7, 0, some()), row(7, 1, some())], &after).is_err());
    assert_eq!(compare(&[row(7, 0, nothing)], &[]), Ok(()));
    assert!(compare(&[row(7, 0, some())], &[]).is_err());
    // The counter has the fork, but lacks the image after its exec.
    let fork = [image(7, Kind::Fork, 5, nothing)];
    assert!(compare(&[row(7, 0, nothing), row(7, 1, nothing)], &fork).is_err());
    // memleak's image 1 began with an exec, so it cannot be the counter's fork.
    assert!(compare(&[row(7, 1, nothing)], &fork).is_err());
}

#[test]
fn an_unknown_kind_of_loss_is_an_error() {
    let losses: Result<Losses, _> = serde_json::from_str(r#"{"something_new": 1}"#);
    assert!(losses.is_err());
}

#[test]
fn a_fixture_that_fails_a_check_exits_with_99() {
    let (_, status, _) = Job::new(fixture("spawns_many"), ["1", "x"]).count();
    assert!(status.success());
    let (_, status, _) = Job::new(fixture("holds_blocks"), ["1"]).count();
    assert_eq!(code(status), 99);
}
