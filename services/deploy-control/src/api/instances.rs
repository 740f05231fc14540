//! Calls that answer at once: wishes, and what is known.

use axum::extract::{Path, Query, State};
use contracts::{
    AccountId, InstanceId, PlanName, ProblemDetails, Slug,
    deploy::{
        By, ChangePlan, ConfigureProvider, DeleteInstance, Desired, EVENT_PAGE, EventList, Instance, InstanceList,
        OnBehalfOf, RegisterInstance, Reserved, ResolveInstance, Sleep, StopInstance, UndeleteInstance, WakeInstance,
    },
};
use http::StatusCode;
use serde::Deserialize;
use service::{Json, Problem};
use tracing::Instrument;

use super::Api;
use crate::{
    plans::NoPlan,
    registry::{self, Row, Wish},
};

/// What every wish is answered with: it is written down, and being worked on.
type Taken = (StatusCode, Json<Instance>);

/// How many instances a page has, and has at most.
const PAGE: i64 = 100;
const MAX_PAGE: i64 = 1_000;

impl Api {
    pub(super) fn instance(&self, row: &Row) -> Instance {
        Instance { waiting: self.reconciler.waiting(row.id), ..row.instance(self.folders.origin(row)) }
    }

    pub(super) fn taken(&self, row: &Row) -> Taken {
        // Watchers see the wish itself, not only what comes of it.
        self.hub.publish(row);
        self.reconciler.wished(row);
        (StatusCode::ACCEPTED, Json(self.instance(row)))
    }

    /// The plan that a caller names: one of the operator's, and nothing else.
    fn plan(&self, name: &str) -> Result<PlanName, Problem> {
        let refused = |code, detail: &str| Problem::field("plan", code, detail.to_owned());
        let unknown = "There is no such plan. The operator's file of plans names those that there are.";
        let name: PlanName = name.parse().map_err(|_| refused("plan_unknown", unknown))?;
        match self.plans.get(&name) {
            Ok(_) => Ok(name),
            Err(NoPlan::Missing) => Err(refused("plan_unknown", unknown)),
            Err(NoPlan::NeedsImages) => {
                Err(refused("plan_needs_images", "This plan names an image, and this engine runs none: use docker."))
            }
        }
    }

    /// The instance, for its owner or the operator.
    pub(super) async fn of(&self, id: InstanceId, by: By) -> Result<Row, registry::Error> {
        match by {
            By::Owner(account) => self.registry.get_owned(id, account).await,
            By::Operator => self.registry.get(id).await,
        }
    }

    async fn wish(&self, id: &str, body: OnBehalfOf, wish: Wish) -> Result<Taken, Problem> {
        let row = self.registry.wish(parse(id)?, body.account_id, wish).await?;
        Ok(self.taken(&row))
    }
}

/// Gives it another plan: its unit is made anew, and its data stays. For the operator.
#[utoipa::path(post, path = "/api/instances/{id}/plan", request_body = ChangePlan,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 422, body = ProblemDetails)))]
pub(super) async fn change_plan(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<ChangePlan>,
) -> Result<Taken, Problem> {
    let id = parse(&id)?;
    api.registry.get(id).await?;
    let row = api.registry.operator_wish(id, Wish::Plan(api.plan(&body.plan)?)).await?;
    Ok(api.taken(&row))
}

/// An id in a path; what is none is no instance's.
pub(super) fn parse(id: &str) -> Result<InstanceId, Problem> {
    id.parse().map_err(|_| Problem::not_found("instance_not_found"))
}

/// An id for an instance that somebody is about to ask for: of one that is made ahead, where one waits, and else a new one.
/// Nobody else is told of it.
#[utoipa::path(post, path = "/api/instances/reserve", responses(
    (status = 200, body = Reserved), (status = 503, body = ProblemDetails)))]
pub(super) async fn reserve(State(api): State<Api>) -> Result<Json<Reserved>, Problem> {
    let mut ahead = api.registry.reserve_ahead().await?;
    while let Some(id) = ahead
        && api.folders.is_somebodys(id).await.map_err(Problem::unavailable)?
    {
        // The registry is from before somebody took it over.
        ahead = api.registry.reserve_ahead().await?;
    }
    let instance_id = ahead.unwrap_or_else(|| api.reconciler.new_id());
    // There is one fewer.
    api.reconciler.fill_pool();
    Ok(Json(Reserved { instance_id }))
}

/// Takes an instance in. The same call again finds it.
#[utoipa::path(post, path = "/api/instances/register", request_body = RegisterInstance, responses(
    (status = 202, body = Instance), (status = 409, body = ProblemDetails), (status = 422, body = ProblemDetails),
    (status = 503, body = ProblemDetails)))]
