//! A stack as an operator makes one: `beaver up`, with a prefix, ports, settings file and data folder of its own.

use std::{
    collections::BTreeMap,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::Context;
use bollard::Docker;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{canary, engine, own_engine::OwnEngine, paths, wait, web::Web};

/// How long a first `up` may take: it may have to compile everything.
const UP: Duration = Duration::from_secs(30 * 60);

/// What runs the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Containers.
    Docker,
    /// Child processes of `beaver up`.
    Process,
}

impl Engine {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

/// Where people and operators find a stack.
#[derive(Debug, Clone)]
pub struct Places {
    portal: String,
    router_port: u16,
    env_file: PathBuf,
    shell: Vec<(String, String)>,
}

impl Places {
    /// The portal's origin.
    pub fn portal(&self) -> &str {
        &self.portal
    }

    /// A workspace's origin.
    pub fn origin(&self, slug: &str) -> String {
        format!("http://{slug}.localhost:{}", self.router_port)
    }

    /// Runs `beaver` on this stack.
    ///
    /// # Errors
    /// When it cannot be run; how it ended is in the output.
    pub async fn beaver(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.output().await.context("running beaver")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--env-file").arg(&self.env_file).args(arguments).current_dir(paths::root());
        // A shell's own settings outdo the file's: none of those may come from whoever runs the tests.
        for (name, _) in std::env::vars().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        command.envs(self.shell.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
        command
    }
}

/// A file system of a stack's own, in memory; unmounted when it is dropped.
struct Volume(PathBuf);

impl Volume {
    fn mount(at: &Path, megabytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        // As with a disk: services run as others than root.
        let options = format!("size={megabytes}m,mode=0755");
        run_now("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &at.display().to_string()])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A process that was not quick enough may still have something of it open.
        if run_now("umount", &[&self.0.display().to_string()]).is_err() {
            let _ = run_now("umount", &["--lazy", &self.0.display().to_string()]);
        }
    }
}

fn run_now(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = std::process::Command::new(program).args(arguments).output().context(program.to_owned())?;
    said(program, &output)
}

/// A running stack. Dropping it is `down --purge --yes`, whatever happened before.
pub struct Stack {
    engine: Engine,
    prefix: String,
    places: Places,
    docker: Option<Docker>,
    child: Option<Child>,
    // These go in this order: the engine with everything that it runs, then what that had mounted.
    own: Option<OwnEngine>,
    volume: Option<Volume>,
    dir: TempDir,
    /// When it was begun, in Unix seconds: the engine's events since then are its own.
    pub since: i64,
    gone: bool,
}

impl Deref for Stack {
    type Target = Places;

    fn deref(&self) -> &Places {
        &self.places
    }
}

impl Stack {
    /// What stands before the names of a stack of this checkout: two checkouts may test on one engine at once.
    pub fn prefix_for(name: &str) -> String {
        let place = paths::root();
        // FNV-1a: the same for the same place, in every run.
        let hash = place.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("bt{:06x}-{name}", hash & 0xff_ffff)
    }

    /// Brings one up with `settings` beside what tests need. What a killed run left under the same name goes first.
    ///
    /// # Errors
    /// When `up` fails: what it said.
    pub async fn up(name: &str, kind: Engine, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let docker = match kind {
            Engine::Docker => Some(engine::connect().await?),
            Engine::Process => None,
        };
        Self::begin(name, settings, &[], docker, None, None).await
    }

    /// As [`Stack::up`] with [`Engine::Docker`], with files that are in the data folder before: place and text.
    ///
    /// # Errors
    /// When `up` fails: what it said.
    pub async fn up_with(name: &str, settings: &[(&str, &str)], files: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::begin(name, settings, files, Some(engine::connect().await?), None, None).await
    }

    /// As [`Stack::up`] with [`Engine::Docker`], on an engine that goes with the stack.
    ///
    /// # Errors
    /// When `up` fails: what it said.
    pub async fn up_on(name: &str, own: OwnEngine, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let docker = own.connect().await?;
        Self::begin(name, settings, &[], Some(docker), Some(own), None).await
    }

    /// As [`Stack::up_on`], with files that are in the data folder before, which is a file system of the stack's own; see
    /// [`Stack::shrink_volume`].
    ///
    /// # Errors
    /// When `up` fails: what it said.
    pub async fn up_on_volume(
        name: &str,
        own: OwnEngine,
        settings: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let docker = own.connect().await?;
        // `up` wants some room.
        Self::begin(name, settings, files, Some(docker), Some(own), Some(4096)).await
    }

    /// Leaves the file system of the data folder only so many megabytes.
    ///
    /// # Errors
    /// When there is more in it.
    pub fn shrink_volume(&self, megabytes: u64) -> anyhow::Result<()> {
        let volume = self.volume.as_ref().context("it has no file system of its own")?;
        run_now("mount", &["-o", &format!("remount,size={megabytes}m"), &volume.0.display().to_string()])
    }

