//! The first operator: made by whoever has the link that `beaver up` prints, once.

use std::sync::Arc;

use axum::extract::State;
use contracts::{
    AccountId, ProblemDetails,
    authz::{OperatorState, RegisterOperator, Role, SignedIn},
};
use http::StatusCode;
use secrecy::ExposeSecret;
use service::{Json, Problem};

use crate::{
    accounts::{self, Account},
    app::App,
    devices::Visitor,
    password,
    refused::{Answer, Refused},
    sessions, sign_up,
};

/// Whether there is an operator.
#[utoipa::path(get, path = "/portal/operator", tag = "portal", responses((status = 200, body = OperatorState)))]
pub(crate) async fn state(State(app): State<Arc<App>>) -> Answer<Json<OperatorState>> {
    Ok(Json(OperatorState { exists: exists(&app).await? }))
}

/// Makes the first operator account and begins its session.
#[utoipa::path(post, path = "/portal/operator", tag = "portal", request_body = RegisterOperator,
    responses(
        (status = 201, body = SignedIn),
        (status = 403, description = "operator_link_invalid", body = ProblemDetails),
        (status = 409, description = "operator_exists, email_taken", body = ProblemDetails),
        (status = 422, description = "email_invalid, password_*, locale_unknown", body = ProblemDetails)))]
pub(crate) async fn register(
    State(app): State<Arc<App>>,
    Json(body): Json<RegisterOperator>,
) -> Answer<(StatusCode, Json<SignedIn>)> {
    if !settings::same_secret(&app.config.operator_token, body.token.expose_secret()) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "operator_link_invalid",
            "This link is not the one that `beaver up` printed.",
        )
        .into());
    }
    if exists(&app).await? {
        return Err(taken());
    }
    let visitor = Visitor::read(&app, &body.browser)?;
    let (email, locale) = (sign_up::email(&body.email)?, sign_up::locale(&body.locale)?);
    let password_hash = app.passwords.set(body.password, password::own_words(None, email.as_str())).await?;
    let account = Account {
        id: AccountId::from_uuid(app.entropy.uuid_v7(&app.clock)),
        email: email.as_str().to_owned(),
        password_hash,
        role: Role::Operator,
        slug: None,
        instance_id: None,
        locale: locale.code().to_owned(),
        created_at_ms: app.clock.now_ms(),
        suspended_at_ms: 0,
    };
    let mut transaction = app.store.begin().await?;
    // One row at most: of many at once, one inserts it.
    let first = sqlx::query("INSERT INTO first_operator (one, account_id) VALUES (1, $1) ON CONFLICT DO NOTHING")
        .bind(account.id.to_string())
        .execute(&mut *transaction)
        .await?;
    if first.rows_affected() == 0 {
        return Err(taken());
    }
    if !accounts::insert(&mut transaction, &account, &email).await? {
        return Err(sign_up::email_taken());
    }
    let signed_in = sessions::begin(&mut transaction, &app, &account, &visitor).await?;
    transaction.commit().await?;
    tracing::info!(account_id = %account.id, "the first operator signed up");
    Ok((StatusCode::CREATED, Json(signed_in)))
}

async fn exists(app: &App) -> Answer<bool> {
    let (rows,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM first_operator").fetch_one(app.store.pool()).await?;
    Ok(rows > 0)
}

fn taken() -> Refused {
    Problem::new(StatusCode::CONFLICT, "operator_exists", "There is an operator already. Sign in instead.").into()
}
