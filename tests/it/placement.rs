//! Where probes go in the C libraries that are here, and that the kernel does there what is said of it: an
//! emulated probe does not single-step, which shows in the kernel's page for that, and in what it costs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use memleak::code::placement::Kind;
use memleak::elf::file::ElfFile;
use memleak::find::findings::{Findings, find_sites};
use memleak::find::functions::Table;
use memleak::find::sites::Site;
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

/// The sites that a program's call comes to: __libc_start_main's is none of them.
fn called(findings: &Findings) -> impl Iterator<Item = &Site> {
    let sites = findings.sites.iter();
    sites.filter(|site| site.symbol != "__libc_start_main")
}

/// A line for each site, for people and for comparison: without the targets of jumps, which another build of the
/// same source may have elsewhere.
fn listed(findings: &Findings) -> String {
    let line = |site: &Site| {
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

/// Compares with what is written down for this very library. There are more libraries than could be written down:
/// another one must have a probe on each function that all of its family have. `PLACEMENTS=write` writes it down.
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
        "only its functions are compared: there is no {}",
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
    assert!(
        !lists.is_empty(),
        "nothing is written down for {family}*{end}"
    );
    let found = symbols(&found);
    for symbol in symbols(&lists[0]) {
        let common = lists.iter().all(|list| symbols(list).contains(symbol));
        assert!(!common || found.contains(symbol), "no probe on {symbol}");
    }
}

// ---- what probes cost ------------------------------------------------------------------------------------

/// A program that says what its calls take. Its loader and its C library are copies, which no other test's memleak
/// has probes on.
struct Program {
    path: PathBuf,
    loader: PathBuf,
    preload: Option<PathBuf>,
    place: Place,
}

/// What a probe turned out to be: the kernel mapped its page for single-stepped instructions, or did not. That is
/// certain; what it costs besides is what it is placed for.
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

    /// Nanoseconds that a call of the function takes, and of what kind a probe on it was, if there was one.
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

    /// The same, the shortest of some runs: what else the machine does makes calls longer, never shorter.
    #[track_caller]
    fn call_often(&self, function: &str) -> (i64, Kind) {
        let (prices, kinds): (Vec<_>, Vec<_>) = (0..RUNS).map(|_| self.call(function)).unzip();
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{function}");
        (prices.into_iter().min().unwrap(), kinds[0])
    }

    /// What a probe at an offset in a file is, and adds to a call.
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

/// Fails where a probe is not what its place says, or where probes at places of the one kind do not cost less than
/// at those of the other.
#[track_caller]
fn assert_kinds(program: &Program, library: &Path, findings: &Findings) {
    // Nobody else may have probes on the program meanwhile, nor on its copies.
    let _machine = machine::unwatched();
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    require_root();
    // What else the machine does may make a price wrong, but not again and again.
    let told = (0..3).any(|_| prices_tell_the_kinds(program, library, findings));
    assert!(told, "the prices are not those of the kinds");
}

/// Measures once, and fails where a probe is not what its place says. Whether the prices say the same.
#[track_caller]
fn prices_tell_the_kinds(program: &Program, library: &Path, findings: &Findings) -> bool {
    // Of two functions whose first instruction is of the one kind and of the other.
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
    // The median: the machine may have been busy all the time that one of them was called.
    emulated_prices.sort_unstable();
    let median = emulated_prices.get(emulated_prices.len() / 2);
    // Nearer to the one than to the other, as ratios go.
    let nearer = median.is_none_or(|&ns| ns < 0 || ns.pow(2) < emulated * stepped);
    0 < emulated && emulated * 3 / 2 < stepped && nearer
}

/// Where the functions lie in the program's file.
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

/// The C library of this program, which is that of all dynamic programs here but for those of other libraries.
fn glibc() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    // Up to 2.33, libc.so.6 is a link to a file with the version in its name.
    let path = files.find(|file| file.contains("/libc.so.6") || file.contains("/libc-2."));
    PathBuf::from(path.expect("this program has a C library of its own file"))
}

/// `glibc-2.36-debian`: what it says of itself when it is executed, as `GNU C Library (Debian GLIBC …) …
/// release version 2.36.`
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
fn probes_of_glibc_are_what_is_said_of_their_places() {
    let path = glibc();
    let findings = findings(&path);
    assert_as_written(&name_of(&path), &findings);
    let program = Program::new(fixture("prices"), &mapped("ld-"), Some(&path));
    assert_kinds(&program, &program.place.path("libc.so.6"), &findings);
}

#[test]
fn probes_of_musl_are_what_is_said_of_their_places() {
    let machine = std::env::consts::ARCH;
    let path = fs::canonicalize(format!("/lib/ld-musl-{machine}.so.1"));
    let path = path.expect("musl is needed: `make install-deps`");
    let findings = findings(&path);
    // Executed, it says: musl libc (…), Version 1.2.3, how to use it.
    let output = Command::new(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let version = said.lines().find_map(|line| line.strip_prefix("Version "));
    assert_as_written(&format!("musl-{}", version.unwrap()), &findings);
    let prices = compile_with("musl-gcc", "fixtures/prices.c", "prices_musl", &["-O1"]);
    let program = Program::new(prices, &path, None);
    assert_kinds(&program, &program.loader, &findings);
}

/// Flags for functions that begin with a mark of where jumps may land, as those of the C libraries of Ubuntu and RHEL
/// do, and the marks: endbr64, which the kernel does not emulate; `bti c`, or `paciasp`, which is one, too.
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
        // Some have no such place: compilers differ in what they compute first.
        behind += usize::from(site.placement.kind == Kind::Emulated);
    }
    assert!(behind > 0, "{}", listed(&findings));
    assert_eq!(called(&findings).count(), 4);
    let mut program = Program::new(fixture("prices"), &mapped("ld-"), Some(&glibc()));
    program.preload = Some(path.clone());
    assert_kinds(&program, &path, &findings);
}
