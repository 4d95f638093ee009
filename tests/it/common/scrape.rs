//! Metrics as other programs read them: promtool, node_exporter, and plain HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::TIMEOUT;

/// Fails unless promtool finds nothing wrong with metrics in the text format.
#[track_caller]
pub fn assert_promtool_accepts(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool can be run: make install-deps FOR=test");
    let mut stdin = promtool.stdin.take().expect("a pipe");
    stdin.write_all(metrics.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.is_empty(),
        "{said}\n{metrics}"
    );
}

/// The value of a sample, by its name and labels as they are written.
pub fn sample(metrics: &str, series: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// An address of this machine at which nothing listens.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it has an address")
}

/// The head and the body of what a server answers to a request for a path.
pub fn get(from: SocketAddr, path: &str, headers: &str) -> std::io::Result<(String, String)> {
    send(from, "GET", path, headers, "")
}

/// The same for any method, with a body.
pub fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(*TIMEOUT))?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {to}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// What a path answers, as soon as it is what is expected.
#[track_caller]
pub fn until(from: SocketAddr, path: &str, expected: impl Fn(&str) -> bool) -> String {
    let began = Instant::now();
    loop {
        let answer = get(from, path, "");
        if let Ok((_, body)) = &answer
            && expected(body)
        {
            return body.clone();
        }
        assert!(began.elapsed() < *TIMEOUT, "{from}{path}: {answer:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A server that is killed when this is dropped.
pub struct Server(Child);

impl Server {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let started = quiet.stdin(Stdio::null()).spawn();
        Self(started.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.0.wait().expect("it can be waited for")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
