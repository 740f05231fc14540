//! Plans by property: from any mixture of what is wanted, known and there, through any interruptions, to what is wanted.
//!
//! The model does to a world of plain values what the steps do to the real one, and writes to the row what the reconciler
//! would write.

mod world;

use contracts::{
    AccountId, InstanceId, PlanName,
    deploy::{Deletion, Desired, Phase, Sleep},
    routes::RouteState,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use uuid::Uuid;

use super::outcome::{self, Context};
use crate::{
    engine::UnitState,
    plan::{Goal, Observed, Seen, Step, plan},
    registry::{self, Row, Wish, wished},
};
use world::{Container, UNREAD, World};

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
            last_used_ms: None,
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
        let config = config.unwrap_or(row.config_target());
        let config = (folders && has_config).then_some(config);
        if row.observed_generation == 0 && config.is_none() {
            // Never healthy, and nothing to read: what is up was made ahead.
            (row.ready_run, row.ready_at_ms) = (None, None);
            if let Some(container) = unit.as_mut().filter(|container| container.is_up()) {
                container.config = UNREAD;
            }
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
        let config = config.filter(|_| folders);
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
        let taken = world.settles();
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
    fn what_was_made_ahead_is_neither_made_nor_stopped(
        mut world in worlds().prop_filter("wanted up", |world| world.row.desired == Desired::Running),
    ) {
        let row = &mut world.row;
        (row.generation, row.observed_generation, row.phase, row.sleep) = (1, 0, Phase::Accepted, Sleep::Awake);
        (row.config_generation, row.applied_config_generation, row.refused_config_generation) = (0, 0, 0);
        (row.restart_generation, row.applied_restart_generation) = (0, 0);
        (row.ready_run, row.ready_at_ms, row.registered, row.next_attempt_at_ms) = (None, None, false, 0);
        row.plan = PlanName::workspace();
        world.unit = Some(Container { state: UnitState::Paused, run: 2, current: true, config: UNREAD });
        (world.folders, world.owned, world.socket, world.config) = (true, true, true, None);
        world.tombstone = None;
        let taken = world.settles();
        let ways = [Step::UseConfig(0), Step::Identify, Step::Begin, Step::AwaitHealthy(0), Step::Register, Step::Settle(Goal::Ready)];
        prop_assert_eq!(taken, ways);
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert_eq!(world.runs, 3, "it is the process that waited");
    }

    #[test]
    fn what_is_given_up_gets_no_other_try_from_a_crash(
        mut world in worlds().prop_filter("wanted up", |world| world.row.desired == Desired::Running),
        interruptions in vec((0_usize..6, any::<bool>()), 0..8),
    ) {
        (world.row.phase, world.row.sleep) = (Phase::Failed, Sleep::Awake);
        world.config = world.config.min(Some(world.row.config_generation));
        let runs = world.runs;
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(world.row.phase == Phase::Failed && world.runs == runs, "{world:?}");
    }

    #[test]
    fn what_runs_and_is_not_reached_any_more_is_taken_down_whatever_comes_in_between(
        mut world in worlds().prop_filter("wanted up", |world| world.row.desired == Desired::Running),
        interruptions in vec((0_usize..6, any::<bool>()), 0..8),
    ) {
        world.row.sleep = Sleep::Awake;
        world.settles();
        prop_assume!(world.row.phase == Phase::Ready);
        (world.socket, world.failures, world.row.attempts) = (false, 0, 0);
        let before = world.unit.as_ref().map(|unit| unit.run);
        world.disturbed(&interruptions);
        world.settles();
        prop_assert_eq!(world.is_as_wanted(), Ok(()));
        prop_assert!(world.unit.as_ref().map(|unit| unit.run) != before, "{world:?}");
        // Nobody waits in vain for it to answer.
        prop_assert_eq!(world.failures, 0);
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
        let taken = world.settles();
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
        let context = Context { now_ms: 1_000 + quiet_ms, began_ms: 0, run: None, log: &[], release: None, wait_ms: &|_| 0 };
        let stopped = outcome::after(&row, &Step::Stop { then_up }, &context).applied_to(row);
        prop_assert_eq!(stopped.attempts == 0, quiet_ms >= outcome::QUIET_MS);
        let error = contracts::deploy::InstanceError { code: "not_healthy_in_time".into(), detail: String::new(), ..Default::default() };
        let failed = outcome::failed(&stopped, error, false, &context).applied_to(stopped.clone());
        // What is to be deleted is never given up.
        let given_up = quiet_ms < outcome::QUIET_MS && stopped.deletion.is_none();
        prop_assert_eq!(failed.phase == Phase::Failed, given_up || stopped.phase == Phase::Failed);
    }

    #[test]
    fn what_came_down_while_the_engine_was_away_counts_for_nothing(world in worlds(), step in select(vec![Step::NoteDown, Step::TakeDown])) {
        let row = Row { attempts: outcome::ATTEMPTS - 1, ready_at_ms: Some(1_000), phase: Phase::Unknown, ..world.row };
        let context = Context { now_ms: 1_001, began_ms: 0, run: None, log: &[], release: None, wait_ms: &|_| 0 };
        let begun = outcome::before(&row, &step).applied_to(row);
        let down = outcome::after(&begun, &step, &context).applied_to(begun);
        prop_assert_eq!((down.attempts, down.phase), (outcome::ATTEMPTS - 1, Phase::Starting));
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
