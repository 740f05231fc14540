//! The settings page: provider, API keys, language. It works without a script.

use std::sync::Arc;

use askama::Template;
use axum::{
    Form,
    extract::{Path, Query, State},
    response::Response,
};
use contracts::provider::{ProviderConfig, ProviderKind, ProviderTest, TestOutcome};
use http::StatusCode;
use locale::Locale;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service::Problem;

use super::{html, texts::Texts};
use crate::{app::App, gateway::keys::KeyRow, guard::see_other, upstream::trial};

#[derive(Template)]
#[template(path = "settings.html")]
struct Page {
    t: Texts,
    saved: Option<&'static str>,
    kinds: Vec<Kind>,
    form: Filled,
    test: Option<Tested>,
    endpoint: String,
    keys: Vec<KeyView>,
    new_key: Option<String>,
}

struct Kind {
    code: &'static str,
    name: String,
    selected: bool,
}

/// The provider's form as it stands; the key is never in it.
#[derive(Default)]
struct Filled {
    kind: Option<ProviderKind>,
    base_url: String,
    model: String,
    has_key: bool,
    /// Whether the key is one that was tried and not saved; then the form says that it means that one.
    tried: bool,
    error: Option<&'static str>,
}

struct Tested {
    good: bool,
    words: &'static str,
    status: Option<u16>,
    said: Option<String>,
}

struct KeyView {
    id: String,
    name: String,
    hint: String,
    created: String,
    created_day: String,
    used: Option<String>,
}

impl From<KeyRow> for KeyView {
    fn from(row: KeyRow) -> Self {
        let created = clock::rfc3339(row.created_at_ms);
        Self {
            id: row.id,
            name: row.name,
            hint: row.hint,
            created_day: created[..10].to_owned(),
            created,
            used: row.last_used_at_ms.map(|ms| format!("{}Z", &clock::rfc3339(ms)[..16])),
        }
    }
}

impl Filled {
    fn of(provider: &ProviderConfig) -> Self {
        Self {
            kind: Some(provider.kind),
            base_url: provider.base_url.clone(),
            model: provider.model.clone(),
            has_key: !provider.api_key.expose_secret().is_empty(),
            tried: false,
            error: None,
        }
    }

    /// What to say of the key, which is not shown.
    fn key_hint(&self) -> &'static str {
        match (self.has_key, self.tried) {
            (false, _) => "settings.key_hint",
            (true, false) => "settings.key_kept",
            (true, true) => "settings.key_tried",
        }
    }
}

#[derive(Deserialize)]
pub struct Saved {
    saved: Option<String>,
}

/// The page.
pub async fn page(
    State(app): State<Arc<App>>,
    locale: Locale,
    Query(Saved { saved }): Query<Saved>,
) -> Result<Response, Problem> {
    let saved = match saved.as_deref() {
        Some("provider") => Some("settings.saved_provider"),
        Some("revoked") => Some("settings.saved_revoked"),
        _ => None,
    };
    // The page speaks of the kept key alone from here on.
    app.provider.set_tried(None);
    let mut page = prepare(&app, locale, None).await?;
    page.saved = saved;
    Ok(html(StatusCode::OK, &page))
}

async fn prepare(app: &App, locale: Locale, form: Option<Filled>) -> Result<Page, Problem> {
    let t = Texts::new(app, locale, "/settings");
    let current = app.provider.current();
    let form = form.or_else(|| current.as_deref().map(Filled::of)).unwrap_or_default();
    let selected = form.kind.unwrap_or(ProviderKind::Openai);
    let kinds = ProviderKind::ALL.into_iter().map(|kind| Kind {
        code: kind.code(),
        name: kind.brand().map_or_else(|| t.get("settings.compatible"), str::to_owned),
        selected: kind == selected,
    });
    let keys = app.keys.list().await.map_err(Problem::unavailable)?;
    Ok(Page {
        kinds: kinds.collect(),
        saved: None,
        form,
        test: None,
        endpoint: format!("{}/v1", app.config.origin),
        keys: keys.into_iter().map(KeyView::from).collect(),
        new_key: None,
        t,
    })
}

#[derive(Deserialize)]
pub struct ProviderForm {
    kind: String,
    #[serde(default)]
    base_url: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    api_key: SecretString,
    #[serde(default)]
    action: String,
    /// Sent by the form that followed a test alone.
    use_tried: Option<String>,
}

