//! Data that is taken along, and put back: all of it or nothing, whoever dies in between.

mod support;

use std::{collections::BTreeMap, fs, io::Read, path::PathBuf};

use contracts::{
    InstanceId, ProblemDetails,
    deploy::{EventCode, Instance, Phase},
    instance::FROM_ARCHIVE,
};
use support::{Person, Running, World, eventually, sqlite_world, until, worlds};

fn folder(world: &World, id: InstanceId) -> PathBuf {
    world.config.data_dir.join(format!("instances/{id}"))
}

async fn settled(world: &World, service: &Running, slug: &str) -> Person {
    let person = Person::named(slug);
    service.ready(&person).await;
    let data = folder(world, person.id).join("data");
    fs::write(data.join("letter"), slug).unwrap();
    fs::write(data.join("instance.db"), format!("the database of {slug}")).unwrap();
    fs::write(data.join("identity.key"), "canary-identity").unwrap();
    person
}

fn letter(world: &World, person: &Person) -> String {
    fs::read_to_string(folder(world, person.id).join("data/letter")).unwrap_or_default()
}

async fn restore(service: &Running, person: &Person, archive: Vec<u8>) -> Result<Instance, (u16, String, String)> {
    let path = format!("/api/instances/{}/restore?by={}", person.id, person.account);
    let answer = service.request("POST", &path).body(archive).send().await.unwrap();
    let status = answer.status().as_u16();
    if status == 202 {
        return Ok(answer.json().await.unwrap());
    }
    let problem: ProblemDetails = answer.json().await.unwrap();
    Err((status, problem.code, problem.detail))
}

/// The files in an archive.
fn files(archive: &[u8]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    files
}

/// The same archive of data to which something was added.
async fn with(world: &World, service: &Running, person: &Person, name: &str) -> Vec<u8> {
    let file = folder(world, person.id).join("data").join(name);
    fs::write(&file, name).unwrap();
    let archive = service.export(person).await;
    fs::remove_file(file).unwrap();
    archive
}

/// What is beside the folders that every instance has.
fn left(world: &World, person: &Person) -> Vec<String> {
    let entries = fs::read_dir(folder(world, person.id)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !["data", "config"].contains(&&**name)).collect();
    names.sort();
    names
}

#[tokio::test]
async fn everything_is_taken_along_whatever_it_does_and_nothing_of_beavers_own() {
    for world in worlds().await {
        let service = world.start().await;
        let alice = settled(&world, &service, "alice").await;
        let running = files(&service.export(&alice).await);
        assert_eq!(running["data/instance.db"], "a snapshot", "{}", world.store.name());
        assert_eq!(running["data/letter"], "alice");
        assert_eq!(running.keys().next_back().map(String::as_str), Some("manifest.json"));
        assert_eq!(running.len(), 3, "{:?}", running.keys());
        let snapshot = folder(&world, alice.id).join("data/snapshot.db");
        until("the snapshot taken away", || !snapshot.exists()).await;

        service.wish(&alice, "stop").await;
        service.settled(&alice, Phase::Stopped).await;
        let stopped = files(&service.export(&alice).await);
        assert_eq!(stopped["data/instance.db"], "the database of alice");
        service.delete(&alice).await;
        service.settled(&alice, Phase::PendingDeletion).await;
        assert_eq!(files(&service.export(&alice).await)["data/letter"], "alice", "while it is kept");
        let events = service.events(&alice).await;
        let exported: Vec<_> = events.iter().filter(|event| event.code == EventCode::Exported).collect();
        assert_eq!(exported.len(), 3);
        assert!(exported.iter().all(|event| event.actor == alice.account.to_string()));
        let said = restore(&service, &alice, Vec::new()).await.unwrap_err();
        assert_eq!((said.0, said.1.as_str()), (409, "instance_deleted"));
    }
}

#[tokio::test]
async fn put_into_another_workspace_it_is_that_ones_with_an_identity_of_its_own() {
    for world in worlds().await {
        let service = world.start().await;
        let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
        let archive = service.export(&alice).await;
        let taken = restore(&service, &bob, archive).await.unwrap();
        assert_eq!(taken.id, bob.id);
        let ready = service.settled(&bob, Phase::Ready).await;
        assert_eq!((ready.error, ready.account_id), (None, bob.account));
        assert_eq!(letter(&world, &bob), "alice", "{}", world.store.name());
        let data = folder(&world, bob.id).join("data");
        assert_eq!(fs::read_to_string(data.join("instance.db")).unwrap(), "a snapshot");
        assert!(data.join(".from-archive").exists() && !data.join("identity.key").exists());
        assert_eq!(world.neighbours.owners_taken(bob.id), 2, "its identity is another one");
        assert_eq!(letter(&world, &alice), "alice");
        until("tidied", || left(&world, &bob).is_empty()).await;
        let codes = service.codes(&bob).await;
        assert!(codes.contains(&EventCode::RestoreRequested) && codes.contains(&EventCode::Restored));
        assert_eq!(world.current_config(bob.id).owner, bob.account);
    }
}

#[tokio::test]
async fn data_with_which_it_does_not_come_up_is_taken_back() {
    let mut world = sqlite_world().await;
    world.config.reconcile.start_timeout = std::time::Duration::from_millis(300);
    let service = world.start().await;
    let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
    let sick = with(&world, &service, &alice, "sick").await;
    restore(&service, &bob, sick).await.unwrap();
    let back = service.until(&bob, "told", |instance| instance.error.is_some() && instance.phase == Phase::Ready).await;
    assert_eq!(back.error.unwrap().code, "restore_not_accepted");
    assert_eq!(letter(&world, &bob), "bobby");
    until("tidied", || left(&world, &bob).is_empty()).await;
    let codes = service.codes(&bob).await;
    assert!(codes.contains(&EventCode::RestoreRolledBack) && !codes.contains(&EventCode::Restored));
    // The control: what is well is taken.
    let well = service.export(&alice).await;
    restore(&service, &bob, well).await.unwrap();
    assert_eq!(service.settled(&bob, Phase::Ready).await.error, None);
    assert_eq!(letter(&world, &bob), "alice");
}

