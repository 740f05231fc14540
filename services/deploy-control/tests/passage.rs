//! Whether sockets pass the border of a container, on the real Docker engine: nothing is started before that is known.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;
mod support;

use std::{fs, sync::Arc, time::Duration};

use bollard::{
    models::ContainerCreateBody,
    query_parameters::{CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder},
};
use clock::Clock;
use contracts::deploy::Phase;
use deploy_control::engine::{Engine, docker::Docker};
use futures_util::StreamExt;
use host::Host;
use support::{Person, Running, eventually, neighbours::Neighbours};

/// Not a test: what the engine starts. See [`instance`].
#[test]
fn as_an_instance() {
    instance::serve_if_started_by_an_engine();
}

/// The service on the host's engine, with false neighbours.
async fn start(host: &Host) -> Running {
    let engine: Arc<dyn Engine> = Arc::new(Docker::new(&host.config.engine));
    let run_of = support::answering_runs(engine.clone(), host.folder.path().to_owned());
    let neighbours = Neighbours::start(run_of, host.folder.path().to_owned()).await;
    let mut config = host.config.clone();
    config.peers.authz_url = neighbours.authz_url.parse().unwrap();
    config.peers.router_url = neighbours.router_url.parse().unwrap();
    let mut service = support::start(&config, engine).await;
    service.follow();
    service
}

/// What `/readyz` says of the need.
async fn sockets(service: &Running) -> String {
    let (_, ready) = service.get::<serde_json::Value>("/readyz").await;
    ready["needs"]["sockets"].as_str().unwrap().to_owned()
}

/// Waits until it says something of this kind.
async fn until(service: &Running, what: &str) -> String {
    eventually(async || {
        let said = sockets(service).await;
        if said.contains(what) { Ok(said) } else { Err(format!("{said:?} is not {what:?}")) }
    })
    .await
}

/// Probes and instances of the stack.
async fn containers(host: &Host) -> Vec<String> {
    let label = format!("beaver.stack={}", host.config.engine.prefix);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&[("label", vec![label])].into()).build();
    let found = host.client.list_containers(Some(options)).await.unwrap();
    found.into_iter().flat_map(|container| container.names.unwrap_or_default()).collect()
}

/// How many probes were ever made.
async fn tries(host: &Host) -> usize {
    let label = format!("beaver.stack={}", host.config.engine.prefix);
    let filters = [("label", vec![label, "beaver.probe".into()]), ("event", vec!["create".into()])].into();
    let now = Clock::system().now_s() + 1;
    let options =
        EventsOptionsBuilder::new().since(&(now - 600).to_string()).until(&now.to_string()).filters(&filters).build();
    host.client.events(Some(options)).collect::<Vec<_>>().await.len()
}

#[tokio::test]
async fn it_is_tried_once_and_what_a_killed_try_left_goes() {
    let Some(host) = Host::new().await else { return };
    // As a try leaves it that was killed in its middle.
    let left = host.folder.path().join("run/.probe/in");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("probe.sock"), "").unwrap();
    let prefix = &host.config.engine.prefix;
    let labels = [("beaver.stack".to_owned(), prefix.clone()), ("beaver.probe".to_owned(), "sockets".to_owned())];
    let body = ContainerCreateBody {
        image: Some(host.config.engine.image.clone()),
        labels: Some(labels.into()),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(&format!("{prefix}-probe")).build();
    host.client.create_container(Some(options), body).await.unwrap();

    let service = start(&host).await;
    until(&service, "ok").await;
    assert!(!left.exists() && containers(&host).await.is_empty());
    let alice = Person::named("alice");
    service.ready(&alice).await;
    let tried = tries(&host).await;
    assert_eq!(tried, 2, "the one that was left and one more");
    service.kill();

    let service = start(&host).await;
    until(&service, "ok").await;
    assert_eq!(tries(&host).await, tried, "it is remembered");
    service.kill();

    // Another image may be another matter.
    host.build_image_with("/instance", "ENV TEST_PROBE=other").await;
    let service = start(&host).await;
    until(&service, "ok").await;
    assert_eq!(tries(&host).await, tried + 1);
}

#[tokio::test]
async fn while_sockets_do_not_pass_nothing_is_started_and_it_goes_on_by_itself() {
    let Some(mut host) = Host::without_image().await else { return };
    host.config.engine.passage_timeout = Duration::from_millis(700);
    host.build_image_with("/instance", "ENV TEST_PROBE=silent").await;
    let (service, alice) = (start(&host).await, Person::named("alice"));
    let said = until(&service, "blocked: ").await;
    assert!(
        said.contains("nothing came through") && said.contains("BEAVER_DATA_DIR") && !said.contains('\n'),
        "{said}"
    );
    service.register(&alice).await;
    let waits = |instance: &contracts::deploy::Instance| {
        instance.error.as_ref().is_some_and(|error| error.code == "sockets_blocked")
    };
    let waiting = service.until(&alice, "told why it waits", waits).await;
    assert_ne!(waiting.phase, Phase::Failed, "it is no fault of the instance's");
    let name = format!("/{}-{}", host.config.engine.prefix, alice.id);
    assert!(!containers(&host).await.contains(&name));

    // Only one of the two sockets is not enough either.
    host.build_image_with("/instance", "ENV TEST_PROBE=without_in").await;
    until(&service, "the socket in in/").await;
    assert!(!containers(&host).await.contains(&name));

    host.build_image_with("/instance", "ENV TEST_PROBE=good").await;
    let ready = service.settled(&alice, Phase::Ready).await;
    assert_eq!(ready.error, None);
    assert_eq!(sockets(&service).await, "ok");
}

#[tokio::test]
async fn what_a_probe_says_is_passed_on_and_a_program_that_is_none_holds_nobody_up() {
    let Some(host) = Host::without_image().await else { return };
    host.build_image_with("/instance", "ENV TEST_PROBE=fails").await;
    let (service, alice) = (start(&host).await, Person::named("alice"));
    assert!(until(&service, "blocked: ").await.contains("the socket in out/: Permission denied"));

    host.build_image_of("/not-there").await;
    assert!(until(&service, "not tried: ").await.contains("not-there"));
    service.register(&alice).await;
    let failed = service.settled(&alice, Phase::Failed).await;
    assert_eq!(failed.error.unwrap().code, "crash_loop", "the reason that it has itself");
}
