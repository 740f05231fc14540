//! The API as callers meet it: who may call, what is refused and how, streams.

mod support;

use std::time::Duration;

use contracts::{
    ProblemDetails,
    deploy::{Desired, EventCode, EventList, Instance, InstanceList, InstanceUpdate, Phase},
    routes::{RouteMessage, RouteState},
};
use deploy_control::engine::ErrorKind;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde_json::json;
use support::{Person, TOKEN, eventually, reader::Reader, sqlite_world, worlds};

#[tokio::test]
async fn nothing_is_answered_without_the_token() {
    let mut world = sqlite_world().await;
    let previous = "another-token-that-is-long-enough-000";
    world.config.tokens.push(previous.to_owned().into());
    let service = world.start().await;
    let alice = Person::named("alice");
    let instance = format!("/api/instances/{}", alice.id);
    for (method, path) in [
        ("POST", "/api/instances/register".to_owned()),
        ("POST", "/api/instances/reserve".into()),
        ("POST", "/api/instances/resolve".into()),
        ("POST", "/api/instances/configure-provider".into()),
        ("GET", "/api/instances".into()),
        ("POST", format!("{instance}/stop")),
        ("POST", format!("{instance}/start")),
        ("POST", format!("{instance}/restart")),
        ("POST", format!("{instance}/retry")),
        ("POST", format!("{instance}/wake")),
        ("POST", format!("{instance}/plan")),
        ("POST", format!("{instance}/discard")),
        ("POST", format!("{instance}/delete")),
        ("POST", format!("{instance}/undelete")),
        ("GET", format!("{instance}/export?by={}", alice.account)),
        ("POST", format!("{instance}/restore?by={}", alice.account)),
        ("GET", format!("{instance}/events?account_id={}", alice.account)),
        ("GET", format!("{instance}/events/stream?account_id={}", alice.account)),
        ("GET", "/api/routes".into()),
        ("POST", contracts::egress::REFUSALS_PATH.into()),
        ("GET", "/api/releases".into()),
        ("POST", "/api/upgrade".into()),
    ] {
        let url = format!("{}{path}", service.base);
        for token in [None, Some("wrong"), Some(&TOKEN[1..])] {
            let mut request = service.client.request(method.parse().unwrap(), &url).json(&alice.wanted());
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path}");
            assert_eq!(response.json::<ProblemDetails>().await.unwrap().code, "service_token_required");
        }
    }
    let url = format!("{}/api/instances", service.base);
    assert_eq!(service.client.get(url).bearer_auth(previous).send().await.unwrap().status(), 200);
    let (_, list) = service.get::<InstanceList>("/api/instances").await;
    assert!(list.instances.is_empty(), "nothing was taken");
    let described: serde_json::Value =
        service.client.get(format!("{}/openapi.json", service.base)).send().await.unwrap().json().await.unwrap();
    assert_eq!(described["paths"].as_object().unwrap().len(), 22, "every call is described");
}

