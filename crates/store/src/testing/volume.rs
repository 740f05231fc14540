//! A file system of a test's own, in memory: small, and full or read-only when the test wants it so.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system; unmounted when it is dropped.
#[derive(Debug)]
pub struct Volume(tempfile::TempDir);

impl Volume {
    /// One of so many kilobytes. `None`, said on standard error, for whoever may not mount anything.
    ///
    /// # Panics
    ///
    /// When root cannot mount it.
    pub fn mount(kilobytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            // Not with eprintln!, which a test that passes keeps to itself.
            let _ = writeln!(io::stderr(), "a full disk was not tested: only root can mount one");
            return None;
        }
        let options = format!("size={kilobytes}k,mode=0755");
        run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", folder.path().to_str().unwrap()]);
        Some(Self(folder))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join(".filler")
    }

    /// Leaves no byte.
    ///
    /// # Panics
    ///
    /// When the file that fills it cannot be made.
    pub fn fill(&self) {
        let mut file = fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        let mut size = 64 << 10;
        while size > 0 {
            if file.write(&vec![1; size]).is_err() {
                size /= 2;
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    ///
    /// When it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    /// Lets nobody write, or lets them again.
    ///
    /// # Panics
    ///
    /// When somebody has a file open for writing.
    pub fn set_read_only(&self, is: bool) {
        let options = if is { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", options, self.path().to_str().unwrap()]);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
