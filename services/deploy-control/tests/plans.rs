//! Plans: what the operator names in a file, what callers may ask for, and what follows from each change.

mod support;

use std::{fs, sync::Arc, time::Duration};

use contracts::{
    ProblemDetails,
    deploy::{EventCode, Instance, Phase},
    routes::{RouteMessage, RouteState, SignIn},
};
use deploy_control::engine::{Engine, process::Processes};
use http::StatusCode;
use serde_json::json;
use support::{Person, Running, neighbours::Used, reader::Reader, sqlite_world, until, worlds};

const NOTES: &str = "[notes]\nimage = \"notes:1\"\nport = 8080\nhealth = \"/up\"\n";

async fn register(service: &Running, person: &Person, plan: &str) -> Instance {
    let mut wanted = person.wanted();
    wanted.plan = Some(plan.into());
    let (status, instance) = service.post("/api/instances/register", &wanted).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    instance
}

async fn change<R: serde::de::DeserializeOwned>(service: &Running, person: &Person, plan: &str) -> (StatusCode, R) {
    service.post(&format!("/api/instances/{}/plan", person.id), &json!({ "plan": plan })).await
}

#[tokio::test]
async fn a_program_that_knows_nothing_of_beaver_is_told_and_given_nothing() {
    for world in worlds().await {
        world.write_plans(NOTES);
        let (service, alice) = (world.start().await, Person::named("alice"));
        let taken = register(&service, &alice, "notes").await;
        assert_eq!((taken.plan.as_str(), taken.takes_provider), ("notes", false), "{}", world.store.name());
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.neighbours.asked(), ["/up"]);
        assert_eq!(world.neighbours.owners_taken(alice.id), 0);
        assert_eq!(fs::read_dir(world.config_dir(alice.id)).unwrap().count(), 0);
        let codes = service.codes(&alice).await;
        assert!(!codes.contains(&EventCode::Registered) && codes.contains(&EventCode::Healthy), "{codes:?}");

        let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
        let Some(RouteMessage::Snapshot(snapshot)) = feed.json().await else { panic!("a snapshot") };
        assert_eq!((snapshot.routes[0].sign_in, snapshot.routes[0].state), (SignIn::Edge, RouteState::Running));

        // It is given no provider, and there is nothing left of the attempt.
        let (status, problem) =
            service.post::<ProblemDetails>("/api/instances/configure-provider", &alice.provider("sk-canary")).await;
        assert_eq!((status, problem.code.as_str()), (StatusCode::CONFLICT, "plan_has_no_provider"));
        assert_eq!(fs::read_dir(world.config_dir(alice.id)).unwrap().count(), 0);

        // The usual wishes work as ever.
        for (wish, phase) in [("restart", Phase::Ready), ("stop", Phase::Stopped), ("start", Phase::Ready)] {
            service.wish(&alice, wish).await;
            service.settled(&alice, phase).await;
        }
        world.engine.crash(alice.id);
        service.until(&alice, "up again", |i| i.phase == Phase::Ready && world.engine.is_running(alice.id)).await;
    }
}

#[tokio::test]
async fn who_signs_up_gets_the_operators_plan_and_a_caller_may_name_another() {
    let mut world = sqlite_world().await;
    world.write_plans(NOTES);
    world.config.plans.default = "notes".parse().unwrap();
    let service = world.start().await;
    assert_eq!(service.register(&Person::named("alice")).await.plan.as_str(), "notes");
    assert_eq!(register(&service, &Person::named("bobby"), "workspace").await.plan.as_str(), "workspace");
    let mut wanted = Person::named("carol").wanted();
    wanted.plan = Some("no-such-plan".into());
    let (status, problem) = service.post::<ProblemDetails>("/api/instances/register", &wanted).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "plan_unknown"));
    assert_eq!(problem.field.as_deref(), Some("plan"));
}

#[tokio::test]
async fn an_engine_without_images_says_so_at_once() {
    let mut world = sqlite_world().await;
    world.write_plans(NOTES);
    world.config.engine.command = vec!["/no/such/program".into()];
    let engine: Arc<dyn Engine> = Arc::new(Processes::new(&world.config.engine));
    let (service, alice) = (support::start(&world.config, engine).await, Person::named("alice"));
    let mut wanted = alice.wanted();
    wanted.plan = Some("notes".into());
    let (status, problem) = service.post::<ProblemDetails>("/api/instances/register", &wanted).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "plan_needs_images"));
    drop(service);

    // One that was taken in when there were images fails with that reason.
    let service = world.start().await;
    register(&service, &alice, "notes").await;
    service.settled(&alice, Phase::Ready).await;
    service.wish(&alice, "stop").await;
    service.settled(&alice, Phase::Stopped).await;
    service.kill();
    let engine: Arc<dyn Engine> = Arc::new(Processes::new(&world.config.engine));
    let service = support::start(&world.config, engine).await;
    service.wish(&alice, "start").await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "plan_needs_images");
}

