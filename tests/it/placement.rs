//! Tests where memleak places probes in the C libraries of this machine, and whether the kernel emulates or
//! single-steps each probe as predicted. An emulated probe does not single-step. This shows in the kernel's page for
//! single-stepped instructions, and in the probe's cost.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use memleak::code::placement::Kind;
use memleak::elf::file::ElfFile;
use memleak::find::findings::{Findings, find_sites};
use memleak::find::functions::Table;
use memleak::find::sites::ProbeSite;
use memleak::kernel::empty::EmptyProbes;
use memleak::kernel::method::Method;
use memleak::os::root::Root;

use crate::common::fixtures::compile_with;
use crate::common::machine;
use crate::common::newcomers::{Place, mapped};
use crate::common::root::require_root;
use crate::common::{compile, fixture};

fn findings(path: &Path) -> Findings {
    let file = File::open(path).unwrap();
    let table = Table::new(Vec::new()).unwrap();
    find_sites(&file, path, &Root::ours(), &table).unwrap()
}

/// The sites that a program's call reaches. The site of __libc_start_main is not one of them.
fn called(findings: &Findings) -> impl Iterator<Item = &ProbeSite> {
    let sites = findings.sites.iter();
    sites.filter(|site| site.symbol != "__libc_start_main")
}

/// Returns a line for each site, for people and for comparison. The lines omit the targets of jumps, which can differ
/// between builds of the same source.
fn listed(findings: &Findings) -> String {
    let line = |site: &ProbeSite| {
        let text = format!("{} {}", site.symbol, site.placement);
        let words = text.split(' ').filter(|word| !word.starts_with("0x"));
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    let mut lines: Vec<_> = findings.sites.iter().map(line).collect();
    lines.sort();
    lines.concat()
}

/// The first words of a list's lines.
fn symbols(list: &str) -> BTreeSet<&str> {
    let words = list.lines().map(|line| line.split(' ').next());
    words.map(Option::unwrap_or_default).collect()
}

/// Compares the findings with the list in tests/placements/ for this library. Not every library has a list. A library
/// without a list must have a probe on each function that all lists of its family name. `PLACEMENTS=write` writes the
/// list.
#[track_caller]
fn assert_as_written(name: &str, findings: &Findings) {
    let found = listed(findings);
    println!("{name}:\n{found}");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/placements");
    let end = format!("-{}.txt", std::env::consts::ARCH);
    let path = directory.join(format!("{name}{end}"));
    if std::env::var_os("PLACEMENTS").is_some_and(|value| value == "write") {
        fs::write(&path, &found).unwrap();
    }
    if let Ok(written) = fs::read_to_string(&path) {
        assert_eq!(found, written, "{}", path.display());
        return;
    }
    println!(
        "only its functions are compared, because there is no {}",
        path.display()
    );
    let (family, _) = name.split_once('-').expect("NAME-VERSION");
    let family = format!("{family}-");
    let of_family = |name: &str| name.starts_with(&family) && name.ends_with(&end);
    let lists: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| of_family(&entry.file_name().to_string_lossy()))
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect();
    assert!(!lists.is_empty(), "there is no list for {family}*{end}");
    let found = symbols(&found);
    for symbol in symbols(&lists[0]) {
        let common = lists.iter().all(|list| symbols(list).contains(symbol));
        assert!(!common || found.contains(symbol), "no probe on {symbol}");
    }
}

// ---- the cost of probes ----------------------------------------------------------------------------------

/// A program that prints how long its calls take. Its loader and its C library are copies, on which the memleak of no
/// other test has probes.
struct Program {
    path: PathBuf,
    loader: PathBuf,
    preload: Option<PathBuf>,
    place: Place,
}

/// The measured kind and cost of a probe. The kind is certain: for a single-stepped probe the kernel maps its page for
/// single-stepped instructions. The cost is the reason for the choice of place.
struct Probe {
    kind: Kind,
    ns: i64,
}

impl Program {
    fn new(path: PathBuf, loader: &Path, libc: Option<&Path>) -> Self {
        let place = Place::new();
        let loader = place.copy(loader, "loader");
        if let Some(libc) = libc {
            place.copy(libc, "libc.so.6");
        }
        Self {
            path,
            loader,
            preload: None,
            place,
        }
    }

