//! One instance's worker: look, plan, take the steps, look again.

use std::{sync::Arc, time::Duration};

use clock::Backoff;
use contracts::{
    InstanceId,
    deploy::{Desired, EventCode, Phase},
};
use futures_util::future::join_all;
use scopeguard::guard;
use tracing::Instrument;

use super::{
    Inner, Reconciler,
    failing::Way,
    failure::Failure,
    line::Turn,
    mailbox::Mailbox,
    outcome::{self, Context},
    steps::{Healthy, Identity},
    turn::{Renewal, is_renewal},
};
use crate::{
    chain, disk,
    engine::{ErrorKind, NotRelease},
    folders,
    plan::{Observed, Seen, Step, plan},
    registry::{self, NewEvent, Progress, Row},
    strikes,
};

/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Plans in a row that lead to another plan, after which something must be wrong with them.
const PLANS: u32 = 12;

/// What comes after a round.
pub(super) enum Next {
    /// Nothing is left to do.
    Rest,
    /// Look again now: this round got somewhere. With its row, where that is known as it was written last.
    Again(Option<Box<Row>>),
    /// Look again now: something else is wanted.
    Anew,
    /// Look again after this long, or when something comes.
    After(Duration),
}

/// The end of a round before its plan's.
enum Stop {
    /// Another wish has come.
    Superseded,
    /// A step did not succeed; which, where several were taken at once.
    Failed(Option<Step>, Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(None, error.into())
    }
}

/// Works until nothing is left to do. `known`: its row, where it was read after the last worker of this instance had ended.
pub(super) async fn run(reconciler: Reconciler, id: InstanceId, mailbox: Arc<Mailbox>, mut known: Option<Box<Row>>) {
    let inner = reconciler.0.clone();
    // Whoever is nudged after a mistake of ours has ended this worker gets another.
    let _gone = guard((), |()| reconciler.forget(id, &mailbox));
    let span = tracing::info_span!("reconcile", instance = %id);
    let mut worker = Worker {
        inner: &inner,
        mailbox: &mailbox,
        pending: Progress::default(),
        identity: None,
        healthy: None,
        turn: None,
        renewal: None,
        renews: None,
        held_back: None,
        log: Vec::new(),
        told_queued: false,
        tried: None,
        last_up_ms: None,
        excused: (0, 0),
        way: Way::default(),
        revoked: None,
        away: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
    };
    let work = async {
        let mut plans = 0;
        if known.is_none() {
            // It is read for what came.
            mailbox.clear();
        }
        loop {
            let next = worker.round(id, known.take(), plans >= PLANS).await;
            plans = if matches!(next, Next::Again(_)) { plans + 1 } else { 0 };
            if matches!(next, Next::Rest | Next::After(_)) && !mailbox.is_dirty() {
                inner.line.stays_away(id);
            }
            match next {
                Next::Again(row) => known = row,
                Next::Anew => {}
                Next::Rest if mailbox.is_dirty() || !reconciler.retire(id, &mailbox) => {}
                Next::Rest => return,
                Next::After(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = mailbox.look.notified() => {}
                    () = mailbox.superseded() => {}
                },
            }
            if mailbox.clear() {
                known = None;
            }
        }
    };
    tokio::select! {
        // Whatever step is under way may be left off: that is what steps are made for.
        () = inner.stop.cancelled() => {}
        () = work.instrument(span) => {}
    }
}

pub(super) struct Worker<'a> {
    pub(super) inner: &'a Inner,
    pub(super) mailbox: &'a Mailbox,
    /// What is to be written: goes to the registry while the next step is taken.
    pub(super) pending: Progress,
    /// The one-time token's counterpart, for taking the owner.
    pub(super) identity: Option<Identity>,
    /// What was found healthy in this round.
    pub(super) healthy: Option<Healthy>,
    /// Its turn to be brought up, from when it was given until it is up.
    pub(super) turn: Option<Turn>,
    /// Its turn to be down for something of ours.
    pub(super) renewal: Option<Renewal<'a>>,
    /// What is told as its unit is removed, to be made anew.
    renews: Option<NewEvent>,
    /// The release that it is not made from this time.
    pub(super) held_back: Option<NotRelease>,
    /// The last lines of its program, which came down.
    pub(super) log: Vec<String>,
    /// Whether it was told that it waits in line.
    pub(super) told_queued: bool,
    /// The release of the unit that did not come up.
    pub(super) tried: Option<String>,
    /// When it was last found healthy, as far as was seen.
    pub(super) last_up_ms: Option<i64>,
    /// The wish for which what went wrong was put down to something from before, and how often in a row.
    pub(super) excused: (i64, u32),
    /// What was done about a start that the engine refuses.
    pub(super) way: Way,
    /// The deletion for which its identity was taken away already.
    revoked: Option<i64>,
    /// How long to wait for something outside of this instance.
    pub(super) away: Backoff,
}

