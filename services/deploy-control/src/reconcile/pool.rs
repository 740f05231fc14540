//! The pool: workspaces that are made, started and frozen before anybody asks for one, so that whoever signs up waits for
//! neither.
//!
//! Such a workspace has folders, a user id and a container, all under an id of its own, and no name: it waits until it
//! finds a configuration, and that says whose it is. It goes to one person, or to nobody: one that was reserved and not taken
//! is removed. What was interrupted while it was made is removed too, and made anew.

use std::time::Duration;

use clock::Backoff;
use contracts::InstanceId;
use tokio::time::Instant;

use super::{Inner, Reconciler, failure::Failure};
use crate::{
    chain,
    engine::{ErrorKind, InstanceSpec, Program, UnitState},
    registry::{Ahead, Made},
};

/// How long whoever was told of one may take to be taken in, in milliseconds.
const RESERVED_MS: i64 = 10 * 60 * 1_000;
/// How often it is looked whether those that wait are as they must be.
const LOOK: Duration = Duration::from_secs(30);
/// How often it is looked whether one that was started waits already.
const WAITS: Duration = Duration::from_millis(20);

/// What is made ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// How many workspaces wait, made, started and frozen, for whoever signs up next.
    pub size: usize,
    /// How long after one was taken the next is made: whoever took it goes first.
    pub calm: Duration,
}

impl Reconciler {
    /// An id that nothing has.
    pub fn new_id(&self) -> InstanceId {
        self.0.parts.registry.new_id(&self.0.parts.entropy)
    }

    /// Has the pool filled up.
    pub fn fill_pool(&self) {
        self.0.pool.notify_one();
    }

