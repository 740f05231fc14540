//! A provider's way into an instance, and back when it does not hold.

mod support;

use std::{os::unix::fs::PermissionsExt, time::Duration};

use contracts::{
    deploy::{EventCode, Instance, Phase},
    instance::InstanceActivity,
    routes::RouteState,
};
use secrecy::ExposeSecret;
use support::{
    Person, Running, World,
    neighbours::{Symptom, Used},
    sqlite_world, until, worlds,
};

const CANARY: &str = "sk-canary-8f3b1d";

async fn ready(world: &World) -> (Running, Person) {
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    (service, alice)
}

/// The same with a configuration that holds.
async fn configured(world: &World) -> (Running, Person) {
    let (service, alice) = ready(world).await;
    service.configure(&alice, "sk-good").await;
    service.settled(&alice, Phase::Ready).await;
    (service, alice)
}

fn key(world: &World, person: &Person) -> Option<String> {
    world.current_config(person.id).provider.map(|provider| provider.api_key.expose_secret().to_owned())
}

#[tokio::test]
async fn a_provider_comes_into_force_with_a_restart() {
    for world in worlds().await {
        let (service, alice) = ready(&world).await;
        assert_eq!(key(&world, &alice), None);
        let accepted = service.configure(&alice, CANARY).await;
        assert_eq!((accepted.config_generation, accepted.applied_config_generation), (1, 0));
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!((settled.applied_config_generation, settled.error), (1, None), "{}", world.store.name());
        assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
        assert_eq!(world.engine.count("start", alice.id), 2, "one restart");
        let mode = std::fs::metadata(world.config_dir(alice.id).join("config.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let events = service.events(&alice).await;
        let applied = events.iter().find(|event| event.code == EventCode::ConfigApplied).expect("it is told");
        assert_eq!(applied.detail.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn one_that_does_not_hold_is_taken_back_also_where_it_was_deleted_meanwhile() {
    let world = sqlite_world().await;
    let (service, alice) = configured(&world).await;
    world.neighbours.make_sick(2);
    world.engine.hold("stop");
    service.configure(&alice, CANARY).await;
    until("it is about to be tried", || world.engine.is_holding("stop")).await;
    service.delete(&alice).await;
    world.engine.release();
    service.settled(&alice, Phase::PendingDeletion).await;
    service.undelete(&alice).await;
    let settled = service.settled(&alice, Phase::Ready).await;
    assert_eq!((settled.config_generation, settled.applied_config_generation), (2, 1));
    assert_eq!(settled.error.unwrap().code, "config_not_accepted");
    assert_eq!(key(&world, &alice).as_deref(), Some("sk-good"), "the one before is back");
}

#[tokio::test]
async fn one_whose_file_is_lost_is_taken_back() {
    let world = sqlite_world().await;
    let (service, alice) = configured(&world).await;
    world.engine.hold("stop");
    service.configure(&alice, CANARY).await;
    until("it is about to be used", || world.engine.is_holding("stop")).await;
    std::fs::remove_file(world.config_dir(alice.id).join("config.2.json")).unwrap();
    world.engine.release();
    let settled = service.settled(&alice, Phase::Ready).await;
    assert_eq!(settled.error.unwrap().code, "config_not_accepted");
    assert_eq!(key(&world, &alice).as_deref(), Some("sk-good"), "the one before is back");
}

#[tokio::test]
async fn nothing_is_made_anew_of_one_that_is_gone() {
    let mut world = sqlite_world().await;
    world.config.delete_after = std::time::Duration::ZERO;
    world.config.reconcile.resync = std::time::Duration::from_millis(100);
    let (service, alice) = ready(&world).await;
    service.delete(&alice).await;
    service.settled(&alice, Phase::Deleted).await;
    let answer = service.request("POST", "/api/instances/configure-provider").json(&alice.provider(CANARY)).send();
    assert_eq!(answer.await.unwrap().status(), 404);
    assert!(!world.config.data_dir.join(format!("instances/{}", alice.id)).exists());
}

#[tokio::test]
async fn one_that_does_not_hold_is_taken_back_and_told() {
    for world in worlds().await {
        let (service, alice) = configured(&world).await;
        world.neighbours.make_sick(2);
        service.configure(&alice, CANARY).await;
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!((settled.config_generation, settled.applied_config_generation), (2, 1), "{}", world.store.name());
        let error = settled.error.unwrap();
        assert_eq!((error.code.as_str(), error.cause.as_deref()), ("config_not_accepted", Some("not_healthy_in_time")));
        let back = service.events(&alice).await.into_iter().find(|event| event.code == EventCode::ConfigRolledBack);
        assert_eq!(back.unwrap().detail.as_deref(), Some("2 not_healthy_in_time"));
        assert_eq!(key(&world, &alice).as_deref(), Some("sk-good"), "the one before is back");
        let codes = service.codes(&alice).await;
        assert!(codes.contains(&EventCode::ConfigRolledBack), "{codes:?}");
        assert_eq!(codes.last(), Some(&EventCode::Ready));

        // The refused one is nowhere any more, and a third is a new matter.
        support::eventually(async || {
            let entries = std::fs::read_dir(world.config_dir(alice.id)).unwrap();
            let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            if left == ["config.1.json", "config.json"] { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        service.configure(&alice, "sk-third").await;
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!((settled.applied_config_generation, settled.error), (3, None));
    }
}

#[tokio::test]
async fn an_instance_that_hangs_with_it_or_talks_nonsense_is_no_service_that_is_away() {
    for symptom in [Symptom::Silent, Symptom::Nonsense] {
        let world = sqlite_world().await;
        let (service, alice) = ready(&world).await;
        world.neighbours.make_sick(1);
        world.neighbours.set_symptom(symptom);
        service.configure(&alice, CANARY).await;
        let settled = service.settled(&alice, Phase::Ready).await;
        let error = settled.error.unwrap();
        assert_eq!((error.code.as_str(), error.cause.as_deref()), ("config_not_accepted", Some("not_healthy_in_time")));
        assert_eq!((settled.applied_config_generation, key(&world, &alice)), (0, None), "{symptom:?}");
    }
}

#[tokio::test]
async fn a_router_that_is_away_says_nothing_of_a_configuration() {
    let world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    world.neighbours.set_router_away(true);
    service.configure(&alice, CANARY).await;
    let is_told =
        |instance: &Instance| instance.error.as_ref().is_some_and(|error| error.code == "registration_failed");
    service.until(&alice, "waiting for the router", is_told).await;
    // Another wish clears the reason, which is as it was.
    service.wish(&alice, "restart").await;
    service.until(&alice, "waiting for it again", is_told).await;
    world.neighbours.set_router_away(false);
    let settled = service.settled(&alice, Phase::Ready).await;
    assert_eq!((settled.applied_config_generation, settled.error), (1, None));
    assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
}

#[tokio::test]
async fn a_start_from_before_it_does_not_count_against_it() {
    for old_runs in [1, 3] {
        let world = sqlite_world().await;
        let (service, alice) = ready(&world).await;
        (0..old_runs).for_each(|_| world.neighbours.next_run_has_read(0));
        service.configure(&alice, CANARY).await;
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!((settled.applied_config_generation, settled.error), (1, None), "{old_runs}");
        assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
        assert_eq!(world.engine.count("start", alice.id), 2 + old_runs, "each was stopped and started again");
        let codes = service.codes(&alice).await;
        assert!(!codes.contains(&EventCode::ConfigRolledBack), "{codes:?}");
        assert!(!codes.contains(&EventCode::AttemptFailed), "{codes:?}");
    }
}

#[tokio::test]
async fn an_instance_that_never_takes_it_keeps_the_one_before() {
    let world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    // Whatever is started, it goes on with what it had: that does count in the end.
    (0..4).for_each(|_| world.neighbours.next_run_has_read(0));
    service.configure(&alice, CANARY).await;
    let settled = service.settled(&alice, Phase::Ready).await;
    assert_eq!(settled.applied_config_generation, 0);
    assert_eq!(settled.error.unwrap().code, "config_not_accepted");
    assert_eq!(key(&world, &alice), None);
}

#[tokio::test]
async fn one_run_that_ends_does_not_count_against_it_and_a_second_does() {
    for (ends, applied, error) in [(1, 1, None), (2, 0, Some(("config_not_accepted", "crash_loop")))] {
        let mut world = sqlite_world().await;
        world.config.reconcile.start_timeout = Duration::from_secs(60);
        let (service, alice) = ready(&world).await;
        // It answers too late to be found healthy before it ends, as by a stop from before that took its time.
        world.neighbours.make_sick(1);
        service.configure(&alice, CANARY).await;
        for run in 1..=ends {
            until("it runs", || world.engine.count("start", alice.id) > run && world.engine.is_running(alice.id)).await;
            world.engine.crash(alice.id);
        }
        until("it runs", || world.engine.count("start", alice.id) > ends + 1).await;
        world.neighbours.make_well();
        let settled = service.settled(&alice, Phase::Ready).await;
        let told = settled.error.as_ref().map(|error| (error.code.as_str(), error.cause.as_deref().unwrap()));
        assert_eq!((settled.applied_config_generation, told), (applied, error));
        assert_eq!(world.engine.count("start", alice.id), ends + 2);
    }
}

#[tokio::test]
async fn while_stopped_it_waits_for_the_next_start() {
    let world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    service.configure(&alice, CANARY).await;
    let stopped = service.settled(&alice, Phase::Stopped).await;
    assert_eq!((stopped.config_generation, stopped.applied_config_generation), (1, 0));
    assert!(!world.engine.is_running(alice.id));
    service.wish(&alice, "start").await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.applied_config_generation, 1);
    assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
}

#[tokio::test]
async fn given_before_it_was_ever_up_it_is_there_from_the_first_start() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.hold("ensure");
    service.register(&alice).await;
    service.configure(&alice, CANARY).await;
    world.engine.release();
    assert_eq!(service.settled(&alice, Phase::Ready).await.applied_config_generation, 1);
    assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
}

#[tokio::test]
async fn killed_in_the_middle_of_a_change_it_is_finished_or_taken_back() {
    for (step, sick) in [("stop", false), ("start", false), ("stop", true), ("start", true)] {
        let world = sqlite_world().await;
        let (service, alice) = ready(&world).await;
        if sick {
            world.neighbours.make_sick(1);
        }
        world.engine.hold(step);
        service.configure(&alice, CANARY).await;
        until("held", || world.engine.is_holding(step)).await;
        service.kill();
        world.engine.release();
        let service = world.start().await;
        let settled = service.settled(&alice, Phase::Ready).await;
        let expected = if sick { (0, None) } else { (1, Some(CANARY)) };
        assert_eq!((settled.applied_config_generation, key(&world, &alice).as_deref()), expected, "{step} {sick}");
        assert_eq!(world.engine.units().len(), 1);
    }
}

#[tokio::test]
async fn the_key_is_in_its_own_folder_and_nowhere_else() {
    let world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    world.neighbours.make_sick(2);
    service.configure(&alice, CANARY).await;
    service.settled(&alice, Phase::Ready).await;
    service.configure(&alice, &format!("{CANARY}-refused")).await;
    service.settled(&alice, Phase::Ready).await;
    service.wish(&alice, "restart").await;
    service.settled(&alice, Phase::Ready).await;
    let told =
        format!("{:?} {:?} {:?}", service.instance(&alice).await, service.events(&alice).await, world.engine.units());
    assert!(!told.contains(CANARY), "{told}");
    service.kill();

    let mut holding = Vec::new();
    let database = match world.store.database() {
        store::Database::Sqlite(path) => path.parent().unwrap().to_owned(),
        other => panic!("{other:?} is no file"),
    };
    for folder in [world.config.data_dir.clone(), database] {
        find(&folder, CANARY.as_bytes(), &mut holding);
    }
    let own = world.config_dir(alice.id);
    assert!(!holding.is_empty(), "the search finds it where it must be");
    assert!(holding.iter().all(|path| path.starts_with(&own)), "{holding:?}");
}

fn find(folder: &std::path::Path, needle: &[u8], holding: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, needle, holding);
            continue;
        }
        let bytes = match std::fs::read(&path) {
            // The database's log goes when its last connection, cut off by the kill, is closed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            bytes => bytes.unwrap(),
        };
        if bytes.windows(needle.len()).any(|window| window == needle) {
            holding.push(path);
        }
    }
}

#[tokio::test]
async fn a_registry_from_before_takes_over_what_was_configured_since() {
    for world in worlds().await {
        let (service, alice) = ready(&world).await;
        let before: (i64, i64) =
            sqlx::query_as("SELECT config_generation, applied_config_generation FROM instances WHERE id = $1")
                .bind(alice.id.to_string())
                .fetch_one(world.store.pool())
                .await
                .unwrap();
        assert_eq!(before, (0, 0));
        for key in ["sk-first", CANARY] {
            service.configure(&alice, key).await;
            service.settled(&alice, Phase::Ready).await;
        }
        service.kill();
        // As a back-up of the registry alone brings it back, on another day.
        sqlx::query("UPDATE instances SET config_generation = 0, applied_config_generation = 0, ready_run = NULL")
            .execute(world.store.pool())
            .await
            .unwrap();
        let service = world.start().await;
        let taken = service.until(&alice, "taken over", |i| i.phase == Phase::Ready && i.config_generation == 2).await;
        assert_eq!(taken.applied_config_generation, 2);
        assert_eq!(key(&world, &alice).as_deref(), Some(CANARY), "what she gave last stays");
        let next = service.configure(&alice, "sk-third").await;
        assert_eq!(next.config_generation, 3, "what comes now is newer than all there was");
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(key(&world, &alice).as_deref(), Some("sk-third"));
    }
}

#[tokio::test]
async fn what_the_operator_changes_reaches_instances_that_are_there() {
    let mut world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    service.configure(&alice, CANARY).await;
    service.settled(&alice, Phase::Ready).await;
    service.kill();
    world.config.instance.issuer = "http://another-issuer:19090".into();
    let service = world.start().await;
    until("started with it", || world.engine.count("start", alice.id) >= 3).await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.current_config(alice.id).issuer, world.config.instance.issuer);
    assert_eq!(key(&world, &alice).as_deref(), Some(CANARY), "and the same provider");
}

#[tokio::test]
async fn whoever_is_in_the_middle_of_something_may_finish_and_nobody_new_gets_in() {
    for world in worlds().await {
        let (service, alice) = ready(&world).await;
        let in_use = Used { in_flight: 1, then_in_flight: 1, ..Used::default() };
        world.neighbours.use_it(alice.id, in_use.clone());
        service.configure(&alice, CANARY).await;
        until("nobody new gets in", || world.neighbours.route(alice.id) == Some(RouteState::Starting)).await;
        assert!(world.engine.is_running(alice.id), "{}", world.store.name());
        assert_eq!(world.engine.count("stop", alice.id), 0, "somebody is at it");
        // Its requests have ended, but it says that it has something to do.
        let busy = InstanceActivity { busy: true, wake_keys: Vec::new() };
        world.neighbours.use_it(alice.id, Used { own: busy, ..Used::default() });
        let asked = world.neighbours.asked_busy();
        until("it was asked", || world.neighbours.asked_busy() > asked + 1).await;
        assert_eq!(world.engine.count("stop", alice.id), 0);
        // Killed meanwhile, it goes on.
        service.kill_and_wait().await;
        let service = world.start().await;
        world.neighbours.use_it(alice.id, Used::default());
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!((settled.applied_config_generation, world.engine.count("stop", alice.id)), (1, 1));

        // Who wants a restart knows what that means, and is not kept waiting.
        world.neighbours.use_it(alice.id, in_use);
        service.wish(&alice, "restart").await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.engine.count("stop", alice.id), 2);
    }
}

#[tokio::test]
async fn it_is_not_waited_for_ever() {
    let mut world = sqlite_world().await;
    world.config.reconcile.drain_timeout = Duration::from_millis(50);
    let (service, alice) = ready(&world).await;
    world.neighbours.use_it(alice.id, Used { in_flight: 1, then_in_flight: 1, ..Used::default() });
    service.configure(&alice, CANARY).await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.applied_config_generation, 1);
}

#[tokio::test]
async fn a_registry_from_before_with_other_settings_keeps_what_was_configured_since() {
    let mut world = sqlite_world().await;
    let (service, alice) = ready(&world).await;
    service.kill_and_wait().await;
    let path = world.config_dir(alice.id).join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["generation"] = 5.into();
    let folder = path.parent().unwrap();
    for name in ["config.json", "config.5.json"] {
        let _ = std::fs::remove_file(folder.join(name));
        std::fs::write(folder.join(name), config.to_string()).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o400)).unwrap();
    }
    // The issuer has another name now, so that what is there is not what would be written.
    world.config.instance.issuer = "http://another-issuer:19090".into();
    let service = world.start().await;
    let settled = service.until(&alice, "taken over", |instance| instance.applied_config_generation == 5).await;
    assert_eq!((settled.config_generation, settled.error), (5, None));
    service.configure(&alice, CANARY).await;
    assert_eq!(service.settled(&alice, Phase::Ready).await.applied_config_generation, 6);
    assert_eq!(key(&world, &alice).as_deref(), Some(CANARY));
}
