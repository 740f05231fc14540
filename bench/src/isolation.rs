//! What it costs that a tenant has no network: the time from nothing to the first answer of an instance without one, beside
//! the same instance on a bridge network of its own, at the first, at the hundredth and at the four-hundredth.
//!
//! A host full of containers is slower at everything: each has a shim of the engine's that wakes some times a second. So the
//! same program is started beside them without any container too, and a kind is flat that grows no more than that.
//!
//! Both kinds are the real instance with the same folders, and both are asked through their socket: that a bridged one would
//! have to be reached over its network, by a router that is attached to all of them, is left out in its favour. Engines of
//! its own are used, since the usual one has addresses for some thirty networks; one after the other, so that a host with so
//! many instances has so many and not twice that.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, ensure};
use beaver_tests::{own_engine::OwnEngine, paths};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig, Mount, MountType, NetworkCreateRequest},
    query_parameters::{CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder},
};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    time::{Instant, sleep},
};

use crate::stats::Summary;

/// How often an instance is asked whether it is there: finer than what is measured.
const POLL: Duration = Duration::from_millis(2);
/// A machine whose processors work for less than this share of their time is at rest.
const AT_REST: f64 = 0.05;
/// Over how long that is looked at.
const WINDOW: Duration = Duration::from_secs(3);
/// So many times at the most; and it is at rest too when it was no less busy for so many in a row.
const WINDOWS: u32 = 40;
const NO_LESS: u32 = 8;
/// After this, something is wrong.
const LIMIT: Duration = Duration::from_secs(120);
const IMAGE: &str = "bench-isolation:latest";
/// The first instance's user id is the one after.
const UIDS: u32 = 50_000;
/// Memory of each, in bytes.
const MEMORY: i64 = 64 << 20;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// How many instances there are where it is measured, in order.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 400])]
    at: Vec<usize>,
    /// Measurements at each, one at a time; the first of them makes the instance of that number.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Instances made at once in between, where nothing is measured.
    #[arg(long, default_value_t = 6)]
    at_once: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sockets,
    Bridge,
}

const KINDS: [Kind; 2] = [Kind::Sockets, Kind::Bridge];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Bridge => "bridge",
        }
    }
}

/// Measures, and prints the figures.
///
/// # Errors
/// When an engine does not start, or an instance does not.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.at.is_sorted() && options.at.first().is_some_and(|at| *at > 0), "--at is not in order");
    let program = build().await?;
    let data = tempfile::Builder::new().prefix("beaver-bench-").tempdir()?;
    // Whoever runs an instance must be able to pass through.
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let pools = json!({ "default-address-pools": [{ "base": "10.128.0.0/9", "size": 28 }] });
    // An engine each: what the networks of the one kind cost their engine shall not be the other's.
    let (mut measured, mut version) = (Vec::new(), None);
    for kind in KINDS {
        let engine = OwnEngine::start_with(&format!("bench-{}", kind.name()), &pools).await?;
        let docker = engine.connect().await?;
        import(&docker, &program).await?;
        version = docker.version().await?.version;
        let field = Field { docker, data: &data, kind };
        let of_kind = tokio::select! {
            of_kind = measure(&field, &program, options) => of_kind,
            // What was made goes all the same.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        field.remove_all(options).await?;
        measured.push(of_kind?);
    }
    let mut figures = figures(options, &measured)?;
    figures["engine_version"] = json!(version);
    println!("{figures}");
    Ok(())
}

/// What was measured at one number of instances: the instance, the plain process, and how busy the machine was before.
struct Measured {
    took: Vec<Duration>,
    bare: Vec<Duration>,
    busy: f64,
}

/// Waits until the machine has come to rest from what was made; the busy share of its processors then, which is what those
/// that are there take for themselves.
async fn settled() -> anyhow::Result<f64> {
    let (mut before, mut least, mut since) = (processor_time()?, f64::MAX, 0);
    for _ in 0..WINDOWS {
        sleep(WINDOW).await;
        let now = processor_time()?;
        let busy = (now.0 - before.0) as f64 / (now.1 - before.1).max(1) as f64;
        since = if busy < least * 0.9 { 0 } else { since + 1 };
        (before, least) = (now, least.min(busy));
        if busy < AT_REST || since >= NO_LESS {
            break;
        }
    }
    Ok((least * 1000.0).round() / 1000.0)
}

/// The time that the processors worked, and all of it, in ticks (proc(5), /proc/stat).
fn processor_time() -> anyhow::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks = line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let all: u64 = ticks.iter().sum();
    // The fourth and fifth are of rest: nothing to do, and waiting for disks.
    Ok((all - ticks.iter().skip(3).take(2).sum::<u64>(), all))
}

