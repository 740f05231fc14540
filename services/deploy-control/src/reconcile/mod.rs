//! The reconciler: makes what is wanted so.
//!
//! It is level-triggered. A worker looks at one instance, plans ([`crate::plan`]) and takes steps until nothing is left to
//! do; it is woken by a wish, by a hint of the engine, by the time it set itself, and by a look at everything every half
//! minute. Whatever interrupts it, the next look starts from what is true then.

mod failing;
mod failure;
mod line;
mod mailbox;
mod outcome;
mod pool;
mod rollout;
mod said;
mod steps;
mod turn;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clock::{Backoff, Entropy};
use contracts::{
    InstanceId,
    deploy::{Desired, Phase, Sleep, Waiting},
};
use futures_util::{StreamExt, stream::BoxStream};
use service::Shutdown;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    chain,
    config::ReconcileConfig,
    engine::{Engine, ErrorKind, Hint, InstanceSpec, Program, Unit, UnitState},
    folders::Folders,
    hub::Hub,
    passage::Gate,
    peers::Peers,
    plans::{NoPlan, Plans},
    registry::{self, Registry, Row},
    strikes::Strikes,
};

pub use line::LineConfig;
pub use pool::PoolConfig;
pub use rollout::RolloutConfig;

use line::Line;
use mailbox::Mailbox;
use rollout::Rollouts;

/// How many instances are looked at at once: each look is a question or two to the engine.
const LOOKS: usize = 16;

/// What the reconciler works with.
pub struct Parts {
    /// What is wanted and known.
    pub registry: Registry,
    /// Who is told.
    pub hub: Arc<Hub>,
    /// What runs instances.
    pub engine: Arc<dyn Engine>,
    /// Instances' folders.
    pub folders: Folders,
    /// The other services.
    pub peers: Peers,
    /// Jitter.
    pub entropy: Entropy,
    /// How to work.
    pub config: ReconcileConfig,
    /// What instances may be.
    pub plans: Plans,
    /// What Beaver's own workspaces have in their environment.
    pub workspace_env: Vec<(String, String)>,
    /// Whether anything may be started.
    pub gate: Gate,
    /// Where tests strike.
    pub strikes: Strikes,
}

/// The reconciler. Cloning is cheap.
#[derive(Clone)]
pub struct Reconciler(Arc<Inner>);

pub(crate) struct Inner {
    parts: Parts,
    workers: Mutex<Workers>,
    /// Who is brought up next.
    line: Line,
    /// How many steps may ask something of the host at once.
    permits: Semaphore,
    /// Who may be down because something of ours changed.
    rollouts: Rollouts,
    /// How many instances are looked at at once.
    looks: Semaphore,
    /// The pool is to be looked at.
    pool: Notify,
    tasks: TaskTracker,
    /// When it was started, in Unix milliseconds.
    began_ms: i64,
    stop: Shutdown,
}

/// The mailboxes of workers: one an instance that has something to do.
type Workers = HashMap<InstanceId, Arc<Mailbox>>;

impl Reconciler {
    /// Starts it; it ends with `stop`, or when the last clone of it is dropped with the runtime it runs on. `rows`: every
    /// instance, as it is; nobody else writes any yet.
    pub fn start(parts: Parts, rows: Vec<Row>, stop: Shutdown) -> Self {
        let line = Line::new(parts.config.line.clone());
        let permits = Semaphore::new(parts.config.line.at_once);
        let rollouts = Rollouts::new(parts.config.rollout);
        let looks = Semaphore::new(LOOKS);
        let began_ms = parts.registry.now_ms();
        let inner = Inner {
            parts,
            workers: Mutex::default(),
            line,
            permits,
            rollouts,
            looks,
            pool: Notify::new(),
            tasks: TaskTracker::new(),
            began_ms,
            stop,
        };
        let this = Self(Arc::new(inner));
        this.begin_with(rows);
        this.0.tasks.spawn(this.clone().oversee());
        this.0.tasks.spawn(this.clone().keep_line());
        this.0.tasks.spawn(this.clone().keep_pool());
        this
    }

    /// A wish was written, as this row: take it up, and leave off what was being done for an older one.
    pub fn wished(&self, row: &Row) {
        self.mailbox(row.id, Mailbox::outdated).wished(row.version);
    }

