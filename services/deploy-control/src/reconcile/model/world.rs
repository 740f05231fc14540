//! A world of plain values, to which the steps are done.

use contracts::deploy::{Desired, Phase, Sleep};

use super::outcome::{self, Context};
use crate::{
    engine::{Unit, UnitState},
    plan::{Goal, Observed, Seen, Step, plan},
    registry::{self, Progress, Row, Wish, wished},
};

/// Why an instance that was waited for is not as it must be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unwell {
    OldConfig,
    Sick,
}

/// Everything there is of one instance.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) row: Row,
    pub(super) unit: Option<Container>,
    pub(super) folders: bool,
    pub(super) owned: bool,
    /// The time on its tombstone.
    pub(super) tombstone: Option<i64>,
    /// Whether authz has an identity for it.
    pub(super) identity: bool,
    /// Whether it knows its owner, as far as its data tells it.
    pub(super) has_owner: bool,
    pub(super) config: Option<i64>,
    /// Whether its data was ever removed.
    pub(super) wiped: bool,
    /// Whether its data is an archive's, whether that is still beside it, and whether its own is.
    pub(super) archive: (bool, bool, bool),
    /// Whether it does not come up with the archive's data.
    pub(super) sick: bool,
    /// Whether its socket is there.
    pub(super) socket: bool,
    pub(super) runs: u32,
    pub(super) now_ms: i64,
    /// How often an instance was waited for that ran with an older configuration.
    pub(super) failures: u32,
    /// Whether somebody uses it just now.
    pub(super) in_use: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) state: UnitState,
    pub(super) run: u32,
    pub(super) current: bool,
    /// The configuration that its process has read, or [`UNREAD`].
    pub(super) config: i64,
}

/// None: it was made ahead, and waits until there is one.
pub(super) const UNREAD: i64 = -1;

impl Container {
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, UnitState::Running | UnitState::Paused)
    }

    /// It gets time, and somebody asks it: what waits for a configuration looks whether there is one.
    fn is_asked(&mut self, config: Option<i64>) {
        if self.config == UNREAD {
            self.config = config.unwrap_or(UNREAD);
        }
    }
}

impl World {
    pub(super) fn observed(&self) -> Observed {
        let unit = match &self.unit {
            None => Seen::Absent,
            Some(container) => Seen::Unit {
                unit: Unit {
                    id: self.row.id,
                    state: container.state,
                    fingerprint: String::new(),
                    plan: self.row.plan.clone(),
                    release: None,
                    run: container.is_up().then(|| container.run.to_string()),
                },
                current: container.current,
            },
        };
        // As the worker sees it: what reads no configuration has the one that it should have.
        let config = if self.row.plan.is_workspace() { self.config } else { Some(self.row.config_target()) };
        let Self { folders, owned, tombstone, socket, .. } = *self;
        let (written, blank) = (self.config, self.config.is_none());
        Observed { unit, folders, owned, config, written, blank, tombstone, socket }
    }

    pub(super) fn plan(&self) -> Vec<Step> {
        plan(&self.row, &self.observed(), self.now_ms)
    }

