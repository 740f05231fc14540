//! Instances that nobody uses sleep, and whoever comes finds them awake: on a simulated engine.

mod support;

use std::time::Duration;

use contracts::{
    ProblemDetails,
    deploy::{EventCode, Instance, Phase, WakeReason},
    instance::InstanceActivity,
    routes::RouteState,
};
use deploy_control::{config::Idle, engine::ErrorKind};
use http::StatusCode;
use serde_json::json;
use support::{Person, Running, World, eventually, neighbours::Used, sqlite_world, until, worlds};

const SHORT: Option<Duration> = Some(Duration::from_millis(1));

/// How somebody uses it who is there.
fn used() -> Used {
    Used { idle: Duration::ZERO, ..Used::default() }
}

impl World {
    fn sleepy(mut self, pause_after: Option<Duration>, stop_after: Option<Duration>) -> Self {
        self.config.plans.idle = Idle { pause_after, stop_after };
        self
    }

    /// An instance that somebody uses.
    async fn ready(&self, service: &Running, person: &Person) {
        self.neighbours.use_it(person.id, used());
        service.ready(person).await;
    }

    /// An instance that has fallen asleep so deep.
    async fn asleep(&self, service: &Running, person: &Person, phase: Phase) {
        self.ready(service, person).await;
        self.neighbours.use_it(person.id, Used::default());
        service.settled(person, phase).await;
    }
}

async fn wake(service: &Running, person: &Person) -> (StatusCode, serde_json::Value) {
    service.post(&format!("/api/instances/{}/wake", person.id), &json!({ "why": WakeReason::Visit })).await
}

#[tokio::test]
async fn nobody_uses_it_so_it_is_frozen_and_the_next_visit_finds_it_as_it_was() {
    for world in worlds().await {
        let world = world.sleepy(SHORT, None);
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.ready(&service, &alice).await;
        let run = world.engine.units()[0].run.clone();
        world.neighbours.use_it(alice.id, Used { idle: Duration::from_secs(600), ..Used::default() });
        service.settled(&alice, Phase::Paused).await;
        assert!(world.engine.is_paused(alice.id), "{}", world.store.name());
        until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Paused)).await;

        world.neighbours.use_it(alice.id, used());
        assert_eq!(wake(&service, &alice).await.0, StatusCode::ACCEPTED);
        let ready = service.settled(&alice, Phase::Ready).await;
        assert_eq!((ready.error, &world.engine.units()[0].run), (None, &run), "the same run");
        until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Running)).await;
        assert!(world.engine.is_running(alice.id));

        let events = service.events(&alice).await;
        use EventCode::*;
        let codes: Vec<_> = events.iter().map(|event| event.code).collect();
        assert_eq!(codes[7..], [SleepRequested, Paused, WakeRequested, Woken]);
        let [asleep, awake] = [&events[7], &events[9]];
        assert_eq!(asleep.actor, "beaver");
        assert!(asleep.detail.as_ref().unwrap().starts_with("paused, unused for "), "{asleep:?}");
        assert_eq!((awake.actor.clone(), awake.detail.as_deref()), (alice.account.to_string(), Some("visit")));

        // Again and again, at once: nothing more happens.
        futures_util::future::join_all((0..10).map(|_| wake(&service, &alice))).await;
        assert_eq!(service.codes(&alice).await.len(), codes.len());
        assert_eq!((world.engine.count("start", alice.id), world.engine.count("pause", alice.id)), (2, 1));
    }
}

#[tokio::test]
async fn after_longer_it_is_stopped_and_a_visit_starts_it_once() {
    for world in worlds().await {
        let world = world.sleepy(SHORT, Some(Duration::from_secs(60)));
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.ready(&service, &alice).await;
        let since = Used { idle: Duration::from_secs(30), ..Used::default() };
        world.neighbours.use_it(alice.id, since);
        service.settled(&alice, Phase::Paused).await;
        service.kill();

        // Being up for shorter than that, it would not be stopped yet: as if it were later.
        let world = world.sleepy(SHORT, SHORT);
        let service = world.start().await;
        world.neighbours.use_it(alice.id, Used::default());
        service.settled(&alice, Phase::Asleep).await;
        assert!(!world.engine.is_running(alice.id) && !world.engine.is_paused(alice.id), "{}", world.store.name());
        until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Asleep)).await;

        world.neighbours.use_it(alice.id, used());
        futures_util::future::join_all((0..10).map(|_| wake(&service, &alice))).await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.engine.count("start", alice.id), 2, "one start, however many came");
        use EventCode::*;
        let codes = service.codes(&alice).await;
        assert_eq!(
            codes[7..],
            [SleepRequested, Paused, SleepRequested, Asleep, WakeRequested, Started, Healthy, Ready]
        );
    }
}

