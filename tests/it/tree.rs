//! Tests that memleak is exact on real software, which this project did not write. The tests compare whole process
//! trees with the interposing counter in the same run, because both see the same calls. They also compare totals with
//! valgrind's.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::stack_programs::python;
use crate::common::{Counted, Job, code, files, probes, valgrind_totals};
use tempfile::TempDir;

/// Runs a job under both counters. Fails unless the job exits with 0 and both counts are equal. The tree must have at
/// least `processes` processes, among them `programs`: the counts of a tree that fails early could agree by chance.
#[track_caller]
fn assert_exact_tree(job: &Job, processes: u64, programs: &[&str]) -> Counted {
    let counted = job.run_counted();
    let report = &counted.report;
    assert_eq!(
        code(report.status),
        0,
        "{}\n{}",
        report.stdout,
        report.stderr
    );
    counted.assert_equal_counts();
    assert!(
        report.summary.processes >= processes,
        "only {} processes",
        report.summary.processes
    );
    let paths = counted.programs();
    let seen: BTreeSet<_> = paths.iter().filter_map(|path| path.file_name()).collect();
    for program in programs {
        assert!(
            seen.iter()
                .any(|name| name.to_string_lossy().starts_with(program)),
            "no {program} among {seen:?}"
        );
    }
    counted
}

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().expect("a directory")).expect("the directory can be made");
    files::write_script(&path, text, 0o644);
}

#[test]
fn a_shell_pipeline_is_exact() {
    for shell in ["sh", "bash"] {
        let job = Job::new(
            shell,
            [
                "-c",
                "for i in 1 2 3; do ls -l /usr | sort -r | wc -l; done",
            ],
        );
        assert_exact_tree(&job, 10, &["ls", "sort", "wc"]);
    }
}

#[test]
fn command_substitutions_and_subshells_are_exact() {
    let script = "x=$(echo $(seq 1000) | tr ' ' '\\n' | tail -1); (cd /; (exec ls) | cat >/dev/null) & wait; \
                  [ $x = 1000 ]";
    for shell in ["sh", "bash"] {
        assert_exact_tree(
            &Job::new(shell, ["-c", script]),
            6,
            &["seq", "tail", "ls", "cat"],
        );
    }
}

#[test]
fn git_with_a_hook_is_exact() {
    let repository = TempDir::new().expect("a temporary directory");
    write(repository.path(), "a.txt", &"one line\n".repeat(1000));
    let home = TempDir::new().expect("a temporary directory");
    // Without the last two settings git leaves a process that continues after the command.
    let config = "[user]\nname = A\nemail = a@example.org\n[gc]\nautoDetach = false\n[maintenance]\nauto = false\n";
    write(home.path(), ".gitconfig", config);
    // The hook's process tree hangs below git's.
    let script = "git init -q . && \
        printf '#!/bin/sh\\ngit log -1 --format=%%s | grep -q first && sort a.txt | uniq -c >counted\\n' \
            >.git/hooks/post-commit && \
        chmod +x .git/hooks/post-commit && \
        git add a.txt && git commit -q -m 'the first' && test -s counted && \
        git log --stat | cat && git status && git gc -q";
    let job = Job::shell(script)
        .in_directory(repository.path())
        .env("HOME", home.path())
        .env("GIT_CONFIG_NOSYSTEM", "1");
    assert_exact_tree(&job, 12, &["git", "uniq"]);
}

#[test]
fn make_with_compiler_processes_is_exact() {
    let project = TempDir::new().expect("a temporary directory");
    let mut makefile = "all: program\n\t./program\n".to_string();
    makefile += "program: a.o b.o c.o\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n";
    write(project.path(), "Makefile", &makefile);
    for (name, calls) in [("b", "c"), ("c", "strlen")] {
        let text = format!(
            "#include <string.h>\nint {calls}_of(const char *);\nint {name}(const char *s) \
             {{ return (int)strlen(s); }}\n"
        );
        write(project.path(), &format!("{name}.c"), &text);
    }
    let main = "#include <stdio.h>\nint b(const char *), c(const char *);\n\
                int main(void) { printf(\"%d\\n\", b(\"12\") + c(\"3\")); return 0; }\n";
    write(project.path(), "a.c", main);
    // Under `make test` this is a make in a make, which would print the directory that it enters and leaves.
    let job = Job::new("make", ["-j2", "--no-print-directory"]).in_directory(project.path());
    let counted = assert_exact_tree(&job, 12, &["make", "cc1", "program"]);
    assert!(
        counted.report.stdout.ends_with("3\n"),
        "{}",
        counted.report.stdout
    );
}

