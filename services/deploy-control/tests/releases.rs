//! A new release comes to instances one before the others, and goes back by itself where it does not come up.

mod support;

use std::{collections::BTreeSet, time::Duration};

use contracts::deploy::{EventCode, Phase, ReleaseList, Upgrade};
use deploy_control::engine::ErrorKind;
use support::{Person, Running, World, sqlite_world, until, worlds};

const PEOPLE: usize = 5;

async fn people(service: &Running) -> Vec<Person> {
    let people: Vec<_> = (0..PEOPLE).map(|n| Person::named(&format!("person-{n}"))).collect();
    for person in &people {
        service.register(person).await;
    }
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    people
}

async fn count(service: &Running, people: &[Person], code: EventCode) -> usize {
    let mut count = 0;
    for person in people {
        count += service.codes(person).await.iter().filter(|told| **told == code).count();
    }
    count
}

/// Several who have the old release; nobody looks after them now.
async fn people_of_old(world: &World) -> Vec<Person> {
    world.engine.set_image("old");
    let service = world.start().await;
    let people = people(&service).await;
    service.kill_and_wait().await;
    people
}

/// Lets there be a new release that does not come up.
fn break_new(world: &World) {
    world.engine.set_image("new");
    world.engine.break_image("new");
}

/// Waits until exactly one of them went back from a release.
async fn one_went_back(service: &Running, people: &[Person]) {
    support::eventually(async || {
        let back = count(service, people, EventCode::ReleaseRolledBack).await;
        (back == 1).then_some(()).ok_or_else(|| format!("{back} went back"))
    })
    .await;
}

fn all_run(world: &World, people: &[Person], release: &str) -> bool {
    let units = world.engine.units();
    people.iter().all(|person| {
        let unit = units.iter().find(|unit| unit.id == person.id);
        unit.is_some_and(|unit| unit.release.as_deref() == Some(release) && unit.run.is_some())
    })
}

#[tokio::test]
async fn one_that_does_not_come_up_takes_one_down_and_goes_back_by_itself() {
    for world in worlds().await {
        world.engine.set_image("old");
        let service = world.start().await;
        let people = people(&service).await;
        let generations = [service.instance(&people[0]).await.config_generation];
        service.kill();

        break_new(&world);
        let service = world.start().await;
        one_went_back(&service, &people).await;
        until("everybody has the old one", || all_run(&world, &people, "old")).await;
        assert_eq!(world.engine.kept(), BTreeSet::from(["old".to_owned()]), "where they go back to");
        for person in &people {
            assert_eq!(service.settled(person, Phase::Ready).await.error, None);
        }
        let removed: usize = people.iter().map(|person| world.engine.count("remove", person.id)).sum();
        assert_eq!(removed, 2, "one made way for the new one, and that for the old; nobody else was touched");
        let mut renewals = Vec::new();
        for person in &people {
            renewals.extend(service.renewals(person).await);
        }
        assert_eq!(renewals, ["release new", "release old"]);
        assert_eq!([service.instance(&people[0]).await.config_generation], generations);
        let (_, list) = service.get::<ReleaseList>("/api/releases").await;
        let told: Vec<_> = list.releases.iter().map(|r| (r.release.as_str(), r.instances, r.went_back)).collect();
        assert_eq!(told, [("old", PEOPLE as u32, 0), ("new", 0, 1)]);

        // It came down meanwhile: with the old one too, since that is what comes up.
        world.engine.crash(people[1].id);
        until("up again", || all_run(&world, &people, "old")).await;
        service.settled(&people[1], Phase::Ready).await;

        // The same after a restart: what went back does not try again by itself.
        service.kill();
        let service = world.start().await;
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
        assert!(all_run(&world, &people, "old"));

        // Mended, under the same name; the operator says so.
        world.engine.mend_image("new");
        let (status, upgrade) = service.post::<Upgrade>("/api/upgrade", &serde_json::json!({})).await;
        assert_eq!(status, 202);
        assert!(upgrade.again >= 1, "{upgrade:?}");
        until("everybody has the new one", || all_run(&world, &people, "new")).await;
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
        assert_eq!(count(&service, &people, EventCode::Upgraded).await, PEOPLE, "{}", world.store.name());
        let (_, upgrade) = service.post::<Upgrade>("/api/upgrade", &serde_json::json!({})).await;
        assert_eq!(upgrade, Upgrade { again: 0 });
        service.kill();
        let _service = world.start().await;
        let new = BTreeSet::from(["new".to_owned()]);
        until("nobody goes back to the old one", || world.engine.kept() == new).await;
    }
}

