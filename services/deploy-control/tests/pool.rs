//! Workspaces that are made ahead: whoever signs up waits for neither make nor start, and nobody gets what another was told
//! of.

mod support;

use std::{collections::BTreeSet, time::Duration};

use clock::Clock;
use contracts::{
    InstanceId,
    deploy::{EventCode, Phase, Reserved},
};
use deploy_control::{
    engine::{ErrorKind, Unit},
    registry::MIGRATOR,
};
use futures_util::future::join_all;
use http::StatusCode;
use store::Store;
use support::{Person, Running, World, eventually, sqlite_world, worlds};

const START_MS: i64 = 1_700_000_000_000;

impl World {
    fn with_pool(mut self, size: usize) -> Self {
        self.config.reconcile.pool.size = size;
        self.config.reconcile.pool.calm = Duration::ZERO;
        self
    }

    /// Waits until exactly so many wait, besides these; which ones.
    async fn waiting(&self, size: usize, besides: &[InstanceId]) -> BTreeSet<InstanceId> {
        eventually(async || {
            let units: Vec<Unit> = self.engine.units().into_iter().filter(|unit| !besides.contains(&unit.id)).collect();
            let frozen = units.iter().filter(|unit| self.engine.is_paused(unit.id)).count();
            let folders = self.folders("instances") - besides.len();
            // Frozen first, and then written down, from when on it is handed out.
            let ready = sqlx::query_scalar::<_, String>("SELECT id FROM pool WHERE state = 'ready'");
            let ready = ready.fetch_all(self.store.pool()).await.unwrap();
            let ready = ready.iter().filter(|id| !besides.contains(&id.parse().unwrap())).count();
            if [units.len(), frozen, folders, ready] == [size; 4] {
                return Ok(units.into_iter().map(|unit| unit.id).collect());
            }
            Err(format!("{frozen} are frozen, {ready} ready, with {folders} folders: {units:?}"))
        })
        .await
    }

    fn folders(&self, kind: &str) -> usize {
        std::fs::read_dir(self.config.data_dir.join(kind)).unwrap().count()
    }
}

impl Running {
    async fn reserve(&self) -> InstanceId {
        let (status, reserved): (_, Reserved) = self.post("/api/instances/reserve", &serde_json::json!({})).await;
        assert_eq!(status, StatusCode::OK);
        reserved.instance_id
    }

    /// Somebody of this name who is told of one.
    async fn told(&self, name: &str) -> Person {
        Person { id: self.reserve().await, ..Person::named(name) }
    }
}

#[tokio::test]
async fn whoever_signs_up_waits_for_neither_make_nor_start() {
    for world in worlds().await {
        let world = world.with_pool(2);
        let service = world.start().await;
        let before = world.waiting(2, &[]).await;
        let alice = service.told("alice").await;
        assert!(before.contains(&alice.id));
        let run = |id| world.engine.units().into_iter().find(|unit| unit.id == id).unwrap().run;
        let waited = run(alice.id);
        let made = |id| ["ensure", "remove", "stop"].map(|call| world.engine.count(call, id));
        let of_making = made(alice.id);
        service.ready(&alice).await;
        assert_eq!(made(alice.id), of_making, "{}", world.store.name());
        assert_eq!(run(alice.id), waited, "the very process that waited");
        assert!(waited.is_some());
        assert_eq!(world.engine.count("start", alice.id), 2, "once ahead, and once to go on");
        use EventCode::{Accepted, Healthy, Ready, Registered, Started};
        assert_eq!(service.codes(&alice).await, [Accepted, Started, Healthy, Registered, Ready]);
        assert_eq!(world.current_config(alice.id).slug, alice.slug);

        // Another takes its place, and what is hers stays hers.
        let after = world.waiting(2, &[alice.id]).await;
        assert!(!after.contains(&alice.id));
        let bob = Person { id: alice.id, ..Person::named("bobby") };
        let (status, problem): (_, contracts::ProblemDetails) =
            service.post("/api/instances/register", &bob.wanted()).await;
        assert_eq!((status, problem.code.as_str()), (StatusCode::CONFLICT, "instance_id_taken"));
        // A configuration that comes before it is up is not mixed with the one that it waited for.
        let carol = service.told("carol").await;
        service.register(&carol).await;
        service.configure(&carol, "sk-0123456789abcdef0123456789abcdef").await;
        let ready = service.settled(&carol, Phase::Ready).await;
        assert_eq!(ready.applied_config_generation, 1);
    }
}

