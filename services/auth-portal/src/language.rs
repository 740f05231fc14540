//! The switch between languages.

use axum::{Form, extract::State, response::Response};
use http::{HeaderValue, header};
use locale::Locale;
use serde::Deserialize;
use service::Problem;

use crate::{Portal, next::is_local_path, session::see_other};

/// The form in every page's foot.
#[derive(Deserialize)]
pub struct Choice {
    lang: String,
    #[serde(default)]
    back: String,
}

/// `POST /language`: remembers the choice and goes back.
pub async fn choose(State(portal): State<Portal>, Form(choice): Form<Choice>) -> Result<Response, Problem> {
    let locale = Locale::from_code(&choice.lang).ok_or_else(|| Problem::bad_request("There is no such language."))?;
    let mut response = see_other(if is_local_path(&choice.back) { &choice.back } else { "/" });
    if let Ok(cookie) = HeaderValue::from_str(&locale.set_cookie(portal.public().portal_secure())) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}
