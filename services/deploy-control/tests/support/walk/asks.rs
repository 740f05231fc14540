//! What is asked of the service in a walk, and waited for: each answer may get lost.

use std::time::Duration;

use contracts::{
    deploy::{EventList, Instance, Phase},
    provider::ProviderConfig,
    routes::{RouteMessage, RouteState},
};
use deploy_control::engine::conformance::within;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::{Person, Running, reader::Reader};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn key_of(provider: &ProviderConfig) -> String {
    provider.api_key.expose_secret().to_owned()
}

/// A call whose answer may get lost.
pub async fn post(service: &Running, path: &str, body: &Value) -> Result<(), String> {
    let answer = service.request("POST", path).json(body).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    // What is gone already was taken back by the call before.
    let done = path.ends_with("/discard") && status == 404 || path.ends_with("/undelete") && status == 409;
    if status.is_success() || done { Ok(()) } else { Err(format!("{path}: {status} {text}")) }
}

pub async fn ask(service: &Running, person: &Person, wish: &str, body: Value) -> Result<(), String> {
    post(service, &format!("/api/instances/{}/{wish}", person.id), &body).await
}

/// Its data as one file.
pub async fn export(service: &Running, person: &Person) -> Result<Vec<u8>, String> {
    let path = format!("/api/instances/{}/export?by={}", person.id, person.account);
    let answer = service.request("GET", &path).send().await.map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(format!("{path}: {}", answer.status()));
    }
    Ok(answer.bytes().await.map_err(|error| error.to_string())?.to_vec())
}

/// Has such a file take the place of its data.
pub async fn restore(service: &Running, person: &Person, archive: Vec<u8>) -> Result<(), String> {
    let path = format!("/api/instances/{}/restore?by={}", person.id, person.account);
    let answer = service.request("POST", &path).body(archive).send().await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    // It was taken by the call before.
    let done = status == 409 && text.contains("restore_under_way");
    if status == 202 || done { Ok(()) } else { Err(format!("{path}: {status} {text}")) }
}

pub async fn look(service: &Running, person: &Person) -> Result<Instance, String> {
    let body = json!({ "account_id": person.account, "slug": person.slug });
    let asked = service.request("POST", "/api/instances/resolve").json(&body).send().await;
    let answer = asked.map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|_| format!("{status} {text}"))
}

/// Its events; an error when one is missing.
pub async fn events(service: &Running, person: &Person) -> Result<Vec<String>, String> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/api/instances/{}/events?account_id={}&after={after}", person.id, person.account);
        let answer = service.request("GET", &path).send().await.map_err(|error| error.to_string())?;
        let list: EventList = answer.json().await.map_err(|error| error.to_string())?;
        let Some(last) = list.events.last() else { return Ok(all) };
        let seqs: Vec<_> = list.events.iter().map(|event| event.seq).collect();
        if seqs != (after + 1..=after + seqs.len() as i64).collect::<Vec<_>>() {
            return Err(format!("events after {after} are {seqs:?}"));
        }
        after = last.seq;
        all.extend(list.events.iter().map(|event| format!("{:?}", event.code)));
    }
}

pub async fn is_route(service: &Running, person: &Person, wanted: Option<RouteState>) -> Result<(), String> {
    let answer = service.request("GET", "/api/routes").send().await.map_err(|error| error.to_string())?;
    let mut feed = Reader::lines(answer);
    let Some(RouteMessage::Snapshot(snapshot)) = feed.json().await else { return Err("no snapshot of routes".into()) };
    let routes: Vec<_> = snapshot.routes.into_iter().filter(|route| route.instance_id == person.id).collect();
    let states: Vec<_> = routes.iter().map(|route| route.state).collect();
    let right = states == wanted.into_iter().collect::<Vec<_>>()
        && routes.iter().all(|route| route.slug == person.slug && route.account_id == person.account);
    if right { Ok(()) } else { Err(format!("routes {routes:?}, not {wanted:?}")) }
}

pub async fn settled(service: &Running, person: &Person, phase: Phase) -> Result<(), String> {
    let is_so = |instance: &Instance| instance.phase == phase && instance.observed_generation == instance.generation;
    reach(service, person, is_so).await
}

pub async fn reach(service: &Running, person: &Person, is_so: impl Fn(&Instance) -> bool) -> Result<(), String> {
    in_the_end(async || match look(service, person).await? {
        instance if is_so(&instance) => Ok(()),
        instance => Err(format!("{instance:?}")),
    })
    .await
}

/// Tries until it holds; else what was wrong last.
pub async fn in_the_end<T>(holds: impl AsyncFn() -> Result<T, String>) -> Result<T, String> {
    within(PATIENCE, holds).await
}
