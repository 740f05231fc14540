//! A program that knows nothing of Beaver, in an image of its own, on the real Docker engine.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;
#[path = "support/program.rs"]
mod program;
mod support;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use contracts::{
    deploy::{EventCode, Phase},
    routes::{RouteMessage, SignIn},
};
use deploy_control::engine::{Engine, docker::Docker};
use host::Host;
use support::{
    Person, Running,
    neighbours::{Neighbours, ask},
    reader::Reader,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

/// Not a test: what the engine starts, as a workspace or as a program that knows nothing of Beaver.
#[test]
fn as_an_instance() {
    program::serve_if_started_as_one();
    instance::serve_if_started_by_an_engine();
}

/// What an image of somebody else's may say, and what Beaver takes no notice of.
const RECIPE: &str = "ENV NOTES_COLOUR=green HOME=/root\nUSER 0:0\nEXPOSE 8080\nVOLUME /var/lib/notes /data\n\
                      HEALTHCHECK CMD [\"/no/such/program\"]\nSTOPSIGNAL SIGINT\n";

/// The service goes first: it would make anew what the host takes away.
struct World {
    service: Running,
    neighbours: Neighbours,
    host: Host,
}

/// The service on the host's engine, with these plans; each names the image that workspaces run too.
async fn world(plans: &str) -> Option<World> {
    let host = Host::without_image().await?;
    host.build_image_with("/instance", RECIPE).await;
    let engine: Arc<dyn Engine> = Arc::new(Docker::new(&host.config.engine));
    let run_of = support::answering_runs(engine.clone(), host.folder.path().to_owned());
    let neighbours = Neighbours::start(run_of, host.folder.path().to_owned()).await;
    let mut config = host.config.clone();
    config.peers.authz_url = neighbours.authz_url.parse().unwrap();
    config.peers.router_url = neighbours.router_url.parse().unwrap();
    config.reconcile.start_timeout = std::time::Duration::from_secs(5);
    std::fs::create_dir_all(config.plans.file.parent().unwrap()).unwrap();
    std::fs::write(&config.plans.file, plans.replace("IMAGE", &config.engine.image)).unwrap();
    let mut service = support::start(&config, engine).await;
    service.follow();
    Some(World { service, neighbours, host })
}

impl World {
    fn run(&self, person: &Person, door: &str) -> PathBuf {
        self.host.folder.path().join("run").join(person.id.to_string()).join(door)
    }

    async fn get(&self, person: &Person, path: &str) -> String {
        let said = ask(&self.run(person, "in/http.sock"), path).await.unwrap();
        said.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    async fn register(&self, person: &Person, plan: &str) {
        let mut wanted = person.wanted();
        wanted.plan = Some(plan.into());
        let answer = self.service.request("POST", "/api/instances/register").json(&wanted).send().await.unwrap();
        assert_eq!(answer.status(), 202);
    }

    async fn change_plan(&self, person: &Person, plan: &str) {
        let path = format!("/api/instances/{}/plan", person.id);
        let body = serde_json::json!({ "plan": plan });
        assert_eq!(self.service.request("POST", &path).json(&body).send().await.unwrap().status(), 202);
    }
}

const NOTES: &str = "[notes]\nimage = \"IMAGE\"\nport = 8080\nhealth = \"/healthz?deep\"\nmemory_mb = 128\ntmp_mb = 8\n\
                     env = { NOTES_PORT = \"8080\", NO_PROXY = \"notes.internal\" }\n";

#[tokio::test]
async fn it_is_there_has_its_way_out_and_is_as_hard_as_a_workspace() {
    let Some(world) = world(NOTES).await else { return };
    let alice = Person::named("alice");
    world.register(&alice, "notes").await;
    let ready = world.service.settled(&alice, Phase::Ready).await;
    assert_eq!((ready.plan.as_str(), ready.takes_provider), ("notes", false));
    assert!(world.neighbours.asked().contains(&"/healthz".into()), "401 is an answer: {:?}", world.neighbours.asked());
    assert_eq!(world.neighbours.owners_taken(alice.id), 0, "it is told nothing");
    let config = world.host.folder.path().join("instances").join(alice.id.to_string()).join("config");
    assert_eq!(std::fs::read_dir(config).unwrap().count(), 0, "and given nothing");
    let mode = std::fs::metadata(world.run(&alice, "in/http.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    let report = world.get(&alice, "/report").await;
    let facts: Vec<&str> = report.lines().collect();
    let uid = world.host.config.engine.uid_base + 1;
    for fact in [
        &*format!("Uid: {uid} {uid} {uid} {uid}"),
        "CapEff: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "network: lo",
        "config: false",
        "writes /x: false",
        "writes /.beaver/shim: false",
        "writes /run/beaver/out/x: false",
        "writes /data/x: true",
        "writes /tmp/x: true",
        "writes /var/lib/notes/x: true",
        "NOTES_COLOUR=green",
        "HOME=/data",
        "HTTP_PROXY=http://127.0.0.1:3128",
        "https_proxy=http://127.0.0.1:3128",
        "no_proxy=localhost,127.0.0.1,::1",
        // The plan's own word comes last.
        "NO_PROXY=notes.internal",
    ] {
        assert!(facts.contains(&fact), "{fact} is not so:\n{report}");
    }
    assert!(facts.contains(&&*format!("BEAVER_ORIGIN={}", ready.origin)), "{report}");
    let ours = ["INSTANCE_", "BEAVER_LOG", "BEAVER_AUTHZ"];
    assert!(!facts.iter().any(|fact| ours.iter().any(|name| fact.starts_with(name))), "{report}");
    for (place, options) in [
        ("/tmp", &["tmpfs ", "noexec", "nosuid", "nodev", "size=8192k"][..]),
        ("/var/lib/notes", &["tmpfs ", "noexec", "nosuid", "nodev", "size=8192k"]),
        ("/.beaver/shim", &[" ro"]),
    ] {
        let mounted = facts.iter().find(|fact| fact.starts_with(&format!("mount {place}:"))).expect(place);
        assert!(options.iter().all(|option| mounted.contains(option)), "{mounted}");
    }
    let found = world.host.inspect(alice.id).await;
    let limits = found.host_config.unwrap();
    assert_eq!((limits.memory, limits.network_mode.as_deref()), (Some(128 << 20), Some("none")));
    assert_eq!(
        (limits.readonly_rootfs, limits.init, limits.cap_drop),
        (Some(true), Some(true), Some(vec!["ALL".into()]))
    );
    assert!(found.mounts.unwrap().iter().all(|mount| mount.name.is_none()), "no volume of the engine's");
    assert!(found.state.unwrap().health.is_none_or(|health| health.status.unwrap().as_ref() == "none"));
    assert_eq!(found.config.unwrap().labels.unwrap()["beaver.plan"], "notes");

    // Its way out is the router's, by the usual variables.
    let way_out = UnixListener::bind(world.run(&alice, "out/egress.sock")).unwrap();
    std::os::unix::fs::chown(world.run(&alice, "out/egress.sock"), None, Some(uid)).unwrap();
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(world.run(&alice, "out/egress.sock"), mode).unwrap();
    let outside = async {
        let (mut stream, _) = way_out.accept().await.unwrap();
        let mut asked = [0; 1024];
        let length = stream.read(&mut asked).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfrom outside").await.unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    };
    let (asked, fetched) = tokio::join!(outside, world.get(&alice, "/fetch?http://a.test/x"));
    assert!(asked.starts_with("GET http://a.test/x HTTP/1.1\r\n"), "{asked}");
    assert!(fetched.ends_with("from outside"), "{fetched}");

    // What is upgraded goes both ways, and each way ends by itself.
    let mut stream = UnixStream::connect(world.run(&alice, "in/http.sock")).await.unwrap();
    stream.write_all(b"GET /echo HTTP/1.1\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n").await.unwrap();
    let mut head = vec![0; program::UPGRADED.len()];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&head), program::UPGRADED);
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echoed = [0; 3];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, word.as_bytes());
    }
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "that was all");

    // Asked to end, with the image's own signal, it ends by that: nobody had to kill it.
    world.service.wish(&alice, "stop").await;
    world.service.settled(&alice, Phase::Stopped).await;
    assert_eq!(world.host.inspect(alice.id).await.state.unwrap().exit_code, Some(130));
    world.service.wish(&alice, "start").await;
    world.service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.get(&alice, "/").await, "runs=2", "its data and its socket's place are there again");
}

