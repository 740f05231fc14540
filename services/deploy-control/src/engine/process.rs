//! Child processes on the same sockets: for trying Beaver out and for fast tests. It isolates nothing.

mod log;

use std::{collections::HashMap, path::PathBuf, process::Stdio, sync::Mutex, time::Duration};

use async_trait::async_trait;
use contracts::{InstanceId, PlanName};
use futures_util::{StreamExt, stream::BoxStream};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use sha2::{Digest, Sha256};
use tokio::{
    process::{Child, ChildStdin, Command},
    sync::{broadcast, watch},
};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tokio_util::task::AbortOnDropHandle;

use super::{Capabilities, Engine, EngineError, ErrorKind, Hint, InstanceSpec, Program, Unit, UnitState};
use crate::config::EngineConfig;

/// How long a process may take to end when asked: longer than what runs in it gives to what is under way.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The process engine. Its children end when it is dropped, and when this process ends, however that comes about.
pub struct Processes {
    command: Vec<String>,
    units: Mutex<HashMap<InstanceId, Entry>>,
    hints: broadcast::Sender<Hint>,
}

/// A unit: what it was made from, and its process once it was started.
struct Entry {
    spec: InstanceSpec,
    process: Option<Process>,
    starts: u64,
}

struct Process {
    control: Control,
    /// Whether it was frozen. Should this process end meanwhile, the kernel lets it go on, and its input has ended.
    paused: bool,
    /// Its end of input tells the child that its parent is gone.
    stdin: Option<ChildStdin>,
    /// Waits for the child; dropping it kills the child, so that nothing outlives this service.
    _reaper: AbortOnDropHandle<()>,
}

/// A hold on a process that does not keep it alive.
#[derive(Clone)]
struct Control {
    pid: Pid,
    /// True once it has ended.
    ended: watch::Receiver<bool>,
}

impl Control {
    fn is_up(&self) -> bool {
        !*self.ended.borrow()
    }

    fn signal(&self, signal: Signal) {
        // A process's id is free for another only once the reaper has waited for it, and that sets `ended`.
        if self.is_up()
            && let Err(error) = kill_process(self.pid, signal)
        {
            tracing::debug!(%error, "a signal did not reach an instance that is ending");
        }
    }

    /// A signal to it and to all that it started.
    fn signal_all(&self, signal: Signal) -> Result<(), EngineError> {
        if !self.is_up() {
            return Ok(());
        }
        kill_process_group(self.pid, signal)
            .map_err(|error| EngineError::new(ErrorKind::Rejected, "signalling an instance's processes").because(error))
    }

    async fn ended(&mut self) {
        // An error means that the reaper is gone, and the child with it.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    async fn end(mut self) {
        self.signal(Signal::TERM);
        // A frozen one hears it once it goes on; to any other this says nothing.
        if let Err(error) = self.signal_all(Signal::CONT) {
            tracing::debug!(%error, "an instance that is ending");
        }
        if tokio::time::timeout(STOP_LIMIT, self.ended()).await.is_err() {
            self.signal(Signal::KILL);
            self.ended().await;
        }
    }
}

impl Processes {
    /// An engine that runs the configured command. Says what it does not do.
    pub fn new(config: &EngineConfig) -> Self {
        tracing::warn!(
            "instances run as plain processes of this user: NOTHING keeps them from each other or from this machine; \
             use the docker engine for anything but trying Beaver out"
        );
        let mut command = config.command.clone();
        if let Some(program) = command.first_mut()
            && let Some(found) = beside_this_program(program)
        {
            *program = found;
        }
        Self { command, units: Mutex::default(), hints: broadcast::channel(256).0 }
    }

    fn units(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Entry>> {
        // Nothing is left half-done under the lock, so a panic elsewhere has not spoilt what it guards.
        self.units.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn digest(&self, spec: &InstanceSpec) -> String {
        // The wish's number and the plan's name are marks, not what the process is made from.
        let unmarked = InstanceSpec { generation: 0, plan: PlanName::default(), not: None, ..spec.clone() };
        let text = format!("{:?}{unmarked:?}", self.command);
        Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    fn unit(&self, id: InstanceId, entry: &Entry) -> Unit {
        let state = match &entry.process {
            Some(process) if process.control.is_up() && process.paused => UnitState::Paused,
            Some(process) if process.control.is_up() => UnitState::Running,
            _ if entry.starts > 0 => UnitState::Exited,
            _ => UnitState::Created,
        };
        let run = entry
            .process
            .as_ref()
            .filter(|_| matches!(state, UnitState::Running | UnitState::Paused))
            .map(|process| format!("{}@{}", process.control.pid.as_raw_nonzero(), entry.starts));
        Unit { id, state, fingerprint: self.digest(&entry.spec), plan: entry.spec.plan.clone(), release: None, run }
    }

    fn spawn(&self, spec: &InstanceSpec) -> Result<Process, EngineError> {
        let failed = |kind| EngineError::new(kind, format!("starting the process of {}", spec.id));
        let Some((program, arguments)) = self.command.split_first() else { return Err(failed(ErrorKind::NotFound)) };
        let mut child = Command::new(program)
            .args(arguments)
            // Nothing of ours: this process's environment has every service's secrets in it.
            .env_clear()
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .env("INSTANCE_DATA_DIR", &spec.folders.data)
            .env("INSTANCE_CONFIG_DIR", &spec.folders.config)
            .env("INSTANCE_IN_DIR", &spec.folders.inward)
            .env("INSTANCE_OUT_DIR", &spec.folders.outward)
            .env("INSTANCE_EXIT_WITH_PARENT", "1")
            .current_dir(&spec.folders.data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for the parent, which ends its children itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let kind = match error.kind() {
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => ErrorKind::NotFound,
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => ErrorKind::Capacity,
                    _ => ErrorKind::Rejected,
                };
                failed(kind).because(error)
            })?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| failed(ErrorKind::Rejected))?;
        let stdin = child.stdin.take();
        log::keep(&spec.folders.logs, child.stdout.take(), child.stderr.take());
        let (to, ended) = watch::channel(false);
        let reaper = tokio::spawn(reap(spec.id, child, to, self.hints.clone()));
        Ok(Process { control: Control { pid, ended }, paused: false, stdin, _reaper: AbortOnDropHandle::new(reaper) })
    }

    /// Takes the hold on a unit's process and lets go of its input.
    fn letting_go(&self, id: InstanceId) -> Option<Control> {
        let mut units = self.units();
        let process = units.get_mut(&id)?.process.as_mut()?;
        process.stdin = None;
        process.paused = false;
        Some(process.control.clone())
    }
}

#[async_trait]
impl Engine for Processes {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        Ok(Capabilities { name: "process", version: String::new(), isolates: false, pauses: true })
    }

