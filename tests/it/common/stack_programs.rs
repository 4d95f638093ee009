//! Programs whose stacks are compared with libgcc's: what is usual, and what unwinds in its own way.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::Job;
use super::fixtures::compile_with;
use super::newcomers::run;
use super::stacks::Partly;

/// How much the programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// As much as fits between other tests.
    Little,
    /// For `make test-long`.
    Much,
}

/// A program with its input.
pub struct StackProgram {
    pub name: &'static str,
    pub job: Job,
    /// The least number of allocations of the whole tree.
    pub at_least: u64,
    /// The calls that libgcc's library and memleak may have in part only, with the reasons.
    pub partly: &'static Partly,
    /// Files that the program reads. They go when this does.
    _files: Option<TempDir>,
}

/// A number for a little and one for much.
type Pair<T> = (T, T);

impl Amount {
    fn of<T>(self, (little, much): Pair<T>) -> T {
        match self {
            Amount::Little => little,
            Amount::Much => much,
        }
    }
}

/// All programs. None of them reads the network, or anything of the user.
pub fn stack_programs(amount: Amount) -> Vec<StackProgram> {
    vec![
        python3(amount),
        perl(amount),
        git(amount),
        sqlite3(amount),
        cpp(amount),
        rust(amount),
        compiler(amount),
        bash(amount),
    ]
}

fn program(name: &'static str, job: Job, at_least: u64) -> StackProgram {
    StackProgram {
        name,
        job,
        at_least,
        partly: &[],
        _files: None,
    }
}

/// The path of Python. `python3` may be a script that searches for the program.
pub fn python() -> String {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("python3 is needed: `make install-deps`");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

fn python3(amount: Amount) -> StackProgram {
    let python = python();
    let (items, at_least) = amount.of(((300, 30_000), (20_000, 200_000)));
    let script = format!(
        "import json; print(len(json.dumps({{str(i): [i] * 5 for i in range({items})}}, indent=1)))"
    );
    // Otherwise a first run on a fresh machine allocates more than the next one.
    let job = Job::new(python, ["-S", "-c", &script])
        .env("PYTHONMALLOC", "malloc")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    program("python3", job, at_least)
}

fn perl(amount: Amount) -> StackProgram {
    let (keys, at_least) = amount.of(((300, 5_000), (20_000, 300_000)));
    let script = format!(
        r#"my %h; for (1..{keys}) {{ $h{{"k$_"}} = [map {{ "$_" x 3 }} 1..5]; }}
        my @s = sort {{ $h{{$a}}[0] cmp $h{{$b}}[0] }} keys %h;
        my $t = join ",", @s; $t =~ s/(\d+)/<$1>/g;
        sub r {{ my $n = shift; return $n ? r($n - 1) . "x" : "" }}
        print length($t . r(50)), "\n""#
    );
    program("perl", Job::new("perl", ["-e", &script]), at_least)
}

fn git(amount: Amount) -> StackProgram {
    let (commits, at_least) = amount.of(((30, 500), (2_000, 10_000)));
    let files = TempDir::new().expect("a temporary directory can be created");
    let mut stream = String::new();
    for n in 0..commits {
        let text = format!("line {n}\n").repeat(n % 50 + 1);
        let time = 1_700_000_000 + n;
        stream += &format!(
            "commit refs/heads/main\ncommitter A <a@example.org> {time} +0000\ndata 8\nchange{:02}\n\
             M 644 inline file{}\ndata {}\n{text}\n",
            n % 100,
            n % 7,
            text.len()
        );
    }
    let repository = files.path();
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(repository).args(words);
        command
    };
    run(&mut git(&["init", "-q", "-b", "main"]));
    let input = repository.join("stream");
    std::fs::write(&input, stream).expect("a temporary directory can be written");
    let input = std::fs::File::open(input).expect("the file is there");
    run(git(&["fast-import", "--quiet"]).stdin(input));
    let words = ["--no-pager", "log", "--stat", "-p", "--graph", "main"];
    let job = Job::new("git", words)
        .in_directory(repository)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    StackProgram {
        _files: Some(files),
        ..program("git", job, at_least)
    }
}

fn sqlite3(amount: Amount) -> StackProgram {
    let (rows, at_least) = amount.of(((500, 1_500), (50_000, 50_000)));
    let script = format!(
        "create table t(a integer primary key, b text);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows})
            insert into t select i, 'row ' || i from n;
        create index x on t(b);
        select count(*), max(length(b)) from t where b like '%9%' group by a % 7;"
    );
    let job = Job::new("sqlite3", ["-batch", ":memory:", &script]);
    program("sqlite3", job, at_least)
}

fn cpp(amount: Amount) -> StackProgram {
    let (rounds, at_least) = amount.of(((2, 4_000), (100, 100_000)));
    let source = "fixtures/stacks/program.cc";
    let built = compile_with("c++", source, "stacks_program", &["-O2"]);
    program("C++", Job::new(built, [rounds.to_string()]), at_least)
}

fn rust(amount: Amount) -> StackProgram {
    let (rounds, at_least) = amount.of(((5, 1_000), (500, 100_000)));
    let built = rust_program();
    program("Rust", Job::new(built, [rounds.to_string()]), at_least)
}

/// Compiles program.rs. Tests in several processes may do so at the same time.
fn rust_program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/stacks/program.rs");
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("built");
    std::fs::create_dir_all(&built).expect("target/tmp can be written");
    let target = built.join("stacks_program_rust");
    let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    if modified(&target).is_some() && modified(&target) > modified(&source) {
        return target;
    }
    let unfinished = built.join(format!("stacks_program_rust.{}", std::process::id()));
    run(Command::new("rustc")
        .args(["--edition=2024", "-O", "-o"])
        .arg(&unfinished)
        .arg(source));
    std::fs::rename(unfinished, &target).expect("target/tmp can be written");
    target
}

/// The driver runs cc1plus, which is most of it.
fn compiler(amount: Amount) -> StackProgram {
    let (text, at_least) = amount.of((
        (
            "struct Shape { virtual ~Shape() {} virtual int area() const = 0; };
            template <int N> struct Box : Shape {
                int sides[N];
                int area() const override { int a = 1; for (int s : sides) a *= s; return a; }
            };
            template <int N> int sum() { Box<N> b; return b.area() + sum<N - 1>(); }
            template <> int sum<0>() { return 0; }
            int main() { return sum<2>(); }\n",
            10_000,
        ),
        (
            "#include <string>\n#include <vector>\n
            int f(const std::vector<std::string> &v) { int n = 0; for (auto &s : v) n += s.size(); return n; }\n",
            100_000,
        ),
    ));
    let files = TempDir::new().expect("a temporary directory can be created");
    let source = files.path().join("input.cc");
    std::fs::write(&source, text).expect("a temporary directory can be written");
    let source = source
        .to_str()
        .expect("a temporary directory's name is text");
    let job = Job::new("g++", ["-S", "-O1", "-o", "/dev/null", source]);
    StackProgram {
        _files: Some(files),
        ..program("cc1plus", job, at_least)
    }
}

fn bash(amount: Amount) -> StackProgram {
    let (words, at_least) = amount.of(((50, 1_000), (3_000, 50_000)));
    let script = format!(
        r#"declare -A a; for ((i = 0; i < {words}; i++)); do a[$i]="x$i"; done
        f() {{ local x=${{1//1/2}}; echo "$x"; }}
        for i in 1 2 3; do y=$(f "$i$i"); done; echo "${{#a[@]}} $y" | cat"#
    );
    let job = Job::new("bash", ["--norc", "-c", &script]);
    program("bash", job, at_least)
}
