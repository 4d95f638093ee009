//! ELF files and their symbols. Which symbols matter is left to `find`.

pub mod file;
pub mod frames;
pub mod handlers;
pub mod symbols;
pub mod unwind;

/// Files for tests, including those of other modules.
#[cfg(test)]
pub(crate) mod samples {
    use std::fs::{self, File};
    use std::process::Command;

    /// A library made of assembly, with these flags of the compiler.
    pub(crate) fn library(text: &str, flags: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let [source, path] = ["source.s", "library"].map(|name| directory.path().join(name));
        fs::write(&source, text).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-nostdlib"]).args(flags);
        let status = cc.arg("-o").args([&path, &source]).status();
        assert!(status.unwrap().success());
        fs::read(path).unwrap()
    }

    /// The libraries of the test itself, with their paths.
    pub(crate) fn mapped_libraries() -> Vec<(String, File)> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let code = maps.lines().filter(|line| line.contains("r-xp"));
        let paths = code.filter_map(|line| line.split_whitespace().nth(5));
        let libraries = paths.filter(|path| path.contains(".so"));
        libraries
            .map(|path| (path.to_owned(), File::open(path).unwrap()))
            .collect()
    }
}
