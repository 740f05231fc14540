//! The registry on each kind of database.

use std::collections::BTreeMap;

use clock::ManualClock;
use contracts::{
    PlanName,
    deploy::{Desired, Phase, RegisterInstance},
    routes::{RouteState, SignIn},
};
use futures_util::{future::join_all, poll};
use proptest::prelude::*;
use store::testing::{TestStore, left_off};
use uuid::Uuid;

use super::*;

struct Fixture {
    registry: Registry,
    hand: ManualClock,
    store: TestStore,
}

async fn each() -> Vec<Fixture> {
    let stores = store::testing::databases(&MIGRATOR).await;
    let mut fixtures = Vec::new();
    for store in stores {
        let (clock, hand) = Clock::manual(1_000);
        let registry = Registry::open(store.clone(), clock, 20_000).await.unwrap();
        fixtures.push(Fixture { registry, hand, store });
    }
    fixtures
}

fn wanted(n: u128, slug: &str) -> RegisterInstance {
    RegisterInstance {
        instance_id: InstanceId::from_uuid(Uuid::from_u128(n)),
        account_id: AccountId::from_uuid(Uuid::from_u128(n + 1_000)),
        slug: Slug::parse(slug).unwrap(),
        plan: None,
    }
}

fn plan() -> PlanName {
    PlanName::workspace()
}

#[tokio::test]
async fn registering_twice_makes_one_and_names_are_unique() {
    for Fixture { registry, store, .. } in each().await {
        let alice = wanted(1, "alice");
        let first = registry.register(&alice, &plan()).await.unwrap();
        assert!(first.new, "{}", store.name());
        assert_eq!((first.row.number, first.row.phase, first.row.generation), (1, Phase::Accepted, 1));
        assert_eq!(registry.register(&alice, &plan()).await.unwrap(), Registered { new: false, ..first.clone() });

        let slug_taken = registry.register(&wanted(2, "alice"), &plan()).await.unwrap_err();
        assert!(matches!(slug_taken, Error::SlugTaken), "{slug_taken}");
        let id_taken =
            registry.register(&RegisterInstance { slug: "bob".parse().unwrap(), ..alice }, &plan()).await.unwrap_err();
        assert!(matches!(id_taken, Error::IdTaken), "{id_taken}");
        assert_eq!(registry.register(&wanted(3, "carol"), &plan()).await.unwrap().row.number, 2);
        assert_eq!(registry.all().await.unwrap().len(), 2);
    }
}

/// What a worker writes.
fn begins() -> Progress {
    Progress { phase: Some(Phase::Starting), events: vec![NewEvent::of(EventCode::Started)], ..Progress::default() }
}

#[tokio::test]
async fn what_waits_is_written_together_and_each_for_itself() {
    for Fixture { registry, store, .. } in each().await {
        let mut rows = Vec::new();
        for n in 1..=6 {
            rows.push(registry.register(&wanted(n, &format!("guest-{n}")), &plan()).await.unwrap().row);
        }
        // Somebody wished something of the first since; the second's events would be told twice.
        let wished = registry.wish(rows[0].id, rows[0].account_id, Wish::Stop).await.unwrap();
        let broken = Row { last_event: 0, ..rows[1].clone() };
        let begins = begins();
        let write = |row| registry.record(row, &begins);

        // On SQLite there is one turn, for which all of them wait; on PostgreSQL there are several.
        let turn = match registry.store().kind() {
            store::Kind::Sqlite => Some(registry.store().begin().await.unwrap()),
            store::Kind::Postgres => None,
        };
        let mut left = Box::pin(write(&rows[2]));
        let mut all = Box::pin(join_all([&rows[0], &broken, &rows[3], &rows[4], &rows[5]].map(write)));
        if turn.is_some() {
            assert!(poll!(&mut left).is_pending());
            assert!(poll!(&mut all).is_pending());
        }
        // The first in line waits no more.
        drop(left);
        drop(turn);
        let mut outcomes = all.await.into_iter();

        assert_eq!(outcomes.next().unwrap().unwrap(), None);
        assert_eq!(registry.get(wished.id).await.unwrap(), wished);
        let why = outcomes.next().unwrap().unwrap_err();
        assert!(matches!(why, Error::Database(sqlx::Error::Database(_))), "{why}");
        for (row, outcome) in rows[3..].iter().zip(outcomes) {
            let written = outcome.unwrap().expect("nothing came in between");
            assert_eq!((written.phase, written.version), (Phase::Starting, row.version + 1), "{}", store.name());
            assert_eq!(registry.get(row.id).await.unwrap(), written);
            let told: Vec<_> = registry.events(row.id, row.last_event).await.unwrap();
            assert_eq!(told.iter().map(|event| event.code).collect::<Vec<_>>(), [EventCode::Started]);
        }
        assert_eq!(registry.get(rows[2].id).await.unwrap(), rows[2], "nobody waits for that");
    }
}

