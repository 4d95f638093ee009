//! Serves the metrics over HTTP (`--listen`). `hyper` reads the requests. This module only bounds what clients may take:
//! the number of connections, the size of a request, and the time from its first byte to the last byte of the answer.
//!
//! One thread serves all. The page is made once an interval, and requests share it, so a request costs what it sends.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use crate::report::Exposition;

/// How many connections are open at a time. A new one takes the place of the oldest.
const MOST_CONNECTIONS: usize = 32;

/// How long a connection may take, from its beginning to the end of the answer. There is one request on each.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The longest head of a request. It is the least that the library allows.
const LONGEST_HEAD: usize = 8192;

/// How long no connection is taken after the system had no room for one.
const PAUSE: Duration = Duration::from_millis(100);

/// A page, and when it was made.
type SharedPage = Arc<Mutex<(Bytes, Instant)>>;

/// The socket, before anything is served.
pub(super) struct Listener {
    socket: TcpListener,
    pub(super) address: SocketAddr,
}

/// What is served: the metrics in both syntaxes.
#[derive(Clone)]
struct Served {
    text: SharedPage,
    open_metrics: SharedPage,
    /// If the metrics are older, memleak is not well.
    stale: Duration,
}

/// Where the metrics of one syntax are written to. Each flush replaces the page.
pub(super) struct PageWriter {
    page: SharedPage,
    content: Vec<u8>,
}

impl Listener {
    /// # Errors
    /// The address is in use, or not ours.
    pub(super) fn bind(address: SocketAddr) -> Result<Self> {
        let bind = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok::<_, io::Error>(Self { socket, address })
        };
        bind().with_context(|| {
            format!("cannot listen on {address} (--listen): name another port or address")
        })
    }

    /// Serves in a thread of its own until memleak ends. `every`: how often the pages are written.
    ///
    /// # Errors
    /// There is no room for a thread or a descriptor.
    pub(super) fn serve(self, every: Duration) -> Result<[(Exposition, PageWriter); 2]> {
        let page = || SharedPage::new(Mutex::new((Bytes::new(), Instant::now())));
        let served = Served {
            text: page(),
            open_metrics: page(),
            stale: every * 3 + TIME_LIMIT,
        };
        let writer = |page: &SharedPage| PageWriter {
            page: Arc::clone(page),
            content: Vec::new(),
        };
        let writers = [
            (Exposition::Text, writer(&served.text)),
            (Exposition::OpenMetrics, writer(&served.open_metrics)),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot serve metrics (--listen)")?;
        let socket = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(self.socket)
                .context("cannot serve metrics (--listen)")?
        };
        thread::Builder::new()
            .name("memleak-http".to_owned())
            .spawn(move || runtime.block_on(accept(socket, served)))
            .context("cannot start a thread for --listen")?;
        Ok(writers)
    }
}

impl Write for PageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let content = Bytes::from(std::mem::take(&mut self.content));
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        *page = (content, Instant::now());
        Ok(())
    }
}

/// Takes connections for ever.
async fn accept(socket: tokio::net::TcpListener, served: Served) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            // The client has gone already, or there is no descriptor left.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let served = served.clone();
        open.push_back(tokio::spawn(async move {
            let answers = service_fn(|request: Request<Incoming>| {
                let response = answer(
                    &served,
                    request.method(),
                    request.uri().path(),
                    request.headers(),
                );
                async { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.keep_alive(false).max_buf_size(LONGEST_HEAD);
            let connection = server.serve_connection(TokioIo::new(stream), answers);
            // An error is the client's.
            let _ = tokio::time::timeout(TIME_LIMIT, connection).await;
        }));
    }
}

fn answer(
    served: &Served,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            let accepted = headers.get_all(ACCEPT).iter();
            let accepted = accepted.filter_map(|value| value.to_str().ok());
            let exposition = Exposition::negotiated(accepted.flat_map(|value| value.split(',')));
            let page = match exposition {
                Exposition::Text => &served.text,
                Exposition::OpenMetrics => &served.open_metrics,
            };
            let (content, _) = read(page);
            body(StatusCode::OK, exposition.content_type(), content)
        }
        "/healthz" => match read(&served.text).1.elapsed() > served.stale {
            false => plain(StatusCode::OK, "ok\n"),
            true => plain(StatusCode::SERVICE_UNAVAILABLE, "no new metrics for long\n"),
        },
        "/" => plain(StatusCode::OK, "memleak: /metrics /healthz\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    }
}

fn read(page: &SharedPage) -> (Bytes, Instant) {
    page.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    body(
        status,
        "text/plain; charset=utf-8",
        Bytes::from_static(text.as_bytes()),
    )
}

fn body(status: StatusCode, kind: &'static str, content: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(content));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(age: Duration) -> Served {
        let made = Instant::now().checked_sub(age).unwrap();
        let page = |text: &'static str| {
            SharedPage::new(Mutex::new((Bytes::from_static(text.as_bytes()), made)))
        };
        Served {
            text: page("text"),
            open_metrics: page("open"),
            stale: Duration::from_secs(25),
        }
    }

    fn status(method: Method, path: &str, age: u64) -> u16 {
        let served = served(Duration::from_secs(age));
        answer(&served, &method, path, &HeaderMap::new())
            .status()
            .as_u16()
    }

    #[test]
    fn only_reads_of_known_paths_are_answered() {
        for (method, path, code) in [
            (Method::GET, "/metrics", 200),
            (Method::HEAD, "/metrics", 200),
            (Method::GET, "/healthz", 200),
            (Method::GET, "/", 200),
            (Method::GET, "/etc/passwd", 404),
            (Method::GET, "/metrics/", 404),
            (Method::POST, "/metrics", 405),
            (Method::DELETE, "/nothing", 405),
        ] {
            assert_eq!(status(method.clone(), path, 0), code, "{method} {path}");
        }
    }

    #[test]
    fn metrics_that_are_too_old_are_served_and_memleak_is_not_healthy() {
        assert_eq!(status(Method::GET, "/healthz", 24), 200);
        assert_eq!(status(Method::GET, "/healthz", 26), 503);
        assert_eq!(status(Method::GET, "/metrics", 26), 200);
    }

    #[test]
    fn a_client_gets_the_syntax_that_it_asks_for() {
        for (accept, kind) in [
            (
                "application/openmetrics-text",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
            ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            let response = answer(&served(Duration::ZERO), &Method::GET, "/metrics", &headers);
            assert_eq!(response.headers()[CONTENT_TYPE], kind);
        }
    }
}