    /// The nanoseconds that a call of the function takes, and the kind of the probe on it, if there was a probe.
    #[track_caller]
    fn call(&self, function: &str) -> (i64, Kind) {
        let output = Command::new(&self.loader)
            .arg("--library-path")
            .arg(self.place.path(""))
            .arg(&self.path)
            .arg(function)
            .env_remove("LD_PRELOAD")
            .envs(self.preload.iter().map(|library| ("LD_PRELOAD", library)))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let (price, kind) = match said.trim().split_once(' ') {
            Some((price, "emulated")) => (price.parse(), Kind::Emulated),
            Some((price, "single-stepped")) => (price.parse(), Kind::SingleStepped),
            _ => panic!("{function}: {output:?}"),
        };
        (price.unwrap(), kind)
    }

    /// The same as `call`, from the shortest of `RUNS` runs: other load on the machine makes calls longer, never
    /// shorter.
    #[track_caller]
    fn call_often(&self, function: &str) -> (i64, Kind) {
        let (prices, kinds): (Vec<_>, Vec<_>) = (0..RUNS).map(|_| self.call(function)).unzip();
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{function}");
        (prices.into_iter().min().unwrap(), kinds[0])
    }

    /// The kind of a probe at an offset in a file, and the time that it adds to a call.
    #[track_caller]
    fn probe(&self, function: &str, file: &Path, offset: u64) -> Probe {
        let (bare, _) = self.call_often(function);
        let file = File::open(file).unwrap();
        let attach = |method| EmptyProbes::attach(method, &file, &[offset]).ok();
        let probe = [Method::Multi, Method::PerfEvent]
            .into_iter()
            .find_map(attach);
        assert!(probe.is_some(), "no probe at {offset:#x} for {function}");
        let (probed, kind) = self.call_often(function);
        Probe {
            kind,
            ns: probed - bare,
        }
    }
}

const RUNS: usize = 8;

/// Fails if a probe is not of the kind that its placement says, or if emulated probes do not cost less than
/// single-stepped ones.
#[track_caller]
fn assert_kinds(program: &Program, library: &Path, findings: &Findings) {
    // During the measurement no other memleak may have probes on the program or on its copies.
    let _machine = machine::unwatched();
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    require_root();
    // Other load on the machine can make a measured cost wrong, but not three times in a row.
    let agree = (0..3).any(|_| prices_agree_with_kinds(program, library, findings));
    assert!(agree, "the costs do not agree with the kinds of the probes");
}

/// Measures once, and fails if a probe is not of the kind that its placement says. Returns whether the costs agree with
/// the kinds.
#[track_caller]
fn prices_agree_with_kinds(program: &Program, library: &Path, findings: &Findings) -> bool {
    // The first instruction of one function is emulated, and that of the other is single-stepped.
    let own = elf_offsets(&program.path, ["emulated", "single_stepped"]);
    let own = own.map(|(name, offset)| program.probe(name, &program.path, offset));
    let kinds = own.each_ref().map(|probe| probe.kind);
    assert_eq!(kinds, [Kind::Emulated, Kind::SingleStepped]);
    let [emulated, stepped] = own.map(|probe| probe.ns);
    println!("emulated: {emulated} ns, single-stepped: {stepped} ns");

    let mut emulated_prices = Vec::new();
    for site in called(findings) {
        let probe = program.probe(&site.symbol, library, site.file_offset);
        println!("{} {}: {} ns", site.symbol, site.placement, probe.ns);
        assert_eq!(probe.kind, site.placement.kind, "{}", site.symbol);
        if probe.kind == Kind::Emulated {
            emulated_prices.push(probe.ns);
        }
    }
    // Uses the median, because the machine can be busy during all calls of one function.
    emulated_prices.sort_unstable();
    let median = emulated_prices.get(emulated_prices.len() / 2);
    // The median is nearer to the emulated cost than to the single-stepped one, by ratio.
    let nearer = median.is_none_or(|&ns| ns < 0 || ns.pow(2) < emulated * stepped);
    0 < emulated && emulated * 3 / 2 < stepped && nearer
}

/// The offsets of the functions in the program's file.
fn elf_offsets(program: &Path, names: [&'static str; 2]) -> [(&'static str, u64); 2] {
    let output = Command::new("nm").arg(program).output().unwrap();
    let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
    let file = File::open(program).unwrap();
    let elf = ElfFile::open(&file).unwrap();
    names.map(|name| {
        let address = symbols.lines().find_map(|line| {
            let (address, symbol) = line.split_once(" T ")?;
            (symbol == name).then(|| u64::from_str_radix(address, 16).unwrap())
        });
        let address = address.unwrap_or_else(|| panic!("no {name} in {}", program.display()));
        let segment = elf.text_segment(address).unwrap();
        (name, segment.offset + (address - segment.address))
    })
}