#[tokio::test]
async fn one_run_that_ends_does_not_count_against_it_and_a_second_does() {
    for (ends, runs) in [(1, "new"), (2, "old")] {
        let mut world = sqlite_world().await;
        world.config.reconcile.start_timeout = Duration::from_secs(60);
        world.engine.set_image("old");
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        service.kill_and_wait().await;

        world.engine.set_image("new");
        // It answers too late to be found healthy before it ends, as by a stop from before that took its time.
        world.neighbours.make_sick(0);
        let service = world.start().await;
        for run in 1..=ends {
            until("it runs", || world.engine.count("start", alice.id) > run && world.engine.is_running(alice.id)).await;
            world.engine.crash(alice.id);
        }
        until("it runs", || world.engine.count("start", alice.id) > ends + 1).await;
        world.neighbours.make_well();
        until("it has the one that is right", || all_run(&world, std::slice::from_ref(&alice), runs)).await;
        service.settled(&alice, Phase::Ready).await;
        let back = count(&service, std::slice::from_ref(&alice), EventCode::ReleaseRolledBack).await;
        assert_eq!((back, world.engine.count("start", alice.id)), (ends - 1, ends + 2));
    }
}

#[tokio::test]
async fn whoever_signs_up_gets_no_release_that_others_have_not_shown_to_work() {
    for (made_ahead, plan) in [(0, "workspace"), (1, "workspace"), (0, "workspace-small")] {
        let mut world = sqlite_world().await;
        world.write_plans("[workspace-small]\nmemory_mb = 100\n");
        world.config.reconcile.pool.size = made_ahead;
        let mut people = people_of_old(&world).await;
        break_new(&world);
        world.config.plans.default = plan.parse().unwrap();
        let service = world.start().await;
        one_went_back(&service, &people).await;
        until("made ahead", || world.engine.units().len() == PEOPLE + made_ahead).await;
        let newcomer = Person::named("newcomer");
        service.ready(&newcomer).await;
        people.push(newcomer);
        assert!(all_run(&world, &people, "old"), "{made_ahead} {plan}");
        assert_eq!(count(&service, &people[PEOPLE..], EventCode::AttemptFailed).await, 0);

        // Once it is known to work, they have it like everybody, and so has whoever comes next.
        world.engine.mend_image("new");
        service.post::<Upgrade>("/api/upgrade", &serde_json::json!({})).await;
        until("everybody has the new one", || all_run(&world, &people, "new")).await;
        for person in &people {
            service.settled(person, Phase::Ready).await;
        }
        let next = Person::named("next");
        service.ready(&next).await;
        assert!(all_run(&world, &[next], "new"), "{made_ahead} {plan}");
    }
}

#[tokio::test]
async fn whoever_signs_up_for_somebody_elses_program_gets_the_image_that_its_plan_names_now() {
    let mut world = sqlite_world().await;
    world.write_plans("[notes]\nimage = \"notes:1\"\nport = 8080\n");
    world.config.plans.default = "notes".parse().unwrap();
    let people = people_of_old(&world).await;
    break_new(&world);
    // With the image its port may have changed, and the one before would be asked there.
    world.write_plans("[notes]\nimage = \"notes:2\"\nport = 9090\n");
    let service = world.start().await;
    one_went_back(&service, &people).await;
    let newcomer = Person::named("newcomer");
    service.register(&newcomer).await;
    service.settled(&newcomer, Phase::Failed).await;
    world.engine.mend_image("new");
    service.wish(&newcomer, "retry").await;
    service.settled(&newcomer, Phase::Ready).await;
    assert!(all_run(&world, &[newcomer], "new"));
}

