//! From a wish to a workspace, and through everything that can get in between, on a simulated engine.

mod support;

use std::collections::BTreeSet;

use contracts::deploy::{Desired, EventCode, Phase};
use deploy_control::engine::{ErrorKind, Unit, UnitState};
use support::{Person, World, eventually, sqlite_world, until, worlds};

#[tokio::test]
async fn a_sign_up_becomes_a_workspace_once() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        let accepted = service.register(&alice).await;
        assert_eq!((accepted.phase, accepted.origin.as_str()), (Phase::Accepted, "http://alice.localhost:8088"));
        let ready = service.settled(&alice, Phase::Ready).await;
        assert_eq!((ready.error, ready.config_generation), (None, 0));
        use EventCode::*;
        assert_eq!(
            service.codes(&alice).await,
            [Accepted, Prepared, Created, Started, Healthy, Registered, Ready],
            "{}",
            world.store.name()
        );
        let seqs: Vec<_> = service.events(&alice).await.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=7).collect::<Vec<_>>());

        assert_eq!(service.register(&alice).await.phase, Phase::Ready);
        let (again, _) = (service.settled(&alice, Phase::Ready).await, ());
        assert_eq!(again.generation, 1);
        assert_eq!((world.engine.count("ensure", alice.id), world.engine.count("start", alice.id)), (1, 1));
        assert_eq!(world.neighbours.owners_taken(alice.id), 1);
        assert!(!world.config_dir(alice.id).join("registration.json").exists(), "a spent token is taken away");
        assert_eq!(world.current_config(alice.id).owner, alice.account);
    }
}

#[tokio::test]
async fn an_instance_that_lost_its_owner_gets_it_again() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        service.wish(&alice, "stop").await;
        service.settled(&alice, Phase::Stopped).await;
        world.neighbours.forget_owner(alice.id);
        service.wish(&alice, "start").await;
        let ready = service.settled(&alice, Phase::Ready).await;
        assert_eq!((ready.error, world.neighbours.owners_taken(alice.id)), (None, 1), "{}", world.store.name());
        use EventCode::*;
        let codes = service.codes(&alice).await;
        assert_eq!(codes[7..], [StopRequested, Stopped, StartRequested, Started, Healthy, Healthy, Registered, Ready]);
        assert_eq!(world.engine.count("start", alice.id), 2, "it was not restarted for it");
        assert!(!world.config_dir(alice.id).join("registration.json").exists(), "a spent token is taken away");

        // The control: one that knows its owner is left alone.
        service.wish(&alice, "restart").await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.neighbours.owners_taken(alice.id), 1);
    }
}

