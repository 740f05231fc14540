//! An engine in memory, for tests: it runs nothing, can be away, can fail, and remembers what was asked of it.
//!
//! Clones are the same engine, as a host's engine is the same for a restarted service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use contracts::InstanceId;
use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::{Notify, broadcast};
use tokio_stream::wrappers::BroadcastStream;

use super::{Capabilities, Engine, EngineError, ErrorKind, Hint, InstanceSpec, Unit, UnitState};

/// The engine in memory.
#[derive(Clone)]
pub struct Simulated(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    hints: Mutex<broadcast::Sender<Hint>>,
    released: Notify,
}

#[derive(Default)]
struct State {
    units: BTreeMap<InstanceId, Unit>,
    /// Where the socket of each would be: an empty file has its name.
    sockets: HashMap<InstanceId, PathBuf>,
    starts: u64,
    image: String,
    /// What every unit's program wrote last.
    said: String,
    /// The releases that are kept.
    kept: BTreeSet<String>,
    /// Units of these releases end as soon as they are started.
    broken: HashSet<String>,
    away: bool,
    image_missing: bool,
    /// The next calls of this name fail so.
    failures: Vec<(&'static str, ErrorKind)>,
    /// The next calls of this name panic.
    mistakes: Vec<&'static str>,
    /// Calls of these names fail so, however often they are made.
    refused: HashMap<&'static str, ErrorKind>,
    /// Calls of this name wait until they are let go.
    held: HashSet<&'static str>,
    /// The names of calls that were kept waiting.
    holding: HashSet<&'static str>,
    calls: Vec<(&'static str, InstanceId)>,
}

impl Default for Simulated {
    fn default() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            hints: Mutex::new(broadcast::channel(256).0),
            released: Notify::new(),
        }))
    }
}

