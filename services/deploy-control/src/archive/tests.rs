//! Archives that were taken along and come back the same, and archives that were made to do harm.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
};

use beneath::Root;
use contracts::{
    InstanceId,
    instance::{FROM_ARCHIVE, REVOKED, SNAPSHOT},
};
use tar::{Builder, EntryType, Header};

use super::{
    Configured, Manifest, Program,
    read::{Error, Limits, unpack},
    write::Source,
};

const LIMITS: Limits = Limits { bytes: 32 << 20, entries: 1_000 };

fn source(data: &Path, program: Program, snapshot: bool) -> Source {
    Source {
        data: Root::open(data).unwrap(),
        slug: "alice".into(),
        program,
        snapshot,
        made_at_ms: 1_795_000_000_000,
        configured: Configured { instance: InstanceId::from_uuid(uuid::Uuid::from_u128(7)), generation: 3 },
    }
}

fn made(source: &Source) -> Vec<u8> {
    source.write(source.list().unwrap(), Vec::new(), || Ok(())).unwrap()
}

fn unpacked(archive: &[u8], program: Program) -> (tempfile::TempDir, Result<Manifest, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = unpack(&Root::open(folder.path()).unwrap(), archive, program, LIMITS);
    (folder, outcome)
}

/// Everything below a folder: path, and bytes, target or nothing.
fn everything(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let bytes = if meta.is_symlink() {
                Some(fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
            } else if meta.is_dir() {
                folders.push(path.clone());
                None
            } else {
                Some(fs::read(&path).unwrap())
            };
            all.push((path.strip_prefix(folder).unwrap().to_owned(), bytes));
        }
    }
    all.sort();
    all
}

#[test]
fn what_was_taken_along_comes_back_byte_for_byte() {
    let data = tempfile::tempdir().unwrap();
    let at = |path: &str| data.path().join(path);
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    fs::create_dir_all(at("notes/2026")).unwrap();
    fs::create_dir(at(&"d".repeat(200))).unwrap();
    fs::write(at("notes/2026/海狸.txt"), "第一行\n").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("large"), vec![7; 300_000]).unwrap();
    fs::write(at(&long), "deep").unwrap();
    fs::write(at("run"), "#!/bin/sh").unwrap();
    fs::set_permissions(at("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../run", at("notes/link")).unwrap();
    let archive = made(&source(data.path(), Program::Image, false));
    let (there, manifest) = unpacked(&archive, Program::Image);
    let manifest = manifest.unwrap();
    assert_eq!(everything(there.path()), everything(data.path()));
    assert_eq!((manifest.slug.as_str(), manifest.left_out_count), ("alice", 0));
    assert_eq!(manifest.configured.unwrap().generation, 3);
    assert_eq!(manifest.entries.len(), everything(data.path()).len());
    assert_eq!(fs::metadata(there.path().join("run")).unwrap().permissions().mode() & 0o777, 0o755);

    // Anybody's tar reads it too.
    let mut names = Vec::new();
    for entry in tar::Archive::new(&*archive).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    assert!(names.contains(&format!("data/{long}")) && names.contains(&"data/notes/2026/海狸.txt".to_owned()));
    assert_eq!(names.last().map(String::as_str), Some("manifest.json"));
}

