//! `BEAVER_ISOLATION`: with and without a network, on the real Docker engine.

#[path = "support/host.rs"]
mod host;
#[path = "support/instance.rs"]
mod instance;
mod support;

use std::sync::Arc;

use bollard::models::NetworkCreateRequest;
use contracts::deploy::Phase;
use deploy_control::engine::{Engine, docker::Docker};
use host::Host;
use support::{Person, Running, neighbours::Neighbours};

/// Not a test: what the engine starts. See [`instance`].
#[test]
fn as_an_instance() {
    instance::serve_if_started_by_an_engine();
}

/// The service on the host's engine, with instances on this network or on none.
async fn start(host: &Host, network: Option<&str>) -> Running {
    let mut config = host.config.clone();
    config.engine.network = network.map(str::to_owned);
    let engine: Arc<dyn Engine> = Arc::new(Docker::new(&config.engine));
    let run_of = support::answering_runs(engine.clone(), host.folder.path().to_owned());
    let neighbours = Neighbours::start(run_of, host.folder.path().to_owned()).await;
    config.peers.authz_url = neighbours.authz_url.parse().unwrap();
    config.peers.router_url = neighbours.router_url.parse().unwrap();
    let mut service = support::start(&config, engine).await;
    service.follow();
    service
}

/// Makes a network of the stack's; its id.
async fn network(host: &Host, name: &str) -> String {
    let labels = [("beaver.stack".to_owned(), host.config.engine.prefix.clone())].into();
    // No way out of it, and nobody else in it.
    let wanted = NetworkCreateRequest {
        name: name.to_owned(),
        internal: Some(true),
        labels: Some(labels),
        ..NetworkCreateRequest::default()
    };
    host.client.create_network(wanted).await.unwrap().id
}

/// The networks its container is on: names and ids.
async fn networks(host: &Host, person: &Person) -> Vec<(String, String)> {
    let name = format!("{}-{}", host.config.engine.prefix, person.id);
    // Between two containers there is none.
    let Ok(found) = host.client.inspect_container(&name, None).await else { return Vec::new() };
    let networks = found.network_settings.unwrap().networks.unwrap();
    networks.into_iter().map(|(name, network)| (name, network.network_id.unwrap_or_default())).collect()
}

#[tokio::test]
async fn a_change_of_isolation_makes_containers_anew_and_the_sockets_stay() {
    let Some(host) = Host::new().await else { return };
    let edge = format!("{}-edge", host.config.engine.prefix);
    let first = network(&host, &edge).await;
    let alice = Person::named("alice");
    let tried = async {
        let service = start(&host, None).await;
        service.ready(&alice).await;
        assert_eq!(networks(&host, &alice).await[0].0, "none");
        service.kill();

        // Ready means that it answered on its socket: the data path is the same.
        let service = start(&host, Some(&edge)).await;
        let on = |id: String| vec![(edge.clone(), id)];
        support::eventually(async || {
            let there = networks(&host, &alice).await;
            if there == on(first.clone()) { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
        service.settled(&alice, Phase::Ready).await;
        service.wish(&alice, "stop").await;
        service.settled(&alice, Phase::Stopped).await;

        // What `down` and `up` do: another network under the name. A container would look for the one that is gone.
        host.client.remove_network(&edge).await.unwrap();
        let second = network(&host, &edge).await;
        service.wish(&alice, "start").await;
        service.settled(&alice, Phase::Ready).await;
        assert_eq!(networks(&host, &alice).await, on(second));
        service.kill();

        let service = start(&host, None).await;
        support::eventually(async || match networks(&host, &alice).await.as_slice() {
            [(name, _)] if name == "none" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        service.settled(&alice, Phase::Ready).await;
    };
    // The network goes whatever came of it.
    let outcome = futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(tried)).await;
    let _ = Docker::new(&host.config.engine).remove(alice.id).await;
    let removed = host.client.remove_network(&edge).await;
    outcome.unwrap();
    removed.unwrap();
}
