//! What follows when an instance's data takes more disk than it may.

mod support;

use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use contracts::{
    deploy::{EventCode, Phase},
    instance::DiskNotice,
};
use deploy_control::engine::ErrorKind;
use support::{Person, Running, World, eventually, sqlite_world, until, worlds};

const MB: u64 = 1 << 20;

fn limited(world: &mut World, limit_mb: Option<u64>) {
    world.config.plans.disk_bytes = limit_mb.map(|mb| mb * MB);
    world.config.measure_disk_every = Duration::from_millis(10);
}

fn data(world: &World, person: &Person) -> PathBuf {
    world.config.data_dir.join("instances").join(person.id.to_string()).join("data")
}

fn notice(world: &World, person: &Person) -> Option<DiskNotice> {
    let text = fs::read(world.config_dir(person.id).join("disk.json")).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

async fn ready(world: &World, name: &str) -> (Running, Person) {
    let (service, person) = (world.start().await, Person::named(name));
    service.ready(&person).await;
    (service, person)
}

/// Waits until so many events of this kind were told.
async fn told(service: &Running, person: &Person, code: EventCode, times: usize) {
    eventually(async || {
        let codes = service.codes(person).await;
        let so_often = codes.iter().filter(|told| **told == code).count() == times;
        so_often.then_some(()).ok_or_else(|| format!("{code:?} is not told {times} times: {codes:?}"))
    })
    .await;
}

/// Waits until others were measured, which are measured after this one.
async fn measured_again(service: &Running, world: &World, n: usize) {
    let marker = Person::named(&format!("marker-{n}"));
    service.ready(&marker).await;
    // What it writes beside its socket counts too.
    fs::write(world.config.data_dir.join(format!("run/{}/in/big", marker.id)), vec![1; 5 * MB as usize / 2]).unwrap();
    told(service, &marker, EventCode::DiskFull, 1).await;
}

#[tokio::test]
async fn it_is_told_once_and_so_is_that_there_is_room_again() {
    for mut world in worlds().await {
        limited(&mut world, Some(2));
        let (service, alice) = ready(&world, "alice").await;
        // Neither another's file, by a link, nor a hole takes any of hers.
        let outside = world.config.data_dir.join("outside");
        fs::write(&outside, vec![1; 5 * MB as usize]).unwrap();
        symlink(&outside, data(&world, &alice).join("link")).unwrap();
        fs::File::create(data(&world, &alice).join("hole")).unwrap().set_len(50 * MB).unwrap();
        fs::write(data(&world, &alice).join("small"), vec![1; MB as usize]).unwrap();
        measured_again(&service, &world, 1).await;
        assert_eq!(notice(&world, &alice), None, "{}", world.store.name());

        fs::create_dir_all(data(&world, &alice).join("a/b")).unwrap();
        fs::write(data(&world, &alice).join("a/b/more"), vec![1; 5 * MB as usize / 4]).unwrap();
        told(&service, &alice, EventCode::DiskFull, 1).await;
        let said = notice(&world, &alice).unwrap();
        assert!((2 * MB..3 * MB).contains(&said.used_bytes.unwrap()) && said.limit_bytes == 2 * MB, "{said:?}");
        let events = service.events(&alice).await;
        assert!(events.iter().map(|event| event.seq).eq(1..=events.len() as i64), "no gap");
        service.kill();

        // Another run of the service tells nothing twice; a file that was lost is there again.
        fs::remove_file(world.config_dir(alice.id).join("disk.json")).unwrap();
        let service = world.start().await;
        measured_again(&service, &world, 2).await;
        measured_again(&service, &world, 3).await;
        assert_eq!(notice(&world, &alice).unwrap().limit_bytes, 2 * MB);
        told(&service, &alice, EventCode::DiskFull, 1).await;

        // A little less is no room yet. At once: a file that is being written anew is empty for a moment.
        let less = world.config.data_dir.join("less");
        fs::write(&less, vec![1; MB as usize - 60_000]).unwrap();
        fs::rename(less, data(&world, &alice).join("a/b/more")).unwrap();
        measured_again(&service, &world, 4).await;
        assert!(notice(&world, &alice).is_some());
        fs::remove_file(data(&world, &alice).join("a/b/more")).unwrap();
        told(&service, &alice, EventCode::DiskFreed, 1).await;
        assert_eq!(notice(&world, &alice), None, "{}", world.store.name());
        assert_eq!(world.engine.count("start", alice.id), 1, "nothing of it takes a restart");
    }
}

#[tokio::test]
async fn without_a_limit_nothing_is_told_and_what_was_told_is_taken_back() {
    let mut world = sqlite_world().await;
    limited(&mut world, Some(1));
    let (service, alice) = ready(&world, "alice").await;
    fs::write(data(&world, &alice).join("big"), vec![1; 5 * MB as usize / 4]).unwrap();
    told(&service, &alice, EventCode::DiskFull, 1).await;
    service.kill();

    limited(&mut world, None);
    let service = world.start().await;
    told(&service, &alice, EventCode::DiskFreed, 1).await;
    assert_eq!(notice(&world, &alice), None);
}

#[tokio::test]
async fn one_that_goes_far_beyond_is_stopped_and_stays_so_until_there_is_less_of_it() {
    for mut world in worlds().await {
        limited(&mut world, Some(2));
        let (service, alice) = ready(&world, "alice").await;
        fs::write(data(&world, &alice).join("big"), vec![1; 4 * MB as usize]).unwrap();
        let stopped = service.settled(&alice, Phase::Failed).await;
        assert_eq!(stopped.error.unwrap().code, "disk_exceeded");
        until("stopped", || !world.engine.is_running(alice.id)).await;
        assert_eq!(service.codes(&alice).await.iter().filter(|code| **code == EventCode::Failed).count(), 1);

        // Nobody gets it up by wishing alone, and it is not tried again and again.
        service.wish(&alice, "start").await;
        let again = service.settled(&alice, Phase::Failed).await;
        assert_eq!(again.error.unwrap().code, "disk_exceeded");
        assert_eq!(world.engine.count("start", alice.id), 1, "{}", world.store.name());

        fs::write(data(&world, &alice).join("big"), vec![1; MB as usize]).unwrap();
        service.wish(&alice, "retry").await;
        assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
    }
}

#[tokio::test]
async fn a_higher_limit_lets_it_start_again() {
    let mut world = sqlite_world().await;
    limited(&mut world, Some(2));
    let (service, alice) = ready(&world, "alice").await;
    fs::write(data(&world, &alice).join("big"), vec![1; 4 * MB as usize]).unwrap();
    service.settled(&alice, Phase::Failed).await;
    service.kill();

    limited(&mut world, Some(8));
    let service = world.start().await;
    service.wish(&alice, "start").await;
    service.settled(&alice, Phase::Ready).await;
    told(&service, &alice, EventCode::DiskFreed, 1).await;
}

#[tokio::test]
async fn who_wants_it_up_while_it_is_taken_down_for_it_is_heard() {
    let mut world = sqlite_world().await;
    limited(&mut world, Some(2));
    let (service, alice) = ready(&world, "alice").await;
    world.engine.hold("stop");
    let big = data(&world, &alice).join("big");
    fs::write(&big, vec![1; 4 * MB as usize]).unwrap();
    until("stopped", || world.engine.is_holding("stop")).await;
    // It is given up already, and that is what its owner sees.
    assert_eq!(service.instance(&alice).await.phase, Phase::Failed);
    fs::remove_file(big).unwrap();
    told(&service, &alice, EventCode::DiskFreed, 1).await;
    assert_eq!(service.wish(&alice, "start").await.generation, 2);
    world.engine.release();
    service.settled(&alice, Phase::Ready).await;
}

#[tokio::test]
async fn what_it_is_stopped_for_stays_the_reason_though_the_stop_is_refused() {
    let mut world = sqlite_world().await;
    limited(&mut world, Some(2));
    let (service, alice) = ready(&world, "alice").await;
    world.engine.refuse("stop", ErrorKind::Rejected);
    fs::write(data(&world, &alice).join("big"), vec![1; 4 * MB as usize]).unwrap();
    until("tried again", || world.engine.count("stop", alice.id) >= 3).await;
    world.engine.accept("stop");
    until("stopped", || !world.engine.is_running(alice.id)).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "disk_exceeded");
    told(&service, &alice, EventCode::Failed, 1).await;
}

#[tokio::test]
async fn less_data_from_an_archive_is_a_way_out() {
    let mut world = sqlite_world().await;
    limited(&mut world, Some(2));
    let (service, alice) = ready(&world, "alice").await;
    let path = format!("/api/instances/{}/export?by={}", alice.id, alice.account);
    let archive = service.request("GET", &path).send().await.unwrap().bytes().await.unwrap();
    fs::write(data(&world, &alice).join("big"), vec![1; 4 * MB as usize]).unwrap();
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "disk_exceeded");
    let path = format!("/api/instances/{}/restore?by={}", alice.id, alice.account);
    let answer = service.request("POST", &path).body(archive).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
    assert!(!data(&world, &alice).join("big").exists());
}
