//! Sign-ups that cannot succeed, on the real Docker engine: each ends with its reason, and goes on once that is gone.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;
mod support;

use std::{sync::Arc, time::Duration};

use contracts::deploy::{EventCode, Phase};
use deploy_control::{
    config::Limits,
    engine::{Engine, docker::Docker},
};
use host::Host;
use support::{Person, Running, neighbours::Neighbours};

/// Not a test: what the engine starts. See [`instance`].
#[test]
fn as_an_instance() {
    instance::serve_if_started_by_an_engine();
}

/// The service on the host's engine, with false neighbours.
async fn start(host: &Host) -> Running {
    start_with(host, host.config.plans.limits).await
}

/// The same, with these limits for instances.
async fn start_with(host: &Host, limits: Limits) -> Running {
    let engine: Arc<dyn Engine> = Arc::new(Docker::new(&host.config.engine));
    let run_of = support::answering_runs(engine.clone(), host.folder.path().to_owned());
    let neighbours = Neighbours::start(run_of, host.folder.path().to_owned()).await;
    let mut config = host.config.clone();
    config.peers.authz_url = neighbours.authz_url.parse().unwrap();
    config.peers.router_url = neighbours.router_url.parse().unwrap();
    config.plans.limits = limits;
    // The attempts together last longer than an image's id is believed, so that the last ones see another image.
    config.reconcile.first_retry = Duration::from_millis(600);
    let mut service = support::start(&config, engine).await;
    service.follow();
    service
}

#[tokio::test]
async fn a_missing_image_fails_with_its_reason_and_another_attempt_works_when_it_is_there() {
    let Some(host) = Host::without_image().await else { return };
    let (service, alice) = (start(&host).await, Person::named("alice"));
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "image_missing");
    assert_eq!(service.codes(&alice).await.last(), Some(&EventCode::Failed));

    host.build_image().await;
    service.wish(&alice, "retry").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, host.inspect(alice.id).await.state.unwrap().running), (None, Some(true)));
    // As whom it says it does: the user id of its row.
    let user = host.inspect(alice.id).await.config.unwrap().user.unwrap();
    assert_eq!(user, format!("{uid}:{uid}", uid = host.config.engine.uid_base + 1));
}

#[tokio::test]
async fn an_image_that_cannot_be_run_fails_with_its_reason_and_a_start_works_with_a_better_one() {
    let Some(host) = Host::without_image().await else { return };
    host.build_image_of("/not-there").await;
    let (service, alice) = (start(&host).await, Person::named("alice"));
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    // The container starts, with an init of the engine's that finds nothing to run.
    assert_eq!(failed.error.unwrap().code, "crash_loop");

    let first = host.inspect(alice.id).await;
    host.build_image().await;
    service.wish(&alice, "start").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    let second = host.inspect(alice.id).await;
    assert_eq!((ready.error, second.state.unwrap().running), (None, Some(true)));
    assert_ne!(second.image, first.image, "the unit is made from the better one");
}

#[tokio::test]
async fn a_new_image_that_cannot_be_run_takes_nobody_down_for_long() {
    let Some(host) = Host::new().await else { return };
    let service = start(&host).await;
    let people = ["alice", "bobby", "carol"].map(Person::named);
    for person in &people {
        service.register(person).await;
    }
    let mut first = None;
    for person in &people {
        service.settled(person, Phase::Ready).await;
        first = host.inspect(person.id).await.image;
    }
    service.kill();

    host.build_image_of("/not-there").await;
    let service = start(&host).await;
    support::eventually(async || {
        let mut back = 0;
        for person in &people {
            back += service.codes(person).await.iter().filter(|c| **c == EventCode::ReleaseRolledBack).count();
        }
        (back == 1).then_some(()).ok_or_else(|| format!("{back} went back"))
    })
    .await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
        let container = host.inspect(person.id).await;
        assert_eq!((container.state.unwrap().running, &container.image), (Some(true), &first), "{}", person.slug);
    }
    service.kill();

    // A third one, which is fine again: everybody gets it, without being asked.
    host.build_image_with("/instance", "ENV THIRD=1").await;
    let service = start(&host).await;
    support::eventually(async || {
        let mut old = 0;
        for person in &people {
            // In between it has none.
            let there = host.client.inspect_container(&host.name(person.id), None).await.ok();
            old += usize::from(there.is_none_or(|container| container.image == first));
        }
        (old == 0).then_some(()).ok_or_else(|| format!("{old} have the first one"))
    })
    .await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
        assert_eq!(host.inspect(person.id).await.state.unwrap().running, Some(true));
        assert_eq!(service.codes(person).await.iter().filter(|c| **c == EventCode::Upgraded).count(), 1);
    }
}

