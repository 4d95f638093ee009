//! Users: the user that the command is to run as, and the user whose files memleak writes.
//!
//! All look-ups are done here, before any fork. The C library's user database may open files and sockets, and may
//! allocate. A child must not do that between fork and exec.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, io};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist, getgroups};

use crate::os::capabilities::Capabilities;
use crate::os::inherited;
use crate::text::escape;

/// The user named by `--user`, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserSpec {
    /// `sudo`: the user who called sudo.
    Sudo,
    /// A name, and a group if one was given.
    Name(String, Option<u32>),
    /// A number, and a group if one was given.
    Id(u32, Option<u32>),
}

/// Words that name no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' names no user: write a name or a user id, each may be followed by :GID, or write sudo for the user who called sudo", escape::escaped(.0.as_bytes()))]
pub struct UserSpecError(String);

impl FromStr for UserSpec {
    type Err = UserSpecError;

    fn from_str(words: &str) -> Result<Self, UserSpecError> {
        let wrong = || UserSpecError(words.to_owned());
        let (user, group) = match words.split_once(':') {
            Some((user, group)) => (user, Some(id(group).ok_or_else(wrong)?)),
            None => (words, None),
        };
        match (user, id(user)) {
            ("sudo", _) if group.is_none() => Ok(Self::Sudo),
            (_, Some(uid)) => Ok(Self::Id(uid, group)),
            // A number that is too large or negative is not a name either.
            _ if user.is_empty()
                || user.starts_with(|c: char| c.is_ascii_digit() || "-+".contains(c)) =>
            {
                Err(wrong())
            }
            _ if user.contains('\0') => Err(wrong()),
            _ => Ok(Self::Name(user.to_owned(), group)),
        }
    }
}

/// Parses a user or group id. The highest number means "unchanged" to setresuid and similar calls, so it is not an id.
fn id(digits: &str) -> Option<u32> {
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse()
        .ok()
        .filter(|id| only_digits && *id != u32::MAX)
}

/// A user, with everything that a login would give to a process of that user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// The user's entry in the user database, if there is one.
    entry: Option<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    home: PathBuf,
}

/// A step of [`Identity::assume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    Groups = 1,
    Group,
    User,
    Capabilities,
}

impl Step {
    /// The step with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Groups, Self::Group, Self::User, Self::Capabilities]
            .into_iter()
            .find(|step| *step as i32 == number)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Groups => "setgroups",
            Self::Group => "setgid",
            Self::User => "setuid",
            Self::Capabilities => "giving up capabilities",
        })
    }
}

