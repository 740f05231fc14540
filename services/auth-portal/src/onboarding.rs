//! The provider: which, where, which model, with which key; a live test of it; giving it to the workspace.

use std::time::Duration;

use askama::Template;
use axum::{
    Form,
    extract::State,
    response::{IntoResponse, Response},
};
use contracts::{
    authz::{AssertionIssued, AssertionRequest, Purpose},
    deploy::{ConfigureProvider, Instance},
    instance::{TestProvider, internal_path},
    provider::{ProviderConfig, ProviderKind, ProviderTest, TestOutcome},
};
use http::{HeaderMap, Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use service::{CallError, Json, Problem};

use crate::{
    Portal,
    live::Known,
    next::Next,
    page::{Faults, Layout, page as render},
    security::wants_json,
    session::{Person, Visit, see_other},
    texts::Texts,
};

/// A provider may take its time for the first word.
const TEST_TIMEOUT: Duration = Duration::from_secs(45);

struct Choice {
    code: &'static str,
    name: String,
    base_url: &'static str,
    model: &'static str,
    needs_key: bool,
    chosen: bool,
}

/// What a test found, in words.
#[derive(Debug, Serialize)]
pub struct Finding {
    good: bool,
    title: String,
    text: String,
    /// The provider's own words, when there are any.
    said: Option<String>,
    /// The field to look at.
    field: Option<&'static str>,
}

#[derive(Template)]
#[template(path = "portal/onboarding.html")]
struct OnboardingPage {
    l: Layout,
    choices: Vec<Choice>,
    base_url: String,
    model: String,
    /// Only ever in the answer to whoever just typed it, which no cache keeps.
    api_key: String,
    faults: Faults,
    finding: Option<Finding>,
    example: &'static str,
}

/// The form.
#[derive(Deserialize)]
pub struct ProviderForm {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    base_url: String,
    #[serde(default)]
    model: String,
    api_key: SecretString,
    #[serde(default)]
    action: String,
}

fn choices(chosen: ProviderKind, texts: Texts) -> Vec<Choice> {
    let choice = |kind: ProviderKind| Choice {
        code: kind.code(),
        name: kind.brand().map_or_else(|| texts.t("onboarding.other").into(), str::to_owned),
        base_url: kind.default_base_url(),
        model: kind.example_model(),
        needs_key: kind.needs_key(),
        chosen: kind == chosen,
    };
    ProviderKind::ALL.into_iter().map(choice).collect()
}

/// `GET /onboarding`.
pub async fn page(State(portal): State<Portal>, visit: Visit) -> Result<Response, Problem> {
    let person = match visit.person(Next::Onboarding) {
        Ok(person) => person,
        Err(way) => return Ok(*way),
    };
    match Known::now(&portal, &person).await {
        // There is nothing to give a provider to, and what to do about that stands there.
        Known::Refused(_) => return Ok(see_other("/progress")),
        Known::Here(instance) if !instance.takes_provider => return Ok(see_other("/instance")),
        // What is not known takes one: the form says what is wrong when it is sent.
        _ => {}
    }
    let kind = ProviderKind::Openai;
    let l = visit.layout();
    let shown = OnboardingPage {
        choices: choices(kind, l.texts),
        base_url: String::new(),
        model: String::new(),
        api_key: String::new(),
        faults: Faults::none(),
        finding: None,
        example: kind.example_model(),
        l,
    };
    render(StatusCode::OK, shown)
}

/// `POST /onboarding`: tests or saves, as the button says.
pub async fn submit(
    State(portal): State<Portal>,
    visit: Visit,
    headers: HeaderMap,
    Form(form): Form<ProviderForm>,
) -> Result<Response, Problem> {
    let person = match visit.person(Next::Onboarding) {
        Ok(person) => person,
        Err(_) if wants_json(&headers) => {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "session_ended", "Sign in again."));
        }
        Err(way) => return Ok(*way),
    };
    let l = visit.layout_at(Next::Onboarding.location());
    let texts = l.texts;
    let kind = ProviderKind::from_code(&form.kind).unwrap_or(ProviderKind::OpenaiCompatible);
    let mut shown = OnboardingPage {
        choices: choices(kind, texts),
        base_url: shown_base_url(kind, &form.base_url),
        model: form.model.trim().to_owned(),
        api_key: form.api_key.expose_secret().to_owned(),
        faults: Faults::none(),
        finding: None,
        example: kind.example_model(),
        l,
    };
    let config = ProviderConfig { kind, base_url: form.base_url, model: form.model, api_key: form.api_key };
    let json = wants_json(&headers);
    let config = match config.checked() {
        Ok(config) => config,
        Err(error) if json => {
            let finding = Finding {
                good: false,
                title: texts.t("onboarding.not_tested").into(),
                text: texts.error(error.code()).into(),
                said: None,
                field: Some(error.field()),
            };
            return Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(finding)).into_response());
        }
        Err(error) => {
            shown.faults = Faults::one(error.field(), texts.error(error.code()));
            return render(StatusCode::UNPROCESSABLE_ENTITY, shown);
        }
    };
    if form.action == "save" {
        return save(&portal, &person, config, shown).await;
    }
    let finding = test(&portal, &person, config, texts).await?;
    if json {
        return Ok(Json(finding).into_response());
    }
    shown.finding = Some(finding);
    render(StatusCode::OK, shown)
}