#[tokio::test]
async fn whatever_is_under_way_keeps_it_awake() {
    let world = sqlite_world().await.sleepy(SHORT, SHORT);
    let (service, idle) = (world.start().await, Person::named("idler"));
    let busy = InstanceActivity { busy: true, wake_keys: Vec::new() };
    let people = [
        ("requests", Used { in_flight: 1, then_in_flight: 1, ..Used::default() }),
        ("used-just-now", used()),
        ("busy-itself", Used { own: busy, ..Used::default() }),
    ]
    .map(|(name, used)| (Person::named(name), used));
    for (person, used) in &people {
        world.ready(&service, person).await;
        world.neighbours.use_it(person.id, used.clone());
    }
    // The control: who is idle falls asleep meanwhile.
    world.asleep(&service, &idle, Phase::Asleep).await;
    let looked = world.neighbours.looked();
    until("looked three times more", || world.neighbours.looked() >= looked + 3).await;
    for (person, _) in &people {
        assert_eq!(service.instance(person).await.phase, Phase::Ready, "{}", person.slug);
        assert!(!service.codes(person).await.contains(&EventCode::SleepRequested), "{}", person.slug);
    }
}

#[tokio::test]
async fn a_plan_says_when_and_without_a_word_nobody_sleeps() {
    let world = sqlite_world().await.sleepy(None, None);
    std::fs::create_dir_all(world.config.plans.file.parent().unwrap()).unwrap();
    std::fs::write(&world.config.plans.file, "[notes]\nimage = \"notes:1\"\nport = 80\nidle_timeout = 1\n").unwrap();
    let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
    world.ready(&service, &alice).await;
    let mut wanted = bob.wanted();
    wanted.plan = Some("notes".into());
    let (status, _) = service.post::<Instance>("/api/instances/register", &wanted).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    world.neighbours.use_it(alice.id, Used::default());
    service.settled(&bob, Phase::Asleep).await;
    let looked = world.neighbours.looked();
    until("looked twice more", || world.neighbours.looked() >= looked + 2).await;
    assert_eq!(service.instance(&alice).await.phase, Phase::Ready);
    assert_eq!(world.neighbours.asked(), ["/"], "it was asked for its health alone");
}

#[tokio::test]
async fn a_request_that_comes_in_between_is_found_and_it_stays_awake() {
    for stop_after in [None, SHORT] {
        let world = sqlite_world().await.sleepy(SHORT, stop_after);
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.ready(&service, &alice).await;
        // Nobody, as it is looked who sleeps; somebody, as it is to sleep.
        world.neighbours.use_it(alice.id, Used { then_in_flight: 1, ..Used::default() });
        let told = eventually(async || {
            let events = service.events(&alice).await;
            events.into_iter().find(|event| event.code == EventCode::WakeRequested).ok_or_else(|| "never woken".into())
        })
        .await;
        assert_eq!((told.actor.as_str(), told.detail.as_deref()), ("beaver", Some("quiet")));
        world.neighbours.use_it(alice.id, used());
        service.settled(&alice, Phase::Ready).await;
        assert!(world.engine.is_running(alice.id));
        assert_eq!((world.engine.count("pause", alice.id), world.engine.count("stop", alice.id)), (0, 0));
        until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Running)).await;
    }
}

#[tokio::test]
async fn a_wake_wins_over_what_is_under_way() {
    for (call, stop_after) in [("pause", None), ("stop", SHORT)] {
        let world = sqlite_world().await.sleepy(SHORT, stop_after);
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.ready(&service, &alice).await;
        world.engine.hold(call);
        world.neighbours.use_it(alice.id, Used::default());
        until("it is being put to sleep", || world.engine.is_holding(call)).await;
        world.neighbours.use_it(alice.id, used());
        wake(&service, &alice).await;
        world.engine.release();
        service.settled(&alice, Phase::Ready).await;
        assert!(world.engine.is_running(alice.id), "{call}");
        until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Running)).await;
        assert!(!service.codes(&alice).await.contains(&EventCode::Recovered), "nothing was taken for a mishap");
    }
}

