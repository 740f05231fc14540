//! Storage that does not work for a while: a full disk, a read-only one, a database that is locked or gone. Whoever asks is
//! told to come back, nothing half-written stays, and everything goes on by itself.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use contracts::{
    ProblemDetails,
    deploy::{EventCode, Phase},
};
use serde_json::{Value, json};
use sqlx::{AnyConnection, Connection, Executor};
use store::{Database, testing::Volume};
use support::{Person, Running, World, sqlite_world, worlds};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// Room for a registry and a few people.
const ROOM_KB: u64 = 8 << 10;

/// A call: its method, its path and its body.
type Call = (&'static str, String, Value);

/// Those who ask.
struct People {
    /// Who is there.
    alice: Person,
    /// Who signs up.
    bob: Person,
    /// Who is deleted, and may take that back.
    carol: Person,
}

impl People {
    /// Starts the service, with the operator's plans and these people.
    async fn of(world: &World) -> (Running, Self) {
        world.write_plans("[workspace-small]\nmemory_mb = 100\n");
        let service = world.start().await;
        let people = Self { alice: Person::named("alice"), bob: Person::named("bobby"), carol: Person::named("carol") };
        service.ready(&people.alice).await;
        service.ready(&people.carol).await;
        service.delete(&people.carol).await;
        service.settled(&people.carol, Phase::PendingDeletion).await;
        (service, people)
    }
}

/// Every call that writes, but for a restore.
fn calls(people: &People) -> Vec<Call> {
    let there = &people.alice;
    let owner = json!({ "account_id": there.account });
    let of = |wish: &str| format!("/api/instances/{}/{wish}", there.id);
    vec![
        ("POST", "/api/instances/register".into(), json!(people.bob.wanted())),
        ("POST", "/api/instances/configure-provider".into(), there.provider("sk-canary-of-a-full-disk")),
        ("POST", of("restart"), owner.clone()),
        ("POST", of("stop"), owner),
        ("POST", of("delete"), json!({ "by": there.account, "slug": there.slug })),
        ("POST", of("plan"), json!({ "plan": SMALL })),
        // That somebody takes their data along is told in their events.
        ("GET", of(&format!("export?by={}", there.account)), Value::Null),
        ("POST", format!("/api/instances/{}/undelete", people.carol.id), json!({ "by": people.carol.account })),
    ]
}

/// The plan that is asked for.
const SMALL: &str = "workspace-small";

/// Each call is answered with 503, a stable code and when to come back, and with nothing of the inside.
async fn refuses(service: &Running, calls: &[Call]) {
    for (method, path, body) in calls {
        let answer = service.request(method, path).json(body).send().await.unwrap();
        assert_eq!(answer.status(), 503, "{path}");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("content-type").as_deref(), Some("application/problem+json"), "{path}");
        let again: u64 = header("retry-after").expect("when to come back").parse().unwrap();
        assert!(again > 0, "{path}");
        let text = answer.text().await.unwrap();
        let problem: ProblemDetails = serde_json::from_str(&text).unwrap();
        assert_eq!(problem.code, "unavailable", "{path}");
        for inside in ["sqlite", "SQL", "os error", "registry", "/tmp", "canary"] {
            assert!(!text.contains(inside), "{text}");
        }
    }
}

/// The same of one who puts data from an archive in the place of their own.
async fn refuses_a_restore(service: &Running, there: &Person, archive: Vec<u8>) {
    let path = format!("/api/instances/{}/restore?by={}", there.id, there.account);
    let answer = service.request("POST", &path).body(archive).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
}

