//! Those beyond what the host bears wait in line, and nobody is refused.

mod support;

use std::collections::BTreeSet;

use contracts::{
    deploy::{EventCode, InstanceList, Phase, WaitsFor},
    routes::{RouteMessage, RouteState},
};
use deploy_control::registry::{MIGRATOR, Registry};
use futures_util::StreamExt;
use support::{Person, Running, World, eventually, neighbours::Used, reader::Reader, sqlite_world, until, worlds};

#[tokio::test]
async fn a_storm_of_sign_ups_leaves_everybody_ready_or_in_line() {
    const ALL: usize = 500;
    const ROOM: usize = 120;
    /// Calls of authz at once.
    const AT_ONCE: usize = 8;
    let mut world = sqlite_world().await;
    world.config.reconcile.line.running = Some(ROOM);
    let service = world.start().await;
    let people: Vec<_> = (0..ALL).map(|n| Person::named(&format!("guest-{n}"))).collect();
    let taken = people.iter().map(|person| service.register(person));
    futures_util::stream::iter(taken).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;

    let list = eventually(async || {
        let (_, list) = service.get::<InstanceList>("/api/instances?limit=1000").await;
        let ready = list.instances.iter().filter(|instance| instance.phase == Phase::Ready).count();
        let waiting = list.instances.iter().filter(|instance| instance.waiting.is_some()).count();
        if (ready, waiting) == (ROOM, ALL - ROOM) { Ok(list) } else { Err(format!("{ready} ready, {waiting} wait")) }
    })
    .await;
    let failed = list.instances.iter().filter(|instance| instance.phase == Phase::Failed || instance.error.is_some());
    assert_eq!(failed.count(), 0);
    let waiting = list.instances.iter().filter_map(|instance| instance.waiting);
    assert!(waiting.clone().all(|waiting| waiting.waits_for == WaitsFor::Room && waiting.seconds.is_none()));
    let positions: BTreeSet<_> = waiting.map(|waiting| waiting.position).collect();
    assert_eq!(positions, (1..=(ALL - ROOM) as u32).collect());
    assert_eq!(world.engine.units().len(), ROOM, "nothing is made for those who wait");

    // Room comes back: the first in line have it, by themselves.
    let by_position = |n| list.instances.iter().find(|i| i.waiting.is_some_and(|w| w.position == n)).unwrap().id;
    let of = |id| people.iter().find(|person| person.id == id).unwrap();
    let up: Vec<_> = list.instances.iter().filter(|instance| instance.phase == Phase::Ready).map(|i| i.id).collect();
    for id in &up[..3] {
        service.wish(of(*id), "stop").await;
    }
    for position in 1..=3 {
        let person = of(by_position(position));
        service.settled(person, Phase::Ready).await;
        let codes = service.codes(person).await;
        assert_eq!(codes.iter().filter(|code| **code == EventCode::Queued).count(), 1, "told once: {codes:?}");
    }
    let next = service.instance(of(by_position(4))).await.waiting.unwrap();
    assert_eq!((next.position, next.waits_for), (1, WaitsFor::Room));
    assert!(next.seconds.is_some(), "by now it is known how soon somebody has room: {next:?}");
}

#[tokio::test]
async fn whoever_waits_may_give_up_and_visitors_wait_with_the_instance() {
    for mut world in worlds().await {
        world.config.reconcile.line.running = Some(1);
        let service = world.start().await;
        let (alice, bob) = (Person::named("alice"), Person::named("bobby"));
        service.ready(&alice).await;
        service.register(&bob).await;
        eventually(async || {
            let codes = service.codes(&bob).await;
            codes.contains(&EventCode::Queued).then_some(()).ok_or_else(|| format!("not in line: {codes:?}"))
        })
        .await;
        assert_eq!(service.instance(&bob).await.waiting.map(|waiting| waiting.position), Some(1));
        let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
        let RouteMessage::Snapshot(routes) = serde_json::from_str(&feed.next().await.unwrap()).unwrap() else {
            panic!("a snapshot first")
        };
        let route = routes.routes.iter().find(|route| route.instance_id == bob.id).unwrap();
        assert_eq!(route.state, RouteState::Starting, "a page that goes on by itself");

        // A change of what is up needs no room.
        service.configure(&alice, "sk-0123456789abcdef0123456789abcdef").await;
        service.settled(&alice, Phase::Ready).await;
        service.wish(&bob, "stop").await;
        let stopped = service.settled(&bob, Phase::Stopped).await;
        assert_eq!((stopped.waiting, world.engine.count("start", bob.id)), (None, 0));
        service.wish(&bob, "start").await;
        service.until(&bob, "in line again", |instance| instance.waiting.is_some()).await;

        // The service is killed: the line forms again.
        service.kill();
        let service = world.start().await;
        service.until(&bob, "in line again", |instance| instance.waiting.is_some()).await;
        assert_eq!(service.instance(&alice).await.phase, Phase::Ready);
        service.wish(&alice, "stop").await;
        service.settled(&bob, Phase::Ready).await;
        assert_eq!(world.engine.count("start", bob.id), 1, "{}", world.store.name());
    }
}

