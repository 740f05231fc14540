//! What an instance's process says, kept in two files of bounded size.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest file; the one before it is kept beside it.
const MAX_BYTES: u64 = 10 << 20;

/// So much of the end is read.
const TAIL: u64 = 8 << 10;

/// Copies what comes to `<folder>/instance.log` until both ends are closed.
pub(super) fn keep(
    folder: &Path,
    out: Option<impl AsyncRead + Unpin + Send + 'static>,
    err: Option<impl AsyncRead + Unpin + Send + 'static>,
) {
    let log = Arc::new(Mutex::new(Log { folder: folder.to_owned(), file: None }));
    if let Some(out) = out {
        tokio::spawn(copy(out, log.clone()));
    }
    if let Some(err) = err {
        tokio::spawn(copy(err, log));
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, log: Arc<Mutex<Log>>) {
    let mut buffer = [0; 8192];
    // It is read to the end whatever becomes of the file: a full pipe would stop the instance.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Err(error) = log.lock().unwrap_or_else(PoisonError::into_inner).write(&buffer[..count]) {
            tracing::debug!(%error, "an instance's log cannot be written");
        }
    }
}

/// The end of what was said.
pub(super) fn tail(folder: &Path) -> io::Result<String> {
    let mut file = match File::open(folder.join("instance.log")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Log {
    folder: PathBuf,
    file: Option<(File, u64)>,
}

impl Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, size)| *size >= MAX_BYTES) {
            self.file = None;
            std::fs::rename(self.folder.join("instance.log"), self.folder.join("instance.log.1"))?;
        }
        if self.file.is_none() {
            let path = self.folder.join("instance.log");
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        if let Some((file, size)) = &mut self.file {
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_stays_within_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log { folder: folder.path().to_owned(), file: None };
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..35 {
            log.write(&piece).unwrap();
        }
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().sum::<u64>() <= 2 * MAX_BYTES, "{sizes:?}");
    }
}
