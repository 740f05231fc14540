//! The instance's own socket, its lock, and paths that may be longer than a socket address can hold.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use service::Shutdown;
use tokio::net::UnixListener;

/// `sun_path` of `sockaddr_un` holds 108 bytes, the closing NUL included (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// How often a lock that somebody else holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(50);

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

/// Listens on `name` in `folder`, mode 0660, in the place of one that an earlier process left.
///
/// It is made under another name and then renamed, so that nobody meets it before its mode is right.
///
/// # Errors
/// When it cannot be made.
pub fn listen(folder: &Path, name: &str) -> anyhow::Result<UnixListener> {
    let attempt = || -> io::Result<UnixListener> {
        let (fresh, lasting) = (SocketPath::new(folder, &format!("{name}.new"))?, SocketPath::new(folder, name)?);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, &lasting)?;
        Ok(listener)
    };
    attempt().with_context(|| format!("{} cannot be listened on", folder.join(name).display()))
}

/// Waits until something is so, which is looked at whenever somebody knocks: they are turned away until then, and come again.
/// False when `stop` came first.
///
/// # Errors
/// When it cannot be looked at, or the socket fails.
pub async fn until(
    listener: &UnixListener,
    is_so: impl Fn() -> anyhow::Result<bool>,
    stop: &Shutdown,
) -> anyhow::Result<bool> {
    loop {
        tokio::select! {
            knock = listener.accept() => drop(knock?),
            () = stop.cancelled() => return Ok(false),
        }
        if is_so()? {
            return Ok(true);
        }
    }
}

/// Takes the lock of the data folder, waiting until an earlier process is gone. `None` when `stop` came first.
///
/// # Errors
/// When the lock file cannot be made.
pub async fn lock(data: &Path, stop: &Shutdown) -> anyhow::Result<Option<File>> {
    let path = data.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("{} cannot be made: the data folder must be writable", path.display()))?;
    let mut said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!("waiting for an earlier process of this instance to end");
                }
            }
            Err(TryLockError::Error(error)) => return Err(error).context("the data folder cannot be locked"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_POLL) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_long_path_works() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for folder in [folder.path(), &deep] {
            drop(listen(folder, "http.sock").unwrap());
            let listener = listen(folder, "http.sock").unwrap();
            let mode = std::fs::metadata(folder.join("http.sock")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
            let path = SocketPath::new(folder, "http.sock").unwrap();
            let (connected, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
            assert!(connected.is_ok() && accepted.is_ok());
        }
    }

    #[tokio::test]
    async fn the_second_process_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let stop = Shutdown::new();
        let first = lock(folder.path(), &stop).await.unwrap().unwrap();
        let (path, other) = (folder.path().to_owned(), stop.clone());
        let second = tokio::spawn(async move { lock(&path, &other).await });
        assert!(
            tokio::time::timeout(Duration::from_millis(150), async {
                while !second.is_finished() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .is_err()
        );
        let begun = Instant::now();
        drop(first);
        assert!(second.await.unwrap().unwrap().is_some() && begun.elapsed() < Duration::from_secs(5));
    }
}
