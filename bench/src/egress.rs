//! What the router's door out costs: the same connections straight and through a workspace's egress socket, taken in
//! turns in the same run.
//!
//! Three figures: the throughput of one stream, the time from nothing to the first answered byte on a new connection,
//! and the time of one question and answer on a connection that is there. Everything is on loopback: a server of the
//! benchmark's own, and a router with a rule that lets it out.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use contracts::{
    AccountId, InstanceId, Slug,
    routes::{Route, RouteMessage, RouteSnapshot, RouteState, SignIn},
};
use router_proxy::{Router, config::Config};
use serde_json::json;
use service::Shutdown;
use settings::Env;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, sleep},
};

use crate::stats::Summary;

/// Bytes of one question, and of its answer.
const QUESTION: usize = 64;
const CHUNK: usize = 64 << 10;
/// Until the router must have opened its door.
const LIMIT: Duration = Duration::from_secs(30);
const TOKEN: &str = "bench-token-that-is-long-enough-0000";

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds; each measures everything on both ways.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Bytes of one stream, in MiB.
    #[arg(long, default_value_t = 256)]
    mebibytes: usize,
    /// New connections in a round.
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Questions in a round.
    #[arg(long, default_value_t = 500)]
    questions: usize,
}

/// One way to the server.
#[derive(Clone)]
enum Way {
    Straight(SocketAddr),
    Door(PathBuf, SocketAddr),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Way {
    async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        match self {
            Self::Straight(server) => {
                let stream = TcpStream::connect(server).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Door(socket, server) => {
                let mut stream = UnixStream::connect(socket).await?;
                stream.write_all(format!("CONNECT {server} HTTP/1.1\r\nhost: {server}\r\n\r\n").as_bytes()).await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    // Nothing of what follows the head may be lost.
                    head.push(stream.read_u8().await?);
                }
                ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
                Ok(Box::new(stream))
            }
        }
    }
}

/// All measurements of one way.
#[derive(Default)]
struct Measured {
    mib_per_s: Vec<f64>,
    connect: Vec<Duration>,
    question: Vec<Duration>,
}

/// Measures, and prints the figures.
///
/// # Errors
/// When the router does not start, or a byte is not as it should be.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let server = serve().await?;
    let data = tempfile::tempdir()?;
    let stop = Shutdown::new();
    let (socket, router) = router(data.path(), server, stop.clone()).await?;
    let ways = [Way::Straight(server), Way::Door(socket, server)];
    let mut measured = [Measured::default(), Measured::default()];
    for round in 0..=options.rounds {
        // Whoever goes first changes from round to round.
        for n in [round % 2, 1 - round % 2] {
            let one = measure(&ways[n], options).await?;
            // The first round warms up.
            if round > 0 {
                measured[n].mib_per_s.extend(one.mib_per_s);
                measured[n].connect.extend(one.connect);
                measured[n].question.extend(one.question);
            }
        }
    }
    stop.cancel();
    router.await.context("the router")??;
    println!("{}", figures(&measured)?);
    Ok(())
}

fn figures([straight, door]: &[Measured; 2]) -> anyhow::Result<serde_json::Value> {
    let middle = |all: &[f64]| -> anyhow::Result<f64> {
        let mut all = all.to_vec();
        all.sort_by(f64::total_cmp);
        let n = all.len();
        ensure!(n > 0, "nothing was measured");
        Ok((all[(n - 1) / 2] + all[n / 2]) / 2.0)
    };
    let rounded = |number: f64| (number * 1e3).round() / 1e3;
    let [rate, door_rate] = [middle(&straight.mib_per_s)?, middle(&door.mib_per_s)?];
    let [connect, door_connect] = [Summary::of(&straight.connect)?, Summary::of(&door.connect)?];
    let [question, door_question] = [Summary::of(&straight.question)?, Summary::of(&door.question)?];
    Ok(json!({
        "bench": "egress",
        "ratio_throughput": rounded(door_rate / rate),
        "added_ms_connect": rounded(door_connect.median_ms - connect.median_ms),
        "added_ms_question": rounded(door_question.median_ms - question.median_ms),
        "straight": { "mib_per_s": rounded(rate), "connect": connect, "question": question },
        "door": { "mib_per_s": rounded(door_rate), "connect": door_connect, "question": door_question },
    }))
}

