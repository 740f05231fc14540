//! The process engine: the same four services in this one process, workspaces as its children. Same sockets, same
//! pages, no isolation: for trying Beaver out, and for fast tests.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Seek, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};
use serde::{Deserialize, Serialize};
use service::Shutdown;
use settings::Env;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Exit,
    args::EngineKind,
    ask, checks, operator, remembered,
    stack::{DIRECTORIES, Stack},
    text,
    ui::Ui,
};

/// How long the services have to become ready.
const READY: Duration = Duration::from_secs(60);
/// How long somebody may take to look whether it runs.
const LOOKS: Duration = Duration::from_secs(2);
/// How long they have to end; they drain for 10 s.
const END: Duration = Duration::from_secs(25);

/// What runs, for `down` and `status` in another shell. Locked for as long as it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Running {
    pid: i32,
    authz: String,
    deploy_control: String,
    /// The router's internal listener.
    #[serde(default)]
    router: String,
}

/// Runs everything until SIGINT or SIGTERM.
///
/// # Errors
/// When a service cannot start or ends by itself; then everything is stopped.
pub async fn run(stack: &Stack, unasked: bool, ui: &Ui) -> anyhow::Result<Exit> {
    let ui = &ui.lines_only();
    if unasked {
        ui.line(text!(
            ui,
            "! No container engine was found on this host, so workspaces run as plain processes of your own user.\n\
             ! NOTHING ISOLATES THEM from each other or from you. Good for a try; not for people you do not trust.",
            "! 本机没有容器引擎,因此工作区将作为你自己账号下的普通进程运行。\n\
             ! 它们彼此之间、与你之间没有任何隔离。仅适合试用,不要给不信任的人使用。"
        ));
    } else {
        ui.line(text!(
            ui,
            "! process engine: nothing isolates workspaces from each other or from you",
            "! 进程引擎:工作区彼此之间、与你之间没有任何隔离"
        ));
    }
    make_directories(stack)?;
    let mut lock = lock(&path(stack), LOOKS).await?;
    remembered::write(&stack.data_dir, EngineKind::Process)?;
    let env = environment(stack)?;
    write_running(&mut lock, &env)?;
    let _log = service::telemetry::init(
        &env.string("BEAVER_LOG")?,
        env.optional("BEAVER_LOG_FORMAT").as_deref() == Some("json"),
    );

    let stop = Shutdown::new();
    tokio::spawn(service::run::stop_on_signal(stop.clone()));
    let mut services = start(&env, &stop);
    let step = ui.step(text!(ui, "waiting until the services are ready", "正在等待服务就绪"));
    // Stopping comes first: services that end because they were asked to are no failure.
    let ready = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = services.join_next() => Err(ended_early(ended)),
        ready = wait_ready(&env) => ready,
    };
    if ready.is_ok() && !stop.is_cancelled() {
        step.done(text!(ui, "everything is ready; Ctrl-C ends it", "全部就绪;按 Ctrl-C 结束"));
        announce(stack, &env, ui).await?;
    }
    let result = match ready {
        Ok(()) => tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = services.join_next() => Err(ended_early(ended)),
        },
        Err(error) => Err(error),
    };
    stop.cancel();
    result.and(drain(services).await).map(|()| Exit::Ok)
}

/// Waits until every service has ended as it was asked to.
async fn drain(mut services: Services) -> anyhow::Result<()> {
    let ending = async {
        let mut result = Ok(());
        while let Some(ended) = services.join_next().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                result = Err(ended_early(Some(ended)));
            }
        }
        result
    };
    timeout(END, ending).await.unwrap_or_else(|_| bail!("not everything ended in {} s", END.as_secs()))
}

