//! What every page has: its language, the person's name, the way out; and how pages are made.

use std::borrow::Cow;

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use contracts::authz::{Role, Session};
use http::{HeaderValue, StatusCode, header};
use locale::Locale;
use service::{CallError, Problem};

use crate::{assets, texts::Texts};

/// The frame around a page, and its texts.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Its texts.
    pub texts: Texts,
    /// Where to come back to after the language was changed.
    pub here: String,
    /// Who is signed in: their e-mail address.
    pub who: Option<String>,
    /// Whether that is an operator.
    pub operator: bool,
    /// After how many seconds a browser without JavaScript asks again.
    pub refresh_s: Option<u32>,
}

impl Layout {
    /// A frame for one request.
    pub fn new(locale: Locale, here: String, session: Option<&Session>) -> Self {
        Self {
            texts: Texts(locale),
            here,
            who: session.map(|session| session.email.clone()),
            operator: session.is_some_and(|session| session.role == Role::Operator),
            refresh_s: None,
        }
    }

    /// The same, asking again by itself while `waiting`.
    #[must_use]
    pub fn refreshing(mut self, waiting: bool) -> Self {
        self.refresh_s = waiting.then_some(3);
        self
    }

    /// The text under `key`.
    pub fn t(&self, key: &str) -> Cow<'static, str> {
        self.texts.t(key)
    }

    /// The text under `key`, with a value in it.
    pub fn with(&self, key: &str, name: &str, value: &str) -> String {
        self.texts.with(key, name, value)
    }

    /// HTML's `lang`.
    pub fn lang(&self) -> &'static str {
        self.texts.0.html_lang()
    }

    /// The languages to change to.
    pub fn others(&self) -> Vec<Locale> {
        Locale::ALL.into_iter().filter(|locale| *locale != self.texts.0).collect()
    }

    /// The style sheet.
    pub fn style(&self) -> String {
        assets::style()
    }

    /// The script.
    pub fn script(&self) -> String {
        assets::script()
    }

    /// The icon.
    pub fn icon(&self) -> String {
        assets::icon()
    }
}

/// A page as a response.
///
/// # Errors
/// 500 when the template cannot be rendered.
pub fn page(status: StatusCode, template: impl Template) -> Result<Response, Problem> {
    let mut response = (status, Html(template.render().map_err(Problem::internal)?)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        // As a problem of that status says too.
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    Ok(response)
}

/// What is wrong with a form: at fields, or as a whole.
#[derive(Debug, Clone, Default)]
pub struct Faults(Vec<(String, String)>);

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// One fault of one field; of the form as a whole when `field` is empty.
    pub fn one(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![(field.into(), text.into())])
    }

    /// Adds a fault of a field.
    pub fn add(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.0.push((field.into(), text.into()));
    }

    /// What another service refused, in the reader's words; `fields` are those the form has.
    pub fn refused(error: &CallError, texts: Texts, fields: &[&str]) -> Self {
        let CallError::Refused { problem, .. } = error else { return Self::one("", texts.error("unavailable")) };
        let field = problem.field.as_deref().filter(|field| fields.contains(field)).unwrap_or_default();
        Self::one(field, texts.error(&problem.code))
    }

    /// The fault of the field.
    pub fn of(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == field).map(|(_, text)| text.as_str())
    }

    /// Whether the field is the first with a fault: the cursor goes there.
    pub fn is_first(&self, field: &str) -> bool {
        self.0.iter().find(|(name, _)| !name.is_empty()).is_some_and(|(name, _)| name == field)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