    /// Something may have changed: look.
    pub fn nudge(&self, id: InstanceId) {
        self.mailbox(id, Mailbox::outdated).look();
    }

    /// The engine says that something has changed: look.
    fn hinted(&self, id: InstanceId) {
        self.mailbox(id, Mailbox::dirty).look();
    }

    /// Something has come back that instances may be waiting for: whoever waits looks again. Whoever is not settled has a worker
    /// that waits, or is found by the next look at everything.
    pub fn nudge_waiting(&self) {
        self.workers().values().for_each(|mailbox| mailbox.look());
    }

    /// Looks at every instance for the first time: what was settled may have been settled under other settings, or have changed
    /// while nobody looked. Each worker begins with the row that was read with all the others.
    fn begin_with(&self, rows: Vec<Row>) {
        // What is known of releases, before anybody goes down for one.
        rows.iter().for_each(|row| self.0.rollouts.note(row));
        let mut workers = self.workers();
        for row in rows.into_iter().filter(|row| row.phase != Phase::Deleted) {
            let (id, mailbox) = (row.id, Arc::<Mailbox>::default());
            workers.insert(id, mailbox.clone());
            self.0.tasks.spawn(worker::run(self.clone(), id, mailbox, Some(Box::new(row))));
        }
    }

    /// Looks at every instance.
    async fn nudge_all(&self) {
        match self.0.parts.registry.all().await {
            Ok(rows) => {
                // What is known of releases, before anybody goes down for one.
                rows.iter().for_each(|row| self.0.rollouts.note(row));
                rows.iter().filter(|row| row.phase != Phase::Deleted).for_each(|row| self.nudge(row.id));
            }
            Err(error) => tracing::warn!(error = chain(&error), "instances cannot be read"),
        }
    }

    /// Where an instance is in line; `None` when it does not wait.
    pub fn waiting(&self, id: InstanceId) -> Option<Waiting> {
        self.0.line.waiting(id)
    }