#[tokio::test]
async fn what_somebody_stopped_or_what_failed_is_not_woken_and_nothing_of_another_person() {
    let world = sqlite_world().await.sleepy(SHORT, SHORT);
    let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
    world.asleep(&service, &alice, Phase::Asleep).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    let (status, problem) = wake(&service, &alice).await;
    assert_eq!((status, problem["code"].as_str()), (StatusCode::CONFLICT, Some("instance_down")));
    assert_eq!(service.settled(&alice, Phase::Stopped).await.phase, Phase::Stopped);

    world.engine.refuse("start", ErrorKind::Rejected);
    service.register(&bob).await;
    service.settled(&bob, Phase::Failed).await;
    assert_eq!(wake(&service, &bob).await.0, StatusCode::CONFLICT);
    world.engine.accept("start");
    assert_eq!(service.settled(&bob, Phase::Failed).await.phase, Phase::Failed);

    let carol = Person::named("carol");
    world.asleep(&service, &carol, Phase::Asleep).await;
    let path = format!("/api/instances/{}/wake", carol.id);
    let body = json!({ "account_id": alice.account, "why": "portal" });
    let (status, problem) = service.post::<ProblemDetails>(&path, &body).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::NOT_FOUND, "instance_not_found"));
    assert_eq!(service.instance(&carol).await.phase, Phase::Asleep);
    let nobody = Person::named("nobody");
    assert_eq!(wake(&service, &nobody).await.0, StatusCode::NOT_FOUND);
    // The control.
    world.neighbours.use_it(carol.id, used());
    let body = json!({ "account_id": carol.account, "why": "portal" });
    assert_eq!(service.post::<Instance>(&path, &body).await.0, StatusCode::ACCEPTED);
    service.settled(&carol, Phase::Ready).await;
}

#[tokio::test]
async fn wishes_find_it_asleep_and_are_fulfilled() {
    for world in worlds().await {
        let world = world.sleepy(SHORT, None);
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.asleep(&service, &alice, Phase::Paused).await;
        // Who gives it another provider wants to see it work.
        world.neighbours.use_it(alice.id, used());
        service.configure(&alice, "sk-canary").await;
        let ready = service.settled(&alice, Phase::Ready).await;
        assert_eq!((ready.applied_config_generation, ready.error), (1, None), "{}", world.store.name());

        for (wish, phase) in [("restart", Phase::Ready), ("start", Phase::Ready), ("stop", Phase::Stopped)] {
            world.neighbours.use_it(alice.id, Used::default());
            service.settled(&alice, Phase::Paused).await;
            world.neighbours.use_it(alice.id, used());
            service.wish(&alice, wish).await;
            service.settled(&alice, phase).await;
            assert_eq!(world.engine.is_running(alice.id), phase == Phase::Ready, "{wish}");
            assert!(!world.engine.is_paused(alice.id), "{wish}");
            if phase == Phase::Stopped {
                service.wish(&alice, "start").await;
                service.settled(&alice, Phase::Ready).await;
            }
        }

        // What it is made from has changed meanwhile: nobody is disturbed for it, and once it is awake it is made anew.
        world.neighbours.use_it(alice.id, Used::default());
        service.settled(&alice, Phase::Paused).await;
        let made = world.engine.count("ensure", alice.id);
        service.kill();
        world.engine.set_image("another");
        let service = world.start().await;
        let looked = world.neighbours.looked();
        until("looked twice more", || world.neighbours.looked() >= looked + 2).await;
        assert!(world.engine.is_paused(alice.id) && world.engine.count("ensure", alice.id) == made);
        world.neighbours.use_it(alice.id, used());
        wake(&service, &alice).await;
        until("made anew", || world.engine.count("ensure", alice.id) == made + 1).await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.engine.count("ensure", alice.id), made + 1);
    }
}

