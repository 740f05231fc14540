//! A fake deploy-control: instances that change when a test says so.

use std::{collections::BTreeMap, convert::Infallible};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event as Sent, Sse},
    },
    routing::{get, post},
};
use contracts::{
    AccountId, InstanceId, PlanName, Slug,
    deploy::{
        By, ConfigureProvider, DeleteInstance, Deletion, Desired, Event, EventCode, EventList, Instance, InstanceError,
        InstanceList, InstanceUpdate, OnBehalfOf, Phase, ResolveInstance, UndeleteInstance, WakeInstance,
    },
    provider::ProviderConfig,
};
use futures_util::stream;
use http::StatusCode;
use serde::Deserialize;
use tokio::sync::watch;

use super::{DEPLOY_TOKEN, Shared, problem, shows};

const NOW: i64 = 1_795_000_000_000;

#[derive(Default)]
pub struct Inner {
    pub instances: BTreeMap<InstanceId, (Instance, Vec<Event>)>,
    /// Every call is refused with 503.
    pub away: bool,
    /// The next provider is refused so: status, code, field.
    pub refuse_provider: Option<(u16, &'static str, Option<&'static str>)>,
    /// The providers that were given.
    pub providers: Vec<ProviderConfig>,
    /// Actions asked for.
    pub actions: Vec<String>,
    /// What was put back, by whom.
    pub restored: Vec<(String, Vec<u8>)>,
    /// The next archive is refused so: status, code, detail.
    pub refuse_archive: Option<(u16, &'static str, &'static str)>,
    /// The next export breaks off.
    pub cut_export: bool,
    /// How often events were listed.
    pub event_lists: usize,
    /// The next lists of events are refused.
    pub refuse_events: bool,
    /// How many streams are open.
    pub streams: usize,
}

#[derive(Clone)]
pub struct Deploy {
    pub inner: Shared<Inner>,
    changed: watch::Sender<u64>,
}

impl Default for Deploy {
    fn default() -> Self {
        Self { inner: Shared::default(), changed: watch::Sender::new(0) }
    }
}

impl Deploy {
    pub fn accept(&self, account: AccountId, id: InstanceId, slug: Slug) {
        let instance = Instance {
            id,
            origin: format!("http://{slug}.localhost:8088"),
            slug,
            account_id: account,
            plan: PlanName::workspace(),
            takes_provider: true,
            waiting: None,
            desired: Desired::Running,
            phase: Phase::Accepted,
            error: None,
            deletion: None,
            generation: 1,
            observed_generation: 0,
            config_generation: 0,
            applied_config_generation: 0,
            created_at_ms: NOW,
            updated_at_ms: NOW,
        };
        self.inner.lock().instances.insert(id, (instance, vec![]));
        let own = |instance: &Instance| instance.id == id;
        self.write(own, |_| {}, &[(EventCode::Accepted, None)], &account.to_string());
    }

    /// The one instance there is.
    pub fn only(&self) -> Instance {
        self.inner.lock().instances.values().next_back().unwrap().0.clone()
    }

    /// Brings every instance into this phase, with these events.
    pub fn step(&self, phase: Phase, events: &[EventCode]) {
        self.change(|instance| instance.phase = phase, events);
    }

    pub fn ready(&self) {
        use EventCode::*;
        self.step(Phase::Ready, &[Prepared, Created, Started, Healthy, Registered, Ready]);
    }

    pub fn fail(&self, code: &str) {
        self.fail_with(&InstanceError { code: code.into(), detail: "in English".into(), ..Default::default() });
    }

    pub fn fail_with(&self, error: &InstanceError) {
        self.change(
            |instance| (instance.phase, instance.error) = (Phase::Failed, Some(error.clone())),
            &[EventCode::Failed],
        );
    }

    /// Writes one event down for every instance.
    pub fn tell(&self, code: EventCode, actor: &str, detail: Option<&str>) {
        self.write(|_| true, |_| {}, &[(code, detail)], actor);
    }

    pub fn change(&self, with: impl Fn(&mut Instance), events: &[EventCode]) {
        self.change_where(|_| true, with, events);
    }

    pub fn change_where(&self, of: impl Fn(&Instance) -> bool, with: impl Fn(&mut Instance), events: &[EventCode]) {
        let events: Vec<_> = events.iter().map(|code| (*code, None)).collect();
        self.write(of, with, &events, "beaver");
    }

