//! Private copies of files, mounted over these files in the mount namespace of a child.
//!
//! The copies are on a tmpfs that has no place in any namespace: only the mounts of the single files remain. All of it
//! goes when the namespace and memleak's descriptors have gone, however memleak ends. Which files are copied is left
//! to the caller.

use std::fs::{self, File, FileTimes};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::fchdir;
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, openat, openat2, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::os::namespace::MountNamespace;

/// The most bytes of a list of names, or of a value, of extended attributes (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const MAX_XATTR: usize = 1 << 16;

/// Both ends of a move are given by descriptors.
const BY_DESCRIPTORS: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);

const A_PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Copies that cover files in a namespace.
pub struct PrivateCopies {
    /// Open to be read, in the order of the files.
    pub copies: Vec<File>,
    /// Why mounts do not pass between the namespace and the caller's own. `None`: they do.
    pub apart: Option<Errno>,
}

/// A file that is to be covered.
pub struct CoveredFile<'a> {
    pub file: &'a File,
    /// What the copy contains. `None`: what the file contains.
    pub content: Option<&'a [u8]>,
}

impl MountNamespace {
    /// Copies these open files, and mounts the copies over the files' paths in the namespace. With `join`, what is
    /// mounted later in the namespace is mounted outside, too, and the other way round, where the caller's own mounts
    /// are shared.
    ///
    /// To be called once, before the child runs the command.
    ///
    /// # Errors
    /// The rights or the memory do not suffice, or a path leads to another file by now. The namespace is then of no
    /// use. Nothing has changed outside.
    pub fn cover(&self, files: &[CoveredFile<'_>], join: bool) -> Result<PrivateCopies> {
        let memory = tmpfs().context("cannot make a file system in memory for private probes")?;
        let mut originals = Vec::new();
        let unlimited = Unlimited::set();
        for (number, &CoveredFile { file, content }) in files.iter().enumerate() {
            let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .context("cannot tell the path of a file")?;
            let name = number.to_string();
            let copied = copy(file, content, memory.as_fd(), &name);
            let copy = copied.with_context(|| {
                format!("cannot make a private copy of {} in memory", path.display())
            })?;
            originals.push(Original {
                copy,
                flags: mount_flags(file)?,
                identity: identity(file)?,
                name,
                path,
            });
        }
        drop(unlimited);
        let descriptors = place_of(Path::new("/proc/self/fd"))?;
        let ours = File::open("/proc/self/ns/mnt").context("cannot open /proc/self/ns/mnt")?;
        let mounter = Mounter {
            namespace: self,
            memory,
            ours,
            descriptors,
        };
        // Only a thread with a file system context of its own may move to another mount namespace.
        let apart = thread::scope(|scope| {
            let thread = scope.spawn(|| mounter.mount(&originals, join));
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the thread that mounts private copies failed")))
        })?;
        Ok(PrivateCopies {
            copies: originals
                .into_iter()
                .map(|original| original.copy)
                .collect(),
            apart,
        })
    }
}

/// While this exists, memleak's files may have any length (RLIMIT_FSIZE). The limit is meant for the command.
struct Unlimited {
    before: Option<(rlim_t, rlim_t)>,
}

impl Unlimited {
    fn set() -> Self {
        let before = getrlimit(Resource::RLIMIT_FSIZE).ok();
        if let Some((_, hard)) = before {
            // Only with CAP_SYS_RESOURCE the hard limit may be raised. If no limit is enough, the copy fails.
            let _ = setrlimit(Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY)
                .or_else(|_| setrlimit(Resource::RLIMIT_FSIZE, hard, hard));
        }
        Self { before }
    }
}

impl Drop for Unlimited {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.before {
            let _ = setrlimit(Resource::RLIMIT_FSIZE, soft, hard);
        }
    }
}

/// A file that is to be covered.
struct Original {
    /// Without symbolic links, as memleak and the child see it.
    path: PathBuf,
    identity: (u64, u64),
    /// The flags of its mount that the copy's mount needs, too.
    flags: MsFlags,
    /// The name of the copy on the tmpfs.
    name: String,
    copy: File,
}

/// The thread that mounts, and what it needs.
struct Mounter<'a> {
    namespace: &'a MountNamespace,
    memory: OwnedFd,
    /// memleak's own mount namespace.
    ours: File,
    /// `/proc/self/fd`. In another namespace, no path leads there.
    descriptors: OwnedFd,
}

