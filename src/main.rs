use memleak::{allocator, collect, probe};
use std::os::fd::*;
fn main() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let mut p = [0; 2];
    unsafe { libc::pipe(p.as_mut_ptr()) };
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut b = [0u8; 1];
        unsafe {
            libc::close(p[1]);
            libc::read(p[0], b.as_mut_ptr().cast(), 1);
            libc::close(p[0]);
        }
        use std::os::unix::process::CommandExt;
        let e = std::process::Command::new(&args[0]).args(&args[1..]).exec();
        eprintln!("{e}");
        std::process::exit(127);
    }
    let t = std::time::Instant::now();
    let m = std::env::var("METHOD").ok().map(|m| match m.as_str() {
        "multi" => probe::attach::Method::Multi,
        "perf" => probe::attach::Method::PerfEvent,
        _ => probe::attach::Method::Session,
    });
    let s = collect::Settings {
        max_blocks: std::env::var("MAX")
            .ok()
            .and_then(|x| x.parse().ok())
            .unwrap_or(4 << 20),
        method: m,
        floor: std::env::var("FLOOR").is_ok(),
    };
    let mut c = match collect::Collector::load(&s) {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e} {:?}\n{}", e, collect::take_messages());
            std::process::exit(125)
        }
    };
    eprintln!("load {:?}", t.elapsed());
    let env = allocator::loader::Environment::of_this_process();
    let t = std::time::Instant::now();
    let al = allocator::find(&args[0], &env, &probe::table::LIBC)?;
    eprintln!("find {:?}", t.elapsed());
    let t = std::time::Instant::now();
    for a in al {
        for s in &a.findings.sites {
            eprintln!(
                "{} {} +{} {} {} {}",
                a.path.display(),
                s.symbol,
                s.placement.offset,
                s.placement.instruction,
                s.placement.kind,
                s.placement.reason
            );
        }
        c.probe(a)?;
    }
    eprintln!("attach {:?} {}", t.elapsed(), c.method());
    let fd = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) };
    c.follow(fd.as_fd())?;
    unsafe {
        libc::write(p[1], b"x".as_ptr().cast(), 1);
        libc::close(p[1]);
    }
    let mut st = 0;
    loop {
        let r = unsafe { libc::waitpid(pid, &mut st, libc::WNOHANG) };
        for i in c.take_ended()? {
            eprintln!(
                "{} {} {} img{} {:?} {:?} {:?} {:?} {:?} {}",
                i.pid,
                i.ppid,
                String::from_utf8_lossy(&i.comm),
                i.image,
                i.end,
                i.exe,
                i.counters,
                i.losses,
                i.allocators,
                i.uid
            );
        }
        if r == pid {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for i in c.running()? {
        eprintln!(
            "{} {} {} img{} {:?} {:?} {:?} {:?} {:?} {}",
            i.pid,
            i.ppid,
            String::from_utf8_lossy(&i.comm),
            i.image,
            i.end,
            i.exe,
            i.counters,
            i.losses,
            i.allocators,
            i.uid
        );
    }
    let t = std::time::Instant::now();
    c.detach();
    eprintln!(
        "detach {:?} late {} lost {:?}",
        t.elapsed(),
        c.late_threads(),
        c.losses()
    );
    Ok(())
}
