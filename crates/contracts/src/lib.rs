//! What the services say to each other: the types of every internal API, of the files an instance is given, and the
//! names both sides must agree on. No service imports another; they meet here.
//!
//! Wire format: JSON with `snake_case` members; times are Unix milliseconds (`*_ms`) unless a standard says seconds;
//! refusals are problem details ([`problem`], RFC 9457).

pub mod activity;
pub mod authz;
pub mod deploy;
pub mod egress;
pub mod ids;
pub mod instance;
pub mod problem;
pub mod provider;
pub mod routes;

pub use ids::{AccountId, InstanceId, NotAPlanName, PlanName, Slug, SlugError};
pub use problem::ProblemDetails;

/// The header that carries one request's id from the edge to the engine.
pub const REQUEST_ID: &str = "x-request-id";

/// Set by the router's internal listener on what it passes to an instance, and removed from everything that comes in
/// through the public edge: an instance answers `/api/auth/*` and the like only when it is there.
pub const INTERNAL: &str = "x-beaver-internal";

/// Tells a program to which the router lets its owner in whose account it is: [`AccountId`]. See [`routes::SignIn::Edge`].
pub const ACCOUNT: &str = "x-beaver-account";

/// Tells it the workspace's name: [`Slug`].
pub const SLUG: &str = "x-beaver-slug";

/// The names under which widespread programs look for who a proxy says is signed in; the value is [`SLUG`]'s.
pub const USER: [&str; 4] = ["x-forwarded-user", "remote-user", "x-remote-user", "x-webauth-user"];

/// The lower-case prefix of every header that only Beaver itself may set; the edge removes all of them.
pub const HEADER_PREFIX: &str = "x-beaver-";