    /// Does what a step does. The run it found healthy; or that it runs with an older configuration.
    pub(super) fn act(&mut self, step: &Step) -> Result<Option<String>, Unwell> {
        match step {
            Step::WaitUntil(at) => self.now_ms = *at,
            Step::Prepare => (self.folders, self.owned) = (true, true),
            Step::Mend => {
                assert!(self.folders && !self.owned, "only what is there and wrong is mended");
                self.owned = true;
            }
            Step::UseConfig(generation) => {
                assert!(self.folders, "a configuration needs its folder");
                assert!(self.row.plan.is_workspace(), "nobody else's program gets one");
                self.config = Some(*generation);
            }
            Step::Drain => {
                assert!(self.unit.as_ref().is_some_and(Container::is_up), "nobody uses what is down");
                assert_ne!(self.row.route, Some(contracts::routes::RouteState::Running), "nobody new gets to it");
            }
            Step::Quiet => {
                assert!(self.unit.as_ref().is_some_and(Container::is_up), "nobody uses what is down");
                if self.in_use {
                    return Err(Unwell::OldConfig);
                }
            }
            Step::Pause => {
                let container = self.unit.as_mut().expect("only what is there is frozen");
                assert_eq!(container.state, UnitState::Running);
                assert!(!self.in_use, "whoever uses it would wait for ever");
                container.state = UnitState::Paused;
            }
            Step::Resume => {
                let container = self.unit.as_mut().expect("only what is there goes on");
                assert_eq!(container.state, UnitState::Paused);
                container.state = UnitState::Running;
            }
            Step::Stop { .. } | Step::TakeDown => {
                let container = self.unit.as_mut().expect("only what is there is stopped");
                assert!(container.is_up(), "only what is up is stopped");
                container.state = UnitState::Exited;
            }
            Step::Remove => self.unit = None,
            Step::RemoveFolders => {
                assert!(self.unit.is_none(), "nothing has them mounted");
                assert!(!self.row.registered && self.row.desired == Desired::Deleted, "nobody's data");
                assert!(self.row.deletion.is_none() || self.row.phase == Phase::Deleting, "it is written down before");
                self.tombstone = None;
                (self.folders, self.config, self.wiped) = (false, None, true);
            }
            Step::Create => {
                assert!(self.unit.is_none() && self.folders, "made once, on its folders");
                self.unit = Some(Container { state: UnitState::Created, run: 0, current: true, config: 0 });
            }
            Step::Start => {
                let container = self.unit.as_mut().expect("only what is there is started");
                assert_ne!(container.state, UnitState::Running);
                assert!(self.owned, "it could not read or write anything");
                if container.state != UnitState::Paused {
                    self.runs += 1;
                    container.run = self.runs;
                    self.socket = true;
                    if self.row.plan.is_workspace() {
                        container.config = self.config.expect("it reads its configuration");
                    }
                }
                container.state = UnitState::Running;
            }
            Step::Begin => {
                let container = self.unit.as_mut().expect("only what is there goes on");
                assert!(container.state == UnitState::Paused && container.config == UNREAD, "it was made ahead");
                container.state = UnitState::Running;
            }
            Step::AwaitHealthy(wanted) => {
                let container = self.unit.as_mut().filter(|container| container.is_up()).expect("it is up");
                container.is_asked(self.config);
                if (self.row.plan.is_workspace() && container.config != *wanted) || !self.socket {
                    return Err(Unwell::OldConfig);
                }
                if self.archive.0 && self.sick {
                    return Err(Unwell::Sick);
                }
                return Ok(Some(container.run.to_string()));
            }
            Step::Register => {
                assert!(self.unit.as_ref().is_some_and(Container::is_up), "it can answer");
                assert!(self.row.plan.is_workspace(), "nobody else's program takes an owner");
                (self.has_owner, self.identity) = (true, true);
            }
            Step::Identify => assert!(self.row.plan.is_workspace(), "nobody else's program has an identity"),
            Step::PutArchive(_) => {
                assert!(!self.unit.as_ref().is_some_and(Container::is_up), "nothing runs with the data");
                let (_, is_beside, was_begun) = self.archive;
                assert!(is_beside || was_begun, "there is something to put");
                self.archive = (true, false, true);
            }
            Step::TakeArchiveBack(_) => {
                assert!(!self.unit.as_ref().is_some_and(Container::is_up), "nothing runs with the data");
                self.archive = (false, self.archive.1, false);
            }
            Step::PutTombstone(until) => {
                assert_eq!(self.row.desired, Desired::Deleted);
                assert!(*until > self.now_ms, "nothing is removed that was not there to be taken back");
                self.tombstone = Some(*until);
            }
            Step::TakeTombstone => {
                assert_ne!(self.row.desired, Desired::Deleted);
                self.tombstone = None;
            }
            Step::Revoke => {
                assert!(self.unit.is_none() && self.row.desired == Desired::Deleted, "nothing runs with it any more");
                self.identity = false;
            }
            Step::Condemn => {
                let until = self.row.deletion.expect("it is deleted").data_until_ms;
                assert!(
                    self.now_ms >= until && self.tombstone == Some(until),
                    "not before its time, and not by an old row"
                );
                assert!(self.unit.is_none() && !self.identity, "it is down and without identity");
            }
            Step::Adopt(generation) => assert_eq!(self.config, Some(*generation), "only what is there is taken over"),
            Step::LoseEngine | Step::NoteDown | Step::NoteRestarted | Step::Settle(_) => {}
        }
        Ok(None)
    }

