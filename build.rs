//! Compiles the BPF programs and generates their skeletons into OUT_DIR.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libbpf_cargo::SkeletonBuilder;

const OBJECTS: [&str; 3] = ["memleak", "memleak_old", "floor"];

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
    for entry in Path::new("bpf").read_dir().context("cannot list bpf/")? {
        println!("cargo::rerun-if-changed={}", entry?.path().display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
