//! Refusals: problem details for HTTP APIs (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of [`ProblemDetails`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A refusal. `code` is stable and is what programs and translations go by; the texts are English, for logs and
/// people who read APIs, and say nothing of what is inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// `about:blank`: the status and the code say it all (RFC 9457, section 4.2.1).
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The status's own phrase.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code, `snake_case`.
    pub code: String,
    /// What is wrong and what to do, one sentence or two.
    pub detail: String,
    /// The member or form field that is wrong, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The request's id: what to quote when asking for help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

fn about_blank() -> String {
    "about:blank".into()
}
