//! What an operator does to an account: looks at it, suspends it, restores it. Everything done is written down, with who did it.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    ProblemDetails, Slug,
    authz::{AccountView, Actioned, OperatorAction, OperatorQuery, Role, SessionToken, SuspendAccount, SuspendedList},
};
use http::StatusCode;
use secrecy::SecretString;
use service::{Json, Problem};

use crate::{
    accounts::{self, Account},
    app::App,
    goodbyes,
    refused::{Answer, Refused},
    sessions, stops,
};

/// The longest reason, in characters.
const REASON: usize = 500;
/// How many suspended accounts a list has at the most.
const SUSPENDED: i64 = 1_000;
/// How many of the last actions a view has.
const LISTED: i64 = 50;

#[derive(sqlx::FromRow)]
struct ActionRow {
    at_ms: i64,
    action: String,
    reason: String,
    actor: Option<String>,
}

/// An account, as operators may know it.
#[utoipa::path(post, path = "/portal/operator/account", tag = "portal", request_body = OperatorQuery,
    responses(
        (status = 200, body = AccountView),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 403, description = "operator_required", body = ProblemDetails),
        (status = 404, description = "account_not_found", body = ProblemDetails)))]
pub(crate) async fn account(State(app): State<Arc<App>>, Json(body): Json<OperatorQuery>) -> Answer<Json<AccountView>> {
    operator(&app, &body.session_token).await?;
    let account = person(&app, &body.slug).await?;
    Ok(Json(view(&app, account).await?))
}

/// The accounts that are suspended, for the console's list.
#[utoipa::path(post, path = "/portal/operator/suspended", tag = "portal", request_body = SessionToken,
    responses(
        (status = 200, body = SuspendedList),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 403, description = "operator_required", body = ProblemDetails)))]
pub(crate) async fn suspended(
    State(app): State<Arc<App>>,
    Json(body): Json<SessionToken>,
) -> Answer<Json<SuspendedList>> {
    operator(&app, &body.session_token).await?;
    let slugs: Vec<String> = sqlx::query_scalar(
        "SELECT slug FROM accounts WHERE suspended_at_ms > 0 AND slug IS NOT NULL
         ORDER BY suspended_at_ms DESC, slug LIMIT $1",
    )
    .bind(SUSPENDED)
    .fetch_all(app.store.pool())
    .await?;
    // What is in the table was a name when it was put there.
    Ok(Json(SuspendedList { slugs: slugs.iter().filter_map(|slug| Slug::parse(slug).ok()).collect() }))
}

/// Suspends an account: sign-in is refused, every session ends, here and in the instance, and the instance is stopped and stays
/// so. Or restores it: its person can sign in again, and start the instance. What is so already stays so, and is not written
/// down again.
#[utoipa::path(post, path = "/portal/operator/suspend", tag = "portal", request_body = SuspendAccount,
    responses(
        (status = 200, body = AccountView),
        (status = 401, description = "session_ended", body = ProblemDetails),
        (status = 403, description = "operator_required", body = ProblemDetails),
        (status = 404, description = "account_not_found", body = ProblemDetails),
        (status = 422, description = "reason_missing, reason_too_long", body = ProblemDetails)))]
pub(crate) async fn suspend(
    State(app): State<Arc<App>>,
    Json(body): Json<SuspendAccount>,
) -> Answer<Json<AccountView>> {
    let operator = operator(&app, &body.session_token).await?;
    let account = person(&app, &body.slug).await?;
    let reason = body.reason.trim();
    if body.suspended && reason.is_empty() {
        return Err(Problem::field("reason", "reason_missing", "Say why: it is kept with the account.").into());
    }
    if reason.chars().count() > REASON {
        return Err(Problem::field("reason", "reason_too_long", "A reason has at most 500 characters.").into());
    }
    let now = app.clock.now_ms();
    let mut transaction = app.store.begin().await?;
    let changed =
        sqlx::query("UPDATE accounts SET suspended_at_ms = $1 WHERE id = $2 AND (suspended_at_ms > 0) <> ($1 > 0)")
            .bind(if body.suspended { now } else { 0 })
            .bind(account.id.to_string())
            .execute(&mut *transaction)
            .await?;
    if changed.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(Json(view(&app, account).await?));
    }
    let action = if body.suspended { "suspended" } else { "restored" };
    sqlx::query(
        "INSERT INTO operator_actions (id, at_ms, actor_id, account_id, action, reason) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(app.id())
    .bind(now)
    .bind(operator.id.to_string())
    .bind(account.id.to_string())
    .bind(action)
    .bind(reason.to_owned())
    .execute(&mut *transaction)
    .await?;
    let (mut goodbye, mut stop) = (None, None);
    if body.suspended {
        sessions::end_all(&mut transaction, &account).await?;
        goodbye = goodbyes::insert(&mut transaction, &app, &account, None).await?;
        stop = stops::insert(&mut transaction, &app, &account).await?;
    } else {
        // One that a sign-in under way began all the same must not come to life now.
        sessions::end_all(&mut transaction, &account).await?;
        stops::withdraw(&mut transaction, &account).await?;
    }
    transaction.commit().await?;
    tracing::warn!(account_id = %account.id, operator_id = %operator.id, action, "an operator acted on an account");
    // The workspace hears it before it is stopped, if it can.
    goodbyes::say_now(&app, goodbye).await;
    stops::stop_now(&app, stop).await;
    let account = person(&app, &body.slug).await?;
    Ok(Json(view(&app, account).await?))
}

/// 403: the account is suspended. Told to whoever shows the right password, and to nobody else.
pub(crate) fn refusal() -> Refused {
    Problem::new(StatusCode::FORBIDDEN, "account_suspended", "This account is suspended. Ask the operator.").into()
}

async fn operator(app: &App, token: &SecretString) -> Answer<Account> {
    let account = sessions::require(app, token).await?.account;
    if account.role == Role::Operator {
        return Ok(account);
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "operator_required", "Only an operator may do this.").into())
}

/// A person's account: an operator's has no name, so it is never found.
async fn person(app: &App, slug: &str) -> Answer<Account> {
    match accounts::Login::read(slug) {
        login @ accounts::Login::Slug(_) => accounts::by_login(app.store.pool(), &login).await?,
        _ => None,
    }
    .ok_or_else(|| Problem::not_found("account_not_found").into())
}

async fn view(app: &App, account: Account) -> Answer<AccountView> {
    let rows: Vec<ActionRow> = sqlx::query_as(
        "SELECT operator_actions.at_ms, operator_actions.action, operator_actions.reason, accounts.email AS actor
         FROM operator_actions LEFT JOIN accounts ON accounts.id = operator_actions.actor_id
         WHERE operator_actions.account_id = $1
         ORDER BY operator_actions.at_ms DESC, operator_actions.id LIMIT $2",
    )
    .bind(account.id.to_string())
    .bind(LISTED)
    .fetch_all(app.store.pool())
    .await?;
    let action = |row: ActionRow| OperatorAction {
        at_ms: row.at_ms,
        actor: row.actor.unwrap_or_default(),
        action: if row.action == "suspended" { Actioned::Suspended } else { Actioned::Restored },
        reason: row.reason,
    };
    Ok(AccountView {
        account_id: account.id,
        email: account.email,
        slug: account.slug,
        instance_id: account.instance_id,
        created_at_ms: account.created_at_ms,
        suspended_at_ms: Some(account.suspended_at_ms).filter(|at| *at > 0),
        actions: rows.into_iter().map(action).collect(),
    })
}