/// Afterwards every call is taken, and comes to its end.
async fn goes_on(service: &Running, people: &People) {
    let People { alice: there, bob: new, carol: deleted } = people;
    let answer = service.request("POST", "/api/instances/register").json(&new.wanted()).send().await.unwrap();
    let status = answer.status();
    assert_eq!(status, 202, "{}", answer.text().await.unwrap());
    service.settled(new, Phase::Ready).await;
    service.configure(there, "sk-afterwards").await;
    service.wish(there, "restart").await;
    let ready = service.settled(there, Phase::Ready).await;
    assert_eq!((ready.applied_config_generation, ready.error), (1, None));
    let codes = service.codes(there).await;
    assert!(!codes.contains(&EventCode::Failed) && !codes.contains(&EventCode::ConfigRolledBack), "{codes:?}");
    assert_eq!(service.instance(deleted).await.phase, Phase::PendingDeletion, "it is as it was");
    service.undelete(deleted).await;
    service.settled(deleted, Phase::Ready).await;
    let (status, _) =
        service.post::<Value>(&format!("/api/instances/{}/plan", there.id), &json!({ "plan": SMALL })).await;
    assert_eq!(status, 202);
    assert_eq!(service.settled(there, Phase::Ready).await.plan.as_str(), SMALL);
    assert!(!service.export(there).await.is_empty());
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A world whose registry and folders are on this file system.
async fn on(volume: &Volume) -> World {
    let mut world = support::world_in(volume.path().to_owned()).await;
    world.config.database = Database::Sqlite(volume.path().join("registry.db"));
    world
}

#[tokio::test]
async fn a_full_disk() {
    let Some(volume) = Volume::mount(ROOM_KB) else { return };
    let world = on(&volume).await;
    let (service, people) = People::of(&world).await;
    let alice = &people.alice;
    let before = names(&world.config_dir(alice.id));

    volume.fill();
    refuses(&service, &calls(&people)).await;
    // What is there goes on, and can be looked at.
    assert_eq!(service.instance(alice).await.phase, Phase::Ready);
    assert!(world.engine.is_running(alice.id));
    assert_eq!(names(&world.config_dir(alice.id)), before, "nothing half-written stays");

    volume.free();
    goes_on(&service, &people).await;
    assert_eq!(names(&world.config_dir(alice.id)), BTreeSet::from(["config.1.json".into(), "config.json".into()]));
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_sign_up() {
    let Some(volume) = Volume::mount(ROOM_KB) else { return };
    let mut world = on(&volume).await;
    // The registry has room elsewhere: only the folders have none.
    world.config.database = world.store.database().clone();
    let (service, alice) = (world.start().await, Person::named("alice"));
    volume.fill();
    service.register(&alice).await;
    let waits = service.until(&alice, "waiting for room", |instance| instance.error.is_some()).await;
    assert_eq!(waits.error.unwrap().code, "storage_failed");
    assert_ne!(waits.phase, Phase::Failed);
    volume.free();
    assert_eq!(service.settled(&alice, Phase::Ready).await.error, None);
    let codes = service.codes(&alice).await;
    assert!(!codes.contains(&EventCode::Failed), "{codes:?}");
}

#[tokio::test]
async fn a_configuration_is_not_blamed_for_a_full_disk() {
    let Some(volume) = Volume::mount(ROOM_KB) else { return };
    let mut world = on(&volume).await;
    world.config.database = world.store.database().clone();
    let (service, alice) = (world.start().await, Person::named("alice"));
    service.ready(&alice).await;
    // As an instance that can write nothing: it does not become healthy.
    world.neighbours.make_sick(1);
    world.engine.hold("start");
    service.configure(&alice, "sk-new").await;
    support::until("held", || world.engine.is_holding("start")).await;
    volume.fill();
    world.engine.release();
    let waits = service.until(&alice, "waiting for room", |instance| instance.error.is_some()).await;
    assert_eq!(waits.error.unwrap().code, "storage_failed");
    volume.free();
    world.neighbours.make_well();
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.applied_config_generation, ready.error), (1, None));
    assert_eq!(world.current_config(alice.id).generation, 1);
}

#[tokio::test]
async fn a_read_only_disk() {
    let Some(volume) = Volume::mount(ROOM_KB) else { return };
    let mut world = on(&volume).await;
    // A remount needs that nobody has a file open for writing, as a file system that met an error does not.
    world.config.database = world.store.database().clone();
    let (service, people) = People::of(&world).await;
    let (alice, bob) = (&people.alice, &people.bob);
    let before = names(&world.config_dir(alice.id));

    volume.set_read_only(true);
    // The others only write to the registry.
    let with_files = |(_, path, _): &Call| path.ends_with("provider") || path.ends_with("undelete");
    refuses(&service, &calls(&people).into_iter().filter(with_files).collect::<Vec<_>>()).await;
    service.register(bob).await;
    let waits = service.until(bob, "waiting for the disk", |instance| instance.error.is_some()).await;
    assert_eq!(waits.error.unwrap().code, "storage_failed");
    assert_eq!(names(&world.config_dir(alice.id)), before, "nothing half-written stays");

    volume.set_read_only(false);
    service.settled(bob, Phase::Ready).await;
    goes_on(&service, &people).await;
}