impl Worker<'_> {
    async fn round(&mut self, id: InstanceId, known: Option<Box<Row>>, endless: bool) -> Next {
        self.pending = Progress::default();
        self.healthy = None;
        let row = match known {
            Some(row) => {
                self.inner.told(&row);
                *row
            }
            None => match self.inner.read(id).await {
                Ok(row) => row,
                Err(registry::Error::NotFound) => return Next::Rest,
                Err(error) => return self.wait_for_registry(&error),
            },
        };
        self.mailbox.works_on(row.version);
        self.review_renewal(&row);
        if row.desired == Desired::Deleted {
            // What it was given is taken away from it.
            self.identity = None;
        }
        if endless {
            return self.failed(row, None, Failure::Endless).await;
        }
        // Whoever deletes it counts on that from now on, however long it takes to stop it, and whether the engine can be asked
        // or not. Nothing of this round waits for it; the next one does, so that no late revocation meets an identity that was
        // given anew.
        if is_just_deleted(&row) && self.revoked != Some(row.generation) {
            let (inner, deleted) = (self.inner, row.clone());
            let (revoked, next) = tokio::join!(inner.revoke_at_once(&deleted), self.bring_about(row));
            if revoked {
                self.revoked = Some(deleted.generation);
            }
            return next;
        }
        self.bring_about(row).await
    }

    /// Looks, plans, and takes the steps.
    async fn bring_about(&mut self, mut row: Row) -> Next {
        let seen = match self.observe(&row).await {
            Ok(seen) => seen,
            Err(failure) => {
                // What cannot be looked at now is not looked at again at once.
                let wait = row.next_attempt_at_ms.saturating_sub(self.inner.parts.registry.now_ms());
                return match u64::try_from(wait) {
                    Ok(wait @ 1..) => Next::After(Duration::from_millis(wait)),
                    _ => self.failed(row, None, failure).await,
                };
            }
        };
        let up = matches!(&seen.unit, Seen::Unit { unit, .. } if unit.is_up());
        if seen.unit != Seen::Unknown {
            self.inner.line.seen(row.id, up);
        }
        self.last_up_ms = row.ready_at_ms.max(self.last_up_ms);
        // From before releases were written down: what it was found healthy with is what it may go back to.
        if let (None, Seen::Unit { unit, .. }) = (&row.release, &seen.unit)
            && unit.release.is_some()
            && unit.run.is_some()
            && unit.run == row.ready_run
        {
            let progress = Progress { release: unit.release.clone(), ..Progress::default() };
            return match self.inner.write(&row, &progress).await {
                Ok(_) => Next::Anew,
                Err(error) => self.wait_for_registry(&error),
            };
        }
        let steps = plan(&row, &seen, self.inner.parts.registry.now_ms());
        if !steps.contains(&Step::Start) {
            self.turn = None;
        }
        if steps.is_empty() {
            self.renewal = None;
            // Nobody tells when an engine that cannot be asked can be asked again.
            if seen.unit == Seen::Unknown {
                return Next::After(self.away.next(&self.inner.parts.entropy));
            }
            // Of one that an engine forgot nobody else would ever hear.
            if !up {
                let ended = tokio::select! {
                    ended = self.inner.end_forgotten(row.id) => ended,
                    () = self.mailbox.superseded() => return Next::Anew,
                };
                if ended {
                    return Next::Again(None);
                }
            }
            if row.phase != Phase::Deleted {
                // Whoever wrote that it is settled may have been killed before this.
                self.inner.tidy(&row).await;
            }
            return Next::Rest;
        }
        match steps.as_slice() {
            [Step::WaitUntil(at)] => {
                let wait = at.saturating_sub(self.inner.parts.registry.now_ms());
                Next::After(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
            }
            [Step::LoseEngine] => self.lose_engine(row).await,
            mut steps => {
                // Before anything is taken down or made for it.
                if steps.contains(&Step::Start) {
                    let passed = tokio::select! {
                        passed = self.inner.parts.gate.pass() => passed,
                        () = self.mailbox.superseded() => return Next::Anew,
                    };
                    if let Err(blocked) = passed {
                        return self.failed(row, Some(Step::Start), blocked.into()).await;
                    }
                    match disk::is_exceeded(&self.inner.parts.folders, &self.inner.parts.plans, &row).await {
                        // Other data is to take the place of what is there.
                        _ if row.archive_pending() => {}
                        Ok(false) => {}
                        Ok(true) => return self.failed(row, Some(Step::Start), Failure::Disk).await,
                        Err(error) => return self.failed(row, Some(Step::Start), error.into()).await,
                    }
                }
                // Taken down for something of ours: a few at a time, and each is back before the next one goes.
                if is_renewal(&row, &seen, steps) {
                    let mailbox = self.mailbox;
                    let turn = tokio::select! {
                        turn = self.take_renewal(&row, &seen) => turn,
                        () = mailbox.superseded() => return Next::Anew,
                        // This may take for ever, and it runs: whatever becomes of it meanwhile is seen to.
                        () = mailbox.look.notified() => return Next::Anew,
                    };
                    match turn {
                        Ok(()) => {}
                        Err(failure) if failure.is_engine_lost() => return self.failed(row, None, failure).await,
                        // It runs, and nothing is wrong with it.
                        Err(failure) => {
                            tracing::warn!(error = chain(&failure), "it stays as it is for now");
                            return Next::After(self.away.next(&self.inner.parts.entropy));
                        }
                    }
                } else {
                    // Nobody else waits in line for as long as somebody is in the middle of something here.
                    if let Some(at) = steps.iter().position(|step| *step == Step::Drain) {
                        match self.take(&mut row, &steps[..=at]).await {
                            Ok(()) => steps = &steps[at + 1..],
                            Err((_, Stop::Superseded)) => return Next::Anew,
                            Err((step, Stop::Failed(_, failure))) => {
                                return self.failed(row, Some(step), failure).await;
                            }
                        }
                    }
                    if let Some(next) = self.line_up(&row, &seen, steps).await {
                        return next;
                    }
                }
                self.held_back = match self.hold_back(&row, steps).await {
                    Ok(held_back) => held_back,
                    Err(failure) => return self.failed(row, Some(Step::Create), failure).await,
                };
                if steps.iter().any(|step| matches!(step, Step::NoteDown | Step::TakeDown)) {
                    self.log = self.inner.last_lines(&row).await;
                }
                self.renews = self.renewal_begun(&row, &seen, steps).await;
                match self.take(&mut row, steps).await {
                    Ok(()) => {
                        self.renewal = None;
                        if let Some(turn) = self.turn.take() {
                            turn.done();
                            self.told_queued = false;
                        }
                        self.away.reset();
                        self.excused = (0, 0);
                        self.way = Way::default();
                        Next::Again(Some(Box::new(row)))
                    }
                    Err((_, Stop::Superseded)) => Next::Anew,
                    Err((step, Stop::Failed(_, failure))) => self.failed(row, Some(step), failure).await,
                }
            }
        }
    }

    /// What is seen of it.
    async fn observe(&self, row: &Row) -> Result<Observed, Failure> {
        // After a start every instance is looked at: not all at once.
        let _turn = self.inner.looks.acquire().await;
        let parts = &self.inner.parts;
        match parts.engine.id_shift().await {
            Ok(shift) => parts.folders.shift_ids(shift),
            // It cannot be asked for the unit either.
            Err(error) if error.kind == ErrorKind::Unavailable => {}
            Err(error) => return Err(error.into()),
        }
        let looked = async { Ok(parts.folders.observe(row).await?) };
        let (unit, folders) = tokio::try_join!(self.observe_unit(row), looked)?;
        let config = if row.plan.is_workspace() { folders.config } else { Some(row.config_target()) };
        let folders::Seen { complete, owned, written, blank, tombstone, socket, .. } = folders;
        Ok(Observed { unit, folders: complete, owned, config, written, blank, tombstone, socket })
    }

    async fn observe_unit(&self, row: &Row) -> Result<Seen, Failure> {
        let engine = &self.inner.parts.engine;
        let looked = async {
            let Some(unit) = engine.observe(row.id).await? else { return Ok(Seen::Absent) };
            // What it would be made from is missing: no reason to take down what there is, unless it is something else.
            let kept = unit.plan == row.plan;
            let current = match self.inner.spec(row) {
                // What is not to run is made from whatever it is made from.
                _ if row.desired != Desired::Running => kept,
                Err(_) => kept,
                Ok(spec) => match engine.fingerprint(&spec).await {
                    Ok(fingerprint) if fingerprint == unit.fingerprint => true,
                    Ok(_) => self.inner.is_held_back(row, &unit, self.renewal.is_some()).await?,
                    Err(error) if error.kind == ErrorKind::NotFound => kept,
                    Err(error) => return Err(error.into()),
                },
            };
            Ok::<_, Failure>(Seen::Unit { unit, current })
        };
        match looked.await {
            // Counted where it became a failure.
            Err(error) if error.is_engine_lost() => {
                tracing::debug!(error = chain(&error), "the engine cannot be asked");
                Ok(Seen::Unknown)
            }
            looked => looked,
        }
    }

    /// Takes the steps. What each means for the row is written while the next one is under way; what a drain does, before it.
    async fn take(&mut self, row: &mut Row, steps: &[Step]) -> Result<(), (Step, Stop)> {
        if row.phase == Phase::Unknown {
            self.pending.events.push(NewEvent::of(EventCode::EngineBack));
        }
        let mut rest = steps;
        while let Some((step, after)) = rest.split_first() {
            // These need nothing of each other, and somebody who signs up waits for them all.
            let several = if independent(step) { after.iter().take_while(|step| independent(step)).count() } else { 0 };
            let at_once = &rest[..=several];
            for step in at_once {
                if *step == Step::Remove {
                    self.pending.events.extend(self.renews.take());
                }
                self.pending.then(outcome::before(&self.pending.applied_to(row.clone()), step));
            }
            let acting = strikes::within(step_name(step), self.write_and_act(row, at_once));
            acting.await.map_err(|stop| match stop {
                Stop::Failed(Some(failed), failure) => (failed, Stop::Failed(None, failure)),
                stop => (step.clone(), stop),
            })?;
            for step in at_once {
                let after = self.means(|context| outcome::after(&self.pending.applied_to(row.clone()), step, context));
                self.pending.then(after);
            }
            rest = &rest[at_once.len()..];
            if row.registered && self.healthy.as_ref().is_some_and(|healthy| !healthy.registered) {
                tracing::warn!("it is without its owner and identity: its data was lost, or restored from before");
                self.pending.then(outcome::registration_lost());
                break;
            }
        }
        let last = steps.last().cloned().unwrap_or(Step::Settle(crate::plan::Goal::Ready));
        strikes::within(step_name(&last), self.write(row)).await.map_err(|stop| (last, stop))
    }

    /// Takes steps that need nothing of each other, and writes what is pending: meanwhile, or before a drain.
    async fn write_and_act(&mut self, row: &mut Row, steps: &[Step]) -> Result<(), Stop> {
        if steps.iter().all(only_tells) {
            self.inner.parts.strikes.pass("step", row.id, std::future::ready(())).await;
            return Ok(());
        }
        // What is told with the next step anyway needs no write of its own.
        let rides = matches!(steps, [Step::UseConfig(_)]);
        let progress = if rides { Progress::default() } else { std::mem::take(&mut self.pending) };
        let before = progress.applied_to(row.clone());
        let (inner, mailbox, held_back) = (self.inner, self.mailbox, self.held_back.clone());
        let acting = async {
            let identity = &mut self.identity;
            match steps {
                [step @ Step::Register] => {
                    let registered = inner.timed(before.id, step, inner.register(&before, identity)).await;
                    registered.map(|()| None).map_err(|failure| Stop::Failed(None, failure))
                }
                steps => {
                    let others = steps.iter().filter(|step| **step != Step::Identify);
                    let acts = others.map(async |step| {
                        let acted = inner.act_in_turn(&before, step, held_back.as_ref()).await;
                        acted.map_err(|failure| Stop::Failed(Some(step.clone()), failure))
                    });
                    let identify = async {
                        match steps.contains(&Step::Identify) {
                            true => inner.timed(before.id, &Step::Identify, inner.identify(&before, identity)).await,
                            false => Ok(()),
                        }
                    };
                    // Each is brought to its end, also when another failed.
                    let (acted, identified) = tokio::join!(join_all(acts), identify);
                    let found: Vec<_> = acted.into_iter().collect::<Result<_, Stop>>()?;
                    identified.map_err(|failure| Stop::Failed(Some(Step::Identify), failure))?;
                    Ok(found.into_iter().flatten().next())
                }
            }
        };
        // Left off, the engine would come to the end of it all the same, under the feet of who came meanwhile.
        let whole = matches!(steps, [Step::Pause | Step::Stop { .. } | Step::TakeDown]);
        // The router hears of it only once it is written.
        let is_told_first = matches!(steps, [Step::Drain]);
        let both = async {
            if !is_told_first {
                return tokio::join!(inner.write(row, &progress), acting);
            }
            match inner.write(row, &progress).await {
                written @ Ok(Some(_)) => (written, acting.await),
                unwritten => (unwritten, Ok(None)),
            }
        };
        let (written, acted) = tokio::select! {
            biased;
            outcome = both => outcome,
            // Whatever was under way may be left off: each step looks before it acts.
            () = mailbox.superseded(), if !whole => return Err(Stop::Superseded),
        };
        match written? {
            Some(next) => *row = next,
            None => return Err(Stop::Superseded),
        }
        if let Some(healthy) = acted? {
            self.healthy = Some(healthy);
        }
        Ok(())
    }

    /// What something means at this time.
    pub(super) fn means(&self, meaning: impl FnOnce(&Context<'_>) -> Progress) -> Progress {
        let parts = &self.inner.parts;
        let wait_ms = |failures| {
            let wait = Backoff::wait(parts.config.first_retry, LONGEST_WAIT, failures, &parts.entropy);
            i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
        };
        meaning(&Context {
            now_ms: parts.registry.now_ms(),
            began_ms: self.inner.began_ms,
            run: self.healthy.as_ref().map(|healthy| healthy.run.as_str()),
            log: &self.log,
            release: match &self.healthy {
                Some(healthy) => healthy.release.as_deref(),
                None => self.tried.as_deref(),
            },
            wait_ms: &wait_ms,
        })
    }

    /// Writes what is pending.
    async fn write(&mut self, row: &mut Row) -> Result<(), Stop> {
        let progress = std::mem::take(&mut self.pending);
        let settled = progress.ready.as_ref().is_some_and(Option::is_some);
        *row = self.inner.write(row, &progress).await?.ok_or(Stop::Superseded)?;
        if settled {
            self.inner.tidy(row).await;
        }
        Ok(())
    }
}

/// Whether it is deleted, with its data kept, and not down for that yet.
fn is_just_deleted(row: &Row) -> bool {
    row.desired == Desired::Deleted && row.deletion.is_some() && row.observed_generation != row.generation
}

/// Whether a step needs nothing of another that is so, which may be next to it in a plan.
fn independent(step: &Step) -> bool {
    matches!(step, Step::UseConfig(_) | Step::Create | Step::Identify | Step::Begin)
}

/// Whether a step is nothing but what it means for the row.
fn only_tells(step: &Step) -> bool {
    matches!(
        step,
        Step::NoteDown
            | Step::NoteRestarted
            | Step::Adopt(_)
            | Step::Condemn
            | Step::Settle(_)
            | Step::LoseEngine
            | Step::WaitUntil(_)
    )
}

pub(super) fn step_name(step: &Step) -> &'static str {
    match step {
        Step::LoseEngine => "lose_engine",
        Step::WaitUntil(_) => "wait",
        Step::NoteDown => "note_down",
        Step::TakeDown => "take_down",
        Step::Prepare => "prepare",
        Step::Mend => "mend",
        Step::Adopt(_) => "adopt",
        Step::UseConfig(_) => "use_config",
        Step::Stop { .. } => "stop",
        Step::Drain => "drain",
        Step::Quiet => "quiet",
        Step::Pause => "pause",
        Step::Resume => "resume",
        Step::NoteRestarted => "note_restarted",
        Step::Remove => "remove",
        Step::PutArchive(_) => "put_archive",
        Step::TakeArchiveBack(_) => "take_archive_back",
        Step::PutTombstone(_) => "put_tombstone",
        Step::TakeTombstone => "take_tombstone",
        Step::Revoke => "revoke",
        Step::Condemn => "condemn",
        Step::RemoveFolders => "remove_folders",
        Step::Create => "create",
        Step::Identify => "identify",
        Step::Start => "start",
        Step::Begin => "begin",
        Step::AwaitHealthy(_) => "await_healthy",
        Step::Register => "register",
        Step::Settle(_) => "settle",
    }
}