#[tokio::test]
async fn what_waits_is_written_in_the_turn_of_whoever_has_one_first() {
    for Fixture { registry, store, .. } in each().await {
        // Several have a turn at once on PostgreSQL: nobody waits there.
        if registry.store().kind() != store::Kind::Sqlite {
            continue;
        }
        let first = registry.register(&wanted(1, "guest-1"), &plan()).await.unwrap().row;
        let second = registry.register(&wanted(2, "guest-2"), &plan()).await.unwrap().row;
        let begins = begins();
        let turn = registry.store().begin().await.unwrap();
        let mut one = Box::pin(registry.record(&first, &begins));
        let mut between = Box::pin(async {
            let mut transaction = registry.store().begin().await.unwrap();
            let version = sqlx::query_scalar::<_, i64>("SELECT version FROM instances WHERE id = $1");
            version.bind(second.id.to_string()).fetch_one(&mut *transaction).await.unwrap()
        });
        let mut other = Box::pin(registry.record(&second, &begins));
        assert!(poll!(&mut one).is_pending());
        assert!(poll!(&mut between).is_pending());
        assert!(poll!(&mut other).is_pending());
        turn.rollback().await.unwrap();
        let (one, seen, other) = tokio::join!(one, between, other);
        assert!(one.unwrap().is_some() && other.unwrap().is_some(), "{}", store.name());
        assert_eq!(seen, second.version + 1, "it came after whoever was before the other in line");
    }
}

#[tokio::test]
async fn whoever_is_left_off_while_it_writes_for_others_too_takes_nothing_of_theirs_with_it() {
    for Fixture { registry, store, .. } in each().await {
        let [first, second] = [1, 2].map(|n| wanted(n, &format!("guest-{n}")));
        for wanted in [&first, &second] {
            registry.register(wanted, &plan()).await.unwrap();
        }
        let (begins, mut polls) = (begins(), 0);
        loop {
            polls += 1;
            let mine = registry.get(first.instance_id).await.unwrap();
            let theirs = registry.get(second.instance_id).await.unwrap();
            let (left, written) =
                tokio::join!(left_off(polls, registry.record(&mine, &begins)), registry.record(&theirs, &begins));
            let written = written.unwrap().expect("nothing came in between");
            assert_eq!((written.version, written.last_event), (theirs.version + 1, theirs.last_event + 1));
            assert_eq!(registry.get(theirs.id).await.unwrap(), written, "{} {polls}", store.name());
            assert_eq!(registry.events(theirs.id, theirs.last_event).await.unwrap().len(), 1);
            if left.is_some() {
                break;
            }
        }
        assert!(polls > 1, "{} {polls}", store.name());
    }
}

#[tokio::test]
async fn what_was_wished_since_it_was_seen_is_not_given_up() {
    for Fixture { registry, store, .. } in each().await {
        let wanted = wanted(1, "alice");
        let seen = registry.register(&wanted, &plan()).await.unwrap().row;
        let why = crate::disk::exceeded;
        let given_up = registry.give_up(&seen, why()).await.unwrap().expect("nothing came in between");
        assert_eq!((given_up.phase, given_up.error), (Phase::Failed, Some(why())), "{}", store.name());
        let again = registry.wish(seen.id, wanted.account_id, Wish::Retry).await.unwrap();
        assert_eq!(registry.give_up(&seen, why()).await.unwrap(), None);
        assert_eq!(registry.get(seen.id).await.unwrap(), again);
        assert_eq!(registry.give_up(&again, why()).await.unwrap().unwrap().phase, Phase::Failed);
    }
}