pub(super) async fn register(State(api): State<Api>, Json(body): Json<RegisterInstance>) -> Result<Taken, Problem> {
    if let Err(error) = Slug::parse_new(body.slug.as_str()) {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
        return Err(Problem::new(status, error.code(), error.to_string()).on_field("slug"));
    }
    let plan = match &body.plan {
        Some(name) => api.plan(name)?,
        None => {
            // One that is not there any more is none.
            let before = api.registry.plan_of(body.account_id).await?.filter(|plan| api.plans.get(plan).is_ok());
            before.unwrap_or_else(|| api.plans.of_sign_ups().clone())
        }
    };
    let registered = api.registry.register(&body, &plan).await?;
    Ok(api.taken(&registered.row))
}

/// A person's instance, by its name.
#[utoipa::path(post, path = "/api/instances/resolve", request_body = ResolveInstance, responses(
    (status = 200, body = Instance), (status = 404, body = ProblemDetails)))]
pub(super) async fn resolve(
    State(api): State<Api>,
    Json(body): Json<ResolveInstance>,
) -> Result<Json<Instance>, Problem> {
    let row = api.registry.by_slug(&body.slug, body.account_id).await?;
    Ok(Json(api.instance(&row)))
}

/// Gives an instance its provider; it restarts with it.
#[utoipa::path(post, path = "/api/instances/configure-provider", request_body = ConfigureProvider, responses(
    (status = 202, body = Instance), (status = 404, body = ProblemDetails), (status = 409, body = ProblemDetails),
    (status = 422, body = ProblemDetails)))]
pub(super) async fn configure_provider(
    State(api): State<Api>,
    Json(body): Json<ConfigureProvider>,
) -> Result<Taken, Problem> {
    let id = body.instance_id;
    // Ownership first: what is wrong with a provider is said to nobody but the owner.
    let row = api.registry.get_owned(id, body.account_id).await?;
    if !row.plan.is_workspace() {
        let detail =
            "What this instance runs knows nothing of providers: its own settings are the place, if it needs one.";
        return Err(Problem::new(StatusCode::CONFLICT, "plan_has_no_provider", detail));
    }
    let provider =
        body.provider.checked().map_err(|error| Problem::field(error.field(), error.code(), error.to_string()))?;
    // Brought to its end also for somebody who hangs up: between the two there is a file that counts for nothing.
    let staged = async move {
        let _turn = api.staging.of(id).lock_owned().await;
        let row = api.registry.get_owned(id, body.account_id).await?;
        // Before anything is made of one that is gone.
        api.registry.may_be_wished(&row, &Wish::Configure(row.config_generation))?;
        // The registry may be from before the newest that was given.
        let written = api.folders.written_config(id).await.map_err(Problem::unavailable)?.unwrap_or(0);
        let generation = row.config_generation.max(written) + 1;
        // First the file, then the number that makes it count. A file without its number is written over by the next.
        api.folders.stage(&row, generation, provider).await.map_err(Problem::unavailable)?;
        let row = api.wish_for_staged(id, By::Owner(body.account_id), Wish::Configure(generation)).await?;
        Ok(api.taken(&row))
    };
    tokio::spawn(staged.in_current_span()).await.map_err(Problem::internal)?
}

/// Stops it; its data stays. With a reason it is the operator who does.
#[utoipa::path(post, path = "/api/instances/{id}/stop", request_body = StopInstance,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails)))]
pub(super) async fn stop(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<StopInstance>,
) -> Result<Taken, Problem> {
    let wish = body.suspended_for.map_or(Wish::Stop, Wish::Suspend);
    api.wish(&id, OnBehalfOf { account_id: body.account_id }, wish).await
}

/// Starts it.
#[utoipa::path(post, path = "/api/instances/{id}/start", request_body = OnBehalfOf,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails)))]
pub(super) async fn start(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<OnBehalfOf>,
) -> Result<Taken, Problem> {
    api.wish(&id, body, Wish::Start).await
}

/// Stops and starts it.
#[utoipa::path(post, path = "/api/instances/{id}/restart", request_body = OnBehalfOf,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails)))]
pub(super) async fn restart(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<OnBehalfOf>,
) -> Result<Taken, Problem> {
    api.wish(&id, body, Wish::Restart).await
}

/// Tries again at once what failed.
#[utoipa::path(post, path = "/api/instances/{id}/retry", request_body = OnBehalfOf,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails)))]
pub(super) async fn retry(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<OnBehalfOf>,
) -> Result<Taken, Problem> {
    api.wish(&id, body, Wish::Retry).await
}

/// Wakes it when it sleeps. One that is awake, or on its way, stays so.
#[utoipa::path(post, path = "/api/instances/{id}/wake", request_body = WakeInstance,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 409, body = ProblemDetails)))]
pub(super) async fn wake(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<WakeInstance>,
) -> Result<Taken, Problem> {
    let id = parse(&id)?;
    if let Some(account) = body.account_id {
        api.registry.get_owned(id, account).await?;
    }
    let (row, depth) = api.registry.wake(id, body.why).await?;
    if depth == Sleep::Awake {
        // Whoever woke it may be gone without having told anybody. What is under way already goes on.
        api.hub.publish(&row);
        api.reconciler.nudge(row.id);
        return Ok((StatusCode::ACCEPTED, Json(api.instance(&row))));
    }
    let depth = if depth == Sleep::Paused { "paused" } else { "stopped" };
    metrics::counter!("beaver_wakes_total", "from" => depth, "why" => body.why.as_str()).increment(1);
    Ok(api.taken(&row))
}