type Services = JoinSet<(&'static str, anyhow::Result<()>)>;

fn start(env: &Env, stop: &Shutdown) -> Services {
    service::run::allow_open_files("beaver");
    let mut services = JoinSet::new();
    macro_rules! service {
        ($name:literal, $run:path) => {
            let (env, stop) = (env.clone(), stop.clone());
            services.spawn(async move { ($name, $run(env, stop).await) });
        };
    }
    service!("authz", authz::run);
    service!("deploy-control", deploy_control::run);
    service!("router-proxy", router_proxy::run);
    service!("auth-portal", auth_portal::run);
    services
}

type Ended = Option<Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>>;

fn ended_early(ended: Ended) -> anyhow::Error {
    match ended {
        Some(Ok((name, Err(error)))) => error.context(name),
        Some(Ok((name, Ok(())))) => anyhow::anyhow!("{name} ended by itself"),
        Some(Err(panic)) => anyhow::anyhow!("a service panicked: {panic}"),
        None => anyhow::anyhow!("no service runs"),
    }
}

async fn wait_ready(env: &Env) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let urls = [
        ("authz", authz::health_url(env)?),
        ("deploy-control", deploy_control::health_url(env)?),
        ("router-proxy", router_proxy::health_url(env)?),
        ("auth-portal", auth_portal::health_url(env)?),
    ];
    let began = Instant::now();
    for (name, url) in urls {
        while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            ensure!(began.elapsed() < READY, "{name} did not become ready in {} s", READY.as_secs());
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

async fn announce(stack: &Stack, env: &Env, ui: &Ui) -> anyhow::Result<()> {
    // Addresses by the ports that were really taken.
    let stack = stack.with_env(env.clone());
    let answers = ask::services(env).await?;
    operator::print_addresses(&stack, ui)?;
    if answers.operator_exists == Some(false) {
        operator::print_link(&stack, ui)?;
    }
    std::io::stdout().flush()?;
    Ok(())
}

/// The settings of all services: the stack's, with every listener on this host and every address following from it.
fn environment(stack: &Stack) -> anyhow::Result<Env> {
    let [(_, portal), (_, router)] = checks::published(stack)?;
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let [portal, router, authz, deploy, internal, portal_internal] =
        concrete([portal, router, local, local, local, local])?;
    let mut env = stack.env.clone();
    for (key, value) in [
        ("PORTAL_LISTEN", portal.to_string()),
        ("PORTAL_INTERNAL_LISTEN", portal_internal.to_string()),
        ("AUTHZ_LISTEN", authz.to_string()),
        ("DEPLOY_LISTEN", deploy.to_string()),
        ("ROUTER_LISTEN", router.to_string()),
        ("ROUTER_INTERNAL_LISTEN", internal.to_string()),
        ("BEAVER_AUTHZ_URL", format!("http://{authz}")),
        ("BEAVER_DEPLOY_URL", format!("http://{deploy}")),
        ("BEAVER_ROUTER_INTERNAL_URL", format!("http://{internal}")),
        ("BEAVER_ENGINE", "process".into()),
        // This very program, even when its file has been replaced meanwhile or its path has a space in it.
        ("BEAVER_INSTANCE_COMMAND", "/proc/self/exe instance".into()),
    ] {
        env = env.with(key, value);
    }
    if stack.env.optional("BEAVER_PORTAL_PORT").as_deref() == Some("0") {
        env = env.with("BEAVER_PORTAL_URL", format!("http://localhost:{}", portal.port()));
    }
    if stack.env.optional("BEAVER_ROUTER_PORT").as_deref() == Some("0") {
        env = env.with("DEPLOY_PUBLIC_PORT", router.port().to_string());
    }
    // One person reads this, at a terminal: text, unless the shell asks for JSON.
    let format = std::env::var("BEAVER_LOG_FORMAT").ok().filter(|f| !f.is_empty());
    Ok(env.with("BEAVER_LOG_FORMAT", format.unwrap_or_else(|| "text".into())))
}

/// The addresses themselves, or with a free port in place of 0, each another one.
fn concrete<const N: usize>(mut addresses: [SocketAddr; N]) -> anyhow::Result<[SocketAddr; N]> {
    // Let go only together: what is free again may be the next one's.
    let mut held = Vec::new();
    for address in addresses.iter_mut().filter(|address| address.port() == 0) {
        let listener = TcpListener::bind(*address).context("no free port")?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

fn make_directories(stack: &Stack) -> anyhow::Result<()> {
    for name in DIRECTORIES {
        let path = stack.data_dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn path(stack: &Stack) -> PathBuf {
    stack.data_dir.join("process.json")
}

/// Refuses to begin where it runs already.
///
/// # Errors
/// With the process that runs it.
pub fn ensure_stopped(stack: &Stack) -> anyhow::Result<()> {
    match locked(stack) {
        Some(file) => Err(runs_already(running(&file))),
        None => Ok(()),
    }
}

/// The lock that says "it runs"; the kernel lifts it however the process ends. `patience` is for those who look.
///
/// # Errors
/// With the process that runs it.
async fn lock(path: &Path, patience: Duration) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let began = Instant::now();
    // Whoever looks whether it runs holds a shared lock for that moment.
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if began.elapsed() >= patience {
            return Err(runs_already(running(&file)));
        }
        sleep(Duration::from_millis(20)).await;
    }
    // From here on the lock means this process: what a killed one left here must not be asked, and never be ended.
    file.set_len(0)?;
    Ok(file)
}

fn runs_already(running: Option<Running>) -> anyhow::Error {
    let pid = running.map(|running| format!(" as process {}", running.pid)).unwrap_or_default();
    anyhow::anyhow!("it runs already{pid}: beaver down stops it")
}

fn write_running(file: &mut File, env: &Env) -> anyhow::Result<()> {
    let running = Running {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        authz: env.string("BEAVER_AUTHZ_URL")?,
        deploy_control: env.string("BEAVER_DEPLOY_URL")?,
        router: env.string("BEAVER_ROUTER_INTERNAL_URL")?,
    };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(&running)?)?;
    Ok(())
}

fn running(mut file: &File) -> Option<Running> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// The file, when its lock says that it runs.
fn locked(stack: &Stack) -> Option<File> {
    let file = File::open(path(stack)).ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).is_err().then_some(file)
}

/// What runs now on this data, and its open file; nothing when the lock is free.
fn look(stack: &Stack) -> Option<(File, Running)> {
    let file = locked(stack)?;
    let running = running(&file)?;
    Some((file, running))
}

/// The settings with which a running stack's services are asked; nothing when none runs.
pub fn reach(stack: &Stack) -> Option<Env> {
    let (_, running) = look(stack)?;
    let env = stack.env.clone().with("BEAVER_AUTHZ_URL", running.authz);
    Some(env.with("BEAVER_DEPLOY_URL", running.deploy_control).with("BEAVER_ROUTER_INTERNAL_URL", running.router))
}

/// Asks a running stack to end and waits for it; whether one ran.
///
/// # Errors
/// When it does not end in time.
pub async fn stop(stack: &Stack) -> anyhow::Result<bool> {
    let Some((file, running)) = look(stack) else { return Ok(false) };
    let pid = Pid::from_raw(running.pid).context("process.json has no process in it")?;
    kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop process {}", running.pid))?;
    let began = Instant::now();
    while flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        ensure!(began.elapsed() < END + Duration::from_secs(5), "process {} does not end", running.pid);
        sleep(Duration::from_millis(100)).await;
    }
    Ok(true)
}

/// Removes the file that says what runs.
pub fn forget(stack: &Stack) {
    let _ = fs::remove_file(path(stack));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: &str = r#"{"pid":4711,"authz":"a","deploy_control":"d","router":"r"}"#;

    #[tokio::test]
    async fn who_looks_whether_it_runs_keeps_nobody_from_running_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        fs::write(&path, LEFT).unwrap();
        let looking = File::open(&path).unwrap();
        flock(&looking, FlockOperation::NonBlockingLockShared).unwrap();
        let (locked, ()) = tokio::join!(lock(&path, LOOKS), async { drop(looking) });
        assert!(running(&locked.unwrap()).is_none(), "a process that was killed is taken for this one");
    }

    #[test]
    fn no_port_is_chosen_twice() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let chosen = concrete([any; 400]).unwrap();
        let different: std::collections::BTreeSet<_> = chosen.iter().map(SocketAddr::port).collect();
        assert_eq!(different.len(), chosen.len());
        assert!(!different.contains(&0));
        assert_eq!(concrete([chosen[0]]).unwrap(), [chosen[0]], "one that is asked for stays");
    }

    #[tokio::test]
    async fn it_runs_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        let first = lock(&path, LOOKS).await.unwrap();
        fs::write(&path, LEFT).unwrap();
        let said = lock(&path, Duration::ZERO).await.unwrap_err().to_string();
        assert!(said.contains("it runs already as process 4711"), "{said}");
        drop(first);
        lock(&path, LOOKS).await.unwrap();
    }
}
