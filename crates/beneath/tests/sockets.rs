//! Sockets in a directory that somebody hostile fills. Each refusal stands beside a connection that works.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use beneath::{Error, Root};
use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn playground() -> (TempDir, PathBuf, Root) {
    let folder = tempfile::tempdir().expect("a folder");
    for dir in ["mine", "mine/in", "theirs"] {
        fs::create_dir(folder.path().join(dir)).expect("a directory");
    }
    let mine = folder.path().join("mine");
    let root = Root::open(&mine).expect("the root");
    (folder, mine, root)
}

/// A listener that answers nothing and counts nothing, until it is asked whether anybody came.
fn listener(path: &Path) -> StdListener {
    let listener = StdListener::bind(path).expect("a socket");
    listener.set_nonblocking(true).expect("non-blocking");
    listener
}

fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(Error::NotFound { .. }) => "not found",
        Err(Error::Refused { .. }) => "refused",
        Err(Error::Busy { .. }) => "busy",
        Err(Error::ConnectionRefused { .. }) => "connection refused",
        Err(Error::TooLarge { .. } | Error::Io { .. }) => "other",
    }
}

#[tokio::test]
async fn connecting_takes_a_socket_beneath_and_nothing_else() {
    let (folder, mine, root) = playground();
    let good = listener(&mine.join("in/http.sock"));
    let theirs = listener(&folder.path().join("theirs/http.sock"));
    symlink("../../theirs/http.sock", mine.join("in/link")).expect("a link");
    symlink("http.sock", mine.join("in/link-in")).expect("a link");
    symlink("nowhere", mine.join("in/dangling")).expect("a link");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    symlink("in", mine.join("linked-in")).expect("a link");
    mkfifoat(CWD, mine.join("in/fifo"), Mode::RWXU).expect("a fifo");
    fs::write(mine.join("in/file"), "").expect("a file");
    drop(listener(&mine.join("in/dead")));
    let _datagram = UnixDatagram::bind(mine.join("in/datagram")).expect("a socket");
    let absolute = folder.path().join("theirs/http.sock");

    for (path, expected) in [
        ("in/http.sock", "done"),
        ("in/absent", "not found"),
        ("absent/http.sock", "not found"),
        ("in/link", "refused"),
        ("in/link-in", "refused"),
        ("in/dangling", "refused"),
        ("linked-dir/http.sock", "refused"),
        ("linked-in/http.sock", "refused"),
        ("in/fifo", "refused"),
        ("in/file", "refused"),
        ("in", "refused"),
        ("in/datagram", "refused"),
        ("../theirs/http.sock", "refused"),
        ("in/../in/http.sock", "refused"),
        (absolute.to_str().expect("UTF-8"), "refused"),
        ("in/dead", "connection refused"),
    ] {
        assert_eq!(outcome(&root.connect(path)), expected, "{path:?}");
    }
    assert!(good.accept().is_ok(), "the control came through");
    assert!(theirs.accept().is_err(), "nobody ever came to the other's socket");
    // The control of the controls: by its path, that socket does answer.
    StdStream::connect(mine.join("in/link")).expect("followed");
    assert!(theirs.accept().is_ok());
}

#[tokio::test]
async fn bytes_go_both_ways_over_a_path_longer_than_a_socket_address() {
    let (_folder, mine, root) = playground();
    let deep = format!("{0}/{0}/{0}", "d".repeat(60));
    fs::create_dir_all(mine.join(&deep)).expect("directories");
    let path = format!("{deep}/{}.sock", "s".repeat(120));
    assert!(path.len() > 107);
    assert!(StdListener::bind(mine.join(&path)).is_err(), "the limit exists");

    let listener = root.bind(&path, 0o600).expect("bound");
    let mut client = root.connect(&path).expect("connected");
    let (mut server, _) = listener.accept().await.expect("accepted");
    client.write_all(b"ping").await.expect("sent");
    let mut buffer = [0; 4];
    server.read_exact(&mut buffer).await.expect("received");
    server.write_all(&buffer).await.expect("sent back");
    client.read_exact(&mut buffer).await.expect("received back");
    assert_eq!(&buffer, b"ping");
}

#[tokio::test]
async fn a_full_backlog_is_busy_and_not_a_wait() {
    let (_folder, mine, root) = playground();
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).expect("one");
    let address = rustix::net::SocketAddrUnix::new(mine.join("in/full")).expect("an address");
    rustix::net::bind(&socket, &address).expect("bound");
    rustix::net::listen(&socket, 1).expect("listening");

    let mut held = Vec::new();
    let refusal = (0..100).find_map(|_| match root.connect("in/full") {
        Ok(stream) => {
            held.push(stream);
            None
        }
        refusal => Some(outcome(&refusal)),
    });
    assert_eq!(refusal, Some("busy"));
    assert!(!held.is_empty(), "the control: there was room at first");
    // Once one is accepted there is room again.
    let _accepted = rustix::net::accept(&socket).expect("accepted");
    assert_eq!(outcome(&root.connect("in/full")), "done");
}

#[tokio::test]
async fn binding_gives_the_mode_and_takes_the_place_of_a_socket_alone() {
    let (folder, mine, root) = playground();
    fs::write(mine.join("in/file"), "kept").expect("a file");
    symlink("../../theirs/new", mine.join("in/link")).expect("a link");
    symlink("../theirs", mine.join("linked-dir")).expect("a link");
    drop(listener(&mine.join("in/stale")));

    for (path, expected) in [
        ("in/new", "done"),
        ("in/stale", "done"),
        ("in/file", "refused"),
        ("in/link", "refused"),
        ("in", "refused"),
        ("linked-dir/new", "refused"),
        ("../theirs/new", "refused"),
        ("absent/new", "not found"),
    ] {
        let bound = root.bind(path, 0o666);
        assert_eq!(outcome(&bound), expected, "{path:?}");
        if expected == "done" {
            let found = fs::symlink_metadata(mine.join(path)).expect("it");
            assert!(found.file_type().is_socket(), "{path:?}");
            assert_eq!(found.mode() & 0o7777, 0o666, "{path:?}");
            assert_eq!(outcome(&root.connect(path)), "done", "{path:?}");
        }
    }
    assert_eq!(fs::read(mine.join("in/file")).expect("untouched"), b"kept");
    assert_eq!(fs::read_dir(folder.path().join("theirs")).expect("theirs").count(), 0);
    assert_eq!(fs::read_dir(mine.join("in")).expect("in").count(), 4, "no temporary socket is left");
}

#[tokio::test]
async fn binding_again_takes_over_at_once() {
    let (_folder, _mine, root) = playground();
    let old = root.bind("in/http.sock", 0o600).expect("bound");
    let new = root.bind("in/http.sock", 0o600).expect("bound again");
    let _client = root.connect("in/http.sock").expect("connected");
    new.accept().await.expect("it came to the new one");
    drop(old);
    assert_eq!(outcome(&root.connect("in/http.sock")), "done", "the old one's end changes nothing");
}