#[tokio::test]
async fn a_database_that_is_locked() {
    let world = sqlite_world().await;
    let (service, people) = People::of(&world).await;
    let alice = &people.alice;
    let archive = service.export(alice).await;
    let folder = world.config.data_dir.join(format!("instances/{}", alice.id));
    let before = (names(&folder), names(&world.config_dir(alice.id)));
    let Database::Sqlite(path) = world.store.database() else { panic!("SQLite") };
    let mut other = AnyConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    // All at once: each waits as long as a lock is waited for.
    let calls = calls(&people);
    let asking = futures_util::future::join_all(calls.iter().map(|call| refuses(&service, std::slice::from_ref(call))));
    asking.await;
    refuses_a_restore(&service, alice, archive).await;
    assert_eq!(service.instance(alice).await.phase, Phase::Ready, "it can be looked at");
    assert_eq!((names(&folder), names(&world.config_dir(alice.id))), before, "nothing half-written stays");
    other.execute("ROLLBACK").await.unwrap();
    goes_on(&service, &people).await;
}

#[tokio::test]
async fn connections_that_the_server_ends() {
    for world in worlds().await {
        let Database::Postgres { url, schema } = world.store.database() else { continue };
        use secrecy::ExposeSecret;
        let (service, people) = People::of(&world).await;
        let alice = &people.alice;
        let mut other = AnyConnection::connect(url.expose_secret()).await.unwrap();
        // Whoever waits for a lock on the table is ended in the middle of a statement, and whoever holds none at rest.
        for round in 0..3 {
            let lock = format!("BEGIN; LOCK TABLE \"{schema}\".instances IN ACCESS EXCLUSIVE MODE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut other).await.unwrap();
            let calls = calls(&people);
            let asking =
                futures_util::future::join_all(calls.iter().map(|call| refuses(&service, std::slice::from_ref(call))));
            let ending = async {
                let waiting = "SELECT COUNT(pg_terminate_backend(l.pid)) FROM pg_catalog.pg_locks l \
                    JOIN pg_catalog.pg_class c ON c.oid = l.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                    WHERE n.nspname = $1 AND NOT l.granted";
                loop {
                    sqlx::query_scalar::<_, i64>(waiting).bind(schema).fetch_one(&mut other).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                _ = asking => {}
                () = ending => {}
            }
            sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
            assert_eq!(service.instance(alice).await.phase, Phase::Ready, "round {round}");
        }
        goes_on(&service, &people).await;
    }
}

/// A way to a database server that can be cut.
struct Wire {
    at: SocketAddr,
    server: SocketAddr,
    carried: Option<JoinHandle<()>>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        Self { at, server, carried: Some(tokio::spawn(carry(listener, server))) }
    }

    /// What is under way breaks off, and nobody listens any more.
    async fn cut(&mut self) {
        let carried = self.carried.take().unwrap();
        carried.abort();
        let _ = carried.await;
    }

    async fn mend(&mut self) {
        self.carried = Some(tokio::spawn(carry(TcpListener::bind(self.at).await.unwrap(), self.server)));
    }
}

async fn carry(listener: TcpListener, server: SocketAddr) {
    let mut under_way = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        under_way.spawn(async move {
            let mut far = TcpStream::connect(server).await?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

#[tokio::test]
async fn a_database_that_is_gone_for_a_while() {
    for mut world in worlds().await {
        let Database::Postgres { url, schema } = world.store.database() else { continue };
        use secrecy::ExposeSecret;
        let mut url = url::Url::parse(url.expose_secret()).unwrap();
        let mut wire = Wire::to(url.socket_addrs(|| Some(5432)).unwrap()[0]).await;
        url.set_ip_host(wire.at.ip()).unwrap();
        url.set_port(Some(wire.at.port())).unwrap();
        world.config.database = Database::Postgres { url: url.to_string().into(), schema: schema.clone() };
        let (service, people) = People::of(&world).await;
        let alice = &people.alice;
        let archive = service.export(alice).await;
        let folder = world.config.data_dir.join(format!("instances/{}", alice.id));
        let before = (names(&folder), names(&world.config_dir(alice.id)));

        wire.cut().await;
        let calls = calls(&people);
        let asking =
            futures_util::future::join_all(calls.iter().map(|call| refuses(&service, std::slice::from_ref(call))));
        asking.await;
        refuses_a_restore(&service, alice, archive).await;
        assert!(world.engine.is_running(alice.id), "nothing is torn down");
        assert_eq!((names(&folder), names(&world.config_dir(alice.id))), before, "nothing half-written stays");

        wire.mend().await;
        goes_on(&service, &people).await;
    }
}