#[tokio::test]
async fn a_frozen_one_that_the_engine_lost_sleeps_deeper_and_wakes_all_the_same() {
    let world = sqlite_world().await.sleepy(SHORT, None);
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.asleep(&service, &alice, Phase::Paused).await;
    // As a restart of the engine leaves it.
    world.engine.set_away(true);
    service.until(&alice, "unknown", |instance| instance.phase == Phase::Unknown).await;
    assert_eq!(world.neighbours.route(alice.id), Some(RouteState::Paused), "routes stay");
    world.engine.crash(alice.id);
    world.engine.set_away(false);
    service.settled(&alice, Phase::Asleep).await;
    assert_eq!(world.engine.count("start", alice.id), 1, "nobody asked for it");
    world.neighbours.use_it(alice.id, used());
    wake(&service, &alice).await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, world.engine.count("start", alice.id)), (None, 2));
    assert!(!service.codes(&alice).await.contains(&EventCode::Recovered), "it did not come down by itself");
}

#[tokio::test]
async fn an_engine_that_cannot_freeze_it_leaves_it_as_it_is() {
    let world = sqlite_world().await.sleepy(SHORT, None);
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.refuse("pause", ErrorKind::Rejected);
    world.ready(&service, &alice).await;
    world.neighbours.use_it(alice.id, Used::default());
    until("it was tried", || world.engine.count("pause", alice.id) > 0).await;
    world.neighbours.use_it(alice.id, used());
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, world.engine.is_running(alice.id)), (None, true));
    until("told to the router", || world.neighbours.route(alice.id) == Some(RouteState::Running)).await;
}

#[tokio::test]
async fn killed_in_the_middle_of_each_step_it_sleeps_and_wakes_as_it_was_to() {
    for world in worlds().await {
        let mut world = world;
        for (n, (call, stop_after)) in [("pause", None), ("stop", SHORT), ("observe", None)].into_iter().enumerate() {
            world.config.plans.idle = Idle { pause_after: SHORT, stop_after };
            let phase = if stop_after.is_some() { Phase::Asleep } else { Phase::Paused };
            let person = Person::named(&format!("person-{n}"));
            let service = world.start().await;
            world.ready(&service, &person).await;
            world.engine.hold(call);
            world.neighbours.use_it(person.id, Used::default());
            until("held", || world.engine.is_holding(call)).await;
            service.kill();
            world.engine.release();

            let service = world.start().await;
            service.settled(&person, phase).await;
            world.neighbours.use_it(person.id, used());
            world.engine.hold("start");
            wake(&service, &person).await;
            until("held", || world.engine.is_holding("start")).await;
            service.kill();
            world.engine.release();

            let service = world.start().await;
            let ready = service.settled(&person, Phase::Ready).await;
            assert_eq!(
                (ready.error, world.engine.is_running(person.id)),
                (None, true),
                "{call} {}",
                world.store.name()
            );
            until("told", || world.neighbours.route(person.id) == Some(RouteState::Running)).await;
            service.kill();
        }
    }
}

#[tokio::test]
async fn what_wakes_it_is_told_to_the_router_while_it_sleeps_and_no_longer() {
    let world = sqlite_world().await.sleepy(SHORT, None);
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.asleep(&service, &alice, Phase::Paused).await;
    let keys = async || {
        let mut feed = support::reader::Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
        let Some(contracts::routes::RouteMessage::Snapshot(snapshot)) = feed.json().await else { panic!("a snapshot") };
        snapshot.routes[0].wake_keys.clone()
    };
    assert_eq!(keys().await, ["k".repeat(43)], "and nothing that is none");
    world.neighbours.use_it(alice.id, used());
    wake(&service, &alice).await;
    service.settled(&alice, Phase::Ready).await;
    assert!(keys().await.is_empty());
}

#[tokio::test]
async fn one_that_the_engine_does_not_wake_at_once_is_neither_asked_to_end_nor_made_anew() {
    let world = sqlite_world().await.sleepy(SHORT, None);
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.asleep(&service, &alice, Phase::Paused).await;
    let run = world.engine.units()[0].run.clone();
    // It would take the connection, and hear of it once it goes on.
    let its = tokio::net::UnixListener::bind(world.socket(alice.id).with_file_name(door::END)).unwrap();
    world.engine.fail_next("start", ErrorKind::Rejected);
    world.neighbours.use_it(alice.id, used());
    wake(&service, &alice).await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.engine.units()[0].run, run, "the same run");
    assert!(tokio::time::timeout(Duration::from_millis(1), its.accept()).await.is_err());
}