#[tokio::test]
async fn what_one_goes_back_to_is_there_after_a_prune_for_as_long_as_somebody_may() {
    let Some(host) = Host::new().await else { return };
    let (service, alice) = (start(&host).await, Person::named("alice"));
    service.ready(&alice).await;
    let first = host.inspect(alice.id).await.image.unwrap();
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    service.kill();
    // The next life looks at everything when it starts.
    let service = start(&host).await;
    let kept = || host.named("release");
    let is_kept = async || match kept().await {
        images if images == [first.clone()] => Ok(()),
        images => Err(format!("{images:?} are kept, not {first}")),
    };
    support::eventually(is_kept).await;
    service.kill();

    // What `docker system prune` does, to what is this test's.
    host.build_image_of("/not-there").await;
    host.prune().await;
    let service = start(&host).await;
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    assert!(service.codes(&alice).await.contains(&EventCode::ReleaseRolledBack));
    assert_eq!(host.inspect(alice.id).await.image.as_ref(), Some(&first));
    service.kill();

    host.build_image_with("/instance", "ENV THIRD=1").await;
    let service = start(&host).await;
    service.until(&alice, "upgraded", |instance| instance.phase == Phase::Ready && instance.error.is_none()).await;
    support::eventually(async || {
        let there = host.client.inspect_container(&host.name(alice.id), None).await.ok().and_then(|found| found.image);
        there.filter(|image| *image != first).map(drop).ok_or_else(|| "it runs the first one".to_owned())
    })
    .await;
    service.settled(&alice, Phase::Ready).await;
    service.kill();
    let _service = start(&host).await;
    let second = host.inspect(alice.id).await.image.unwrap();
    support::eventually(async || match kept().await {
        images if images == [second.clone()] => Ok(()),
        images => Err(format!("{images:?} are kept, not {second}")),
    })
    .await;
}

#[tokio::test]
async fn a_hostile_writer_is_stopped_with_a_reason_and_goes_on_when_it_may_take_more() {
    let Some(mut host) = Host::without_image().await else { return };
    host.build_image_with("/instance", "ENV TEST_WRITES=40").await;
    host.config.plans.disk_bytes = Some(8 << 20);
    host.config.measure_disk_every = Duration::from_millis(60);
    let (service, alice) = (start(&host).await, Person::named("alice"));
    service.register(&alice).await;
    let stopped = service.settled(&alice, Phase::Failed).await;
    assert_eq!(stopped.error.unwrap().code, "disk_exceeded");
    support::eventually(async || match host.inspect(alice.id).await.state.unwrap().running {
        Some(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    service.wish(&alice, "retry").await;
    assert_eq!(service.settled(&alice, Phase::Failed).await.error.unwrap().code, "disk_exceeded");
    assert_eq!(host.inspect(alice.id).await.state.unwrap().running, Some(false), "not even for a moment");
    service.kill();

    host.config.plans.disk_bytes = Some(80 << 20);
    let service = start(&host).await;
    service.wish(&alice, "retry").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, host.inspect(alice.id).await.state.unwrap().running), (None, Some(true)));
}

#[tokio::test]
async fn what_the_engine_refuses_fails_with_its_reason_and_goes_on_under_another_setting() {
    let Some(host) = Host::new().await else { return };
    // Less than any engine gives.
    let service = start_with(&host, Limits { memory_bytes: 1 << 20, ..host.config.plans.limits }).await;
    let alice = Person::named("alice");
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "engine_rejected");
    service.kill();

    let service = start(&host).await;
    assert_eq!(service.settled(&alice, Phase::Failed).await.error.unwrap().code, "engine_rejected", "nobody asked");
    service.wish(&alice, "retry").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, host.inspect(alice.id).await.state.unwrap().running), (None, Some(true)));
}