/// Saves or tries a provider. An empty key means the one that the form spoke of, tried last or kept, as long as it goes to
/// the same place.
pub async fn provider(
    State(app): State<Arc<App>>,
    locale: Locale,
    Form(form): Form<ProviderForm>,
) -> Result<Response, Problem> {
    let kind = ProviderKind::from_code(&form.kind)
        .ok_or_else(|| Problem::field("kind", "provider_kind_unknown", "There is no such kind of provider."))?;
    let kept = app.provider.current();
    let mut filled = Filled { kind: Some(kind), base_url: form.base_url, model: form.model, ..Filled::default() };
    let candidate =
        ProviderConfig { kind, base_url: filled.base_url.clone(), model: filled.model.clone(), api_key: form.api_key };
    let use_tried = form.use_tried.is_some();
    let tried = app.provider.tried().filter(|_| use_tried);
    // What this form was to save is not there any more: the kept key is not what it meant, nor is no key.
    let lost = use_tried && tried.is_none() && candidate.api_key.expose_secret().trim().is_empty();
    let candidate = with_known_key(candidate, [tried.as_deref(), kept.as_deref()]);
    let candidate = match candidate.checked() {
        Ok(candidate) if !lost => candidate,
        Ok(_) => {
            filled.error = Some("field.provider_key_missing");
            return Ok(html(StatusCode::UNPROCESSABLE_ENTITY, &prepare(&app, locale, Some(filled)).await?));
        }
        Err(error) => {
            filled.tried = tried.is_some();
            filled.error = Some(match error.code() {
                "provider_base_url_missing" => "field.provider_base_url_missing",
                "provider_base_url_invalid" => "field.provider_base_url_invalid",
                "provider_model_missing" => "field.provider_model_missing",
                "provider_model_invalid" => "field.provider_model_invalid",
                "provider_key_missing" => "field.provider_key_missing",
                _ => "field.provider_key_invalid",
            });
            filled.has_key = tried.or(kept).is_some_and(|known| !known.api_key.expose_secret().is_empty());
            return Ok(html(StatusCode::UNPROCESSABLE_ENTITY, &prepare(&app, locale, Some(filled)).await?));
        }
    };
    if form.action == "test" {
        let candidate = Arc::new(candidate);
        let tested = trial::run(&app.upstream, &candidate).await;
        app.provider.set_tried(Some(candidate.clone()));
        let known = kept.is_some_and(|kept| kept.api_key.expose_secret() == candidate.api_key.expose_secret());
        let mut page = prepare(&app, locale, Some(Filled { tried: !known, ..Filled::of(&candidate) })).await?;
        page.test = Some(Tested::from(tested));
        return Ok(html(StatusCode::OK, &page));
    }
    app.provider.set(candidate).await.map_err(Problem::unavailable)?;
    Ok(see_other("/settings?saved=provider"))
}

/// The first of the known keys, when none was typed and it goes where it went before.
fn with_known_key(mut candidate: ProviderConfig, known: [Option<&ProviderConfig>; 2]) -> ProviderConfig {
    let base = candidate.base_url.trim().trim_end_matches('/');
    let base = if base.is_empty() { candidate.kind.default_base_url() } else { base };
    let same_place = |known: &&ProviderConfig| known.kind == candidate.kind && known.base_url == base;
    if candidate.api_key.expose_secret().trim().is_empty()
        && let Some(known) = known.into_iter().flatten().find(same_place)
    {
        candidate.api_key = known.api_key.clone();
    }
    candidate
}

impl From<ProviderTest> for Tested {
    fn from(test: ProviderTest) -> Self {
        let words = match test.outcome {
            TestOutcome::Ok => "test.ok",
            TestOutcome::BadKey => "test.bad_key",
            TestOutcome::NoSuchModel => "test.no_such_model",
            TestOutcome::NotAnApi => "test.not_an_api",
            TestOutcome::QuotaOrRate => "test.quota_or_rate",
            TestOutcome::Unreachable => "test.unreachable",
            TestOutcome::Refused => "test.refused",
            TestOutcome::ProviderFailed => "test.provider_failed",
            TestOutcome::Timeout => "test.timeout",
        };
        Self {
            good: test.outcome == TestOutcome::Ok,
            words,
            status: test.status.filter(|_| test.outcome != TestOutcome::Ok),
            said: test.provider_said,
        }
    }
}

#[derive(Deserialize)]
pub struct KeyForm {
    #[serde(default)]
    name: String,
}

/// Makes a key and shows it, this once.
pub async fn make_key(
    State(app): State<Arc<App>>,
    locale: Locale,
    Form(form): Form<KeyForm>,
) -> Result<Response, Problem> {
    let made = app.keys.create(&form.name).await.map_err(Problem::unavailable)?;
    let mut page = prepare(&app, locale, None).await?;
    let status = match made {
        Some(key) => {
            page.new_key = Some(key.expose_secret().to_owned());
            StatusCode::CREATED
        }
        None => {
            page.saved = Some("settings.too_many_keys");
            StatusCode::CONFLICT
        }
    };
    Ok(html(status, &page))
}

/// Revokes a key.
pub async fn revoke_key(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    // One that is revoked already is what was wanted.
    app.keys.revoke(&id).await.map_err(Problem::unavailable)?;
    Ok(see_other("/settings?saved=revoked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_key_goes_nowhere_new() {
        let provider = |kind, base: &str, key: &str| ProviderConfig {
            kind,
            base_url: base.into(),
            model: "m".into(),
            api_key: key.to_owned().into(),
        };
        let kept = provider(ProviderKind::Openai, "https://api.openai.com/v1", "kept");
        let key = |candidate| with_known_key(candidate, [None, Some(&kept)]).api_key.expose_secret().to_owned();
        assert_eq!(key(provider(ProviderKind::Openai, "https://api.openai.com/v1/", "")), "kept");
        assert_eq!(key(provider(ProviderKind::Openai, "", " ")), "kept");
        assert_eq!(key(provider(ProviderKind::Openai, "", "new")), "new");
        assert_eq!(key(provider(ProviderKind::Openai, "https://evil.example/v1", "")), "");
        assert_eq!(key(provider(ProviderKind::OpenaiCompatible, "https://api.openai.com/v1", "")), "");
    }
}