#[test]
fn what_a_tenant_put_there_to_do_harm_is_not_followed_and_is_said_to_be_left_out() {
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("secret"), "canary-secret").unwrap();
    let at = |path: &str| data.path().join(path);
    let link = |target: &str, path: &str| std::os::unix::fs::symlink(target, at(path)).unwrap();
    fs::write(at("good"), "good").unwrap();
    link(elsewhere.path().to_str().unwrap(), "folder");
    link(elsewhere.path().join("secret").to_str().unwrap(), "file");
    link("../../../etc/passwd", "up");
    link("good/../../x", "through");
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let node = |name: &str, kind| rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, 0o600.into(), 0).is_ok();
    let fifo = node("fifo", rustix::fs::FileType::Fifo);
    fs::File::create(at("hole")).unwrap().set_len(1 << 40).unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 200).collect();
    fs::create_dir_all(at("deep").join(&deep)).unwrap();
    fs::write(at("deep").join(&deep).join("bottom"), "").unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(data.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();

    let archive = made(&source(data.path(), Program::Image, false));
    assert!(!archive.windows(13).any(|window| window == b"canary-secret") && archive.len() < 1 << 20);
    let (there, manifest) = unpacked(&archive, Program::Image);
    let manifest = manifest.unwrap();
    assert_eq!(fs::read(there.path().join("good")).unwrap(), b"good");
    let why = |path: &str| {
        let found = manifest.left_out.iter().find(|out| out.path.starts_with(path));
        found.map_or("nothing", |out| out.why.as_str()).to_owned()
    };
    for path in ["folder", "file", "up", "through"] {
        assert_eq!(why(path), "it leads outside", "{path}");
    }
    assert_eq!((why("socket").as_str(), why("hole").as_str()), ("it is a socket", "it is mostly a hole"));
    assert_eq!((why("deep").as_str(), why("\u{fffd}").as_str()), ("it is too deep", "its name is not UTF-8"));
    assert!(!fifo || why("fifo") == "it is a fifo or a device");
}

#[test]
fn of_a_workspace_beavers_own_stays_and_a_snapshot_takes_the_place_of_the_database() {
    let data = tempfile::tempdir().unwrap();
    for name in [
        "instance.db",
        "instance.db-wal",
        "instance.db-shm",
        "identity.key",
        "lock",
        SNAPSHOT,
        FROM_ARCHIVE,
        REVOKED,
        "own",
    ] {
        fs::write(data.path().join(name), name).unwrap();
    }
    let names = |snapshot: bool| {
        let (there, manifest) = unpacked(&made(&source(data.path(), Program::Workspace, snapshot)), Program::Workspace);
        manifest.unwrap();
        let all = everything(there.path()).into_iter();
        all.map(|(path, bytes)| format!("{}={}", path.display(), String::from_utf8(bytes.unwrap()).unwrap()))
            .collect::<Vec<_>>()
    };
    let marked = format!("{FROM_ARCHIVE}=");
    assert_eq!(names(false), [&*marked, "instance.db=instance.db", "instance.db-wal=instance.db-wal", "own=own"]);
    assert_eq!(names(true), [&*marked, &*format!("instance.db={SNAPSHOT}"), "own=own"]);
    // Of another's program all of it is its own.
    let (there, _) = unpacked(&made(&source(data.path(), Program::Image, false)), Program::Image);
    assert_eq!(everything(there.path()).len(), 9);
}

/// An archive with these entries, and a manifest that says the same of them unless told otherwise.
struct Made(Builder<Vec<u8>>, Vec<serde_json::Value>);

impl Made {
    fn new() -> Self {
        Self(Builder::new(Vec::new()), Vec::new())
    }

