//! Listing, measuring and removing whole directories that somebody hostile filled.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use beneath::{EntryKind, Error, Root};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, mkfifoat, openat};
use tempfile::TempDir;

fn playground() -> (TempDir, Root) {
    fill_playground(tempfile::tempdir().expect("a folder"))
}

/// The same in memory where there is such a place: thousands of files on a busy disk take long.
fn playground_in_memory() -> (TempDir, Root) {
    fill_playground(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder"))
}

fn fill_playground(folder: TempDir) -> (TempDir, Root) {
    for dir in ["mine", "mine/tree", "theirs"] {
        fs::create_dir(folder.path().join(dir)).expect("a directory");
    }
    fs::write(folder.path().join("theirs/secret"), "theirs").expect("a file");
    let root = Root::open(folder.path().join("mine")).expect("the root");
    (folder, root)
}

/// One of everything, links that lead out above all.
fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("a/b/c")).expect("directories");
    fs::write(tree.join("a/b/c/file"), "x").expect("a file");
    symlink("../../theirs", tree.join("linked-dir")).expect("a link");
    symlink("../../theirs/secret", tree.join("a/linked-file")).expect("a link");
    symlink("/", tree.join("a/b/everything")).expect("a link");
    symlink(".", tree.join("circle")).expect("a link");
    mkfifoat(CWD, tree.join("fifo"), Mode::RWXU).expect("a fifo");
    drop(UnixListener::bind(tree.join("socket")).expect("a socket"));
    fs::create_dir(tree.join("shut")).expect("a directory");
    fs::write(tree.join("shut/file"), "x").expect("a file");
    fs::set_permissions(tree.join("shut"), fs::Permissions::from_mode(0o000)).expect("a mode");
}

/// A tree of this many levels, deeper than any path can say.
fn dig(tree: &Path, levels: usize) {
    let mut here = openat(CWD, tree, OFlags::DIRECTORY, Mode::empty()).expect("the tree");
    for _ in 0..levels {
        mkdirat(&here, "deeper-and-deeper", Mode::RWXU).expect("a directory");
        here = openat(&here, "deeper-and-deeper", OFlags::DIRECTORY, Mode::empty()).expect("the directory");
    }
}

fn theirs_is_untouched(folder: &TempDir) -> bool {
    fs::read(folder.path().join("theirs/secret")).is_ok_and(|bytes| bytes == b"theirs")
}

#[test]
fn removing_a_tree_takes_everything_in_it_and_nothing_else() {
    let (folder, root) = playground();
    let mine = folder.path().join("mine");
    fill(&mine.join("tree"));
    fs::write(mine.join("kept"), "").expect("a file");
    symlink("../theirs", mine.join("link")).expect("a link");
    root.remove_tree("tree").expect("removed");
    root.remove_tree("tree").expect("absent is fine");
    root.remove_tree("absent/tree").expect("absent is fine");
    root.remove_tree("link").expect("the link");
    assert!(theirs_is_untouched(&folder));
    assert_eq!(fs::read_dir(&mine).expect("mine").count(), 1);
    root.remove_tree("kept").expect("a file is a small tree");

    symlink("../theirs", mine.join("link")).expect("a link");
    for path in ["../theirs", "link/secret", "/tmp", "", "."] {
        assert!(matches!(root.remove_tree(path), Err(Error::Refused { .. })), "{path:?}");
    }
    assert!(theirs_is_untouched(&folder));
}

#[test]
fn clearing_keeps_the_directory_itself() {
    let (folder, root) = playground();
    let tree = folder.path().join("mine/tree");
    fill(&tree);
    let inode = fs::metadata(&tree).expect("the tree").ino();
    root.clear("tree").expect("cleared");
    assert_eq!(fs::metadata(&tree).expect("the tree").ino(), inode);
    assert_eq!(fs::read_dir(&tree).expect("the tree").count(), 0);
    assert!(theirs_is_untouched(&folder));

    symlink("../theirs", folder.path().join("mine/link")).expect("a link");
    assert!(matches!(root.clear("link"), Err(Error::Refused { .. })));
    assert!(matches!(root.clear("../theirs"), Err(Error::Refused { .. })));
    assert!(matches!(root.clear("absent"), Err(Error::NotFound { .. })));
    assert!(theirs_is_untouched(&folder));
    root.clear("").expect("itself");
    assert_eq!(fs::read_dir(folder.path().join("mine")).expect("mine").count(), 0);
}