    pub fn write(
        &self,
        of: impl Fn(&Instance) -> bool,
        with: impl Fn(&mut Instance),
        events: &[(EventCode, Option<&str>)],
        actor: &str,
    ) {
        for (instance, log) in self.inner.lock().instances.values_mut().filter(|(instance, _)| of(instance)) {
            with(instance);
            for (code, detail) in events {
                let (seq, detail) = (i64::try_from(log.len()).unwrap() + 1, detail.map(str::to_owned));
                log.push(Event { seq, at_ms: NOW + seq * 1000, code: *code, actor: actor.into(), detail });
            }
        }
        self.changed.send_modify(|version| *version += 1);
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/api/instances", get(list))
            .route("/api/instances/resolve", post(resolve))
            .route("/api/instances/configure-provider", post(configure))
            .route("/api/instances/{id}/events", get(events))
            .route("/api/instances/{id}/events/stream", get(follow))
            .route("/api/instances/{id}/delete", post(delete))
            .route("/api/instances/{id}/undelete", post(undelete))
            .route("/api/instances/{id}/export", get(export))
            .route("/api/instances/{id}/restore", post(restore))
            .route("/api/instances/{id}/{action}", post(act))
            .route_layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    fn of(&self, id: InstanceId, account: AccountId) -> Option<(Instance, Vec<Event>)> {
        self.inner.lock().instances.get(&id).filter(|(instance, _)| instance.account_id == account).cloned()
    }
}

async fn guard(State(deploy): State<Deploy>, request: Request, next: Next) -> Response {
    if !shows(request.headers(), DEPLOY_TOKEN) {
        return problem(401, "service_token_required", None);
    }
    if deploy.inner.lock().away {
        return problem(503, "unavailable", None);
    }
    next.run(request).await
}

fn unknown() -> Response {
    problem(404, "instance_not_found", None)
}

async fn resolve(State(deploy): State<Deploy>, Json(body): Json<ResolveInstance>) -> Response {
    let inner = deploy.inner.lock();
    let found =
        inner.instances.values().find(|(found, _)| found.slug == body.slug && found.account_id == body.account_id);
    found.map_or_else(unknown, |(instance, _)| Json(instance.clone()).into_response())
}

async fn configure(State(deploy): State<Deploy>, Json(body): Json<ConfigureProvider>) -> Response {
    if let Some((status, code, field)) = deploy.inner.lock().refuse_provider.take() {
        return problem(status, code, field);
    }
    if deploy.of(body.instance_id, body.account_id).is_none() {
        return unknown();
    }
    deploy.inner.lock().providers.push(body.provider);
    let with = |instance: &mut Instance| instance.config_generation += 1;
    let own = |instance: &Instance| instance.id == body.instance_id;
    deploy.write(own, with, &[(EventCode::ConfigRequested, Some("1"))], &body.account_id.to_string());
    (StatusCode::ACCEPTED, Json(deploy.only())).into_response()
}

async fn act(
    State(deploy): State<Deploy>,
    Path((id, action)): Path<(InstanceId, String)>,
    Json(body): Json<serde_json::Value>,
) -> Response {
    let account = match action.as_str() {
        "wake" => serde_json::from_value::<WakeInstance>(body).unwrap().account_id.unwrap(),
        _ => serde_json::from_value::<OnBehalfOf>(body).unwrap().account_id,
    };
    let Some((instance, _)) = deploy.of(id, account) else { return unknown() };
    deploy.inner.lock().actions.push(action.clone());
    let wish = |phase, event| {
        let with = |instance: &mut Instance| (instance.phase, instance.error) = (phase, None);
        deploy.write(|instance| instance.id == id, with, &[(event, None)], &account.to_string());
    };
    match action.as_str() {
        "stop" => wish(Phase::Stopping, EventCode::StopRequested),
        "start" => wish(Phase::Starting, EventCode::StartRequested),
        "restart" => wish(Phase::Starting, EventCode::RestartRequested),
        "wake" => wish(Phase::Starting, EventCode::WakeRequested),
        "retry" => wish(Phase::Preparing, EventCode::RetryRequested),
        _ => return problem(404, "not_found", None),
    }
    (StatusCode::ACCEPTED, Json(instance)).into_response()
}

async fn delete(
    State(deploy): State<Deploy>,
    Path(id): Path<InstanceId>,
    Json(body): Json<DeleteInstance>,
) -> Response {
    let Some((instance, _)) = body.by.account().and_then(|account| deploy.of(id, account)) else { return unknown() };
    if body.slug != instance.slug.as_str() {
        return problem(422, "slug_mismatch", Some("slug"));
    }
    let until = NOW + 604_800_000;
    let with = |instance: &mut Instance| {
        (instance.desired, instance.phase) = (Desired::Deleted, Phase::PendingDeletion);
        instance.deletion = Some(Deletion { asked_at_ms: NOW, data_until_ms: until });
    };
    let event = (EventCode::DeleteRequested, Some(&*until.to_string()));
    deploy.write(|instance| instance.id == id, with, &[event], &body.by.to_string());
    (StatusCode::ACCEPTED, Json(deploy.only())).into_response()
}

async fn undelete(
    State(deploy): State<Deploy>,
    Path(id): Path<InstanceId>,
    Json(body): Json<UndeleteInstance>,
) -> Response {
    if body.by.account().and_then(|account| deploy.of(id, account)).is_none() {
        return unknown();
    }
    let with = |instance: &mut Instance| {
        (instance.desired, instance.phase, instance.deletion) = (Desired::Running, Phase::Starting, None);
    };
    let event = (EventCode::UndeleteRequested, None);
    deploy.write(|instance| instance.id == id, with, &[event], &body.by.to_string());
    (StatusCode::ACCEPTED, Json(deploy.only())).into_response()
}

#[derive(Deserialize)]
struct Asked {
    by: By,
}

async fn export(State(deploy): State<Deploy>, Path(id): Path<InstanceId>, Query(asked): Query<Asked>) -> Response {
    if asked.by.account().and_then(|account| deploy.of(id, account)).is_none() {
        return unknown();
    }
    let cut = std::mem::take(&mut deploy.inner.lock().cut_export);
    let mut pieces: Vec<Result<&'static str, std::io::Error>> = vec![Ok("an archive, "), Ok("whole")];
    if cut {
        pieces[1] = Err(std::io::Error::other("cut"));
    }
    axum::body::Body::from_stream(stream::iter(pieces)).into_response()
}

async fn restore(
    State(deploy): State<Deploy>,
    Path(id): Path<InstanceId>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Response {
    if asked.by.account().and_then(|account| deploy.of(id, account)).is_none() {
        return unknown();
    }
    let Ok(bytes) = axum::body::to_bytes(request.into_body(), 1 << 30).await else {
        return problem(422, "archive_broken", Some("file"));
    };
    if let Some((status, code, detail)) = deploy.inner.lock().refuse_archive.take() {
        let body = serde_json::json!({ "title": "Refused", "status": status, "code": code, "detail": detail, "field": "file" });
        return (StatusCode::from_u16(status).unwrap(), Json(body)).into_response();
    }
    deploy.inner.lock().restored.push((asked.by.to_string(), bytes.to_vec()));
    (StatusCode::ACCEPTED, Json(deploy.only())).into_response()
}

#[derive(Deserialize)]
struct Which {
    account_id: AccountId,
    #[serde(default)]
    after: i64,
    before: Option<i64>,
    last: Option<usize>,
}

async fn events(State(deploy): State<Deploy>, Path(id): Path<InstanceId>, Query(query): Query<Which>) -> Response {
    let Some((_, log)) = deploy.of(id, query.account_id) else { return unknown() };
    {
        let mut inner = deploy.inner.lock();
        inner.event_lists += 1;
        if inner.refuse_events {
            return problem(503, "unavailable", None);
        }
    }
    let asked = |event: &Event| event.seq > query.after && query.before.is_none_or(|before| event.seq < before);
    let mut events: Vec<Event> = log.into_iter().filter(asked).collect();
    match query.last {
        Some(last) => drop(events.drain(..events.len().saturating_sub(last.min(200)))),
        None => events.truncate(200),
    }
    Json(EventList { events }).into_response()
}

/// Counts an open stream as long as it lives.
struct Open(Deploy);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.inner.lock().streams -= 1;
    }
}

