//! The checks before anything is changed: facts are gathered, then judged. Each failure is one line with its cure.

mod surroundings;

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use futures_util::future::try_join_all;

use crate::{
    Usage,
    args::EngineKind,
    binaries,
    compose::{self, Compose},
    engine::{self, Absence, Engine},
    stack::{SERVICES, Stack},
    text,
    ui::Ui,
};
use surroundings::Surroundings;

const GB: u64 = 1 << 30;
/// The longest path of a Unix socket on Linux (`sun_path` without its end), in bytes.
const LONGEST_SOCKET_PATH: usize = 107;
/// What comes after the data directory in the longest path of a socket: `/run/<id>/out/identity.sock`.
const SOCKET_PATH_TAIL: usize = "/run/i-00000000000000000000000000000000/out/identity.sock".len();

/// A port that somebody on this host will connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The setting that chooses it.
    pub setting: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Whether we can have it.
    pub state: PortState,
}

/// Whether a port can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Nobody has it.
    Free,
    /// Our own stack has it.
    Ours,
    /// Somebody else has it, or it may not be had.
    Taken(String),
}

/// Room on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// For what.
    pub path: PathBuf,
    /// Free for us, in bytes.
    pub free: u64,
    /// Needed, in bytes.
    pub needed: u64,
}

/// The data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// Fit for use.
    Fine,
    /// Unfit, for this reason.
    Unfit(String),
}

/// What is the case on this host.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The engine's version and API, where it is used.
    pub engine: Option<Result<(String, String), Absence>>,
    /// What confines its containers.
    pub surroundings: Option<Surroundings>,
    /// The compose tool, or the version of one that is too old.
    pub compose: Option<Result<String, String>>,
    /// What is missing to build, where that is to be done.
    pub missing_tools: Vec<&'static str>,
    /// The published ports.
    pub ports: Vec<Port>,
    /// Containers with our names that are not ours, and whose they are.
    pub foreign: Vec<(String, String)>,
    /// Room.
    pub disks: Vec<Disk>,
    /// The data directory.
    pub data_dir: DataDir,
    /// Its path.
    pub data_path: PathBuf,
}

/// One check's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it passed.
    pub ok: bool,
    /// One line; the cure is in it when it failed.
    pub line: String,
}

impl Finding {
    fn good(line: String) -> Self {
        Self { ok: true, line }
    }

    fn bad(line: String) -> Self {
        Self { ok: false, line }
    }

    /// The line with its mark.
    pub fn marked(&self) -> String {
        format!("{} {}", if self.ok { "✓" } else { "✗" }, self.line)
    }
}

/// The tools that the checks found, for use.
pub struct Tools {
    /// The engine.
    pub engine: Option<Engine>,
    /// The compose tool.
    pub compose: Option<Compose>,
}

/// Looks at this host. Changes nothing.
///
/// # Errors
/// [`Usage`] or [`settings::Error`] when a setting is unusable.
pub async fn gather(stack: &Stack, kind: EngineKind, building: bool) -> anyhow::Result<(Facts, Tools)> {
    let (engine, compose) = if kind == EngineKind::Docker {
        let (socket, named) = stack.socket()?;
        let (engine, compose) = tokio::join!(engine::connect(socket, named), compose::detect());
        (Some(engine), Some(compose))
    } else {
        (None, None)
    };
    let live = engine.as_ref().and_then(|engine| engine.as_ref().ok());
    let facts = Facts {
        engine: engine.as_ref().map(|e| e.as_ref().map(|e| (e.version.clone(), e.api.clone())).map_err(Clone::clone)),
        surroundings: live.map(|engine| Surroundings::of(&engine.about)),
        compose: compose
            .as_ref()
            .map(|c| c.as_ref().map(|c| format!("{} {}", c.name(), c.version)).map_err(Clone::clone)),
        missing_tools: if building { missing_tools(&stack.project.dir) } else { Vec::new() },
        ports: ports(stack, live).await?,
        foreign: foreign(stack, live).await?,
        disks: disks(stack, live, building),
        data_dir: data_dir(&stack.data_dir, kind),
        data_path: stack.data_dir.clone(),
    };
    Ok((facts, Tools { engine: engine.and_then(Result::ok), compose: compose.and_then(Result::ok) }))
}