#[tokio::test]
async fn another_persons_instance_is_not_found_whatever_is_asked() {
    for world in worlds().await {
        let service = world.start().await;
        let (alice, bob) = (Person::named("alice"), Person::named("bobby"));
        service.register(&alice).await;
        let before = service.settled(&alice, Phase::Ready).await;

        let thief = json!({ "account_id": bob.account });
        let mut posts =
            vec![("/api/instances/resolve".to_owned(), json!({ "account_id": bob.account, "slug": alice.slug }))];
        for wish in ["stop", "start", "restart", "retry", "discard"] {
            posts.push((format!("/api/instances/{}/{wish}", alice.id), thief.clone()));
        }
        let by = json!({ "by": bob.account });
        posts.push((format!("/api/instances/{}/delete", alice.id), json!({ "by": bob.account, "slug": alice.slug })));
        posts.push((format!("/api/instances/{}/delete", alice.id), json!({ "by": bob.account, "slug": "wrong" })));
        posts.push((format!("/api/instances/{}/undelete", alice.id), by));
        // Also with a provider that would be refused: that too would tell that the instance is there.
        for key in ["sk-1", ""] {
            let body = Person { id: alice.id, ..bob.clone() }.provider(key);
            posts.push(("/api/instances/configure-provider".into(), body));
        }
        for (path, body) in posts {
            let (status, problem) = service.post::<ProblemDetails>(&path, &body).await;
            assert_eq!((status, problem.code.as_str()), (StatusCode::NOT_FOUND, "instance_not_found"), "{path}");
        }
        for path in ["events?account_id", "events/stream?account_id", "export?by"] {
            let path = format!("/api/instances/{}/{path}={}", alice.id, bob.account);
            assert_eq!(service.get::<ProblemDetails>(&path).await.1.code, "instance_not_found", "{path}");
        }
        assert_eq!(service.instance(&alice).await, before, "{}", world.store.name());
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    for world in worlds().await {
        let service = world.start().await;
        let alice = Person::named("alice");
        service.register(&alice).await;
        let register = |change: serde_json::Value| {
            let mut body = serde_json::to_value(Person::named("carol").wanted()).unwrap();
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            body
        };
        for (change, status, code) in [
            (json!({ "slug": "alice" }), 409, "slug_taken"),
            (json!({ "slug": "admin" }), 409, "slug_reserved"),
            (json!({ "instance_id": alice.id }), 409, "instance_id_taken"),
            (json!({ "slug": "Carol" }), 400, "invalid_request"),
            (json!({ "instance_id": "i-../../etc" }), 400, "invalid_request"),
            (json!({ "privileged": true }), 400, "invalid_request"),
            (json!({ "image": "other" }), 400, "invalid_request"),
        ] {
            let (answered, problem) =
                service.post::<ProblemDetails>("/api/instances/register", &register(change)).await;
            assert_eq!((answered.as_u16(), problem.code.as_str()), (status, code));
        }
        for (member, value, code) in [
            ("base_url", json!("ftp://x"), "provider_base_url_invalid"),
            ("model", json!("a\nb"), "provider_model_invalid"),
            ("api_key", json!("a\nb"), "provider_key_invalid"),
            ("api_key", json!("a\u{0}b"), "provider_key_invalid"),
        ] {
            let mut body = alice.provider("sk-1");
            body["provider"][member] = value;
            let (status, problem) = service.post::<ProblemDetails>("/api/instances/configure-provider", &body).await;
            assert_eq!((status.as_u16(), problem.code.as_str(), problem.field.as_deref()), (422, code, Some(member)));
        }
        for path in ["/api/instances/x/stop", "/api/instances/i-0/stop", "/api/instances/..%2f..%2fx/stop"] {
            let body = json!({ "account_id": alice.account });
            let (status, problem) = service.post::<ProblemDetails>(path, &body).await;
            assert_eq!((status.as_u16(), problem.code.as_str()), (404, "instance_not_found"), "{path}");
        }
        assert_eq!(service.get::<InstanceList>("/api/instances").await.1.instances.len(), 1, "{}", world.store.name());
        let path = format!("/api/instances/{}/events", alice.id);
        assert_eq!(service.get::<ProblemDetails>(&path).await.1.code, "invalid_request", "for whom?");
    }
}

#[tokio::test]
async fn the_list_has_pages() {
    for world in worlds().await {
        let service = world.start().await;
        let mut expected = Vec::new();
        for n in 0..5 {
            expected.push(service.register(&Person::named(&format!("user-{n}"))).await.id);
        }
        let (mut seen, mut path) = (Vec::new(), "/api/instances?limit=2".to_owned());
        let mut pages = 0;
        loop {
            let (_, page) = service.get::<InstanceList>(&path).await;
            seen.extend(page.instances.iter().map(|instance| instance.id));
            pages += 1;
            let Some(next) = page.next else { break };
            path = format!("/api/instances?limit=2&after={next}");
        }
        assert_eq!((seen, pages), (expected, 3), "{}", world.store.name());
    }
}

#[tokio::test]
async fn a_stream_begins_at_once_tells_everything_and_goes_on_where_it_was() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        world.engine.hold("start");
        service.register(&alice).await;
        let path = format!("/api/instances/{}/events/stream?account_id={}", alice.id, alice.account);
        let mut stream = Reader::messages(service.request("GET", &path).send().await.unwrap());
        let (_, first): (_, InstanceUpdate) = stream.message().await.unwrap();
        assert_eq!(first.events[0].code, EventCode::Accepted, "the first message comes at once");
        world.engine.release();

        let (mut events, mut last_id, mut phases) = (first.events, String::new(), vec![first.instance.phase]);
        while phases.last() != Some(&Phase::Ready) {
            let (id, update): (_, InstanceUpdate) = stream.message().await.unwrap();
            events.extend(update.events);
            phases.push(update.instance.phase);
            last_id = id;
        }
        assert_eq!(events, service.events(&alice).await, "each event once and in order, {}", world.store.name());
        assert_eq!(last_id, events.last().unwrap().seq.to_string());

        // Both ways of going on; and a number that was never given.
        for (header, query, count) in
            [(Some("5"), "", 2), (None, "&after=6", 1), (Some("7"), "", 0), (Some("99"), "", 7)]
        {
            let mut request = service.request("GET", &format!("{path}{query}"));
            if let Some(seq) = header {
                request = request.header("last-event-id", seq);
            }
            let mut stream = Reader::messages(request.send().await.unwrap());
            let (id, update): (_, InstanceUpdate) = stream.message().await.unwrap();
            assert_eq!((update.events.len(), id.as_str()), (count, "7"), "{header:?} {query}");
        }
    }
}