    async fn begin(
        name: &str,
        settings: &[(&str, &str)],
        files: &[(&str, &str)],
        docker: Option<Docker>,
        own: Option<OwnEngine>,
        volume_mb: Option<u64>,
    ) -> anyhow::Result<Self> {
        let prefix = Self::prefix_for(name);
        if let Some(docker) = &docker {
            engine::sweep(docker, &prefix).await.context("sweeping what an earlier run left")?;
        }
        let [portal_port, router_port] = free_ports()?;
        let dir = tempfile::Builder::new().prefix("beaver-test-").tempdir()?;
        let places = Places {
            portal: format!("http://localhost:{portal_port}"),
            router_port,
            env_file: dir.path().join("env"),
            shell: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let volume = volume_mb.map(|megabytes| Volume::mount(&dir.path().join("data"), megabytes)).transpose()?;
        let mut stack = Self {
            engine: if docker.is_some() { Engine::Docker } else { Engine::Process },
            prefix,
            places,
            docker,
            child: None,
            own,
            volume,
            since: clock::Clock::system().now_s() - 1,
            dir,
            gone: false,
        };
        if let Some(own) = &stack.own {
            stack.places.shell.push(("DOCKER_HOST".into(), own.host()));
        }
        for (place, text) in files {
            let file = stack.data_dir().join(place);
            fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            fs::write(file, text)?;
        }
        build().await?;
        stack.start().await?;
        Ok(stack)
    }

    /// `beaver up`, again or for the first time.
    ///
    /// # Errors
    /// When it fails: what it said.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let (portal, router) =
            (self.places.portal.rsplit(':').next().unwrap_or_default().to_owned(), self.places.router_port.to_string());
        let data = self.data_dir().display().to_string();
        let arguments = [
            "up",
            "--engine",
            self.engine.name(),
            "--prefix",
            &self.prefix,
            "--portal-port",
            &portal,
            "--router-port",
            &router,
            "--data-dir",
            &data,
        ];
        match self.engine {
            Engine::Docker => {
                let output = tokio::time::timeout(UP, self.beaver(&arguments)).await.context("up does not end")??;
                said("up", &output)?;
                if let Some(own) = &mut self.own {
                    // Only now: `up` wants the ports to be free.
                    for port in [portal.parse()?, self.places.router_port] {
                        own.relay(port).await?;
                    }
                }
            }
            Engine::Process => {
                let log = fs::File::options().create(true).append(true).open(self.process_log())?;
                let mut command = self.command(&arguments);
                command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
                self.child = Some(command.spawn().context("starting beaver")?);
            }
        }
        wait::until("everything is ready", Duration::from_secs(60), || async {
            // Exit code 4 while something is not.
            let status = self.beaver(&["status"]).await?;
            anyhow::ensure!(status.status.success(), "status: {}", String::from_utf8_lossy(&status.stdout));
            let page = Web::new("en")?.open(&format!("{}/login", self.portal())).await?;
            anyhow::Ok((page.status == 200).then_some(()))
        })
        .await
        .with_context(|| format!("its last lines:\n{}", last_lines(&self.process_log(), 40)))
    }

    /// Where it is found, for those who look while it is being changed.
    pub fn places(&self) -> Places {
        self.places.clone()
    }

    /// What runs the instances.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The engine that goes with the stack.
    pub fn own_engine(&mut self) -> Option<&mut OwnEngine> {
        self.own.as_mut()
    }

    /// The engine, when instances are containers.
    pub fn docker(&self) -> Option<&Docker> {
        self.docker.as_ref()
    }

    /// What stands before its names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The network of its services.
    pub fn network(&self) -> String {
        format!("{}-instance-edge", self.prefix)
    }

    /// The container of a service, by the end of its name: `router-proxy`, `authz-service`, `deploy-control`, `auth-portal`.
    pub fn container(&self, service: &str) -> String {
        format!("{}-{service}", self.prefix)
    }

    /// Where everything that lasts is.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The settings that `up` wrote.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(self.dir.path().join("env")).context("up wrote no settings")?;
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        Ok(lines.map(|(k, v)| (k.to_owned(), v.trim_matches('\'').to_owned())).collect())
    }

    /// What the process of a stack without Docker writes.
    pub fn process_log(&self) -> PathBuf {
        self.dir.path().join("up.log")
    }

    /// SIGKILL to `beaver up` of a stack without Docker.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("beaver up does not run")?;
        child.kill().await?;
        Ok(())
    }

    /// SIGTERM to `beaver up` of a stack without Docker, and its end.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("beaver up does not run")?;
        let pid = child.id().context("beaver up has ended")?;
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await.context("it does not end")??;
        anyhow::ensure!(status.success(), "beaver up ended with {status}");
        Ok(())
    }

    /// `down`: everything stops, and the data stays.
    ///
    /// # Errors
    /// When it fails.
    pub async fn down(&mut self) -> anyhow::Result<()> {
        said("down", &self.beaver(&["down"]).await?)?;
        if let Some(mut child) = self.child.take() {
            // It was told to end by `down`, which waited for it.
            let status = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
            let status = status.context("beaver up does not end")??;
            anyhow::ensure!(status.success(), "beaver up ended with {status}");
        }
        Ok(())
    }