/// What the facts mean.
pub fn judge(facts: &Facts, ui: &Ui) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.engine {
        Some(Ok((version, api))) => {
            findings.push(Finding::good(text!(ui, "engine {version}, API {api}", "引擎 {version},API {api}")));
        }
        Some(Err(absence)) => findings.push(Finding::bad(absence_line(absence))),
        None => findings.push(Finding::good(text!(
            ui,
            "process engine: no containers, and no isolation",
            "进程引擎:不使用容器,也没有隔离"
        ))),
    }
    findings.extend(facts.surroundings.iter().flat_map(|surroundings| surroundings.judge(ui)));
    match &facts.compose {
        Some(Ok(tool)) => findings.push(Finding::good(tool.clone())),
        Some(Err(old)) if old.is_empty() => findings.push(Finding::bad(text!(
            ui,
            "no compose tool: install one (Debian, Ubuntu: sudo apt install docker-compose; others: docker-compose-plugin)",
            "没有找到 compose 工具:请安装(Debian、Ubuntu:sudo apt install docker-compose;其他系统:docker-compose-plugin)"
        ))),
        Some(Err(old)) => findings.push(Finding::bad(text!(
            ui,
            "compose {old} is too old: install docker-compose 1.29 or Docker Compose 2",
            "compose {old} 太旧:请安装 docker-compose 1.29 或 Docker Compose 2"
        ))),
        None => {}
    }
    for tool in &facts.missing_tools {
        let cure = match *tool {
            "cargo" => "install Rust from https://rustup.rs",
            "cc" => "install a C compiler (Debian, Ubuntu: sudo apt install build-essential)",
            _ => "run beaver in a checkout of the project, or with --no-build",
        };
        findings.push(Finding::bad(text!(
            ui,
            "{tool} is missing, building needs it: {cure}",
            "缺少构建所需的 {tool}:{cure}"
        )));
    }
    for Port { setting, address, state } in &facts.ports {
        match state {
            PortState::Free => {
                findings.push(Finding::good(text!(ui, "{address} is free", "{address} 空闲")));
            }
            PortState::Ours => {
                findings.push(Finding::good(text!(ui, "{address} is this stack's own", "{address} 已由本套服务占用")));
            }
            PortState::Taken(why) => findings.push(Finding::bad(text!(
                ui,
                "{address} cannot be had ({why}): stop what uses it, or choose another {setting} in .env",
                "{address} 无法使用({why}):请停掉占用它的程序,或在 .env 中另选 {setting}"
            ))),
        }
    }
    for (name, whose) in &facts.foreign {
        findings.push(Finding::bad(text!(
            ui,
            "a container named {name} is there and is not this stack's ({whose}): stop it, or choose another BEAVER_PREFIX",
            "已有名为 {name} 的容器,但不属于本套服务({whose}):请停掉它,或另选 BEAVER_PREFIX"
        )));
    }
    for Disk { path, free, needed } in &facts.disks {
        let (path, free_gb, needed_gb) = (path.display(), tenths(*free), tenths(*needed));
        findings.push(if free < needed {
            Finding::bad(text!(
                ui,
                "{path} has {free_gb} GB free, {needed_gb} GB are needed: make room",
                "{path} 只剩 {free_gb} GB,需要 {needed_gb} GB:请腾出空间"
            ))
        } else {
            Finding::good(text!(ui, "{path}: {free_gb} GB free", "{path}:剩余 {free_gb} GB"))
        });
    }
    if let DataDir::Unfit(why) = &facts.data_dir {
        let path = facts.data_path.display();
        findings.push(Finding::bad(text!(
            ui,
            "{path} cannot hold the data ({why}): choose another BEAVER_DATA_DIR (--data-dir)",
            "{path} 不能存放数据({why}):请另选 BEAVER_DATA_DIR(--data-dir)"
        )));
    }
    findings
}

/// What the services that run lack, as they say it themselves; nothing when none runs.
///
/// # Errors
/// When the engine does not list containers.
pub async fn running(stack: &Stack, engine: &Engine) -> anyhow::Result<Vec<Finding>> {
    let unmet = unmet(stack, engine).await?;
    Ok(unmet.into_iter().map(|(service, why)| Finding::bad(format!("{service}: {why}"))).collect())
}

