//! A file of the operator's that may change at any time, taken over while a service runs.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often such a file should be looked at.
pub const CHECK: Duration = Duration::from_secs(2);
/// The most that is read of one, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WatchedError {
    /// The file system does not give it.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is larger than anything that somebody writes by hand.
    #[error("it is larger than 1 MiB")]
    Size,
}

impl WatchedError {
    /// Whether it is the same for as long as nobody changes the file.
    fn is_of_what_it_says(&self) -> bool {
        match self {
            Self::Read(error) => error.kind() == io::ErrorKind::InvalidData,
            Self::Size => true,
        }
    }
}

/// The file. What it says is told once; so is what is wrong with it.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    /// What was there at the last look, if anything; `None` while that is not known, and then it is read.
    seen: Option<Option<Version>>,
    /// What was wrong the last time it was looked at, which is no news.
    said: Option<String>,
}

/// What a file is known again by: device, inode, size, and when it was changed, in nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Watched {
    /// The file at `path`, which need not be there. Nothing is looked at yet, and until then it counts as missing.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Some(None), said: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has changed since the last look: its text, or `Some(None)` when it is not there any more; `None` when nothing
    /// has, or it is just being written.
    ///
    /// # Errors
    /// When it cannot be read. What is not text, or too large, is read once, not every time; else it is tried again at each look,
    /// and told once it can be read, changed or not.
    pub fn look(&mut self) -> Result<Option<Option<String>>, WatchedError> {
        let seen = self.seen.take();
        let version = version(&self.path)?;
        if seen == Some(version) {
            self.seen = seen;
            return Ok(None);
        }
        let text = version.is_some().then(|| read(&self.path)).transpose().inspect_err(|error| {
            if error.is_of_what_it_says() {
                self.seen = Some(version);
            }
        })?;
        if self::version(&self.path)? != version {
            // It is being written; it is read again when that is done.
            return Ok(None);
        }
        self.seen = Some(version);
        Ok(Some(text))
    }

    /// Nothing is wrong with it now.
    pub fn is_good(&mut self) {
        self.said = None;
    }

    /// Whether this, which is wrong with it, was not said the last time already.
    pub fn is_news(&mut self, wrong: &str) -> bool {
        let news = self.said.as_deref() != Some(wrong);
        self.said = Some(wrong.to_owned());
        news
    }
}

fn version(path: &Path) -> Result<Option<Version>, WatchedError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(WatchedError::Read(error)),
    }
}

fn read(path: &Path) -> Result<String, WatchedError> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(WatchedError::Read)?;
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(WatchedError::Read)?;
    if read as u64 > MAX_BYTES { Err(WatchedError::Size) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = Watched::new(path.clone());
        assert!(file.look().unwrap().is_none(), "it was not there before either");
        fs::write(&path, "one").unwrap();
        assert_eq!(file.look().unwrap(), Some(Some("one".into())));
        assert!(file.look().unwrap().is_none());
        // As editors save: another file under the same name.
        fs::write(folder.path().join("new"), "two").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(file.look().unwrap(), Some(Some("two".into())));
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(matches!(file.look(), Err(WatchedError::Read(_))));
        assert!(file.look().unwrap().is_none(), "once");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "three").unwrap();
        assert_eq!(file.look().unwrap(), Some(Some("three".into())));
        // What it is in is away for a while, and another thing in its place.
        let (away, folder) = (folder.path().with_extension("away"), folder.path());
        fs::rename(folder, &away).unwrap();
        fs::write(folder, "").unwrap();
        for _ in 0..2 {
            assert!(matches!(file.look(), Err(WatchedError::Read(_))));
        }
        fs::remove_file(folder).unwrap();
        fs::rename(&away, folder).unwrap();
        assert_eq!(file.look().unwrap(), Some(Some("three".into())), "it is back, as it was");
        assert!(file.look().unwrap().is_none(), "once");
        fs::write(&path, "x".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(matches!(file.look(), Err(WatchedError::Size)));
        fs::remove_file(&path).unwrap();
        assert_eq!(file.look().unwrap(), Some(None));

        assert!(file.is_news("a") && !file.is_news("a") && file.is_news("b"));
        file.is_good();
        assert!(file.is_news("b"));
    }
}
