//! What to do next: from what is wanted and what is seen, without doing anything.
//!
//! A plan leads all the way to the goal, but nobody relies on getting through it: each step looks before it acts, and after
//! an interruption the next plan begins from what is true then.

use contracts::{
    deploy::{Deletion, Desired, Phase, Sleep},
    routes::RouteState,
};

use crate::{
    engine::{Unit, UnitState},
    registry::Row,
};

/// What is seen of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its unit, as far as the engine can be asked.
    pub unit: Seen,
    /// Whether its folders are all there.
    pub folders: bool,
    /// Whether those that are there have the owner and the rights that they need.
    pub owned: bool,
    /// The generation of its current `config.json`; for one that reads none, the one that it should be.
    pub config: Option<i64>,
    /// The generation that its `config.json` names, whatever else stands in it.
    pub written: Option<i64>,
    /// Whether it has no `config.json` at all.
    pub blank: bool,
    /// The time on the tombstone in its folder: until when the data of one that is deleted is kept.
    pub tombstone: Option<i64>,
    /// Whether there is anything under the name of its socket, without which nobody reaches it.
    pub socket: bool,
}

/// An instance's unit, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The engine cannot be asked.
    Unknown,
    /// It has none.
    Absent,
    /// It has one.
    Unit {
        /// The unit.
        unit: Unit,
        /// Whether it is made from what it would be made from now.
        current: bool,
    },
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Say that the engine cannot be asked. Everything stays as it was.
    LoseEngine,
    /// Do nothing before this time, in Unix milliseconds.
    WaitUntil(i64),
    /// Say that it came down by itself, and count it.
    NoteDown,
    /// Make its folders.
    Prepare,
    /// Give its folders, and what is in its data, the owner and the rights that they need. They stay the same folders.
    Mend,
    /// Take over this generation, which is newer than any that the row knows of: the row was restored from before it.
    Adopt(i64),
    /// Make this generation's configuration the current one.
    UseConfig(i64),
    /// Stop its unit. `then_up`: only to start it again.
    Stop {
        /// Whether it is wanted up afterwards.
        then_up: bool,
    },
    /// Stop its unit, which runs and cannot be reached any more, and count it as one that came down by itself. One step: what
    /// was only told before a crash would be taken for a start that is still under way.
    TakeDown,
    /// Let nobody new to it, and wait for a while until whatever is under way is over.
    Drain,
    /// Make sure that nobody uses it, and that the router asks before anybody does.
    Quiet,
    /// Freeze its unit.
    Pause,
    /// Let its frozen unit go on from where it was.
    Resume,
    /// Say that it was down since it was wanted restarted.
    NoteRestarted,
    /// Remove its unit.
    Remove,
    /// Put the data of this archive in the place of its own.
    PutArchive(i64),
    /// Put its own data back in the place of this archive's.
    TakeArchiveBack(i64),
    /// Put a tombstone into its folder: its data is kept until this time. Without the very one that its row tells of, nothing of
    /// it is removed: a row that was restored from before somebody took a deletion back has none.
    PutTombstone(i64),
    /// Take the tombstone away: it is not deleted.
    TakeTombstone,
    /// Take its identity away.
    Revoke,
    /// Say that the time is over, and that nothing brings it back.
    Condemn,
    /// Remove its folders with everything in them.
    RemoveFolders,
    /// Make its unit.
    Create,
    /// Get a one-time token for it. Needs nothing of the unit.
    Identify,
    /// Start its unit.
    Start,
    /// Let its unit, which was made ahead, go on: it waits until there is a configuration. Needs nothing of that.
    Begin,
    /// Wait until it answers and says that it runs with this configuration.
    AwaitHealthy(i64),
    /// Give it its owner and its own identity.
    Register,
    /// Say that the goal is reached.
    Settle(Goal),
}

/// Where plans end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Goal {
    /// Up and reachable.
    Ready,
    /// Frozen, because nobody uses it.
    Paused,
    /// Down, because nobody uses it.
    Asleep,
    /// Down, because it is wanted so.
    Stopped,
    /// Down, because it cannot be brought up.
    Failed,
    /// Deleted, with its data kept for a while.
    PendingDeletion,
    /// Gone.
    Deleted,
}