    /// An entry as raw as it can be: the name goes into the header as it is.
    fn raw(mut self, name: &[u8], kind: EntryType, target: &[u8], bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    fn file(self, name: &str, bytes: &[u8]) -> Self {
        use sha2::Digest;
        let sha256 = super::hex(&sha2::Sha256::digest(bytes));
        self.listed(serde_json::json!({ "path": name, "kind": "file", "size": bytes.len(), "sha256": sha256 })).raw(
            name.as_bytes(),
            EntryType::Regular,
            b"",
            bytes,
        )
    }

    fn listed(mut self, entry: serde_json::Value) -> Self {
        self.1.push(entry);
        self
    }

    fn end(self, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut manifest = serde_json::json!({
            "format": "beaver-workspace", "version": 1, "slug": "mallory", "program": "image", "made_at_ms": 0,
            "entries": self.1, "left_out": [], "left_out_count": 0,
        });
        change(&mut manifest);
        let text = manifest.to_string();
        self.raw(b"manifest.json", EntryType::Regular, b"", text.as_bytes()).cut()
    }

    fn done(self) -> Vec<u8> {
        self.end(|_| {})
    }

    fn cut(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[test]
fn what_was_made_to_do_harm_is_refused_and_the_entry_is_named() {
    let good = || Made::new().file("data/a", b"1");
    assert!(unpacked(&good().done(), Program::Image).1.is_ok(), "the control");
    let raw = |name: &[u8], kind, target: &[u8]| good().raw(name, kind, target, b"").done();
    let link = |name: &str, target: &str| raw(name.as_bytes(), EntryType::Symlink, target.as_bytes());
    let pax = |key: &str, value: &str| {
        let record = format!(" {key}={value}\n");
        let length = (record.len()..).find(|n| n.to_string().len() + record.len() == *n).unwrap();
        let record = format!("{length}{record}");
        good()
            .raw(b"pax", EntryType::XHeader, b"", record.as_bytes())
            .raw(b"data/b", EntryType::Regular, b"", b"")
            .done()
    };
    let long = |kind, name: &str| {
        good()
            .raw(b"././@LongLink", kind, b"", format!("{name}\0").as_bytes())
            .raw(b"data/b", EntryType::Symlink, b"a", b"")
            .done()
    };
    for (archive, entry, why) in [
        (raw(b"../x", EntryType::Regular, b""), "../x", ".."),
        (raw(b"data/../x", EntryType::Regular, b""), "data/../x", ".."),
        (raw(b"data/b/..", EntryType::Directory, b""), "data/b/..", ".."),
        (raw(b"/etc/passwd", EntryType::Regular, b""), "/etc/passwd", "absolute"),
        (raw(b"x", EntryType::Regular, b""), "x", "data/"),
        (raw(b"datax/b", EntryType::Regular, b""), "datax/b", "data/"),
        (raw(b"data", EntryType::Regular, b""), "data", "not a folder"),
        (raw(b"data//b", EntryType::Regular, b""), "data//b", "plainly"),
        (raw(b"data/./b", EntryType::Regular, b""), "data/./b", "plainly"),
        (raw(b"data/\xff", EntryType::Regular, b""), "data/\u{fffd}", "UTF-8"),
        (raw(b"data/c/b", EntryType::Regular, b""), "data/c/b", "folder"),
        (raw(b"data/a", EntryType::Regular, b""), "data/a", "already"),
        (raw(b"data/a", EntryType::Directory, b""), "data/a", "already"),
        (raw(b"data/dev", EntryType::Char, b""), "data/dev", "device"),
        (raw(b"data/dev", EntryType::Block, b""), "data/dev", "device"),
        (raw(b"data/fifo", EntryType::Fifo, b""), "data/fifo", "fifo"),
        (raw(b"data/hard", EntryType::Link, b"data/a"), "data/hard", "second name"),
        (raw(b"data/sparse", EntryType::GNUSparse, b""), "data/sparse", "neither"),
        (raw(b"data/odd", EntryType::new(b'Z'), b""), "data/odd", "neither"),
        (link("data/l", "/etc"), "data/l", "outside"),
        (link("data/l", "../x"), "data/l", "outside"),
        (link("data/l", "a/../../x"), "data/l", "outside"),
        (link("data/l", ""), "data/l", "UTF-8"),
        (pax("path", "../y"), "../y", ".."),
        (pax("size", "5"), "pax", "extension"),
        (long(EntryType::GNULongName, "/y"), "/y", "absolute"),
        (long(EntryType::GNULongLink, "../../y"), "data/b", "outside"),
        (long(EntryType::GNULongName, &"y".repeat(70_000)), "././@LongLink", "too long"),
        (long(EntryType::GNULongName, &format!("data/{}", "y".repeat(300))), "data/yyy", "too long"),
        (long(EntryType::GNULongName, &format!("data{}", "/d".repeat(40))), "data/d", "too long"),
        // Through a link to what is behind it.
        (
            good().raw(b"data/l", EntryType::Symlink, b"a", b"").raw(b"data/l/x", EntryType::Regular, b"", b"").done(),
            "data/l/x",
            "already",
        ),
        (good().raw(b"data/b", EntryType::Regular, b"", b"").done(), "data/b", "does not know"),
        (good().listed(serde_json::json!({ "path": "data/z", "kind": "directory" })).done(), "data/z", "missing"),
        (good().end(|m| m["entries"][0]["sha256"] = "00".into()), "data/a", "manifest says"),
        (good().end(|m| m["entries"][0]["size"] = 2.into()), "data/a", "manifest says"),
        (
            good().end(|m| m["entries"][0] = serde_json::json!({ "path": "data/a", "kind": "directory" })),
            "data/a",
            "says",
        ),
        (good().end(|m| *m = serde_json::json!([])), "manifest.json", "says nothing"),
        (good().end(|m| m["entries"] = "x".into()), "manifest.json", "written"),
    ] {
        let (folder, outcome) = unpacked(&archive, Program::Image);
        let said = match outcome {
            Err(Error::Entry { entry, why }) => (entry, why),
            other => panic!("{entry}: {other:?}"),
        };
        assert!(said.0.starts_with(entry) && said.1.contains(why), "{entry}, {why}: {said:?}");
        let outside = folder.path().parent().unwrap();
        assert!(!outside.join("x").exists() && !outside.join("y").exists());
    }
    let after = good().end(|_| {});
    let after = [&after[..after.len() - 1024], &Made::new().file("data/b", b"2").cut()].concat();
    let (_, outcome) = unpacked(&after, Program::Image);
    assert!(matches!(outcome, Err(Error::Entry { why, .. }) if why.contains("after the manifest")), "{outcome:?}");
}

#[test]
fn what_is_not_whole_is_noticed_wherever_it_is_cut() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("a"), vec![1; 5_000]).unwrap();
    fs::write(data.path().join("b"), "2").unwrap();
    let whole = made(&source(data.path(), Program::Image, false));
    assert!(unpacked(&whole, Program::Image).1.is_ok());
    // The last 1,024 bytes are two empty blocks, which say nothing.
    for length in (0..whole.len() - 1024).step_by(256) {
        let (_, outcome) = unpacked(&whole[..length], Program::Image);
        assert!(matches!(outcome, Err(Error::Broken(_) | Error::CutShort)), "{length}: {outcome:?}");
    }
    assert!(matches!(unpacked(b"hello", Program::Image).1, Err(Error::Broken(_))));
    // Any byte that is another one is noticed, but for those that nobody looks at: times, owners and padding.
    let mut spoilt = whole.clone();
    let at = spoilt.windows(16).position(|window| window == [1; 16]).unwrap();
    spoilt[at] = 2;
    assert!(matches!(unpacked(&spoilt, Program::Image).1, Err(Error::Entry { .. })));
}

#[test]
fn no_more_is_taken_than_there_may_be_and_nothing_of_another_kind() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("a"), vec![1; 5_000]).unwrap();
    fs::write(data.path().join("b"), vec![1; 5_000]).unwrap();
    let whole = made(&source(data.path(), Program::Image, false));
    let limited = |bytes, entries| {
        let folder = tempfile::tempdir().unwrap();
        unpack(&Root::open(folder.path()).unwrap(), &*whole, Program::Image, Limits { bytes, entries })
    };
    assert!(limited(10_000, 2).is_ok());
    assert!(matches!(limited(9_999, 2), Err(Error::TooLarge)));
    assert!(matches!(limited(10_000, 1), Err(Error::TooLarge)));
    assert!(matches!(unpacked(&whole, Program::Workspace).1, Err(Error::OtherProgram)));
    let newer = Made::new().end(|manifest| manifest["version"] = 2.into());
    assert!(matches!(unpacked(&newer, Program::Image).1, Err(Error::Version)));
    let own = |name: &str| Made::new().file(name, b"x").end(|manifest| manifest["program"] = "workspace".into());
    for name in ["data/identity.key", "data/lock", "data/.from-archive", "data/.revoked", "data/snapshot.db"] {
        let (_, outcome) = unpacked(&own(name), Program::Workspace);
        assert!(matches!(outcome, Err(Error::Entry { ref entry, .. }) if entry == name), "{name}: {outcome:?}");
    }
}

#[test]
fn what_changes_while_it_is_read_makes_no_archive() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("a"), vec![1; 5_000]).unwrap();
    let source = source(data.path(), Program::Image, false);
    let changed = || Err(super::write::Error::Changed("the workspace".into()));
    assert!(source.write(source.list().unwrap(), Vec::new(), changed).is_err());
}