    /// Lets the line go on, and tells those who watch how far they are.
    async fn keep_line(self) {
        let moved = |waiting: &[InstanceId]| {
            self.0.parts.hub.tell_again(waiting);
            if self.0.line.is_full() {
                // It may have room to give.
                self.0.pool.notify_one();
            }
        };
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = self.0.line.keep(moved) => {}
        }
    }

    /// Waits, after `stop`, until no step is under way.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance's worker's mailbox, with this left in it; starts a worker when there is none.
    fn mailbox(&self, id: InstanceId, leave: impl FnOnce(&Mailbox)) -> Arc<Mailbox> {
        let mut workers = self.workers();
        let mailbox = workers.entry(id).or_insert_with(|| {
            let mailbox = Arc::new(Mailbox::default());
            self.0.tasks.spawn(worker::run(self.clone(), id, mailbox.clone(), None));
            mailbox
        });
        leave(mailbox);
        mailbox.clone()
    }

    /// Forgets a worker that has nothing to do; false when something came meanwhile.
    fn retire(&self, id: InstanceId, mailbox: &Mailbox) -> bool {
        // Under the lock that `mailbox` takes too, so that nothing falls between looking and leaving.
        let mut workers = self.workers();
        if mailbox.is_dirty() {
            return false;
        }
        workers.remove(&id);
        true
    }

    /// Forgets a worker that is gone, where it still counts as there.
    fn forget(&self, id: InstanceId, mailbox: &Arc<Mailbox>) {
        let mut workers = self.workers();
        if workers.get(&id).is_some_and(|known| Arc::ptr_eq(known, mailbox)) {
            workers.remove(&id);
        }
    }

    /// Listens to the engine's hints, and looks at everything at the start, from time to time, and whenever the engine
    /// comes back.
    async fn oversee(self) {
        let stop = self.0.stop.clone();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut orphans = HashSet::new();
        let mut plans = self.0.parts.plans.clone();
        while !stop.is_cancelled() {
            match self.0.parts.engine.watch().await {
                Ok(mut hints) => {
                    // Listening first, then looking: nothing happens unseen in between.
                    let mut listens = self.look_and_listen(&mut orphans, &mut hints).await;
                    if listens {
                        backoff.reset();
                    }
                    let mut timer = tokio::time::interval(self.0.parts.config.resync);
                    timer.reset();
                    while listens {
                        tokio::select! {
                            () = stop.cancelled() => return,
                            _ = timer.tick() => listens = self.look_and_listen(&mut orphans, &mut hints).await,
                            () = plans.changed() => self.nudge_all().await,
                            hint = hints.next() => match hint {
                                Some(hint) => self.hinted(hint.0),
                                None => listens = false,
                            },
                        }
                    }
                    tracing::warn!("the engine does not answer, or its hints broke off");
                }
                Err(error) => {
                    error.count();
                    self.0.parts.hub.engine_is_away(error.kind == ErrorKind::Unavailable);
                    tracing::warn!(error = chain(&error), "the engine cannot be asked");
                }
            }
            // What ran with it may have ended with it. Each worker sees for itself that it is lost, and says so.
            self.0.line.close();
            self.look_at_everything(&mut orphans).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next(&self.0.parts.entropy)) => {}
            }
        }
    }

    /// Looks at everything, and heeds hints meanwhile; false when they broke off, or are not to be relied on: an engine that
    /// hangs does not close them.
    async fn look_and_listen(&self, orphans: &mut HashSet<InstanceId>, hints: &mut BoxStream<'static, Hint>) -> bool {
        let mut looking = pin!(self.look_at_everything(orphans));
        loop {
            tokio::select! {
                answers = &mut looking => return answers,
                hint = hints.next() => match hint {
                    Some(hint) => self.hinted(hint.0),
                    None => {
                        looking.await;
                        return false;
                    }
                },
            }
        }
    }

    /// Compares everything wanted with everything there is, and wakes workers for what differs. False when the engine
    /// cannot be reached, or it is still not known who is up.
    async fn look_at_everything(&self, orphans: &mut HashSet<InstanceId>) -> bool {
        let begun = Instant::now();
        let answers = self.compare(orphans).await;
        metrics::histogram!("beaver_full_pass_seconds").record(begun.elapsed().as_secs_f64());
        answers
    }

    async fn compare(&self, orphans: &mut HashSet<InstanceId>) -> bool {
        let rows = match self.0.parts.registry.all().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(error = chain(&error), "instances cannot be read");
                return self.0.line.is_open();
            }
        };
        rows.iter().for_each(|row| self.0.rollouts.note(row));
        let began = Instant::now();
        let units = match self.0.parts.engine.list().await {
            Ok(units) => units,
            Err(error) => {
                error.count();
                tracing::debug!(error = chain(&error), "units cannot be listed");
                let is_away = error.kind == ErrorKind::Unavailable;
                self.0.parts.hub.engine_is_away(is_away);
                rows.iter().filter(|row| row.phase != Phase::Deleted).for_each(|row| self.nudge(row.id));
                return !is_away && self.0.line.is_open();
            }
        };
        self.0.parts.hub.engine_is_away(false);
        let now_ms = self.0.parts.registry.now_ms();
        let up: HashSet<_> = units.iter().filter(|unit| unit.is_up()).map(|unit| unit.id).collect();
        let mut lining_up = HashSet::new();
        if !self.0.line.is_open() {
            let down = rows.iter().filter(|row| is_to_be_up(row, now_ms) && !up.contains(&row.id));
            lining_up.extend(down.map(|row| row.id));
            // First, so that whoever then stays away knows what there is now.
            lining_up.iter().for_each(|id| self.nudge(*id));
        }
        self.0.line.seen_all(began, up.into_iter(), lining_up.iter().copied());
        let mut units: HashMap<InstanceId, Unit> = units.into_iter().map(|unit| (unit.id, unit)).collect();
        let ready = rows.iter().filter(|row| row.phase == Phase::Ready).cloned().collect();
        let bereft = self.0.parts.folders.bereft(ready).await.unwrap_or_default();
        for row in &rows {
            let unit = units.remove(&row.id);
            if lining_up.contains(&row.id) {
                continue;
            }
            if !settled(row, now_ms) || bereft.contains(&row.id) || self.differs(row, unit.as_ref()).await {
                self.nudge(row.id);
            }
        }
        for id in units.keys().copied().collect::<Vec<_>>() {
            // Made ahead, or taken in since the rows were read.
            match self.0.parts.registry.accounts_for(id).await {
                Ok(false) => {}
                Ok(true) => drop(units.remove(&id)),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "instances cannot be read");
                    return true;
                }
            }
        }
        metrics::gauge!("beaver_orphans").set(units.len() as f64);
        for orphan in units.values().filter(|orphan| !orphans.contains(&orphan.id)) {
            // Perhaps the registry was restored from an old copy: somebody's work may depend on it.
            tracing::warn!(
                instance = %orphan.id,
                state = ?orphan.state,
                "an orphan: a unit of this stack that the registry does not know; it is left alone"
            );
        }
        *orphans = units.into_keys().collect();
        // Whatever anybody was healthy with last they may have to go back to.
        let releases = rows.iter().filter(|row| row.phase != Phase::Deleted).filter_map(|row| row.release.clone());
        if let Err(error) = self.0.parts.engine.keep_releases(&releases.collect()).await {
            error.count();
            tracing::warn!(error = chain(&error), "what instances may have to go back to is not kept");
        }
        true
    }

    /// Whether a settled instance's unit is not what it was settled with.
    async fn differs(&self, row: &Row, unit: Option<&Unit>) -> bool {
        let up = unit.is_some_and(|unit| matches!(unit.state, UnitState::Running | UnitState::Paused));
        match row.phase {
            Phase::Ready => {}
            // Of what it is made from it hears when it wakes.
            Phase::Paused => return unit.is_none_or(|unit| unit.state != UnitState::Paused),
            // Or the engine does not know that it is up.
            _ => return up || (row.phase != Phase::Deleted && self.0.parts.folders.is_listening(row.id)),
        }
        let running = unit.filter(|unit| unit.state == UnitState::Running);
        let Some(unit) = running else { return true };
        // Its plan may be gone just now; what runs goes on.
        let Ok(spec) = self.0.spec(row) else { return false };
        match self.0.parts.engine.fingerprint(&spec).await {
            Ok(fingerprint) => fingerprint != unit.fingerprint,
            // The image may be missing just now.
            Err(_) => false,
        }
    }
}