/// Takes it back, with its folders, when nobody ever had it. Its name stays taken.
#[utoipa::path(post, path = "/api/instances/{id}/discard", request_body = OnBehalfOf,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 409, body = ProblemDetails)))]
pub(super) async fn discard(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<OnBehalfOf>,
) -> Result<Taken, Problem> {
    api.wish(&id, body, Wish::Discard).await
}

/// Deletes it: it is down at once, without identity and unknown to visitors. Its data is kept for as long as the operator has
/// it, and with it the way back. Its name stays taken for good.
#[utoipa::path(post, path = "/api/instances/{id}/delete", request_body = DeleteInstance,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 422, description = "slug_mismatch", body = ProblemDetails)))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<DeleteInstance>,
) -> Result<Taken, Problem> {
    let row = api.of(parse(&id)?, body.by).await?;
    if body.slug != row.slug.as_str() {
        return Err(Problem::field(
            "slug",
            "slug_mismatch",
            "This is not its name. Type the name of what is to be deleted.",
        ));
    }
    let row = api.registry.wish_by(row.id, body.by, Wish::Delete(api.delete_after_ms)).await?;
    Ok(api.taken(&row))
}

/// Takes its deletion back: it comes up again with its data and a new identity, or stays down where it was stopped before.
#[utoipa::path(post, path = "/api/instances/{id}/undelete", request_body = UndeleteInstance,
    params(("id" = InstanceId, Path)),
    responses((status = 202, body = Instance), (status = 404, body = ProblemDetails),
        (status = 409, description = "deletion_final", body = ProblemDetails)))]
pub(super) async fn undelete(
    State(api): State<Api>,
    Path(id): Path<String>,
    Json(body): Json<UndeleteInstance>,
) -> Result<Taken, Problem> {
    let id = parse(&id)?;
    let row = api.of(id, body.by).await?;
    if row.desired == Desired::Deleted && row.deletion.is_some() {
        // First the word, then the wish: what comes up after it has read that.
        api.folders.revoke(&row).await.map_err(Problem::unavailable)?;
    }
    let row = api.registry.wish_by(id, body.by, Wish::Undelete).await?;
    Ok(api.taken(&row))
}

/// `?limit=&after=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    limit: Option<i64>,
    after: Option<InstanceId>,
}

/// Every instance that is not gone, oldest first: for operators.
#[utoipa::path(get, path = "/api/instances",
    params(("limit" = Option<i64>, Query), ("after" = Option<InstanceId>, Query)),
    responses((status = 200, body = InstanceList)))]
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<InstanceList>, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    // One more than asked for tells whether there is another page.
    let mut rows = api.registry.page(query.after, limit + 1).await?;
    let more = rows.len() as i64 > limit;
    if more {
        rows.pop();
    }
    let next = if more { rows.last().map(|row| row.id) } else { None };
    Ok(Json(InstanceList { instances: rows.iter().map(|row| api.instance(row)).collect(), next }))
}

/// `?account_id=&after=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamQuery {
    pub(super) account_id: AccountId,
    #[serde(default)]
    pub(super) after: i64,
}

/// `?account_id=&after=&before=&last=`, for the operator `?by=operator&…`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    account_id: Option<AccountId>,
    by: Option<By>,
    #[serde(default)]
    after: i64,
    before: Option<i64>,
    last: Option<i64>,
}

/// What happened to it, oldest first: from `after` on, or the newest `last` of those, and of those before `before`.
#[utoipa::path(get, path = "/api/instances/{id}/events",
    params(("id" = InstanceId, Path), ("account_id" = Option<AccountId>, Query), ("by" = Option<String>, Query),
        ("after" = Option<i64>, Query), ("before" = Option<i64>, Query),
        ("last" = Option<i64>, Query, minimum = 1, maximum = 200)),
    responses((status = 200, body = EventList), (status = 400, body = ProblemDetails),
        (status = 404, body = ProblemDetails)))]
pub(super) async fn events(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Result<Query<EventQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<EventList>, Problem> {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let by = query.by.or(query.account_id.map(By::Owner));
    let by = by.ok_or_else(|| Problem::bad_request("account_id, or by=operator, is missing"))?;
    let row = api.of(parse(&id)?, by).await?;
    let before = query.before.unwrap_or(i64::MAX);
    let events = match query.last {
        None if query.before.is_some() => return Err(Problem::bad_request("before goes with last")),
        None => api.registry.events(row.id, query.after).await?,
        Some(last) if (1..=EVENT_PAGE).contains(&last) => {
            api.registry.last_events(row.id, query.after, before, last).await?
        }
        Some(_) => return Err(Problem::bad_request(format!("last must be from 1 to {EVENT_PAGE}"))),
    };
    Ok(Json(EventList { events }))
}