#[tokio::test]
async fn the_route_feed_has_no_gaps_and_every_stream_ends_with_the_service() {
    let world = sqlite_world().await;
    let (service, alice) = (world.start().await, Person::named("alice"));
    let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    let Some(RouteMessage::Snapshot(snapshot)) = feed.json().await else { panic!("no snapshot") };
    assert_eq!((snapshot.version, snapshot.routes.len()), (0, 0));

    service.register(&alice).await;
    let mut states = Vec::new();
    for expected in 1.. {
        let Some(RouteMessage::Change { version, route }) = feed.json().await else { panic!("no change") };
        assert_eq!((version, route.instance_id, route.account_id), (expected, alice.id, alice.account));
        states.push(route.state);
        if route.state == RouteState::Running {
            break;
        }
    }
    assert_eq!(states, [RouteState::Starting, RouteState::Running]);
    let mut late = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    let Some(RouteMessage::Snapshot(same)) = late.json().await else { panic!("no snapshot") };
    assert_eq!((same.version, &same.epoch, same.routes.len()), (2, &snapshot.epoch, 1));

    let path = format!("/api/instances/{}/events/stream?account_id={}", alice.id, alice.account);
    let mut stream = Reader::messages(service.request("GET", &path).send().await.unwrap());
    stream.next().await.unwrap();
    service.stop.cancel();
    let ended =
        async { while feed.next().await.is_some() || late.next().await.is_some() || stream.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(3), ended).await.expect("streams end with the service");
    service.kill();

    // Another run counts anew, under another name, and knows the routes at once.
    let service = world.start().await;
    let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    let Some(RouteMessage::Snapshot(next)) = feed.json().await else { panic!("no snapshot") };
    assert_ne!(next.epoch, snapshot.epoch);
    assert_eq!(next.routes[0].state, RouteState::Running);
}

#[tokio::test]
async fn a_locked_database_is_a_refusal_that_says_when_to_try_again() {
    let world = sqlite_world().await;
    let (service, alice, bob) = (world.start().await, Person::named("alice"), Person::named("bobby"));
    service.register(&alice).await;
    let before = service.settled(&alice, Phase::Ready).await;

    let lock = world.store.begin().await.unwrap();
    let register = service.request("POST", "/api/instances/register").json(&bob.wanted()).send();
    let stop = service
        .request("POST", &format!("/api/instances/{}/stop", alice.id))
        .json(&json!({ "account_id": alice.account }))
        .send();
    let (register, stop) = tokio::join!(register, stop);
    for response in [register.unwrap(), stop.unwrap()] {
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        assert_eq!(response.json::<ProblemDetails>().await.unwrap().code, "unavailable");
    }
    lock.rollback().await.unwrap();

    assert_eq!(service.instance(&alice).await, before, "nothing was half-written");
    assert_eq!(service.get::<InstanceList>("/api/instances").await.1.instances.len(), 1);
    service.ready(&bob).await;
}

