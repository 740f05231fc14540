//! A new release comes to instances one before the others, and goes back by itself where it does not come up.

mod support;

use contracts::deploy::{EventCode, Phase, ReleaseList, Upgrade};
use support::{Person, Running, World, until, worlds};

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

        world.engine.set_image("new");
        world.engine.break_image("new");
        let service = world.start().await;
        support::eventually(async || {
            let back = count(&service, &people, EventCode::ReleaseRolledBack).await;
            (back == 1).then_some(()).ok_or_else(|| format!("{back} went back"))
        })
        .await;
        until("everybody has the old one", || all_run(&world, &people, "old")).await;
        for person in &people {
            assert_eq!(service.settled(person, Phase::Ready).await.error, None);
        }
        let removed: usize = people.iter().map(|person| world.engine.count("remove", person.id)).sum();
        assert_eq!(removed, 2, "one made way for the new one, and that for the old; nobody else was touched");
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
    }
}
