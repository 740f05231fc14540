//! The shim between a router and programs of these tests' own; `sh` is the program that it starts.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::oneshot,
};

use super::*;

/// How long anything may take on a busy machine.
const BUSY: Duration = Duration::from_secs(30);

/// The shim on a thread of its own, as it is in an instance. It ends with this, and the program with it.
struct Running {
    folder: Arc<TempDir>,
    proxy_port: u16,
    ended: oneshot::Receiver<io::Result<u8>>,
}

/// A port on loopback that is free, below those that the system gives to others by itself: it stays so.
async fn free_port() -> u16 {
    loop {
        let random = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        if let Ok(free) = TcpListener::bind((Ipv4Addr::LOCALHOST, 20_000 + random % 12_000)).await {
            return free.local_addr().unwrap().port();
        }
    }
}

/// The shim in front of whatever listens on this port, with a script as the program it starts.
async fn start(port: u16, script: &str) -> Running {
    let folder = TempDir::new().unwrap();
    // What a run before left.
    std::os::unix::net::UnixListener::bind(folder.path().join(door::HTTP)).unwrap();
    start_in(Arc::new(folder), port, script, PATIENCE).await
}

/// The same, between the doors that are there.
async fn start_in(folder: Arc<TempDir>, port: u16, script: &str, patience: Duration) -> Running {
    let proxy_port = free_port().await;
    let shim = Shim {
        inward: folder.path().to_owned(),
        outward: folder.path().join("egress.sock"),
        port,
        proxy_port,
        patience,
        program: ["/bin/sh", "-c", script].map(OsString::from).to_vec(),
    };
    let (mut to, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = shim.run() => Some(outcome),
                () = to.closed() => None,
            }
        });
        outcome.map(|outcome| to.send(outcome));
    });
    Running { folder, proxy_port, ended }
}

impl Running {
    fn inward(&self) -> PathBuf {
        self.folder.path().join(door::HTTP)
    }

    async fn connect(&self) -> UnixStream {
        // Refused by what is stale, until the shim has taken its place.
        there(async || UnixStream::connect(self.inward()).await.ok()).await
    }
}

/// Waits until it is there.
async fn there<T>(look: impl AsyncFn() -> Option<T>) -> T {
    within(async {
        loop {
            match look().await {
                Some(there) => return there,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(BUSY, what).await.expect("it takes too long")
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_nothing_is_held_back() {
    let program = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let shim = start(program.local_addr().unwrap().port(), "exec sleep 60").await;
    let (mut outside, (mut inside, _)) =
        within(async { tokio::join!(shim.connect(), async { program.accept().await.unwrap() }) }).await;
    assert_eq!(std::fs::metadata(shim.inward()).unwrap().permissions().mode() & 0o777, 0o660);

    let mut piece = [0; 1];
    for byte in 0..3_u8 {
        within(outside.write_all(&[byte])).await.unwrap();
        within(inside.read_exact(&mut piece)).await.unwrap();
        assert_eq!(piece, [byte], "each byte comes through before the next is sent");
        within(inside.write_all(&[byte + 10])).await.unwrap();
        within(outside.read_exact(&mut piece)).await.unwrap();
        assert_eq!(piece, [byte + 10]);
    }
    // The caller has said all; the program sees that, and still answers.
    outside.shutdown().await.unwrap();
    assert_eq!(within(inside.read(&mut piece)).await.unwrap(), 0);
    let answer: Vec<u8> = (0..1_000_000).map(|n: u32| n as u8).collect();
    let sent = answer.clone();
    let writing = tokio::spawn(async move {
        inside.write_all(&sent).await.unwrap();
        inside.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    within(outside.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, answer);
    writing.await.unwrap();
}

#[tokio::test]
async fn the_proxy_leads_to_the_way_out_and_a_program_that_is_not_there_yet_is_nobody() {
    let port = free_port().await;
    let shim = start(port, "exec sleep 60").await;
    // Accepted and closed: nobody is there.
    let mut early = shim.connect().await;
    assert_eq!(within(early.read(&mut [0; 1])).await.unwrap_or(0), 0);

    let way_out = UnixListener::bind(shim.folder.path().join("egress.sock")).unwrap();
    let mut program = within(TcpStream::connect((Ipv4Addr::LOCALHOST, shim.proxy_port))).await.unwrap();
    let (mut router, _) = within(way_out.accept()).await.unwrap();
    program.write_all(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n").await.unwrap();
    let mut asked = [0; 31];
    within(router.read_exact(&mut asked)).await.unwrap();
    assert_eq!(&asked, b"CONNECT a.test:443 HTTP/1.1\r\n\r\n");
    drop(router);
    assert_eq!(within(program.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn it_ends_with_the_program_and_as_the_program() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)] {
        let shim = start(free_port().await, script).await;
        assert_eq!(within(shim.ended).await.unwrap().unwrap(), code, "{script}");
    }
    let folder = TempDir::new().unwrap();
    let missing = Shim {
        inward: folder.path().to_owned(),
        outward: folder.path().join("out"),
        port: free_port().await,
        proxy_port: free_port().await,
        patience: PATIENCE,
        program: vec!["/no/such/program".into()],
    };
    assert_eq!(within(missing.run()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn what_the_program_said_last_comes_through() {
    let program = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let folder = TempDir::new().unwrap();
    let gate = folder.path().join("gate");
    let script = format!("until [ -e {} ]; do sleep 0.01; done", gate.display());
    let shim = start(program.local_addr().unwrap().port(), &script).await;
    let (mut outside, (mut inside, _)) =
        within(async { tokio::join!(shim.connect(), async { program.accept().await.unwrap() }) }).await;
    inside.write_all(&[7; 100_000]).await.unwrap();
    drop(inside);
    std::fs::write(gate, "").unwrap();
    let mut got = Vec::new();
    within(outside.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 100_000);
    // The caller goes on being there, and it ends all the same.
    assert_eq!(within(shim.ended).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn whoever_comes_later_has_the_place_and_whoever_was_there_ends_first() {
    let willing = ("trap 'rm UP; exit 3' TERM; echo > UP; until false; do sleep 0.01; done", PATIENCE, 3);
    let deaf = ("trap '' TERM; echo > UP; until false; do sleep 0.01; done", Duration::from_millis(100), 137);
    for (script, patience, code) in [willing, deaf] {
        let folder = Arc::new(TempDir::new().unwrap());
        let up = folder.path().join("up");
        let script = script.replace("UP", &up.display().to_string());
        let first = start_in(folder.clone(), free_port().await, &script, patience).await;
        there(async || up.exists().then_some(())).await;
        let second = start_in(folder, free_port().await, &format!("test ! -e {}", up.display()), patience).await;
        assert_eq!(within(first.ended).await.unwrap().unwrap(), code);
        assert_eq!(within(second.ended).await.unwrap().unwrap(), u8::from(code != 3), "it began after the other's end");
    }
}

#[test]
fn the_command_line_is_a_port_and_a_program() {
    let parse = |text: &str| Shim::from_arguments(text.split_whitespace().map(OsString::from));
    let shim = parse("8080 /app --listen 8080").unwrap();
    assert_eq!((shim.port, shim.program.len(), shim.inward), (8080, 3, PathBuf::from(INWARD)));
    for wrong in ["", "8080", "0 /app", "x /app", "65536 /app", "3128 /app"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
