//! When it is an instance's turn: to be brought up, or to go down for something of ours.

use std::time::Duration;

use contracts::deploy::{Desired, EventCode, Phase};
use tokio::sync::SemaphorePermit;

use super::{
    Inner,
    failure::Failure,
    line::Rank,
    outcome,
    rollout::Admission,
    worker::{Next, Worker},
};
use crate::{
    engine::{ErrorKind, InstanceSpec, NotRelease, Unit, UnitState, short_release},
    plan::{Observed, Seen, Step},
    registry::{NewEvent, Row},
};

/// How long one waits for the line to open before it looks whether the engine is there at all.
const STILL_THERE: Duration = Duration::from_secs(2);

impl Worker<'_> {
    /// Waits for its turn to be brought up. `None` when it has it and nothing has changed since `row` was read; else what
    /// comes next.
    pub(super) async fn line_up(&mut self, row: &Row, seen: &Observed, steps: &[Step]) -> Option<Next> {
        if self.turn.is_some() || !steps.contains(&Step::Start) {
            return None;
        }
        let line = &self.inner.line;
        tokio::select! {
            // It is no line that somebody waits in yet.
            () = line.opened() => {}
            () = self.mailbox.superseded() => return Some(Next::Anew),
            () = tokio::time::sleep(STILL_THERE) => return Some(Next::Anew),
        }
        let rank = match &seen.unit {
            // It only goes on: its memory is there.
            Seen::Unit { unit, .. }
                if unit.state == UnitState::Paused && !steps.contains(&Step::Stop { then_up: true }) =>
            {
                return None;
            }
            Seen::Unit { unit, .. } if unit.is_up() => Rank::Changing,
            // Whoever was there last comes first.
            _ => match row.last_used_ms.or(self.last_up_ms) {
                Some(at) if row.observed_generation == row.generation => Rank::Returning(-at),
                _ if row.registered => Rank::Wished(row.updated_at_ms),
                _ => Rank::Wished(row.created_at_ms),
            },
        };
        let mut turn = line.enter(row.id, rank);
        if let Ok(turn) = turn.try_recv() {
            self.turn = Some(turn);
            return None;
        }
        if !self.told_queued {
            match self.inner.write(row, &outcome::queued()).await {
                Ok(Some(_)) => self.told_queued = true,
                Ok(None) => return Some(Next::Anew),
                Err(error) => return Some(self.wait_for_registry(&error)),
            }
        }
        tokio::select! {
            turn = turn => self.turn = turn.ok(),
            () = self.mailbox.superseded() => {}
            // Perhaps the engine is lost.
            () = line.closed() => {}
        }
        // What was seen is from before.
        Some(Next::Anew)
    }
}

/// A turn to be down for something of ours, until it is up again, whatever comes in between.
pub(super) struct Renewal<'a> {
    _permit: SemaphorePermit<'a>,
    /// The release that it goes down for, where it is one.
    release: Option<String>,
    /// The wish that it goes back to.
    generation: i64,
}

impl<'a> Worker<'a> {
    /// Waits for a turn to go down for something of ours. One that is kept from before is fine.
    pub(super) async fn take_renewal(&mut self, row: &Row, seen: &Observed) -> Result<(), Failure> {
        if self.renewal.is_none() {
            let inner: &'a Inner = self.inner;
            let (permit, release) = inner.renewal(row, seen).await?;
            self.renewal = permit.map(|permit| Renewal { _permit: permit, release, generation: row.generation });
        }
        Ok(())
    }

    /// Gives the turn back once nobody waits for this one any more: something else is wanted, or it is given up.
    pub(super) fn review_renewal(&mut self, row: &Row) {
        let goes_on = |renewal: &Renewal<'_>| renewal.generation == row.generation && row.phase != Phase::Failed;
        if !self.renewal.as_ref().is_some_and(goes_on) {
            self.renewal = None;
        }
    }

    /// Which release it is not made from this time: one that others try at the moment, or that went back from too many. It
    /// comes up with what it ran before, and gets the other in its turn.
    pub(super) async fn hold_back(&mut self, row: &Row, steps: &[Step]) -> Result<Option<NotRelease>, Failure> {
        if !steps.contains(&Step::Create) {
            return Ok(None);
        }
        let inner: &'a Inner = self.inner;
        if row.release.is_none() {
            return inner.not_for_newcomers(&inner.spec(row)?).await;
        }
        let Some((before, newest)) = inner.other_release(row).await? else { return Ok(None) };
        if has_something_new(row) && !inner.rollouts.is_wide(&newest) {
            return Ok(Some(NotRelease { refused: newest, instead: before }));
        }
        if self.renewal.as_ref().is_some_and(|renewal| renewal.release.as_ref() == Some(&newest)) {
            return Ok(None);
        }
        match inner.rollouts.try_admit(&newest) {
            Admission::Free => Ok(None),
            Admission::Tries(permit) => {
                let (release, generation) = (Some(newest), row.generation);
                self.renewal = Some(Renewal { _permit: permit, release, generation });
                Ok(None)
            }
            Admission::Later => Ok(Some(NotRelease { refused: newest, instead: before.clone() })),
        }
    }
}

