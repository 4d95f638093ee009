//! Metrics of more names than there is room for, and for clients that do not read what they have asked for.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::fixture;
use crate::common::proc::{cpu_seconds, within};
use crate::common::root::require_root;
use crate::common::scrape::{assert_promtool_accepts, get, sample, until};
use crate::common::watch::Waiting;
use crate::metrics::Serving;

/// How many combinations of labels memleak tells apart.
const MOST_SERIES: usize = 500;
/// How many connections it has at a time.
const MOST_CONNECTIONS: u64 = 32;

/// The values of all series of a metric.
fn values(page: &str, name: &str) -> Vec<f64> {
    let start = format!("{name}{{");
    let lines = page.lines().filter(|line| line.starts_with(&start));
    let values = lines.map(|line| line.rsplit_once(' ').expect("a value").1);
    values
        .map(|value| value.parse().expect("a number"))
        .collect()
}

#[test]
fn beyond_500_names_the_rest_is_other_and_that_is_said_once() {
    require_root();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("memleak.prom");
    let mut run = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .args(["run", "-q", "-o"])
        .arg(&file)
        .arg(fixture("names_its_children"))
        .arg("510")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "memleak: metrics: there are more than 500 combinations of comm and user, and what is beyond has the value \
         'other' (fewer labels: --metrics-labels)\n"
    );
    let page = std::fs::read_to_string(&file).unwrap();
    assert_promtool_accepts(&page);
    // 510 children and their parent, of which nothing is missing.
    let ended = values(&page, "memleak_processes_ended_total");
    assert_eq!(ended.len(), MOST_SERIES + 1);
    assert_eq!(ended.iter().sum::<f64>(), 511.0);
    let other = r#"memleak_processes_ended_total{comm="other",user="other"}"#;
    assert_eq!(sample(&page, other), Some(11.0));
    let leaked = values(&page, "memleak_leaked_bytes_total");
    assert_eq!(leaked.iter().sum::<f64>(), (510 * 511 / 2) as f64);
}

// ---- clients that do not read ------------------------------------------------------------------------

/// A memleak that serves a page of as many series as there may be, and the length of the page.
fn serving_a_large_page() -> (Serving, usize) {
    let names = (MOST_SERIES + 10).to_string();
    let mut serving = Serving::of(Waiting::fixture("names_its_children", &[&names]), &[]);
    assert_eq!(serving.target.ask(), "more\n");
    let name = "memleak_processes_ended_total";
    let page = until(serving.address, "/metrics", |page| {
        values(page, name).iter().sum::<f64>() >= (MOST_SERIES + 10) as f64
    });
    assert!(page.len() > 400_000, "{}", page.len());
    (serving, page.len())
}

/// A client that asks for the page and reads nothing. The kernel keeps little for it: its packets and its buffer are
/// small, so that the server cannot write all.
#[track_caller]
fn deaf(address: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = address else {
        panic!("{address}")
    };
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*to.ip()).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: there are no pointers.
    let number = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(number >= 0);
    // SAFETY: the descriptor is new, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let size = |length: usize| libc::socklen_t::try_from(length).expect("a small size");
    for (level, option, value) in [
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 536),
        (libc::SOL_SOCKET, libc::SO_RCVBUF, 4096),
    ] {
        let value: libc::c_int = value;
        // SAFETY: the pointer is to a value of this size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size(size_of_val(&value)),
            )
        };
        assert_eq!(set, 0);
    }
    // SAFETY: the pointer is to an address of this size.
    let connected = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const inet).cast(),
            size(size_of_val(&inet)),
        )
    };
    assert_eq!(connected, 0);
    let mut stream = TcpStream::from(socket);
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).expect("the server reads");
    stream
}

#[test]
fn clients_that_never_read_a_large_page_take_no_processor_and_little_memory() {
    let (serving, length) = serving_a_large_page();
    let address = serving.address;
    let pid = Pid::from_raw(serving.watch.own_pid().cast_signed());
    let taken_in = |time| {
        let before = cpu_seconds(pid);
        sleep(time);
        cpu_seconds(pid) - before
    };
    let time = Duration::from_secs(2);
    let alone = taken_in(time);
    let before = serving.takes();
    let clients: Vec<TcpStream> = (0..100).map(|_| deaf(address)).collect();
    // Each has a connection, as its page is not written.
    let open = || serving.takes()[0] - before[0];
    assert!(within(Duration::from_secs(5), || open() == MOST_CONNECTIONS));
    let with_clients = taken_in(time);
    assert_eq!(open(), MOST_CONNECTIONS, "a write has ended");
    // A fifth of a second of two, for what is by chance.
    assert!(
        with_clients < alone + 0.2,
        "{with_clients} s, {alone} s without the clients"
    );
    let began = Instant::now();
    let (_, page) = get(address, "/metrics", "").unwrap();
    let took = began.elapsed();
    assert!(
        page.len() >= length && took < Duration::from_secs(2),
        "{took:?}"
    );
    let after = serving.takes();
    // Of each connection at most one page, which may be an older one.
    let most = MOST_CONNECTIONS * length as u64 / 1000 + 4_000;
    assert!(
        after[2].saturating_sub(before[2]) < most,
        "{before:?} {after:?}"
    );
    drop(clients);
    serving.end();
}

#[test]
#[ignore = "takes ten seconds: make test-long"]
fn a_client_that_never_reads_is_cut_off() {
    let (serving, _) = serving_a_large_page();
    let before = serving.takes()[0];
    let began = Instant::now();
    let _client = deaf(serving.address);
    let open = || serving.takes()[0] - before;
    assert!(within(Duration::from_secs(5), || open() == 1));
    assert!(within(Duration::from_secs(20), || open() == 0));
    assert!(began.elapsed() > Duration::from_secs(9));
    serving.end();
}