#[tokio::test]
async fn what_nobody_ever_had_is_taken_back_with_its_folders_and_nothing_else_is() {
    for world in worlds().await {
        let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
        world.neighbours.set_refuse_owner(true);
        service.register(&alice).await;
        let failed = service.until(&alice, "failed", |instance| instance.phase == Phase::Failed).await;
        assert_eq!(failed.phase, Phase::Failed);
        let elsewhere = world.config.data_dir.join("elsewhere");
        std::fs::write(&elsewhere, "kept").unwrap();
        let data = world.config.data_dir.join(format!("instances/{}/data", alice.id));
        std::os::unix::fs::symlink(&elsewhere, data.join("link")).unwrap();
        std::os::unix::fs::symlink(&world.config.data_dir, data.join("all")).unwrap();

        service.wish(&alice, "discard").await;
        service.settled(&alice, Phase::Deleted).await;
        for folder in ["run", "instances"] {
            assert!(!world.config.data_dir.join(folder).join(alice.id.to_string()).exists(), "{folder}");
        }
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "kept");
        assert!(world.engine.units().is_empty(), "{}", world.store.name());
        assert_eq!(world.neighbours.revoked(), BTreeSet::from([alice.id]), "it may have got an identity all the same");
        let (_, list) = service.get::<contracts::deploy::InstanceList>("/api/instances").await;
        assert!(list.instances.is_empty(), "what is gone is not listed");
        let body = serde_json::json!({ "account_id": alice.account });
        let again =
            service.post::<contracts::ProblemDetails>(&format!("/api/instances/{}/start", alice.id), &body).await;
        assert_eq!(again.1.code, "instance_not_found");
        let taken = Person { slug: alice.slug.clone(), ..Person::named("carol") };
        let taken = service.post::<contracts::ProblemDetails>("/api/instances/register", &taken.wanted()).await;
        assert_eq!(taken.1.code, "slug_taken", "a name is nobody else's for good");

        // One that somebody had, also when it does not know its owner any more.
        world.neighbours.set_refuse_owner(false);
        service.ready(&bob).await;
        let body = serde_json::json!({ "account_id": bob.account });
        let path = format!("/api/instances/{}/discard", bob.id);
        let refused = service.post::<contracts::ProblemDetails>(&path, &body).await;
        assert_eq!((refused.0.as_u16(), refused.1.code.as_str()), (409, "instance_had_owner"));
        world.neighbours.set_refuse_owner(true);
        service.wish(&bob, "stop").await;
        service.settled(&bob, Phase::Stopped).await;
        world.neighbours.forget_owner(bob.id);
        service.wish(&bob, "start").await;
        service.until(&bob, "failed", |instance| instance.phase == Phase::Failed).await;
        let refused = service.post::<contracts::ProblemDetails>(&path, &body).await;
        assert_eq!(refused.1.code, "instance_had_owner");
        assert!(world.config_dir(bob.id).exists());
    }
}

#[tokio::test]
async fn nobody_is_told_ready_before_the_router_can_know_the_way() {
    let world = sqlite_world().await;
    let (mut service, alice) = (world.start_followed(false).await, Person::named("alice"));
    service.register(&alice).await;
    let waits = service.until(&alice, "waiting for the router", |instance| instance.error.is_some()).await;
    assert_ne!(waits.phase, Phase::Ready);
    assert!(!service.codes(&alice).await.contains(&EventCode::Ready));
    service.follow();
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, world.engine.count("start", alice.id)), (None, 1), "it ran all the time");
}

#[tokio::test]
async fn ten_at_once_all_arrive() {
    let world = sqlite_world().await;
    let service = world.start().await;
    let people: Vec<_> = (0..10).map(|n| Person::named(&format!("user-{n}"))).collect();
    futures_util::future::join_all(people.iter().map(|person| service.register(person))).await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
        assert_eq!(world.engine.count("start", person.id), 1);
    }
}

#[tokio::test]
async fn stop_start_restart() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        let first = world.engine.units();

        assert_eq!(service.wish(&alice, "stop").await.desired, Desired::Stopped);
        service.settled(&alice, Phase::Stopped).await;
        assert!(!world.engine.is_running(alice.id));

        service.wish(&alice, "start").await;
        service.settled(&alice, Phase::Ready).await;
        service.wish(&alice, "restart").await;
        service.settled(&alice, Phase::Ready).await;
        assert_ne!(world.engine.units()[0].run, first[0].run);
        assert_eq!(world.engine.count("start", alice.id), 3, "{}", world.store.name());
        assert_eq!(world.engine.count("ensure", alice.id), 1, "the unit was kept");

        use EventCode::*;
        let codes = service.codes(&alice).await;
        assert_eq!(
            codes[7..],
            [
                StopRequested,
                Stopped,
                StartRequested,
                Started,
                Healthy,
                Ready,
                RestartRequested,
                Started,
                Healthy,
                Ready
            ]
        );
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_each_step_it_finds_its_own_traces() {
    for world in worlds().await {
        for (n, step) in ["ensure", "start", "observe"].into_iter().enumerate() {
            let person = Person::named(&format!("person-{n}"));
            world.engine.hold(step);
            let service = world.start().await;
            service.register(&person).await;
            until("held", || world.engine.is_holding(step)).await;
            service.kill();
            world.engine.release();

            let service = world.start().await;
            service.settled(&person, Phase::Ready).await;
            let mine = world.engine.units().into_iter().filter(|unit| unit.id == person.id).count();
            assert_eq!((mine, world.neighbours.owners_taken(person.id)), (1, 1), "{step} {}", world.store.name());
            service.kill();
        }
        // And once more with everything settled: nothing is done twice.
        let before = world.engine.units();
        let service = world.start().await;
        service.register(&Person::named("another")).await;
        service.settled(&Person::named("another"), Phase::Ready).await;
        assert_eq!(world.engine.units().iter().filter(|unit| before.contains(unit)).count(), before.len());
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_start_that_hangs() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.hold("start");
    service.register(&alice).await;
    service.until(&alice, "starting", |instance| instance.phase == Phase::Starting).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    world.engine.release();
    assert!(!world.engine.is_running(alice.id));
}

#[tokio::test]
async fn somebody_impatient_gets_what_they_wanted_last() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.register(&alice).await;
    for _ in 0..15 {
        service.wish(&alice, "restart").await;
        service.wish(&alice, "stop").await;
    }
    service.wish(&alice, "start").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.error, ready.generation), (None, 32));
    let codes = service.codes(&alice).await;
    assert!(!codes.contains(&EventCode::AttemptFailed), "{codes:?}");
    assert!(!codes.contains(&EventCode::Recovered), "{codes:?}");
}