// ---- the libraries ---------------------------------------------------------------------------------------

/// The C library of this test program. All dynamic programs of this machine use it, except those built with another C
/// library.
fn glibc() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    // Up to 2.33, libc.so.6 is a link to a file with the version in its name.
    let path = files.find(|file| file.contains("/libc.so.6") || file.contains("/libc-2."));
    PathBuf::from(path.expect("this program has a C library of its own file"))
}

/// A name such as `glibc-2.36-debian`. It comes from the line that the library prints when it is executed:
/// `GNU C Library (Debian GLIBC …) … release version 2.36.`
fn name_of(glibc: &Path) -> String {
    let output = Command::new(glibc).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().next().unwrap();
    let version = said.rsplit(' ').next().unwrap().trim_end_matches('.');
    let vendor = said.split_once('(').map_or("gnu", |(_, vendor)| {
        vendor.split(' ').next().unwrap_or_default()
    });
    format!("glibc-{version}-{}", vendor.to_lowercase())
}

#[test]
fn probes_of_glibc_are_of_the_kind_that_their_placement_says() {
    let path = glibc();
    let findings = findings(&path);
    assert_as_written(&name_of(&path), &findings);
    let program = Program::new(fixture("prices"), &mapped("ld-"), Some(&path));
    assert_kinds(&program, &program.place.path("libc.so.6"), &findings);
}

#[test]
fn probes_of_musl_are_of_the_kind_that_their_placement_says() {
    let machine = std::env::consts::ARCH;
    let path = fs::canonicalize(format!("/lib/ld-musl-{machine}.so.1"));
    let path = path.expect("musl is needed: `make install-deps`");
    let findings = findings(&path);
    // When executed, musl prints these lines: `musl libc (…)`, `Version 1.2.3` and its usage.
    let output = Command::new(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let version = said.lines().find_map(|line| line.strip_prefix("Version "));
    assert_as_written(&format!("musl-{}", version.unwrap()), &findings);
    let prices = compile_with("musl-gcc", "fixtures/prices.c", "prices_musl", &["-O1"]);
    let program = Program::new(prices, &path, None);
    assert_kinds(&program, &program.loader, &findings);
}

/// The compiler flag for functions that begin with a landing pad, and the bytes of the landing pads. The C libraries of
/// Ubuntu and RHEL have them. On x86_64 the landing pad is `endbr64`, which the kernel does not emulate. On aarch64 it
/// is `bti c` or `paciasp`.
#[cfg(target_arch = "x86_64")]
const LANDING: (&str, &[[u8; 4]]) = ("-fcf-protection=full", &[[0xf3, 0x0f, 0x1e, 0xfa]]);
#[cfg(target_arch = "aarch64")]
const LANDING: (&str, &[[u8; 4]]) = (
    "-mbranch-protection=standard",
    &[[0x5f, 0x24, 0x03, 0xd5], [0x3f, 0x23, 0x03, 0xd5]],
);

#[test]
fn probes_of_a_library_with_landing_pads_are_placed_behind_them() {
    let (flag, pads) = LANDING;
    let path = compile(
        "fixtures/bump_allocator.c",
        "libbump_allocator_with_pads.so",
        &["-O2", flag],
    );
    let findings = findings(&path);
    println!("{}", listed(&findings));
    let bytes = fs::read(&path).unwrap();
    let mut behind = 0;
    for site in called(&findings) {
        let entry = (site.file_offset - site.placement.offset) as usize;
        let pad = pads.iter().any(|pad| bytes[entry..].starts_with(pad));
        assert!(pad, "{site:?}");
        // Some functions have no place for an emulated probe: compilers differ in the instructions they put first.
        behind += usize::from(site.placement.kind == Kind::Emulated);
    }
    assert!(behind > 0, "{}", listed(&findings));
    assert_eq!(called(&findings).count(), 4);
    let mut program = Program::new(fixture("prices"), &mapped("ld-"), Some(&glibc()));
    program.preload = Some(path.clone());
    assert_kinds(&program, &path, &findings);
}
