//! The shim's file, put where containers find it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use beneath::Root;
use sha2::{Digest, Sha256};

/// Everybody may read and run it, nobody may write it.
const MODE: u32 = 0o555;

/// Why it is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("reading {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("making {0}")]
    Folder(PathBuf, #[source] io::Error),
    #[error("writing it")]
    Write(#[from] beneath::Error),
}

/// Puts the program into the folder under the name of its digest; where it is then. Another program does not touch one that
/// is there, which containers may have mounted.
pub(super) fn put(program: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let bytes = fs::read(program).map_err(|error| Error::Read(program.to_owned(), error))?;
    let name: String = Sha256::digest(&bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(&name);
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(path);
    }
    fs::create_dir_all(folder).map_err(|error| Error::Folder(folder.to_owned(), error))?;
    Root::open(folder)?.write_atomic(&name, &bytes, MODE, None)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_is_put_once_and_another_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (program, shims) = (folder.path().join("program"), folder.path().join("a/b"));
        assert!(matches!(put(&program, &shims), Err(Error::Read(..))));
        fs::write(&program, "one").unwrap();
        let one = put(&program, &shims).unwrap();
        assert_eq!(fs::read(&one).unwrap(), b"one");
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o7777, MODE);
        assert_eq!(put(&program, &shims).unwrap(), one);
        fs::write(&program, "two").unwrap();
        let two = put(&program, &shims).unwrap();
        assert_ne!(one, two);
        assert_eq!(fs::read_dir(&shims).unwrap().count(), 2);
    }
}