#[tokio::test]
async fn what_the_end_of_the_service_kept_from_being_done_is_nobodys_failure() {
    let world = sqlite_world().await;
    let people: Vec<_> = (0..20).map(|n| Person::named(&format!("person-{n}"))).collect();
    let mut service = world.start().await;
    for person in &people {
        service.register(person).await;
    }
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    // It looks at everybody as it starts, and ends a little later each time.
    for life in 0..60 {
        service.kill_and_wait().await;
        service = world.start_followed(false).await;
        for _ in 0..life {
            tokio::task::yield_now().await;
        }
    }
    service.kill_and_wait().await;
    service = world.start().await;
    for person in &people {
        let ready = service.settled(person, Phase::Ready).await;
        let codes = service.codes(person).await;
        assert!(ready.error.is_none() && !codes.contains(&EventCode::AttemptFailed), "{ready:?} {codes:?}");
    }
}

#[tokio::test]
async fn an_engine_that_is_away_means_unknown_and_tears_nothing_down() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        let before = world.engine.units();

        world.engine.set_away(true);
        service.until(&alice, "unknown", |instance| instance.phase == Phase::Unknown).await;
        let bob = Person::named("bobby");
        service.register(&bob).await;
        service.until(&bob, "unknown", |instance| instance.phase == Phase::Unknown).await;

        world.engine.set_away(false);
        service.settled(&alice, Phase::Ready).await;
        service.settled(&bob, Phase::Ready).await;
        assert!(before.iter().all(|unit| world.engine.units().contains(unit)), "it was left alone");
        assert_eq!(service.codes(&alice).await[7..], [EventCode::EngineLost, EventCode::EngineBack]);
    }
}

#[tokio::test]
async fn what_comes_down_by_itself_comes_back_until_it_is_too_much() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.say("starting with sk-canary-8f3b1d\nno such table: notes\n");
    service.register(&alice).await;
    let mut crashes = 0;
    // Each crash is told once it was seen; the instance may be back before anybody looks.
    while service.settled_in(&alice, &[Phase::Ready, Phase::Failed]).await.phase == Phase::Ready {
        let told = service.events(&alice).await.len();
        world.engine.crash(alice.id);
        crashes += 1;
        assert!(crashes < 20, "a crash loop without end");
        eventually(async || {
            (service.events(&alice).await.len() > told).then_some(()).ok_or_else(|| "a crash is not told".into())
        })
        .await;
    }
    let failed = service.settled(&alice, Phase::Failed).await;
    let error = failed.error.unwrap();
    assert_eq!((error.code.as_str(), crashes), ("crash_loop", 4));
    assert_eq!(error.log, ["starting with […]", "no such table: notes"], "what it wrote last, without any secret");
    let codes = service.codes(&alice).await;
    assert_eq!(codes.iter().filter(|code| **code == EventCode::Recovered).count(), 3);
    assert_eq!(codes.last(), Some(&EventCode::Failed));

    service.wish(&alice, "retry").await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
}

