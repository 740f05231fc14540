//! Paths of sockets that may be longer than an address can hold.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// `sun_path` of `sockaddr_un` holds 108 bytes, the closing NUL included (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A socket's path in a form that fits an address: itself, or through a handle on its folder.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// Keeps the short form valid.
    _folder: Option<File>,
}

impl SocketPath {
    /// The path to `name` in `folder`, which must be there when the whole is too long.
    ///
    /// # Errors
    /// When the folder is needed and cannot be opened.
    pub fn new(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        // A few bytes are kept for the temporary name of a socket that is being made.
        if path.as_os_str().len() + 8 <= MAX_SOCKET_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
