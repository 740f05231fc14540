//! Files, and what is done with them.

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::symlink,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use attack::READY;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::verdict::{Verdict, reason};

/// Where an instance's own folders are.
pub const IN: &str = "/run/beaver/in";
const DATA: &str = "/data";
/// How many files [`litter`] leaves in each folder.
const LITTER: u32 = 10_000;
/// How deep the folder without a bottom is.
const DEEP: u32 = 200;

/// Writes a file, and makes the folders above.
pub fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, text)
}

/// Listens on a socket until the end, and makes the folders above.
pub fn listen(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || listener.incoming().for_each(|_: io::Result<UnixStream>| {}));
    Ok(())
}

pub fn see(path: &Path) -> Verdict {
    Verdict::of(fs::symlink_metadata(path), "it is there")
}

pub fn mention(path: &Path, text: &str) -> Verdict {
    match fs::read_to_string(path) {
        Ok(there) if there.contains(text) => Verdict::done("it is named"),
        Ok(_) => Verdict::refused("it is not named"),
        Err(error) => Verdict::broken(reason(&error)),
    }
}

pub fn create(folder: &Path) -> Verdict {
    let path = folder.join("beaver-attack");
    let made = File::create_new(&path);
    if made.is_ok() {
        let _ = fs::remove_file(&path);
    }
    Verdict::of(made, "written")
}

pub fn remove(path: &Path) -> Verdict {
    Verdict::of(fs::remove_file(path), "removed")
}

pub fn open(path: &Path, to_write: bool) -> Verdict {
    let mut options = File::options();
    // A file that is not there is not made.
    Verdict::of(options.read(!to_write).write(to_write).open(path), "opened")
}

/// Fills the instance's own folders with what whoever looks in may stumble over: very many files, a folder that is very
/// deep, links to these places, a fifo.
pub fn litter(links: &[String]) -> Result<(), String> {
    let told = |error: io::Error| format!("littering: {error}");
    for folder in [Path::new(IN), Path::new(DATA)] {
        for n in 0..LITTER {
            fs::write(folder.join(format!("litter-{n}")), "").map_err(told)?;
        }
        for (n, link) in links.iter().enumerate() {
            symlink(link, folder.join(format!("link-{n}"))).map_err(told)?;
        }
        mknodat(CWD, folder.join("fifo"), FileType::Fifo, Mode::RWXU, 0).map_err(|error| told(error.into()))?;
        let mut deep = folder.join("deep");
        for _ in 0..DEEP {
            deep.push("d");
        }
        fs::create_dir_all(&deep).map_err(told)?;
        fs::write(deep.join("bottom"), "").map_err(told)?;
    }
    println!("{READY}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use attack::Outcome;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_may_be_written_is_told_from_what_may_not() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("a/file");
        put(&file, "one two").unwrap();
        assert_eq!(create(folder.path()), Verdict::done("written"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
        assert_eq!(mention(&file, "two").outcome, Outcome::Done);
        assert_eq!(mention(&file, "three").outcome, Outcome::Refused);
        assert_eq!((open(&file, true).outcome, open(&file, false).outcome), (Outcome::Done, Outcome::Done));
        assert_eq!(fs::read_to_string(&file).unwrap(), "one two", "nothing was written");
        assert_eq!(remove(&file), Verdict::done("removed"));
        assert_eq!(see(&file), Verdict::refused("No such file or directory"));
        assert_eq!((open(&file, true).outcome, create(&file).outcome), (Outcome::Refused, Outcome::Refused));
        assert!(!file.exists());
    }
}