    /// Keeps the pool filled, until the end.
    pub(super) async fn keep_pool(self) {
        let stop = self.0.stop.clone();
        let mut plans = self.0.parts.plans.clone();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        tokio::select! {
            // Whether there is room to spare is not known before.
            () = self.0.line.opened() => {}
            () = stop.cancelled() => return,
        }
        loop {
            let tended = tokio::select! {
                () = stop.cancelled() => return,
                tended = self.0.tend_pool() => tended,
            };
            let wait = match tended {
                Ok(()) => {
                    backoff.reset();
                    LOOK
                }
                Err(failure) => {
                    tracing::warn!(error = chain(&failure), "the pool cannot be filled");
                    backoff.next(&self.0.parts.entropy)
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = async {
                    self.0.pool.notified().await;
                    tokio::time::sleep(self.0.parts.config.pool.calm).await;
                } => {}
                () = plans.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl Inner {
    /// Removes one that is of no use; whether it is ready and stays.
    async fn tend_ahead(&self, ahead: &Ahead, wanted: bool) -> Result<bool, Failure> {
        let registry = &self.parts.registry;
        if self.parts.folders.is_somebodys(ahead.id).await? {
            // The registry is from before it was taken over: whose it is stands elsewhere, and nothing of it is touched.
            tracing::error!(instance = %ahead.id, "what was made ahead is somebody's by now; it is left alone");
            registry.drop_ahead(ahead.id).await?;
            return Ok(false);
        }
        let is_kept = match ahead.state {
            Made::Reserved if registry.now_ms() - ahead.since_ms < RESERVED_MS => return Ok(false),
            // Whoever waits in line for room needs it more.
            Made::Ready if wanted && !self.line.is_full() => self.still_waits(ahead).await?,
            _ => false,
        };
        if !is_kept {
            self.discard(ahead).await?;
        }
        Ok(is_kept)
    }

    /// Removes what is of no use, and makes what is missing.
    async fn tend_pool(&self) -> Result<(), Failure> {
        let (registry, size) = (&self.parts.registry, self.parts.config.pool.size);
        let all = registry.pool().await?;
        if size == 0 && all.is_empty() {
            return Ok(());
        }
        let size = if self.can_wait().await? { size } else { 0 };
        let (mut ready, mut left) = (0, 0);
        for ahead in all {
            let wanted = ready < size;
            match self.tend_ahead(&ahead, wanted).await {
                Ok(is_kept) => ready += usize::from(is_kept),
                Err(failure) if failure.is_engine_lost() => return Err(failure),
                // The others need nothing of it.
                Err(failure) => {
                    tracing::warn!(instance = %ahead.id, error = chain(&failure), "what was made ahead is left for later");
                    left += 1;
                }
            }
        }
        metrics::gauge!("beaver_pool_ready").set(ready as f64);
        // What cannot be removed is not replaced for ever.
        while ready < size && left <= size && self.line.has_spare() {
            self.parts.gate.pass().await?;
            let ahead = registry.add_ahead(registry.new_id(&self.parts.entropy)).await?;
            self.make_ahead(&ahead).await?;
            ready += 1;
            metrics::gauge!("beaver_pool_ready").set(ready as f64);
        }
        Ok(())
    }

    /// Whether one can wait at all: by an engine that freezes, and with a plan for sign-ups that is Beaver's own workspace.
    /// Another image knows nothing of waiting.
    async fn can_wait(&self) -> Result<bool, Failure> {
        let plan = self.parts.plans.get(self.parts.plans.of_sign_ups());
        let ours = plan.is_ok_and(|plan| plan.program == Program::Workspace);
        Ok(ours && self.parts.engine.capabilities().await?.pauses)
    }

    /// Makes one that waits.
    async fn make_ahead(&self, ahead: &Ahead) -> Result<(), Failure> {
        let engine = &self.parts.engine;
        let spec = self.spec_ahead(ahead).await?;
        {
            // Waiting costs the host nothing.
            let _permit = self.permits.acquire().await.ok();
            self.parts.folders.shift_ids(engine.id_shift().await?);
            self.parts.folders.prepare(ahead).await?;
            engine.ensure(&spec).await?;
            engine.start(ahead.id).await?;
        }
        self.until_it_waits(ahead.id).await?;
        engine.pause(ahead.id).await?;
        self.parts.registry.move_ahead(ahead, Made::Ready).await?;
        self.line.seen(ahead.id, true);
        Ok(())
    }

    /// Waits until one listens: then it has done what can be done without a configuration.
    async fn until_it_waits(&self, id: InstanceId) -> Result<(), Failure> {
        let deadline = Instant::now() + self.parts.config.start_timeout;
        while !self.parts.folders.has_socket(id) {
            if Instant::now() >= deadline {
                return Err(Failure::NotInTime);
            }
            let unit = self.parts.engine.observe(id).await?;
            if !unit.is_some_and(|unit| unit.state == UnitState::Running) {
                return Err(Failure::Ended);
            }
            tokio::time::sleep(WAITS).await;
        }
        Ok(())
    }

    /// Whether one that waited does so still, and is what would be made now.
    async fn still_waits(&self, ahead: &Ahead) -> Result<bool, Failure> {
        let engine = &self.parts.engine;
        let frozen = engine.observe(ahead.id).await?.filter(|unit| unit.state == UnitState::Paused);
        let Some(unit) = frozen else { return Ok(false) };
        match engine.fingerprint(&self.spec_ahead(ahead).await?).await {
            Ok(fingerprint) => Ok(fingerprint == unit.fingerprint),
            // The image may be missing just now.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes one of which nobody has anything. Where it is an instance's by now, nothing is done.
    async fn discard(&self, ahead: &Ahead) -> Result<(), Failure> {
        let registry = &self.parts.registry;
        if ahead.state != Made::Discarded && !registry.move_ahead(ahead, Made::Discarded).await? {
            return Ok(());
        }
        self.parts.engine.stop(ahead.id).await?;
        self.parts.engine.remove(ahead.id).await?;
        // An engine that was killed while it started this one may not know that it runs.
        self.end_forgotten(ahead.id).await;
        self.parts.folders.remove(ahead.id).await?;
        registry.forget_ahead(ahead.id).await?;
        self.line.seen(ahead.id, false);
        Ok(())
    }

    /// As [`Inner::spec`] of whoever signs up now.
    async fn spec_ahead(&self, ahead: &Ahead) -> Result<InstanceSpec, Failure> {
        let name = self.parts.plans.of_sign_ups();
        let plan = self.parts.plans.get(name)?;
        let mut spec = InstanceSpec {
            id: ahead.id,
            generation: 1,
            plan: name.clone(),
            program: plan.program.clone(),
            not: None,
            uid: self.parts.folders.uid(ahead),
            folders: self.parts.folders.paths(ahead.id),
            limits: plan.limits,
            env: self.parts.workspace_env.clone(),
        };
        spec.not = self.not_for_newcomers(&spec).await?;
        Ok(spec)
    }
}
