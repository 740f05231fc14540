//! Whole directories, whatever is in them.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::path::{Relative, temporary_name};
use crate::{Error, RESOLVE, Root, open_beneath, open_dir, proc_path, readable};

/// How many levels are open at once. Removing goes deeper than that by moving what is deeper up; measuring does not.
pub(crate) const MAX_DEPTH: usize = 32;

/// The most names that one removal looks at: far more than an instance's quota of inodes, and an end to a race with somebody
/// who creates as fast as we remove.
const MAX_REMOVED: u64 = 20_000_000;

/// How often a directory may turn out to be filled again before its removal is given up.
const MAX_REFILLED: u32 = 100;

/// Something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: any bytes but `/` and NUL.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What something in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink, wherever it points.
    Symlink,
    /// A Unix socket.
    Socket,
    /// A fifo or a device.
    Other,
}

impl From<FileType> for EntryKind {
    fn from(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Socket => Self::Socket,
            _ => Self::Other,
        }
    }
}

impl Root {
    /// What is in a directory, in no order, if it is at most `max_entries`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory or not beneath, [`Error::TooLarge`], [`Error::Io`].
    pub fn list(&self, rel: impl AsRef<Path>, max_entries: usize) -> Result<Vec<Entry>, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let dir = open_dir(self.fd(), &rel)?;
        list(dir.as_fd(), max_entries).map_err(|stop| stop.at(&rel))
    }

    /// The bytes on disk (blocks, so a hole in a file counts nothing) of a file, or of a directory and everything in it up to
    /// other file systems. A file with two names counts twice.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Refused`] when it is not beneath; [`Error::TooLarge`] when there are more than `max_entries`
    /// names or 32 levels, which a quota should take for "over it"; [`Error::Io`].
    pub fn size(&self, rel: impl AsRef<Path>, max_entries: u64) -> Result<u64, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let mut left = max_entries;
        let measured = open_beneath(self.fd(), rel.or_dot(), OFlags::PATH, Mode::empty(), RESOLVE)
            .map_err(Stop::from)
            .and_then(|fd| size(fd.as_fd(), 0, &mut left));
        measured.map_err(|stop| stop.at(&rel))
    }

    /// Removes a directory with everything in it, or whatever else has the name. That it is not there is fine. Links are removed,
    /// not followed; another file system mounted in it is an error.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it is not beneath; [`Error::Busy`] or [`Error::TooLarge`] when somebody fills it faster than it can
    /// be emptied; [`Error::Io`]. What was removed until then is gone.
    pub fn remove_tree(&self, rel: impl AsRef<Path>) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = match self.parent(&rel) {
            Err(Error::NotFound { .. }) => return Ok(()),
            outcome => outcome?,
        };
        remove_tree(parent.as_fd(), name).map_err(|stop| stop.at(&rel))
    }

    /// Removes everything in a directory, but not the directory: whoever has it mounted keeps it.
    ///
    /// # Errors
    ///
    /// As [`remove_tree`](Self::remove_tree), and [`Error::NotFound`].
    pub fn clear(&self, rel: impl AsRef<Path>) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let dir = open_dir(self.fd(), &rel)?;
        Removal::new(dir.as_fd()).run().map_err(|stop| stop.at(&rel))
    }
}

/// Why a walk ended early, before it is known under which path it began.
pub(crate) enum Stop {
    Errno(Errno),
    TooLarge,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl Stop {
    pub(crate) fn at(self, rel: &Relative) -> Error {
        match self {
            Self::Errno(errno) => Error::of(rel.as_path(), errno),
            Self::TooLarge => Error::TooLarge { path: rel.as_path().to_owned() },
        }
    }
}

/// Opens a directory's own entry, without leaving its file system.
pub(crate) fn open_child(dir: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_beneath(dir, name, flags | OFlags::PATH, Mode::empty(), RESOLVE | ResolveFlags::NO_XDEV)
}

pub(crate) fn as_path(name: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(name.to_bytes()))
}

pub(crate) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

pub(crate) fn list(dir: BorrowedFd<'_>, max_entries: usize) -> Result<Vec<Entry>, Stop> {
    let mut entries = Vec::new();
    for entry in Dir::new(readable(dir)?)? {
        let entry = entry?;
        if is_dot(entry.file_name()) {
            continue;
        }
        if entries.len() == max_entries {
            return Err(Stop::TooLarge);
        }
        let file_type = match entry.file_type() {
            // Some file systems do not say it here.
            FileType::Unknown => match rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            },
            known => known,
        };
        entries.push(Entry { name: as_path(entry.file_name()).as_os_str().to_owned(), kind: file_type.into() });
    }
    Ok(entries)
}

