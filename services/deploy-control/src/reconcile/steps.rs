//! The steps themselves.

use std::time::Duration;

use contracts::{InstanceId, instance::Readiness, routes::RouteState};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::{Inner, failure::Failure, worker::step_name};
use crate::{
    chain,
    engine::{EngineError, ErrorKind, NotRelease, UnitState},
    plan::Step,
    registry::{self, Progress, Row},
    strikes,
};

/// How long an assertion for taking the owner is used: it lives for 60 s.
const ASSERTION_LIFE: Duration = Duration::from_secs(45);
/// For how long at most an instance that has just started may refuse to register because its ways out are not open yet.
const DOORS: Duration = Duration::from_secs(10);
/// For how long a router may not have heard that an instance is to sleep.
const QUIET: Duration = Duration::from_secs(3);
/// How soon the router is asked again whether it has heard.
const UNHEARD: Duration = Duration::from_millis(5);
/// How often it is asked whether everything that was under way is over.
const DRAINED: Duration = Duration::from_millis(50);
/// How often a start is checked for having ended by itself.
const STILL_UP: Duration = Duration::from_millis(400);

/// What a healthy instance says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Healthy {
    /// Which run of it that is.
    pub(super) run: String,
    /// Whether it has its owner and its own identity.
    pub(super) registered: bool,
    /// Which release that is, by an engine that knows of such.
    pub(super) release: Option<String>,
}

/// What authz gave for an instance: its assertion, while the one-time token is in the instance's folder.
pub(super) struct Identity {
    assertion: SecretString,
    since: Instant,
}

impl Inner {
    /// Takes a step, with a permit of the host's where it costs that something.
    pub(super) async fn act_in_turn(
        &self,
        row: &Row,
        step: &Step,
        held_back: Option<&NotRelease>,
    ) -> Result<Option<Healthy>, Failure> {
        if matches!(step, Step::PutArchive(_) | Step::TakeArchiveBack(_) | Step::RemoveFolders) {
            // What is taken from under it would be used by two.
            self.end_forgotten(row.id).await;
        }
        let acted = {
            let _permit = if asks_the_host(step) { self.permits.acquire().await.ok() } else { None };
            self.timed(row.id, step, self.act(row, step, held_back)).await?
        };
        if matches!(step, Step::Stop { .. } | Step::TakeDown | Step::Remove) {
            // Waiting costs the host nothing.
            self.end_forgotten(row.id).await;
        }
        Ok(acted)
    }

    /// Takes a step, and its time.
    pub(super) async fn timed<T>(
        &self,
        id: InstanceId,
        step: &Step,
        acting: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let name = step_name(step);
        let outcome = strikes::within(name, self.parts.strikes.pass("step", id, acting)).await;
        let took = begun.elapsed();
        if outcome.is_err() {
            metrics::counter!("beaver_reconcile_step_failures_total", "step" => name).increment(1);
        } else {
            metrics::histogram!("beaver_reconcile_step_seconds", "step" => name).record(took.as_secs_f64());
            tracing::debug!(step = name, ms = took.as_millis() as u64, "step");
        }
        outcome
    }

    /// Takes a step; what it found healthy, where it found something. `held_back`: the release that it is not made from this
    /// time.
    async fn act(&self, row: &Row, step: &Step, held_back: Option<&NotRelease>) -> Result<Option<Healthy>, Failure> {
        let (engine, folders) = (&self.parts.engine, &self.parts.folders);
        match step {
            Step::Prepare | Step::Mend => folders.prepare(row).await?,
            Step::UseConfig(generation) => folders.make_current(row, *generation).await?,
            Step::Stop { .. } | Step::TakeDown => engine.stop(row.id).await?,
            Step::Remove => engine.remove(row.id).await?,
            Step::PutArchive(generation) => folders.put_archive(row.id, *generation).await?,
            Step::TakeArchiveBack(generation) => folders.take_archive_back(row.id, *generation).await?,
            Step::PutTombstone(until) => folders.put_tombstone(row.id, *until).await?,
            Step::TakeTombstone => folders.take_tombstone(row).await?,
            Step::Revoke => self.parts.peers.revoke_backend(row).await.map_err(Failure::of_call)?,
            Step::RemoveFolders => folders.remove(row.id).await?,
            Step::Create => {
                let mut spec = self.spec(row)?;
                spec.not = held_back.cloned().or(spec.not);
                engine.ensure(&spec).await?;
            }
            Step::Drain => self.drain(row).await,
            Step::Start | Step::Begin | Step::Resume => engine.start(row.id).await?,
            Step::Quiet => self.quiet(row).await?,
            Step::Pause => engine.pause(row.id).await?,
            Step::AwaitHealthy(config) => return self.await_healthy(row, *config).await.map(Some),
            // These need the worker's own state, or only write what they mean.
            Step::Identify
            | Step::Register
            | Step::LoseEngine
            | Step::WaitUntil(_)
            | Step::NoteDown
            | Step::NoteRestarted
            | Step::Adopt(_)
            | Step::Condemn
            | Step::Settle(_) => {}
        }
        Ok(None)
    }

