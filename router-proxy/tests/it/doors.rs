//! An instance's doors out, from its side.

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::{Router, body::Bytes, routing::get};
use contracts::routes::RouteState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
};

use crate::harness::*;

async fn door(path: &Path) -> UnixStream {
    let mut stream = None;
    until("the door is open", async || {
        stream = UnixStream::connect(path).await.ok();
        stream.is_some()
    })
    .await;
    stream.unwrap()
}

async fn ask(path: &Path, request: impl AsRef<str>) -> Answer {
    let mut stream = door(path).await;
    stream.write_all(request.as_ref().as_bytes()).await.unwrap();
    Answer::parse(&read_all(&mut stream).await)
}

async fn connect_to(path: &Path, target: &str) -> Answer {
    ask(path, format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n")).await
}

/// A server on loopback that answers with what it was asked.
async fn outside() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = echo()
        .route("/redirect", get(async || axum::response::Redirect::temporary("http://127.0.0.1:1/")))
        .route("/upload", axum::routing::post(async |body: Bytes| format!("{} bytes", body.len())));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

async fn house_with_outside(env: Vec<(&'static str, String)>) -> (House, Arc<FakeNetwork>) {
    let real = outside().await;
    let public: SocketAddr = "93.184.216.34:80".parse().unwrap();
    let network = Arc::new(FakeNetwork {
        names: [
            ("public.test", vec![public.ip()]),
            ("rebound.test", vec!["127.0.0.1".parse().unwrap()]),
            ("metadata.test", vec!["169.254.169.254".parse().unwrap()]),
            ("mixed.test", vec!["10.0.0.1".parse().unwrap(), public.ip()]),
            ("second.test", vec!["93.184.216.35".parse().unwrap(), public.ip()]),
            ("own.test", vec!["93.184.216.99".parse().unwrap()]),
            ("mapped.test", vec!["::ffff:127.0.0.1".parse().unwrap()]),
            ("down.test", vec!["93.184.216.36".parse().unwrap()]),
            ("lan.test", vec!["192.168.7.7".parse().unwrap()]),
        ]
        .into(),
        listeners: [(public, real), ("192.168.7.7:80".parse().unwrap(), real)].into(),
        ..FakeNetwork::default()
    });
    let house = House::with(Plan { env, network: Arc::clone(&network) as _, ..Plan::default() }).await;
    (house, network)
}

#[tokio::test]
async fn connect_leads_out_to_the_address_that_was_checked() {
    let (house, network) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    for target in ["public.test:80", "93.184.216.34:80", "mixed.test:80", "second.test:80"] {
        let mut tunnel = door(&egress).await;
        tunnel.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await.unwrap();
        let head = read_until(&mut tunnel, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{target}: {head}");
        assert!(!head.to_ascii_lowercase().contains("content-length"), "RFC 9110, section 9.3.6: {head}");
        tunnel.write_all(b"GET /inside HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(read_all(&mut tunnel).await.contains("GET /inside"), "{target}");
    }
    let dialled = network.dialled.lock().unwrap();
    assert!(dialled.iter().all(|to| to.ip().to_string().starts_with("93.184.216.3")), "{dialled:?}");
}

#[tokio::test]
async fn what_the_rules_do_not_let_out_is_refused_in_plain_words() {
    let (house, network) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    for (target, status, code, words) in [
        ("rebound.test:80", 403, "egress_refused", "rebound.test is refused: it leads to a loopback address"),
        ("metadata.test:80", 403, "egress_refused", "link-local"),
        ("own.test:80", 403, "egress_refused", "this server itself"),
        ("mapped.test:80", 403, "egress_refused", "IPv4 address inside"),
        ("lan.test:80", 403, "egress_refused", "private"),
        ("127.0.0.1:80", 403, "egress_refused", "loopback"),
        ("[::1]:80", 403, "egress_refused", "loopback"),
        ("[::ffff:127.0.0.1]:80", 403, "egress_refused", "IPv4 address inside"),
        ("169.254.169.254:80", 403, "egress_refused", "link-local"),
        ("2130706433:80", 403, "egress_refused", "usual form"),
        ("0x7f.1:80", 403, "egress_refused", "usual form"),
        ("127.1:80", 403, "egress_refused", "usual form"),
        ("0.0.0.0:80", 403, "egress_refused", "unspecified"),
        ("nowhere.test:80", 502, "egress_unresolvable", "nowhere.test"),
        ("down.test:80", 502, "egress_unreachable", "down.test"),
    ] {
        let answer = connect_to(&egress, target).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{target}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(words), "{target}: {}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    let dialled = network.dialled.lock().unwrap();
    assert_eq!(dialled[..], ["93.184.216.36:80".parse::<SocketAddr>().unwrap()], "nothing refused is ever dialled");
}

#[tokio::test]
async fn absolute_form_is_passed_and_redirects_are_not_followed() {
    let (house, _) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    let answer = ask(
        &egress,
        "GET http://public.test/a%2Fb?q HTTP/1.1\r\nhost: elsewhere.test\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\
         proxy-authorization: Basic x\r\nx-beaver-internal: 1\r\n\r\n",
    )
    .await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.starts_with("GET /a%2Fb?q\n") && answer.body.contains("host: public.test\n"),
        "{}",
        answer.body
    );
    for bad in ["x-hop", "proxy-auth", "x-beaver", "elsewhere"] {
        assert!(!answer.body.contains(bad), "{bad}: {}", answer.body);
    }
    let redirect =
        ask(&egress, "GET http://public.test/redirect HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n")
            .await;
    assert_eq!((redirect.status, redirect.headers["location"].as_str()), (307, "http://127.0.0.1:1/"));
    let upload = ask(
        &egress,
        "POST http://public.test/upload HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    )
    .await;
    assert_eq!(upload.body, "5 bytes");
    for (request, status) in [
        ("GET http://rebound.test/ HTTP/1.1\r\nhost: rebound.test\r\nconnection: close\r\n\r\n", 403),
        ("GET https://public.test/ HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n", 400),
        ("GET /etc HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n", 400),
    ] {
        assert_eq!(ask(&egress, request).await.status, status, "{request}");
    }
}

#[tokio::test]
async fn the_operators_rules_hold() {
    let env = vec![
        ("BEAVER_EGRESS_ALLOW", "lan.test:80".to_owned()),
        ("BEAVER_EGRESS_DENY", "*:443".to_owned()),
        ("BEAVER_EGRESS_DEFAULT", "deny-all".to_owned()),
    ];
    let (house, _) = house_with_outside(env).await;
    let egress = house.run(1).join("out/egress.sock");
    let get = |host: &str| format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    assert_eq!(ask(&egress, get("lan.test")).await.status, 200);
    for target in ["public.test:80", "lan.test:443", "192.168.7.7:80"] {
        assert_eq!(connect_to(&egress, target).await.status, 403, "{target}");
    }
}

#[tokio::test]
async fn the_real_network_with_a_loopback_address_allowed() {
    let real = outside().await;
    let env = vec![("BEAVER_EGRESS_ALLOW", format!("localhost:{}", real.port()))];
    let network = Arc::new(router_proxy::egress::Host::default());
    let house = House::with(Plan { env, network, ..Plan::default() }).await;
    let egress = house.run(1).join("out/egress.sock");
    let host = format!("localhost:{}", real.port());
    let get = format!("GET http://{host}/real HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    assert!(ask(&egress, get).await.body.starts_with("GET /real"));
    assert_eq!(connect_to(&egress, &real.to_string()).await.status, 403, "the name is allowed, not the address");
}

#[tokio::test]
async fn a_half_closed_tunnel_still_brings_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let public: SocketAddr = "93.184.216.34:7".parse().unwrap();
    let listeners = [(public, listener.local_addr().unwrap())].into();
    let house =
        House::with(Plan { network: Arc::new(FakeNetwork { listeners, ..FakeNetwork::default() }), ..Plan::default() })
            .await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        stream.write_all(format!("got {all}").as_bytes()).await.unwrap();
    });
    let mut tunnel = door(&house.run(1).join("out/egress.sock")).await;
    tunnel.write_all(format!("CONNECT {public} HTTP/1.1\r\nhost: {public}\r\n\r\n").as_bytes()).await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"all of it").await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(read_all(&mut tunnel).await, "got all of it");
    let metrics = house.internal_get("/metrics", None).await;
    let counted = |direction: &str, bytes: u32| {
        metrics.lines().any(|line| {
            line.contains("router_egress_bytes_total")
                && line.contains(&format!("direction=\"{direction}\""))
                && line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= f64::from(bytes)
        })
    };
    assert!(counted("out", 9) && counted("in", 13), "{metrics}");
}

#[tokio::test]
async fn garbage_at_a_door_harms_nobody() {
    let (house, _) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"\0\0\0\0\r\n\r\n",
        &[b'A'; 100_000],
    ] {
        let mut stream = door(&egress).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let answer = read_all(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(connect_to(&egress, "127.0.0.1:1").await.status, 403, "it goes on");
}

#[tokio::test]
async fn identity_leads_to_two_corners_of_authz() {
    let house = House::new().await;
    let identity = house.run(1).join("out/identity.sock");
    let answer = ask(
        &identity,
        "POST /oauth/token?x=1 HTTP/1.1\r\nhost: authz\r\nconnection: close\r\ncontent-type: text/plain\r\n\
         authorization: Bearer initial\r\nx-beaver-internal: 1\r\nx-forwarded-for: 6.6.6.6\r\ncookie: a=1\r\n\
         content-length: 4\r\n\r\nbody",
    )
    .await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with("POST /oauth/token?x=1\n") && answer.body.ends_with("\nbody"), "{}", answer.body);
    assert!(answer.body.contains("authorization: Bearer initial") && answer.body.contains("content-type: text/plain"));
    for bad in ["beaver", "forwarded", "cookie"] {
        assert!(!answer.body.contains(bad), "{bad}: {}", answer.body);
    }
    assert_eq!(
        ask(&identity, "GET /.well-known/jwks.json HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.status,
        200
    );
    for path in [
        "/portal/login",
        "/backends/register",
        "/metrics",
        "/oauth/../portal/login",
        "/oauth/%2e%2e/portal/login",
        "//oauth/token",
        "/",
    ] {
        let answer = ask(&identity, format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(answer.status, 404, "{path}");
    }
}

#[tokio::test]
async fn doors_open_late_again_and_close() {
    use std::os::unix::fs::PermissionsExt;
    let house = House::new().await;
    let sockets = |n| ["egress.sock", "identity.sock"].map(|name| house.run(n).join("out").join(name));
    for socket in sockets(1) {
        door(&socket).await;
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o660);
    }

    // The folder comes after the route.
    house.deploy.change(route("bob", 2, RouteState::Starting));
    until("bob is known", async || house.get("bob.localhost", "/", "").await.status == 503).await;
    folders(house.data.path(), id(2));
    for socket in sockets(2) {
        door(&socket).await;
    }

    // Sockets that vanish come back, also with the whole folder.
    std::fs::remove_file(&sockets(2)[0]).unwrap();
    door(&sockets(2)[0]).await;
    std::fs::remove_dir_all(house.run(2).join("out")).unwrap();
    std::fs::create_dir(house.run(2).join("out")).unwrap();
    for socket in sockets(2) {
        door(&socket).await;
    }

    // Gone with the instance, and what was open with them.
    let mut held = door(&sockets(2)[1]).await;
    house.deploy.change(route("bob", 2, RouteState::Deleted));
    until("the doors are closed", async || !sockets(2)[0].exists() && !sockets(2)[1].exists()).await;
    assert_eq!(read_all(&mut held).await, "");

    // Another router takes over what the last one left.
    let data = house.end().await;
    let house = House::with(Plan { data: Some(data), ..Plan::default() }).await;
    door(&house.run(1).join("out/identity.sock")).await;
}

#[tokio::test]
async fn a_door_belongs_to_one_instance() {
    let routes = vec![route("alice", 1, RouteState::Running), route("bob", 2, RouteState::Running)];
    let house = House::with(Plan { routes, ..Plan::default() }).await;
    let _alice = house.instance(1, Router::new());
    connect_to(&house.run(2).join("out/egress.sock"), "127.0.0.1:1").await;
    let metrics = house.internal_get("/metrics", None).await;
    let refused = |n: u128| {
        metrics.lines().any(|line| line.starts_with("router_egress_refused_total") && line.contains(&id(n).to_string()))
    };
    assert!(refused(2), "{metrics}");
}

#[tokio::test]
async fn the_hosts_own_addresses_are_refused_wherever_they_are_known_from() {
    let real = outside().await;
    let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 80);
    let own = ["93.184.216.50", "93.184.216.77", "93.184.216.51", "93.184.216.52"];
    let network = Arc::new(FakeNetwork {
        names: [
            ("portal.example.com", vec![address(own[2]).ip()]),
            // The base domain itself leads nowhere: only the names below it do.
            ("egress.apps.example.com", vec![address(own[3]).ip()]),
            ("alice.apps.example.com", vec![address(own[3]).ip()]),
            ("elsewhere.test", vec![address(own[0]).ip()]),
            ("allowed.test", vec![address(own[2]).ip()]),
        ]
        .into(),
        listeners: own.iter().map(|text| (address(text), real)).collect(),
        ..FakeNetwork::default()
    });
    let env = vec![
        ("BEAVER_HOST_ADDRESSES", "93.184.216.50, 93.184.216.64/26".to_owned()),
        ("BEAVER_PORTAL_URL", "https://portal.example.com".to_owned()),
        ("BEAVER_BASE_DOMAIN", "apps.example.com".to_owned()),
        ("BEAVER_EGRESS_ALLOW", "allowed.test:80, 93.184.216.77:80".to_owned()),
    ];
    let house = House::with(Plan { env, network: Arc::clone(&network) as _, ..Plan::default() }).await;
    let egress = house.run(1).join("out/egress.sock");
    for target in [
        "93.184.216.50:80",
        "93.184.216.77:443",
        "93.184.216.51:80",
        "93.184.216.52:80",
        "alice.apps.example.com:80",
        "elsewhere.test:80",
        "portal.example.com:80",
    ] {
        let answer = connect_to(&egress, target).await;
        assert_eq!(answer.status, 403, "{target}: {}", answer.body);
        assert!(answer.body.contains("this server itself"), "{target}: {}", answer.body);
    }
    assert!(network.dialled.lock().unwrap().is_empty());
    for host in ["allowed.test", "93.184.216.77"] {
        let get = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(ask(&egress, get).await.status, 200, "{host}: the operator's rule lets it out");
    }
}

#[tokio::test]
async fn a_refusal_can_be_read_wherever_a_client_shows_it() {
    let (house, _) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    for (target, line, error) in [
        ("rebound.test:80", "HTTP/1.1 403 Refused: a loopback address", "destination_ip_prohibited"),
        ("nowhere.test:80", "HTTP/1.1 502 The name has no address", "dns_error"),
        ("127.1:80", "HTTP/1.1 403 Refused: write the address in its usual form", "http_request_denied"),
    ] {
        let mut stream = door(&egress).await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with(&format!("{line}\r\n")), "{answer}");
        assert_eq!(Answer::parse(&answer).headers["proxy-status"], format!("beaver; error={error}"));
    }
}

#[tokio::test]
async fn what_an_instance_used_and_was_refused_is_told_to_the_house() {
    let routes = vec![route("alice", 1, RouteState::Running), route("bob", 2, RouteState::Running)];
    let real = outside().await;
    let public: SocketAddr = "93.184.216.34:80".parse().unwrap();
    let network = FakeNetwork {
        names: [("public.test", vec![public.ip()]), ("rebound.test", vec!["127.0.0.1".parse().unwrap()])].into(),
        listeners: [(public, real)].into(),
        ..FakeNetwork::default()
    };
    let house = House::with(Plan { routes, network: Arc::new(network), ..Plan::default() }).await;
    let egress = house.run(1).join("out/egress.sock");
    for _ in 0..2 {
        connect_to(&egress, "rebound.test:80").await;
    }
    connect_to(&egress, "user:secret@rebound.test:80").await;
    let get = "GET http://public.test/ HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(&egress, get).await.status, 200);

    let told = async |path: &str| Answer::parse(&house.internal_get(path, Some(TOKEN)).await).json();
    let usage = told(&contracts::egress::usage_path(id(1))).await;
    assert_eq!(
        (&usage["refused"], &usage["connections"], &usage["connection_limit"]),
        (&3.into(), &1.into(), &256.into())
    );
    assert!(usage["bytes_out"].as_u64() > Some(20) && usage["bytes_in"].as_u64() > Some(20), "{usage}");
    let refusals = usage["refusals"].as_array().unwrap();
    let brief: Vec<_> = refusals.iter().map(|r| format!("{} {} {}", r["target"], r["reason"], r["count"])).collect();
    assert_eq!(brief, ["\"rebound.test:80\" \"egress_bad_request\" 1", "\"rebound.test:80\" \"address\" 2"]);
    assert!(!usage.to_string().contains("secret"), "{usage}");

    until("bob's doors are open", async || told("/egress").await["instances"].as_array().unwrap().len() == 2).await;
    let all = told("/egress").await;
    assert_eq!((&all["instances"][0], all["instances"][1]["refused"].as_u64()), (&usage, Some(0)));
    for path in [contracts::egress::usage_path(id(9)), "/egress/x".to_owned()] {
        assert_eq!(Answer::parse(&house.internal_get(&path, Some(TOKEN)).await).status, 404, "{path}");
    }
    for path in [contracts::egress::usage_path(id(1)), "/egress".to_owned()] {
        assert_eq!(Answer::parse(&house.internal_get(&path, None).await).status, 401, "{path}");
        assert_eq!(house.get("router.test", &path, "").await.status, 404, "{path} at the edge");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let (house, _) = house_with_outside(vec![("BEAVER_EGRESS_CONNECTIONS", "3".to_owned())]).await;
    let egress = house.run(1).join("out/egress.sock");
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut tunnel = door(&egress).await;
        tunnel.write_all(b"CONNECT public.test:80 HTTP/1.1\r\nhost: public.test\r\n\r\n").await.unwrap();
        assert!(read_until(&mut tunnel, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        open.push(tunnel);
    }
    let get = "GET http://public.test/ HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n";
    for answer in [connect_to(&egress, "public.test:80").await, ask(&egress, get).await] {
        assert_eq!((answer.status, answer.json()["code"].as_str()), (429, Some("egress_too_many")));
        assert!(answer.body.contains("3 connections"), "{}", answer.body);
    }
    open.pop();
    until("there is room again", async || ask(&egress, get).await.status == 200).await;
}

#[tokio::test]
async fn rules_change_without_a_restart_and_cut_what_they_no_longer_allow() {
    let (house, _) = house_with_outside(vec![]).await;
    let egress = house.run(1).join("out/egress.sock");
    let rules = house.data.path().join("router/egress.rules");
    assert_eq!(connect_to(&egress, "lan.test:80").await.status, 403);
    std::fs::write(&rules, "allow 192.168.7.0/24:80\n").unwrap();
    let get = |host: &str| format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    until("the rule is taken over", async || ask(&egress, get("lan.test")).await.status == 200).await;

    let tunnel = async |target: &str| {
        let mut tunnel = door(&egress).await;
        tunnel.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(read_until(&mut tunnel, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        tunnel
    };
    let (mut inner, mut outer) = (tunnel("lan.test:80").await, tunnel("public.test:80").await);
    std::fs::write(&rules, "deny 192.168.7.7\n").unwrap();
    assert_eq!(read_all(&mut inner).await, "", "cut");
    assert_eq!(connect_to(&egress, "lan.test:80").await.status, 403);
    outer.write_all(b"GET /still HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(&mut outer).await.contains("GET /still"), "what is allowed goes on");
}

#[tokio::test]
async fn an_instance_is_held_to_its_rate() {
    let (house, _) = house_with_outside(vec![("BEAVER_EGRESS_BYTES_PER_SECOND", "100000".to_owned())]).await;
    let egress = house.run(1).join("out/egress.sock");
    let mut upload = door(&egress).await;
    let body = vec![b'x'; 600_000];
    let head = "POST http://public.test/upload HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\ncontent-length: 600000\r\n\r\n";
    upload.write_all(head.as_bytes()).await.unwrap();
    tokio::time::pause();
    let since = tokio::time::Instant::now();
    upload.write_all(&body).await.unwrap();
    let answer = Answer::parse(&read_all(&mut upload).await);
    assert_eq!(answer.body, "600000 bytes");
    let took = since.elapsed().as_secs_f64();
    assert!(took > 4.5, "{took}");
}

#[tokio::test]
async fn what_the_rules_refuse_is_told_to_deploy_control_once() {
    let (house, _) = house_with_outside(vec![("BEAVER_EGRESS_DENY", "blocked.test".to_owned())]).await;
    let egress = house.run(1).join("out/egress.sock");
    for target in ["rebound.test:80", "rebound.test:80", "nowhere.test:80", "blocked.test:443", "127.1:80"] {
        connect_to(&egress, target).await;
    }
    until("all of it is told", async || house.deploy.refusals.lock().unwrap().len() >= 3).await;
    let told = house.deploy.refusals.lock().unwrap().clone();
    let brief: Vec<_> = told.iter().map(|r| (r.instance_id, &*r.target, r.reason.as_str())).collect();
    let expected = [("rebound.test:80", "address"), ("blocked.test:443", "denied"), ("127.1:80", "number")];
    assert_eq!(brief, expected.map(|(target, reason)| (id(1), target, reason)), "and not what only could not be had");
}

#[tokio::test]
async fn public_addresses_go_through_the_operators_proxy_and_others_do_not() {
    let real = outside().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [public, lan, at]: [SocketAddr; 3] =
        ["93.184.216.34:80", "192.168.7.7:80", "10.9.9.9:3128"].map(|address| address.parse().unwrap());
    let network = Arc::new(FakeNetwork {
        names: [
            ("public.test", vec![public.ip()]),
            ("denied.test", vec!["93.184.216.35".parse().unwrap()]),
            ("lan.test", vec![lan.ip()]),
            ("proxy.corp", vec![at.ip()]),
        ]
        .into(),
        listeners: [(lan, real), (at, proxy.local_addr().unwrap())].into(),
        ..FakeNetwork::default()
    });
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let of_proxy = Arc::clone(&heads);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let head = read_until(&mut stream, "\r\n\r\n").await;
            let good = head.starts_with("CONNECT 93.184.216.34:80 HTTP/1.1\r\n");
            of_proxy.lock().unwrap().push(head);
            if !good {
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                continue;
            }
            tokio::spawn(async move {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut out = tokio::net::TcpStream::connect(real).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut out).await;
            });
        }
    });
    let env = vec![
        ("BEAVER_EGRESS_UPSTREAM_PROXY", "http://me:secret@proxy.corp:3128".to_owned()),
        ("BEAVER_EGRESS_ALLOW", "lan.test:80".to_owned()),
    ];
    let house = House::with(Plan { env, network: Arc::clone(&network) as _, ..Plan::default() }).await;
    let egress = house.run(1).join("out/egress.sock");
    for host in ["public.test", "lan.test"] {
        let get = format!("GET http://{host}/x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert!(ask(&egress, get).await.body.starts_with("GET /x\nhost: "), "{host}");
    }
    let mut tunnel = door(&egress).await;
    tunnel.write_all(b"CONNECT public.test:80 HTTP/1.1\r\nhost: public.test\r\n\r\n").await.unwrap();
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"GET /inside HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(&mut tunnel).await.contains("GET /inside"));

    let answer = connect_to(&egress, "denied.test:80").await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (502, Some("egress_unreachable")));
    assert!(answer.body.contains("operator did not lead to denied.test:80: 403"), "{}", answer.body);
    assert_eq!(connect_to(&egress, "proxy.corp:3128").await.status, 403, "the proxy itself is inside");

    let dialled = network.dialled.lock().unwrap().clone();
    assert_eq!(dialled, [at, lan, at, at], "nothing public is dialled but through the proxy");
    let heads = heads.lock().unwrap();
    assert!(heads.iter().all(|head| head.to_ascii_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0")));
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_next_time_is_checked_again() {
    let real = outside().await;
    let public: SocketAddr = "93.184.216.34:80".parse().unwrap();
    let network = Arc::new(FakeNetwork {
        turning: [("turning.test", vec![public.ip(), "127.0.0.1".parse().unwrap()])].into(),
        listeners: [(public, real)].into(),
        ..FakeNetwork::default()
    });
    let house = House::with(Plan { network: Arc::clone(&network) as _, ..Plan::default() }).await;
    let egress = house.run(1).join("out/egress.sock");
    let get = "GET http://turning.test/ HTTP/1.1\r\nhost: turning.test\r\nconnection: close\r\n\r\n";
    for status in [200, 403, 200, 403] {
        assert_eq!(ask(&egress, get).await.status, status);
    }
    // One question and one connection each: between check and connection nothing is asked again.
    assert_eq!(network.asked.load(std::sync::atomic::Ordering::SeqCst), 4);
    assert_eq!(network.dialled.lock().unwrap()[..], [public, public]);
}