#[tokio::test]
async fn everybody_is_told_of_another_one_and_whoever_comes_late_of_a_new_one() {
    for world in worlds().await {
        let world = world.with_pool(3);
        let service = world.start().await;
        let waiting = world.waiting(3, &[]).await;
        let told = join_all((0..8).map(|_| service.reserve())).await;
        let different: BTreeSet<_> = told.iter().copied().collect();
        assert_eq!(different.len(), told.len(), "{}", world.store.name());
        assert!(waiting.is_subset(&different));
        // All of them get a workspace, made ahead or not.
        let people: Vec<_> =
            told.iter().enumerate().map(|(n, id)| Person { id: *id, ..Person::named(&format!("guest-{n}")) }).collect();
        join_all(people.iter().map(|person| service.register(person))).await;
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
        let others = world.waiting(3, &told).await;
        assert!(others.is_disjoint(&different));
    }
}

#[tokio::test]
async fn what_was_reserved_and_not_taken_is_removed_and_its_id_is_good_all_the_same() {
    let mut world = sqlite_world().await.with_pool(1);
    let (clock, hand) = Clock::manual(START_MS);
    world.clock = clock;
    let service = world.start().await;
    world.waiting(1, &[]).await;
    let alice = service.told("alice").await;
    world.waiting(1, &[alice.id]).await;
    hand.advance_ms(9 * 60_000);
    assert_eq!(world.engine.units().len(), 2);
    hand.advance_ms(61_000);
    // Somebody else comes: then it is looked at.
    let bob = service.told("bobby").await;
    support::until("removed", || world.engine.count("remove", alice.id) == 1).await;
    world.waiting(1, &[bob.id]).await;
    service.ready(&alice).await;
    assert_eq!(world.engine.count("ensure", alice.id), 2, "made for her");
}

#[tokio::test]
async fn killed_while_it_makes_or_removes_them_it_leaves_nothing_behind() {
    for (held, size) in [("ensure", 2), ("start", 2), ("pause", 2), ("stop", 0), ("remove", 0)] {
        let mut world = sqlite_world().await.with_pool(2);
        if size == 0 {
            let service = world.start().await;
            world.waiting(2, &[]).await;
            service.kill_and_wait().await;
            world = world.with_pool(0);
        }
        world.engine.hold(held);
        let service = world.start().await;
        support::until(held, || world.engine.is_holding(held)).await;
        service.kill_and_wait().await;
        world.engine.release();
        let service = world.start().await;
        world.waiting(size, &[]).await;
        // What was half made goes to nobody.
        let alice = service.told("alice").await;
        service.ready(&alice).await;
        world.waiting(size, &[alice.id]).await;
    }
}

#[tokio::test]
async fn whoever_waits_for_room_gets_that_of_one_that_waits_for_nobody() {
    let mut world = sqlite_world().await.with_pool(2);
    world.config.reconcile.line.running = Some(2);
    let service = world.start().await;
    world.waiting(2, &[]).await;
    // Neither was told of one, as when deploy-control was away as they signed up.
    let people = ["alice", "bobby"].map(Person::named);
    for person in &people {
        service.register(person).await;
    }
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    world.waiting(0, &people.clone().map(|person| person.id)).await;
    service.wish(&people[0], "stop").await;
    service.settled(&people[0], Phase::Stopped).await;
    // With room again, one of the two.
    service.reserve().await;
    eventually(async || match world.engine.units().iter().filter(|unit| world.engine.is_paused(unit.id)).count() {
        1 => Ok(()),
        count => Err(format!("{count} wait")),
    })
    .await;
}