impl Identity {
    /// The user's id.
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// The user that `--user` names.
    ///
    /// # Errors
    /// The user does not exist, or memleak may not become another user.
    pub fn of_command(user: &UserSpec) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "--user needs root, because only root may become another user: run sudo memleak run --user …"
        );
        match user {
            UserSpec::Sudo => Self::of_sudo()?.context(
                "--user sudo: SUDO_UID is not set, so memleak was not started by sudo: name the user \
                 (--user NAME)",
            ),
            UserSpec::Name(name, group) => {
                let user = known(User::from_name(name))
                    .with_context(|| format!("cannot look up the user {name} (--user)"))?;
                let Some(user) = user else {
                    bail!("--user: there is no user {name:?}: name one that `getent passwd` lists, or UID:GID");
                };
                Self::of_entry(user, group.map(Gid::from_raw))
            }
            UserSpec::Id(uid, group) => {
                let (uid, group) = (Uid::from_raw(*uid), group.map(Gid::from_raw));
                Self::of_id(uid, group)?.with_context(|| {
                    format!(
                        "--user: no user has the id {uid}, so its group is not known: write --user {uid}:GID"
                    )
                })
            }
        }
    }

    /// The user behind sudo, if root's rights come from sudo. `None` if memleak runs with its user's own rights.
    ///
    /// # Errors
    /// SUDO_UID or SUDO_GID is not valid.
    pub fn behind_sudo() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        Self::of_sudo()
    }

    fn of_sudo() -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<u32>> {
            let Some(value) =
                inherited::variable(OsStr::new(name)).filter(|value| !value.is_empty())
            else {
                return Ok(None);
            };
            let number = value.to_str().and_then(id);
            let shown = escape::escaped(value.as_bytes());
            number.map(Some).with_context(|| {
                format!("{name} is '{shown}', which is not an id: unset it, or let sudo set it")
            })
        };
        let (uid, gid) = (number("SUDO_UID")?, number("SUDO_GID")?);
        let Some(uid) = uid.map(Uid::from_raw) else {
            return Ok(None);
        };
        let user = Self::of_id(uid, gid.map(Gid::from_raw))?;
        user.map(Some).with_context(|| {
            format!(
                "SUDO_UID is {uid}, which no user has, and SUDO_GID is not set: set both, or none"
            )
        })
    }

    /// `None` if the user database does not contain the id, and no group was given.
    fn of_id(uid: Uid, group: Option<Gid>) -> Result<Option<Self>> {
        let user = known(User::from_uid(uid))
            .with_context(|| format!("cannot look up the user with the id {uid}"))?;
        match (user, group) {
            (Some(user), group) => Self::of_entry(user, group).map(Some),
            (None, Some(gid)) => Ok(Some(Self {
                uid,
                gid,
                groups: vec![gid],
                entry: None,
            })),
            (None, None) => Ok(None),
        }
    }

    fn of_entry(user: User, group: Option<Gid>) -> Result<Self> {
        let gid = group.unwrap_or(user.gid);
        let name = CString::new(user.name.as_str()).context("a user's name has a zero byte")?;
        Ok(Self {
            uid: user.uid,
            gid,
            groups: getgrouplist(&name, gid)
                .with_context(|| format!("cannot look up the groups of the user {}", user.name))?,
            entry: Some(Entry {
                name: user.name,
                home: user.dir,
            }),
        })
    }

    /// The variables that name a process's user, as sudo sets them. Empty if the user database does not contain the
    /// user.
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let Some(Entry { name, home }) = &self.entry else {
            return Vec::new();
        };
        vec![
            ("HOME", home.clone().into_os_string()),
            ("USER", name.into()),
            ("LOGNAME", name.into()),
        ]
    }

    /// Changes the calling process to this user: groups, group and user. Removes all capabilities unless the user is
    /// root. The process must have one thread. NO_NEW_PRIVS stays as it is, so a set-user-ID program still works.
    /// Async-signal-safe.
    ///
    /// # Errors
    /// The step that failed. The process must not continue after that.
    pub fn assume(&self) -> std::result::Result<(), (Step, Errno)> {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        let done = |step, result: i64| match result {
            0 => Ok(()),
            _ => Err((step, Errno::last())),
        };
        done(Step::Groups, set_groups(&self.groups))?;
        // These are plain system calls. The C library's functions would change all threads.
        // SAFETY: numbers only.
        done(Step::Group, unsafe {
            libc::syscall(libc::SYS_setresgid, gid, gid, gid)
        })?;
        // SAFETY: numbers only.
        done(Step::User, unsafe {
            libc::syscall(libc::SYS_setresuid, uid, uid, uid)
        })?;
        // SAFETY: numbers only. Linux without ambient capabilities (below 4.3) is too old for memleak.
        done(Step::Capabilities, unsafe {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL,
                0,
                0,
                0,
            )
        })?;
        // The change of user has cleared all capabilities but the inheritable ones, unless securebits forbid that.
        if uid != 0 && Capabilities::default().set().is_err() {
            return Err((Step::Capabilities, Errno::last()));
        }
        Ok(())
    }

    /// Does `work` with a user's rights to files and no others, as a file server does. Meanwhile the calling thread has
    /// this user's file-system ids and groups, and cannot use its capabilities. Without a user, the thread's own rights
    /// stay.
    ///
    /// # Errors
    /// The rights cannot be taken, and `work` was not done. Or the thread's own rights cannot be restored.
    pub fn with_file_rights<T>(user: Option<&Self>, work: impl FnOnce() -> T) -> Result<T> {
        let Some(user) = user else {
            return Ok(work());
        };
        let own = FileRights::get().context("cannot read our own rights")?;
        let theirs = FileRights {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: user.groups.clone(),
            capabilities: Capabilities {
                effective: 0,
                ..own.capabilities
            },
        };
        let result = match theirs.set() {
            Ok(()) => Ok(work()),
            Err(error) => Err(error).with_context(|| format!("cannot take the rights of {user}")),
        };
        own.set().context("cannot restore the rights of memleak")?;
        result
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(Entry { name, .. }) => write!(f, "user {}", escape::escaped(name.as_bytes())),
            None => write!(f, "user {}", self.uid),
        }
    }
}