    /// Waits until the router passes nothing on to it any more without asking, and finds that nothing is under way then.
    async fn quiet(&self, row: &Row) -> Result<(), Failure> {
        let deadline = Instant::now() + QUIET;
        loop {
            let activity = self.parts.peers.activity_of(row.id).await.map_err(Failure::Away)?;
            match activity.state {
                RouteState::Paused | RouteState::Asleep if activity.in_flight == 0 => return Ok(()),
                RouteState::Paused | RouteState::Asleep => return Err(Failure::InUse),
                // The feed has not brought it yet.
                _ if Instant::now() < deadline => tokio::time::sleep(UNHEARD).await,
                _ => return Err(Failure::Unrouted),
            }
        }
    }

    /// Ends the process that runs though there is no unit that is up, and waits for it, but not for ever. False when there is
    /// none, which is told at once. May be left off.
    ///
    /// An engine that is killed in the middle of a start may know nothing of what it began, which goes on all the same.
    pub(super) async fn end_forgotten(&self, id: InstanceId) -> bool {
        let folders = &self.parts.folders;
        if !folders.ask_to_end(id) {
            return false;
        }
        tracing::warn!(instance = %id, "a process runs that the engine does not know of; it is asked to end");
        let deadline = Instant::now() + self.parts.config.end_limit;
        while folders.ask_to_end(id) {
            if Instant::now() >= deadline {
                tracing::warn!(instance = %id, "it did not end; nobody comes to it any more");
                // It would be asked for ever. A socket that is listened on says nothing of a process, either: an instance can
                // have sent its own away to where nobody reads it. What is locked stays so.
                folders.close_door(id).await;
                break;
            }
            tokio::time::sleep(DRAINED).await;
        }
        true
    }

    /// Waits until nothing is under way that began before the router heard that nobody new gets in, but not for ever.
    async fn drain(&self, row: &Row) {
        let begun = Instant::now();
        let limit = self.parts.config.drain_timeout;
        let mut pause = UNHEARD;
        while begun.elapsed() < limit {
            // Who is not there passes nothing on either.
            let Ok(activity) = self.parts.peers.activity_of(row.id).await else { return };
            let heard = activity.state != RouteState::Running;
            if heard && activity.in_flight == 0 {
                let own = async {
                    row.plan.is_workspace() && self.parts.peers.own_activity(row.id).await.is_ok_and(|own| own.busy)
                };
                if !own.await {
                    return;
                }
            }
            if !heard && begun.elapsed() >= QUIET {
                return;
            }
            // The feed is about to bring it; what is under way takes its time.
            tokio::time::sleep(if heard { DRAINED } else { pause }).await;
            pause = (pause * 2).min(DRAINED);
        }
        tracing::info!(instance = %row.id, "something was still under way when it had to go down");
    }

    /// Asks until it answers that it runs with this configuration.
    async fn await_healthy(&self, row: &Row, wanted: i64) -> Result<Healthy, Failure> {
        let run = async {
            let unit = self.parts.engine.observe(row.id).await?;
            // Ended already: the loop below would find out too, but later.
            unit.and_then(|unit| Some((unit.run?, unit.release))).ok_or(Failure::Ended)
        };
        let ((run, release), ready) = tokio::try_join!(run, self.healthy(row, wanted))?;
        // It answers through the router; but whoever is told that it is ready must find its route there too, and after a
        // restart of this service the router may not have come back for the routes yet.
        let followed = tokio::time::timeout(self.parts.config.start_timeout, self.parts.hub.followed());
        followed.await.map_err(|_| Failure::Unrouted)?;
        Ok(Healthy { run, registered: ready.registered, release })
    }