#[tokio::test]
async fn those_that_wait_are_made_from_what_is_there_now_by_an_engine_that_is_there() {
    let world = sqlite_world().await.with_pool(2);
    world.engine.fail_next("ensure", ErrorKind::Unavailable);
    world.engine.fail_next("pause", ErrorKind::Unavailable);
    let service = world.start().await;
    let old = world.waiting(2, &[]).await;
    world.engine.set_image("the-next");
    service.reserve().await;
    let told = |unit: &Unit| old.contains(&unit.id);
    eventually(async || {
        let units = world.engine.units();
        let (before, now): (Vec<_>, Vec<_>) = units.iter().partition(|unit| told(unit));
        let fresh = now.iter().filter(|unit| unit.release.as_deref() == Some("the-next")).count();
        if (before.len(), fresh, now.len()) == (1, 2, 2) { Ok(()) } else { Err(format!("{units:?}")) }
    })
    .await;
    // One that is gone with its host is no use to anybody.
    let frozen: Vec<_> = world.engine.units().into_iter().filter(|unit| !told(unit)).collect();
    world.engine.crash(frozen[0].id);
    let alice = service.told("alice").await;
    service.ready(&alice).await;
}

#[tokio::test]
async fn one_that_cannot_be_removed_keeps_nobody_from_getting_another() {
    let world = sqlite_world().await.with_pool(2);
    let service = world.start().await;
    let old: Vec<_> = world.waiting(2, &[]).await.into_iter().collect();
    world.engine.refuse("remove", ErrorKind::Rejected);
    world.engine.set_image("the-next");
    // This wakes whoever keeps the pool; what was reserved is not removed.
    let first = service.reserve().await;
    world.waiting(2, &old).await;
    world.engine.accept("remove");
    let second = service.reserve().await;
    world.waiting(2, &[first, second]).await;
}

#[tokio::test]
async fn a_registry_from_before_somebody_took_one_over_touches_nothing_of_theirs() {
    for state in ["ready", "warming", "reserved", "discarded"] {
        let world = sqlite_world().await.with_pool(1);
        let service = world.start().await;
        world.waiting(1, &[]).await;
        let alice = service.told("alice").await;
        service.ready(&alice).await;
        let kept = world.config.data_dir.join("instances").join(alice.id.to_string()).join("data/kept");
        std::fs::write(&kept, "hers").unwrap();
        service.kill_and_wait().await;

        // As of before she came: one that is made ahead, and nobody's.
        let db = Store::open(world.store.database(), &MIGRATOR).await.unwrap();
        let uid: i64 = sqlx::query_scalar("SELECT uid FROM instances").fetch_one(db.pool()).await.unwrap();
        for sql in ["DELETE FROM events", "DELETE FROM instances"] {
            sqlx::query(sql).execute(db.pool()).await.unwrap();
        }
        sqlx::query("INSERT INTO pool (id, uid, state, since_ms) VALUES ($1, $2, $3, 0)")
            .bind(alice.id.to_string())
            .bind(uid)
            .bind(state)
            .execute(db.pool())
            .await
            .unwrap();
        let calls = ["stop", "remove", "start", "pause"].map(|call| world.engine.count(call, alice.id));
        let service = world.start().await;
        // Another is made, which is the one that is handed out.
        let others = world.waiting(1, &[alice.id]).await;
        let told = service.reserve().await;
        assert!(others.contains(&told) && told != alice.id, "{state}");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "hers", "{state}");
        assert_eq!(
            ["stop", "remove", "start", "pause"].map(|call| world.engine.count(call, alice.id)),
            calls,
            "{state}"
        );
        assert!(world.engine.is_running(alice.id), "{state}: an orphan is left alone");
    }
}

#[tokio::test]
async fn one_that_does_not_go_on_at_once_is_the_same_a_moment_later() {
    let world = sqlite_world().await.with_pool(1);
    let service = world.start().await;
    world.waiting(1, &[]).await;
    let alice = service.told("alice").await;
    let run = world.engine.units().into_iter().find(|unit| unit.id == alice.id).unwrap().run;
    world.engine.fail_next("start", ErrorKind::Rejected);
    service.ready(&alice).await;
    assert_eq!(world.engine.units().into_iter().find(|unit| unit.id == alice.id).unwrap().run, run);
    assert!(!service.codes(&alice).await.contains(&EventCode::AttemptFailed));
}
