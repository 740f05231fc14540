//! Whose something is, and giving it away.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::path::Relative;
use crate::tree::{EntryKind, MAX_DEPTH, Stop, as_path, is_dot, open_child};
use crate::{Error, RESOLVE, Root, open_beneath, open_dir, readable};

/// What something is, whose it is, and what its mode allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: EntryKind,
    /// Its mode's permissions, with set-user-id, set-group-id and sticky bit: the low twelve bits.
    pub mode: u32,
    /// Its user and group id.
    pub owner: (u32, u32),
}

impl From<Stat> for Meta {
    fn from(stat: Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode).into();
        Self { kind, mode: stat.st_mode & 0o7777, owner: (stat.st_uid, stat.st_gid) }
    }
}

impl Root {
    /// What is under a name. Nothing is opened for reading, so nothing can wait.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when a symlink is in the way or it is not beneath, [`Error::Io`].
    pub fn meta(&self, rel: impl AsRef<Path>) -> Result<Meta, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let looked =
            open_beneath(self.fd(), rel.or_dot(), OFlags::PATH, Mode::empty(), RESOLVE).and_then(rustix::fs::fstat);
        Ok(looked.map_err(|errno| Error::of(rel.as_path(), errno))?.into())
    }

    /// Whether a directory and what is directly in it have this owner (user id, group id). At most `max_entries` of what is
    /// in it are looked at.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory or not beneath, [`Error::Io`].
    pub fn is_owned_by(&self, rel: impl AsRef<Path>, owner: (u32, u32), max_entries: usize) -> Result<bool, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let dir = open_dir(self.fd(), &rel)?;
        is_owned_by(dir.as_fd(), owner, max_entries).map_err(|errno| Error::of(rel.as_path(), errno))
    }

    /// Gives a directory and everything in it, however deep, to this owner (user id, group id), but for other file systems.
    /// Links are given, not followed. What is right already is not touched. The directory itself and what is directly in it
    /// come last, so that [`is_owned_by`](Self::is_owned_by) tells whether this came to its end.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory or not beneath, [`Error::TooLarge`] beyond
    /// `max_entries`, [`Error::Io`]. What was given until then is given.
    pub fn give_tree(&self, rel: impl AsRef<Path>, owner: (u32, u32), max_entries: u64) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let dir = open_dir(self.fd(), &rel)?;
        let mut giving = Giving { owner, left: max_entries, deep: Vec::new() };
        let given = giving.all(dir.as_fd());
        given.map_err(|stop| stop.at(&rel))
    }
}

fn is_owned_by(dir: BorrowedFd<'_>, owner: (u32, u32), max_entries: usize) -> Result<bool, Errno> {
    if Meta::from(rustix::fs::fstat(dir)?).owner != owner {
        return Ok(false);
    }
    let mut left = max_entries;
    for entry in Dir::new(readable(dir)?)? {
        let entry = entry?;
        if is_dot(entry.file_name()) {
            continue;
        }
        if left == 0 {
            break;
        }
        left -= 1;
        if meta_of(dir, entry.file_name())?.is_some_and(|meta| meta.owner != owner) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What has this name in `dir`; `None` when nothing has any more.
fn meta_of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Meta>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Giving one directory away.
struct Giving {
    owner: (u32, u32),
    left: u64,
    /// Directories that are too deep to be held open together with all above them.
    deep: Vec<PathBuf>,
}

impl Giving {
    fn all(&mut self, top: BorrowedFd<'_>) -> Result<(), Stop> {
        self.inside(top, Path::new(""), 0, false)?;
        while let Some(path) = self.deep.pop() {
            match open_child(top, &path, OFlags::DIRECTORY) {
                Ok(dir) => {
                    self.inside(dir.as_fd(), &path, 0, true)?;
                    self.give(dir.as_fd(), Path::new(""), AtFlags::EMPTY_PATH)?;
                }
                // It went, or became something else.
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {}
                // Deeper than a path can say: nobody but somebody who wants to be a nuisance.
                Err(Errno::NAMETOOLONG) => return Err(Stop::TooLarge),
                Err(errno) => return Err(errno.into()),
            }
        }
        for entry in Dir::new(readable(top)?)? {
            let entry = entry?;
            if !is_dot(entry.file_name()) {
                self.give_entry(top, entry.file_name())?;
            }
        }
        self.give(top, Path::new(""), AtFlags::EMPTY_PATH)
    }

    /// Gives what is in the directories in `dir`, which is at `path`, and unless it is the top one, what is directly in it.
    fn inside(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: usize, direct: bool) -> Result<(), Stop> {
        for entry in Dir::new(readable(dir)?)? {
            let entry = entry?;
            if is_dot(entry.file_name()) {
                continue;
            }
            self.left = self.left.checked_sub(1).ok_or(Stop::TooLarge)?;
            let name = as_path(entry.file_name());
            let Some(meta) = meta_of(dir, entry.file_name())? else { continue };
            if meta.kind == EntryKind::Directory {
                if depth + 1 == MAX_DEPTH {
                    self.deep.push(path.join(name));
                    continue;
                }
                match open_child(dir, name, OFlags::DIRECTORY) {
                    Ok(child) => self.inside(child.as_fd(), &path.join(name), depth + 1, true)?,
                    // It went, became something else, or is another file system's root.
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            if direct {
                self.give_entry(dir, entry.file_name())?;
            }
        }
        Ok(())
    }

    /// Gives what has this name, unless it is right already. A link there is not followed, and a single name in a directory
    /// that is held cannot be anywhere else.
    fn give_entry(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Stop> {
        match meta_of(dir, name)? {
            Some(meta) if meta.owner != self.owner => self.give(dir, as_path(name), AtFlags::SYMLINK_NOFOLLOW),
            _ => Ok(()),
        }
    }

    fn give(&self, dir: BorrowedFd<'_>, name: &Path, flags: AtFlags) -> Result<(), Stop> {
        let (uid, gid) = self.owner;
        // u32::MAX is how the kernel says "leave it as it is".
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL.into());
        }
        match rustix::fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