/// What the field shows: nothing where that stands for the provider's own address. So it never holds one that is wrong as soon
/// as another provider is chosen, and what is in it was meant.
fn shown_base_url(kind: ProviderKind, typed: &str) -> String {
    let typed = typed.trim();
    if typed.trim_end_matches('/') == kind.default_base_url() { String::new() } else { typed.to_owned() }
}

async fn save(
    portal: &Portal,
    person: &Person,
    provider: ProviderConfig,
    mut shown: OnboardingPage,
) -> Result<Response, Problem> {
    let body = ConfigureProvider { account_id: person.session.account_id, instance_id: person.instance_id, provider };
    match portal.deploy().post::<Instance>("/api/instances/configure-provider", &body).await {
        Ok(_) => Ok(see_other("/applying")),
        Err(error) if error.code() == Some("instance_not_found") && person.session.instance_error.is_some() => {
            Ok(see_other("/progress"))
        }
        Err(error) => {
            let texts = shown.l.texts;
            shown.faults = match error.code() {
                // It was given another plan since the page was shown.
                Some("plan_has_no_provider") => return Ok(see_other("/instance")),
                Some("instance_not_found") => Faults::one("", texts.t("onboarding.too_early")),
                _ => Faults::refused(&error, texts, &["kind", "base_url", "model", "api_key"]),
            };
            let status = error.status().filter(|status| *status < 500).and_then(|s| StatusCode::from_u16(s).ok());
            tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "a provider was not taken");
            render(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), shown)
        }
    }
}

/// Lets the workspace itself try the provider: what counts is what can be reached from there.
async fn test(portal: &Portal, person: &Person, provider: ProviderConfig, texts: Texts) -> Result<Finding, Problem> {
    match ask_workspace(portal, person, provider).await {
        Ok(test) => Ok(found(test, texts)),
        Err(error) => {
            tracing::info!(cause = format!("{:#}", anyhow::Error::from(error)), "a provider could not be tested");
            Ok(Finding {
                good: false,
                title: texts.t("onboarding.not_tested").into(),
                text: texts.t("onboarding.workspace_away").into(),
                said: None,
                field: None,
            })
        }
    }
}

async fn ask_workspace(portal: &Portal, person: &Person, provider: ProviderConfig) -> Result<ProviderTest, CallError> {
    let ask = AssertionRequest {
        session_token: person.token.clone(),
        slug: person.slug.clone(),
        purpose: Purpose::ProviderTest,
        bind: None,
    };
    let issued: AssertionIssued = portal.authz().post("/portal/assertion", &ask).await?;
    let router = portal.router();
    let path = internal_path(person.instance_id, "/api/provider/test");
    let body = TestProvider { assertion: issued.assertion, provider };
    router.json(router.request(Method::POST, &path).timeout(TEST_TIMEOUT).json(&body)).await
}

/// The end of an outcome's texts' keys, and the field it is about.
fn outcome(outcome: TestOutcome) -> (&'static str, Option<&'static str>) {
    match outcome {
        TestOutcome::Ok => ("ok", None),
        TestOutcome::BadKey => ("bad_key", Some("api_key")),
        TestOutcome::NoSuchModel => ("no_such_model", Some("model")),
        TestOutcome::NotAnApi => ("not_an_api", Some("base_url")),
        TestOutcome::QuotaOrRate => ("quota_or_rate", None),
        TestOutcome::Unreachable => ("unreachable", Some("base_url")),
        TestOutcome::Refused => ("refused", Some("base_url")),
        TestOutcome::ProviderFailed => ("provider_failed", None),
        TestOutcome::Timeout => ("timeout", None),
    }
}

fn found(test: ProviderTest, texts: Texts) -> Finding {
    let (name, field) = outcome(test.outcome);
    Finding {
        good: test.outcome == TestOutcome::Ok,
        title: texts.t(&format!("test.{name}.title")).into(),
        text: texts.t(&format!("test.{name}.text")).into(),
        said: test.provider_said.filter(|said| !said.trim().is_empty()),
        field,
    }
}