impl Simulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hint(&self, id: InstanceId) {
        let _ = self.0.hints.lock().unwrap_or_else(PoisonError::into_inner).send(Hint(id));
    }

    /// Makes it unreachable, or reachable again. Either way who listens for hints is cut off.
    pub fn set_away(&self, away: bool) {
        self.state().away = away;
        *self.0.hints.lock().unwrap_or_else(PoisonError::into_inner) = broadcast::channel(256).0;
    }

    /// Changes what units are made from.
    pub fn set_image(&self, image: &str) {
        self.state().image = image.to_owned();
    }

    /// Lets every unit of this release end as soon as it is started.
    pub fn break_image(&self, image: &str) {
        self.state().broken.insert(image.to_owned());
    }

    /// Lets units of this release come up again.
    pub fn mend_image(&self, image: &str) {
        self.state().broken.remove(image);
    }

    /// Lets every unit's program have written this.
    pub fn say(&self, lines: &str) {
        self.state().said = lines.to_owned();
    }

    /// The releases that it was told to keep.
    pub fn kept(&self) -> BTreeSet<String> {
        self.state().kept.clone()
    }

    /// Takes the image away, or gives it back.
    pub fn set_image_missing(&self, missing: bool) {
        self.state().image_missing = missing;
    }

    /// Lets the next call of this name fail. Said twice, the next two fail.
    pub fn fail_next(&self, call: &'static str, kind: ErrorKind) {
        self.state().failures.push((call, kind));
    }

    /// Lets the next call of this name panic, as a mistake of ours would.
    pub fn panic_next(&self, call: &'static str) {
        self.state().mistakes.push(call);
    }

    /// Lets every call of this name fail, until [`Self::accept`].
    pub fn refuse(&self, call: &'static str, kind: ErrorKind) {
        self.state().refused.insert(call, kind);
    }

    /// Lets calls of this name succeed again.
    pub fn accept(&self, call: &str) {
        self.state().refused.remove(call);
    }

    /// Keeps calls of this name waiting until [`Self::release`].
    pub fn hold(&self, call: &'static str) {
        self.state().held.insert(call);
    }

    /// Whether a call of this name waits for [`Self::release`].
    pub fn is_holding(&self, call: &'static str) -> bool {
        self.state().holding.contains(call)
    }

    /// Lets everything go on.
    pub fn release(&self) {
        let mut state = self.state();
        state.held.clear();
        state.holding.clear();
        drop(state);
        self.0.released.notify_waiters();
    }

    /// Ends a unit's process, as a crash does.
    pub fn crash(&self, id: InstanceId) {
        if let Some(unit) = self.state().units.get_mut(&id) {
            (unit.state, unit.run) = (UnitState::Exited, None);
        }
        self.hint(id);
    }

    /// Puts a unit there that nobody asked for.
    pub fn plant(&self, unit: Unit) {
        self.state().units.insert(unit.id, unit);
    }

    /// Every unit there is.
    pub fn units(&self) -> Vec<Unit> {
        self.state().units.values().cloned().collect()
    }

    /// The run of an instance's unit.
    pub fn run(&self, id: InstanceId) -> Option<String> {
        self.state().units.get(&id)?.run.clone()
    }

    /// How often a call of this name was made for an instance.
    pub fn count(&self, call: &str, id: InstanceId) -> usize {
        self.state().calls.iter().filter(|(name, of)| *name == call && *of == id).count()
    }

    /// How often a call of this name was made, for whomever.
    pub fn count_all(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|(name, _)| *name == call).count()
    }

    /// How many units run.
    pub fn running(&self) -> usize {
        self.state().units.values().filter(|unit| unit.state == UnitState::Running).count()
    }

    /// Whether an instance's unit runs.
    pub fn is_running(&self, id: InstanceId) -> bool {
        self.state().units.get(&id).is_some_and(|unit| unit.state == UnitState::Running)
    }

    /// Whether an instance's unit is frozen.
    pub fn is_paused(&self, id: InstanceId) -> bool {
        self.state().units.get(&id).is_some_and(|unit| unit.state == UnitState::Paused)
    }

    async fn enter(&self, call: &'static str, id: InstanceId) -> Result<(), EngineError> {
        loop {
            let released = self.0.released.notified();
            {
                let mut state = self.state();
                if !state.held.contains(call) {
                    break;
                }
                state.holding.insert(call);
            }
            released.await;
        }
        let mut state = self.state();
        state.calls.push((call, id));
        if let Some(at) = state.mistakes.iter().position(|name| *name == call) {
            state.mistakes.remove(at);
            drop(state);
            panic!("a mistake in {call}, made by a test");
        }
        if state.away {
            return Err(EngineError::new(ErrorKind::Unavailable, call));
        }
        if let Some(kind) = state.refused.get(call) {
            return Err(EngineError::new(*kind, call));
        }
        if let Some(at) = state.failures.iter().position(|(name, _)| *name == call) {
            return Err(EngineError::new(state.failures.remove(at).1, call));
        }
        Ok(())
    }

    fn digest(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        let state = self.state();
        if state.image_missing {
            return Err(EngineError::new(ErrorKind::NotFound, "the image"));
        }
        let release = release_of(&state, spec);
        Ok(format!("{release} {:?} {:?} {:?}", spec.program, spec.limits, spec.env))
    }
}

fn release_of(state: &State, spec: &InstanceSpec) -> String {
    let not = spec.not.as_ref().filter(|not| not.refused == state.image);
    not.map_or(&state.image, |not| &not.instead).clone()
}

/// The id for calls that are about no instance.
fn nobody() -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::nil())
}

/// Where a call that is abandoned is left.
async fn half_way() {
    tokio::task::yield_now().await;
}

