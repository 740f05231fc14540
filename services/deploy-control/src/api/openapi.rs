//! The API's description (OpenAPI 3.1).

use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

/// The document behind `/openapi.json`.
pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(title = "deploy-control", description = "Instances: wishes in, progress and routes out."),
    paths(
        super::instances::reserve,
        super::instances::register,
        super::instances::resolve,
        super::instances::configure_provider,
        super::instances::stop,
        super::instances::start,
        super::instances::restart,
        super::instances::retry,
        super::instances::wake,
        super::instances::change_plan,
        super::instances::discard,
        super::instances::delete,
        super::instances::undelete,
        super::releases::list,
        super::releases::upgrade,
        super::archives::export,
        super::archives::restore,
        super::instances::list,
        super::instances::events,
        super::stream::stream,
        super::routes::feed,
        super::egress::refusals,
    ),
    components(schemas(
        contracts::ProblemDetails,
        contracts::deploy::InstanceUpdate,
        contracts::routes::RouteMessage
    )),
    security(("service_token" = [])),
    modifiers(&ServiceToken),
)]
struct Document;

struct ServiceToken;

impl Modify for ServiceToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("service_token", scheme);
    }
}
