//! An engine that does not do what it is asked for, again and again.

mod support;

use contracts::deploy::{EventCode, Phase};
use deploy_control::engine::ErrorKind;
use support::{Person, sqlite_world, until};

#[tokio::test]
async fn one_that_cannot_be_stopped_is_tried_now_and_then_and_looked_at_again() {
    let mut world = sqlite_world().await;
    world.config.reconcile.first_retry = std::time::Duration::from_millis(100);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.register(&alice).await;
    service.settled(&alice, Phase::Ready).await;
    world.engine.refuse("stop", ErrorKind::Rejected);
    service.wish(&alice, "stop").await;
    until("it was tried", || world.engine.count("stop", alice.id) >= 2).await;
    let (tried, told) = (world.engine.count("stop", alice.id), service.events(&alice).await.len());
    // A wish of another's goes its way meanwhile; a worker at full speed would have written thousands of times by then.
    let bob = Person::named("bobby");
    service.register(&bob).await;
    service.settled(&bob, Phase::Ready).await;
    let (more, told_since) = (world.engine.count("stop", alice.id) - tried, service.events(&alice).await.len() - told);
    assert!(more <= 12 && told_since <= 12, "{more} tries and {told_since} events while one was brought up");
    world.engine.accept("stop");
    service.settled(&alice, Phase::Stopped).await;
    assert!(!world.engine.is_running(alice.id));
}

#[tokio::test]
async fn one_that_is_not_reached_and_cannot_be_stopped_is_not_waited_for_in_vain() {
    let mut world = sqlite_world().await;
    world.config.reconcile.start_timeout = std::time::Duration::from_secs(600);
    world.config.reconcile.first_retry = std::time::Duration::from_millis(200);
    world.config.reconcile.resync = std::time::Duration::from_millis(20);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.register(&alice).await;
    service.settled(&alice, Phase::Ready).await;
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
async fn a_start_that_is_wished_between_two_attempts_is_one_of_its_own() {
    let mut world = sqlite_world().await;
    // Longer than anybody waits here.
    world.config.reconcile.first_retry = std::time::Duration::from_secs(600);
    world.engine.fail_next("ensure", ErrorKind::Rejected);
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.register(&alice).await;
    service.until(&alice, "failed once", |instance| instance.error.is_some()).await;
    assert_eq!(service.wish(&alice, "start").await.generation, 2);
    service.settled(&alice, Phase::Ready).await;
}

#[tokio::test]
async fn whoever_runs_though_the_engine_forgot_it_is_asked_to_end_and_then_it_starts() {
    let (world, alice) = (sqlite_world().await, Person::named("alice"));
    let service = world.start().await;
    service.register(&alice).await;
    service.settled(&alice, Phase::Ready).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    let forgotten = tokio::net::UnixListener::bind(world.socket(alice.id).with_file_name(door::END)).unwrap();
    let (created, removed) = (world.engine.count("ensure", alice.id), world.engine.count("remove", alice.id));
    world.engine.refuse("start", ErrorKind::Rejected);
    service.wish(&alice, "start").await;
    // Asked again for as long as it is there.
    for _ in 0..2 {
        tokio::time::timeout(std::time::Duration::from_secs(30), forgotten.accept()).await.unwrap().unwrap();
    }
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
    service.register(&alice).await;
    service.settled(&alice, Phase::Ready).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
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
    world.config.reconcile.first_retry = std::time::Duration::from_millis(1);
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
