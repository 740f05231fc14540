//! Where routes come from: the feed, its gaps and ends, and the disk.

use contracts::routes::{RouteMessage, RouteState};

use crate::harness::*;

async fn leads_to(house: &House, host: &str, status: u16) {
    until(&format!("{host} is {status}"), async || house.get(host, "/", "").await.status == status).await;
}

#[tokio::test]
async fn changes_are_followed() {
    let house = House::new().await;
    let _bob = house.instance(2, echo());
    assert_eq!(house.get("bob.localhost", "/", "").await.status, 404);
    house.deploy.change(route("bob", 2, RouteState::Starting));
    leads_to(&house, "bob.localhost", 503).await;
    house.deploy.change(route("bob", 2, RouteState::Running));
    leads_to(&house, "bob.localhost", 200).await;
    house.deploy.change(route("bob", 2, RouteState::Stopped));
    leads_to(&house, "bob.localhost", 503).await;
    house.deploy.change(route("bob", 2, RouteState::Deleted));
    leads_to(&house, "bob.localhost", 404).await;
    assert_eq!(house.deploy.connections(), 1, "all of it over one connection");
}

#[tokio::test]
async fn a_gap_or_a_wrong_heartbeat_or_nonsense_means_asking_again() {
    let house = House::new().await;
    let messages = [
        RouteMessage::Change { version: 99, route: route("ghost", 9, RouteState::Running) },
        RouteMessage::Change { version: 7, route: route("ghost", 9, RouteState::Running) },
        RouteMessage::Heartbeat { version: 6 },
    ];
    for (n, message) in messages.iter().enumerate() {
        until("a connection", async || house.deploy.connections() == n + 1).await;
        house.deploy.say(message);
        until("another one", async || house.deploy.connections() == n + 2).await;
    }
    assert_eq!(house.get("ghost.localhost", "/", "").await.status, 404, "what came after a gap was not taken");
    // The control: what fits is taken, and no connection is given up for it.
    let before = house.deploy.connections();
    house.deploy.say(&RouteMessage::Heartbeat { version: 7 });
    house.deploy.change(route("bob", 2, RouteState::Starting));
    leads_to(&house, "bob.localhost", 503).await;
    assert_eq!(house.deploy.connections(), before);
}

#[tokio::test]
async fn a_restarted_deploy_control_is_believed_anew() {
    let house = House::new().await;
    house.deploy.restart("two", vec![route("bob", 2, RouteState::Starting)]);
    leads_to(&house, "bob.localhost", 503).await;
    leads_to(&house, "alice.localhost", 404).await;
}

#[tokio::test]
async fn routes_outlive_the_router_and_need_no_deploy_control() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::new().await;
    house.deploy.change(route("bob", 2, RouteState::Running));
    let _alice = house.instance(1, echo());
    let _bob = house.instance(2, echo());
    leads_to(&house, "bob.localhost", 200).await;
    let data = house.end().await;
    let file = data.path().join("router/routes.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // Nobody answers where deploy-control should be; the router is ready all the same.
    let house = House::with(Plan { routes: vec![], deploy: false, data: Some(data), ..Plan::default() }).await;
    house.ready().await;
    for host in ["alice.localhost", "bob.localhost"] {
        assert_eq!(house.get(host, "/", "").await.status, 200, "{host}");
    }
    let data = house.end().await;

    // A file that makes no sense is passed over: not ready, but alive.
    std::fs::write(file, "{").unwrap();
    let house = House::with(Plan { routes: vec![], deploy: false, data: Some(data), ..Plan::default() }).await;
    assert!(house.internal_get("/readyz", None).await.starts_with("HTTP/1.1 503"));
    assert!(house.internal_get("/healthz", None).await.starts_with("HTTP/1.1 200"));
}
