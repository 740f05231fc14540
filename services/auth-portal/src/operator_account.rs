//! One person's account, as an operator sees it: suspending it, restoring it, and what was done so far.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::Response,
};
use contracts::{
    Slug,
    authz::{AccountView, Actioned, OperatorAction, OperatorQuery, SuspendAccount},
    deploy::{Instance, ResolveInstance},
};
use http::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use service::{CallError, Problem};

use crate::{
    Portal,
    account::status_of,
    next::Next,
    page::{Faults, Layout, page},
    session::{Visit, away, see_other},
    texts::Texts,
    view::{phase_name, utc},
};

/// A time for programs, and for readers without JavaScript.
type When = (String, String);

fn when(at_ms: i64) -> When {
    (clock::rfc3339(at_ms), utc(at_ms))
}

/// Something an operator did.
struct Done {
    when: String,
    shown: String,
    what: String,
    reason: String,
}

impl Done {
    fn of(action: OperatorAction, texts: Texts) -> Self {
        let what = match action.action {
            Actioned::Suspended => texts.with("operator.was_suspended", "who", action.actor),
            Actioned::Restored => texts.with("operator.was_restored", "who", action.actor),
        };
        let (when, shown) = when(action.at_ms);
        Self { when, shown, what, reason: action.reason }
    }
}

#[derive(Template)]
#[template(path = "portal/operator_account.html")]
struct OperatorAccountPage {
    l: Layout,
    slug: Slug,
    email: String,
    account_id: String,
    made: When,
    /// What the workspace is doing; absent while that cannot be asked.
    state: Option<String>,
    suspended: Option<When>,
    actions: Vec<Done>,
    reason: String,
    faults: Faults,
}

/// The operator's session's token and the name that is meant; or the way to the sign-in page. For everybody else there is no
/// such page.
fn asked(visit: &Visit, slug: &str) -> Result<(SecretString, Slug), Result<Box<Response>, Problem>> {
    let (_, token) = visit.signed_in(Next::Operator).map_err(Ok)?;
    let slug = Slug::parse(slug).ok().filter(|_| visit.is_operator());
    Ok((token, slug.ok_or_else(|| Err(Problem::not_found("not_found")))?))
}

fn refused(error: CallError) -> Result<Response, Problem> {
    match error.code() {
        Some("session_ended") => Ok(see_other(&Next::Operator.login())),
        Some("account_not_found" | "operator_required") => Err(Problem::not_found("account_not_found")),
        _ => Err(away(error)),
    }
}

async fn shown(
    portal: &Portal,
    visit: &Visit,
    session_token: SecretString,
    slug: Slug,
    status: StatusCode,
    (reason, faults): (String, Faults),
) -> Result<Response, Problem> {
    let l = visit.layout_at(format!("/operator/accounts/{slug}"));
    let query = OperatorQuery { session_token, slug: slug.to_string() };
    let view = match portal.authz().post::<AccountView>("/portal/operator/account", &query).await {
        Ok(view) => view,
        Err(error) => return refused(error),
    };
    let resolve = ResolveInstance { account_id: view.account_id, slug: slug.clone() };
    let instance = portal.deploy().post::<Instance>("/api/instances/resolve", &resolve).await.ok();
    let state = instance.map(|instance| l.t(&format!("phase.{}", phase_name(instance.phase))).into());
    let actions = view.actions.into_iter().map(|action| Done::of(action, l.texts)).collect();
    let shown = OperatorAccountPage {
        slug,
        email: view.email,
        account_id: view.account_id.to_string(),
        made: when(view.created_at_ms),
        state,
        suspended: view.suspended_at_ms.map(when),
        actions,
        reason,
        faults,
        l,
    };
    page(status, shown)
}

/// `GET /operator/accounts/{slug}`.
pub async fn account(
    State(portal): State<Portal>,
    visit: Visit,
    Path(slug): Path<String>,
) -> Result<Response, Problem> {
    match asked(&visit, &slug) {
        Ok((token, slug)) => shown(&portal, &visit, token, slug, StatusCode::OK, (String::new(), Faults::none())).await,
        Err(way) => way.map(|way| *way),
    }
}

/// Why.
#[derive(Deserialize)]
pub struct Reason {
    #[serde(default)]
    reason: String,
}

/// `POST /operator/accounts/{slug}/suspend` and `…/restore`.
pub async fn act(
    State(portal): State<Portal>,
    visit: Visit,
    Path((slug, action)): Path<(String, String)>,
    Form(Reason { reason }): Form<Reason>,
) -> Result<Response, Problem> {
    let suspended = match action.as_str() {
        "suspend" => true,
        "restore" => false,
        _ => return Err(Problem::not_found("not_found")),
    };
    let (session_token, slug) = match asked(&visit, &slug) {
        Ok(asked) => asked,
        Err(way) => return way.map(|way| *way),
    };
    let body = SuspendAccount {
        session_token: session_token.clone(),
        slug: slug.to_string(),
        suspended,
        reason: reason.trim().to_owned(),
    };
    match portal.authz().post::<AccountView>("/portal/operator/suspend", &body).await {
        Ok(_) => Ok(see_other(&format!("/operator/accounts/{slug}"))),
        Err(error) if error.status() == Some(422) => {
            let faults = Faults::refused(&error, visit.layout().texts, &["reason"]);
            shown(&portal, &visit, session_token, slug, status_of(Some(422)), (reason, faults)).await
        }
        Err(error) => refused(error),
    }
}
