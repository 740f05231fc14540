//! Single files and directories.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::path::{Relative, temporary_name};
use crate::{Error, RESOLVE, Root, open_beneath, set_mode_and_owner, sync_dir};

impl Root {
    /// Makes a directory, and gives it this mode and owner (user id, group id) even if it was there already. Its parent must
    /// exist. The owner is left alone unless this process is root.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when the parent is missing, [`Error::Refused`] when something else has the name, [`Error::Io`].
    pub fn create_dir(&self, rel: impl AsRef<Path>, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = self.parent(&rel)?;
        let failed = |errno| Error::of(rel.as_path(), errno);

        // For us alone until the owner is right.
        let created = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(failed(errno)),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = open_beneath(parent.as_fd(), name, flags, Mode::empty(), RESOLVE).map_err(failed)?;
        set_mode_and_owner(dir.as_fd(), mode, owner).map_err(failed)?;
        if created {
            sync_dir(parent.as_fd()).map_err(failed)?;
        }
        Ok(())
    }

    /// Reads a regular file of at most `max_bytes`. It never waits, whatever else is there under the name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when it is no regular file or not beneath, [`Error::TooLarge`],
    /// [`Error::Busy`] when its owner holds a lease on it, [`Error::Io`].
    pub fn read(&self, rel: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let path = rel.as_path();
        let failed = |errno| Error::of(path, errno);

        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let fd = open_beneath(self.fd(), rel.or_dot(), flags, Mode::empty(), RESOLVE).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Refused { path: path.to_owned(), reason: "it is not a regular file" });
        }
        let too_large = || Error::TooLarge { path: path.to_owned() };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > max_bytes {
            return Err(too_large());
        }
        // It may grow while it is read: one byte more than allowed is enough to know.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        File::from(fd)
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if bytes.len() as u64 > max_bytes {
            return Err(too_large());
        }
        Ok(bytes)
    }

    /// Puts a file of this content, mode and owner (user id, group id) in place of whatever had its name, at once and for
    /// good: a reader sees the old or the new one, also after a power failure. The owner is left alone unless this process
    /// is root. After a crash a file `.tmp-…` may be left beside it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when its directory is missing, [`Error::Refused`] when a directory has the name, [`Error::Io`].
    pub fn write_atomic(
        &self,
        rel: impl AsRef<Path>,
        bytes: &[u8],
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = self.parent(&rel)?;
        let parent = parent.as_fd();
        let temporary = temporary_name();
        let written = write_new(parent, &temporary, bytes, mode, owner)
            .and_then(|()| rustix::fs::renameat(parent, &temporary, parent, name).map_err(Into::into));
        if let Err(source) = written {
            // What went wrong is what counts; the file is useless either way.
            let _ = rustix::fs::unlinkat(parent, &temporary, AtFlags::empty());
            return Err(match Errno::from_io_error(&source) {
                Some(errno) => Error::of(rel.as_path(), errno),
                None => Error::Io { path: rel.as_path().to_owned(), source },
            });
        }
        sync_dir(parent).map_err(|errno| Error::of(rel.as_path(), errno))
    }

    /// Gives something another name, in place of a file of that name. A symlink is renamed, not followed.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Refused`] when a directory that is not empty is in the place, [`Error::Io`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let (from, to) = (Relative::new(from.as_ref())?, Relative::new(to.as_ref())?);
        let (from_parent, from_name) = self.parent(&from)?;
        let (to_parent, to_name) = self.parent(&to)?;
        rustix::fs::renameat(&from_parent, from_name, &to_parent, to_name)
            .map_err(|errno| Error::of(from.as_path(), errno))?;
        sync_dir(to_parent.as_fd()).map_err(|errno| Error::of(to.as_path(), errno))?;
        sync_dir(from_parent.as_fd()).map_err(|errno| Error::of(from.as_path(), errno))
    }

    /// Removes a file, socket, fifo or symlink (the link, not what it points to). That it is not there is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it is a directory or not beneath, [`Error::Io`].
    pub fn remove_file(&self, rel: impl AsRef<Path>) -> Result<(), Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = match self.parent(&rel) {
            Err(Error::NotFound { .. }) => return Ok(()),
            outcome => outcome?,
        };
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::of(rel.as_path(), errno)),
        }
    }
}

/// Writes a file that did not exist, down to the disk.
fn write_new(
    parent: BorrowedFd<'_>,
    name: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let mut file = File::from(open_beneath(parent, name, flags, Mode::RUSR | Mode::WUSR, RESOLVE)?);
    file.write_all(bytes)?;
    // Through the handle: whoever shares the directory may have put something else under the name by now.
    set_mode_and_owner(file.as_fd(), mode, owner)?;
    file.sync_all()
}
