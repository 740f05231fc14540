//! More rights than one was given.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use attack::{Attempt, Outcome, Report};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    thread::UnshareFlags,
};

use crate::verdict::{Verdict, reason};

/// What is told to a process that makes one attempt only.
const ALONE: &str = "BEAVER_ATTACK_ALONE";
/// `nobody`, for who is root already and wants to see whether root can be become.
const NOBODY: u32 = 65_534;

/// A line of the kernel's sheet about this process.
fn status(field: &str) -> io::Result<String> {
    let sheet = fs::read_to_string("/proc/self/status")?;
    let line = sheet.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub fn capability() -> Verdict {
    let mut held = Vec::new();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        match status(set) {
            Ok(value) if value.bytes().all(|digit| digit == b'0') => {}
            Ok(value) => held.push(format!("{set} {value}")),
            Err(error) => return Verdict::broken(reason(&error)),
        }
    }
    if held.is_empty() { Verdict::refused("none in any set") } else { Verdict::done(held.join(", ")) }
}

pub fn new_privileges() -> Verdict {
    match status("NoNewPrivs").as_deref() {
        Ok("1") => Verdict::refused("no_new_privs is 1"),
        Ok(value) => Verdict::done(format!("no_new_privs is {value}")),
        Err(error) => Verdict::broken(reason(error)),
    }
}

pub fn unfiltered() -> Verdict {
    match status("Seccomp").as_deref() {
        Ok("2") => Verdict::refused("a seccomp filter is on"),
        Ok(value) => Verdict::done(format!("seccomp is {value}")),
        Err(error) => Verdict::broken(reason(error)),
    }
}

pub fn set_uid(program: &Path) -> Verdict {
    let mut command = Command::new(program);
    command.arg("who");
    let mut without = rustix::process::geteuid().as_raw();
    if without == 0 {
        without = NOBODY;
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.stdin(Stdio::null()).output() {
        Ok(output) => match String::from_utf8_lossy(&output.stdout).trim() {
            "0" => Verdict::done("it ran as root"),
            // Where an engine shifts ids, a control outside of that finds the image's root as somebody else.
            who if who.parse::<u32>().is_ok_and(|who| who != without) => {
                Verdict::done(format!("it ran as another, {who}"))
            }
            who => Verdict::refused(format!("it ran as {who}")),
        },
        Err(error) => Verdict::refused(reason(&error)),
    }
}

pub fn become_root() -> Verdict {
    let became = Command::new("/proc/self/exe").arg("who").uid(0).stdin(Stdio::null()).stdout(Stdio::null()).status();
    Verdict::of(became, "root")
}

pub fn mount(folder: &Path) -> Verdict {
    let mounted = rustix::mount::mount("beaver", folder, "tmpfs", MountFlags::empty(), None);
    if mounted.is_ok() {
        let _ = rustix::mount::unmount(folder, UnmountFlags::DETACH);
    }
    Verdict::of(mounted, "mounted")
}

/// Undoes what the engine made read-only in /proc and /sys.
pub fn system() -> io::Result<()> {
    for covered in ["/proc/sys", "/proc/sysrq-trigger"] {
        match rustix::mount::unmount(covered, UnmountFlags::DETACH) {
            // Nothing is mounted there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::mount::mount_remount("/sys", MountFlags::empty(), "")?)
}

/// Whether this process makes one attempt only.
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Makes the attempt in a process of its own.
pub fn alone(attempt: &Attempt) -> Verdict {
    let told = serde_json::to_string(attempt).map_err(io::Error::from).and_then(|attempt| {
        let mut command = Command::new("/proc/self/exe");
        command.args(["one", &attempt]).env(ALONE, "1").stdin(Stdio::null()).output()
    });
    let report = told.and_then(|output| Ok(serde_json::from_slice::<Report>(&output.stdout)?));
    match report {
        Ok(Report { outcome: Outcome::Done, what, .. }) => Verdict::done(what),
        Ok(Report { outcome: Outcome::Refused, what, .. }) => Verdict::refused(what),
        Ok(Report { what, .. }) => Verdict::broken(what),
        Err(error) => Verdict::broken(reason(&error)),
    }
}

pub fn unshare() -> Verdict {
    // In another network, or as root of other users, what the instance is kept from would be its own to do.
    let kinds = [("users", UnshareFlags::NEWUSER), ("network", UnshareFlags::NEWNET), ("mounts", UnshareFlags::NEWNS)];
    let mut refused = Vec::new();
    for (name, kind) in kinds {
        #[expect(deprecated, reason = "the other one is unsafe for the sake of FILES, which is not among these")]
        match rustix::thread::unshare(kind) {
            Ok(()) => return Verdict::done(format!("its own {name}")),
            Err(error) => refused.push(reason(&error.into())),
        }
    }
    refused.dedup();
    Verdict::refused(refused.join(", "))
}

pub fn chroot(folder: &Path) -> Verdict {
    Verdict::of(rustix::process::chroot(folder), "another root")
}

pub fn device(path: &Path) -> Verdict {
    // The kernel's log: harmless to read, and its own only to root.
    let made = mknodat(CWD, path, FileType::CharacterDevice, Mode::RWXU, makedev(1, 11));
    if made.is_ok() {
        let _ = fs::remove_file(path);
    }
    Verdict::of(made, "made")
}

pub fn host_name() -> Verdict {
    // Of its own name space.
    Verdict::of(rustix::system::sethostname(b"beaver-attack"), "changed")
}

pub fn module() -> Verdict {
    // There is none of this name: whoever may remove modules is told so.
    match rustix::system::delete_module(c"beaver_attack_no_such_module", 0) {
        Err(Errno::NOENT) => Verdict::done("allowed"),
        result => Verdict::of(result, "allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sheet_is_read() {
        assert!(status("CapBnd").unwrap().len() == 16 && status("NoNewPrivs").unwrap().len() == 1);
        assert!(status("Cap").is_err(), "a field by its whole name");
        assert_eq!(new_privileges().outcome == Outcome::Refused, status("NoNewPrivs").unwrap() == "1");
    }

    #[test]
    fn a_program_that_is_nobodys_gives_nothing() {
        // It takes an argument and prints something else than a zero.
        assert_eq!(set_uid(Path::new("/bin/echo")), Verdict::refused("it ran as who"));
        assert_eq!(set_uid(Path::new("/nowhere")).outcome, Outcome::Refused);
    }
}