/// The root of a mount in the namespace, and the root of the mount outside that it is a copy of.
struct Pair {
    id: u64,
    there: OwnedFd,
    ours: OwnedFd,
}

impl Mounter<'_> {
    /// Mounts the copies. Returns why mounts do not pass between the namespaces, unless they do.
    fn mount(&self, originals: &[Original], join: bool) -> Result<Option<Errno>> {
        // Opened before this thread leaves memleak's root directory.
        let directories: Vec<_> = originals
            .iter()
            .map(|original| place_of(parent(&original.path)))
            .collect::<Result<_>>()?;
        let files: Vec<_> = originals
            .iter()
            .map(|original| place_of(&original.path))
            .collect::<Result<_>>()?;
        let root = place_of(Path::new("/"))?;
        let enter = |namespace: BorrowedFd<'_>| {
            setns(namespace, CloneFlags::CLONE_NEWNS)
                .context("cannot enter the command's mount namespace")
        };
        unshare(CloneFlags::CLONE_FS).context("cannot leave memleak's working directory")?;
        // This thread's root directory is now the root of the namespace. So the root of a mount can be reached, though
        // memleak's own root directory lies below it (chroot).
        enter(self.ours.as_fd())?;
        let mut ours = Vec::new();
        for (file, directory) in files.iter().zip(&directories) {
            ours.push(mount_root(file.as_fd(), directory.as_fd())?);
        }
        let our_root = mount_root(root.as_fd(), root.as_fd())?;
        enter(self.namespace.itself.as_fd())?;
        fchdir(&self.descriptors).context("cannot enter /proc/self/fd")?;

        let mut targets = Vec::new();
        let mut pairs: Vec<Pair> = Vec::new();
        for (original, ours) in originals.iter().zip(ours) {
            let target = self.place(&original.path)?;
            ensure!(
                identity(&target)? == original.identity,
                "{} was replaced while memleak started: run it again",
                original.path.display()
            );
            let directory = self.place(parent(&original.path))?;
            let there = mount_root(target.as_fd(), directory.as_fd())?;
            add(&mut pairs, there, ours)?;
            targets.push(target);
        }
        // The place where the tmpfs is attached for a moment must be a directory.
        let root = self.namespace.root.as_fd();
        add(&mut pairs, mount_root(root, root)?, our_root)?;
        for pair in &pairs {
            let private = MsFlags::MS_PRIVATE;
            mount_at(pair.there.as_fd(), private)
                .context("cannot make a mount of the command's namespace private")?;
        }
        self.mount_over(originals, &targets)?;
        let mut apart = None;
        for pair in &pairs {
            let joined = match join {
                true => set_group(pair),
                false => Err(Errno::EOPNOTSUPP),
            };
            apart = apart.or(joined.err());
        }
        Ok(apart)
    }

    /// Mounts each copy over its target.
    fn mount_over(&self, originals: &[Original], targets: &[OwnedFd]) -> Result<()> {
        let memory = self.memory.as_fd();
        // Before Linux 6.15, only what is mounted in a namespace can be mounted a second time.
        move_mount(memory, "", self.namespace.root.as_fd(), "", BY_DESCRIPTORS)
            .context("cannot mount the file system of private copies")?;
        for (original, target) in originals.iter().zip(targets) {
            let over = || -> io::Result<()> {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let copy = open_tree(memory, &*original.name, flags)?;
                move_mount(&copy, "", target, "", BY_DESCRIPTORS)?;
                // What would be written to a copy would be lost.
                let flags = original.flags | MsFlags::MS_RDONLY;
                let change = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
                Ok(mount_at(copy.as_fd(), change | flags)?)
            };
            over().with_context(|| {
                let path = original.path.display();
                format!("cannot mount a private copy over {path}")
            })?;
        }
        let name = &*memory.as_raw_fd().to_string();
        umount2(name, MntFlags::MNT_DETACH).context("cannot hide the private copies")
    }

    /// A place in the namespace, by a path that memleak and the child see.
    fn place(&self, path: &Path) -> Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let below = path.strip_prefix("/").unwrap_or(path);
        let below = match below.as_os_str().is_empty() {
            true => Path::new("."),
            false => below,
        };
        openat2(&self.namespace.root, below, A_PLACE, Mode::empty(), inside).with_context(|| {
            format!(
                "cannot find {} in the command's mount namespace",
                path.display()
            )
        })
    }
}

/// An empty file system in memory, mounted nowhere.
fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "memleak")?;
    fsconfig_create(context.as_fd())?;
    // memleak reads the copies, which must not show in their times.
    let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Makes a copy with this or the same content, and the same owner, mode, extended attributes and times. Returns it open to be read only,
