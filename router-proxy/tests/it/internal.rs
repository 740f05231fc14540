//! The internal listener.

use contracts::routes::RouteState;

use crate::harness::*;

#[tokio::test]
async fn an_instance_is_reached_as_beavers_own_whatever_its_route() {
    let house = House::new().await;
    // No route leads to the second instance.
    let _instance = house.instance(2, echo());
    let path = format!("/instances/{}/api/auth/lo%67in?x=%20", id(2));
    let answer = Answer::parse(&house.internal_get(&path, Some(TOKEN)).await);
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with("GET /api/auth/lo%67in?x=%20\n"), "{}", answer.body);
    assert!(answer.body.contains("x-beaver-internal: 1\n"), "{}", answer.body);
    assert!(!answer.body.contains(TOKEN), "the service token stays here");
    assert!(answer.body.contains(&format!("x-request-id: {}\n", answer.headers["x-request-id"])));

    let answer = Answer::parse(&house.internal_get(&format!("/instances/{}/", id(2)), Some(TOKEN)).await);
    assert!(answer.status == 200 && answer.body.starts_with("GET /\n"), "its first page: {}", answer.body);

    let request = format!(
        "POST /instances/{}/echo HTTP/1.1\r\nhost: r\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
        id(2)
    );
    let answer = Answer::parse(&raw(house.internal, request.as_bytes()).await);
    assert!(
        answer.body.contains("content-type: application/json\n") && answer.body.ends_with("\n{}"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn who_shows_no_token_gets_nowhere() {
    let house = House::new().await;
    let _instance = house.instance(1, echo());
    let path = format!("/instances/{}/x", id(1));
    for token in [None, Some("wrong"), Some(&TOKEN[1..])] {
        assert_eq!(Answer::parse(&house.internal_get(&path, token).await).status, 401, "{token:?}");
    }
    assert_eq!(Answer::parse(&house.internal_get(&path, Some(TOKEN)).await).status, 200);
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_at_once() {
    let house = House::new().await;
    for n in [1, 99] {
        let path = format!("/instances/{}/readyz", id(n));
        let answer = Answer::parse(&house.internal_get(&path, Some(TOKEN)).await);
        assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("instance_unreachable")));
        assert!(!answer.body.contains("run"), "no path: {}", answer.body);
    }
    for path in ["/instances/../../etc/passwd", "/instances/i-0/x", "/instances/", "/instances"] {
        assert_eq!(Answer::parse(&house.internal_get(path, Some(TOKEN)).await).status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_certificate_is_only_for_names_that_are_taken() {
    let house = House::with(Plan { routes: vec![route("alice", 1, RouteState::Stopped)], ..Plan::default() }).await;
    for (domain, status) in [
        ("alice.localhost", 200),
        ("ALICE.localhost", 200),
        ("bob.localhost", 404),
        ("localhost", 404),
        ("alice.example.com", 404),
    ] {
        let answer = house.internal_get(&format!("/tls-ask?domain={domain}"), None).await;
        assert_eq!(Answer::parse(&answer).status, status, "{domain}");
    }
}

#[tokio::test]
async fn health_and_metrics_are_here_and_not_at_the_edge() {
    let house = House::new().await;
    house.get("alice.localhost", "/", "").await;
    let metrics = house.internal_get("/metrics", None).await;
    for name in
        ["router_edge_requests_total", "router_upstream_errors_total", "router_open_connections", "router_routes"]
    {
        assert!(metrics.contains(name), "{name}");
    }
    for path in ["/metrics", "/readyz", "/tls-ask?domain=alice.localhost", "/instances/x/y"] {
        assert_eq!(house.get("127.0.0.1", path, "").await.status, 404, "{path}");
    }
}