#[tokio::test]
async fn restarts_of_the_host_are_no_crashes_however_many() {
    let world = sqlite_world().await;
    let alice = Person::named("alice");
    for restarts in 0..6 {
        let service = world.start().await;
        service.register(&alice).await;
        // Back, and not only as it was left.
        let up = |instance: &contracts::deploy::Instance| {
            assert_ne!(instance.phase, Phase::Failed, "given up after {restarts} restarts");
            instance.phase == Phase::Ready && world.engine.is_running(alice.id)
        };
        service.until(&alice, "up", up).await;
        service.kill();
        world.engine.crash(alice.id);
    }
}

#[tokio::test]
async fn what_fails_for_good_says_why_and_goes_on_when_it_is_wanted_again() {
    for (call, kind, code, calls) in [
        ("ensure", ErrorKind::NotFound, "image_missing", 4),
        ("ensure", ErrorKind::Rejected, "engine_rejected", 4),
        ("ensure", ErrorKind::Conflict, "engine_rejected", 4),
        // Each attempt is one with what is there, and one with what was made anew.
        ("start", ErrorKind::Rejected, "engine_rejected", 8),
    ] {
        for wish in ["retry", "start", "restart"] {
            let world = sqlite_world().await;
            let (service, alice) = (world.start().await, Person::named("alice"));
            world.engine.refuse(call, kind);
            service.register(&alice).await;
            let failed = service.settled(&alice, Phase::Failed).await;
            assert_eq!(
                (failed.error.as_ref().unwrap().code.as_str(), failed.desired),
                (code, Desired::Running),
                "{call}"
            );
            let codes = service.codes(&alice).await;
            assert_eq!(codes.iter().filter(|code| **code == EventCode::AttemptFailed).count(), 4, "{codes:?}");
            assert_eq!(codes.last(), Some(&EventCode::Failed));

            // Asked for again while the cause is still there: the same, with as many attempts.
            let attempts = world.engine.count(call, alice.id);
            service.wish(&alice, wish).await;
            let failed = service.settled(&alice, Phase::Failed).await;
            assert_eq!(failed.error.unwrap().code, code, "{call} {wish}");
            assert_eq!(world.engine.count(call, alice.id), attempts + calls, "{call} {wish}");

            // The cause goes. Nobody tries by himself, not even after a restart of the service; asked for, it goes on.
            world.engine.accept(call);
            service.kill();
            let service = world.start().await;
            let bob = Person::named("bobby");
            service.ready(&bob).await;
            assert_eq!(world.engine.count(call, alice.id), attempts + calls, "{call} {wish}");
            service.wish(&alice, wish).await;
            assert_eq!(service.settled(&alice, Phase::Ready).await.error, None, "{call} {wish}");
            assert_eq!(world.neighbours.owners_taken(alice.id), 1);
        }
    }
}

/// It is given up with this reason while something is wrong, and comes up when it is asked for after that.
async fn fails_until_it_is_mended(code: &str, set_wrong: impl Fn(&World, bool)) {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    set_wrong(&world, true);
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, code);
    set_wrong(&world, false);
    service.wish(&alice, "retry").await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
}

#[tokio::test]
async fn one_that_breaks_as_it_takes_its_owner_is_given_up_in_the_end() {
    fails_until_it_is_mended("not_healthy_in_time", |world, wrong| world.neighbours.set_break_at_owner(wrong)).await;
}

#[tokio::test]
async fn a_missing_image_fails_with_its_reason_and_a_retry_works() {
    fails_until_it_is_mended("image_missing", |world, wrong| world.engine.set_image_missing(wrong)).await;
}