#[async_trait]
impl Engine for Simulated {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        self.enter("capabilities", nobody()).await?;
        Ok(Capabilities { name: "simulated", version: String::new(), isolates: false, pauses: true })
    }

    async fn fingerprint(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        self.digest(spec)
    }

    async fn release(&self, spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        self.digest(spec)?;
        Ok(Some(release_of(&self.state(), spec)))
    }

    async fn keep_release(&self, release: &str) -> Result<(), EngineError> {
        self.enter("keep_release", nobody()).await?;
        self.state().kept.insert(release.to_owned());
        Ok(())
    }

    async fn keep_releases(&self, releases: &BTreeSet<String>) -> Result<(), EngineError> {
        self.enter("keep_releases", nobody()).await?;
        self.state().kept = releases.clone();
        Ok(())
    }

    async fn observe(&self, id: InstanceId) -> Result<Option<Unit>, EngineError> {
        self.enter("observe", id).await?;
        Ok(self.state().units.get(&id).cloned())
    }

    async fn list(&self) -> Result<Vec<Unit>, EngineError> {
        self.enter("list", nobody()).await?;
        Ok(self.state().units.values().cloned().map(|unit| Unit { run: None, ..unit }).collect())
    }

    async fn ensure(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        self.enter("ensure", spec.id).await?;
        let (id, fingerprint) = (spec.id, self.digest(spec)?);
        {
            let mut state = self.state();
            state.sockets.insert(id, spec.folders.inward.join("http.sock"));
            match state.units.get(&id) {
                Some(there) if there.fingerprint == fingerprint => return Ok(()),
                Some(_) => return Err(EngineError::new(ErrorKind::Conflict, "another unit is there")),
                None => {
                    let (plan, fingerprint) = (spec.plan.clone(), fingerprint.clone());
                    let release = Some(release_of(&state, spec));
                    state
                        .units
                        .insert(id, Unit { id, state: UnitState::Broken, fingerprint, plan, release, run: None });
                }
            }
        }
        half_way().await;
        if let Some(unit) = self.state().units.get_mut(&id).filter(|unit| unit.state == UnitState::Broken) {
            unit.state = UnitState::Created;
        }
        Ok(())
    }

    async fn start(&self, id: InstanceId) -> Result<(), EngineError> {
        self.enter("start", id).await?;
        half_way().await;
        {
            let mut state = self.state();
            state.starts += 1;
            let run = format!("run-{}", state.starts);
            let release = state.units.get(&id).and_then(|unit| unit.release.clone());
            let ends = release.is_some_and(|release| state.broken.contains(&release));
            let Some(unit) = state.units.get_mut(&id) else {
                return Err(EngineError::new(ErrorKind::NotFound, "there is no such unit"));
            };
            if unit.state == UnitState::Running {
                return Ok(());
            }
            let run = if unit.state == UnitState::Paused { unit.run.clone() } else { Some(run) };
            (unit.state, unit.run) = if ends { (UnitState::Exited, None) } else { (UnitState::Running, run) };
            if let Some(socket) = state.sockets.get(&id) {
                // Its folder may be missing: then it is not reached, as a real one would not be.
                let _ = std::fs::write(socket, "");
            }
        }
        self.hint(id);
        Ok(())
    }

    async fn pause(&self, id: InstanceId) -> Result<(), EngineError> {
        self.enter("pause", id).await?;
        {
            let mut state = self.state();
            let Some(unit) = state.units.get_mut(&id) else {
                return Err(EngineError::new(ErrorKind::NotFound, "there is no such unit"));
            };
            match unit.state {
                UnitState::Paused => return Ok(()),
                UnitState::Running => unit.state = UnitState::Paused,
                _ => return Err(EngineError::new(ErrorKind::Rejected, "it is not up")),
            }
        }
        self.hint(id);
        Ok(())
    }

    async fn stop(&self, id: InstanceId) -> Result<(), EngineError> {
        self.enter("stop", id).await?;
        half_way().await;
        if let Some(unit) = self.state().units.get_mut(&id)
            && matches!(unit.state, UnitState::Running | UnitState::Paused)
        {
            (unit.state, unit.run) = (UnitState::Exited, None);
        }
        self.hint(id);
        Ok(())
    }

    async fn last_lines(&self, id: InstanceId) -> Result<String, EngineError> {
        self.enter("last_lines", id).await?;
        Ok(self.state().said.clone())
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        self.enter("remove", id).await?;
        if let Some(unit) = self.state().units.get_mut(&id) {
            (unit.state, unit.run) = (UnitState::Broken, None);
        }
        half_way().await;
        self.state().units.remove(&id);
        Ok(())
    }

    async fn watch(&self) -> Result<BoxStream<'static, Hint>, EngineError> {
        self.enter("watch", nobody()).await?;
        let hints = self.0.hints.lock().unwrap_or_else(PoisonError::into_inner).subscribe();
        Ok(BroadcastStream::new(hints).filter_map(async |hint| hint.ok()).boxed())
    }
}