#[tokio::test]
async fn another_plan_is_another_container_with_the_same_data() {
    let Some(world) = world(&format!("{NOTES}\n{}", NOTES.replace("[notes]", "[more]").replace("128", "256"))).await
    else {
        return;
    };
    let alice = Person::named("alice");
    // Beaver's own, which has its owner and its configuration.
    world.service.register(&alice).await;
    world.service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.neighbours.owners_taken(alice.id), 1);
    let mut feed = Reader::lines(world.service.request("GET", "/api/routes").send().await.unwrap());
    let own = world.host.inspect(alice.id).await.id;

    world.change_plan(&alice, "notes").await;
    world.service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.get(&alice, "/").await, "runs=2", "the workspace's data");
    let notes = world.host.inspect(alice.id).await;
    assert_ne!(notes.id, own);
    assert!(world.service.codes(&alice).await.contains(&EventCode::PlanRequested));

    world.change_plan(&alice, "more").await;
    world.service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.get(&alice, "/").await, "runs=3");
    assert_eq!(world.host.inspect(alice.id).await.host_config.unwrap().memory, Some(256 << 20));

    world.change_plan(&alice, "workspace").await;
    world.service.settled(&alice, Phase::Ready).await;
    assert_eq!(world.neighbours.owners_taken(alice.id), 1, "it knows its owner");
    assert_eq!(world.get(&alice, "/").await, "runs=4");

    // At no time was a program reachable under another's rule for who gets in.
    let mut states = Vec::new();
    while let Some(line) = feed.next().await {
        if let RouteMessage::Change { route, .. } = serde_json::from_str(&line).unwrap() {
            states.push((route.sign_in, format!("{:?}", route.state)));
            if states.last().is_some_and(|last| *last == (SignIn::Instance, "Running".into())) {
                break;
            }
        }
    }
    states.dedup();
    let seen: Vec<_> = states.iter().map(|(sign_in, state)| (*sign_in, state.as_str())).collect();
    assert_eq!(
        seen,
        [
            (SignIn::Edge, "Starting"),
            (SignIn::Edge, "Running"),
            (SignIn::Edge, "Starting"),
            (SignIn::Edge, "Running"),
            (SignIn::Instance, "Starting"),
            (SignIn::Instance, "Running"),
        ]
    );
}

#[tokio::test]
async fn what_does_not_come_up_says_why() {
    let plans = "[sick]\nimage = \"IMAGE\"\nport = 8080\nhealth = \"/sick\"\nenv = { NOTES_PORT = \"8080\" }\n\
                 [elsewhere]\nimage = \"IMAGE\"\nport = 8081\nenv = { NOTES_PORT = \"8080\" }\n\
                 [gone]\nimage = \"test-no-such-image:never\"\nport = 8080\n\
                 [nothing]\nimage = \"IMAGE\"\nport = 8080\ncommand = [\"/no/such/program\"]\n";
    let Some(world) = world(plans).await else { return };
    for (plan, code) in [
        ("sick", "not_healthy_in_time"),
        ("elsewhere", "not_healthy_in_time"),
        ("gone", "image_missing"),
        ("nothing", "crash_loop"),
    ] {
        let person = Person::named(plan);
        world.register(&person, plan).await;
        let failed = world.service.until(&person, "has its reason", |instance| instance.error.is_some()).await;
        assert_eq!(failed.error.unwrap().code, code, "{plan}");
        world.service.wish(&person, "stop").await;
    }
}
