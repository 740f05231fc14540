//! As much as one can get, up to a bound.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::verdict::{Verdict, reason};

/// How much is written or taken at once.
const PIECE: usize = 1 << 20;

pub fn processes(count: u32) -> Verdict {
    let mut children: Vec<Child> = Vec::new();
    let mut failed = None;
    for _ in 0..count {
        let linger = Command::new("/proc/self/exe").arg("linger").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        match linger {
            Ok(child) => children.push(child),
            Err(error) => {
                failed = Some(reason(&error));
                break;
            }
        }
    }
    let had = children.len();
    for child in &mut children {
        // With its standard input it ends.
        drop(child.stdin.take());
        let _ = child.kill();
        let _ = child.wait();
    }
    match failed {
        None => Verdict::done(format!("{had} at once")),
        Some(reason) => Verdict::refused(format!("{had} at once, then: {reason}")),
    }
}

pub fn memory(bytes: u64) -> Verdict {
    let eaten = Command::new("/proc/self/exe").args(["eat", &bytes.to_string()]).stdin(Stdio::null()).status();
    match eaten {
        Ok(status) if status.success() => Verdict::done(format!("{} MiB", bytes >> 20)),
        Ok(status) => Verdict::refused(status),
        Err(error) => Verdict::broken(reason(&error)),
    }
}

/// Takes so many bytes, and touches each page of them.
pub fn eat(bytes: u64) {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for _ in 0..bytes.div_ceil(PIECE as u64) {
        taken.push(vec![1; PIECE]);
    }
    std::hint::black_box(&taken);
}

pub fn files(count: u64) -> Verdict {
    let mut open: Vec<File> = Vec::new();
    for _ in 0..count {
        match File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => return Verdict::refused(format!("{} open, then: {}", open.len(), reason(&error))),
        }
    }
    Verdict::done(format!("{} open", open.len()))
}

pub fn fill(folder: &Path, bytes: u64) -> Verdict {
    let path = folder.join("beaver-attack");
    let mut written = 0_u64;
    let filled: io::Result<()> = File::create(&path).and_then(|mut file| {
        let piece = vec![1; PIECE];
        while written < bytes {
            file.write_all(&piece)?;
            written += PIECE as u64;
        }
        Ok(())
    });
    let _ = fs::remove_file(&path);
    match filled {
        Ok(()) => Verdict::done(format!("{} MiB", written >> 20)),
        Err(error) => Verdict::refused(format!("{} MiB, then: {}", written >> 20, reason(&error))),
    }
}

pub fn many_files(folder: &Path, count: u32) -> Verdict {
    let place = folder.join("beaver-attack");
    let mut made = 0;
    let all = fs::create_dir(&place).and_then(|()| {
        while made < count {
            File::create(place.join(made.to_string()))?;
            made += 1;
        }
        Ok(())
    });
    let _ = fs::remove_dir_all(&place);
    match all {
        Ok(()) => Verdict::done(format!("{made} files")),
        Err(error) => Verdict::refused(format!("{made} files, then: {}", reason(&error))),
    }
}

/// Writes so many bytes to the log, and some.
pub fn flood(bytes: u64) -> Result<(), String> {
    let line = format!("{}\n", "x".repeat(4095));
    let mut out = io::stdout().lock();
    for _ in 0..bytes.div_ceil(4096) {
        out.write_all(line.as_bytes()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use attack::Outcome;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn nothing_is_left_of_what_was_filled() {
        let folder = TempDir::new().unwrap();
        assert_eq!(fill(folder.path(), 3 << 20), Verdict::done("3 MiB"));
        assert_eq!(many_files(folder.path(), 50), Verdict::done("50 files"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let nowhere = folder.path().join("nowhere");
        assert_eq!((fill(&nowhere, 1).outcome, many_files(&nowhere, 1).outcome), (Outcome::Refused, Outcome::Refused));
        assert_eq!(files(10), Verdict::done("10 open"));
    }
}