    async fn fingerprint(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        Ok(self.digest(spec))
    }

    async fn observe(&self, id: InstanceId) -> Result<Option<Unit>, EngineError> {
        Ok(self.units().get(&id).map(|entry| self.unit(id, entry)))
    }

    async fn list(&self) -> Result<Vec<Unit>, EngineError> {
        Ok(self.units().iter().map(|(id, entry)| Unit { run: None, ..self.unit(*id, entry) }).collect())
    }

    fn runs_images(&self) -> bool {
        false
    }

    async fn ensure(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        if let Program::Image(program) = &spec.program {
            let tried = format!("running the image {}: processes are made from none", program.image);
            return Err(EngineError::new(ErrorKind::Rejected, tried));
        }
        let mut units = self.units();
        match units.get(&spec.id) {
            Some(there) if self.digest(&there.spec) != self.digest(spec) => {
                Err(EngineError::new(ErrorKind::Conflict, format!("another unit of {} is there", spec.id)))
            }
            Some(_) => Ok(()),
            None => {
                units.insert(spec.id, Entry { spec: spec.clone(), process: None, starts: 0 });
                Ok(())
            }
        }
    }

    async fn start(&self, id: InstanceId) -> Result<(), EngineError> {
        let mut units = self.units();
        let Some(entry) = units.get_mut(&id) else {
            return Err(EngineError::new(ErrorKind::NotFound, format!("there is no unit of {id}")));
        };
        if let Some(process) = entry.process.as_mut().filter(|process| process.control.is_up()) {
            if process.paused {
                process.control.signal_all(Signal::CONT)?;
                process.paused = false;
            }
            return Ok(());
        }
        entry.process = Some(self.spawn(&entry.spec)?);
        entry.starts += 1;
        Ok(())
    }

    async fn pause(&self, id: InstanceId) -> Result<(), EngineError> {
        let mut units = self.units();
        let Some(entry) = units.get_mut(&id) else {
            return Err(EngineError::new(ErrorKind::NotFound, format!("there is no unit of {id}")));
        };
        let Some(process) = entry.process.as_mut().filter(|process| process.control.is_up()) else {
            return Err(EngineError::new(ErrorKind::Rejected, format!("pausing {id}, which is not up")));
        };
        process.control.signal_all(Signal::STOP)?;
        process.paused = true;
        Ok(())
    }

    async fn stop(&self, id: InstanceId) -> Result<(), EngineError> {
        if let Some(control) = self.letting_go(id) {
            control.end().await;
        }
        Ok(())
    }

    async fn last_lines(&self, id: InstanceId) -> Result<String, EngineError> {
        let folder = self.units().get(&id).map(|entry| entry.spec.folders.logs.clone());
        let read = move || folder.map_or_else(|| Ok(String::new()), |folder| log::tail(&folder));
        let failed = || EngineError::new(ErrorKind::Rejected, "reading an instance's log");
        let said = tokio::task::spawn_blocking(read).await.map_err(|error| failed().because(error))?;
        said.map_err(|error| failed().because(error))
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        self.stop(id).await?;
        self.units().remove(&id);
        Ok(())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Hint>, EngineError> {
        let hints = BroadcastStream::new(self.hints.subscribe());
        // Falling behind ends the stream: who listens then looks at everything, which is what missing hints calls for.
        Ok(hints.scan((), |(), hint| async { hint.map_err(|BroadcastStreamRecvError::Lagged(_)| ()).ok() }).boxed())
    }

    async fn close(&self) {
        let ids: Vec<_> = self.units().keys().copied().collect();
        let ending = ids.into_iter().filter_map(|id| self.letting_go(id)).map(Control::end);
        futures_util::future::join_all(ending).await;
    }
}

async fn reap(id: InstanceId, mut child: Child, ended: watch::Sender<bool>, hints: broadcast::Sender<Hint>) {
    match child.wait().await {
        Ok(status) => tracing::info!(instance = %id, %status, "an instance's process ended"),
        Err(error) => tracing::warn!(instance = %id, %error, "an instance's process cannot be waited for"),
    }
    ended.send_replace(true);
    // Nobody listening is fine: hints are hints.
    let _ = hints.send(Hint(id));
}

/// A program named without a folder is first looked for beside this one: a build puts them together.
fn beside_this_program(program: &str) -> Option<String> {
    if program.contains('/') {
        return None;
    }
    let found: PathBuf = std::env::current_exe().ok()?.parent()?.join(program);
    found.is_file().then(|| found.to_string_lossy().into_owned())
}