impl Goal {
    /// The phase there, and what the router is told.
    pub fn marks(self) -> (Phase, RouteState) {
        match self {
            Self::Ready => (Phase::Ready, RouteState::Running),
            Self::Paused => (Phase::Paused, RouteState::Paused),
            Self::Asleep => (Phase::Asleep, RouteState::Asleep),
            Self::Stopped => (Phase::Stopped, RouteState::Stopped),
            Self::Failed => (Phase::Failed, RouteState::Failed),
            Self::PendingDeletion => (Phase::PendingDeletion, RouteState::Deleted),
            Self::Deleted => (Phase::Deleted, RouteState::Deleted),
        }
    }
}

/// The steps from what is seen to what is wanted; none when that is so already.
pub fn plan(row: &Row, seen: &Observed, now_ms: i64) -> Vec<Step> {
    let (unit, current) = match &seen.unit {
        // Already said, or true whatever the engine does.
        Seen::Unknown if row.phase == Phase::Unknown || is_down(row.phase) => return Vec::new(),
        Seen::Unknown if row.phase == Phase::Asleep && row.sleep == Sleep::Stopped => return Vec::new(),
        Seen::Unknown => return vec![Step::LoseEngine],
        Seen::Absent => (None, true),
        Seen::Unit { unit, current } => (Some(unit), *current),
    };
    if let Some(there) = seen.written.filter(|there| *there > row.config_generation)
        && row.plan.is_workspace()
        && row.desired != Desired::Deleted
    {
        return vec![Step::Adopt(there)];
    }
    match row.desired {
        Desired::Running if row.phase == Phase::Failed => alive(seen, down(row, unit, Goal::Failed)),
        Desired::Running => match row.sleep {
            Sleep::Awake => up(row, seen, unit, current, now_ms),
            Sleep::Paused => alive(seen, paused(row, unit)),
            Sleep::Stopped => alive(seen, asleep(row, unit)),
        },
        Desired::Stopped => alive(seen, down(row, unit, Goal::Stopped)),
        Desired::Deleted => {
            if let Some(deletion) = row.deletion {
                return deleted(row, deletion, seen, unit, now_ms);
            }
            let mut steps = down(row, unit, Goal::Deleted);
            let settle = steps.iter().position(|step| matches!(step, Step::Settle(_)));
            // What could not be removed is tried again, but not at once.
            if settle.is_some() && row.next_attempt_at_ms > now_ms {
                return vec![Step::WaitUntil(row.next_attempt_at_ms)];
            }
            if settle.is_some() && !row.has_its_owner() {
                // Nobody ever had it, or it could not be wanted gone. Last, since its unit has them mounted.
                steps.insert(steps.len() - 1, Step::RemoveFolders);
            }
            if settle.is_some() {
                // It may have got its identity before anybody wrote down that it has.
                let at = steps.iter().position(|step| matches!(step, Step::RemoveFolders | Step::Settle(_)));
                steps.insert(at.unwrap_or(steps.len()), Step::Revoke);
            }
            if unit.is_some() {
                // After stopping, before saying that it is gone.
                let after = |step: &Step| matches!(step, Step::Revoke | Step::RemoveFolders | Step::Settle(_));
                steps.insert(steps.iter().position(after).unwrap_or(steps.len()), Step::Remove);
            }
            steps
        }
    }
}

/// Whether an instance in this phase is down, whatever the engine says.
pub fn is_down(phase: Phase) -> bool {
    matches!(phase, Phase::Stopped | Phase::Failed | Phase::PendingDeletion | Phase::Deleting | Phase::Deleted)
}

/// The steps, for one that is not deleted, or not any more.
fn alive(seen: &Observed, mut steps: Vec<Step>) -> Vec<Step> {
    if seen.tombstone.is_some() {
        steps.insert(0, Step::TakeTombstone);
    }
    steps
}

