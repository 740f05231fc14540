//! What is deleted: down at once, kept for a while, gone after it, and back as it was when somebody takes it back in time.

mod support;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use clock::{Clock, ManualClock};
use contracts::{
    InstanceId, ProblemDetails,
    deploy::{Desired, EventCode, Instance, InstanceList, Phase},
};
use deploy_control::engine::ErrorKind;
use http::StatusCode;
use serde_json::json;
use support::{Person, Running, World, sqlite_world, until, worlds};

const START_MS: i64 = 1_795_000_000_000;
const KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

/// The world by a clock that stands still.
fn by_hand(mut world: World) -> (World, ManualClock) {
    let (clock, hand) = Clock::manual(START_MS);
    world.clock = clock;
    (world, hand)
}

fn data(world: &World, id: InstanceId) -> PathBuf {
    world.config.data_dir.join(format!("instances/{id}/data"))
}

/// Somebody with a workspace and something in it.
async fn settled(world: &World, service: &Running, slug: &str) -> Person {
    let person = Person::named(slug);
    service.ready(&person).await;
    std::fs::write(data(world, person.id).join("letter"), slug).unwrap();
    person
}

fn letter(world: &World, person: &Person) -> Option<String> {
    std::fs::read_to_string(data(world, person.id).join("letter")).ok()
}

async fn refused(service: &Running, path: &str, body: &serde_json::Value) -> (u16, String) {
    let (status, problem) = service.post::<ProblemDetails>(path, body).await;
    (status.as_u16(), problem.code)
}

#[tokio::test]
async fn what_is_deleted_is_down_at_once_and_gone_when_its_time_is_over() {
    for world in worlds().await {
        let (world, hand) = by_hand(world);
        let service = world.start().await;
        let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
        let at = |what: &str| format!("/api/instances/{}/{what}", alice.id);
        let mistyped = json!({ "by": alice.account, "slug": "alicf" });
        let (status, problem) = service.post::<ProblemDetails>(&at("delete"), &mistyped).await;
        let said = (status, problem.code.as_str(), problem.field.as_deref());
        assert_eq!(said, (StatusCode::UNPROCESSABLE_ENTITY, "slug_mismatch", Some("slug")));

        hand.advance_ms(5);
        let deleted = service.delete(&alice).await;
        let deletion = deleted.deletion.expect("it is deleted");
        assert_eq!((deleted.desired, deletion.asked_at_ms), (Desired::Deleted, START_MS + 5));
        assert_eq!(deletion.data_until_ms, START_MS + 5 + KEPT_MS);
        let settled = service.settled(&alice, Phase::PendingDeletion).await;
        assert_eq!((settled.deletion, settled.error), (Some(deletion), None));
        assert_eq!(world.engine.units().iter().map(|unit| unit.id).collect::<Vec<_>>(), [bob.id]);
        assert_eq!(world.neighbours.revoked(), BTreeSet::from([alice.id]), "{}", world.store.name());
        assert_eq!(letter(&world, &alice).as_deref(), Some("alice"), "its data is kept");
        // Deleted twice is deleted once.
        assert_eq!(service.delete(&alice).await.deletion, Some(deletion));
        for wish in ["start", "restart", "retry", "discard"] {
            let said = refused(&service, &at(wish), &json!({ "account_id": alice.account })).await;
            assert_eq!(said, (409, "instance_deleted".into()), "{wish}");
        }
        let provider = refused(&service, "/api/instances/configure-provider", &alice.provider("sk-1")).await;
        assert_eq!(provider, (409, "instance_deleted".into()));

        // A day before its time a restarted service leaves it alone; then it is gone, and nothing else is.
        hand.set_ms(deletion.data_until_ms - 1);
        service.kill();
        let service = world.start().await;
        service.settled(&bob, Phase::Ready).await;
        assert_eq!(service.instance(&alice).await.phase, Phase::PendingDeletion);
        hand.advance_ms(1);
        assert_eq!(refused(&service, &at("undelete"), &json!({ "by": alice.account })).await.1, "deletion_final");
        service.kill();
        let service = world.start().await;
        service.settled(&alice, Phase::Deleted).await;
        for folder in ["run", "instances"] {
            assert!(!world.config.data_dir.join(folder).join(alice.id.to_string()).exists(), "{folder}");
        }
        assert_eq!((letter(&world, &bob).as_deref(), world.engine.is_running(bob.id)), (Some("bobby"), true));
        use EventCode::{DeleteRequested, Deleted};
        let events = service.events(&alice).await;
        // What came before is how it came up, in as many events as that took.
        let asked = events.iter().position(|event| event.code == DeleteRequested).unwrap();
        let last: Vec<_> = events[asked..].iter().map(|event| (event.code, event.actor.clone())).collect();
        assert_eq!(last, [(DeleteRequested, alice.account.to_string()), (Deleted, "beaver".into())]);
        assert_eq!(events[asked].detail.as_deref(), Some(&*deletion.data_until_ms.to_string()));

        // For good: nobody brings it back, and nobody gets its name.
        assert_eq!(refused(&service, &at("undelete"), &json!({ "by": "operator" })).await.0, 404);
        assert_eq!(refused(&service, &at("start"), &json!({ "account_id": alice.account })).await.0, 404);
        let carol = Person { slug: alice.slug.clone(), ..Person::named("carol") };
        let again = refused(&service, "/api/instances/register", &json!(carol.wanted())).await;
        assert_eq!(again, (409, "slug_taken".into()));
        let (_, list) = service.get::<InstanceList>("/api/instances").await;
        assert_eq!(list.instances.iter().map(|instance| instance.id).collect::<Vec<_>>(), [bob.id]);
    }
}

