//! What steps mean for the row: as they begin, when they have succeeded, and when they have not. Nothing is done here.

use contracts::{
    deploy::{Desired, EventCode, InstanceError, Phase, Sleep},
    routes::RouteState,
};

use crate::{
    engine::short_release,
    plan::{Goal, Step},
    registry::{NewEvent, Progress, Row},
};

/// Failed attempts, since the last wish or quiet time, after which it is not tried again by itself.
pub(super) const ATTEMPTS: i64 = 4;
/// How long it must have been up for an end to be a new matter rather than one more of the same.
pub(super) const QUIET_MS: i64 = 5 * 60 * 1_000;

/// What else a meaning depends on.
pub(super) struct Context<'a> {
    /// What time it is, in Unix milliseconds.
    pub(super) now_ms: i64,
    /// When this process began to look after instances, in Unix milliseconds.
    pub(super) began_ms: i64,
    /// The run that was found healthy.
    pub(super) run: Option<&'a str>,
    /// The last lines of a program that came down.
    pub(super) log: &'a [String],
    /// The release that it is healthy with, or with which it does not come up.
    pub(super) release: Option<&'a str>,
    /// How long to wait after the n-th failure, in milliseconds.
    pub(super) wait_ms: &'a dyn Fn(u32) -> i64,
}

impl Context<'_> {
    /// When it is tried again after so many failed attempts, in Unix milliseconds.
    fn next_ms(&self, attempts: i64) -> i64 {
        self.now_ms.saturating_add((self.wait_ms)(u32::try_from(attempts).unwrap_or(u32::MAX)))
    }
}

/// What a step means as it begins.
pub(super) fn before(row: &Row, step: &Step) -> Progress {
    let phase = |phase| Progress { phase: Some(phase), ..Progress::default() };
    // The router opens an instance's ways out while its container is made.
    let coming_up = |phase| Progress { phase: Some(phase), route: Some(RouteState::Starting), ..Progress::default() };
    match step {
        Step::Prepare => phase(Phase::Preparing),
        Step::Create => coming_up(Phase::Creating),
        Step::Start | Step::Begin => coming_up(Phase::Starting),
        Step::AwaitHealthy(_) if row.phase != Phase::Starting => coming_up(Phase::Starting),
        Step::Register => phase(Phase::Registering),
        // That the engine was away is what tells afterwards that nothing of it counts.
        Step::TakeDown if row.phase == Phase::Unknown => {
            Progress { route: Some(RouteState::Starting), ..Progress::default() }
        }
        Step::Drain | Step::TakeDown | Step::Stop { then_up: true } => coming_up(Phase::Stopping),
        // It is given up, and stays so meanwhile: whoever wants it up again is heard, and a crash gives it no other try.
        Step::Stop { then_up: false } if is_given_up(row) => Progress::default(),
        Step::Stop { then_up: false } => phase(Phase::Stopping),
        Step::PutTombstone(until) => Progress { data_until_ms: Some(*until), ..Progress::default() },
        _ => Progress::default(),
    }
}

/// What a step means once it has succeeded.
pub(super) fn after(row: &Row, step: &Step, context: &Context<'_>) -> Progress {
    let event = |code| Progress { events: vec![NewEvent::of(code)], ..Progress::default() };
    match step {
        Step::Prepare if !row.registered => event(EventCode::Prepared),
        Step::Create => event(EventCode::Created),
        Step::Start | Step::Begin => event(EventCode::Started),
        Step::Resume => event(EventCode::Woken),
        Step::AwaitHealthy(_) => event(EventCode::Healthy),
        Step::Register => Progress { registered: Some(true), ..event(EventCode::Registered) },
        Step::Stop { .. } => Progress {
            ready: Some(None),
            // What went wrong before it ran well says nothing of the next start.
            attempts: row.ready_at_ms.is_some_and(|since| is_quiet(since, context)).then_some((0, 0)),
            ..Progress::default()
        },
        Step::NoteRestarted => Progress {
            applied_restart_generation: Some(row.restart_generation),
            ready: Some(None),
            ..Progress::default()
        },
        Step::NoteDown | Step::TakeDown => came_down(row, context),
        Step::Adopt(generation) => Progress {
            config_generation: Some(*generation),
            applied_config_generation: Some(*generation),
            ready: Some(None),
            events: vec![NewEvent::of(EventCode::ConfigApplied).detail(*generation)],
            ..Progress::default()
        },
        Step::Condemn => Progress { phase: Some(Phase::Deleting), ..Progress::default() },
        Step::Settle(goal) => settled(row, *goal, context),
        _ => Progress::default(),
    }
}