#[tokio::test]
async fn health_names_the_engine() {
    let world = sqlite_world().await;
    let service = world.start().await;
    let url = format!("{}/readyz", service.base);
    eventually(async || {
        let ready: serde_json::Value = service.client.get(&url).send().await.unwrap().json().await.unwrap();
        let met = json!({ "database": "ok", "engine_process": "ok", "sockets": "ok" });
        if ready["needs"] == met { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    world.engine.set_away(true);
    assert_eq!(service.client.get(&url).send().await.unwrap().status(), 503);
    let alice = Person::named("alice");
    assert_eq!(service.register(&alice).await.desired, Desired::Running, "wishes are taken all the same");
    let metrics = service.client.get(format!("{}/metrics", service.base)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("beaver_instances"), "{metrics}");
}

#[tokio::test]
async fn two_wishes_at_once_are_both_counted() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        let keys = ["sk-0", "sk-1", "sk-2", "sk-3", "sk-4"];
        let answers: Vec<Instance> =
            futures_util::future::join_all(keys.map(|key| service.configure(&alice, key))).await;
        let mut generations: Vec<_> = answers.iter().map(|instance| instance.config_generation).collect();
        generations.sort_unstable();
        assert_eq!(generations, [1, 2, 3, 4, 5], "{}", world.store.name());
        let settled = service.settled(&alice, Phase::Ready).await;
        assert_eq!(settled.applied_config_generation, 5);
        let (config, last) =
            (world.current_config(alice.id), answers.iter().position(|one| one.config_generation == 5));
        assert_eq!(config.generation, 5);
        assert_eq!(config.provider.unwrap().api_key.expose_secret(), keys[last.unwrap()], "the later one, whole");
    }
}

#[tokio::test]
async fn the_newest_events_are_answered_oldest_first() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        // More than an answer holds.
        for _ in 0..105 {
            service.wish(&alice, "stop").await;
            service.wish(&alice, "start").await;
        }
        service.settled(&alice, Phase::Ready).await;
        let events = async |query: &str| {
            let path = format!("/api/instances/{}/events?account_id={}{query}", alice.id, alice.account);
            service.get::<EventList>(&path).await.1.events
        };
        let mut all = events("").await;
        assert_eq!(all.len(), 200, "{}", world.store.name());
        while let Some(last) = all.last().map(|event| event.seq) {
            let more = events(&format!("&after={last}")).await;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        assert!(all.len() > 210 && all.iter().map(|event| event.seq).eq(1..=all.len() as i64));

        for last in [1, 7, 200] {
            assert_eq!(events(&format!("&last={last}")).await, all[all.len() - last..], "{}", world.store.name());
        }
        let after = all.len() as i64 - 3;
        assert_eq!(events(&format!("&last=200&after={after}")).await, all[all.len() - 3..], "no older than asked for");
        assert_eq!(events(&format!("&last=2&after={after}")).await, all[all.len() - 2..]);
        for wrong in ["0", "-1", "201", "many"] {
            let path = format!("/api/instances/{}/events?account_id={}&last={wrong}", alice.id, alice.account);
            let (status, problem) = service.get::<ProblemDetails>(&path).await;
            assert_eq!((status, problem.code.as_str()), (StatusCode::BAD_REQUEST, "invalid_request"), "{wrong}");
        }
    }
}

/// Everything that a container could be asked for, and everything of a row that only Beaver itself writes.
const NOT_FOR_CALLERS: [&str; 44] = [
    "image",
    "command",
    "entrypoint",
    "env",
    "environment",
    "mounts",
    "binds",
    "volumes",
    "devices",
    "privileged",
    "cap_add",
    "capabilities",
    "security_opt",
    "user",
    "uid",
    "number",
    "network",
    "network_mode",
    "ports",
    "pid_mode",
    "runtime",
    "labels",
    "limits",
    "memory_mb",
    "memory_bytes",
    "disk_mb",
    "tmp_mb",
    "cpus",
    "pids",
    "port",
    "health",
    "plans",
    "program",
    "shim",
    "working_dir",
    "sign_in",
    "host_config",
    "HostConfig",
    "folders",
    "data_dir",
    "desired",
    "phase",
    "generation",
    "registered",
];