#[tokio::test]
async fn taken_back_it_is_as_it_was_with_an_identity_of_its_own_anew() {
    for world in worlds().await {
        let (world, hand) = by_hand(world);
        let service = world.start().await;
        let alice = settled(&world, &service, "alice").await;
        service.configure(&alice, "sk-1").await;
        service.until(&alice, "configured", |instance| instance.applied_config_generation == 1).await;
        service.delete(&alice).await;
        service.settled(&alice, Phase::PendingDeletion).await;
        hand.advance_ms(KEPT_MS - 1);
        assert_eq!(service.undelete(&alice).await.deletion, None);
        let back = service.settled(&alice, Phase::Ready).await;
        assert_eq!((back.desired, back.applied_config_generation, back.error), (Desired::Running, 1, None));
        assert_eq!((letter(&world, &alice).as_deref(), world.neighbours.owners_taken(alice.id)), (Some("alice"), 2));
        assert!(!world.config.data_dir.join(format!("instances/{}/tombstone.json", alice.id)).exists());
        assert_eq!(service.undelete(&alice).await.generation, back.generation, "there is nothing to take back");

        // One that was stopped comes back stopped; so does one that is stopped while it is deleted, as a suspended one is.
        service.wish(&alice, "stop").await;
        service.settled(&alice, Phase::Stopped).await;
        service.delete(&alice).await;
        service.settled(&alice, Phase::PendingDeletion).await;
        service.undelete(&alice).await;
        service.settled(&alice, Phase::Stopped).await;
        service.wish(&alice, "start").await;
        service.settled(&alice, Phase::Ready).await;
        service.delete(&alice).await;
        service.wish(&alice, "stop").await;
        service.settled(&alice, Phase::PendingDeletion).await;
        service.undelete(&alice).await;
        service.settled(&alice, Phase::Stopped).await;
        assert_eq!(letter(&world, &alice).as_deref(), Some("alice"), "{}", world.store.name());
    }
}

#[tokio::test]
async fn the_operator_deletes_on_somebodys_behalf_and_takes_it_back() {
    for world in worlds().await {
        let service = world.start().await;
        let alice = settled(&world, &service, "alice").await;
        let path = |what: &str| format!("/api/instances/{}/{what}", alice.id);
        for by in ["", "Operator", "a-1"] {
            let (status, _) = refused(&service, &path("delete"), &json!({ "by": by, "slug": "alice" })).await;
            assert_eq!(status, 400, "{by:?} is nobody");
        }
        let body = json!({ "by": "operator", "slug": "alice" });
        let (status, _) = service.post::<Instance>(&path("delete"), &body).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        service.settled(&alice, Phase::PendingDeletion).await;
        let (status, _) = service.post::<Instance>(&path("undelete"), &json!({ "by": "operator" })).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        service.settled(&alice, Phase::Ready).await;
        let events = service.events(&alice).await;
        for code in [EventCode::DeleteRequested, EventCode::UndeleteRequested] {
            let event = events.iter().find(|event| event.code == code).expect("it is told");
            assert_eq!(event.actor, "operator", "{}", world.store.name());
        }
    }
}

#[tokio::test]
async fn wherever_the_service_is_killed_what_is_deleted_is_down_and_what_is_taken_back_is_up() {
    for call in ["observe", "stop", "remove"] {
        let world = sqlite_world().await;
        let service = world.start().await;
        let alice = settled(&world, &service, "alice").await;
        world.engine.hold(call);
        service.delete(&alice).await;
        until("held", || world.engine.is_holding(call)).await;
        service.kill();
        world.engine.release();
        let service = world.start().await;
        service.settled(&alice, Phase::PendingDeletion).await;
        assert!(world.engine.units().is_empty(), "{call}");
        service.undelete(&alice).await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(letter(&world, &alice).as_deref(), Some("alice"), "{call}");
    }
    for call in ["observe", "ensure", "start"] {
        let world = sqlite_world().await;
        let service = world.start().await;
        let alice = settled(&world, &service, "alice").await;
        service.delete(&alice).await;
        service.settled(&alice, Phase::PendingDeletion).await;
        world.engine.hold(call);
        service.undelete(&alice).await;
        until("held", || world.engine.is_holding(call)).await;
        service.kill();
        world.engine.release();
        let service = world.start().await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(letter(&world, &alice).as_deref(), Some("alice"), "{call}");
    }
}

