//! The place of the one process.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    time::Duration,
};

use tokio::net::{UnixListener, UnixStream};

use crate::{SocketPath, listen};

/// The socket by which whoever has the place is asked to end: each connection to it asks, and nothing is said on it.
pub const END: &str = "end.sock";

/// How often a place that somebody else has is asked for.
const ASK: Duration = Duration::from_millis(50);
/// The wait after a connection could not be accepted, as when there are too many.
const PAUSE: Duration = Duration::from_millis(50);

/// The place of an instance's one process, from when it is taken until this is dropped or the process ends, however it does.
#[derive(Debug)]
pub struct Place {
    _lock: File,
    end: UnixListener,
}

impl Place {
    /// Takes the place at the door in this folder, where every process of the instance has its sockets: a lock on the folder
    /// itself. Whoever has it is asked to end, by [`END`], and waited for, for as long as that takes. May be left off.
    ///
    /// # Errors
    /// When the folder cannot be locked, or the socket not be made.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn take(folder: &Path) -> io::Result<Self> {
        let lock = File::open(folder)?;
        while !try_lock(&lock)? {
            // It may not listen yet, or not any more: then it is asked the next time, or ends anyway.
            let _ = UnixStream::connect(SocketPath::new(folder, END)?).await;
            tokio::time::sleep(ASK).await;
        }
        Ok(Self { _lock: lock, end: listen(folder, END)? })
    }

    /// Waits until somebody asks this process to end. May be left off.
    pub async fn asked_to_end(&self) {
        while self.end.accept().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Locks a file or a folder, and waits for whoever has it locked, for as long as that takes. May be left off.
///
/// # Errors
/// When it cannot be locked.
pub async fn lock(file: &File) -> io::Result<()> {
    while !try_lock(file)? {
        tokio::time::sleep(ASK).await;
    }
    Ok(())
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_comes_later_asks_and_waits_until_the_place_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let first = Place::take(folder.path()).await.unwrap();
        let mut second = Box::pin(Place::take(folder.path()));
        tokio::select! {
            () = first.asked_to_end() => {}
            _ = &mut second => panic!("two at a time"),
        }
        // Asked is not gone.
        let third = tokio::time::timeout(Duration::from_millis(150), &mut second).await;
        assert!(third.is_err());
        drop(first);
        let second = tokio::time::timeout(Duration::from_secs(30), second).await.unwrap().unwrap();
        // What was asked of the first is not asked of the second.
        assert!(tokio::time::timeout(Duration::from_millis(50), second.asked_to_end()).await.is_err());
    }

    #[tokio::test]
    async fn one_that_cannot_be_asked_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let held = File::open(folder.path()).unwrap();
        held.lock().unwrap();
        let mut waiting = Box::pin(Place::take(folder.path()));
        assert!(tokio::time::timeout(Duration::from_millis(150), &mut waiting).await.is_err());
        drop(held);
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    }
}
