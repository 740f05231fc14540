//! An engine that does not do what it is asked for, again and again.

mod support;

use std::{path::Path, time::Duration};

use contracts::deploy::{EventCode, Phase};
use deploy_control::engine::ErrorKind;
use support::{Person, Running, World, sqlite_world, until};
use tokio::net::UnixListener;

/// A process of somebody's that the engine does not know of: its sockets.
struct Forgotten {
    end: UnixListener,
    _http: UnixListener,
}

impl Forgotten {
    fn runs(world: &World, person: &Person) -> Self {
        let listen = |socket: &Path| {
            let _ = std::fs::remove_file(socket);
            UnixListener::bind(socket).unwrap()
        };
        let http = world.socket(person.id);
        Self { end: listen(&http.with_file_name(door::END)), _http: listen(&http) }
    }

    /// Until it is asked to end again and again, as one is that is waited for.
    async fn is_waited_for(&self) {
        for _ in 0..3 {
            tokio::time::timeout(Duration::from_secs(30), self.end.accept()).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn one_that_cannot_be_stopped_is_tried_now_and_then_and_looked_at_again() {
    let mut world = sqlite_world().await;
    world.config.reconcile.first_retry = Duration::from_millis(100);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    world.engine.refuse("stop", ErrorKind::Rejected);
    service.wish(&alice, "stop").await;
    until("it was tried", || world.engine.count("stop", alice.id) >= 2).await;
    let (tried, told) = (world.engine.count("stop", alice.id), service.events(&alice).await.len());
    // A wish of another's goes its way meanwhile; a worker at full speed would have written thousands of times by then.
    let bob = Person::named("bobby");
    service.ready(&bob).await;
    let (more, told_since) = (world.engine.count("stop", alice.id) - tried, service.events(&alice).await.len() - told);
    assert!(more <= 12 && told_since <= 12, "{more} tries and {told_since} events while one was brought up");
    world.engine.accept("stop");
    service.settled(&alice, Phase::Stopped).await;
    assert!(!world.engine.is_running(alice.id));
}

#[tokio::test]
async fn one_that_is_not_reached_and_cannot_be_stopped_is_not_waited_for_in_vain() {
    let mut world = sqlite_world().await;
    world.config.reconcile.start_timeout = Duration::from_secs(600);
    world.config.reconcile.first_retry = Duration::from_millis(200);
    world.config.reconcile.resync = Duration::from_millis(20);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    world.engine.refuse("stop", ErrorKind::Rejected);
    let run = world.engine.run(alice.id);
    std::fs::remove_file(world.socket(alice.id)).unwrap();
    until("it was tried", || world.engine.count("stop", alice.id) >= 2).await;
    world.engine.accept("stop");
    service.settled(&alice, Phase::Ready).await;
    assert_ne!(world.engine.run(alice.id), run);
    assert!(service.codes(&alice).await.contains(&EventCode::Recovered));
}

#[tokio::test]
async fn after_a_mistake_of_ours_somebody_else_goes_on() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    world.engine.panic_next("stop");
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    assert_eq!(world.engine.count("stop", alice.id), 2, "once in vain");
}

#[tokio::test]
async fn what_is_wished_as_something_comes_to_its_end_is_taken_up_at_once() {
    let mut world = sqlite_world().await;
    // Longer than anybody waits here: a worker that did not see the wish would leave it to that.
    world.config.reconcile.resync = Duration::from_secs(600);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    for _ in 0..10 {
        // So that there is time between the row that is told and the end of the work on it.
        for n in 0..900 {
            std::fs::write(world.config_dir(alice.id).join(format!(".tmp-{n}")), "").unwrap();
        }
        for (wish, phase) in [("restart", Phase::Ready), ("stop", Phase::Stopped), ("start", Phase::Ready)] {
            service.wish(&alice, wish).await;
            service.settled(&alice, phase).await;
        }
    }
}

#[tokio::test]
async fn a_start_that_is_wished_between_two_attempts_is_one_of_its_own() {
    let mut world = sqlite_world().await;
    // Longer than anybody waits here.
    world.config.reconcile.first_retry = Duration::from_secs(600);
    world.engine.fail_next("ensure", ErrorKind::Rejected);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.register(&alice).await;
    service.until(&alice, "failed once", |instance| instance.error.is_some()).await;
    assert_eq!(service.wish(&alice, "start").await.generation, 2);
    service.settled(&alice, Phase::Ready).await;
}

/// Has an instance made, and stopped.
async fn stopped(service: &Running, person: &Person) {
    service.ready(person).await;
    service.wish(person, "stop").await;
    service.settled(person, Phase::Stopped).await;
}

#[tokio::test]
async fn whoever_runs_though_the_engine_forgot_it_is_asked_to_end_and_then_it_starts() {
    let (world, alice) = (sqlite_world().await, Person::named("alice"));
    let service = world.start().await;
    stopped(&service, &alice).await;
    let forgotten = Forgotten::runs(&world, &alice);
    let (created, removed) = (world.engine.count("ensure", alice.id), world.engine.count("remove", alice.id));
    world.engine.refuse("start", ErrorKind::Rejected);
    service.wish(&alice, "start").await;
    forgotten.is_waited_for().await;
    world.engine.accept("start");
    drop(forgotten);
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!(ready.error, None, "nobody needs to know");
    assert_eq!(world.engine.count("ensure", alice.id), created, "the same one was started");
    assert_eq!(world.engine.count("remove", alice.id), removed);
}

#[tokio::test]
async fn one_that_the_engine_does_not_start_is_made_anew() {
    let (world, alice) = (sqlite_world().await, Person::named("alice"));
    let service = world.start().await;
    stopped(&service, &alice).await;
    let removed = world.engine.count("remove", alice.id);
    world.engine.fail_next("start", ErrorKind::Rejected);
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.engine.count("remove", alice.id), removed + 1);
    assert!(!service.codes(&alice).await.contains(&EventCode::AttemptFailed), "that was no attempt");
}

#[tokio::test]
async fn one_that_the_engine_never_starts_is_given_up_after_a_few_attempts() {
    let mut world = sqlite_world().await;
    world.config.reconcile.first_retry = Duration::from_millis(1);
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.refuse("start", ErrorKind::Rejected);
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "engine_rejected");
    let (started, removed) = (world.engine.count("start", alice.id), world.engine.count("remove", alice.id));
    assert_eq!(started, 2 * removed, "each attempt was made with another one, too");
    world.engine.accept("start");
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
}