#[tokio::test]
async fn no_caller_can_name_anything_but_instances() {
    let mut world = sqlite_world().await;
    let previous = "another-token-that-is-long-enough-000";
    world.config.tokens.push(previous.to_owned().into());
    let service = world.start().await;
    let alice = Person::named("alice");
    service.register(&alice).await;
    let before = service.settled(&alice, Phase::Ready).await;
    let calls = (world.engine.units(), world.engine.count("ensure", alice.id));

    let owner = json!({ "account_id": alice.account });
    let mut bodies = vec![
        ("/api/instances/register".to_owned(), serde_json::to_value(Person::named("carol").wanted()).unwrap()),
        ("/api/instances/resolve".into(), json!({ "account_id": alice.account, "slug": alice.slug })),
        ("/api/instances/configure-provider".into(), alice.provider("sk-1")),
        (contracts::egress::REFUSALS_PATH.into(), json!({ "refusals": [] })),
    ];
    for wish in ["stop", "start", "restart", "retry"] {
        bodies.push((format!("/api/instances/{}/{wish}", alice.id), owner.clone()));
    }
    // A plan by its name, and nothing of what it says.
    bodies.push((format!("/api/instances/{}/plan", alice.id), json!({ "plan": "workspace" })));
    bodies[0].1["plan"] = json!("workspace");
    let refused = async |path: &str, body: &serde_json::Value, token: &str| {
        let url = format!("{}{path}", service.base);
        let answer = service.client.post(url).bearer_auth(token).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<ProblemDetails>().await.unwrap().code)
    };
    for (path, body) in &bodies {
        for member in NOT_FOR_CALLERS {
            let mut places = vec![body.clone()];
            places[0][member] = json!("alpine");
            if body.get("provider").is_some() {
                places.push(body.clone());
                places[1]["provider"][member] = json!(["/:/host"]);
            }
            for (body, token) in places.iter().flat_map(|body| [(body, TOKEN), (body, previous)]) {
                assert_eq!(refused(path, body, token).await, (400, "invalid_request".into()), "{path} {member}");
            }
        }
        // A plan is named where that is meant, and nowhere else.
        if body.get("plan").is_none() {
            let mut with_plan = body.clone();
            with_plan["plan"] = json!("workspace");
            assert_eq!(refused(path, &with_plan, TOKEN).await, (400, "invalid_request".into()), "{path}");
        } else {
            for (plan, answer) in [
                (json!("alpine:latest"), (422, "plan_unknown")),
                (json!("../plans"), (422, "plan_unknown")),
                (json!(""), (422, "plan_unknown")),
                (json!("notes"), (422, "plan_unknown")),
                (json!({ "image": "alpine", "port": 80 }), (400, "invalid_request")),
                (json!(["workspace"]), (400, "invalid_request")),
            ] {
                let mut with_plan = body.clone();
                with_plan["plan"] = plan;
                assert_eq!(refused(path, &with_plan, TOKEN).await, (answer.0, answer.1.into()), "{path}");
            }
        }
        // Said twice, the first or the second could be the one that is checked.
        let text =
            body.to_string().replacen('{', &format!("{{\"account_id\":\"{}\",", Person::named("mallory").account), 1);
        let request = service.request("POST", path).header("content-type", "application/json").body(text);
        assert_eq!(request.send().await.unwrap().status(), 400, "{path}");
    }
    let events = format!("/api/instances/{}/events", alice.id);
    for query in [
        "/api/instances?image=x".to_owned(),
        format!("{events}?account_id={}&image=x", alice.account),
        format!("{events}?account_id={}&account_id={}", Person::named("mallory").account, alice.account),
        format!("{events}/stream?account_id={}&last=3", alice.account),
    ] {
        let (status, problem) = service.get::<ProblemDetails>(&query).await;
        assert_eq!((status, problem.code.as_str()), (StatusCode::BAD_REQUEST, "invalid_request"), "{query}");
    }
    // Other ways in are not there.
    for path in ["/api/images", "/api/instances/x/exec", "/containers/json", "/api/instances/create", "/api/engine"] {
        let answer = service.request("POST", path).json(&owner).send().await.unwrap();
        assert!([404, 405].contains(&answer.status().as_u16()), "{path} {}", answer.status());
    }

    assert_eq!(service.instance(&alice).await, before);
    assert_eq!((world.engine.units(), world.engine.count("ensure", alice.id)), calls);
    assert_eq!(service.get::<InstanceList>("/api/instances").await.1.instances.len(), 1, "nobody was taken in");
    // The control: the same bodies as they should be.
    for (path, body) in &bodies {
        let status = service.request("POST", path).json(body).send().await.unwrap().status();
        assert!(status.is_success(), "{path} {status}");
    }
}

