//! What can be wrong with a path in a hostile directory.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why an operation was not done. Paths are as they were given, relative to the [`Root`](crate::Root).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing of this name.
    #[error("{path} does not exist", path = path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// There is something, or the path leads somewhere, that is never used: a symlink, a fifo, another kind of file than was
    /// asked for, a place outside. In an instance's directory it means that the instance is hostile or broken.
    #[error("{path} is refused: {reason}", path = path.display())]
    Refused {
        /// The path that was asked for.
        path: PathBuf,
        /// What is wrong with it, to follow a colon.
        reason: &'static str,
    },
    /// A socket whose queue of connections is full, a file its owner keeps a lease on, or a directory that fills faster than
    /// it can be emptied. It may pass.
    #[error("{path} is busy", path = path.display())]
    Busy {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A socket nobody listens on.
    #[error("nobody listens on {path}", path = path.display())]
    ConnectionRefused {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// More than the caller is willing to take: bytes in a file, entries in a directory, levels in a tree.
    #[error("{path} is too large", path = path.display())]
    TooLarge {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Anything else the operating system said, such as a full disk or a missing right.
    #[error("{path}", path = path.display())]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error that the kernel's answer means for this path.
    pub(crate) fn of(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        let reason = match errno {
            Errno::NOENT => return Self::NotFound { path },
            Errno::AGAIN => return Self::Busy { path },
            Errno::CONNREFUSED => return Self::ConnectionRefused { path },
            Errno::LOOP => "a symlink is in the way",
            Errno::XDEV => "it is outside, or on another file system",
            Errno::NOTDIR => "it, or what leads to it, is not a directory",
            Errno::ISDIR => "it is a directory",
            Errno::NXIO => "it is a socket, or a device that does not exist",
            Errno::PROTOTYPE => "it is not a stream socket",
            Errno::NAMETOOLONG => "its name is too long",
            Errno::EXIST | Errno::NOTEMPTY => "something is in its place",
            _ => return Self::Io { path, source: errno.into() },
        };
        Self::Refused { path, reason }
    }
}