#[test]
fn ten_thousand_files_are_counted_refused_and_removed() {
    let (folder, root) = playground_in_memory();
    let tree = folder.path().join("mine/tree");
    for n in 0..10_000 {
        fs::write(tree.join(n.to_string()), "").expect("a file");
    }
    assert_eq!(root.list("tree", 10_000).expect("within the limit").len(), 10_000);
    assert!(matches!(root.list("tree", 9_999), Err(Error::TooLarge { .. })));
    assert!(root.size("tree", 10_000).is_ok());
    assert!(matches!(root.size("tree", 9_999), Err(Error::TooLarge { .. })));
    root.clear("tree").expect("cleared");
    assert!(root.list("tree", 0).expect("empty").is_empty());
}

#[test]
fn a_tree_without_a_bottom_is_removed_all_the_same() {
    let (folder, root) = playground_in_memory();
    let tree = folder.path().join("mine/tree");
    dig(&tree, 31);
    assert!(root.size("tree", 1_000).is_ok(), "the control");
    root.clear("tree").expect("cleared");

    // 3,000 levels of 18 bytes are thirteen times the longest path there is.
    dig(&tree, 3_000);
    assert!(matches!(root.size("tree", 1_000_000), Err(Error::TooLarge { .. })));
    root.remove_tree("tree").expect("removed");
    assert_eq!(fs::read_dir(folder.path().join("mine")).expect("mine").count(), 0);
}

#[test]
fn listing_says_what_each_thing_is_without_following_it() {
    let (folder, root) = playground();
    fill(&folder.path().join("mine/tree"));
    let mut entries = root.list("tree", 100).expect("a list");
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let found: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().expect("UTF-8"), entry.kind)).collect();
    assert_eq!(
        found,
        [
            ("a", EntryKind::Directory),
            ("circle", EntryKind::Symlink),
            ("fifo", EntryKind::Other),
            ("linked-dir", EntryKind::Symlink),
            ("shut", EntryKind::Directory),
            ("socket", EntryKind::Socket),
        ]
    );
    for path in ["tree/linked-dir", "tree/circle", "tree/fifo", "../theirs"] {
        assert!(matches!(root.list(path, 100), Err(Error::Refused { .. })), "{path:?}");
    }
    assert!(matches!(root.list("absent", 100), Err(Error::NotFound { .. })));
}

#[test]
fn size_counts_blocks_on_disk_and_no_link() {
    let (folder, root) = playground();
    let tree = folder.path().join("mine/tree");
    let empty = root.size("tree", 100).expect("a size");
    fs::write(folder.path().join("theirs/big"), vec![1; 1 << 20]).expect("a file");
    symlink("../../theirs", tree.join("linked-dir")).expect("a link");
    symlink(".", tree.join("circle")).expect("a link");
    fs::File::create(tree.join("hole")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    let without = root.size("tree", 100).expect("a size");
    assert!(without - empty < 64 * 1024, "{without} {empty}");

    fs::create_dir(tree.join("sub")).expect("a directory");
    fs::write(tree.join("sub/file"), vec![1; 1 << 20]).expect("a file");
    fs::File::open(tree.join("sub/file")).and_then(|file| file.sync_all()).expect("on disk");
    let with = root.size("tree", 100).expect("a size");
    assert!((1 << 20..3 << 19).contains(&(with - without)), "{with} {without}");
    assert!(root.size("tree/sub/file", 0).expect("one file") >= 1 << 20);
    assert!(matches!(root.size("tree/linked-dir", 100), Err(Error::Refused { .. })));
    assert!(matches!(root.size("absent", 100), Err(Error::NotFound { .. })));
}

#[test]
fn removing_comes_to_an_end_while_somebody_fills_and_swaps() {
    let (folder, root) = playground();
    let tree = folder.path().join("mine/tree");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0_u64;
            while !done.load(Ordering::Relaxed) {
                n += 1;
                // Each may fail, since somebody removes it meanwhile: that is the point.
                let dir = tree.join(format!("d{}", n % 7));
                let _ = fs::create_dir(&dir);
                let _ = fs::write(dir.join("file"), "x");
                let _ = fs::rename(&dir, tree.join("moved"));
                let _ = symlink("../../theirs", &dir);
            }
        });
        for _ in 0..10 {
            assert!(matches!(root.clear("tree"), Ok(()) | Err(Error::Busy { .. })));
        }
        done.store(true, Ordering::Relaxed);
    });
    root.clear("tree").expect("cleared, once nobody fills it");
    assert!(theirs_is_untouched(&folder));
}

