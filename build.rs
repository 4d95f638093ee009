//! Compiles the BPF programs and generates their skeletons into OUT_DIR.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use libbpf_cargo::SkeletonBuilder;

const OBJECTS: [&str; 4] = ["memleak", "memleak_old", "empty", "floor"];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set by cargo")?);
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "x86",
        Ok("aarch64") => "arm64",
        other => bail!("memleak supports x86_64 and aarch64, not {other:?}"),
    };
    // The debug information of the objects must not depend on the build directory.
    let here =
        env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set by cargo")?;
    let mut nowhere = OsString::from("-fdebug-prefix-map=");
    nowhere.push(&here);
    nowhere.push("=/memleak");
    for name in OBJECTS {
        let source = PathBuf::from(format!("bpf/{name}.bpf.c"));
        // BPF v3 has atomic operations. clang 14, the oldest that we build with, supports it.
        let args = ["-mcpu=v3", "-Wall", "-Werror"].map(OsString::from);
        let arch = OsString::from(format!("-D__TARGET_ARCH_{arch}"));
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{name}.bpf.o")))
            .clang_args(args.into_iter().chain([arch, nowhere.clone()]))
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .with_context(|| {
                format!(
                    "cannot compile {} (is clang installed? `make install-deps`)",
                    source.display()
                )
            })?;
    }
    if arch == "x86" {
        compile_inside(&out)?;
    }
    for directory in ["bpf", "inside"] {
        let entries = Path::new(directory).read_dir();
        for entry in entries.with_context(|| format!("cannot list {directory}/"))? {
            println!("cargo::rerun-if-changed={}", entry?.path().display());
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}

/// Compiles the code that counts in a process. It runs in the middle of anything, so it must not use vector registers,
/// tables of jumps, or functions that the compiler assumes.
fn compile_inside(out: &Path) -> Result<()> {
    let status = Command::new("clang")
        .args(["--target=x86_64-unknown-linux-gnu", "-c", "-O2", "-fPIC"])
        .args(["-ffreestanding", "-fno-builtin", "-fno-stack-protector"])
        .args([
            "-mgeneral-regs-only",
            "-fno-jump-tables",
            "-fcf-protection=branch",
        ])
        .args(["-fno-omit-frame-pointer", "-fasynchronous-unwind-tables"])
        .args(["-Wall", "-Wextra", "-Werror", "inside/inside.c", "-o"])
        .arg(out.join("inside.o"))
        .status()
        .context("cannot run clang (`make install-deps`)")?;
    ensure!(status.success(), "cannot compile inside/inside.c");
    Ok(())
}
