//! Files and sockets under a directory that somebody hostile may write into.
//!
//! An instance owns some of the directories that the router and deploy-control must look into. It may put anything there: a
//! symlink to another tenant's socket, a fifo that never answers, a file without end, ten thousand files, a tree without a
//! bottom. A [`Root`] is a handle on a directory whose every operation
//!
//! - resolves its path with `openat2(2)` beneath that handle: no `..`, no absolute path, no symlink in any place, no magic link;
//! - looks at what it opened, not at what the name meant a moment ago, and goes on through the handle it looked at;
//! - reads a bounded amount, never waits for the other side, and never follows a link when it removes.
//!
//! Everything but [`Root::connect`] and [`Root::bind`] does blocking file operations: call it from `spawn_blocking` where the
//! directory may be large. Sockets are reached through `/proc/self/fd`, so `/proc` must be mounted; in exchange a path may be
//! longer than the 107 bytes of a socket address. Linux 5.6 or newer.

mod carry;
mod error;
mod file;
mod owner;
mod path;
mod socket;
mod tree;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

pub use carry::{Found, OpenFile};
pub use error::Error;
pub use owner::Meta;
pub use tree::{Entry, EntryKind};

use path::Relative;

/// What every path is resolved with.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A handle on a directory. Clones share it; it stays the same directory however that is renamed.
///
/// Paths are relative to it. An empty path or `.` is the directory itself, where that makes sense.
#[derive(Clone, Debug)]
pub struct Root(Arc<OwnedFd>);

impl Root {
    /// Opens a directory by a path that is trusted: the operator's setting, say. Symlinks in it are followed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory, [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::of(path, errno))?;
        Ok(Self(Arc::new(fd)))
    }

    /// A directory beneath this one.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory or not beneath, [`Error::Io`].
    pub fn dir(&self, rel: impl AsRef<Path>) -> Result<Self, Error> {
        let rel = Relative::new(rel.as_ref())?;
        Ok(Self(Arc::new(open_dir(self.fd(), &rel)?)))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The directory that holds the last part of a path, and that part.
    fn parent<'a>(&self, rel: &'a Relative) -> Result<(OwnedFd, &'a Path), Error> {
        let (parent, name) = rel.split()?;
        Ok((open_dir(self.fd(), &parent)?, name))
    }
}

/// Opens beneath `dir`; the handle is closed in child processes.
fn open_beneath(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    // EAGAIN: the kernel asks to try again when something was renamed meanwhile, and it stays when the file's owner holds
    // a lease on it, which only he can end. So a few times, not for ever.
    for _ in 0..8 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            outcome => return outcome,
        }
    }
    Err(Errno::AGAIN)
}

/// A handle on a directory for looking up names in it; it takes no right to read the directory.
fn open_dir(dir: BorrowedFd<'_>, rel: &Relative) -> Result<OwnedFd, Error> {
    open_beneath(dir, rel.or_dot(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), RESOLVE)
        .map_err(|errno| Error::of(rel.as_path(), errno))
}

/// A second handle on the same directory that can be read and synchronised.
fn readable(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_beneath(dir, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), RESOLVE)
}

/// Makes what was created, renamed or removed in this directory last over a power failure.
fn sync_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsync(readable(dir)?)
}

/// The path by which the kernel finds a handle again, whatever happened to its name.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Gives mode and owner to what is behind an `O_PATH` handle, which must not be a symlink.
///
/// The set-group-id bit may be given only to what is of one's own group (or with CAP_FSETID, which a container of ours
/// does not have), but a directory keeps it when it is given away: so it is made ours first, where that bit is wanted.
fn set_mode_and_owner(fd: BorrowedFd<'_>, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    const SET_GROUP_ID: u32 = 0o2000;
    let mode = mode & 0o7777;
    let owner = owner.filter(|_| rustix::process::geteuid().is_root());
    let is_right = |wanted: Option<(u32, u32)>| -> Result<(bool, bool), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        Ok((stat.st_mode & 0o7777 == mode, wanted.is_none_or(|wanted| (stat.st_uid, stat.st_gid) == wanted)))
    };
    let give = |uid: Option<u32>, gid: u32| {
        let uid = uid.map(Uid::from_raw);
        rustix::fs::chownat(fd, "", uid, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
    };
    let set_mode = || rustix::fs::chmod(proc_path(fd), Mode::from_raw_mode(mode));

    let (mut mode_is_right, mut owner_is_right) = is_right(owner)?;
    if let Some((uid, gid)) = owner {
        // u32::MAX is how the kernel says "leave it as it is".
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        if !mode_is_right && mode & SET_GROUP_ID != 0 {
            give(None, rustix::process::getegid().as_raw())?;
            set_mode()?;
            owner_is_right = false;
        }
        if !owner_is_right {
            give(Some(uid), gid)?;
            // A change of owner may have cleared bits of the mode.
            mode_is_right = is_right(owner)?.0;
        }
    }
    if !mode_is_right {
        set_mode()?;
    }
    Ok(())
}
