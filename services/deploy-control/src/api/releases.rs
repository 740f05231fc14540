//! Releases: who runs which, and another try for those that went back from the newest.

use std::collections::BTreeMap;

use axum::extract::State;
use contracts::{
    ProblemDetails,
    deploy::{Desired, Release, ReleaseList, Upgrade},
};
use http::StatusCode;
use service::{Json, Problem};

use super::Api;
use crate::registry::Wish;

/// The releases that instances run, by how many run them.
#[utoipa::path(get, path = "/api/releases",
    responses((status = 200, body = ReleaseList), (status = 503, body = ProblemDetails)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<ReleaseList>, Problem> {
    let mut found = BTreeMap::<_, Release>::new();
    for row in api.registry.all().await?.into_iter().filter(|row| row.desired != Desired::Deleted) {
        let mut of = |release: &String, count: fn(&mut Release) -> &mut u32| {
            let key = (row.plan.clone(), release.clone());
            let entry = found.entry(key).or_insert_with(|| Release {
                plan: row.plan.clone(),
                release: release.clone(),
                instances: 0,
                went_back: 0,
            });
            *count(entry) += 1;
        };
        if let Some(release) = &row.release {
            of(release, |entry| &mut entry.instances);
        }
        if let Some(refused) = &row.refused_release {
            of(refused, |entry| &mut entry.went_back);
        }
    }
    let mut releases: Vec<_> = found.into_values().collect();
    releases.sort_by_key(|release| std::cmp::Reverse(release.instances));
    Ok(Json(ReleaseList { releases }))
}

/// Gives the newest release to every instance, also where it went back from that; as always the first before the others.
/// For the operator.
#[utoipa::path(post, path = "/api/upgrade",
    responses((status = 202, body = Upgrade), (status = 503, body = ProblemDetails)))]
pub(super) async fn upgrade(State(api): State<Api>) -> Result<(StatusCode, Json<Upgrade>), Problem> {
    let mut again = 0;
    for row in api.registry.all().await?.into_iter().filter(|row| row.refused_release.is_some()) {
        match api.registry.operator_wish(row.id, Wish::Upgrade).await {
            Ok(row) => {
                api.hub.publish(&row);
                api.reconciler.wished(&row);
                again += 1;
            }
            // Gone, or on its way.
            Err(crate::registry::Error::NotFound | crate::registry::Error::Deleted) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((StatusCode::ACCEPTED, Json(Upgrade { again })))
}