#[test]
fn python_with_subprocesses_is_exact() {
    let script = "
import subprocess, sys
subprocess.run(['ls', '-l', '/usr'], stdout=subprocess.DEVNULL, check=True)
out = subprocess.check_output('seq 100 | tail -1', shell=True)
assert out == b'100\\n'
subprocess.run([sys.executable, '-c', 'print(sum(range(1000)))'], check=True)
";
    let counted = assert_exact_tree(
        &Job::new(python(), ["-c", script]),
        6,
        &["python3", "ls", "tail"],
    );
    assert!(counted.report.stdout.ends_with("499500\n"));
}

#[test]
fn python_with_multiprocessing_is_exact() {
    let script = "
import multiprocessing as mp
from multiprocessing import resource_tracker
def work(n):
    return sum(len(str(i)) for i in range(n))
if __name__ == '__main__':
    for method in 'fork', 'spawn':
        with mp.get_context(method).Pool(2) as pool:
            assert len(pool.map(work, [1000] * 4)) == 4
            pool.close()
            pool.join()
    # `spawn` starts a process that would end only some time after this one.
    resource_tracker._resource_tracker._stop()
";
    // With `spawn` the children read the script again, so it must be a file.
    let directory = TempDir::new().expect("a temporary directory");
    write(directory.path(), "pool.py", script);
    let job = Job::new(python(), ["pool.py"]).in_directory(directory.path());
    assert_exact_tree(&job, 5, &["python3"]);
}

#[test]
fn perl_with_fork_and_system_is_exact() {
    let script = r#"
        my %h = map { $_ => "x" x $_ } 1 .. 500;
        for my $i (1 .. 3) {
            my $pid = fork // die;
            if (!$pid) { delete $h{$_} for 1 .. 100 * $i; my @more = (1 .. 1000); exit 0 }
        }
        1 while wait > 0;
        system("ls /usr | sort > /dev/null") == 0 or die;
        system("wc", "-l", "/etc/passwd") == 0 or die;
        my $out = `seq 10 | tail -1`;
        $out == 10 or die;
    "#;
    assert_exact_tree(
        &Job::new("perl", ["-e", script]),
        9,
        &["perl", "wc", "sort"],
    );
}

#[test]
fn a_chain_of_interpreters_is_exact() {
    let directory = TempDir::new().expect("a temporary directory");
    write(
        directory.path(),
        "first",
        "#!/bin/sh\nX=1 exec env Y=2 \"$(dirname \"$0\")/second\"\n",
    );
    write(
        directory.path(),
        "second",
        "#!/usr/bin/env bash\nexec nice -n 1 sh -c 'exec ls /usr'\n",
    );
    for name in ["first", "second"] {
        let path = directory.path().join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .expect("the mode can be changed");
    }
    let job = Job::new(directory.path().join("first"), [""; 0]);
    let counted = assert_exact_tree(&job, 1, &["env", "bash", "nice", "ls"]);
    let chain = counted.report.rows.iter().map(|row| row.image).max();
    // The images are sh, env, env (of the second script's first line), bash, nice, sh, ls. With the counter, preload
    // comes first.
    let first = u32::from(!probes::are_inside());
    assert_eq!(chain, Some(first + 6), "{:#?}", counted.report.rows);
}

#[test]
fn totals_of_single_programs_equal_those_of_valgrind() {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/common/mod.rs");
    let jobs = [
        Job::new("ls", ["-l", "/usr"]),
        Job::new("sort", ["-r", sources]),
        Job::new("grep", ["-c", "fn [a-z]*(", sources]),
        Job::new("sed", ["-n", "s/pub fn \\([a-z_]*\\)/\\1/p", sources]),
        Job::new("wc", [sources]),
    ];
    for job in jobs {
        let report = job.run();
        report.assert_complete();
        let row = report.only_row();
        assert!(row.counts.alloc_count > 0, "{row:#?}");
        assert_eq!(
            (row.counts.alloc_count, row.counts.total_allocs_bytes),
            valgrind_totals(&job),
            "{}",
            row.comm
        );
    }
}
