//! Whose an instance's folders are. Only root can give anything away, so for anybody else there is nothing to test.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use contracts::deploy::Phase;
use deploy_control::config::EngineKind;
use support::{Person, World, sqlite_world, until};

/// A world in which each instance has its own user; `None` when this process is not root.
async fn world_with_users() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("users of instances' own were not tested: not running as root");
        return None;
    }
    let mut world = sqlite_world().await;
    world.config.engine.kind = EngineKind::Docker;
    Some(world)
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

impl World {
    fn folder(&self, person: &Person, name: &str) -> PathBuf {
        let place = if matches!(name, "in" | "out") { "run" } else { "instances" };
        self.config.data_dir.join(place).join(person.id.to_string()).join(name)
    }
}

#[tokio::test]
async fn each_instances_folders_are_its_own() {
    let Some(world) = world_with_users().await else { return };
    let service = world.start().await;
    for (person, uid) in [(Person::named("alice"), 20_001), (Person::named("bobby"), 20_002)] {
        service.ready(&person).await;
        for (name, owners, rights) in [
            ("in", (uid, 10_001), 0o2750),
            ("out", (10_001, uid), 0o2750),
            ("data", (uid, uid), 0o700),
            ("config", (uid, uid), 0o500),
            ("config/config.json", (uid, uid), 0o400),
        ] {
            let path = world.folder(&person, name);
            assert_eq!((owner(&path), mode(&path)), (owners, rights), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn what_was_restored_as_root_is_given_back_and_nothing_else() {
    let Some(world) = world_with_users().await else { return };
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    let unit = world.engine.units();
    service.kill();

    // As an unpacked archive leaves it; and somebody else's files, which a link of hers points to.
    let data = world.folder(&alice, "data");
    let theirs = world.config.data_dir.join("theirs");
    fs::write(&theirs, "theirs").unwrap();
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/file"), "hers").unwrap();
    symlink(&theirs, data.join("a/link")).unwrap();
    fs::set_permissions(data.join("a"), fs::Permissions::from_mode(0o750)).unwrap();
    for name in ["in", "out", "data", "config", "config/config.json"] {
        let path = world.folder(&alice, name);
        lchown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    let service = world.start().await;
    let hers = (20_001, 20_001);
    until("hers", || owner(&data) == hers && owner(&world.folder(&alice, "config/config.json")) == hers).await;
    service.settled(&alice, Phase::Ready).await;
    for path in ["a", "a/b", "a/b/file", "a/link"] {
        assert_eq!(owner(&data.join(path)), hers, "{path}");
    }
    assert_eq!((mode(&data), mode(&data.join("a"))), (0o700, 0o750), "what is hers inside keeps its mode");
    assert_eq!((owner(&world.folder(&alice, "in")), mode(&world.folder(&alice, "in"))), ((20_001, 10_001), 0o2750));
    assert_eq!((owner(&world.folder(&alice, "out")), mode(&world.folder(&alice, "out"))), ((10_001, 20_001), 0o2750));
    assert_eq!(mode(&world.folder(&alice, "config/config.json")), 0o400);
    assert_eq!(owner(&theirs), (0, 0), "links are not followed");
    assert_eq!(fs::read(data.join("a/b/file")).unwrap(), b"hers");
    assert_eq!(world.engine.units().len(), unit.len());
}

#[tokio::test]
async fn one_that_runs_is_mended_where_it_is() {
    let Some(world) = world_with_users().await else { return };
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    let before = world.engine.units();
    service.kill();

    fs::create_dir(world.folder(&alice, "data/restored")).unwrap();
    // What she may do herself is no reason to do anything.
    fs::set_permissions(world.folder(&alice, "data"), fs::Permissions::from_mode(0o755)).unwrap();
    let service = world.start().await;
    until("hers", || owner(&world.folder(&alice, "data/restored")) == (20_001, 20_001)).await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.engine.units(), before, "it goes on as it was");
    service.kill();

    fs::set_permissions(world.folder(&alice, "data"), fs::Permissions::from_mode(0o755)).unwrap();
    let (service, bob) = (world.start().await, Person::named("bobby"));
    service.ready(&bob).await;
    service.wish(&alice, "restart").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(mode(&world.folder(&alice, "data")), 0o755);
}

#[tokio::test]
async fn another_setting_or_an_older_registry_gives_nobody_elses_files() {
    let Some(mut world) = world_with_users().await else { return };
    let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
    for person in [&alice, &bob] {
        service.ready(person).await;
    }
    service.kill();

    // One more or less would give each the folders of the other.
    world.config.engine.uid_base = 20_001;
    let service = world.start().await;
    service.wish(&alice, "restart").await;
    service.settled(&alice, Phase::Ready).await;
    assert_eq!(owner(&world.folder(&alice, "data")), (20_001, 20_001));
    service.kill();

    // A registry from before anybody signed up, beside the folders of those who did.
    let emptied = store::testing::sqlite(&deploy_control::registry::MIGRATOR).await;
    world.config.database = emptied.database().clone();
    world.config.engine.uid_base = 20_000;
    let (service, carol) = (world.start().await, Person::named("carol"));
    service.ready(&carol).await;
    assert_eq!(owner(&world.folder(&carol, "data")), (20_003, 20_003), "nobody's before");
}
