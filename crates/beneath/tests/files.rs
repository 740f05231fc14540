//! Reading and writing single files in a directory that somebody hostile fills. Each refusal stands beside a case that works.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use beneath::{Error, Root};
use rustix::fs::{CWD, Mode, RenameFlags, mkfifoat, renameat_with};
use tempfile::TempDir;

/// A directory `mine` with a file in it, beside one `theirs` that must never be reached.
fn playground() -> (TempDir, Root) {
    let folder = tempfile::tempdir().expect("a folder");
    for dir in ["mine", "mine/sub", "theirs"] {
        fs::create_dir(folder.path().join(dir)).expect("a directory");
    }
    fs::write(folder.path().join("mine/file"), "mine").expect("a file");
    fs::write(folder.path().join("mine/sub/file"), "below").expect("a file");
    fs::write(folder.path().join("theirs/secret"), "theirs").expect("a file");
    let root = Root::open(folder.path().join("mine")).expect("the root");
    (folder, root)
}

fn outcome<T>(result: Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(Error::NotFound { .. }) => "not found",
        Err(Error::Refused { .. }) => "refused",
        Err(Error::Busy { .. }) => "busy",
        Err(Error::ConnectionRefused { .. }) => "connection refused",
        Err(Error::TooLarge { .. }) => "too large",
        Err(Error::Io { .. }) => "io",
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn reading_takes_regular_files_beneath_and_nothing_else() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    symlink("../theirs/secret", mine.join("link-out")).expect("a link");
    symlink("file", mine.join("link-in")).expect("a link");
    symlink("nowhere", mine.join("dangling")).expect("a link");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    symlink("sub", mine.join("linked-sub")).expect("a link");
    symlink("/proc/self/root", mine.join("magic")).expect("a link");
    mkfifoat(CWD, mine.join("fifo"), Mode::RWXU).expect("a fifo");
    fs::File::create(mine.join("endless")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    let _listener = UnixListener::bind(mine.join("socket")).expect("a socket");
    let absolute = folder.path().join("mine/file");

    for (path, expected) in [
        ("file", "done"),
        ("sub/file", "done"),
        ("./sub//file", "done"),
        ("absent", "not found"),
        ("absent/file", "not found"),
        ("link-out", "refused"),
        ("link-in", "refused"),
        ("dangling", "refused"),
        ("linked-dir/secret", "refused"),
        ("linked-sub/file", "refused"),
        ("magic/etc/passwd", "refused"),
        ("fifo", "refused"),
        ("socket", "refused"),
        ("sub", "refused"),
        ("", "refused"),
        ("file/x", "refused"),
        ("../theirs/secret", "refused"),
        ("sub/../file", "refused"),
        ("..", "refused"),
        ("nul\0", "refused"),
        ("endless", "too large"),
        (absolute.to_str().expect("UTF-8"), "refused"),
    ] {
        assert_eq!(outcome(root.read(path, 1024)), expected, "{path:?}");
    }
    assert_eq!(root.read("file", 1024).expect("the file"), b"mine");
}

#[test]
fn reading_is_bounded_to_the_byte() {
    let (_folder, root) = playground();
    assert_eq!(root.read("file", 4).expect("exactly"), b"mine");
    assert_eq!(outcome(root.read("file", 3)), "too large");
    assert_eq!(root.read("file", u64::MAX).expect("no bound"), b"mine");
}

/// Files in /proc say that they are empty, as a file does that grows between looking and reading.
#[test]
fn reading_does_not_believe_the_size() {
    let root = Root::open("/proc/self").expect("/proc");
    assert_eq!(outcome(root.read("status", 16)), "too large");
    assert_eq!(outcome(root.read("status", 1 << 20)), "done");
}

#[test]
fn a_name_that_is_swapped_all_the_time_never_leads_out() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    fs::write(mine.join("sub/secret"), "below").expect("a file");
    symlink("../theirs", mine.join("swapped")).expect("a link");
    let (a, b) = (mine.join("sub"), mine.join("swapped"));
    let done = std::sync::atomic::AtomicBool::new(false);

    let (mut naive_leaks, mut reads, mut refusals) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).expect("an exchange");
            }
        });
        for round in 0..200_000 {
            naive_leaks += u32::from(fs::read(a.join("secret")).is_ok_and(|bytes| bytes == b"theirs"));
            match root.read("sub/secret", 1024) {
                Ok(bytes) => {
                    assert_eq!(bytes, b"below");
                    reads += 1;
                }
                Err(_) => refusals += 1,
            }
            if round > 1_000 && naive_leaks > 0 && reads > 0 && refusals > 0 {
                break;
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // The control: by path alone, the very same reads did lead out.
    assert!(naive_leaks > 0 && reads > 0 && refusals > 0, "{naive_leaks} {reads} {refusals}");
}

#[test]
fn writing_replaces_what_has_the_name_and_never_writes_through_it() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    symlink("../theirs/secret", mine.join("link")).expect("a link");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    mkfifoat(CWD, mine.join("fifo"), Mode::RWXU).expect("a fifo");

    for (path, expected) in [
        ("new", "done"),
        ("file", "done"),
        ("sub/new", "done"),
        ("link", "done"),
        ("fifo", "done"),
        ("sub", "refused"),
        ("absent/new", "not found"),
        ("linked-dir/secret", "refused"),
        ("../theirs/secret", "refused"),
        ("/tmp/new", "refused"),
        ("", "refused"),
    ] {
        assert_eq!(outcome(root.write_atomic(path, b"written", 0o640, None)), expected, "{path:?}");
        if expected == "done" {
            assert_eq!(root.read(path, 1024).expect("what was written"), b"written", "{path:?}");
            assert_eq!(fs::symlink_metadata(mine.join(path)).expect("a file").mode() & 0o7777, 0o640, "{path:?}");
        }
    }
    assert_eq!(fs::read(folder.path().join("theirs/secret")).expect("untouched"), b"theirs");
    assert_eq!(names(&mine), ["fifo", "file", "link", "linked-dir", "new", "sub"], "no temporary file is left");
    assert_eq!(names(&mine.join("sub")), ["file", "new"]);
}

