//! A mount namespace of a child's own: how the child makes it, and how its parent gets hold of it.
//!
//! The child passes descriptors over a socket, because its parent may have no rights to `/proc/PID/ns` of a process that
//! has become another user, and `/proc` may show other pids. What is mounted in the namespace is left to `copies`.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The descriptors of a message: the namespace, and the child's root directory in it.
const DESCRIPTORS: usize = 2;

/// A mount namespace of a child.
#[derive(Debug)]
pub struct MountNamespace {
    pub(super) itself: OwnedFd,
    /// The child's root directory, which need not be the root of the namespace.
    pub(super) root: OwnedFd,
}

/// Why a child has no mount namespace of its own.
#[derive(Debug)]
pub enum Refused {
    Unshare(Errno),
    Open(Errno),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshare(errno) => write!(
                f,
                "cannot make a mount namespace for the command: {}; that takes CAP_SYS_ADMIN, and no seccomp \
                 filter that forbids unshare (--probes=shared takes neither)",
                errno.desc()
            ),
            Self::Open(errno) => write!(
                f,
                "cannot open the command's mount namespace in /proc/self/ns: {}; /proc must be mounted, `ulimit -n` \
                 must leave some descriptors, and an AppArmor profile of memleak's must have attach_disconnected \
                 (--probes=shared takes none of these)",
                errno.desc()
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// The parent's end and the child's end of the socket.
///
/// # Errors
/// There are too few descriptors.
pub fn socket() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Moves the calling child to a mount namespace of its own, and tells the parent. Makes only async-signal-safe calls.
/// Returns whether that worked.
pub fn move_to_own(socket: BorrowedFd<'_>) -> bool {
    let made = make();
    let (code, descriptors) = match &made {
        Ok(namespace) => (
            [0; 2],
            Some([namespace.itself.as_fd(), namespace.root.as_fd()]),
        ),
        Err(Refused::Unshare(errno)) => ([1, *errno as i32], None),
        Err(Refused::Open(errno)) => ([2, *errno as i32], None),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let [step, errno] = code.map(i32::to_ne_bytes);
    let bytes = [IoSlice::new(&step), IoSlice::new(&errno)];
    let sent = sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL);
    sent.is_ok() && made.is_ok()
}

fn make() -> Result<MountNamespace, Refused> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Refused::Unshare)?;
    let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(MountNamespace {
        itself: open(c"/proc/self/ns/mnt", file, Mode::empty()).map_err(cannot_open)?,
        root: open(c"/", root, Mode::empty()).map_err(cannot_open)?,
    })
}

fn cannot_open(error: rustix::io::Errno) -> Refused {
    Refused::Open(Errno::from_raw(error.raw_os_error()))
}

impl MountNamespace {
    /// Waits until the child has told. The parent must have closed the child's end of the socket. `None`: the child has
    /// ended, killed by somebody.
    ///
    /// # Errors
    /// The child could not make the namespace.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Self>, Refused> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut step, mut errno) = ([0; 4], [0; 4]);
        let length = loop {
            let mut bytes = [IoSliceMut::new(&mut step), IoSliceMut::new(&mut errno)];
            match recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(cannot_open(errno)),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let errno = Errno::from_raw(i32::from_ne_bytes(errno));
        match i32::from_ne_bytes(step) {
            0 => {}
            1 => return Err(Refused::Unshare(errno)),
            _ => return Err(Refused::Open(errno)),
        }
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let mut descriptors = rights.flatten();
        match (descriptors.next(), descriptors.next()) {
            (Some(itself), Some(root)) => Ok(Some(Self { itself, root })),
            // The limit of descriptors cuts the message.
            _ => Err(Refused::Open(Errno::EMFILE)),
        }
    }
}