/// What it means that the engine cannot be asked.
pub(super) fn engine_lost() -> Progress {
    Progress { phase: Some(Phase::Unknown), events: vec![NewEvent::of(EventCode::EngineLost)], ..Progress::default() }
}

/// What it means that something outside of the instance is waited for.
pub(super) fn waiting(why: InstanceError) -> Progress {
    let events = vec![NewEvent::of(EventCode::AttemptFailed).detail(&why.code)];
    Progress { error: Some(Some(why)), events, ..Progress::default() }
}

/// What it means that others are brought up first. Who visits it waits too.
pub(super) fn queued() -> Progress {
    Progress { route: Some(RouteState::Starting), events: vec![NewEvent::of(EventCode::Queued)], ..Progress::default() }
}

/// What it means that a run went wrong in a way that says nothing of what is new, and has ended.
pub(super) fn excused() -> Progress {
    Progress { ready: Some(None), ..Progress::default() }
}

/// What it means that an instance does not know its owner any more.
pub(super) fn registration_lost() -> Progress {
    Progress { registered: Some(false), ..Progress::default() }
}

/// What a failed attempt means: another one later, or none any more. A new configuration under which the instance does not
/// come up (`unhealthy`) is taken back instead.
pub(super) fn failed(row: &Row, why: InstanceError, unhealthy: bool, context: &Context<'_>) -> Progress {
    let archive = row.archive_generation;
    if unhealthy && row.archive_pending() && row.refused_archive_generation != archive {
        let error = InstanceError {
            code: RESTORE_NOT_ACCEPTED.into(),
            detail: "The workspace did not come up with the data from the archive; its own is back.".into(),
            cause: Some(why.code.clone()),
            log: why.log,
        };
        return Progress {
            refused_archive_generation: Some(archive),
            error: Some(Some(error)),
            ready: Some(None),
            events: vec![NewEvent::of(EventCode::RestoreRolledBack).detail(why.code)],
            ..Progress::default()
        };
    }
    let target = row.config_target();
    // One without its owner has one that held before all the same, where it had it and was deleted or restored.
    let has_one_that_held = row.registered || row.applied_config_generation > 0;
    if unhealthy && has_one_that_held && target != row.applied_config_generation {
        let error = InstanceError {
            code: CONFIG_NOT_ACCEPTED.into(),
            detail: "The workspace did not come up with the new configuration; the one before is back.".into(),
            cause: Some(why.code.clone()),
            log: why.log,
        };
        return Progress {
            refused_config_generation: Some(target),
            error: Some(Some(error)),
            ready: Some(None),
            events: vec![NewEvent::of(EventCode::ConfigRolledBack).detail(format!("{target} {}", why.code))],
            ..Progress::default()
        };
    }
    if let Some(tried) = release_to_blame(row, context.release) {
        return Progress {
            refused_release: Some(tried.to_owned()),
            ready: Some(None),
            events: vec![NewEvent::of(EventCode::ReleaseRolledBack).detail(format!(
                "{} {}",
                short_release(tried),
                why.code
            ))],
            ..Progress::default()
        };
    }
    let attempts = row.attempts + 1;
    let mut progress = Progress {
        attempts: Some((attempts, context.next_ms(attempts))),
        ready: Some(None),
        events: vec![NewEvent::of(EventCode::AttemptFailed).detail(&why.code)],
        ..Progress::default()
    };
    // What it was given up for is the reason, whatever else goes wrong as it is stopped.
    if !is_given_up(row) {
        // What is to be deleted is, however long that takes.
        if attempts >= ATTEMPTS && row.deletion.is_none() {
            progress.then(given_up(why.clone()));
        }
        progress.error = Some(Some(why));
    }
    progress
}

/// The release that was tried, where it is another than the one that worked before and did not go back already.
pub(super) fn release_to_blame<'a>(row: &Row, tried: Option<&'a str>) -> Option<&'a str> {
    let before = row.release.as_deref().filter(|_| row.has_its_owner())?;
    tried.filter(|tried| *tried != before && row.refused_release.as_deref() != Some(*tried))
}

/// Whether it is wanted up, and is not brought up any more.
pub(super) fn is_given_up(row: &Row) -> bool {
    row.phase == Phase::Failed && row.desired == Desired::Running
}

/// The error that says that a configuration did not hold.
const CONFIG_NOT_ACCEPTED: &str = "config_not_accepted";
/// The error that says that data from an archive did not hold.
const RESTORE_NOT_ACCEPTED: &str = "restore_not_accepted";

/// Whether an error says that something of its owner's did not hold, and what was before is back.
pub(super) fn is_taken_back(error: &InstanceError) -> bool {
    [CONFIG_NOT_ACCEPTED, RESTORE_NOT_ACCEPTED].contains(&&*error.code)
}