    async fn healthy(&self, row: &Row, wanted: i64) -> Result<Readiness, Failure> {
        let deadline = Instant::now() + self.parts.config.start_timeout;
        let mut looked = Instant::now();
        let mut pause = Duration::from_millis(5);
        // What kept it from being asked, at any time: then nothing is known of it.
        let mut away = None;
        loop {
            match self.ask(row, wanted).await {
                Ok(ready) if ready.config_generation == wanted => return Ok(ready),
                Ok(ready) => return Err(Failure::OldConfig { runs: ready.config_generation, wanted }),
                // The router is there and says that the instance is not, or the instance says that it is not ready.
                Err(service::CallError::Refused { problem, .. }) if problem.code != "service_token_required" => {}
                Err(service::CallError::Unexpected { status: 503, .. }) => {}
                // Whatever a program that knows nothing of Beaver answers, it has begun to.
                Err(service::CallError::Unexpected { .. }) if !row.plan.is_workspace() => {}
                // One that says nothing in time, or nonsense, is not ready. Only a router that does not answer for itself
                // either is away.
                Err(_) if self.parts.peers.router_answers(row.id).await => {}
                Err(error) => away = Some(error),
            }
            if Instant::now() >= deadline {
                return Err(away.map_or(Failure::NotInTime, Failure::Away));
            }
            if looked.elapsed() >= STILL_UP {
                looked = Instant::now();
                let unit = self.parts.engine.observe(row.id).await?;
                if !unit.is_some_and(|unit| unit.state == UnitState::Running) {
                    return Err(Failure::Ended);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(250));
        }
    }

    /// Asks it whether it is there; one that knows nothing of Beaver is as it must be when it answers at all.
    async fn ask(&self, row: &Row, wanted: i64) -> Result<Readiness, service::CallError> {
        if row.plan.is_workspace() {
            return self.parts.peers.readiness(row.id).await;
        }
        // A plan that is gone does not say where; what was made by it goes on.
        let plan = self.parts.plans.get(&row.plan).ok();
        let path = plan.as_ref().map_or("/", |plan| &plan.health);
        self.parts.peers.answers(row.id, path).await?;
        Ok(Readiness { registered: true, config_generation: wanted })
    }

    /// Takes the identity of one that still runs away; false when that did not work. Once it is down, a step does it again:
    /// until then it may have got one anew.
    pub(super) async fn revoke_at_once(&self, row: &Row) -> bool {
        let revoked = self.parts.peers.revoke_backend(row).await;
        if let Err(error) = &revoked {
            tracing::warn!(error = chain(error), "its identity could not be taken away yet");
        }
        revoked.is_ok()
    }

    /// Gets a one-time token and its assertion, and puts the token where the instance finds it.
    pub(super) async fn identify(&self, row: &Row, identity: &mut Option<Identity>) -> Result<(), Failure> {
        if identity.as_ref().is_some_and(|identity| identity.since.elapsed() < ASSERTION_LIFE) {
            return Ok(());
        }
        let origin = self.parts.folders.origin(row);
        let since = Instant::now();
        let issued = self.parts.peers.register_backend(row, &origin).await.map_err(Failure::of_call)?;
        self.parts.folders.write_registration(row, issued.initial_access_token, issued.expires_at_ms).await?;
        *identity = Some(Identity { assertion: issued.register_assertion.into(), since });
        Ok(())
    }

    /// Gives the instance its owner; it then registers itself with authz.
    pub(super) async fn register(&self, row: &Row, identity: &mut Option<Identity>) -> Result<(), Failure> {
        let deadline = Instant::now() + DOORS.min(self.parts.config.start_timeout);
        let (mut pause, mut looked) = (Duration::from_millis(10), Instant::now());
        // What somebody else kept it from, at any time: then nothing is known of it.
        let mut away = None;
        loop {
            self.identify(row, identity).await?;
            let assertion = identity.as_ref().map(|identity| identity.assertion.expose_secret().to_owned());
            match self.parts.peers.take_owner(row.id, assertion.unwrap_or_default()).await {
                Ok(_) => {
                    // The token is spent: should it be needed again, it must be another.
                    *identity = None;
                    return Ok(());
                }
                Err(error) if self.says_nothing(row, &error).await => {}
                Err(error) => match Failure::of_call(error) {
                    refused @ Failure::Refused(_) => {
                        // Whatever was wrong with it, the next attempt is made with a new one.
                        *identity = None;
                        return Err(refused);
                    }
                    passes => away = Some(passes),
                },
            }
            if Instant::now() >= deadline {
                return Err(away.unwrap_or(Failure::NotInTime));
            }
            if looked.elapsed() >= STILL_UP {
                looked = Instant::now();
                match self.parts.engine.observe(row.id).await? {
                    Some(unit) if unit.state == UnitState::Running => {}
                    Some(_) => return Err(Failure::Ended),
                    None => return Err(EngineError::new(ErrorKind::NotFound, "the unit").into()),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Whether an instance gave no answer: the router says so, or does answer for itself.
    async fn says_nothing(&self, row: &Row, error: &service::CallError) -> bool {
        const NOBODY: [&str; 3] = ["instance_unreachable", "instance_timeout", "instance_broken"];
        match error.code() {
            Some(code) => NOBODY.contains(&code),
            None => self.parts.peers.router_answers(row.id).await,
        }
    }

    /// Writes progress and tells of it; `None` when another wish has come.
    pub(super) async fn write(&self, row: &Row, progress: &Progress) -> Result<Option<Row>, registry::Error> {
        let written = self.parts.registry.record(row, progress).await?;
        if let Some(row) = &written {
            self.told(row);
        }
        Ok(written)
    }

    /// Removes files that are of no use any more. Nothing depends on it.
    pub(super) async fn tidy(&self, row: &Row) {
        if let Err(error) = self.parts.folders.tidy(row).await {
            tracing::info!(error = chain(&error), "files that are not needed stay");
        }
    }
}

/// Whether a step costs the host something, so that only some may be taken at once. Waiting does not.
fn asks_the_host(step: &Step) -> bool {
    matches!(
        step,
        Step::Prepare | Step::Mend | Step::Create | Step::Start | Step::TakeDown | Step::Remove | Step::RemoveFolders
    )
}