#[tokio::test]
async fn a_provider_is_not_blamed_for_a_release_that_came_at_the_same_time() {
    let world = sqlite_world().await;
    world.engine.set_image("old");
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    service.kill_and_wait().await;
    // Down, so that it is made anew with both.
    world.engine.crash(alice.id);
    break_new(&world);
    world.engine.set_away(true);
    let service = world.start().await;
    service.configure(&alice, "sk-fine").await;
    world.engine.set_away(false);
    one_went_back(&service, std::slice::from_ref(&alice)).await;
    let settled = service.settled(&alice, Phase::Ready).await;
    assert_eq!((settled.applied_config_generation, settled.error), (1, None));
    let codes = service.codes(&alice).await;
    assert!(!codes.contains(&EventCode::ConfigRolledBack), "{codes:?}");
}

#[tokio::test]
async fn a_provider_does_not_come_with_an_old_release_where_the_new_one_is_known_to_work() {
    let world = sqlite_world().await;
    world.engine.set_image("old");
    let service = world.start().await;
    let people = people(&service).await;
    let (alice, others) = people.split_first().unwrap();
    service.wish(alice, "stop").await;
    service.settled(alice, Phase::Stopped).await;
    service.kill_and_wait().await;
    world.engine.set_image("new");
    let service = world.start().await;
    until("the others have the new one", || all_run(&world, others, "new")).await;
    for other in others {
        service.settled(other, Phase::Ready).await;
    }
    world.engine.break_image("old");
    service.configure(alice, "sk-fine").await;
    service.wish(alice, "start").await;
    let ready = service.settled(alice, Phase::Ready).await;
    assert_eq!((ready.applied_config_generation, ready.error), (1, None));
    assert!(all_run(&world, &people, "new"));
}

#[tokio::test]
async fn while_one_tries_it_whoever_comes_up_gets_what_they_had() {
    let world = sqlite_world().await;
    let people = people_of_old(&world).await;
    // The host was restarted, with a new release that does not come up.
    for person in &people {
        world.engine.crash(person.id);
    }
    break_new(&world);
    let service = world.start().await;
    until("everybody has the old one", || all_run(&world, &people, "old")).await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    assert_eq!(count(&service, &people, EventCode::ReleaseRolledBack).await, 1, "one has tried it");
    assert_eq!(count(&service, &people, EventCode::AttemptFailed).await, 0);
    // Nobody does any more by coming up; whoever is new has nothing else.
    service.wish(&people[3], "restart").await;
    service.settled(&people[3], Phase::Ready).await;
    assert!(all_run(&world, &people, "old"));
    service.kill_and_wait().await;

    // One that is well comes to whoever is alone without a restart of its own.
    world.engine.set_image("newer");
    for person in &people[1..] {
        world.engine.crash(person.id);
    }
    let service = world.start().await;
    until("everybody has the newer one", || all_run(&world, &people, "newer")).await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    assert_eq!(count(&service, &people, EventCode::Upgraded).await, PEOPLE);
}

#[tokio::test]
async fn no_second_one_goes_down_while_the_first_cannot_be_made() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let people = people_of_old(&world).await;
    world.engine.refuse("ensure", ErrorKind::Capacity);
    world.engine.set_image("new");
    let service = world.start().await;
    let tries = || people.iter().map(|person| world.engine.count("ensure", person.id)).sum::<usize>();
    let begun = tries();
    // It is tried again, and meanwhile everybody else is looked at again and again.
    until("it was tried some times", || tries() > begun + 2).await;
    let up = people.iter().filter(|person| world.engine.is_running(person.id)).count();
    assert_eq!(up, PEOPLE - 1);
    world.engine.accept("ensure");
    until("everybody has the new one", || all_run(&world, &people, "new")).await;
    drop(service);
}