/// because a file that is open to be written cannot be executed.
fn copy(
    original: &File,
    content: Option<&[u8]>,
    directory: BorrowedFd<'_>,
    name: &str,
) -> io::Result<File> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut copy = File::from(openat(directory, name, create, Mode::RUSR)?);
    let metadata = original.metadata()?;
    match content {
        Some(content) => copy.write_all(content)?,
        None => {
            let mut content = original;
            content.rewind()?;
            io::copy(&mut content, &mut copy)?;
        }
    }
    let (owner, group) = (metadata.uid(), metadata.gid());
    // A change of the owner takes the set-user-ID bit and capabilities away, so it comes first.
    fchown(
        &copy,
        Some(Uid::from_raw(owner)),
        Some(Gid::from_raw(group)),
    )?;
    fchmod(&copy, Mode::from_raw_mode(metadata.mode()))?;
    copy_attributes(original, &copy)?;
    let times = FileTimes::new().set_accessed(metadata.accessed()?);
    copy.set_times(times.set_modified(metadata.modified()?))?;
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(directory, name, read, Mode::empty())?.into())
}

/// Copies the extended attributes. Those of users, which a tmpfs has from Linux 6.6 on, may be missing.
fn copy_attributes(original: &File, copy: &File) -> io::Result<()> {
    let mut names = vec![0; MAX_XATTR];
    let length = match flistxattr(original, &mut names) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut value = vec![0; MAX_XATTR];
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let length = fgetxattr(original, name, &mut value)?;
        match fsetxattr(copy, name, &value[..length], XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) if name.starts_with(b"user.") => {}
            done => done?,
        }
    }
    Ok(())
}

/// The flags of a file's mount that decide what the file may do.
fn mount_flags(file: &File) -> Result<MsFlags> {
    let has = fstatvfs(file)
        .context("cannot tell the flags of a mount")?
        .flags();
    let flags = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let wanted = flags.into_iter().filter(|(flag, _)| has.contains(*flag));
    Ok(wanted.map(|(_, flag)| flag).collect())
}

fn identity(file: impl AsFd) -> Result<(u64, u64)> {
    let status = rustix::fs::fstat(file).context("cannot look at a file")?;
    Ok((status.st_dev, status.st_ino))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A place that memleak sees, not opened to be read.
fn place_of(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, A_PLACE, Mode::empty())
        .with_context(|| format!("cannot find {}", path.display()))
}

/// The root of the mount that a file is in. `directory` contains the file.
fn mount_root(file: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut at = file.try_clone_to_owned()?;
    let mut next = directory.try_clone_to_owned()?;
    while !mount_of(&at)?.is_root {
        let up = openat(&next, "..", A_PLACE, Mode::empty());
        let up = up.context("cannot find the root of a mount")?;
        ensure!(
            identity(&next)? != identity(&up)? || mount_of(&next)?.is_root,
            "cannot reach the root of the mount of an allocator's file"
        );
        at = std::mem::replace(&mut next, up);
    }
    Ok(at)
}

/// What the kernel says of the mount of a place.
struct MountOf {
    id: u64,
    /// The place is the root of the mount.
    is_root: bool,
}

fn mount_of(place: impl AsFd) -> Result<MountOf> {
    let found = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .context("cannot look at a mount")?;
    Ok(MountOf {
        id: found.stx_mnt_id,
        is_root: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// Adds a mount, unless it is among the pairs already.
fn add(pairs: &mut Vec<Pair>, there: OwnedFd, ours: OwnedFd) -> Result<()> {
    let id = mount_of(&there)?.id;
    if pairs.iter().all(|pair| pair.id != id) {
        pairs.push(Pair { id, there, ours });
    }
    Ok(())
}

/// mount(2) without a source. The working directory must be `/proc/self/fd`.
fn mount_at(place: BorrowedFd<'_>, flags: MsFlags) -> nix::Result<()> {
    let name = &*place.as_raw_fd().to_string();
    mount(None::<&str>, name, None::<&str>, flags, None::<&str>)
}

/// Makes a private mount share what is mounted below it with the mount that it is a copy of (Linux 5.15).
fn set_group(pair: &Pair) -> nix::Result<()> {
    let flags = BY_DESCRIPTORS | MoveMountFlags::MOVE_MOUNT_SET_GROUP;
    move_mount(&pair.ours, "", &pair.there, "", flags)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}
