//! Plans by property: from any mixture of what is wanted, known and there, through any interruptions, to what is wanted.
//!
//! The model does to a world of plain values what the steps do to the real one, and writes to the row what the reconciler
//! would write.

use contracts::{
    AccountId, InstanceId, PlanName,
    deploy::{Deletion, Desired, Phase, Sleep},
    routes::RouteState,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use uuid::Uuid;

use super::outcome::{self, Context};
use crate::{
    engine::{Unit, UnitState},
    plan::{Goal, Observed, Seen, Step, plan},
    registry::{self, Progress, Row, Wish, wished},
};

/// Why an instance that was waited for is not as it must be.
#[derive(Debug, PartialEq, Eq)]
enum Unwell {
    OldConfig,
    Sick,
}

/// Everything there is of one instance.
#[derive(Debug, Clone)]
struct World {
    row: Row,
    unit: Option<Container>,
    folders: bool,
    owned: bool,
    /// The time on its tombstone.
    tombstone: Option<i64>,
    /// Whether authz has an identity for it.
    identity: bool,
    /// Whether it knows its owner, as far as its data tells it.
    has_owner: bool,
    config: Option<i64>,
    /// Whether its data was ever removed.
    wiped: bool,
    /// Whether its data is an archive's, whether that is still beside it, and whether its own is.
    archive: (bool, bool, bool),
    /// Whether it does not come up with the archive's data.
    sick: bool,
    /// Whether its socket is there.
    socket: bool,
    runs: u32,
    now_ms: i64,
    /// How often an instance was waited for that ran with an older configuration.
    failures: u32,
    /// Whether somebody uses it just now.
    in_use: bool,
}

#[derive(Debug, Clone)]
struct Container {
    state: UnitState,
    run: u32,
    current: bool,
    /// The configuration that its process has read.
    config: i64,
}

impl Container {
    fn is_up(&self) -> bool {
        matches!(self.state, UnitState::Running | UnitState::Paused)
    }
}

impl World {
    fn observed(&self) -> Observed {
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
        Observed { unit, folders, owned, config, tombstone, socket }
    }

    fn plan(&self) -> Vec<Step> {
        plan(&self.row, &self.observed(), self.now_ms)
    }

    /// Does what a step does. The run it found healthy; or that it runs with an older configuration.
    fn act(&mut self, step: &Step) -> Result<Option<String>, Unwell> {
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
            Step::Stop { .. } => {
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
            Step::AwaitHealthy(wanted) => {
                let container = self.unit.as_ref().filter(|container| container.is_up()).expect("it is up");
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
    fn take(&mut self, steps: &[Step], count: usize, written: bool) {
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
                    let context =
                        Context { now_ms: self.now_ms, began_ms: 0, run: None, release: None, wait_ms: &wait_ms };
                    let error =
                        contracts::deploy::InstanceError { code: "not_healthy_in_time".into(), detail: String::new() };
                    let means = match unwell {
                        Unwell::OldConfig => outcome::run_is_old(),
                        Unwell::Sick => outcome::failed(&self.row, error, true, &context),
                    };
                    self.row = means.applied_to(self.row.clone());
                    return;
                }
            }
            let context =
                Context { now_ms: self.now_ms, began_ms: 0, run: run.as_deref(), release: None, wait_ms: &wait_ms };
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
    fn disturbed(&mut self, interruptions: &[(usize, bool)]) {
        for (count, written) in interruptions {
            let steps = self.plan();
            self.take(&steps, *count, *written);
        }
    }

    /// Takes plans until nothing is left to do.
    fn settles(&mut self) {
        for _ in 0..20 {
            let steps = self.plan();
            if steps.is_empty() {
                return;
            }
            self.take(&steps, steps.len(), true);
        }
        panic!("it does not come to an end: {:?} {self:?}", self.plan());
    }

    /// Writes a wish down.
    fn wish(&mut self, wish: &Wish) {
        if let Some((row, _)) = wished(self.row.clone(), wish, self.now_ms) {
            self.row = row;
        }
    }

    /// Whether everything is as it is wanted, by another measure than the plan's.
    fn is_as_wanted(&self) -> Result<(), String> {
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

const PHASES: [Phase; 14] = [
    Phase::Accepted,
    Phase::Preparing,
    Phase::Creating,
    Phase::Starting,
    Phase::Registering,
    Phase::Ready,
    Phase::Paused,
    Phase::Asleep,
    Phase::Stopping,
    Phase::Stopped,
    Phase::Failed,
    Phase::Unknown,
    Phase::PendingDeletion,
    Phase::Deleted,
];

fn worlds() -> impl Strategy<Value = World> {
    let container = (
        prop_oneof![
            4 => Just(UnitState::Running),
            1 => select(vec![UnitState::Created, UnitState::Paused, UnitState::Exited, UnitState::Broken]),
        ],
        prop::bool::weighted(0.8),
        0_i64..3,
    )
        .prop_map(|(state, current, config)| Container { state, run: 2, current, config });
    let row = (
        (
            select(vec![Desired::Running, Desired::Running, Desired::Stopped, Desired::Deleted]),
            prop_oneof![2 => Just(Sleep::Awake), 1 => select(vec![Sleep::Paused, Sleep::Stopped])],
        ),
        select(PHASES.to_vec()),
        option::of(select(vec![
            RouteState::Starting,
            RouteState::Running,
            RouteState::Paused,
            RouteState::Asleep,
            RouteState::Stopped,
            RouteState::Failed,
        ])),
        (0_i64..3, 0_i64..3, 0_i64..3, 0_i64..3, 0_i64..3),
        (any::<bool>(), select(vec!["workspace", "workspace", "notes"])),
        option::of(prop_oneof![3 => Just(2_u32), 1 => Just(1)]),
        (0_i64..4, 0_i64..400_000),
    );
    let config = prop_oneof![2 => Just(None), 1 => (0_i64..3).prop_map(Some)];
    // When it was deleted, for how long its data is kept, and whether its tombstone is there, is another, or is missing.
    let deleted = (option::weighted(0.7, (0_i64..400_000, 1_i64..300_000)), prop::bool::weighted(0.3), any::<bool>());
    let folders = (prop::bool::weighted(0.8), prop::bool::weighted(0.8));
    let has = (prop::bool::weighted(0.9), prop::bool::weighted(0.8), prop::bool::weighted(0.8));
    let there = (option::weighted(0.8, container), folders, config, has, prop::bool::weighted(0.2));
    (row, there, deleted).prop_map(|(row, (mut unit, (folders, owned), config, (has_config, has_owner, socket), in_use), deleted)| {
        let ((desired, sleep), phase, route, counts, (registered, plan), ready_run, (attempts, next_attempt_at_ms)) =
            row;
        let (generation, restart, config_generation, applied, refused) = counts;
        let uuid = Uuid::from_u128(1);
        let (deletion, has_other, mut identity) = deleted;
        let mut row = Row {
            id: InstanceId::from_uuid(uuid),
            number: 1,
            uid: 20_001,
            slug: "alice".parse().expect("a slug"),
            account_id: AccountId::from_uuid(uuid),
            plan: plan.parse::<PlanName>().expect("a plan's name"),
            desired,
            before_deletion: None,
            deletion: None,
            sleep,
            wake_keys: Vec::new(),
            generation: generation + 1,
            observed_generation: generation,
            restart_generation: restart,
            applied_restart_generation: restart.min(1),
            config_generation,
            applied_config_generation: applied.min(config_generation),
            refused_config_generation: refused.min(config_generation),
            archive_generation: 0,
            applied_archive_generation: 0,
            refused_archive_generation: 0,
            phase,
            route,
            registered,
            ready_run: ready_run.map(|run| run.to_string()),
            ready_at_ms: ready_run.map(|run| i64::from(run) * 100_000),
            attempts,
            next_attempt_at_ms,
            error: None,
            disk_full: false,
            release: None,
            refused_release: None,
            version: 1,
            last_event: 1,
            created_at_ms: 0,
            updated_at_ms: 0,
        };
        if let Some(container) = &mut unit
            && row.ready_run == Some(container.run.to_string())
        {
            // It was found healthy, so with the configuration that then came into force.
            container.config = row.applied_config_generation;
        }
        let (mut folders, mut tombstone) = (folders, (has_other && folders).then_some(7));
        if let (Desired::Deleted, Some((asked_at_ms, kept_ms))) = (desired, deletion) {
            let data_until_ms = asked_at_ms + kept_ms;
            (row.deletion, row.registered) = (Some(Deletion { asked_at_ms, data_until_ms }), false);
            row.before_deletion = Some(Desired::Running);
            if tombstone.is_none() && identity {
                tombstone = Some(data_until_ms);
            }
            if matches!(phase, Phase::PendingDeletion | Phase::Deleted) {
                // It was settled so: only the folders, and what runs, may have changed since.
                (row.route, row.observed_generation, identity) = (Some(RouteState::Deleted), row.generation, false);
            }
            if phase == Phase::Deleted {
                (folders, tombstone) = (false, None);
            }
        }
        if desired != Desired::Deleted && matches!(phase, Phase::PendingDeletion | Phase::Deleted) {
            // A deletion that is taken back takes its phase along.
            row.phase = Phase::Accepted;
        }
        let config = config.unwrap_or(row.config_target());
        let config = (folders && has_config).then_some(config);
        World {
            row,
            unit,
            folders,
            owned,
            tombstone,
            identity,
            has_owner,
            config,
            socket,
            wiped: false,
            archive: (false, false, false),
            sick: false,
            runs: 3,
            now_ms: 400_000,
            failures: 0,
            in_use,
        }
    })
}

/// What comes in between.
#[derive(Debug, Clone)]
enum Disturbance {
    /// Nobody uses it.
    Sleep(Sleep),
    /// Somebody comes.
    Wake,
    /// Somebody is there, or not any more.
    Use(bool),
    /// Somebody wishes something.
    Wish(Wish),
    /// So many steps are taken; whether what the last one means is written.
    Steps(usize, bool),
    /// The engine is restarted: nothing is up, frozen or not.
    EngineRestart,
}

fn disturbances() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        2 => select(vec![Sleep::Paused, Sleep::Stopped]).prop_map(Disturbance::Sleep),
        2 => Just(Disturbance::Wake),
        1 => any::<bool>().prop_map(Disturbance::Use),
        1 => select(vec![Wish::Stop, Wish::Start, Wish::Restart, Wish::Retry, Wish::Configure(3)])
            .prop_map(Disturbance::Wish),
        4 => (1_usize..8, prop::bool::weighted(0.8)).prop_map(|(count, written)| Disturbance::Steps(count, written)),
        1 => Just(Disturbance::EngineRestart),
    ]
}

impl World {
    fn disturb(&mut self, disturbance: &Disturbance) {
        let row = self.row.clone();
        match disturbance {
            Disturbance::Sleep(depth) => {
                if let Some(row) = registry::asleep(row, *depth, Vec::new()) {
                    self.row = row;
                }
            }
            Disturbance::Wake => {
                if row.desired == Desired::Running
                    && row.phase != Phase::Failed
                    && let Some(row) = registry::awake(row)
                {
                    self.row = row;
                }
            }
            // Nobody is let in to what does not run, and nobody can be in it.
            Disturbance::Use(yes) => self.in_use = *yes && row.route == Some(RouteState::Running),
            Disturbance::Wish(_) if row.desired == Desired::Deleted => {}
            Disturbance::Wish(wish) => {
                if let Wish::Configure(generation) = wish
                    && (!self.folders || !row.plan.is_workspace() || *generation <= row.config_generation)
                {
                    return;
                }
                if let Some((row, _)) = wished(row, wish, self.now_ms) {
                    self.row = row;
                }
            }
            Disturbance::Steps(count, written) => {
                let steps = self.plan();
                self.take(&steps, *count, *written);
            }
            Disturbance::EngineRestart => {
                if let Some(unit) = self.unit.as_mut().filter(|unit| unit.is_up()) {
                    unit.state = UnitState::Exited;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_mixture_leads_to_what_is_wanted(
        mut world in worlds(),
        interruptions in prop_oneof![Just(Vec::new()), vec((0_usize..6, any::<bool>()), 0..12)],
    ) {
        let refused = world.row.refused_config_generation;
        world.disturbed(&interruptions);
        let mut taken = Vec::new();
        for _ in 0..20 {
            let steps = world.plan();
            if steps.is_empty() {
                break;
            }
            world.take(&steps, steps.len(), true);
            taken.extend(steps);
        }
        prop_assert!(world.plan().is_empty(), "{taken:?} {world:?}");
        prop_assert_eq!(world.is_as_wanted(), Ok(()), "{:?}", taken);
        // No instance of this world ever failed with a configuration that it had read.
        prop_assert_eq!(world.row.refused_config_generation, refused, "{:?}", taken);
        let asked = taken.iter().any(|step| matches!(step, Step::AwaitHealthy(_)));
        prop_assert!(world.has_owner || !world.row.plan.is_workspace() || !asked || world.row.phase != Phase::Ready, "{taken:?} {world:?}");
    }

    #[test]
    fn what_is_deleted_keeps_its_data_until_its_time_and_no_longer(
        mut world in worlds().prop_filter("not deleted yet", |world| world.row.desired != Desired::Deleted),
        interruptions in vec((0_usize..6, any::<bool>()), 0..8),
        kept_ms in 1_i64..1_000,
    ) {
        world.wish(&Wish::Delete(kept_ms));
        let deletion = world.row.deletion.expect("it is deleted");
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(!world.wiped && world.row.phase == Phase::PendingDeletion, "{world:?}");
        let (pending, as_it_was) = (world.row.clone(), world.clone());

        // Nothing happens up to the last moment, and everything from then on.
        world.now_ms = world.row.deletion.unwrap_or(deletion).data_until_ms - 1;
        prop_assert!(world.plan().is_empty(), "{world:?}");
        world.now_ms += 1;
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(world.wiped && !world.folders && world.row.phase == Phase::Deleted, "{world:?}");

        // Taken back, it is as it was; and a row from before that, restored, removes nothing of it, whatever time it is.
        let mut world = as_it_was;
        world.wish(&Wish::Undelete);
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(!world.wiped && world.row.deletion.is_none() && world.tombstone.is_none(), "{world:?}");
        world.row = pending;
        world.now_ms += 1_000_000;
        world.disturbed(&interruptions);
        world.settles();
        prop_assert!(!world.wiped && world.row.phase == Phase::PendingDeletion, "{world:?}");
        prop_assert!(world.row.deletion.is_some_and(|deletion| deletion.data_until_ms > world.now_ms), "{world:?}");
        world.wish(&Wish::Undelete);
        world.settles();
        prop_assert!(!world.wiped && world.is_as_wanted() == Ok(()), "{world:?}");
    }

    #[test]
    fn an_archives_data_takes_the_place_of_its_own_or_does_not_and_never_half(
        mut world in worlds().prop_filter("not deleted", |world| world.row.desired != Desired::Deleted),
        interruptions in vec((0_usize..6, any::<bool>()), 0..8),
        sick: bool,
    ) {
        world.row.config_generation = world.row.applied_config_generation;
        world.row.refused_config_generation = 0;
        world.sick = sick;
        world.archive.1 = true;
        world.wish(&Wish::Restore(1));
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(!world.row.archive_pending() && world.archive.0 != sick && !world.wiped, "{world:?}");
        prop_assert_eq!(world.row.refused_archive_generation, i64::from(sick));
        let told = world.row.error.as_ref().is_some_and(|error| error.code == "restore_not_accepted");
        prop_assert_eq!(told, sick);
    }

    #[test]
    fn an_undisturbed_way_is_straight(mut world in worlds()) {
        // What runs and was never found healthy may have been started before the configuration was exchanged.
        // So may whatever runs beside a configuration that the row does not know.
        let unknown = world.unit.as_ref().is_some_and(|c| c.is_up() && world.row.ready_run != Some(c.run.to_string()))
            || !world.socket
            || world.config > Some(world.row.config_generation);
        let mut counts = std::collections::HashMap::<String, u32>::new();
        for _ in 0..20 {
            let steps = world.plan();
            for step in &steps {
                *counts.entry(format!("{step:?}")).or_default() += 1;
            }
            world.take(&steps, steps.len(), true);
        }
        prop_assert!(unknown || world.failures == 0, "{counts:?} {world:?}");
        prop_assert!(counts.get("Create").copied().unwrap_or(0) <= 1, "{counts:?}");
        prop_assert!(counts.get("Start").copied().unwrap_or(0) <= 1 + world.failures, "{counts:?}");
        prop_assert!(counts.get("NoteDown").copied().unwrap_or(0) <= 1, "{counts:?}");
    }

    #[test]
    fn whatever_comes_in_between_sleep_ends_as_it_is_wanted_and_a_frozen_one_goes_on(
        mut world in worlds(),
        disturbances in vec(disturbances(), 0..16),
    ) {
        for disturbance in disturbances {
            world.disturb(&disturbance);
        }
        let (runs, frozen) = (world.runs, world.unit.clone().filter(|unit| unit.state == UnitState::Paused));
        let mut taken = Vec::new();
        for _ in 0..20 {
            let steps = world.plan();
            if steps.is_empty() {
                break;
            }
            world.take(&steps, steps.len(), true);
            taken.extend(steps);
        }
        prop_assert_eq!(world.is_as_wanted(), Ok(()), "{:?}", taken);
        if taken.contains(&Step::Resume) && world.row.phase == Phase::Ready {
            let frozen = frozen.expect("only what was frozen goes on");
            prop_assert!(world.runs == runs || frozen.run != world.unit.as_ref().map_or(0, |unit| unit.run), "{taken:?}");
            prop_assert!(!taken.contains(&Step::Start) || world.runs > runs, "{taken:?}");
        }
        // From here on it is left alone, asleep or not.
        prop_assert!(world.plan().is_empty());
        if matches!(world.row.phase, Phase::Paused | Phase::Asleep) {
            world.row = registry::awake(world.row.clone()).expect("it sleeps");
            let steps = world.plan();
            prop_assert!(!steps.is_empty());
            let goes_on = matches!(steps[..], [Step::Resume, Step::Settle(Goal::Ready)]);
            let nothing_else = world.unit.as_ref().is_some_and(|unit| {
                let known = world.row.ready_run == Some(unit.run.to_string());
                unit.state == UnitState::Paused && unit.current && known
            }) && world.tombstone.is_none()
                && world.row.has_its_owner()
                && world.folders
                && world.owned
                && !world.row.restart_pending()
                && world.observed().config == Some(world.row.config_target())
                && world.row.config_target() == world.row.applied_config_generation;
            prop_assert!(!nothing_else || goes_on, "the way out of a pause is two steps: {steps:?} {world:?}");
        }
    }

    #[test]
    fn what_went_wrong_before_it_ran_well_for_long_counts_no_more(world in worlds(), then_up: bool, quiet_ms in 0_i64..600_000) {
        let row = Row { attempts: outcome::ATTEMPTS - 1, ready_at_ms: Some(1_000), ..world.row };
        let context = Context { now_ms: 1_000 + quiet_ms, began_ms: 0, run: None, release: None, wait_ms: &|_| 0 };
        let stopped = outcome::after(&row, &Step::Stop { then_up }, &context).applied_to(row);
        prop_assert_eq!(stopped.attempts == 0, quiet_ms >= outcome::QUIET_MS);
        let error = contracts::deploy::InstanceError { code: "not_healthy_in_time".into(), detail: String::new() };
        let failed = outcome::failed(&stopped, error, false, &context).applied_to(stopped.clone());
        // What is to be deleted is never given up.
        let given_up = quiet_ms < outcome::QUIET_MS && stopped.deletion.is_none();
        prop_assert_eq!(failed.phase == Phase::Failed, given_up || stopped.phase == Phase::Failed);
    }

    #[test]
    fn an_engine_that_cannot_be_asked_is_asked_for_nothing(world in worlds()) {
        let seen = Observed { unit: Seen::Unknown, ..world.observed() };
        let steps = plan(&world.row, &seen, world.now_ms);
        prop_assert!(steps.is_empty() || steps == [Step::LoseEngine], "{steps:?}");
        let after = outcome::engine_lost().applied_to(world.row.clone());
        prop_assert_eq!(after.route, world.row.route);
        prop_assert!(plan(&after, &seen, world.now_ms).is_empty(), "said once");
    }
}
