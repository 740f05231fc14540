//! What a step that failed means for its instance: wait for somebody else, take the change back, try again, or give up.

use std::time::Duration;

use contracts::deploy::{InstanceError, Phase, Sleep};

use super::{
    failure::Failure,
    outcome,
    turn::{has_something_new, renewed_as_broken},
    worker::{Next, Worker, step_name},
};
use crate::{
    chain,
    engine::{EngineError, ErrorKind},
    plan::Step,
    registry::{self, Progress, Row},
};

/// How often in a row an instance may come up with an older configuration than the one that is there before that counts
/// against it.
const OLD_RUNS: u32 = 3;

/// The wait between the end of a process that an engine did not know of, and the start of the next: whoever does know of it
/// hears of its end a little later.
const FORGOTTEN: Duration = Duration::from_millis(250);

/// What was done since the last attempt that counted, so that the engine might start it.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Whether whoever runs was asked to end, or it was tried once more without that.
    ended: bool,
    /// Whether it was made anew.
    anew: bool,
}

impl Worker<'_> {
    /// Says that the engine is lost, once; everything else stays as it was.
    pub(super) async fn lose_engine(&mut self, row: Row) -> Next {
        self.turn = None;
        let told = matches!(
            row.phase,
            Phase::Unknown | Phase::Failed | Phase::PendingDeletion | Phase::Deleting | Phase::Deleted
        );
        if !told {
            let progress = outcome::engine_lost();
            match self.inner.write(&row, &progress).await {
                Ok(Some(_)) => {}
                Ok(None) => return Next::Anew,
                Err(error) => return self.wait_for_registry(&error),
            }
        }
        Next::After(self.away.next(&self.inner.parts.entropy))
    }

    /// Decides what a failure means: wait for somebody else, take the change back, try again, or give up.
    pub(super) async fn failed(&mut self, row: Row, step: Option<Step>, failure: Failure) -> Next {
        // Others shall not wait for its next attempt.
        self.turn = None;
        if failure.is_of_our_end() {
            return Next::After(self.away.next(&self.inner.parts.entropy));
        }
        let told = failure.told();
        let name = step.as_ref().map_or("observe", step_name);
        let cause = chain(&failure);
        if failure.is_engine_lost() {
            tracing::warn!(step = name, cause, "the engine cannot be asked");
            return self.lose_engine(row).await;
        }
        if let Failure::Registry(error) = &failure {
            return self.wait_for_registry(error);
        }
        if let Failure::Engine(error) = &failure
            && error.kind == ErrorKind::NotFound
            && matches!(
                step,
                Some(
                    Step::Start
                        | Step::Begin
                        | Step::Resume
                        | Step::Pause
                        | Step::Stop { .. }
                        | Step::TakeDown
                        | Step::AwaitHealthy(_)
                        | Step::Register
                )
            )
        {
            // It vanished since it was seen: that changes the plan, and is nobody's failure yet.
            tracing::info!(step = name, "the unit vanished");
            return Next::Again(None);
        }
        if let Failure::Engine(error) = &failure
            && error.kind == ErrorKind::Rejected
            && matches!(step, Some(Step::Start | Step::Begin | Step::Resume))
            && let Some(next) = self.clear_the_way(&row, &cause).await
        {
            return next;
        }
        if matches!(step, Some(Step::Quiet | Step::Pause)) {
            // Nothing is wrong with it: it just does not sleep.
            return self.keep_awake(&row, name, &cause).await;
        }
        tracing::warn!(step = name, code = told.code, cause, "a step failed");
        let outside = match &failure {
            Failure::Away(_) | Failure::Unrouted | Failure::Blocked(_) => true,
            Failure::Engine(error) => error.kind == ErrorKind::Capacity,
            Failure::Folders(error) => error.is_of_disk(),
            _ => false,
        };
        if outside {
            return self.wait(row, told).await;
        }
        if self.inner.parts.folders.is_disk_out() {
            // It could not write either: nothing is known of it, or of a configuration that it was to come up with.
            if failure.is_unhealthy()
                && let Err(error) = self.inner.parts.engine.stop(row.id).await
            {
                error.count();
                tracing::info!(error = chain(&error), "it could not be stopped yet");
            }
            return self.wait(row, Failure::disk_out()).await;
        }
        let tried = self.tried_release(&row, step.as_ref(), &failure).await;
        let (of, times) = self.excused;
        let times = if of == row.generation { times } else { 0 };
        let is_excused = match &failure {
            // A start that began before the configuration was exchanged and was left off for it may still have taken place.
            Failure::OldConfig { .. } => times < OLD_RUNS,
            // So may a stop that somebody asked for before, as a life of this service that was killed since.
            Failure::Ended => {
                let is_new = has_something_new(&row) || outcome::release_to_blame(&row, tried.as_deref()).is_some();
                is_new && times == 0
            }
            _ => false,
        };
        if is_excused {
            // That says nothing of what is new, which nobody has tried yet.
            self.excused = (row.generation, times + 1);
            if let Err(error) = self.inner.parts.engine.stop(row.id).await {
                return Box::pin(self.failed(row, Some(Step::Stop { then_up: true }), error.into())).await;
            }
            return match self.inner.write(&row, &outcome::excused()).await {
                Ok(_) => Next::Again(None),
                Err(error) => self.wait_for_registry(&error),
            };
        }
        self.way = Way::default();
        self.healthy = None;
        self.tried = tried;
        let told = InstanceError {
            log: if failure.is_unhealthy() { self.inner.last_lines(&row).await } else { Vec::new() },
            ..told
        };
        if failure.is_unhealthy() {
            // What did not become healthy must not be taken for a start that is still under way.
            if let Err(error) = self.inner.parts.engine.stop(row.id).await {
                error.count();
                tracing::info!(error = chain(&error), "it could not be stopped yet");
            }
        }
        let mut row = row;
        loop {
            // Whoever does not take its owner with the data of an archive does not come up with that either.
            let unhealthy = failure.is_unhealthy() || (row.archive_pending() && matches!(failure, Failure::Refused(_)));
            let mut progress = match failure {
                // Trying again changes nothing of it.
                Failure::Disk => outcome::given_up(told.clone()),
                _ => self.means(|context| outcome::failed(&row, told.clone(), unhealthy, context)),
            };
            if matches!(step, Some(Step::TakeDown)) && progress.phase != Some(Phase::Failed) {
                // It is the run that was found healthy still, and not one that is about to answer.
                progress.ready = None;
            }
            match self.inner.write(&row, &progress).await {
                // Neither heeds when it is to be tried again.
                Ok(Some(row)) if matches!(failure, Failure::Endless) || matches!(step, Some(Step::Stop { .. })) => {
                    let wait = row.next_attempt_at_ms.saturating_sub(self.inner.parts.registry.now_ms());
                    let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
                    return Next::After(wait.max(self.away.next(&self.inner.parts.entropy)));
                }
                Ok(Some(_)) => return Next::Again(None),
                Ok(None) => {}
                Err(error) => return self.wait_for_registry(&error),
            }
            match self.inner.read(row.id).await {
                // Only something was told of it meanwhile: the attempt counts.
                Ok(now) if now.generation == row.generation => row = now,
                Ok(_) | Err(registry::Error::NotFound) => return Next::Anew,
                Err(error) => return self.wait_for_registry(&error),
            }
        }
    }

    /// Does what may help when the engine refuses a start; `None` when all of that has been done in vain, and it is a failure.
    ///
    /// An engine that is killed in the middle of a start refuses every later one of the same unit. Either the process runs all
    /// the same, and the engine does not know of it: it must end, and then the unit starts. Or nothing runs, and only another
    /// unit will start. Everything that matters is outside of it.
    async fn clear_the_way(&mut self, row: &Row, cause: &str) -> Option<Next> {
        let engine = &self.inner.parts.engine;
        let observed = engine.observe(row.id).await.inspect_err(EngineError::count);
        let up = match observed {
            Ok(unit) => unit.is_some_and(|unit| unit.is_up()),
            Err(error) if error.kind == ErrorKind::Unavailable => return Some(self.lose_engine(row.clone()).await),
            Err(_) => return None,
        };
        if !std::mem::replace(&mut self.way.ended, true) {
            let found = tokio::select! {
                // One that is up is no stranger, and must not be asked.
                found = async { !up && self.inner.end_forgotten(row.id).await } => found,
                () = self.mailbox.superseded() => return Some(Next::Anew),
            };
            if up || found {
                tracing::warn!(cause, "the engine did not start it; once more");
                return Some(Next::After(FORGOTTEN));
            }
        }
        if std::mem::replace(&mut self.way.anew, true) {
            return None;
        }
        tracing::warn!(cause, "the engine does not start it; it is made anew");
        match engine.remove(row.id).await.inspect_err(EngineError::count) {
            Ok(()) => {
                let told = Progress { events: vec![renewed_as_broken()], ..Progress::default() };
                Some(match self.inner.write(row, &told).await {
                    Ok(Some(_)) => Next::Again(None),
                    Ok(None) => Next::Anew,
                    Err(error) => self.wait_for_registry(&error),
                })
            }
            Err(error) if error.kind == ErrorKind::Unavailable => {
                self.way.anew = false;
                Some(self.lose_engine(row.clone()).await)
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "and does not remove it");
                None
            }
        }
    }

    /// Wakes it before it sleeps: it is in use, or cannot be frozen.
    async fn keep_awake(&mut self, row: &Row, step: &'static str, cause: &str) -> Next {
        tracing::info!(step, cause, "it does not sleep after all");
        match self.inner.parts.registry.keep_awake(row.id, step).await {
            Ok((row, depth)) => {
                // Otherwise somebody came in between and woke it.
                if depth != Sleep::Awake {
                    metrics::counter!("beaver_sleeps_left_total", "step" => step).increment(1);
                }
                self.inner.parts.hub.publish(&row);
            }
            // Something else is wanted by now.
            Err(registry::Error::Down | registry::Error::NotFound) => {}
            Err(error) => return self.wait_for_registry(&error),
        }
        Next::Anew
    }

    /// Waits for something outside, without counting an attempt; says so once, and again when it is something else.
    async fn wait(&mut self, row: Row, told: InstanceError) -> Next {
        // What it was given up for, or was taken back for, is what its owner must know.
        let is_kept = outcome::is_given_up(&row) || row.error.as_ref().is_some_and(outcome::is_taken_back);
        let is_told =
            row.error.as_ref().is_some_and(|error| (&error.code, &error.detail) == (&told.code, &told.detail));
        if !is_kept && !is_told {
            let progress = outcome::waiting(told);
            match self.inner.write(&row, &progress).await {
                Ok(Some(_)) => {}
                Ok(None) => return Next::Anew,
                Err(error) => return self.wait_for_registry(&error),
            }
        }
        Next::After(self.away.next(&self.inner.parts.entropy))
    }

    pub(super) fn wait_for_registry(&mut self, error: &registry::Error) -> Next {
        tracing::warn!(error = chain(error), "the registry cannot be used; trying again");
        Next::After(self.away.next(&self.inner.parts.entropy))
    }
}