#[tokio::test]
async fn another_plan_makes_another_unit_and_the_way_back_knows_its_owner() {
    for world in worlds().await {
        world.write_plans(NOTES);
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        service.configure(&alice, "sk-1").await;
        let before = service.settled(&alice, Phase::Ready).await;

        let (status, taken) = change::<Instance>(&service, &alice, "notes").await;
        assert_eq!((status, taken.generation), (StatusCode::ACCEPTED, before.generation + 1), "{}", world.store.name());
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(world.engine.units()[0].plan.as_str(), "notes");
        assert_eq!(world.engine.count("remove", alice.id), 1);
        // The same again is nothing new.
        assert_eq!(change::<Instance>(&service, &alice, "notes").await.1.generation, taken.generation);
        let (status, problem) = change::<ProblemDetails>(&service, &alice, "no-such-plan").await;
        assert_eq!((status, problem.code.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "plan_unknown"));
        assert_eq!(
            change::<ProblemDetails>(&service, &Person::named("nobody"), "notes").await.0,
            StatusCode::NOT_FOUND
        );

        change::<Instance>(&service, &alice, "workspace").await;
        let back = service.settled(&alice, Phase::Ready).await;
        assert_eq!((back.takes_provider, back.applied_config_generation), (true, 1));
        assert_eq!(world.neighbours.owners_taken(alice.id), 1, "it is its owner's already");
        assert_eq!(world.current_config(alice.id).generation, 1, "with its provider");
        let event = service.events(&alice).await.into_iter().find(|e| e.code == EventCode::PlanRequested).unwrap();
        assert_eq!((event.actor.as_str(), event.detail.as_deref()), ("operator", Some("notes")));
    }
}

#[tokio::test]
async fn a_plan_that_cannot_be_made_takes_down_what_is_something_else() {
    let world = sqlite_world().await;
    world.write_plans(NOTES);
    let (service, alice) = (world.start().await, Person::named("alice"));
    register(&service, &alice, "notes").await;
    service.settled(&alice, Phase::Ready).await;
    // Else a program would go on under the rule of another for who gets in.
    world.engine.set_image_missing(true);
    change::<Instance>(&service, &alice, "workspace").await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!((failed.error.unwrap().code.as_str(), world.engine.is_running(alice.id)), ("image_missing", false));
    world.engine.set_image_missing(false);
    service.wish(&alice, "retry").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.neighbours.owners_taken(alice.id), 1);
}

#[tokio::test]
async fn a_plan_that_is_gone_leaves_what_runs_and_makes_nothing_new() {
    let world = sqlite_world().await;
    world.write_plans(&format!("{NOTES}[other]\nimage = \"other:1\"\nport = 1\n"));
    let (service, alice, marker) = (world.start().await, Person::named("alice"), Person::named("marker"));
    register(&service, &alice, "notes").await;
    register(&service, &marker, "other").await;
    service.settled(&alice, Phase::Ready).await;
    service.settled(&marker, Phase::Ready).await;
    // The marker tells that the file was taken over: its unit is another then.
    world.write_plans("[other]\nimage = \"other:2\"\nport = 1\n");
    service.until(&marker, "made anew", |_| world.engine.count("remove", marker.id) == 1).await;
    service.settled(&marker, Phase::Ready).await;

    let running = service.settled(&alice, Phase::Ready).await;
    assert_eq!((running.error, world.engine.count("stop", alice.id)), (None, 0));
    service.wish(&alice, "restart").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.engine.count("ensure", alice.id), 1, "the same unit");

    world.engine.remove(alice.id).await.unwrap();
    service.wish(&alice, "restart").await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "plan_missing");
    world.write_plans(NOTES);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        service.wish(&alice, "retry").await;
        let now = service.settled_in(&alice, &[Phase::Ready, Phase::Failed]).await;
        if now.phase == Phase::Ready {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{now:?}");
    }
}

#[tokio::test]
async fn a_workspace_with_other_limits_is_the_same_workspace() {
    for world in worlds().await {
        world.write_plans("[workspace-large]\nmemory_mb = 1024\npids = 512\n");
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        service.configure(&alice, "sk-1").await;
        let before = service.settled(&alice, Phase::Ready).await;
        let small = world.engine.units()[0].fingerprint.clone();
        world.neighbours.use_it(alice.id, Used { in_flight: 1, then_in_flight: 1, ..Used::default() });
        change::<Instance>(&service, &alice, "workspace-large").await;
        until("nobody new gets in", || world.neighbours.route(alice.id) == Some(RouteState::Starting)).await;
        assert!(world.engine.is_running(alice.id), "whoever is at it may finish");
        world.neighbours.use_it(alice.id, Used::default());
        let large = service.settled(&alice, Phase::Ready).await;
        assert_eq!((large.generation, large.takes_provider), (before.generation + 1, true), "{}", world.store.name());
        assert_ne!(world.engine.units()[0].fingerprint, small, "it has other limits");
        assert_eq!((large.applied_config_generation, world.neighbours.owners_taken(alice.id)), (1, 1));
        assert_eq!(world.current_config(alice.id).generation, 1, "with its provider");

        // What nobody asked for is told with its reason: here that the operator's file says otherwise.
        assert_eq!(service.renewals(&alice).await, [""; 0], "a plan is a wish, and told as one");
        let removed = world.engine.count("remove", alice.id);
        world.write_plans("[workspace-large]\nmemory_mb = 2048\npids = 512\n");
        service.until(&alice, "made anew", |_| world.engine.count("remove", alice.id) > removed).await;
        assert_eq!(service.settled(&alice, Phase::Ready).await.generation, large.generation);
        assert_eq!(service.renewals(&alice).await, ["settings"]);
    }
}

#[tokio::test]
async fn whoever_comes_back_has_the_plan_they_had() {
    for mut world in worlds().await {
        world.write_plans("[workspace-large]\nmemory_mb = 1024\n");
        world.config.delete_after = std::time::Duration::ZERO;
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        change::<Instance>(&service, &alice, "workspace-large").await;
        service.settled(&alice, Phase::Ready).await;
        service.delete(&alice).await;
        service.settled(&alice, Phase::Deleted).await;
        let again = Person { account: alice.account, ..Person::named("alice-two") };
        assert_eq!(service.register(&again).await.plan.as_str(), "workspace-large", "{}", world.store.name());
        let bob = Person::named("bobby");
        assert_eq!(service.register(&bob).await.plan.as_str(), "workspace");
    }
}