/// The bytes of what is behind this `O_PATH` handle.
fn size(fd: BorrowedFd<'_>, depth: usize, left: &mut u64) -> Result<u64, Stop> {
    let stat = rustix::fs::fstat(fd)?;
    let mut bytes = disk_bytes(&stat);
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(bytes);
    }
    for entry in Dir::new(readable(fd)?)? {
        let entry = entry?;
        if is_dot(entry.file_name()) {
            continue;
        }
        *left = left.checked_sub(1).ok_or(Stop::TooLarge)?;
        let stat = match rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            bytes = bytes.saturating_add(disk_bytes(&stat));
            continue;
        }
        if depth + 1 == MAX_DEPTH {
            return Err(Stop::TooLarge);
        }
        match open_child(fd, as_path(entry.file_name()), OFlags::DIRECTORY) {
            Ok(child) => bytes = bytes.saturating_add(size(child.as_fd(), depth + 1, left)?),
            // It went, became something else, or is another file system: not ours to count.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(bytes)
}

/// `st_blocks` counts units of 512 bytes, whatever the file system's block is (stat(2)).
fn disk_bytes(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

fn remove_tree(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Stop> {
    for _ in 0..MAX_REFILLED {
        let refusal = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) if may_be_directory(errno) => errno,
            Err(errno) => return Err(errno.into()),
        };
        let dir = match open_child(parent, name, OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::LOOP | Errno::NOTDIR) if refusal == Errno::PERM => return Err(refusal.into()),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        Removal::new(dir.as_fd()).run()?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// How `unlink` says that it was given a directory: Linux with EISDIR, POSIX with EPERM.
fn may_be_directory(errno: Errno) -> bool {
    matches!(errno, Errno::ISDIR | Errno::PERM)
}

/// Emptying one directory.
struct Removal<'a> {
    top: BorrowedFd<'a>,
    seen: u64,
    hoisted: u64,
    refilled: u32,
}

impl<'a> Removal<'a> {
    fn new(top: BorrowedFd<'a>) -> Self {
        Self { top, seen: 0, hoisted: 0, refilled: 0 }
    }

    fn run(&mut self) -> Result<(), Stop> {
        self.empty(self.top, 0)
    }

    /// Removes what is in `dir`, until a look at it finds nothing.
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) -> Result<(), Stop> {
        make_accessible(dir);
        let mut looks = 0;
        loop {
            let mut found = false;
            let hoisted = self.hoisted;
            for entry in Dir::new(readable(dir)?)? {
                let entry = entry?;
                if is_dot(entry.file_name()) {
                    continue;
                }
                found = true;
                self.seen += 1;
                if self.seen > MAX_REMOVED {
                    return Err(Stop::TooLarge);
                }
                self.remove(dir, as_path(entry.file_name()), depth)?;
            }
            if !found {
                return Ok(());
            }
            // After the first look there should be nothing but what was moved up: the rest is somebody else's doing.
            looks = if self.hoisted > hoisted { 0 } else { looks + 1 };
            if looks > MAX_REFILLED {
                return Err(Errno::AGAIN.into());
            }
        }
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &Path, depth: usize) -> Result<(), Stop> {
        let refusal = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) if may_be_directory(errno) => errno,
            Err(errno) => return Err(errno.into()),
        };
        let child = match open_child(dir, name, OFlags::DIRECTORY) {
            Ok(child) => child,
            Err(Errno::LOOP | Errno::NOTDIR) if refusal == Errno::PERM => return Err(refusal.into()),
            // It went, or became something else, which the next look finds.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return self.refilled(),
            Err(errno) => return Err(errno.into()),
        };
        if depth + 1 == MAX_DEPTH {
            return self.hoist(dir, name, child.as_fd());
        }
        self.empty(child.as_fd(), depth + 1)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => self.refilled(),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Moves a directory that is too deep up to the top, where the next look finds it: so a tree of any depth can be removed
    /// with a bounded number of handles and without a path that is too long.
    fn hoist(&mut self, dir: BorrowedFd<'_>, name: &Path, child: BorrowedFd<'_>) -> Result<(), Stop> {
        // Moving a directory writes its `..`.
        make_accessible(child);
        match rustix::fs::renameat(dir, name, self.top, temporary_name()) {
            Ok(()) => {
                self.hoisted += 1;
                Ok(())
            }
            Err(Errno::NOENT | Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => self.refilled(),
            Err(errno) => Err(errno.into()),
        }
    }

    fn refilled(&mut self) -> Result<(), Stop> {
        self.refilled += 1;
        if self.refilled > MAX_REFILLED { Err(Errno::AGAIN.into()) } else { Ok(()) }
    }
}

/// Gives the owner, if that is us, the rights to empty a directory whose mode says otherwise. Root needs none; for anybody else
/// what comes next fails, and says so.
fn make_accessible(dir: BorrowedFd<'_>) {
    if !rustix::process::geteuid().is_root() && rustix::fs::fstat(dir).is_ok_and(|stat| stat.st_mode & 0o700 != 0o700) {
        let _ = rustix::fs::chmod(proc_path(dir), Mode::RWXU);
    }
}
