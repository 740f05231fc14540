//! A Docker engine of the test's own: its own socket, data, containerd and network namespace, so that it can be killed
//! without the host's engine noticing anything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use bollard::Docker;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::oneshot,
};

use crate::wait;

/// While this file is there, starts of containers wait.
const WAIT: &str = "wait";
/// It is there when one does.
const WAITS: &str = "waits";

/// A running engine; it and everything it made goes when it is dropped.
pub struct OwnEngine {
    dir: TempDir,
    name: String,
    containerd: Child,
    dockerd: Option<Child>,
    /// What runs as if in a container.
    unknown: Option<Child>,
    relays: Vec<oneshot::Sender<()>>,
    /// Where on this host's loopback addresses of its own answer.
    reached: HashMap<SocketAddr, SocketAddr>,
    /// What of this host's files it needed.
    _ids: Option<SubordinateIds>,
}

/// Ids for an engine that shifts those of containers, in the files where it looks for them; taken out again when dropped,
/// unless they were there before.
struct SubordinateIds(Vec<&'static str>);

impl SubordinateIds {
    /// Whose they are: the name of a user and of a group, everywhere.
    const USER: &str = "daemon";
    const LINE: &str = "daemon:100000:65536";

    fn ensure() -> anyhow::Result<Self> {
        let mut this = Self(Vec::new());
        for file in ["/etc/subuid", "/etc/subgid"] {
            let there = fs::read_to_string(file).unwrap_or_default();
            if !there.lines().any(|line| line.starts_with("daemon:")) {
                fs::write(file, format!("{}\n{}", there.trim_end(), Self::LINE).trim_start().to_owned() + "\n")?;
                this.0.push(file);
            }
        }
        Ok(this)
    }
}

impl Drop for SubordinateIds {
    fn drop(&mut self) {
        for file in &self.0 {
            let there = fs::read_to_string(file).unwrap_or_default();
            let rest: String =
                there.lines().filter(|line| *line != Self::LINE).map(|line| format!("{line}\n")).collect();
            let _ = fs::write(file, rest);
        }
    }
}

impl OwnEngine {
    /// Starts one; needs root and the programs `dockerd`, `containerd`, `ip` and `nsenter`. `name` must be nobody else's on
    /// this host; what a killed run left under it goes first.
    ///
    /// # Errors
    /// When one of them is missing or does not start.
    pub async fn start(name: &str) -> anyhow::Result<Self> {
        Self::start_with(name, &serde_json::json!({})).await
    }

    /// As [`OwnEngine::start`], with more settings, as `daemon.json` has them.
    ///
    /// # Errors
    /// As [`OwnEngine::start`].
    pub async fn start_with(name: &str, settings: &serde_json::Value) -> anyhow::Result<Self> {
        Self::begin(name, Self::dir()?, settings.clone(), None).await
    }

    /// As [`OwnEngine::start`], one of which a start can be held up in its middle; see [`OwnEngine::wait_in_a_start`].
    ///
    /// # Errors
    /// As [`OwnEngine::start`].
    pub async fn start_that_can_wait(name: &str) -> anyhow::Result<Self> {
        let dir = Self::dir()?;
        let (runtime, at) = (dir.path().join("runtime"), dir.path().display());
        // It ends also when all of this was taken away under it.
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *' start '*) if [ -e {at}/{WAIT} ]; then : > {at}/{WAITS}; fi\n\
             while [ -e {at}/{WAIT} ]; do sleep 0.02; done;; esac\nexec runc \"$@\"\n"
        );
        fs::write(&runtime, script)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
        let settings = serde_json::json!({ "runtimes": { "waits": { "path": runtime } }, "default-runtime": "waits" });
        Self::begin(name, dir, settings, None).await
    }

    fn dir() -> anyhow::Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("beaver-engine-").tempdir()?)
    }

    /// As [`OwnEngine::start`], one that shifts the user ids of containers (`userns-remap`). Needs lines in `/etc/subuid` and
    /// `/etc/subgid`, which are there for as long as it is.
    ///
    /// # Errors
    /// As [`OwnEngine::start`].
    pub async fn start_with_shifted_ids(name: &str) -> anyhow::Result<Self> {
        let ids = SubordinateIds::ensure()?;
        let settings = serde_json::json!({ "userns-remap": SubordinateIds::USER });
        Self::begin(name, Self::dir()?, settings, Some(ids)).await
    }

    async fn begin(
        name: &str,
        dir: TempDir,
        mut daemon: serde_json::Value,
        ids: Option<SubordinateIds>,
    ) -> anyhow::Result<Self> {
        let at = |file: &str| dir.path().join(file);
        let left = in_control_groups(name).flat_map(|(_, group)| processes_in(&group));
        for pid in left {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status().await;
        }
        let _ = Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status().await;
        succeed(Command::new("ip").args(["netns", "add", name])).await?;
        succeed(
            Command::new("nsenter").arg(format!("--net={}", namespace(name))).args(["ip", "link", "set", "lo", "up"]),
        )
        .await?;
        // What fits the host's engine fits this one: some file systems know only one storage driver.
        let driver = crate::engine::connect().await?.info().await?.driver.unwrap_or_else(|| "vfs".into());
        daemon["storage-driver"] = driver.into();
        fs::write(at("daemon.json"), daemon.to_string())?;
        fs::write(at("containerd.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")?;
        let log = fs::File::create(at("containerd.log"))?;
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(at("containerd.toml"))
            .arg("--root")
            .arg(at("containerd"))
            .arg("--state")
            .arg(at("containerd-state"))
            .arg("--address")
            .arg(at("containerd.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting containerd")?;
        wait::until("containerd listens", Duration::from_secs(20), async || {
            anyhow::Ok(at("containerd.sock").exists().then_some(()))
        })
        .await?;
        let mut this = Self {
            name: name.to_owned(),
            containerd,
            dockerd: None,
            unknown: None,
            relays: Vec::new(),
            reached: HashMap::new(),
            dir,
            _ids: ids,
        };
        this.start_again().await?;
        Ok(this)
    }

    /// Starts dockerd, for the first time or after [`OwnEngine::kill`].
    ///
    /// # Errors
    /// When it does not come up: what it wrote.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let at = |file: &str| self.dir.path().join(file);
        // One that was killed left its own number, which may be somebody else's by now.
        let _ = fs::remove_file(at("docker.pid"));
        let log = fs::File::options().create(true).append(true).open(at("dockerd.log"))?;
        // Not `ip netns exec`: that hides the control groups.
        let dockerd = Command::new("nsenter")
            .arg(format!("--net={}", namespace(&self.name)))
            .arg("dockerd")
            .arg("--config-file")
            .arg(at("daemon.json"))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("docker.pid"))
            .arg("--host")
            .arg(self.host())
            .arg("--containerd")
            .arg(at("containerd.sock"))
            .args(["--cgroup-parent", &format!("/{}", self.name)])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting dockerd")?;
        self.dockerd = Some(dockerd);
        let up = wait::until("the test's own engine answers", Duration::from_secs(60), async || {
            self.connect().await.map(|_| Some(()))
        });
        up.await.with_context(|| fs::read_to_string(at("dockerd.log")).unwrap_or_default())
    }

    /// SIGKILL to dockerd.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.dockerd.take().context("dockerd does not run")?.kill().await?;
        Ok(())
    }

    /// SIGTERM to dockerd, and its end.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal("-TERM").await?;
        let mut dockerd = self.dockerd.take().context("dockerd does not run")?;
        tokio::time::timeout(Duration::from_secs(60), dockerd.wait()).await.context("dockerd does not end")??;
        Ok(())
    }

    /// SIGSTOP to dockerd: it is there, and answers nobody, until [`OwnEngine::thaw`].
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        self.signal("-STOP").await
    }

    /// SIGCONT to dockerd.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        self.signal("-CONT").await
    }

    async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.dockerd.as_ref().and_then(Child::id).context("dockerd does not run")?;
        succeed(Command::new("kill").args([signal, &pid.to_string()])).await
    }

    /// Whether dockerd was started and has not been stopped or killed since.
    pub fn is_up(&self) -> bool {
        self.dockerd.is_some()
    }

    /// Makes an address that only the engine's network has answer on the host's loopback; where.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn reach(&mut self, there: SocketAddr) -> anyhow::Result<SocketAddr> {
        if let Some(here) = self.reached.get(&there) {
            return Ok(*here);
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let here = listener.local_addr()?;
        self.relay_to(listener, there)?;
        self.reached.insert(there, here);
        Ok(here)
    }

    /// Its address, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// A client of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(&self) -> anyhow::Result<Docker> {
        crate::engine::connect_to(&self.host()).await
    }

    /// Makes `port` of its loopback answer on the host's loopback, on the same port.
    ///
    /// # Errors
    /// When the port is taken here.
    pub async fn relay(&mut self, port: u16) -> anyhow::Result<()> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        self.relay_to(listener, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// The containers in which a program runs, by their ids, whatever the engine knows of them; and the programs' names.
    pub fn with_programs(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut running = BTreeMap::<_, BTreeSet<_>>::new();
        for (container, group) in in_control_groups(&self.name) {
            for pid in processes_in(&group) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                // What waits to become the program, and for ever where the engine died just then: nothing of a container's
                // runs in it, and nobody who talks to the engine gets at it.
                if !name.is_empty() && !name.starts_with("runc:[") {
                    running.entry(container.clone()).or_default().insert(name.trim().to_owned());
                }
            }
        }
        running
    }

    /// Runs a process as if it were in a container that the engine does not know of.
    ///
    /// # Errors
    /// When there is no control group for it.
    pub fn run_unknown(&mut self) -> anyhow::Result<()> {
        let group = control_groups(&self.name).pop().context("the engine has run nothing yet")?.join("unknown");
        fs::create_dir_all(&group)?;
        let mut command = Command::new("sleep");
        let child = self.unknown.insert(command.arg("600").stdin(Stdio::null()).kill_on_drop(true).spawn()?);
        let pid = child.id().context("it has ended")?;
        Ok(fs::write(group.join("cgroup.procs"), pid.to_string())?)
    }

    /// Has the next start of a container wait in its middle, when its process is about to run, until [`OwnEngine::go_on`].
    /// Only an engine of [`OwnEngine::start_that_can_wait`] does.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn wait_in_a_start(&self) -> anyhow::Result<()> {
        let _ = fs::remove_file(self.dir.path().join(WAITS));
        Ok(fs::write(self.dir.path().join(WAIT), "")?)
    }

    /// Waits until a start waits.
    ///
    /// # Errors
    /// When none does.
    pub async fn waits(&self) -> anyhow::Result<()> {
        let waits = self.dir.path().join(WAITS);
        wait::until("a start waits", Duration::from_secs(60), async || anyhow::Ok(waits.exists().then_some(()))).await
    }

    /// Lets the start go on.
    ///
    /// # Errors
    /// When none was to wait.
    pub fn go_on(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.dir.path().join(WAIT))?)
    }

    /// Ends the processes of containers that the engine had forgotten, and what looked after them.
    fn end_what_is_left(&self) {
        let mut left: BTreeSet<u32> =
            in_control_groups(&self.name).flat_map(|(_, group)| processes_in(&group)).collect();
        let address = self.dir.path().join("containerd.sock");
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if line.split(|byte| *byte == 0).any(|word| word == address.as_os_str().as_encoded_bytes()) {
                left.insert(pid);
            }
        }
        // One that has ended and was not waited for yet has no program any more.
        let is_there = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        for pid in &left {
            let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        until_over(Duration::from_secs(10), || !left.iter().any(is_there));
    }

    fn relay_to(&mut self, listener: std::net::TcpListener, there: SocketAddr) -> anyhow::Result<()> {
        // A socket stays in the network it was made in; those that the thread makes are in the engine's.
        listener.set_nonblocking(true)?;
        let space = fs::File::open(namespace(&self.name))?;
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || {
            let relayed = move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(std::io::Error::from)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build())
                .and_then(|runtime| runtime.block_on(relay(listener, there, stopped)));
            if let Err(error) = relayed {
                eprintln!("the relay to {there} ended: {error}");
            }
        });
        self.relays.push(stop);
        Ok(())
    }
}