/// Whether nothing is left to do for it, as far as its row tells.
fn settled(row: &Row, now_ms: i64) -> bool {
    use Phase::{Asleep, Deleted, Failed, Paused, Ready, Stopped};
    let rests = match row.phase {
        Ready | Paused | Asleep | Stopped | Failed | Deleted => true,
        Phase::PendingDeletion => row.deletion.is_some_and(|deletion| now_ms < deletion.data_until_ms),
        _ => false,
    };
    rests && row.observed_generation == row.generation
}

/// Whether it is to be brought up now, if it is down.
fn is_to_be_up(row: &Row, now_ms: i64) -> bool {
    let is_wanted = row.desired == Desired::Running && row.sleep == Sleep::Awake && row.phase != Phase::Failed;
    is_wanted && row.next_attempt_at_ms <= now_ms
}

/// What a program that knows nothing of Beaver finds in its environment, at this origin.
pub fn image_env(origin: &str) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> =
        shim::proxy_environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    // Its user is in no file of its image's: what programs ask of those stands here. Only /data is kept.
    for (name, value) in [("HOME", "/data"), ("USER", "instance"), ("LOGNAME", "instance"), ("BEAVER_ORIGIN", origin)] {
        env.insert(name.into(), value.into());
    }
    env
}

impl Inner {
    /// What the instance's unit must be.
    fn spec(&self, row: &Row) -> Result<InstanceSpec, NoPlan> {
        let plan = self.parts.plans.get(&row.plan)?;
        Ok(InstanceSpec {
            id: row.id,
            generation: row.generation,
            plan: row.plan.clone(),
            program: plan.program.clone(),
            not: row.not_release(),
            uid: self.parts.folders.uid(row),
            folders: self.parts.folders.paths(row.id),
            limits: plan.limits,
            env: match plan.program {
                Program::Workspace => self.parts.workspace_env.clone(),
                Program::Image(_) => {
                    let mut env = image_env(&self.parts.folders.origin(row));
                    // The plan's own words come last.
                    env.extend(plan.env.clone());
                    env.into_iter().collect()
                }
            },
        })
    }

    /// Tells everybody of a row as it was written.
    fn told(&self, row: &Row) {
        self.parts.hub.publish(row);
        self.rollouts.note(row);
    }

    /// Reads the row and tells of it, in case a write before was told of to nobody.
    async fn read(&self, id: InstanceId) -> Result<Row, registry::Error> {
        let row = self.parts.registry.get(id).await?;
        self.told(&row);
        Ok(row)
    }
}

#[cfg(test)]
mod model;