#[tokio::test]
async fn what_the_router_refused_is_an_event_that_changes_nothing() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.register(&alice).await;
        let before = service.settled(&alice, Phase::Ready).await;
        let unknown = Person::named("nobody").id;
        let refusal = |id: contracts::InstanceId, target: &str| serde_json::json!({ "instance_id": id, "target": target, "reason": "address" });
        let tell = async |refusals: Vec<serde_json::Value>| {
            let body = serde_json::json!({ "refusals": refusals });
            service.request("POST", contracts::egress::REFUSALS_PATH).json(&body).send().await.unwrap().status()
        };
        let good = vec![refusal(unknown, "a.test:80"), refusal(alice.id, "a.test:80"), refusal(alice.id, "b.test:1")];
        assert_eq!(tell(good).await, StatusCode::NO_CONTENT, "{}", world.store.name());
        for bad in [refusal(alice.id, "a b"), refusal(alice.id, &"a".repeat(261)), refusal(alice.id, "a\n")] {
            assert_eq!(tell(vec![bad]).await, StatusCode::BAD_REQUEST);
        }
        assert_eq!(tell(vec![refusal(alice.id, "a.test:80"); 201]).await, StatusCode::BAD_REQUEST);

        let path = format!("/api/instances/{}/events?account_id={}&last=2", alice.id, alice.account);
        let events = service.get::<EventList>(&path).await.1.events;
        let told: Vec<_> = events.iter().map(|event| (event.code, event.detail.as_deref(), &*event.actor)).collect();
        let refused = contracts::deploy::EventCode::EgressRefused;
        assert_eq!(
            told,
            [(refused, Some("a.test:80 address"), "beaver"), (refused, Some("b.test:1 address"), "beaver")]
        );
        let after = service.settled(&alice, Phase::Ready).await;
        assert_eq!((after.generation, after.phase, after.error), (before.generation, before.phase, before.error));
    }
}

#[tokio::test]
async fn what_the_operator_stops_is_told_so_with_the_reason_and_the_operator_reads_what_happened() {
    for world in worlds().await {
        let (service, alice) = (world.start().await, Person::named("alice"));
        service.ready(&alice).await;
        let stop = serde_json::json!({ "account_id": alice.account, "suspended_for": "unpaid" });
        let (status, _): (_, Instance) = service.post(&format!("/api/instances/{}/stop", alice.id), &stop).await;
        assert_eq!(status, 202);
        service.settled(&alice, Phase::Stopped).await;
        let events = format!("/api/instances/{}/events", alice.id);
        let (_, all) = service.get::<EventList>(&format!("{events}?by=operator")).await;
        let asked = all.events.iter().find(|event| event.code == EventCode::StopRequested).unwrap();
        assert_eq!(
            (asked.actor.as_str(), asked.detail.as_deref()),
            ("operator", Some("unpaid")),
            "{}",
            world.store.name()
        );
        assert_eq!(all.events, service.events(&alice).await);

        // Page by page, back from the newest.
        let (mut before, mut paged) = (i64::MAX, Vec::new());
        loop {
            let (_, page) = service.get::<EventList>(&format!("{events}?by=operator&last=3&before={before}")).await;
            let Some(first) = page.events.first() else { break };
            before = first.seq;
            paged.splice(0..0, page.events);
        }
        assert_eq!(paged, all.events);
        for query in ["", "?by=somebody", "?by=operator&before=3"] {
            let (status, _) = service.get::<ProblemDetails>(&format!("{events}{query}")).await;
            assert_eq!(status, 400, "{query}");
        }
    }
}

#[tokio::test]
async fn the_feed_says_that_the_engine_is_away() {
    let world = sqlite_world().await;
    let service = world.start().await;
    let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    assert!(matches!(feed.json().await, Some(RouteMessage::Snapshot(_))));
    world.engine.set_away(true);
    assert_eq!(feed.json().await, Some(RouteMessage::Engine { away: true }));
    let mut late = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    assert!(matches!(late.json().await, Some(RouteMessage::Snapshot(_))));
    assert_eq!(late.json().await, Some(RouteMessage::Engine { away: true }), "said to whoever comes late too");
    world.engine.set_away(false);
    assert_eq!(feed.json().await, Some(RouteMessage::Engine { away: false }));
}

#[tokio::test]
async fn an_engine_that_hangs_and_closes_nothing_is_away_too() {
    let mut world = sqlite_world().await;
    world.config.reconcile.resync = Duration::from_millis(20);
    let service = world.start().await;
    let mut feed = Reader::lines(service.request("GET", "/api/routes").send().await.unwrap());
    assert!(matches!(feed.json().await, Some(RouteMessage::Snapshot(_))));
    world.engine.refuse("list", ErrorKind::Unavailable);
    assert_eq!(feed.json().await, Some(RouteMessage::Engine { away: true }));
    world.engine.accept("list");
    assert_eq!(feed.json().await, Some(RouteMessage::Engine { away: false }));
}