    /// Keeps what the services and instances wrote in `target/test-logs/<prefix>/`; where that is.
    pub async fn keep_logs(&self) -> PathBuf {
        let dir = paths::target().join("test-logs").join(&self.prefix);
        let _ = fs::remove_dir_all(&dir);
        let _ = fs::create_dir_all(&dir);
        if let Some(docker) = &self.docker {
            for name in engine::belongings(docker, &self.prefix).await.unwrap_or_default().containers {
                if let Ok(text) = canary::logs(docker, &name).await {
                    let _ = fs::write(dir.join(format!("{name}.log")), text);
                }
            }
        }
        let _ = fs::copy(self.process_log(), dir.join("up.log"));
        dir
    }

    /// `down --purge --yes`, and that nothing is left.
    ///
    /// # Errors
    /// When it fails, or something is left.
    pub async fn purge(mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            self.end().await?;
        }
        if let Some(docker) = &self.docker {
            // Not `beaver`'s to remove: the test put it there.
            engine::remove(docker, &self.container("fake-provider")).await?;
        }
        said("down", &self.beaver(&["down", "--purge", "--yes"]).await?)?;
        if let Some(docker) = &self.docker {
            let left = engine::belongings(docker, &self.prefix).await?;
            anyhow::ensure!(left == engine::Belongings::default(), "down --purge leaves {left:?}");
        }
        let left: Vec<_> = match fs::read_dir(self.data_dir()) {
            Ok(entries) => entries.filter_map(Result::ok).map(|e| e.file_name()).collect(),
            Err(_) => Vec::new(),
        };
        anyhow::ensure!(left.is_empty(), "down --purge leaves {left:?} in the data folder");
        self.gone = true;
        Ok(())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if let Some(child) = &mut self.child {
            // SIGTERM first, so that it ends its instances.
            if let Some(pid) = child.id() {
                let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_secs(15) && matches!(child.try_wait(), Ok(None)) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        let mut down = std::process::Command::new(program());
        down.envs(self.places.shell.iter().map(|(k, v)| (k, v)));
        down.arg("--env-file").arg(self.dir.path().join("env")).args(["down", "--purge", "--yes"]);
        let down = down.current_dir(paths::root()).stdin(Stdio::null()).output();
        if !down.as_ref().is_ok_and(|o| o.status.success()) {
            eprintln!("{}: down --purge failed: {down:?}", self.prefix);
        }
        // An engine of its own takes everything with it.
        if self.docker.is_some() && self.own.is_none() {
            let prefix = self.prefix.clone();
            // Dropping cannot wait inside the test's runtime, so another thread does, with one of its own.
            let swept = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async { engine::sweep(&engine::connect().await?, &prefix).await })
            });
            if !matches!(swept.join(), Ok(Ok(()))) {
                eprintln!("{}: not everything could be removed", self.prefix);
            }
        }
    }
}

fn is_setting(name: &str) -> bool {
    let base = name.trim_end_matches("_FILE").trim_end_matches("_PREVIOUS");
    base != "DOCKER_HOST" && settings::settings().iter().any(|setting| setting.key == base)
}

/// The operator's tool.
pub fn program() -> PathBuf {
    paths::binaries("release").join("beaver")
}

/// Builds the operator's tool as `cargo run --release` does; cargo decides whether there is anything to do.
///
/// # Errors
/// When it does not compile.
pub async fn build() -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--package", "beaver"]).current_dir(paths::root()).stdin(Stdio::null());
    said("cargo build", &command.output().await.context("running cargo")?)
}

/// A static program of this package: beside the running test, or beside another package's program, for which it is built when
/// it is missing.
///
/// # Errors
/// When it cannot be built.
pub fn fake_provider_program() -> anyhow::Result<PathBuf> {
    const NAME: &str = "fake-provider";
    let running = std::env::current_exe()?;
    let mut beside = running.ancestors().skip(1).take(2).map(|folder| folder.join(NAME));
    if let Some(there) = beside.find(|program| program.exists()) {
        return Ok(there);
    }
    let folder = running.parent().context("no folder")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let profile = if folder.ends_with("release") { "release" } else { "dev" };
    let arguments = ["build", "--package", "beaver-tests", "--bin", NAME, "--profile", profile];
    said("cargo build", &std::process::Command::new(cargo).args(arguments).current_dir(paths::root()).output()?)?;
    Ok(folder.join(NAME))
}

fn said(what: &str, output: &Output) -> anyhow::Result<()> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(
        output.status.success(),
        "{what} ended with {}: {}\n{}",
        output.status,
        tail(&out, 40),
        tail(&err, 40)
    );
    Ok(())
}

fn last_lines(path: &Path, count: usize) -> String {
    tail(&fs::read_to_string(path).unwrap_or_default(), count)
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Two ports that are free now, below those that the system gives to others by itself (from 32768 on): they stay free
/// while nothing of the stack runs.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    let free = || -> anyhow::Result<std::net::TcpListener> {
        for _ in 0..100 {
            let random = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", 20_000 + random % 12_000)) {
                return Ok(listener);
            }
        }
        anyhow::bail!("no port is free")
    };
    let (a, b) = (free()?, free()?);
    Ok([a.local_addr()?.port(), b.local_addr()?.port()])
}
