//! What it takes to carry a tree away, and to put one there.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::path::Relative;
use crate::tree::{MAX_DEPTH, Stop, list, open_child};
use crate::{EntryKind, Error, RESOLVE, Root, open_beneath, open_dir, set_mode_and_owner, sync_dir};

/// The longest target of a symlink that is read, in bytes: PATH_MAX.
const MAX_TARGET: usize = 4096;

/// Something in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is, from the tree's root on.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Whether it is a directory that was not looked into: it is too deep, or another file system.
    pub closed: bool,
}

impl Root {
    /// What is in a directory and below it: each directory before what is in it, otherwise by name. Nothing is opened but
    /// directories, and nothing is followed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is not a directory or not beneath, [`Error::TooLarge`] when there are
    /// more than `max_entries`, [`Error::Io`].
    pub fn walk(&self, rel: impl AsRef<Path>, max_entries: usize) -> Result<Vec<Found>, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let dir = open_dir(self.fd(), &rel)?;
        let mut found = Vec::new();
        walk(dir.as_fd(), Path::new(""), 0, max_entries, &mut found).map_err(|stop| stop.at(&rel))?;
        Ok(found)
    }

    /// Opens a regular file for reading; its size, as it is now. It never waits, whatever else is there under the name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is no regular file or not beneath, [`Error::Busy`] when its owner holds
    /// a lease on it, [`Error::Io`].
    pub fn open_file(&self, rel: impl AsRef<Path>) -> Result<OpenFile, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let path = rel.as_path();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let fd = open_beneath(self.fd(), rel.or_dot(), flags, Mode::empty(), RESOLVE)
            .map_err(|errno| Error::of(path, errno))?;
        let file = File::from(fd);
        let meta = file.metadata().map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if !meta.is_file() {
            return Err(Error::Refused { path: path.to_owned(), reason: "it is not a regular file" });
        }
        Ok(OpenFile { size: meta.len(), on_disk: meta.blocks().saturating_mul(512), mode: meta.mode() & 0o777, file })
    }

    /// Where a symlink leads, as it says itself.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is none or not beneath, [`Error::Io`].
    pub fn read_link(&self, rel: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let failed = |errno| Error::of(rel.as_path(), errno);
        let (parent, name) = self.parent(&rel)?;
        let target =
            rustix::fs::readlinkat(&parent, name, Vec::with_capacity(MAX_TARGET)).map_err(|errno| match errno {
                Errno::INVAL => Error::Refused { path: rel.as_path().to_owned(), reason: "it is not a symlink" },
                errno => failed(errno),
            })?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Makes a new file of this mode, for writing; where something has the name already, nothing happens to that.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when its directory is missing, [`Error::Refused`] when something is in its place or it is not
    /// beneath, [`Error::Io`].
    pub fn create_file(&self, rel: impl AsRef<Path>, mode: u32) -> Result<File, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let failed = |errno| Error::of(rel.as_path(), errno);
        let (parent, name) = self.parent(&rel)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = open_beneath(parent.as_fd(), name, flags, Mode::RUSR | Mode::WUSR, RESOLVE).map_err(failed)?;
        set_mode_and_owner(fd.as_fd(), mode & 0o777, None).map_err(failed)?;
        Ok(File::from(fd))
    }

    /// Makes a symlink that leads to `target`, as it is written there. Nothing in this crate follows it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when its directory is missing, [`Error::Refused`] when something is in its place, [`Error::Io`].
    pub fn create_link(&self, target: impl AsRef<Path>, rel: impl AsRef<Path>) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = self.parent(&rel)?;
        rustix::fs::symlinkat(target.as_ref(), &parent, name).map_err(|errno| Error::of(rel.as_path(), errno))
    }

    /// Makes everything that was written on this directory's file system last over a power failure.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn sync_all(&self) -> Result<(), Error> {
        let here = Path::new(".");
        let readable = crate::readable(self.fd()).map_err(|errno| Error::of(here, errno))?;
        rustix::fs::syncfs(&readable).map_err(|errno| Error::of(here, errno))?;
        sync_dir(self.fd()).map_err(|errno| Error::of(here, errno))
    }
}

/// A regular file that was opened for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Its size in bytes when it was opened.
    pub size: u64,
    /// The bytes that it took on disk: a hole takes none.
    pub on_disk: u64,
    /// Who may do what with it: nine bits.
    pub mode: u32,
}

fn walk(dir: BorrowedFd<'_>, path: &Path, depth: usize, max: usize, found: &mut Vec<Found>) -> Result<(), Stop> {
    let mut entries = list(dir, max.saturating_sub(found.len()))?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        if found.len() == max {
            return Err(Stop::TooLarge);
        }
        let path = path.join(&entry.name);
        let child = match entry.kind {
            EntryKind::Directory if depth + 1 < MAX_DEPTH => {
                match open_child(dir, Path::new(&entry.name), OFlags::DIRECTORY) {
                    Ok(child) => Some(child),
                    Err(Errno::XDEV) => None,
                    // It went, or became something else.
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            _ => None,
        };
        let closed = entry.kind == EntryKind::Directory && child.is_none();
        found.push(Found { path: path.clone(), kind: entry.kind, closed });
        if let Some(child) = child {
            walk(child.as_fd(), &path, depth + 1, max, found)?;
        }
    }
    Ok(())
}