#[test]
fn owners_are_set_by_root_and_left_alone_by_others() {
    let (folder, root) = playground();
    let is_root = rustix::process::geteuid().is_root();
    let owner = Some((20_001, 10_001));
    root.write_atomic("owned", b"x", 0o400, owner).expect("a file");
    root.create_dir("owned-dir", 0o2770, owner).expect("a directory");
    for (name, mode) in [("owned", 0o400), ("owned-dir", 0o2770)] {
        let found = fs::metadata(folder.path().join("mine").join(name)).expect("it");
        assert_eq!(found.mode() & 0o7777, mode, "{name}");
        assert_eq!((found.uid(), found.gid()) == (20_001, 10_001), is_root, "{name}");
    }
}

#[test]
fn directories_are_made_once_and_mended_later() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    let theirs = fs::metadata(folder.path().join("theirs")).expect("theirs").mode();
    for (path, expected) in [
        ("made", "done"),
        ("made", "done"),
        ("made/below", "done"),
        ("absent/below", "not found"),
        ("file", "refused"),
        ("linked-dir", "refused"),
        ("linked-dir/new", "refused"),
        ("../new", "refused"),
        (".", "refused"),
    ] {
        assert_eq!(outcome(root.create_dir(path, 0o751, None)), expected, "{path:?}");
    }
    let mode = || fs::metadata(mine.join("made")).expect("it").mode() & 0o7777;
    assert_eq!(mode(), 0o751);
    // Its owner has shut it: handles need no right to read, so it can still be opened and mended.
    fs::set_permissions(mine.join("made"), fs::Permissions::from_mode(0o000)).expect("a mode");
    root.create_dir("made", 0o751, None).expect("mended");
    assert_eq!(mode(), 0o751);
    assert_eq!(fs::metadata(folder.path().join("theirs")).expect("theirs").mode(), theirs);
}

#[test]
fn renaming_and_removing_touch_the_link_and_not_its_target() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    symlink("../theirs/secret", mine.join("link")).expect("a link");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");

    for (from, to, expected) in [
        ("file", "sub/moved", "done"),
        ("sub/moved", "file", "done"),
        ("link", "other-link", "done"),
        ("absent", "x", "not found"),
        ("file", "absent/x", "not found"),
        ("file", "linked-dir/x", "refused"),
        ("linked-dir/secret", "x", "refused"),
        ("file", "../x", "refused"),
        ("../theirs/secret", "x", "refused"),
        ("file", "sub", "refused"),
    ] {
        assert_eq!(outcome(root.rename(from, to)), expected, "{from} to {to}");
    }
    for (path, expected) in [
        ("other-link", "done"),
        ("absent", "done"),
        ("absent/absent", "done"),
        ("file", "done"),
        ("sub", "refused"),
        ("linked-dir/secret", "refused"),
        ("../theirs/secret", "refused"),
    ] {
        assert_eq!(outcome(root.remove_file(path)), expected, "{path:?}");
    }
    assert_eq!(names(&mine), ["linked-dir", "sub"]);
    assert_eq!(fs::read(folder.path().join("theirs/secret")).expect("untouched"), b"theirs");
}

#[test]
fn a_handle_is_one_directory_and_stays_it() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    let sub = root.dir("sub").expect("a directory");
    fs::rename(mine.join("sub"), mine.join("elsewhere")).expect("renamed");
    symlink("../theirs", mine.join("sub")).expect("a link in its place");
    assert_eq!(sub.read("file", 1024).expect("still there"), b"below");
    assert_eq!(sub.clone().dir(".").expect("itself").read("file", 1024).expect("still there"), b"below");
    for (path, expected) in [
        ("elsewhere", "done"),
        ("file", "refused"),
        ("linked-dir", "refused"),
        ("..", "refused"),
        ("absent", "not found"),
    ] {
        assert_eq!(outcome(root.dir(path)), expected, "{path:?}");
    }
    assert_eq!(outcome(Root::open(mine.join("file"))), "refused");
    assert_eq!(outcome(Root::open(mine.join("absent"))), "not found");
}

/// deploy-control's container has no CAP_FSETID: without care, the kernel drops the bit silently.
#[test]
fn the_set_group_id_bit_is_given_without_the_capability_for_it() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    if !rustix::process::geteuid().is_root() {
        return; // giving away is root's alone, and so is this trap
    }
    let folder = tempfile::tempdir().unwrap();
    let root = beneath::Root::open(folder.path()).unwrap();
    // Capabilities are a thread's own, so other tests keep theirs.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, sets).unwrap();

    let look = |name: &str| {
        let meta = std::fs::metadata(folder.path().join(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    root.create_dir("in", 0o2750, Some((20_001, 10_001))).unwrap();
    assert_eq!(look("in"), (0o2750, 20_001, 10_001));
    // The trap itself, and that a directory that lost the bit gets it back.
    std::fs::set_permissions(folder.path().join("in"), std::fs::Permissions::from_mode(0o2750)).unwrap();
    assert_eq!(look("in").0, 0o750, "the kernel drops it");
    root.create_dir("in", 0o2750, Some((20_001, 10_001))).unwrap();
    assert_eq!(look("in"), (0o2750, 20_001, 10_001));
}