async fn measure(way: &Way, options: &Options) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let bytes = (options.mebibytes as u64) << 20;
    let mut stream = way.connect().await?;
    let began = Instant::now();
    stream.write_all(&request(b'S', bytes)).await?;
    let mut chunk = vec![0; CHUNK];
    let mut came = 0_u64;
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            break;
        }
        ensure!(chunk[..n].iter().all(|byte| *byte == b's'), "a byte is not as it was sent");
        came += n as u64;
    }
    ensure!(came == bytes, "{came} of {bytes} bytes came");
    measured.mib_per_s.push(options.mebibytes as f64 / began.elapsed().as_secs_f64());

    for _ in 0..options.connections {
        let began = Instant::now();
        let mut stream = way.connect().await?;
        ask(&mut stream, 0).await?;
        measured.connect.push(began.elapsed());
    }
    let mut stream = way.connect().await?;
    for n in 0..options.questions as u64 {
        let began = Instant::now();
        ask(&mut stream, n).await?;
        measured.question.push(began.elapsed());
    }
    Ok(measured)
}

async fn ask(stream: &mut Box<dyn Stream>, n: u64) -> anyhow::Result<()> {
    let question = request(b'Q', n);
    stream.write_all(&question).await?;
    let mut answer = [0; QUESTION];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == question, "another answer came");
    Ok(())
}

/// A letter and a number, filled up.
fn request(letter: u8, number: u64) -> [u8; QUESTION] {
    let mut request = [0; QUESTION];
    request[0] = letter;
    request[1..9].copy_from_slice(&number.to_be_bytes());
    request
}

/// A server that gives so many bytes and hangs up, or gives a question back.
async fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that has measured enough just leaves.
            tokio::spawn(answer(stream));
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; QUESTION];
    loop {
        stream.read_exact(&mut request).await?;
        if request[0] == b'Q' {
            stream.write_all(&request).await?;
            continue;
        }
        let [_, number @ .., _] = *request.first_chunk::<10>().unwrap_or(&[0; 10]);
        let mut left = u64::from_be_bytes(number);
        let chunk = vec![b's'; CHUNK];
        while left > 0 {
            let n = left.min(CHUNK as u64) as usize;
            stream.write_all(&chunk[..n]).await?;
            left -= n as u64;
        }
        return stream.shutdown().await;
    }
}

/// A router with one workspace, as it runs in a stack; its door out, and its task.
async fn router(
    data: &std::path::Path,
    server: SocketAddr,
    stop: Shutdown,
) -> anyhow::Result<(PathBuf, tokio::task::JoinHandle<anyhow::Result<()>>)> {
    let id = InstanceId::from_uuid(uuid::Uuid::from_u128(1));
    let run = data.join("run").join(id.to_string());
    for folder in ["in", "out"] {
        std::fs::create_dir_all(run.join(folder))?;
    }
    let route = Route {
        slug: Slug::parse("bench").context("a slug")?,
        instance_id: id,
        account_id: AccountId::from_uuid(uuid::Uuid::from_u128(2)),
        state: RouteState::Running,
        sign_in: SignIn::Instance,
        wake_keys: Vec::new(),
    };
    let deploy = feed(route).await?;
    let env = Env::from_pairs([
        ("ROUTER_LISTEN", "127.0.0.1:0".to_owned()),
        ("ROUTER_INTERNAL_LISTEN", "127.0.0.1:0".to_owned()),
        ("BEAVER_DATA_DIR", data.display().to_string()),
        ("BEAVER_ROUTER_INTERNAL_TOKEN", TOKEN.to_owned()),
        ("BEAVER_DEPLOY_TOKEN", TOKEN.to_owned()),
        ("BEAVER_DEPLOY_URL", format!("http://{deploy}")),
        // Nobody asks who anybody is here.
        ("BEAVER_AUTHZ_URL", format!("http://{deploy}")),
        ("BEAVER_EGRESS_ALLOW", server.to_string()),
    ]);
    let network = Arc::new(router_proxy::egress::Host::default());
    let router = Router::bind(Config::from_env(&env)?, clock::Clock::system(), network).await?;
    let running = tokio::spawn(router.serve(stop));
    let socket = run.join("out/egress.sock");
    let began = Instant::now();
    while !socket.exists() {
        ensure!(began.elapsed() < LIMIT, "the router does not open its door");
        ensure!(!running.is_finished(), "the router has ended");
        sleep(Duration::from_millis(20)).await;
    }
    Ok((socket, running))
}

/// A deploy-control that has nothing but this route.
async fn feed(route: Route) -> anyhow::Result<SocketAddr> {
    let snapshot = RouteMessage::Snapshot(RouteSnapshot { epoch: "bench".into(), version: 1, routes: vec![route] });
    let body = serde_json::to_string(&snapshot)? + "\n";
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len());
            tokio::spawn(async move {
                let _ = stream.write_all(head.as_bytes()).await;
                // It stays open, as the feed does, until the router leaves.
                while matches!(stream.read(&mut [0; 1024]).await, Ok(n) if n > 0) {}
            });
        }
    });
    Ok(address)
}