/// Everything that decides about a thread's access to files.
struct FileRights {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    capabilities: Capabilities,
}

impl FileRights {
    fn get() -> io::Result<Self> {
        Ok(Self {
            uid: file_system_id(libc::SYS_setfsuid, u32::MAX),
            gid: file_system_id(libc::SYS_setfsgid, u32::MAX),
            groups: getgroups()?,
            capabilities: Capabilities::get()?,
        })
    }

    /// Sets capabilities first if that adds any, and last if that removes any, because setgroups needs one.
    fn set(&self) -> io::Result<()> {
        let now = Capabilities::get()?;
        if self.capabilities.effective & !now.effective != 0 {
            self.capabilities.set()?;
        }
        if set_groups(&self.groups) != 0 {
            return Err(io::Error::last_os_error());
        }
        for (call, id) in [
            (libc::SYS_setfsgid, self.gid),
            (libc::SYS_setfsuid, self.uid),
        ] {
            file_system_id(call, id);
            // These calls report no failure, only the former id.
            if file_system_id(call, u32::MAX) != id {
                return Err(Errno::EPERM.into());
            }
        }
        // A change of the file-system user changes the effective capabilities, too.
        self.capabilities.set()
    }
}

/// Calls setfsuid or setfsgid, which return the former id. The highest id changes nothing.
fn file_system_id(call: libc::c_long, id: u32) -> u32 {
    // SAFETY: numbers only.
    unsafe { libc::syscall(call, id) as u32 }
}

/// Sets the groups of the calling thread by the system call. The C library's function would change all threads.
fn set_groups(groups: &[Gid]) -> i64 {
    // SAFETY: a Gid is a transparent gid_t. The kernel reads `groups.len()` of them.
    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }
}

/// The answer of the user database. Some implementations report "no such user" as an error (getpwnam(3)).
fn known(answer: nix::Result<Option<User>>) -> nix::Result<Option<User>> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_an_id_or_sudo() {
        let name = |name: &str, group| UserSpec::Name(name.to_owned(), group);
        for (words, user) in [
            ("sudo", UserSpec::Sudo),
            ("alice", name("alice", None)),
            ("alice:7", name("alice", Some(7))),
            ("sudo:7", name("sudo", Some(7))),
            ("o'brien-x.y", name("o'brien-x.y", None)),
            ("1000", UserSpec::Id(1000, None)),
            ("0", UserSpec::Id(0, None)),
            ("1000:50", UserSpec::Id(1000, Some(50))),
        ] {
            assert_eq!(words.parse(), Ok(user), "{words}");
        }
    }

    #[test]
    fn an_error_names_invalid_words_without_control_characters() {
        for words in [
            "",
            ":",
            ":1",
            "alice:",
            "alice:users",
            "1000:",
            "1000:-1",
            "-1",
            "+1:2",
            "4294967295",
            "4294967296",
            "1000:4294967295",
            "1x",
            "\x1b[31m:x",
        ] {
            let error = words
                .parse::<UserSpec>()
                .map(|user| panic!("{words:?}: {user:?}"));
            let said = error.unwrap_err().to_string();
            assert!(said.contains("names no user"), "{said}");
            assert!(!said.contains('\x1b'), "{said:?}");
        }
    }

    #[test]
    fn every_step_can_be_decoded_from_its_number() {
        for number in 1..=4 {
            assert_eq!(
                Step::from_number(number).map(|step| step as i32),
                Some(number)
            );
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(5), None);
    }

    #[test]
    fn an_id_without_a_user_needs_a_group() {
        let root = Identity::of_id(Uid::from_raw(0), None).unwrap().unwrap();
        assert_eq!(root.to_string(), "user root");
        assert_eq!(root.variables()[0].0, "HOME");
        let nobody = Identity::of_id(Uid::from_raw(3_999_999_999), None).unwrap();
        assert_eq!(nobody, None);
        let grouped = Identity::of_id(Uid::from_raw(3_999_999_999), Some(Gid::from_raw(9)));
        let grouped = grouped.unwrap().unwrap();
        assert_eq!(grouped.groups, [Gid::from_raw(9)]);
        assert!(grouped.variables().is_empty());
    }
}
