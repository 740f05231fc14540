//! Unix sockets, looked at before they are used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use crate::path::{Relative, temporary_name};
use crate::{Error, RESOLVE, Root, open_beneath, proc_path, set_mode_and_owner};

/// How many connections may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

impl Root {
    /// Connects to a stream socket. It does not wait: a Unix socket answers at once, or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Refused`] when it is no stream socket or not beneath; [`Error::ConnectionRefused`] when
    /// nobody listens; [`Error::Busy`] when too many wait to be accepted; [`Error::Io`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn connect(&self, rel: impl AsRef<Path>) -> Result<UnixStream, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let stream = connect(self.fd(), &rel)?;
        UnixStream::from_std(stream.into()).map_err(|source| Error::Io { path: rel.as_path().to_owned(), source })
    }

    /// Listens on a stream socket of this mode. It takes the place of a socket of that name, at once, so that there is never
    /// a moment without one, nor one with another mode.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when its directory is missing; [`Error::Refused`] when something that is no socket has the name, or
    /// it is not beneath; [`Error::Io`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn bind(&self, rel: impl AsRef<Path>, mode: u32) -> Result<UnixListener, Error> {
        let rel = Relative::new(rel.as_ref())?;
        let (parent, name) = self.parent(&rel)?;
        let parent = parent.as_fd();
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(Error::Refused { path: rel.as_path().to_owned(), reason: "something else has its name" });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::of(rel.as_path(), errno)),
        }

        let temporary = temporary_name();
        let bound = bind_new(parent, &temporary, mode).and_then(|socket| {
            rustix::fs::renameat(parent, &temporary, parent, name)?;
            Ok(socket)
        });
        let socket = bound.map_err(|errno| {
            // What went wrong is what counts; the socket is useless either way.
            let _ = rustix::fs::unlinkat(parent, &temporary, AtFlags::empty());
            Error::of(rel.as_path(), errno)
        })?;
        UnixListener::from_std(socket.into()).map_err(|source| Error::Io { path: rel.as_path().to_owned(), source })
    }
}

fn connect(root: BorrowedFd<'_>, rel: &Relative) -> Result<OwnedFd, Error> {
    let failed = |errno| Error::of(rel.as_path(), errno);
    // Opening by path does nothing to what is there: neither wakes a fifo's other end nor touches a device.
    let target = open_beneath(root, rel.or_dot(), OFlags::PATH, Mode::empty(), RESOLVE).map_err(failed)?;
    let stat = rustix::fs::fstat(&target).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Error::Refused { path: rel.as_path().to_owned(), reason: "it is not a socket" });
    }
    let address = SocketAddrUnix::new(proc_path(target.as_fd())).map_err(failed)?;
    let socket = stream_socket().map_err(failed)?;
    // EAGAIN is a full backlog, not a connection under way: Unix sockets have no such state.
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)).map_err(failed)?;
    Ok(socket)
}

/// A listening socket under a name that was not there.
fn bind_new(parent: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<OwnedFd, Errno> {
    let socket = stream_socket()?;
    let address = SocketAddrUnix::new(Path::new(&proc_path(parent)).join(name))?;
    rustix::net::bind(&socket, &address)?;
    let bound = open_beneath(parent, name, OFlags::PATH, Mode::empty(), RESOLVE)?;
    set_mode_and_owner(bound.as_fd(), mode, None)?;
    // Only now can anybody connect.
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