#[tokio::test]
async fn what_is_not_whole_changes_nothing_and_leaves_nothing_behind() {
    let mut world = sqlite_world().await;
    world.config.plans.disk_bytes = Some(1 << 20);
    let service = world.start().await;
    let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
    let archive = service.export(&alice).await;
    let before = service.instance(&bob).await.generation;
    for length in [0, 700, archive.len() / 2, archive.len() - 2_048] {
        let (status, code, _) = restore(&service, &bob, archive[..length].to_vec()).await.unwrap_err();
        assert_eq!((status, code.as_str()), (422, "archive_broken"), "{length}");
    }
    let mut spoilt = archive.clone();
    let at = spoilt.windows(5).position(|bytes| bytes == b"alice").unwrap();
    spoilt[at] = b'A';
    let (_, code, detail) = restore(&service, &bob, spoilt).await.unwrap_err();
    assert_eq!(code, "archive_entry", "{detail}");
    let mut builder = tar::Builder::new(Vec::new());
    let large = vec![0; (1 << 20) + 1];
    let mut header = tar::Header::new_gnu();
    header.set_size(large.len() as u64);
    header.set_mode(0o600);
    builder.append_data(&mut header, "data/large", &*large).unwrap();
    let (_, code, _) = restore(&service, &bob, builder.into_inner().unwrap()).await.unwrap_err();
    assert_eq!(code, "archive_too_large");
    until("removed", || left(&world, &bob).is_empty()).await;
    assert_eq!((letter(&world, &bob).as_str(), service.instance(&bob).await.generation), ("bobby", before));
}

#[tokio::test]
async fn wherever_the_service_is_killed_there_is_one_set_of_data_or_the_other() {
    for call in ["observe", "stop", "start"] {
        let world = sqlite_world().await;
        let service = world.start().await;
        let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
        let archive = service.export(&alice).await;
        world.engine.hold(call);
        restore(&service, &bob, archive).await.unwrap();
        until("held", || world.engine.is_holding(call)).await;
        let between = letter(&world, &bob);
        assert!(["alice", "bobby"].contains(&&*between), "{call}: {between}");
        service.kill();
        world.engine.release();
        let service = world.start().await;
        service.settled(&bob, Phase::Ready).await;
        assert_eq!(letter(&world, &bob), "alice", "{call}");
        until("tidied", || left(&world, &bob).is_empty()).await;
    }
    // Between the two renames, as a kill there leaves it; with an archive half unpacked beside it.
    let world = sqlite_world().await;
    let service = world.start().await;
    let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
    let archive = service.export(&alice).await;
    world.engine.hold("stop");
    restore(&service, &bob, archive).await.unwrap();
    until("held", || world.engine.is_holding("stop")).await;
    service.kill();
    world.engine.release();
    let its = folder(&world, bob.id);
    fs::rename(its.join("data"), its.join("archive.1/old")).unwrap();
    fs::create_dir_all(its.join("upload/new")).unwrap();
    let service = world.start().await;
    service.settled(&bob, Phase::Ready).await;
    assert_eq!(letter(&world, &bob), "alice");
    eventually(async || match left(&world, &bob) {
        names if names.is_empty() => Ok(()),
        names => Err(format!("{names:?} are left")),
    })
    .await;
}

#[tokio::test]
async fn what_was_put_together_and_never_wished_is_gone_after_a_restart() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    service.kill_and_wait().await;
    // As after a kill in between; and as from after the copy of the registry, with what she had before beside it.
    let folder = world.config.data_dir.join(format!("instances/{}", alice.id));
    for path in ["upload/new", "archive.1/new", "archive.2/new", "archive.2/old", "archive.3/old"] {
        std::fs::create_dir_all(folder.join(path)).unwrap();
        std::fs::write(folder.join(path).join("letter"), path).unwrap();
    }
    let service = world.start().await;
    service.settled(&alice, Phase::Ready).await;
    let there = |path: &str| folder.join(path).join("letter").exists();
    assert!(!folder.join("upload").exists() && !folder.join("archive.1/new").exists());
    assert!(there("archive.2/new") && there("archive.2/old") && there("archive.3/old"));
}

#[tokio::test]
async fn it_says_whether_another_provider_was_chosen_since_it_was_made() {
    let world = sqlite_world().await;
    let service = world.start().await;
    let (alice, bob) = (settled(&world, &service, "alice").await, settled(&world, &service, "bobby").await);
    let marked = async |person: &Person, archive: &[u8]| {
        restore(&service, person, archive.to_vec()).await.unwrap();
        service.settled(person, Phase::Ready).await;
        fs::read_to_string(folder(&world, person.id).join("data").join(FROM_ARCHIVE)).unwrap()
    };
    service.configure(&alice, "sk-one").await;
    service.settled(&alice, Phase::Ready).await;
    let archive = service.export(&alice).await;
    assert_eq!(marked(&alice, &archive).await, "as it was");
    service.configure(&alice, "sk-two").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(marked(&alice, &archive).await, "over 2");
    assert_eq!(marked(&bob, &archive).await, "over 0", "another's says nothing of bob's");
}