#[tokio::test]
async fn with_authz_or_the_engine_away_it_is_deleted_as_far_as_can_be_and_the_rest_follows() {
    let world = sqlite_world().await;
    let service = world.start().await;
    let alice = settled(&world, &service, "alice").await;
    world.neighbours.set_authz_away(true);
    service.delete(&alice).await;
    until("down", || world.engine.units().is_empty()).await;
    service.until(&alice, "waiting for authz", |instance| instance.error.is_some()).await;
    world.neighbours.set_authz_away(false);
    assert_eq!(service.settled(&alice, Phase::PendingDeletion).await.error, None);

    // Its identity waits for no engine, and when authz is away too, for authz alone.
    let (bob, carol) = (settled(&world, &service, "bobby").await, settled(&world, &service, "carol").await);
    world.engine.set_away(true);
    service.delete(&bob).await;
    until("revoked", || world.neighbours.was_revoked(bob.id)).await;
    service.until(&bob, "unknown", |instance| instance.phase == Phase::Unknown).await;
    world.neighbours.set_authz_away(true);
    service.delete(&carol).await;
    service.until(&carol, "unknown", |instance| instance.phase == Phase::Unknown).await;
    assert!(!world.neighbours.was_revoked(carol.id));
    world.neighbours.set_authz_away(false);
    until("revoked", || world.neighbours.was_revoked(carol.id)).await;
    assert_eq!(world.engine.units().len(), 2, "nothing was stopped yet");
    world.engine.set_away(false);
    service.settled(&bob, Phase::PendingDeletion).await;
    service.settled(&carol, Phase::PendingDeletion).await;
    assert!(world.engine.units().is_empty());
    assert!(
        [bob.id, carol.id].iter().all(|id| world.neighbours.revoked().contains(id)),
        "once more, now that it is down"
    );

    // However often removing its unit fails, it is not given up.
    let dave = settled(&world, &service, "david").await;
    world.engine.refuse("remove", ErrorKind::Rejected);
    service.delete(&dave).await;
    support::eventually(async || match world.engine.count("remove", dave.id) {
        count @ ..6 => Err(format!("only {count} attempts")),
        _ => Ok(()),
    })
    .await;
    world.engine.accept("remove");
    service.settled(&dave, Phase::PendingDeletion).await;
}

#[tokio::test]
async fn a_registry_from_before_it_was_taken_back_removes_nothing() {
    let (mut world, hand) = by_hand(sqlite_world().await);
    world.config.delete_after = Duration::from_secs(60);
    let service = world.start().await;
    let alice = settled(&world, &service, "alice").await;
    service.delete(&alice).await;
    let pending = service.settled(&alice, Phase::PendingDeletion).await;
    // As if she had taken it back, worked for weeks, and the registry of that day were restored.
    let tombstone = world.config.data_dir.join(format!("instances/{}/tombstone.json", alice.id));
    std::fs::remove_file(&tombstone).unwrap();
    service.kill();
    hand.advance_ms(KEPT_MS);
    let service = world.start().await;
    let since = world.clock.now_ms();
    let kept = service
        .until(&alice, "kept for as long again", |instance| {
            instance.deletion.is_some_and(|deletion| deletion.data_until_ms == since + 60_000)
        })
        .await;
    assert_eq!(kept.deletion.unwrap().asked_at_ms, pending.deletion.unwrap().asked_at_ms);
    service.settled(&alice, Phase::PendingDeletion).await;
    assert!(tombstone.exists());
    assert_eq!(letter(&world, &alice).as_deref(), Some("alice"));
    service.undelete(&alice).await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(letter(&world, &alice).as_deref(), Some("alice"));
}

#[tokio::test]
async fn taken_back_before_it_is_down_no_key_of_before_counts_all_the_same() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    let starts = world.engine.count("start", alice.id);
    world.engine.hold("stop");
    service.delete(&alice).await;
    until("it is being stopped", || world.engine.is_holding("stop")).await;
    until("it has no identity any more", || world.neighbours.was_revoked(alice.id)).await;
    service.undelete(&alice).await;
    assert!(data(&world, alice.id).join(".revoked").exists(), "word for its next start");
    world.engine.release();
    service.settled(&alice, Phase::Ready).await;
    assert!(world.engine.count("start", alice.id) > starts, "which comes at once");
    assert_eq!(world.neighbours.owners_taken(alice.id), 2, "with an identity anew");
}

#[tokio::test]
async fn a_token_that_was_taken_away_is_not_used_again() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    world.engine.hold("start");
    service.register(&alice).await;
    until("it has its token", || world.engine.is_holding("start")).await;
    world.engine.hold("remove");
    service.delete(&alice).await;
    until("it is being removed", || world.engine.is_holding("remove")).await;
    until("it has no token any more", || world.neighbours.was_revoked(alice.id)).await;
    service.undelete(&alice).await;
    world.engine.release();
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.neighbours.tokens_given(), 2);
}
