//! Another instance for somebody whose own is gone for good.

use contracts::deploy::Phase;
use http::StatusCode;
use serde_json::{Value, json};

use super::harness::*;

async fn make(authz: &Authz, person: &Person, slug: &str) -> Reply {
    authz.post("/portal/new-instance", &json!({ "session_token": person.token, "slug": slug })).await
}

#[tokio::test]
async fn whoever_has_none_any_more_gets_another_under_another_name_once() {
    for authz in everywhere().await {
        let (alice, _bob) = (authz.person("alice").await, authz.person("bob").await);
        for phase in [Phase::Ready, Phase::Stopped, Phase::PendingDeletion, Phase::Deleting] {
            authz.deploy.say(phase);
            let reply = make(&authz, &alice, "alice-again").await;
            assert_eq!(reply.problem(), (409, "instance_exists".into()), "{} {phase:?}", authz.name());
        }
        authz.deploy.say(Phase::Deleted);
        for taken in ["alice", "bob"] {
            assert_eq!(make(&authz, &alice, taken).await.field(), (409, "slug_taken".into(), "slug".into()), "{taken}");
        }
        let short = make(&authz, &alice, "-").await;
        assert_eq!(short.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", short.text);
        let both = tokio::join!(make(&authz, &alice, "alice-2"), make(&authz, &alice, "alice-3"));
        let won: Vec<&Reply> = [&both.0, &both.1].into_iter().filter(|reply| reply.status == StatusCode::OK).collect();
        // The one that comes second may find the other's new one, of which deploy-control says that it is gone too.
        assert!(!won.is_empty(), "{}: {} {}", authz.name(), both.0.text, both.1.text);
        let session: Value = authz.session(&alice.token).await.json();
        assert_ne!(session["instance_id"], alice.instance_id.as_str());
        assert_ne!(session["slug"], "alice");
        let taken = authz.deploy.taken();
        let new = taken.last().expect("deploy-control hears of it");
        assert_eq!(
            (new.slug.to_string(), new.instance_id.to_string()),
            (session["slug"].as_str().unwrap().to_owned(), session["instance_id"].as_str().unwrap().to_owned(),)
        );
        // Signing in by the new name works, and by the old one does not.
        assert_eq!(authz.login(session["slug"].as_str().unwrap(), PASSWORD, "192.0.2.1").await.status, StatusCode::OK);
        assert_eq!(authz.login("alice", PASSWORD, "192.0.2.1").await.problem(), (401, "bad_credentials".into()));
        let nobody = authz.post("/portal/new-instance", &json!({ "session_token": "x", "slug": "free" })).await;
        assert_eq!(nobody.problem(), (401, "session_ended".into()));
    }
}