/// Down and without its identity at once; without its data when the time for that has come.
fn deleted(row: &Row, deletion: Deletion, seen: &Observed, unit: Option<&Unit>, now_ms: i64) -> Vec<Step> {
    let until = deletion.data_until_ms;
    let (phase, route) = Goal::PendingDeletion.marks();
    let said = row.phase == phase && row.route == Some(route) && row.observed_generation == row.generation;
    let marked = seen.tombstone == Some(until);
    match row.phase {
        Phase::Deleted if unit.is_none() => return Vec::new(),
        _ if said && marked && unit.is_none() && now_ms < until => return Vec::new(),
        // What could not be done is tried again, but not at once.
        _ if row.next_attempt_at_ms > now_ms => return vec![Step::WaitUntil(row.next_attempt_at_ms)],
        _ => {}
    }
    let mut steps = Vec::new();
    if unit.is_some_and(|unit| matches!(unit.state, UnitState::Running | UnitState::Paused)) {
        steps.push(Step::Stop { then_up: false });
    }
    if unit.is_some() {
        steps.push(Step::Remove);
    }
    match row.phase {
        // It was begun, with the tombstone there: that goes with everything else.
        Phase::Deleting => steps.extend([Step::RemoveFolders, Step::Settle(Goal::Deleted)]),
        Phase::Deleted => steps.push(Step::Settle(Goal::Deleted)),
        // A step of its own, so that it is written down before anything is removed.
        _ if said && marked && steps.is_empty() => steps.push(Step::Condemn),
        _ => {
            if !marked {
                // Missing, where it was once: this row is older than what is there, and whoever it belongs to gets all of
                // the time again.
                let kept_ms = until - deletion.asked_at_ms;
                let is_new = !said && now_ms < until;
                steps.push(Step::PutTombstone(if is_new { until } else { now_ms.saturating_add(kept_ms) }));
            }
            if !said {
                steps.push(Step::Revoke);
            }
            steps.push(Step::Settle(Goal::PendingDeletion));
        }
    }
    steps
}

fn down(row: &Row, unit: Option<&Unit>, goal: Goal) -> Vec<Step> {
    let mut steps = Vec::new();
    if unit.is_some_and(|unit| matches!(unit.state, UnitState::Running | UnitState::Paused)) {
        steps.push(Step::Stop { then_up: false });
    }
    let (phase, route) = goal.marks();
    let said = row.phase == phase && row.route == Some(route) && row.observed_generation == row.generation;
    if !said || !steps.is_empty() {
        steps.push(Step::Settle(goal));
    }
    steps
}

/// What is not as it would be made now stays so until it wakes: nobody is waiting for it.
fn paused(row: &Row, unit: Option<&Unit>) -> Vec<Step> {
    let settle = Step::Settle(Goal::Paused);
    match unit {
        Some(unit) if unit.state == UnitState::Running && unit.run == row.ready_run => {
            vec![Step::Quiet, Step::Pause, settle]
        }
        Some(unit) if unit.state == UnitState::Paused => {
            let (phase, route) = Goal::Paused.marks();
            let said = row.phase == phase && row.route == Some(route) && row.observed_generation == row.generation;
            if said { Vec::new() } else { vec![settle] }
        }
        // Its memory is lost already, as with the engine: then there is nothing to hold.
        _ => asleep(row, unit),
    }
}

fn asleep(row: &Row, unit: Option<&Unit>) -> Vec<Step> {
    let mut steps = down(row, unit, Goal::Asleep);
    if unit.is_some_and(|unit| unit.state == UnitState::Running) {
        steps.insert(0, Step::Quiet);
    }
    if steps.is_empty() && row.sleep != Sleep::Stopped {
        steps.push(Step::Settle(Goal::Asleep));
    }
    steps
}