    /// Takes the first `count` steps of a plan; `written` says whether what the last means is written, or lost in a crash.
    pub(super) fn take(&mut self, steps: &[Step], count: usize, written: bool) {
        let (mut pending, mut run) = (Progress::default(), None);
        for (n, step) in steps.iter().take(count).enumerate() {
            pending.then(outcome::before(&pending.applied_to(self.row.clone()), step));
            self.row = pending.applied_to(self.row.clone());
            let found = self.act(step);
            let wait_ms = |failures: u32| i64::from(failures) * 100;
            match found {
                Ok(found) => run = found.or(run),
                Err(_) if *step == Step::Quiet => {
                    self.row = registry::awake(self.row.clone()).expect("it was to sleep");
                    return;
                }
                Err(unwell) => {
                    self.failures += u32::from(unwell == Unwell::OldConfig);
                    if let Some(container) = &mut self.unit {
                        container.state = UnitState::Exited;
                    }
                    let context = Context {
                        now_ms: self.now_ms,
                        began_ms: 0,
                        run: None,
                        log: &[],
                        release: None,
                        wait_ms: &wait_ms,
                    };
                    let error = contracts::deploy::InstanceError {
                        code: "not_healthy_in_time".into(),
                        detail: String::new(),
                        ..Default::default()
                    };
                    let means = match unwell {
                        Unwell::OldConfig => outcome::excused(),
                        Unwell::Sick => outcome::failed(&self.row, error, true, &context),
                    };
                    self.row = means.applied_to(self.row.clone());
                    return;
                }
            }
            let context = Context {
                now_ms: self.now_ms,
                began_ms: 0,
                run: run.as_deref(),
                log: &[],
                release: None,
                wait_ms: &wait_ms,
            };
            pending = outcome::after(&self.row, step, &context);
            let asked = matches!(step, Step::AwaitHealthy(_)) && self.row.plan.is_workspace();
            let lost = self.row.registered && asked && !self.has_owner;
            if lost {
                pending.then(outcome::registration_lost());
            }
            if n + 1 == count && !written {
                return;
            }
            self.row = pending.applied_to(self.row.clone());
            if lost {
                return;
            }
        }
    }

    /// Takes plans that break off so, one after the other.
    pub(super) fn disturbed(&mut self, interruptions: &[(usize, bool)]) {
        for (count, written) in interruptions {
            let steps = self.plan();
            self.take(&steps, *count, *written);
        }
    }

    /// Takes plans until nothing is left to do; the steps that were taken.
    pub(super) fn settles(&mut self) -> Vec<Step> {
        let mut taken = Vec::new();
        for _ in 0..20 {
            let steps = self.plan();
            if steps.is_empty() {
                return taken;
            }
            self.take(&steps, steps.len(), true);
            taken.extend(steps);
        }
        panic!("it does not come to an end: {taken:?} {self:?}");
    }

    /// Writes a wish down.
    pub(super) fn wish(&mut self, wish: &Wish) {
        if let Some((row, _)) = wished(self.row.clone(), wish, self.now_ms) {
            self.row = row;
        }
    }

    /// Whether everything is as it is wanted, by another measure than the plan's.
    pub(super) fn is_as_wanted(&self) -> Result<(), String> {
        let row = &self.row;
        let up = self.unit.as_ref().is_some_and(Container::is_up);
        let (goal, holds) = match row.desired {
            Desired::Running if row.phase == Phase::Failed => (Goal::Failed, !up),
            Desired::Running if row.sleep == Sleep::Stopped => (Goal::Asleep, !up),
            Desired::Running if row.sleep == Sleep::Paused => {
                (Goal::Paused, self.unit.as_ref().is_some_and(|c| c.state == UnitState::Paused))
            }
            Desired::Running => {
                let container = self.unit.as_ref();
                let foreign = !row.plan.is_workspace();
                let configured = |c: &Container| foreign || c.config == row.config_target();
                let runs = container.is_some_and(|c| c.state == UnitState::Running && c.current && configured(c));
                (
                    Goal::Ready,
                    runs && (foreign || row.registered)
                        && !row.restart_pending()
                        && self.folders
                        && self.owned
                        && self.socket,
                )
            }
            Desired::Stopped => (Goal::Stopped, !up),
            Desired::Deleted => {
                let nothing_runs = self.unit.is_none() && !self.identity;
                match row.deletion {
                    Some(deletion) if self.now_ms < deletion.data_until_ms && row.phase != Phase::Deleted => {
                        (Goal::PendingDeletion, nothing_runs && self.tombstone == Some(deletion.data_until_ms))
                    }
                    Some(_) => (Goal::Deleted, nothing_runs && !self.folders && self.tombstone.is_none()),
                    None => (Goal::Deleted, nothing_runs),
                }
            }
        };
        let (phase, route) = goal.marks();
        let told = row.phase == phase && row.route == Some(route) && row.observed_generation == row.generation;
        if holds && told { Ok(()) } else { Err(format!("{goal:?}: holds {holds}, told {told}: {self:?}")) }
    }
}