/// What is wrong with the operator's file of plans: that is taken over while everything runs, so it is no reason not to begin.
/// Nothing when there is none, or none that may be read.
pub fn plans(stack: &Stack, ui: &Ui) -> anyhow::Result<Option<Finding>> {
    let path = stack.data_dir.join("deploy-control").join(stack.env.string("BEAVER_PLANS_FILE")?);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
    let path = path.display();
    Ok(Some(match deploy_control::plans::check(&text) {
        Ok(names) => {
            let names = names.join(", ");
            Finding::good(text!(ui, "plans in {path}: {names}", "{path} 里的套餐:{names}"))
        }
        Err(error) => Finding::bad(text!(
            ui,
            "{path} is not taken over ({error}): correct it; until then the plans are as they were",
            "{path} 没有生效({error}):请改正;在那之前套餐保持原样"
        )),
    }))
}

/// The services that run and are not ready, and why.
///
/// # Errors
/// When the engine does not list containers.
pub async fn unmet(stack: &Stack, engine: &Engine) -> anyhow::Result<Vec<(&'static str, String)>> {
    let asked = SERVICES.map(async |service| {
        let name = stack.container(service);
        if !engine.container(&name).await?.as_ref().is_some_and(engine::is_running) {
            return Ok(None);
        }
        // One that has just ended is no finding of this kind.
        let unmet = engine.unmet(&name, service.name).await.ok().flatten();
        anyhow::Ok(unmet.map(|why| (service.name, why)))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

/// Why there is no engine, and what to do.
pub fn absence_line(absence: &Absence) -> String {
    match absence {
        Absence::None(path) => format!(
            "no container engine on this host ({} is not there): install Docker (Debian, Ubuntu: sudo apt install docker.io), \
             or try Beaver without one: beaver up --engine process",
            path.display()
        ),
        Absence::NoSuchSocket(path) => {
            format!("{} is not there: correct DOCKER_HOST or BEAVER_DOCKER_SOCKET, or start the engine", path.display())
        }
        Absence::Forbidden(path) => format!(
            "{} may not be opened by you: sudo usermod -aG docker \"$USER\", then sign in again (or use sudo)",
            path.display()
        ),
        Absence::Silent(path, why) => {
            format!("the engine at {} does not answer ({why}): sudo systemctl restart docker", path.display())
        }
        Absence::TooOld(api) => {
            format!("the engine's API is {api}, 1.41 is needed: install Docker 20.10 or later")
        }
    }
}

fn tenths(bytes: u64) -> String {
    let tenths = bytes * 10 / GB;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn missing_tools(project: &Path) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !project.join("Cargo.toml").is_file() {
        missing.push("Cargo.toml");
    }
    let runs = |program: &str| {
        std::process::Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    if !runs(&binaries::cargo()) {
        missing.push("cargo");
    }
    if !runs("cc") {
        missing.push("cc");
    }
    missing
}

/// The addresses the stack publishes: portal, router.
///
/// # Errors
/// When one of the settings is unusable.
pub fn published(stack: &Stack) -> Result<[(&'static str, SocketAddr); 2], settings::Error> {
    let bind: IpAddr = stack.env.parse("BEAVER_BIND")?;
    Ok([
        ("BEAVER_PORTAL_PORT", SocketAddr::new(bind, stack.env.parse("BEAVER_PORTAL_PORT")?)),
        ("BEAVER_ROUTER_PORT", SocketAddr::new(bind, stack.env.parse("BEAVER_ROUTER_PORT")?)),
    ])
}

async fn ports(stack: &Stack, engine: Option<&Engine>) -> anyhow::Result<Vec<Port>> {
    let mut ours = Vec::new();
    if let Some(engine) = engine {
        for container in engine.containers(&format!("{}={}", engine::STACK_LABEL, stack.prefix)).await? {
            ours.extend(container.ports.unwrap_or_default().into_iter().filter_map(|port| port.public_port));
        }
    }
    Ok(published(stack)?
        .into_iter()
        .map(|(setting, address)| {
            let state = match TcpListener::bind(address) {
                Ok(_) => PortState::Free,
                Err(_) if ours.contains(&address.port()) => PortState::Ours,
                Err(error) => PortState::Taken(plain(&error)),
            };
            Port { setting, address, state }
        })
        .collect())
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "in use".into(),
        std::io::ErrorKind::PermissionDenied => "not permitted".into(),
        std::io::ErrorKind::AddrNotAvailable => "not an address of this host".into(),
        _ => error.to_string(),
    }
}

/// Containers with the services' names that belong to something else, such as another checkout's stack.
///
/// # Errors
/// When the engine does not list containers.
pub async fn foreign(stack: &Stack, engine: Option<&Engine>) -> anyhow::Result<Vec<(String, String)>> {
    let mut foreign = Vec::new();
    if let Some(engine) = engine {
        for service in SERVICES {
            let name = stack.container(service);
            if let Some(container) = engine.container(&name).await? {
                let project = engine::label_of(&container, "com.docker.compose.project");
                if project != Some(stack.prefix.as_str()) {
                    foreign.push((name, format!("project {}", project.unwrap_or("unknown"))));
                } else if let Some(elsewhere) = engine::mounts_elsewhere(&container, &stack.data_dir) {
                    foreign.push((name, format!("its data is in {}", elsewhere.display())));
                }
            }
        }
    }
    Ok(foreign)
}

fn disks(stack: &Stack, engine: Option<&Engine>, building: bool) -> Vec<Disk> {
    let mut wanted = vec![(stack.data_dir.clone(), GB)];
    if let Some(root) = engine.and_then(Engine::root).filter(|root| root.is_dir()) {
        wanted.push((root, GB));
    }
    // A first build takes some GB, the next ones next to nothing.
    if building && !stack.project.dir.join("target").is_dir() {
        wanted.push((stack.project.dir.clone(), 4 * GB));
    }
    wanted
        .into_iter()
        .filter_map(|(path, needed)| {
            let there = path.ancestors().find(|path| path.exists())?;
            let room = rustix::fs::statvfs(there).ok()?;
            Some(Disk { free: room.f_bavail.saturating_mul(room.f_frsize), path, needed })
        })
        .collect()
}

fn data_dir(path: &Path, kind: EngineKind) -> DataDir {
    let text = path.as_os_str();
    if text.to_str().is_none_or(|text| text.contains([':', '\n', '"'])) {
        return DataDir::Unfit("a colon, a quote or an odd character is in its name".into());
    }
    if kind == EngineKind::Process && text.len() + SOCKET_PATH_TAIL > LONGEST_SOCKET_PATH {
        return DataDir::Unfit(format!(
            "its name is too long for Unix sockets: {} bytes at most",
            LONGEST_SOCKET_PATH - SOCKET_PATH_TAIL
        ));
    }
    let Some(there) = path.ancestors().find(|path| fs::symlink_metadata(path).is_ok()) else {
        return DataDir::Unfit("no part of it exists".into());
    };
    if !there.is_dir() {
        return DataDir::Unfit(format!("{} is no directory", there.display()));
    }
    if rustix::fs::statvfs(there).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)) {
        return DataDir::Unfit("its file system is read-only".into());
    }
    // With the engine, a container of root's makes the directories: then the operator need not be able to.
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    if kind == EngineKind::Process && !writable {
        return DataDir::Unfit("you may not write there".into());
    }
    DataDir::Fine
}

/// Refuses what cannot be anything but a mistake in the settings, before any check of the host.
///
/// # Errors
/// [`settings::Error`] or [`Usage`], one line.
pub fn settings(stack: &Stack) -> anyhow::Result<()> {
    stack.check_secrets()?;
    stack.env.public_address()?;
    let isolation = stack.env.string("BEAVER_ISOLATION")?;
    if !["sockets", "shared"].contains(&isolation.as_str()) {
        return Err(Usage(format!("BEAVER_ISOLATION is {isolation}: it must be sockets or shared")).into());
    }
    let [(_, portal), (_, router)] = published(stack)?;
    if portal == router && portal.port() != 0 {
        return Err(Usage("BEAVER_PORTAL_PORT and BEAVER_ROUTER_PORT are the same: choose two".into()).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Project;

    fn healthy() -> Facts {
        Facts {
            engine: Some(Ok(("20.10.24".into(), "1.41".into()))),
            surroundings: None,
            compose: Some(Ok("docker-compose 1.29.2".into())),
            missing_tools: Vec::new(),
            ports: vec![Port {
                setting: "BEAVER_PORTAL_PORT",
                address: "127.0.0.1:3081".parse().unwrap(),
                state: PortState::Free,
            }],
            foreign: Vec::new(),
            disks: vec![Disk { path: "/data".into(), free: 5 * GB, needed: GB }],
            data_dir: DataDir::Fine,
            data_path: "/data".into(),
        }
    }

    fn failures(facts: &Facts) -> Vec<String> {
        judge(facts, &Ui::plain()).into_iter().filter(|f| !f.ok).map(|f| f.line).collect()
    }

    #[test]
    fn a_healthy_host_passes_and_our_own_ports_are_fine() {
        let mut facts = healthy();
        assert_eq!(failures(&facts), Vec::<String>::new());
        facts.ports[0].state = PortState::Ours;
        assert_eq!(failures(&facts), Vec::<String>::new());
    }

    #[test]
    fn each_failure_is_one_line_with_its_cure() {
        type Break = fn(&mut Facts);
        let cases: [(Break, &str, &str); 10] = [
            (|f| f.engine = Some(Err(Absence::None("/s".into()))), "/s", "--engine process"),
            (|f| f.engine = Some(Err(Absence::Forbidden("/s".into()))), "/s", "usermod"),
            (|f| f.engine = Some(Err(Absence::TooOld("1.39".into()))), "1.39", "20.10"),
            (|f| f.compose = Some(Err(String::new())), "no compose tool", "apt install docker-compose"),
            (|f| f.compose = Some(Err("1.25.0".into())), "1.25.0", "1.29"),
            (|f| f.missing_tools = vec!["cargo"], "cargo", "rustup.rs"),
            (|f| f.ports[0].state = PortState::Taken("in use".into()), "127.0.0.1:3081", "BEAVER_PORTAL_PORT"),
            (|f| f.foreign = vec![("beaver-authz-service".into(), "project x".into())], "project x", "BEAVER_PREFIX"),
            (|f| f.disks[0].free = GB / 2, "0.5 GB", "make room"),
            (|f| f.data_dir = DataDir::Unfit("read-only".into()), "read-only", "BEAVER_DATA_DIR"),
        ];
        for (damage, names, cure) in cases {
            let mut facts = healthy();
            damage(&mut facts);
            let lines = failures(&facts);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains(names) && lines[0].contains(cure) && !lines[0].contains('\n'), "{}", lines[0]);
        }
    }

    #[test]
    fn a_data_directory_that_cannot_be_is_found_without_touching_it() {
        let folder = tempfile::tempdir().unwrap();
        let fine = folder.path().join("not/yet/there");
        assert_eq!(data_dir(&fine, EngineKind::Process), DataDir::Fine);
        assert!(!folder.path().join("not").exists());
        fs::write(folder.path().join("file"), "").unwrap();
        for path in [folder.path().join("file"), folder.path().join("file/below"), folder.path().join("a:b")] {
            assert!(matches!(data_dir(&path, EngineKind::Docker), DataDir::Unfit(_)), "{path:?}");
        }
        let long = folder.path().join("x".repeat(60));
        assert!(matches!(data_dir(&long, EngineKind::Process), DataDir::Unfit(_)));
    }

    #[test]
    fn a_mistake_in_the_file_of_plans_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project { dir: folder.path().into(), env_file: folder.path().join(".env") };
        let values = [("BEAVER_DATA_DIR".to_owned(), folder.path().display().to_string())].into();
        let stack = Stack::from_values(project, values, &Default::default()).unwrap();
        assert_eq!(plans(&stack, &Ui::plain()).unwrap(), None);
        fs::create_dir(folder.path().join("deploy-control")).unwrap();
        let write = |text: &str| fs::write(folder.path().join("deploy-control/plans.toml"), text).unwrap();
        write("[notes]\nimage = \"notes:1\"\nport = 80\n");
        assert!(plans(&stack, &Ui::plain()).unwrap().is_some_and(|found| found.ok && found.line.contains("notes")));
        write("[notes]\nimage = \"notes:1\"\nprot = 80\n");
        let found = plans(&stack, &Ui::plain()).unwrap().unwrap();
        assert!(!found.ok && found.line.contains("line 3") && !found.line.contains('\n'), "{}", found.line);
    }

    #[test]
    fn a_port_in_use_is_seen() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = TcpListener::bind(taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(plain(&error), "in use");
    }
}