fn up(row: &Row, seen: &Observed, unit: Option<&Unit>, current: bool, now_ms: i64) -> Vec<Step> {
    let target = row.config_target();
    let state = unit.map(|unit| unit.state);
    let running = state == Some(UnitState::Running);
    // The process is the one that was found healthy; it may be frozen now.
    let known_run = row.ready_run.is_some() && unit.and_then(|unit| unit.run.as_ref()) == row.ready_run.as_ref();
    let reconfigured = target != row.applied_config_generation;
    let fulfilled = running
        && known_run
        && row.has_its_owner()
        && row.phase == Phase::Ready
        && row.route == Some(RouteState::Running)
        && row.observed_generation == row.generation
        && !reconfigured
        && !row.restart_pending()
        && !row.archive_pending()
        && seen.folders
        && seen.owned
        && seen.socket
        && seen.config == Some(target)
        && seen.tombstone.is_none()
        && current;
    if fulfilled {
        return Vec::new();
    }
    if row.next_attempt_at_ms > now_ms {
        return vec![Step::WaitUntil(row.next_attempt_at_ms)];
    }
    // A folder that was lost has taken the configuration with it, and is not the one that is mounted any more.
    let lost = !seen.folders;
    let use_config = row.plan.is_workspace() && (seen.config != Some(target) || lost);
    let renew = unit.is_some() && (!current || state == Some(UnitState::Broken));
    let process_is_old = known_run && reconfigured;
    // Stopped for one of these, and then something came in between.
    let on_purpose = reconfigured
        || row.restart_pending()
        || row.archive_pending()
        || renew
        || lost
        || use_config
        || state == Some(UnitState::Paused);
    if row.ready_run.is_some() && !running && !on_purpose {
        return vec![Step::NoteDown];
    }
    // Nothing was ever found healthy here, and there is nothing to be read: what is up was made ahead, and waits for it.
    let waits = row.observed_generation == 0 && seen.blank;
    let use_config_anew = use_config && !waits;
    let must_go_down =
        renew || lost || use_config_anew || row.restart_pending() || row.archive_pending() || process_is_old;

    // Nothing of it has changed, so it goes on where it was.
    let resumes = state == Some(UnitState::Paused) && known_run && row.has_its_owner() && !must_go_down;
    if running && known_run && !seen.socket && !must_go_down {
        // It had one. Whoever took it away, perhaps the instance itself, it is as good as down.
        return vec![Step::TakeDown];
    }

    let mut steps = alive(seen, Vec::new());
    let mut is_up = running;
    // Down before anything is exchanged under it: were the exchange first, and the last thing done before a crash, nothing
    // would tell any more that the process is from before.
    if must_go_down && matches!(state, Some(UnitState::Running | UnitState::Paused)) {
        // Somebody may be in the middle of something; whoever asked for a restart, or for other data, knows that.
        if running && known_run && seen.socket && !lost && !row.restart_pending() && !row.archive_pending() {
            steps.push(Step::Drain);
        }
        steps.push(Step::Stop { then_up: true });
        is_up = false;
    }
    if row.restart_pending() {
        steps.push(Step::NoteRestarted);
    }
    if renew {
        steps.push(Step::Remove);
    }
    if row.archive_pending() {
        // Before anything that is missing is made: between two renames its data may be.
        let generation = row.archive_generation;
        let refused = row.refused_archive_generation == generation;
        steps.push(if refused { Step::TakeArchiveBack(generation) } else { Step::PutArchive(generation) });
    }
    if lost {
        steps.push(Step::Prepare);
    } else if !seen.owned {
        steps.push(Step::Mend);
    }
    if use_config {
        steps.push(Step::UseConfig(target));
    }
    if unit.is_none() || renew {
        steps.push(Step::Create);
    }
    if resumes {
        steps.push(Step::Resume);
        is_up = true;
    }
    if !is_up {
        if !row.has_its_owner() {
            steps.push(Step::Identify);
        }
        let was_made_ahead = waits && state == Some(UnitState::Paused) && !must_go_down;
        steps.push(if was_made_ahead { Step::Begin } else { Step::Start });
    }
    if !(is_up && known_run && row.has_its_owner()) {
        steps.push(Step::AwaitHealthy(target));
    }
    if !row.has_its_owner() {
        steps.push(Step::Register);
    }
    steps.push(Step::Settle(Goal::Ready));
    steps
}