#[tokio::test]
async fn a_passing_failure_is_tried_again_by_itself() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.fail_next("start", ErrorKind::Rejected);
    world.engine.fail_next("start", ErrorKind::NotFound);
    world.engine.fail_next("ensure", ErrorKind::Capacity);
    service.register(&alice).await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
    assert!(service.codes(&alice).await.contains(&EventCode::AttemptFailed));
}

#[tokio::test]
async fn services_that_are_away_are_waited_for_without_giving_up() {
    for away in ["authz", "router"] {
        let world = sqlite_world().await;
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.neighbours.set_authz_away(away == "authz");
        world.neighbours.set_router_away(away == "router");
        service.register(&alice).await;
        let waiting = service.until(&alice, "told", |instance| instance.error.is_some()).await;
        assert_eq!(waiting.error.unwrap().code, "registration_failed", "{away}");
        world.neighbours.set_authz_away(false);
        world.neighbours.set_router_away(false);
        assert_eq!(service.settled(&alice, Phase::Ready).await.error, None, "{away}");
    }
}

#[tokio::test]
async fn an_instance_that_does_not_take_its_owner_fails_clearly() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.neighbours.set_refuse_owner(true);
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "registration_failed");
    assert!(!world.engine.is_running(alice.id), "what failed uses nothing");
    world.neighbours.set_refuse_owner(false);
    service.wish(&alice, "retry").await;
    service.settled(&alice, Phase::Ready).await;
}

#[tokio::test]
async fn a_new_image_takes_a_few_down_at_a_time_and_stops_no_sign_up() {
    const PEOPLE: usize = 7;
    /// How many may be down at once.
    const RENEWALS: usize = 2;
    // Where some must try it first, and where it is known to work from the start.
    for (canaries, at_once, of_the_late) in [(1, 1, "older"), (0, RENEWALS, "newer")] {
        let mut world = sqlite_world().await;
        world.config.reconcile.rollout.canaries = canaries;
        world.engine.set_image("older");
        let service = world.start().await;
        let people: Vec<Person> = (0..PEOPLE).map(|n| Person::named(&format!("person-{n}"))).collect();
        for person in &people {
            service.register(person).await;
        }
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
        service.kill();
        world.engine.set_image("newer");
        world.engine.hold("remove");
        let service = world.start().await;
        let down = || people.iter().filter(|person| !world.engine.is_running(person.id)).count();
        until("so many down as may be", || world.engine.is_holding("remove") && down() == at_once).await;
        // Somebody who comes now waits for none of them.
        let late = Person::named("late");
        service.ready(&late).await;
        assert_eq!(down(), at_once);
        let unit = world.engine.units().into_iter().find(|unit| unit.id == late.id).unwrap();
        assert_eq!(unit.release.as_deref(), Some(of_the_late));
        world.engine.release();
        for person in &people {
            until("made again", || world.engine.count("ensure", person.id) == 2).await;
            service.settled(person, Phase::Ready).await;
        }
    }
}

#[tokio::test]
async fn a_new_image_replaces_units_and_an_orphan_is_left_alone() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    service.kill();

    let orphan = Unit {
        id: Person::named("nobody").id,
        state: UnitState::Running,
        plan: contracts::PlanName::workspace(),
        fingerprint: "x".into(),
        release: None,
        run: Some("run-x".into()),
    };
    world.engine.plant(orphan.clone());
    world.engine.set_image("newer");
    let service = world.start().await;
    service.until(&alice, "on its way", |instance| instance.phase == Phase::Ready).await;
    until("made from the newer image", || world.engine.count("ensure", alice.id) >= 2).await;
    service.settled(&alice, Phase::Ready).await;
    let units = world.engine.units();
    assert!(units.contains(&orphan), "an orphan may be somebody's work");
    assert!(units.iter().any(|unit| unit.id == alice.id && unit.fingerprint.starts_with("newer")));
}