/// At each number of instances: one of them, and the plain process, in turns.
async fn measure(field: &Field<'_>, program: &Path, options: &Options) -> anyhow::Result<Vec<Measured>> {
    // One that is not counted warms up: the image's layers, the engine's own first calls.
    field.make(0).await?;
    field.remove(0).await?;
    let (mut measured, mut there) = (Vec::new(), 0);
    for at in &options.at {
        stream::iter((there + 1..*at).map(|n| field.make(n)))
            .buffer_unordered(options.at_once)
            .try_collect::<Vec<_>>()
            .await?;
        let busy = settled().await?;
        let (mut took, mut bare) = (Vec::new(), Vec::new());
        for round in 0..options.rounds {
            took.push(field.make(*at).await?);
            bare.push(field.run_bare(program).await?);
            if round + 1 < options.rounds {
                field.remove(*at).await?;
            }
        }
        there = *at;
        measured.push(Measured { took, bare, busy });
    }
    Ok(measured)
}

fn figures(options: &Options, measured: &[Vec<Measured>]) -> anyhow::Result<Value> {
    let mut figures = json!({ "bench": "isolation" });
    let mut medians = Vec::new();
    for (kind, of_kind) in KINDS.iter().zip(measured) {
        let (mut with, mut bare) = (Vec::new(), Vec::new());
        for (at, Measured { took, bare: plain, busy }) in options.at.iter().zip(of_kind) {
            let (summary, plain) = (Summary::of(took)?, Summary::of(plain)?);
            println!("{} at {at}: {summary:?}; a plain process {plain:?}; busy {busy}", kind.name());
            with.push(summary.median_ms);
            bare.push(plain.median_ms);
            figures[format!("{}_{at}", kind.name())] = json!(summary);
            figures[format!("{}_{at}_bare", kind.name())] = json!(plain);
            figures[format!("{}_{at}_busy", kind.name())] = json!(busy);
        }
        // How much slower than at the first, and how much of that is the machine's own.
        if let (Some(at), [first, .., last], [bare_first, .., bare_last]) = (options.at.last(), &with[..], &bare[..]) {
            figures[format!("{}_{at}_to_{}", kind.name(), options.at[0])] = ratio(*last, *first);
            figures[format!("{}_{at}_to_{}_bare", kind.name(), options.at[0])] = ratio(*bare_last, *bare_first);
        }
        medians.push(with);
    }
    let [sockets, bridge] = &medians[..] else { anyhow::bail!("two kinds") };
    for ((at, sockets), bridge) in options.at.iter().zip(sockets).zip(bridge) {
        figures[format!("ratio_{at}")] = ratio(*sockets, *bridge);
    }
    Ok(figures)
}

fn ratio(one: f64, other: f64) -> Value {
    json!((one / other * 1000.0).round() / 1000.0)
}

/// The instance, built as it is for its image.
async fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    // With `beaver`, for the reason that `up` builds it: so nothing is built twice.
    command.args(["build", "--release", "--package", "beaver", "--package", "app-instance"]);
    let output = command.current_dir(paths::root()).stdin(Stdio::null()).output().await.context("running cargo")?;
    ensure!(output.status.success(), "cargo build: {}", String::from_utf8_lossy(&output.stderr));
    Ok(paths::binaries("release").join("app-instance"))
}

/// An image of nothing but the program.
async fn import(docker: &Docker, program: &Path) -> anyhow::Result<()> {
    let content = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let mut archive = tar::Builder::new(Vec::with_capacity(content.len() + 4096));
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, "app-instance", content.as_slice())?;
    let (name, tag) = IMAGE.split_once(':').context("a tag")?;
    let options = CreateImageOptionsBuilder::new().from_src("-").repo(name).tag(tag).build();
    let body = bollard::body_full(archive.into_inner()?.into());
    docker
        .create_image(Some(options), Some(body), None)
        .try_collect::<Vec<_>>()
        .await
        .context("importing the image")?;
    Ok(())
}

/// Instances of one kind.
struct Field<'a> {
    docker: Docker,
    data: &'a TempDir,
    kind: Kind,
}