/// Waits until these wait at these positions; whoever has the turn has none.
async fn wait_like(service: &Running, people: &[Person], order: [Option<u32>; 3]) {
    eventually(async || {
        let mut waiting = Vec::new();
        for person in people {
            waiting.push(service.instance(person).await.waiting.map(|waiting| waiting.position));
        }
        if waiting == order { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
}

/// Three who are up, one after the other, where one is brought up at once.
async fn three(world: &mut World) -> (Running, Vec<Person>) {
    world.config.reconcile.line.at_once = 1;
    let service = world.start().await;
    let people: Vec<_> = ["alice", "bobby", "carol"].map(Person::named).into();
    for person in &people {
        service.ready(person).await;
    }
    (service, people)
}

#[tokio::test]
async fn after_the_host_was_away_those_used_last_come_first() {
    let mut world = sqlite_world().await;
    let (service, people) = three(&mut world).await;
    // They come back in the order that they are in, and so the other way round the next time.
    for order in [[Some(2), Some(1), None], [None, Some(1), Some(2)], [Some(2), Some(1), None]] {
        world.engine.hold("start");
        world.engine.set_away(true);
        for person in &people {
            service.until(person, "unknown", |instance| instance.phase == Phase::Unknown).await;
            world.engine.crash(person.id);
        }
        world.engine.set_away(false);
        wait_like(&service, &people, order).await;
        // Gone again: those who wait in line know it too.
        world.engine.set_away(true);
        for (person, _) in people.iter().zip(order).filter(|(_, position)| position.is_some()) {
            let unknown = service.until(person, "unknown", |instance| instance.phase == Phase::Unknown).await;
            assert_eq!(unknown.waiting, None);
        }
        world.engine.set_away(false);
        wait_like(&service, &people, order).await;
        world.engine.release();
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
    }
}

#[tokio::test]
async fn whoever_is_at_it_comes_before_whoever_was_started_later() {
    let mut world = sqlite_world().await;
    let (service, people) = three(&mut world).await;
    service.kill_and_wait().await;
    // What a router saw of them while they ran.
    let (clock, _) = clock::Clock::manual(1_000);
    let store = store::Store::open(world.store.database(), &MIGRATOR).await.unwrap();
    let registry = Registry::open(store, clock, 20_000).await.unwrap();
    registry.used(&[(people[0].id, 9_000), (people[1].id, 8_000), (people[2].id, 7_000)]).await.unwrap();
    for person in &people {
        world.engine.crash(person.id);
    }
    world.engine.hold("start");
    // It is not left to who is quicker.
    for _ in 0..5 {
        let service = world.start().await;
        wait_like(&service, &people, [None, Some(1), Some(2)]).await;
        service.kill_and_wait().await;
    }
    world.engine.release();
    let service = world.start().await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
}

#[tokio::test]
async fn nobody_waits_for_whoever_is_in_the_middle_of_something() {
    let mut world = sqlite_world().await;
    world.config.reconcile.line.at_once = 1;
    let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
    service.ready(&alice).await;
    world.neighbours.use_it(alice.id, Used { in_flight: 1, then_in_flight: 1, ..Used::default() });
    service.configure(&alice, "sk-new").await;
    until("nobody new gets in", || world.neighbours.route(alice.id) == Some(RouteState::Starting)).await;
    service.ready(&bob).await;
    assert!(world.engine.is_running(alice.id) && world.engine.count("stop", alice.id) == 0, "she is at it still");
    world.neighbours.use_it(alice.id, Used::default());
    assert_eq!(service.settled(&alice, Phase::Ready).await.applied_config_generation, 1);
}