#[tokio::test]
async fn what_runs_though_it_is_to_be_down_is_found_by_itself() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let (service, alice) = (world.start().await, Person::named("alice"));
    stopped(&service, &alice).await;
    let told = service.events(&alice).await.len();
    let forgotten = Forgotten::runs(&world, &alice);
    forgotten.is_waited_for().await;
    drop(forgotten);
    // What is waited for is no reason to wait with a wish.
    let forgotten = Forgotten::runs(&world, &alice);
    forgotten.is_waited_for().await;
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(service.events(&alice).await.len(), told + 4, "{:?}", service.codes(&alice).await);
}

#[tokio::test]
async fn nothing_is_taken_from_under_what_runs_though_the_engine_forgot_it() {
    let (world, alice) = (sqlite_world().await, Person::named("alice"));
    let service = world.start().await;
    world.neighbours.set_refuse_owner(true);
    service.register(&alice).await;
    service.settled(&alice, Phase::Failed).await;
    until("it is down", || !world.engine.is_running(alice.id)).await;
    let data = world.config.data_dir.join("instances").join(alice.id.to_string());
    let forgotten = Forgotten::runs(&world, &alice);
    service.wish(&alice, "discard").await;
    forgotten.is_waited_for().await;
    assert!(data.exists());
    drop(forgotten);
    service.settled(&alice, Phase::Deleted).await;
    assert!(!data.exists());
}

#[tokio::test]
async fn a_door_behind_which_nobody_ends_is_closed_and_nobody_waits_at_it_again() {
    let mut world = sqlite_world().await;
    (world.config.reconcile.resync, world.config.reconcile.end_limit) =
        (Duration::from_millis(20), Duration::from_millis(300));
    let (service, alice) = (world.start().await, Person::named("alice"));
    stopped(&service, &alice).await;
    let forgotten = Forgotten::runs(&world, &alice);
    let doors = [world.socket(alice.id).with_file_name(door::END), world.socket(alice.id)];
    until("closed", || !doors.iter().any(|door| door.exists())).await;
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    // It listened all the while, as a socket does that was sent away to where nobody reads it.
    drop(forgotten);
}