impl Field<'_> {
    fn name(&self, n: usize) -> String {
        format!("{}-{n}", self.kind.name())
    }

    /// Makes the n-th, and waits for its first answer; how long that takes.
    async fn make(&self, n: usize) -> anyhow::Result<Duration> {
        let name = self.name(n);
        let folder = self.folders(n)?;
        let begun = Instant::now();
        let network_mode = match self.kind {
            Kind::Sockets => "none".to_owned(),
            Kind::Bridge => {
                let request = NetworkCreateRequest { name: name.clone(), ..NetworkCreateRequest::default() };
                self.docker.create_network(request).await.with_context(|| format!("the network of {name}"))?;
                name.clone()
            }
        };
        let named = CreateContainerOptionsBuilder::new().name(&name).build();
        let body = body(&folder, UIDS + n as u32, network_mode);
        self.docker.create_container(Some(named), body).await.with_context(|| format!("creating {name}"))?;
        self.docker.start_container(&name, None).await.with_context(|| format!("starting {name}"))?;
        let socket = folder.join("in/http.sock");
        while !answers(&socket).await {
            ensure!(begun.elapsed() < LIMIT, "{name} does not answer");
            sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// Starts the program as a plain process, waits for its first answer, and ends it; how long the first two take.
    async fn run_bare(&self, program: &Path) -> anyhow::Result<Duration> {
        let folder = self.folders_of("bare", 0)?;
        let begun = Instant::now();
        let mut child = Command::new(program)
            .env_clear()
            .env("INSTANCE_DATA_DIR", folder.join("data"))
            .env("INSTANCE_CONFIG_DIR", folder.join("config"))
            .env("INSTANCE_IN_DIR", folder.join("in"))
            .env("INSTANCE_OUT_DIR", folder.join("out"))
            .uid(UIDS)
            .gid(UIDS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the program")?;
        let socket = folder.join("in/http.sock");
        while !answers(&socket).await {
            ensure!(begun.elapsed() < LIMIT, "the plain process does not answer");
            sleep(POLL).await;
        }
        let took = begun.elapsed();
        child.kill().await?;
        Ok(took)
    }

    /// Its folders, as deploy-control makes them before anything else.
    fn folders(&self, n: usize) -> anyhow::Result<PathBuf> {
        self.folders_of(&self.name(n), n)
    }

    fn folders_of(&self, name: &str, n: usize) -> anyhow::Result<PathBuf> {
        let folder = self.data.path().join(name);
        // Left by one that was removed.
        let _ = std::fs::remove_dir_all(&folder);
        let uid = Some(UIDS + n as u32);
        for part in ["in", "out", "data", "config"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part)?;
            chown(&part, uid, uid)?;
        }
        let config = json!({
            "generation": 0,
            "instance_id": format!("i-{n:032x}"),
            "slug": format!("bench-{n}"),
            "owner": format!("a-{n:032x}"),
            "origin": format!("http://bench-{n}.localhost:8088"),
            "issuer": "http://beaver-authz-service:19090",
            "portal": "http://localhost:3081",
        });
        let path = folder.join("config/config.json");
        std::fs::write(&path, config.to_string())?;
        chown(&path, uid, uid)?;
        Ok(folder)
    }

    async fn remove(&self, n: usize) -> anyhow::Result<()> {
        let (name, gone) = (self.name(n), |error: &bollard::errors::Error| {
            matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404, .. })
        });
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        match self.docker.remove_container(&name, Some(force)).await {
            Err(error) if !gone(&error) => return Err(error).with_context(|| format!("removing {name}")),
            _ => {}
        }
        if self.kind == Kind::Bridge {
            match self.docker.remove_network(&name).await {
                Err(error) if !gone(&error) => return Err(error).with_context(|| format!("removing network {name}")),
                _ => {}
            }
        }
        Ok(())
    }

    async fn remove_all(&self, options: &Options) -> anyhow::Result<()> {
        let most = options.at.last().copied().unwrap_or_default();
        let all = stream::iter((0..=most).map(|n| self.remove(n)));
        all.buffer_unordered(options.at_once).try_collect::<Vec<_>>().await?;
        Ok(())
    }
}

/// The container, but for its network as instances have it.
fn body(folder: &Path, uid: u32, network_mode: String) -> ContainerCreateBody {
    let mount = |part: &str, target: &str, read_only| Mount {
        typ: Some(MountType::BIND),
        source: Some(folder.join(part).display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let env = [
        "INSTANCE_DATA_DIR=/data",
        "INSTANCE_CONFIG_DIR=/config",
        "INSTANCE_IN_DIR=/run/beaver/in",
        "INSTANCE_OUT_DIR=/run/beaver/out",
        "SQLITE_TMPDIR=/data",
    ];
    ContainerCreateBody {
        image: Some(IMAGE.into()),
        cmd: Some(vec!["/app-instance".into()]),
        user: Some(format!("{uid}:{uid}")),
        env: Some(env.map(str::to_owned).to_vec()),
        stop_timeout: Some(0),
        host_config: Some(HostConfig {
            network_mode: Some(network_mode),
            mounts: Some(vec![
                mount("in", "/run/beaver/in", false),
                mount("out", "/run/beaver/out", true),
                mount("data", "/data", false),
                mount("config", "/config", true),
            ]),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges:true".into()]),
            init: Some(true),
            memory: Some(MEMORY),
            memory_swap: Some(MEMORY),
            pids_limit: Some(64),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Whether it answers that it is alive.
async fn answers(socket: &Path) -> bool {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        // As the house asks it, through the router.
        let request =
            format!("GET /healthz HTTP/1.1\r\nhost: i\r\n{}: 1\r\nconnection: close\r\n\r\n", contracts::INTERNAL);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    asked.await.unwrap_or(false)
}
