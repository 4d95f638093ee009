//! The directory in which the programs run: its path is always the same, because the sizes of blocks depend on it. And
//! the server from which programs fetch a page.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::fcntl::{Flock, FlockArg};

use super::list::Program;
use crate::common::files;
use crate::common::fixtures::compile_with;
use crate::common::newcomers::run;

const PLACE: &str = "/tmp/memleak-valgrind";

/// Makes the programs' input.
const INPUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/valgrind/inputs.sh");

pub struct Scratch {
    /// Only one test at a time has the directory.
    _lock: Flock<File>,
    /// What words of the list stand for.
    words: BTreeMap<&'static str, String>,
}

impl Scratch {
    /// Makes the directory with all that these programs need.
    pub fn new(programs: &[Program]) -> Self {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(format!("{PLACE}.lock"))
            .expect("/tmp can be written");
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).or_else(|(lock, _)| {
            eprintln!("waiting until another test has left {PLACE}");
            Flock::lock(lock, FlockArg::LockExclusive)
        });
        let lock = lock.unwrap_or_else(|(_, error)| panic!("{PLACE}.lock: {error}"));
        // Whoever else owns the directory could change what root runs.
        if let Ok(there) = fs::symlink_metadata(PLACE) {
            assert!(
                there.is_dir() && there.uid() == nix::unistd::geteuid().as_raw(),
                "{PLACE} belongs to somebody else"
            );
            fs::remove_dir_all(PLACE).expect("the directory is ours");
        }
        fs::create_dir(PLACE).expect("nobody else makes the directory");
        fs::set_permissions(PLACE, Permissions::from_mode(0o700)).expect("the directory is ours");
        for directory in ["home", "tmp", "built", "work", "work/out"] {
            fs::create_dir(format!("{PLACE}/{directory}")).expect("the directory is ours");
        }
        let mut make = Command::new("bash");
        make.arg(INPUTS).current_dir(Self::work()).env_clear();
        run(make.envs(Self::environment()));
        let mut words = BTreeMap::from([("$built", format!("{PLACE}/built"))]);
        if uses(programs, "$cc1") {
            words.insert("$cc1", compilers_own("cc1"));
            words.insert("$cc1plus", compilers_own("cc1plus"));
        }
        if uses(programs, "$port") {
            words.insert("$port", serve().to_string());
        }
        if uses(programs, "$own") {
            words.insert("$own", format!("{PLACE}/own"));
            take_own_tests();
        }
        for program in programs {
            build(program);
            build(&program.dynamic());
        }
        Self { _lock: lock, words }
    }

    /// The directory in which the programs run.
    pub fn work() -> PathBuf {
        Path::new(PLACE).join("work")
    }

    /// The program's directory for output, empty.
    pub fn emptied(program: &Program) -> PathBuf {
        let out = Self::work().join("out").join(&program.name);
        let _ = fs::remove_dir_all(&out);
        fs::create_dir_all(&out).expect("the directory is ours");
        out
    }

    /// Everything that programs have in their environment.
    pub fn environment() -> impl Iterator<Item = (&'static str, String)> {
        let fixed = [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("USER", "root"),
            ("TERM", "dumb"),
            ("PAGER", "cat"),
            ("PYTHONHASHSEED", "0"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PERL_HASH_SEED", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ];
        let places = [
            ("HOME", format!("{PLACE}/home")),
            ("TMPDIR", format!("{PLACE}/tmp")),
        ];
        let fixed = fixed
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()));
        fixed.chain(places)
    }

    /// The program's command for a shell, and its own variables.
    pub fn command(&self, program: &Program) -> (Vec<(String, String)>, String) {
        let mut line = program.line.as_str();
        let mut variables = Vec::new();
        while let Some((word, rest)) = line.split_once(' ') {
            let Some((name, value)) = word.split_once('=') else {
                break;
            };
            if !name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
                break;
            }
            variables.push((name.to_owned(), value.to_owned()));
            line = rest;
        }
        let mut line = line.replace("$out", &format!("out/{}", program.name));
        // The longest word first: one may begin another.
        for (word, value) in self.words.iter().rev() {
            line = line.replace(word, value);
        }
        (variables, line)
    }
}

fn uses(programs: &[Program], word: &str) -> bool {
    programs.iter().any(|program| program.line.contains(word))
}

fn compilers_own(program: &str) -> String {
    let output = Command::new("/usr/bin/gcc")
        .arg(format!("-print-prog-name={program}"))
        .output()
        .expect("gcc is installed: make install-deps FOR=valgrind");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Copies valgrind's own tests, which scripts/test-valgrind.sh has made. One of them opens a library in the current
/// directory.
fn take_own_tests() {
    let made =
        std::env::var("OWN_TESTS").expect("scripts/test-valgrind.sh --own makes these programs");
    run(Command::new("cp").args(["-r", &made, &format!("{PLACE}/own")]));
    files::copy(format!("{made}/dlclose_leak_so.so"), Scratch::work());
}

/// Compiles the fixtures that the program names: `$built/NAME` is fixtures/lost/NAME.c or .cc, with the ending `.so` as a
/// library, with `.static` as a static program.
fn build(program: &Program) {
    for part in program.line.split("$built/").skip(1) {
        let end = part.find(|c: char| c.is_whitespace() || "'\";)".contains(c));
        let name = &part[..end.unwrap_or(part.len())];
        let (source, flags): (_, &[&str]) = match name.rsplit_once('.') {
            Some((source, "so")) => (source, &["-O1", "-shared", "-fPIC"]),
            Some((source, "static")) => (source, &["-O1", "-static"]),
            _ => (name, &["-O1"]),
        };
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lost");
        let (compiler, file) = match directory.join(format!("{source}.cc")).exists() {
            true => ("c++", format!("fixtures/lost/{source}.cc")),
            false => ("cc", format!("fixtures/lost/{source}.c")),
        };
        let built = compile_with(compiler, &file, &format!("lost-{name}"), flags);
        let to = Path::new(PLACE).join("built").join(name);
        if !to.exists() {
            files::copy(built, to);
        }
    }
}

/// Starts a server that gives the same page to everybody, at a port of the loopback device and at work/socket. Returns
/// the port.
fn serve() -> u16 {
    let socket = UnixListener::bind(Scratch::work().join("socket")).expect("the directory is ours");
    thread::spawn(move || {
        for stream in socket.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    let port = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let number = port.local_addr().expect("the port is bound").port();
    thread::spawn(move || {
        for stream in port.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    number
}

fn answer(mut stream: impl Read + Write) -> io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&part[..read]),
        }
    }
    let body = "a line of the page\n".repeat(1000);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if !request.starts_with(b"HEAD") {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}