/// What it means that it is not tried again by itself.
pub(super) fn given_up(why: InstanceError) -> Progress {
    let (phase, route) = Goal::Failed.marks();
    let events = vec![NewEvent::of(EventCode::Failed).detail(&why.code)];
    Progress { phase: Some(phase), route: Some(route), error: Some(Some(why)), events, ..Progress::default() }
}

/// It came down by itself: at once again the first time, later and later when it goes on, then not any more.
///
/// What came down while nobody could see it – with the engine, or while this process was not there – counts for nothing:
/// it was the host that was restarted, however often.
fn came_down(row: &Row, context: &Context<'_>) -> Progress {
    let quiet = row.ready_at_ms.is_none_or(|since| is_quiet(since, context));
    let unseen = row.phase == Phase::Unknown || row.ready_at_ms.is_some_and(|since| since < context.began_ms);
    let attempts = match (quiet, unseen) {
        (true, _) => 0,
        (false, true) => row.attempts,
        (false, false) => row.attempts + 1,
    };
    // The first time is a mishap: nobody shall wait for it.
    let next_ms = if attempts <= 1 || unseen { context.now_ms } else { context.next_ms(attempts - 1) };
    let mut progress = Progress { attempts: Some((attempts, next_ms)), ready: Some(None), ..Progress::default() };
    if attempts >= ATTEMPTS && !unseen {
        let detail = "The workspace ended by itself again and again.".into();
        let log = context.log.to_vec();
        progress.then(given_up(InstanceError { code: "crash_loop".into(), detail, log, ..Default::default() }));
    } else {
        (progress.phase, progress.route) = (Some(Phase::Starting), Some(RouteState::Starting));
        progress.events.push(NewEvent::of(EventCode::Recovered));
    }
    progress
}

/// Whether it ran well for so long that what went wrong before is forgotten.
fn is_quiet(ready_at_ms: i64, context: &Context<'_>) -> bool {
    context.now_ms.saturating_sub(ready_at_ms) >= QUIET_MS
}

fn settled(row: &Row, goal: Goal, context: &Context<'_>) -> Progress {
    let (phase, route) = goal.marks();
    let mut progress = Progress {
        phase: Some(phase),
        route: Some(route),
        observed_generation: Some(row.generation),
        ..Progress::default()
    };
    match goal {
        Goal::Ready => {
            let target = row.config_target();
            if target != row.applied_config_generation {
                progress.applied_config_generation = Some(target);
                progress.events.push(NewEvent::of(EventCode::ConfigApplied).detail(target));
            }
            if row.archive_pending() {
                progress.applied_archive_generation = Some(row.archive_generation);
                if row.refused_archive_generation != row.archive_generation {
                    progress.events.push(NewEvent::of(EventCode::Restored));
                }
            }
            if let Some(run) = context.run {
                progress.ready = Some(Some((run.to_owned(), context.now_ms)));
                progress.events.push(NewEvent::of(EventCode::Ready));
                if let Some(release) = context.release.filter(|release| row.release.as_deref() != Some(*release)) {
                    progress.release = Some(release.to_owned());
                    if row.release.is_some() {
                        progress.events.push(NewEvent::of(EventCode::Upgraded).detail(short_release(release)));
                    }
                }
            }
            // That the last change did not hold stays told until the next wish.
            let stays = |code: &str| [CONFIG_NOT_ACCEPTED, RESTORE_NOT_ACCEPTED].contains(&code);
            if row.error.as_ref().is_some_and(|error| !stays(&error.code)) {
                progress.error = Some(None);
            }
        }
        Goal::Paused => {
            if row.observed_generation != row.generation && row.phase != phase {
                progress.events.push(NewEvent::of(EventCode::Paused));
            }
        }
        Goal::Asleep => {
            (progress.ready, progress.sleep) = (Some(None), Some(Sleep::Stopped));
            // Also when it was only to be paused, and its memory was lost.
            if (row.observed_generation != row.generation && row.phase != phase) || row.sleep != Sleep::Stopped {
                progress.events.push(NewEvent::of(EventCode::Asleep));
            }
        }
        Goal::Stopped => {
            progress.ready = Some(None);
            // Not once more when only the engine was away meanwhile.
            if row.route != Some(route) || row.observed_generation != row.generation {
                progress.events.push(NewEvent::of(EventCode::Stopped));
            }
        }
        Goal::PendingDeletion => (progress.ready, progress.error) = (Some(None), Some(None)),
        Goal::Deleted => {
            (progress.ready, progress.error) = (Some(None), Some(None));
            // One that is discarded was nobody's.
            if row.deletion.is_some() && row.phase != phase {
                progress.events.push(NewEvent::of(EventCode::Deleted));
            }
        }
        // It was told when it failed.
        Goal::Failed => {}
    }
    progress
}