async fn follow(State(deploy): State<Deploy>, Path(id): Path<InstanceId>, Query(query): Query<Which>) -> Response {
    if deploy.of(id, query.account_id).is_none() {
        return unknown();
    }
    deploy.inner.lock().streams += 1;
    let mut changes = deploy.changed.subscribe();
    changes.mark_changed();
    let begin = (changes, query.after, Open(deploy.clone()));
    let messages = stream::unfold(begin, move |(mut changes, after, open)| {
        let account = query.account_id;
        async move {
            changes.changed().await.ok()?;
            if open.0.inner.lock().away {
                return None;
            }
            let (instance, log) = open.0.of(id, account)?;
            let events: Vec<Event> = log.into_iter().filter(|event| event.seq > after).collect();
            let after = events.last().map_or(after, |event| event.seq);
            let update = InstanceUpdate { instance, events };
            let sent = Sent::default().event("instance").id(after.to_string()).json_data(update).unwrap();
            Some((Ok::<_, Infallible>(sent), (changes, after, open)))
        }
    });
    Sse::new(messages).into_response()
}

#[derive(Deserialize)]
struct Paging {
    limit: usize,
    after: Option<InstanceId>,
}

async fn list(State(deploy): State<Deploy>, Query(paging): Query<Paging>) -> Json<InstanceList> {
    let inner = deploy.inner.lock();
    let mut found = inner.instances.values().map(|(instance, _)| instance.clone());
    let instances: Vec<Instance> =
        found.by_ref().filter(|i| paging.after.is_none_or(|after| i.id > after)).take(paging.limit).collect();
    let next = found.next().and(instances.last().map(|instance| instance.id));
    Json(InstanceList { instances, next })
}