#[tokio::test]
async fn fifty_at_once_get_fifty_numbers_and_one_of_fifty_gets_the_slug() {
    for Fixture { registry, store, .. } in each().await {
        let many = (0..50).map(|n| {
            let registry = registry.clone();
            async move {
                let row = registry.register(&wanted(n, &format!("user-{n}")), &plan()).await.unwrap().row;
                (row.number, row.uid)
            }
        });
        let mut numbers = futures_util::future::join_all(many).await;
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=50).map(|n| (n, 20_000 + n as u32)).collect::<Vec<_>>(), "{}", store.name());

        let same = (100..150).map(|n| {
            let registry = registry.clone();
            async move { registry.register(&wanted(n, "same"), &plan()).await.is_ok() }
        });
        let won = futures_util::future::join_all(same).await.into_iter().filter(|won| *won).count();
        assert_eq!(won, 1, "{}", store.name());
    }
}

#[tokio::test]
async fn the_same_call_at_once_finds_what_another_of_it_made() {
    for Fixture { registry, store, .. } in each().await {
        for n in 0..20 {
            let same = (0..8).map(|_| {
                let registry = registry.clone();
                async move { registry.register(&wanted(n, &format!("user-{n}")), &plan()).await }
            });
            let all = futures_util::future::join_all(same).await;
            let new = all.into_iter().map(|made| made.unwrap().new).filter(|new| *new).count();
            assert_eq!(new, 1, "{}", store.name());
        }
    }
}

#[tokio::test]
async fn a_user_id_stays_and_is_given_once_whatever_the_setting() {
    for Fixture { registry, store, .. } in each().await {
        let uid =
            async |registry: &Registry, n, slug| registry.register(&wanted(n, slug), &plan()).await.unwrap().row.uid;
        assert_eq!(uid(&registry, 1, "alice").await, 20_001, "{}", store.name());
        assert_eq!(uid(&registry, 2, "bob").await, 20_002);
        // Lowered onto those that are given, raised, and back.
        for (base, n, slug, expected) in
            [(19_999, 3, "carol", 20_003), (30_000, 4, "dave", 30_001), (20_000, 5, "erin", 30_002)]
        {
            let registry = Registry::open(store.clone(), Clock::system(), base).await.unwrap();
            assert_eq!(uid(&registry, n, slug).await, expected, "{base}");
        }
        // A folder of somebody whom this registry, restored from before, does not know.
        registry.pass_over_uid(30_007).await.unwrap();
        registry.pass_over_uid(25_000).await.unwrap();
        assert_eq!(uid(&registry, 6, "frank").await, 30_008);
        let uids: Vec<_> = registry.all().await.unwrap().iter().map(|row| row.uid).collect();
        assert_eq!(uids, [20_001, 20_002, 20_003, 30_001, 30_002, 30_008], "{}", store.name());
    }
}

/// The tables as they were before this migration.
fn before(version: i64) -> Migrator {
    Migrator::with_migrations(MIGRATOR.iter().filter(|migration| migration.version < version).cloned().collect())
}