async fn relay(
    listener: std::net::TcpListener,
    there: SocketAddr,
    mut stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (mut near, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = &mut stopped => return Ok(()),
        };
        tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect(there).await {
                // Either side may break off; that is theirs to notice.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.relays.clear();
        for child in self.dockerd.as_mut().into_iter().chain([&mut self.containerd]) {
            // SIGTERM: dockerd then ends its containers.
            if let Some(pid) = child.id() {
                let _ = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
                until_over(Duration::from_secs(20), || !matches!(child.try_wait(), Ok(None)));
            }
        }
        self.end_what_is_left();
        for mount in mounts_below(self.dir.path()) {
            let _ = std::process::Command::new("umount").arg(mount).status();
        }
        let _ = std::process::Command::new("ip").args(["netns", "delete", &self.name]).status();
        for group in control_groups(&self.name) {
            for (_, inner) in groups_in(&group) {
                let _ = fs::remove_dir(inner);
            }
            let _ = fs::remove_dir(group);
        }
    }
}

/// Waits until something is over, but no longer than this: a drop cannot wait otherwise.
fn until_over(limit: Duration, mut is_over: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < limit && !is_over() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn namespace(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// Deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(dir))
        .collect();
    below.reverse();
    below
}

/// The groups in this one, by their names.
fn groups_in(group: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}

/// The groups of an engine's containers, by the containers' ids.
fn in_control_groups(name: &str) -> impl Iterator<Item = (String, PathBuf)> {
    control_groups(name).into_iter().flat_map(|group| groups_in(&group))
}

fn processes_in(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// In each hierarchy of version 1, or in the one of version 2.
fn control_groups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().join(name)));
    hierarchies.chain([root.join(name)]).filter(|path| path.is_dir()).collect()
}

async fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{:?}: {said}", command.as_std());
    Ok(())
}

#[cfg(test)]
mod tests {
    use bollard::models::NetworkCreateRequest;

    use super::*;
    use crate::engine;

    /// A process in a control group of the engine's.
    fn left_by_a_killed_run(name: &str) -> Child {
        let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let hierarchy = hierarchies.into_iter().find(|at| at.join("cgroup.procs").exists()).unwrap();
        let group = hierarchy.join(name).join("left");
        fs::create_dir_all(&group).unwrap();
        let left = Command::new("sleep").arg("600").stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        fs::write(group.join("cgroup.procs"), left.id().unwrap().to_string()).unwrap();
        left
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_engine_of_our_own_survives_its_kill_and_leaves_nothing() {
        if engine::required_or_none("own engine").await.is_none() {
            return;
        }
        let name = "bt-own-selftest";
        let mut left = left_by_a_killed_run(name);
        let mut own = OwnEngine::start(name).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), left.wait()).await.expect("it is ended").unwrap();
        let docker = own.connect().await.unwrap();
        let network = NetworkCreateRequest { name: "edge".into(), ..NetworkCreateRequest::default() };
        docker.create_network(network).await.unwrap();
        own.kill().await.unwrap();
        assert!(own.connect().await.is_err());
        own.start_again().await.unwrap();
        assert_eq!(
            own.connect().await.unwrap().inspect_network("edge", None).await.unwrap().name.as_deref(),
            Some("edge")
        );
        let host = engine::connect().await.unwrap();
        assert!(host.inspect_network("edge", None).await.is_err(), "it must not be the host's");
        let dir = own.dir.path().to_owned();
        drop(own);
        assert!(!dir.exists() && !Path::new(&namespace(name)).exists() && control_groups(name).is_empty());
    }
}
