//! Which engine the data belongs to: a word in `<data>/engine`. Files made for containers do not fit child processes,
//! nor the other way round, so the choice holds for as long as the data.

use std::{fs, io, path::Path};

use anyhow::Context;

use crate::{Usage, args::EngineKind};

const FILE: &str = "engine";

/// The engine that the data was made with, where there is any.
///
/// # Errors
/// When the file cannot be read or names no engine.
pub fn read(data_dir: &Path) -> anyhow::Result<Option<EngineKind>> {
    let path = data_dir.join(FILE);
    match fs::read_to_string(&path) {
        // A full disk leaves it so.
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => {
            let path = path.display();
            let said =
                |why: String| Usage(format!("{path}: {why}; write the engine that the data was made with into it"));
            Ok(Some(text.trim().parse().map_err(said)?))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Remembers the engine.
///
/// # Errors
/// When the file cannot be written.
pub fn write(data_dir: &Path, kind: EngineKind) -> anyhow::Result<()> {
    let path = data_dir.join(FILE);
    if read(data_dir)? == Some(kind) {
        return Ok(());
    }
    let written = beneath::Root::open(data_dir)
        .and_then(|root| root.write_atomic(FILE, format!("{}\n", kind.name()).as_bytes(), 0o644, None));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Forgets it: the data is gone.
pub fn forget(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(data_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why an engine was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// Somebody said so, or the data did.
    Told(EngineKind),
    /// Docker, as nobody said anything.
    Default,
    /// Processes, since this host has no engine at all.
    NoEngine,
}

impl Chosen {
    /// The engine.
    pub fn kind(self) -> EngineKind {
        match self {
            Self::Told(kind) => kind,
            Self::Default => EngineKind::Docker,
            Self::NoEngine => EngineKind::Process,
        }
    }
}

/// Decides between what the command line or a setting wants, what the data was made with, and what the host has.
///
/// # Errors
/// [`Usage`] when the data was made with another engine than is wanted now.
pub fn choose(
    wanted: Option<EngineKind>,
    remembered: Option<EngineKind>,
    host_has_socket: bool,
    data_dir: &Path,
) -> Result<Chosen, Usage> {
    match (wanted, remembered) {
        (Some(wanted), Some(before)) if wanted != before => Err(Usage(format!(
            "the data in {} was made with the {} engine and does not fit the {} engine: \
             keep to it (--engine {}), or take another directory (--data-dir)",
            data_dir.display(),
            before.name(),
            wanted.name(),
            before.name(),
        ))),
        (Some(kind), _) | (None, Some(kind)) => Ok(Chosen::Told(kind)),
        (None, None) if host_has_socket => Ok(Chosen::Default),
        (None, None) => Ok(Chosen::NoEngine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EngineKind::{Docker, Process};

    #[test]
    fn the_process_engine_is_taken_unasked_only_where_there_is_no_socket() {
        let choose = |wanted, before, socket| choose(wanted, before, socket, Path::new("/d")).map(Chosen::kind);
        assert_eq!(choose(None, None, true).ok(), Some(Docker));
        assert_eq!(choose(None, None, false).ok(), Some(Process));
        assert_eq!(choose(None, Some(Docker), false).ok(), Some(Docker), "data on docker stays on docker");
        assert_eq!(choose(None, Some(Process), true).ok(), Some(Process));
        assert_eq!(choose(Some(Process), None, true).ok(), Some(Process));
        let refused = choose(Some(Docker), Some(Process), true).unwrap_err().to_string();
        assert!(refused.contains("process engine") && refused.contains("--data-dir"), "{refused}");
    }

    #[test]
    fn what_was_written_is_read_and_nonsense_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        write(folder.path(), Process).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(Process));
        fs::write(folder.path().join(FILE), "podman").unwrap();
        let refused = read(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("podman") && refused.contains("write the engine"), "{refused}");
        // As a disk that was full left it.
        fs::write(folder.path().join(FILE), "").unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        write(folder.path(), Docker).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(Docker));
        forget(folder.path()).unwrap();
        forget(folder.path()).unwrap();
    }
}