#[tokio::test]
async fn what_runs_well_is_not_taken_down_for_what_is_not_there() {
    let mut world = sqlite_world().await;
    let service = world.start().await;
    let alice = Person::named("alice");
    service.ready(&alice).await;
    service.kill_and_wait().await;
    // What stands in its configuration has changed, and the image is gone.
    world.config.instance.issuer = "http://another-issuer:19090".into();
    world.config.reconcile.resync = Duration::from_millis(20);
    world.engine.set_image_missing(true);
    let service = world.start().await;
    let looks = world.engine.count("observe", alice.id);
    until("it was looked at", || world.engine.count("observe", alice.id) > looks + 3).await;
    assert!(world.engine.is_running(alice.id));
    let instance = service.instance(&alice).await;
    assert_eq!((instance.phase, instance.error), (Phase::Ready, None));
    world.engine.set_image_missing(false);
    until("it has its configuration", || world.current_config(alice.id).issuer.contains("another")).await;
    service.settled(&alice, Phase::Ready).await;
}

#[tokio::test]
async fn one_that_is_deleted_keeps_nobody_from_another_try() {
    let world = sqlite_world().await;
    let people = people_of_old(&world).await;
    break_new(&world);
    let service = world.start().await;
    let back = support::eventually(async || {
        for person in &people {
            if service.codes(person).await.contains(&EventCode::ReleaseRolledBack) {
                return Ok(person.clone());
            }
        }
        Err("nobody went back".to_owned())
    })
    .await;
    service.settled(&back, Phase::Ready).await;
    service.delete(&back).await;
    service.settled(&back, Phase::PendingDeletion).await;
    // It is nobody's any more who went back: it is tried again, by one.
    let others: Vec<_> = people.iter().filter(|person| person.id != back.id).cloned().collect();
    one_went_back(&service, &others).await;
    let (status, upgrade) = service.post::<Upgrade>("/api/upgrade", &serde_json::json!({})).await;
    assert_eq!((status, upgrade), (http::StatusCode::ACCEPTED, Upgrade { again: 1 }));
}

#[tokio::test]
async fn one_that_was_held_back_goes_on_as_it_is_whatever_comes_in_between() {
    let world = sqlite_world().await;
    let people = people_of_old(&world).await;
    break_new(&world);
    let service = world.start().await;
    one_went_back(&service, &people).await;
    for person in &people {
        service.settled(person, Phase::Ready).await;
    }
    // The release goes no further now. Two come down, and nobody can say of them whether they are well.
    world.neighbours.set_router_away(true);
    let made = |person: &Person| world.engine.count("ensure", person.id);
    let before: Vec<_> = people.iter().map(made).collect();
    world.engine.crash(people[3].id);
    service.wish(&people[4], "restart").await;
    for person in &people[3..] {
        let waits = |instance: &contracts::deploy::Instance| instance.error.is_some();
        service.until(person, "waited for", waits).await;
    }
    // Nor does a kill change anything.
    service.kill_and_wait().await;
    let service = world.start().await;
    world.neighbours.set_router_away(false);
    for person in &people[3..] {
        service.settled(person, Phase::Ready).await;
    }
    assert!(all_run(&world, &people, "old"));
    let after: Vec<_> = people.iter().map(made).collect();
    assert!(after.iter().zip(&before).all(|(after, before)| after - before <= 1), "{before:?} {after:?}");
    assert_eq!(count(&service, &people, EventCode::ReleaseRolledBack).await, 1);
}

#[tokio::test]
async fn who_is_not_reached_any_more_waits_for_no_release() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let people = people_of_old(&world).await;
    break_new(&world);
    let service = world.start().await;
    one_went_back(&service, &people).await;
    // The release goes no further now, and everybody else waits for it as they run.
    let mut waiting = Vec::new();
    for person in &people {
        service.settled(person, Phase::Ready).await;
        if !service.codes(person).await.contains(&EventCode::ReleaseRolledBack) {
            waiting.push(person);
        }
    }
    let alice = waiting[0];
    let run = world.engine.run(alice.id);
    std::fs::remove_file(world.socket(alice.id)).unwrap();
    until("it runs anew", || world.engine.run(alice.id).is_some_and(|now| Some(now) != run)).await;
    service.settled(alice, Phase::Ready).await;
    assert!(all_run(&world, &people, "old"));
}