/// The owner of what is there, links not followed.
fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).expect("something");
    (meta.uid(), meta.gid())
}

#[test]
fn what_something_is_is_told_without_opening_it() {
    let (folder, root) = playground();
    let tree = folder.path().join("mine/tree");
    fill(&tree);
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o2750)).expect("a mode");
    let me = owner(&tree);
    for (path, kind, mode) in [
        ("tree/a", EntryKind::Directory, Some(0o2750)),
        ("tree/shut", EntryKind::Directory, Some(0)),
        ("tree/a/b/c/file", EntryKind::File, None),
        ("tree/fifo", EntryKind::Other, None),
        ("tree/socket", EntryKind::Socket, None),
    ] {
        let meta = root.meta(path).expect("something");
        assert_eq!((meta.kind, meta.owner), (kind, me), "{path}");
        assert!(mode.is_none_or(|mode| meta.mode == mode), "{path} {meta:?}");
    }
    for refused in ["tree/linked-dir", "tree/linked-dir/secret", "tree/a/b/everything", "../theirs"] {
        assert!(matches!(root.meta(refused), Err(Error::Refused { .. })), "{refused}");
    }
    assert!(matches!(root.meta("tree/absent"), Err(Error::NotFound { .. })));
}

#[test]
fn a_tree_is_given_away_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        // Only root can give anything away.
        return;
    }
    let (folder, root) = playground();
    let (mine, theirs) = (folder.path().join("mine"), folder.path().join("theirs"));
    let tree = mine.join("tree");
    fill(&tree);
    dig(&tree, 100);
    let (before, new) = (owner(&theirs), (20_001, 20_001));
    assert!(!root.is_owned_by("tree", new, 1_000).expect("a look"));
    root.give_tree("tree", new, 1_000).expect("given");

    let mut looked = 0;
    let mut here = vec![tree.clone()];
    while let Some(path) = here.pop() {
        assert_eq!(owner(&path), new, "{}", path.display());
        looked += 1;
        if fs::symlink_metadata(&path).expect("something").is_dir() {
            here.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
    }
    assert!(looked > 110, "{looked}");
    for other in [theirs.as_path(), &theirs.join("secret"), &mine, Path::new("/")] {
        assert_eq!(owner(other), before, "{}", other.display());
    }
    assert!(root.is_owned_by("tree", new, 1_000).expect("a look"));
    assert!(matches!(root.give_tree("tree/linked-dir", new, 1_000), Err(Error::Refused { .. })));

    // What is directly in it is looked at too, as far as it is asked for.
    std::os::unix::fs::lchown(tree.join("circle"), Some(0), Some(0)).expect("a link of root's");
    assert!(!root.is_owned_by("tree", new, 1_000).expect("a look"));
    assert!(root.is_owned_by("tree", new, 0).expect("a look"));
}

#[test]
fn a_tree_that_was_not_given_to_its_end_shows_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (folder, root) = playground();
    let tree = folder.path().join("mine/tree");
    dig(&tree, 100);
    let new = (20_001, 20_001);
    // Its own owner is right, as it may have been made before anything was put into it.
    std::os::unix::fs::lchown(&tree, Some(new.0), Some(new.1)).expect("given");
    for max_entries in [10, 50, 99] {
        assert!(matches!(root.give_tree("tree", new, max_entries), Err(Error::TooLarge { .. })));
        assert!(!root.is_owned_by("tree", new, 1_000).expect("a look"), "{max_entries}");
    }
    root.give_tree("tree", new, 100).expect("given");
    assert!(root.is_owned_by("tree", new, 1_000).expect("a look"));
}
