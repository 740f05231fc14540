//! An image, started for real: as an instance is, behind the shim, with every limit of an instance's and no way out.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use clock::Entropy;
use contracts::{InstanceId, PlanName};
use deploy_control::{
    config::{Config, EngineConfig},
    engine::{Endpoint, Engine as _, ImageProgram, InstanceSpec, Program, UnitFolders, UnitState, docker::Docker},
    reconcile::image_env,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::judge::Facts;
use crate::{binaries, engine::Engine, stack::Stack, text, ui::Ui};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one question may take.
const ASK: Duration = Duration::from_secs(3);
/// How many of its last lines are shown.
const LINES: usize = 15;
/// Whom it runs as when the operator is root; who is not root gives it their own.
const NOBODY: u32 = 65_534;

/// Starts it, asks it, shows what it said and removes it; whether it answered.
///
/// # Errors
/// When the engine does not do its part.
pub async fn run(stack: &Stack, facts: &Facts, health: &str, ui: &Ui) -> anyhow::Result<bool> {
    let Some(port) = facts.port() else {
        println!(
            "{}",
            text!(ui, "✗ --run needs to know the port: name it with --port", "✗ --run 需要知道端口:请用 --port 指明")
        );
        return Ok(false);
    };
    let settings = Config::from_env(&with_secrets(stack))?;
    // Of its own: nothing of the stack's takes it for an instance.
    let prefix = format!("{}-check", stack.prefix);
    let (socket, _) = stack.socket()?;
    let folder = tempfile::Builder::new().prefix("beaver-check-").tempdir()?;
    let config = EngineConfig {
        prefix: prefix.clone(),
        docker_socket: socket,
        shim: shim_file(stack, ui).await?,
        shim_folder: folder.path().join("shim"),
        ..settings.engine
    };
    let spec = InstanceSpec {
        not: None,
        id: InstanceId::from_uuid(uuid::Uuid::from_bytes(Entropy::system().bytes())),
        generation: 1,
        plan: PlanName::default(),
        program: Program::Image(ImageProgram {
            image: facts.name.clone(),
            command: if facts.own_command { facts.argv.clone() } else { Vec::new() },
            port,
        }),
        uid: Some(match rustix::process::geteuid() {
            root if root.is_root() => NOBODY,
            own => own.as_raw(),
        }),
        folders: folders(folder.path())?,
        limits: settings.plans.limits,
        env: image_env("http://check.localhost").into_iter().collect(),
    };
    let docker = Docker::new(&config);
    let step = ui.step(text!(ui, "starting it", "正在启动"));
    let answered = tokio::select! {
        answered = answers(&docker, &spec, health) => answered,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let lines = Engine::of(stack).await?.last_lines(&format!("{prefix}-{}", spec.id), LINES).await;
    docker.remove(spec.id).await.context("it is left, and must be removed by hand")?;
    drop(step);
    let (works, line) = match answered? {
        Outcome::Answered(status) if status < 500 => (
            true,
            text!(
                ui,
                "✓ it answers on port {port}: GET {health} gives {status}",
                "✓ 它在端口 {port} 上有回答:GET {health} 得到 {status}"
            ),
        ),
        Outcome::Answered(status) => (
            false,
            text!(
                ui,
                "✗ it answers GET {health} with {status}: name another path with --health, and in the plan",
                "✗ 它对 GET {health} 回答 {status}:请用 --health 换一个路径,并写进套餐"
            ),
        ),
        Outcome::Ended => (false, text!(ui, "✗ it ended by itself", "✗ 它自己退出了")),
        Outcome::Silent => (
            false,
            text!(
                ui,
                "✗ nothing answers on port {port}: does it listen there?",
                "✗ 端口 {port} 上没有回答:它监听的是这个端口吗?"
            ),
        ),
    };
    println!("{line}");
    if !lines.is_empty() {
        println!("{}", text!(ui, "  its last lines:", "  它最后的输出:"));
        lines.iter().for_each(|line| println!("  | {line}"));
    }
    Ok(works)
}

/// What came of asking it.
enum Outcome {
    /// A status.
    Answered(u16),
    /// It is not there any more.
    Ended,
    /// Nobody answered in time.
    Silent,
}

async fn answers(docker: &Docker, spec: &InstanceSpec, health: &str) -> anyhow::Result<Outcome> {
    docker.ensure(spec).await?;
    docker.start(spec.id).await?;
    let Endpoint::Socket(socket) = docker.endpoint(spec);
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match tokio::time::timeout(ASK, ask(&socket, health)).await {
            Ok(Ok(status)) if status < 500 => return Ok(Outcome::Answered(status)),
            // It may still be starting.
            Ok(Ok(status)) => last = Some(status),
            Ok(Err(_)) | Err(_) => {}
        }
        if !docker.observe(spec.id).await?.is_some_and(|unit| unit.state == UnitState::Running) {
            return Ok(Outcome::Ended);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(last.map_or(Outcome::Silent, Outcome::Answered))
}

/// The status of its answer.
async fn ask(socket: &Path, path: &str) -> anyhow::Result<u16> {
    let mut stream = UnixStream::connect(socket).await?;
    let question = format!("GET {path} HTTP/1.1\r\nHost: check.localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let head = std::str::from_utf8(&head)?;
    head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)?.parse().ok()).context("it does not speak HTTP/1")
}

/// The folders of an instance that is nobody's: everybody may use them, for as long as it is there.
fn folders(root: &Path) -> anyhow::Result<UnitFolders> {
    let make = |name: &str| {
        let path = root.join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        anyhow::Ok(path)
    };
    Ok(UnitFolders {
        inward: make("in")?,
        outward: make("out")?,
        data: make("data")?,
        config: make("config")?,
        logs: root.to_owned(),
    })
}

/// The shim: beside this program, else built.
async fn shim_file(stack: &Stack, ui: &Ui) -> anyhow::Result<std::path::PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(binaries::SHIM);
    if beside.is_file() {
        return Ok(beside);
    }
    let step = ui.step(text!(ui, "building the shim", "正在构建 shim"));
    let mut built = binaries::build(&stack.project, "release", &binaries::PACKAGES, |line| step.now(line)).await?;
    built.remove(binaries::SHIM).context("cargo built no shim")
}

/// The settings with something where secrets are needed: none of them is used.
fn with_secrets(stack: &Stack) -> settings::Env {
    let unused = "0123456789abcdef0123456789abcdef";
    ["BEAVER_DEPLOY_TOKEN", "BEAVER_AUTHZ_INTERNAL_TOKEN", "BEAVER_ROUTER_INTERNAL_TOKEN"]
        .into_iter()
        .fold(stack.env.clone(), |env, key| env.with(key, unused))
}