/// The `number`th instance, as it was written at first.
async fn insert_as_at_first(store: &Store, n: u128, number: i64) {
    let wanted = wanted(n, &format!("user-{n}"));
    sqlx::query(
        "INSERT INTO instances (id, number, slug, account_id, desired, generation, restart_generation, \
         config_generation, observed_generation, applied_restart_generation, applied_config_generation, \
         refused_config_generation, phase, route, registered, attempts, next_attempt_at_ms, version, last_event, \
         created_at_ms, updated_at_ms) \
         VALUES ($1, $2, $3, $4, 'running', 1, 0, 0, 0, 0, 0, 0, 'ready', 'running', 1, 0, 0, 1, 0, 0, 0)",
    )
    .bind(wanted.instance_id.to_string())
    .bind(number)
    .bind(wanted.slug.as_str())
    .bind(wanted.account_id.to_string())
    .execute(store.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn what_ran_an_image_by_a_name_that_is_a_workspaces_now_is_not_taken_for_one() {
    for store in store::testing::databases(&before(10)).await {
        for (n, plan) in [(1, "workspace"), (2, "workspace-large"), (3, "notes"), (4, "workspaces")] {
            insert_as_at_first(&store, n, n as i64).await;
            let named = sqlx::query("UPDATE instances SET plan = $1 WHERE number = $2").bind(plan).bind(n as i64);
            named.execute(store.pool()).await.unwrap();
        }
        let now = Store::open(store.database(), &MIGRATOR).await.unwrap();
        let registry = Registry::open(now, Clock::system(), 20_000).await.unwrap();
        let rows = registry.all().await.unwrap();
        let plans: Vec<_> = rows.iter().map(|row| (row.plan.as_str(), row.plan.is_workspace())).collect();
        let expected = [("workspace", true), ("image-large", false), ("notes", false), ("workspaces", false)];
        assert_eq!(plans, expected, "{}", store.name());
        registry.store().close().await;
    }
}

#[tokio::test]
async fn instances_from_before_user_ids_were_written_down_keep_theirs() {
    for store in store::testing::databases(&before(3)).await {
        for (n, number) in [(1, 1), (2, 5)] {
            insert_as_at_first(&store, n, number).await;
        }
        sqlx::query("UPDATE numbers SET newest = 5").execute(store.pool()).await.unwrap();

        let now = Store::open(store.database(), &MIGRATOR).await.unwrap();
        let registry = Registry::open(now, Clock::system(), 21_000).await.unwrap();
        let uids = async || registry.all().await.unwrap().iter().map(|row| row.uid).collect::<Vec<_>>();
        assert_eq!(uids().await, [21_001, 21_005], "{}", store.name());
        assert_eq!(registry.register(&wanted(3, "user-3"), &plan()).await.unwrap().row.uid, 21_006);
        // The setting has no say any more.
        Registry::open(registry.store().clone(), Clock::system(), 40_000).await.unwrap();
        assert_eq!(uids().await, [21_001, 21_005, 21_006]);
        registry.store().close().await;
    }
}

#[tokio::test]
async fn another_persons_instance_is_not_there() {
    for Fixture { registry, .. } in each().await {
        let alice = wanted(1, "alice");
        registry.register(&alice, &plan()).await.unwrap();
        let bob = wanted(2, "bob").account_id;
        for refused in [
            registry.get_owned(alice.instance_id, bob).await,
            registry.by_slug(&alice.slug, bob).await,
            registry.wish(alice.instance_id, bob, Wish::Stop).await,
        ] {
            assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
        }
        assert_eq!(registry.by_slug(&alice.slug, alice.account_id).await.unwrap().id, alice.instance_id);
    }
}

#[tokio::test]
async fn wishes_count_once_and_tell_who() {
    for Fixture { registry, hand, .. } in each().await {
        let alice = wanted(1, "alice");
        let (id, account) = (alice.instance_id, alice.account_id);
        registry.register(&alice, &plan()).await.unwrap();
        hand.advance_ms(5);
        let stopped = registry.wish(id, account, Wish::Stop).await.unwrap();
        assert_eq!((stopped.desired, stopped.generation, stopped.updated_at_ms), (Desired::Stopped, 2, 1_005));
        assert_eq!(registry.wish(id, account, Wish::Stop).await.unwrap(), stopped, "nothing new");
        assert_eq!(registry.wish(id, account, Wish::Retry).await.unwrap(), stopped, "nothing to retry");
        let restarted = registry.wish(id, account, Wish::Restart).await.unwrap();
        assert_eq!((restarted.desired, restarted.restart_generation), (Desired::Running, 1));
        let configured = registry.wish(id, account, Wish::Configure(1)).await.unwrap();
        assert_eq!((configured.config_generation, configured.config_target()), (1, 1));

        let told: Vec<_> =
            registry.events(id, 0).await.unwrap().into_iter().map(|e| (e.seq, e.code, e.detail)).collect();
        assert_eq!(
            told,
            [
                (1, EventCode::Accepted, None),
                (2, EventCode::StopRequested, None),
                (3, EventCode::RestartRequested, None),
                (4, EventCode::ConfigRequested, Some("1".into())),
            ]
        );
        assert_eq!(registry.events(id, 3).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn another_plan_is_the_operators_wish_and_nobody_gets_in_until_it_is_so() {
    for Fixture { registry, store, .. } in each().await {
        let alice = wanted(1, "alice");
        let notes: PlanName = "notes".parse().unwrap();
        let row = registry.register(&alice, &notes).await.unwrap().row;
        assert_eq!(registry.register(&alice, &plan()).await.unwrap().row.plan, notes, "{}", store.name());
        let up = Progress {
            phase: Some(Phase::Ready),
            route: Some(RouteState::Running),
            ready: Some(Some(("run-1".into(), 77))),
            ..Progress::default()
        };
        let row = registry.record(&row, &up).await.unwrap().unwrap();
        assert_eq!((row.route().unwrap().sign_in, row.has_its_owner()), (SignIn::Edge, true));
        let told = row.instance(String::new());
        assert_eq!((told.plan, told.takes_provider), (notes.clone(), false));

        let wish = Wish::Plan(notes.clone());
        assert_eq!(registry.operator_wish(alice.instance_id, wish).await.unwrap(), row, "nothing new");
        let next = registry.operator_wish(alice.instance_id, Wish::Plan(plan())).await.unwrap();
        assert_eq!((next.generation, &next.plan, &next.ready_run), (row.generation + 1, &plan(), &None));
        // What runs was made for another who lets people in.
        let route = next.route().unwrap();
        assert_eq!((route.state, route.sign_in), (RouteState::Starting, SignIn::Instance));
        let event = registry.events(alice.instance_id, 0).await.unwrap().pop().unwrap();
        let told = (event.code, event.actor.as_str(), event.detail.as_deref());
        assert_eq!(told, (EventCode::PlanRequested, "operator", Some("workspace")));
        assert_eq!(registry.get(alice.instance_id).await.unwrap(), next);

        let nobody = InstanceId::from_uuid(Uuid::from_u128(9));
        assert!(matches!(registry.operator_wish(nobody, Wish::Plan(plan())).await, Err(Error::NotFound)));
    }
}

#[tokio::test]
async fn what_was_worked_out_for_an_older_wish_is_not_written() {
    for Fixture { registry, store, .. } in each().await {
        let alice = wanted(1, "alice");
        let read = registry.register(&alice, &plan()).await.unwrap().row;
        let wish = registry.wish(alice.instance_id, alice.account_id, Wish::Stop).await.unwrap();
        let late =
            Progress { phase: Some(Phase::Ready), events: vec![NewEvent::of(EventCode::Ready)], ..Progress::default() };
        assert_eq!(registry.record(&read, &late).await.unwrap(), None, "{}", store.name());
        assert_eq!(registry.get(alice.instance_id).await.unwrap(), wish);
        assert_eq!(registry.events(alice.instance_id, 0).await.unwrap().len(), 2);

        let written = registry.record(&wish, &late).await.unwrap().unwrap();
        assert_eq!(registry.get(alice.instance_id).await.unwrap(), written);
        assert_eq!((written.phase, written.last_event), (Phase::Ready, 3));
    }
}

#[tokio::test]
async fn every_column_comes_back_as_it_was_written() {
    for Fixture { registry, .. } in each().await {
        let row = registry.register(&wanted(1, "alice"), &plan()).await.unwrap().row;
        let progress = Progress {
            sleep: Some(contracts::deploy::Sleep::Stopped),
            phase: Some(Phase::Failed),
            route: Some(contracts::routes::RouteState::Failed),
            observed_generation: Some(1),
            applied_restart_generation: Some(2),
            config_generation: Some(3),
            applied_config_generation: Some(3),
            refused_config_generation: Some(4),
            applied_archive_generation: Some(5),
            refused_archive_generation: Some(6),
            data_until_ms: None,
            release: Some("sha256:1".into()),
            refused_release: Some("sha256:2".into()),
            registered: Some(true),
            ready: Some(Some(("run-1".into(), 77))),
            attempts: Some((5, 99)),
            error: Some(Some(contracts::deploy::InstanceError {
                code: "crash_loop".into(),
                detail: "It fell.".into(),
                cause: Some("not_healthy_in_time".into()),
                log: vec!["first".into(), "last".into()],
            })),
            events: vec![NewEvent::of(EventCode::AttemptFailed).detail("crash_loop"), NewEvent::of(EventCode::Failed)],
        };
        let written = registry.record(&row, &progress).await.unwrap().unwrap();
        assert_eq!(written, registry.get(row.id).await.unwrap());
        assert_eq!(written.ready_run.as_deref(), Some("run-1"));
        let seqs: Vec<_> = registry.events(row.id, 0).await.unwrap().iter().map(|event| event.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
    }
}

#[tokio::test]
async fn only_what_nobody_ever_had_is_discarded() {
    for Fixture { registry, store, .. } in each().await {
        // Somebody else's program is its owner's from the beginning: nothing is registered that would tell.
        for (n, plan) in [(1, PlanName::workspace()), (2, "notes".parse().unwrap())] {
            let wanted = wanted(n, &format!("person-{n}"));
            registry.register(&wanted, &plan).await.unwrap();
            let discarded = registry.wish(wanted.instance_id, wanted.account_id, Wish::Discard).await;
            match plan.is_workspace() {
                true => assert_eq!(discarded.unwrap().desired, Desired::Deleted, "{}", store.name()),
                false => assert!(matches!(discarded, Err(Error::HadOwner)), "{}: {discarded:?}", store.name()),
            }
        }
    }
}

/// What may happen to a registry.
#[derive(Debug, Clone)]
enum Happening {
    /// Somebody asks for an instance: by the number of its id, of its account and of its name.
    Register(u128, u128, u8),
    /// An instance is wanted gone.
    Discard(u128),
    /// An instance that is wanted gone is found to be.
    Gone(u128),
    /// A restart under another base of user ids.
    Restart(u32),
    /// Files with this owner are found.
    Found(u32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        6 => (0..12_u128, 0..3_u128, 0..8_u8).prop_map(|(id, account, name)| Happening::Register(id, account, name)),
        3 => (0..12_u128).prop_map(Happening::Discard),
        3 => (0..12_u128).prop_map(Happening::Gone),
        1 => (10_200..10_240_u32).prop_map(Happening::Restart),
        1 => (10_200..10_240_u32).prop_map(Happening::Found),
    ];
    proptest::collection::vec(one, 1..60)
}

fn asked_for(id: u128, account: u128, name: u8) -> RegisterInstance {
    RegisterInstance {
        instance_id: InstanceId::from_uuid(Uuid::from_u128(id)),
        account_id: AccountId::from_uuid(Uuid::from_u128(account)),
        slug: format!("name-{name}").parse().unwrap(),
        plan: None,
    }
}

/// Makes it all happen to an empty registry.
async fn happen(store: TestStore, all: &[Happening]) -> Result<(), TestCaseError> {
    let mut registry = Registry::open(store.clone(), Clock::manual(1_000).0, 10_200).await.unwrap();
    // Whose each id, name and user id is: for good.
    let mut given: BTreeMap<InstanceId, (AccountId, Slug, u32)> = BTreeMap::new();
    let mut newest = 10_200;
    for happening in all {
        match happening {
            Happening::Register(id, account, name) => {
                let wanted = asked_for(*id, *account, *name);
                let of_id = given.get(&wanted.instance_id).cloned();
                let name_taken = given.values().any(|(_, slug, _)| *slug == wanted.slug);
                match (registry.register(&wanted, &plan()).await, of_id) {
                    (Ok(Registered { row, new: true }), None) => {
                        prop_assert!(!name_taken, "{} was somebody's", wanted.slug);
                        prop_assert!(row.uid > newest, "{} after {newest}: {given:?}", row.uid);
                        newest = row.uid;
                        given.insert(row.id, (row.account_id, row.slug, row.uid));
                    }
                    (Ok(Registered { row, new: false }), Some(of_id)) => {
                        prop_assert_eq!((row.account_id, row.slug, row.uid), of_id);
                    }
                    (Err(Error::IdTaken), Some((account, slug, _))) => {
                        prop_assert!((account, slug) != (wanted.account_id, wanted.slug));
                    }
                    (Err(Error::SlugTaken), None) => prop_assert!(name_taken),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            Happening::Discard(id) => {
                let id = InstanceId::from_uuid(Uuid::from_u128(*id));
                if let Some((account, _, _)) = given.get(&id) {
                    // A second time it is not there any more.
                    let _ = registry.wish(id, *account, Wish::Discard).await;
                    prop_assert_eq!(registry.get(id).await.unwrap().desired, Desired::Deleted);
                }
            }
            Happening::Gone(id) => {
                if let Ok(row) = registry.get(InstanceId::from_uuid(Uuid::from_u128(*id))).await
                    && row.desired == Desired::Deleted
                {
                    let gone = Progress {
                        phase: Some(Phase::Deleted),
                        route: Some(RouteState::Deleted),
                        observed_generation: Some(row.generation),
                        ..Progress::default()
                    };
                    registry.record(&row, &gone).await.unwrap();
                }
            }
            Happening::Restart(base) => {
                registry = Registry::open(store.clone(), Clock::manual(1_000).0, *base).await.unwrap();
            }
            Happening::Found(uid) => {
                registry.pass_over_uid(*uid).await.unwrap();
                newest = newest.max(*uid);
            }
        }
    }
    for (id, of_id) in given {
        let row = registry.get(id).await.unwrap();
        prop_assert_eq!((row.account_id, row.slug, row.uid), of_id, "rows stay as they are, of the discarded too");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_id_no_name_and_no_user_id_is_ever_given_twice(all in happenings()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for store in store::testing::databases(&MIGRATOR).await {
                happen(store, &all).await?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