impl Worker<'_> {
    /// What is told of a unit that is made anew for something of ours.
    pub(super) async fn renewal_begun(&self, row: &Row, seen: &Observed, steps: &[Step]) -> Option<NewEvent> {
        let Seen::Unit { unit, .. } = &seen.unit else { return None };
        // Another plan is a wish, and told as one. Who was never up has seen nothing of it.
        let is_ours = row.desired == Desired::Running && unit.plan == row.plan && row.observed_generation > 0;
        if !is_ours || !steps.contains(&Step::Remove) {
            return None;
        }
        if unit.state == UnitState::Broken {
            return Some(renewed_as_broken());
        }
        let engine = &self.inner.parts.engine;
        let mut spec = self.inner.spec(row).ok()?;
        spec.not = self.held_back.clone().or(spec.not);
        if engine.fingerprint(&spec).await.ok()? == unit.fingerprint {
            // It stays what it is: what it was to be made from is held back by now.
            return None;
        }
        let to_be = engine.release(&spec).await.ok()?;
        let why = match to_be.filter(|to_be| unit.release.as_ref() != Some(to_be)) {
            Some(release) => format!("release {}", short_release(&release)),
            None => "settings".to_owned(),
        };
        Some(NewEvent::of(EventCode::RenewalBegun).detail(why))
    }

    /// The release with which it did not come up, when a failure may be the release's.
    pub(super) async fn tried_release(&self, row: &Row, step: Option<&Step>, failure: &Failure) -> Option<String> {
        let refused = matches!(failure, Failure::Engine(error) if error.kind == ErrorKind::Rejected)
            && matches!(step, Some(Step::Create | Step::Start));
        if !refused && !failure.is_unhealthy() {
            return None;
        }
        let engine = &self.inner.parts.engine;
        if let Ok(Some(unit)) = engine.observe(row.id).await {
            return unit.release;
        }
        engine.release(&self.inner.spec(row).ok()?).await.ok()?
    }
}

/// What is told of a unit that is made anew because nothing else helps.
pub(super) fn renewed_as_broken() -> NewEvent {
    NewEvent::of(EventCode::RenewalBegun).detail("broken")
}

impl Inner {
    /// The release that an instance ran, and the other one that it would be made from now.
    async fn other_release(&self, row: &Row) -> Result<Option<(String, String)>, Failure> {
        let Some(before) = &row.release else { return Ok(None) };
        let newest = self.newest_release(&self.spec(row)?).await?;
        Ok(newest.filter(|newest| newest != before).map(|newest| (before.clone(), newest)))
    }

    /// The release that a unit would be made from now, where there is one.
    async fn newest_release(&self, spec: &InstanceSpec) -> Result<Option<String>, Failure> {
        match self.parts.engine.release(spec).await {
            // That it is missing is for whoever makes it to say.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            newest => Ok(newest?),
        }
    }

    /// The release that is not for whoever has none of their own to go back to: others have not shown it to work.
    /// Not asked of other plans: with the image, what they say of its port and its command may have changed, and the one before
    /// would be told the same.
    pub(super) async fn not_for_newcomers(&self, spec: &InstanceSpec) -> Result<Option<NotRelease>, Failure> {
        if !spec.plan.is_workspace() {
            return Ok(None);
        }
        let Some(refused) = self.newest_release(spec).await? else { return Ok(None) };
        Ok(self.rollouts.instead(&refused).map(|instead| NotRelease { refused, instead }))
    }

    /// Whether a unit is not made from the newest release because it was held back, or would be again, and so goes on as it
    /// is for now. One that is settled is not: it waits for its turn as it runs.
    pub(super) async fn is_held_back(&self, row: &Row, unit: &Unit, has_turn: bool) -> Result<bool, Failure> {
        if row.release.is_none() {
            let mut spec = self.spec(row)?;
            spec.not = self.not_for_newcomers(&spec).await?;
            return Ok(spec.not.is_some() && self.parts.engine.fingerprint(&spec).await? == unit.fingerprint);
        }
        let is_settled = row.phase == Phase::Ready && unit.run.is_some() && unit.run == row.ready_run;
        if is_settled || has_turn || unit.release != row.release {
            return Ok(false);
        }
        let Some((before, newest)) = self.other_release(row).await? else { return Ok(false) };
        let has_room = match has_something_new(row) {
            true => self.rollouts.is_wide(&newest),
            false => self.rollouts.has_room(&newest),
        };
        if !unit.is_up() && has_room {
            return Ok(false);
        }
        let mut spec = self.spec(row)?;
        spec.not = Some(NotRelease { refused: newest, instead: before });
        Ok(self.parts.engine.fingerprint(&spec).await? == unit.fingerprint)
    }

    /// Waits for its turn to go down for something of ours; the release, where it is for one.
    async fn renewal(
        &self,
        row: &Row,
        seen: &Observed,
    ) -> Result<(Option<SemaphorePermit<'_>>, Option<String>), Failure> {
        let runs = match &seen.unit {
            Seen::Unit { unit, .. } => unit.release.as_ref(),
            _ => None,
        };
        let to_be = self.parts.engine.release(&self.spec(row)?).await?;
        match to_be.filter(|to_be| Some(to_be) != runs) {
            Some(release) => {
                let turn = self.rollouts.admit(&release).await;
                if let Some(before) = &row.release {
                    self.parts.engine.keep_release(before).await?;
                }
                Ok((Some(turn), Some(release)))
            }
            None => Ok((self.rollouts.admit_other().await, None)),
        }
    }
}

/// Whether something that runs and is reached goes down though nobody wished it: for another image, or another setting of the
/// operator's.
pub(super) fn is_renewal(row: &Row, seen: &Observed, steps: &[Step]) -> bool {
    let is_reached = seen.socket && seen.folders;
    is_reached && row.observed_generation == row.generation && steps.contains(&Step::Stop { then_up: true })
}

/// Whether it is to come up with something of its owner's that was not tried yet: then with no release that others have not
/// shown to work, or nobody could tell which of the two it does not come up with.
pub(super) fn has_something_new(row: &Row) -> bool {
    let archive = row.archive_pending() && row.refused_archive_generation != row.archive_generation;
    row.attempts == 0 && (archive || row.config_target() != row.applied_config_generation)
}
