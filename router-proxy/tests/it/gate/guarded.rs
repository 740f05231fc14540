//! A workspace behind the edge's own sign-in, and a browser that goes through it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::Router;
use contracts::routes::{Route, RouteState, SignIn};
use serde_json::{Value, json};
use token::{AssertionClaims, Purpose};

use crate::harness::*;

pub const ALICE: &str = "alice.localhost:8088";
pub const ORIGIN: &str = "http://alice.localhost:8088";

/// A route to a program that the router lets people into.
pub fn guarded(slug: &str, n: u128) -> Route {
    Route { sign_in: SignIn::Edge, ..route(slug, n, RouteState::Running) }
}

/// The first workspace, its program, and how often that was reached.
pub struct Guarded {
    pub house: House,
    reached: Arc<AtomicUsize>,
    _program: Instance,
}

impl Guarded {
    pub async fn new() -> Self {
        Self::with(echo()).await
    }

    pub async fn with(program: Router) -> Self {
        Self::on(program, Vec::new()).await
    }

    pub async fn on(program: Router, env: Vec<(&'static str, String)>) -> Self {
        Self::planned(program, Plan { env, ..Plan::default() }).await
    }

    pub async fn planned(program: Router, plan: Plan) -> Self {
        let routes = vec![guarded("alice", 1), guarded("bob", 2)];
        let house = House::with(Plan { routes, ..plan }).await;
        let reached = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reached);
        let counting = axum::middleware::from_fn(move |request, next: axum::middleware::Next| {
            counted.fetch_add(1, Ordering::SeqCst);
            next.run(request)
        });
        let program = house.instance(1, program.layer(counting));
        Self { house, reached, _program: program }
    }

    /// The same behind another router, which goes on with what this one kept.
    pub async fn restarted(self, routes: Vec<Route>) -> Self {
        let Self { house, reached, _program } = self;
        let key = Arc::clone(&house.authz.key);
        let data = house.end().await;
        let house = House::with(Plan { routes, data: Some(data), key: Some(key), ..Plan::default() }).await;
        Self { house, reached, _program }
    }

    pub fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    pub async fn get(&self, path: &str, lines: &str) -> Answer {
        self.house.get(ALICE, path, lines).await
    }

    pub async fn send(&self, method: &str, path: &str, lines: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {ALICE}\r\nconnection: close\r\n{lines}\r\n");
        Answer::parse(&self.house.raw(request).await)
    }

    /// The claims of a login that is accepted; tests spoil them.
    pub fn claims(&self, bind: &str) -> AssertionClaims {
        self.house.authz.claims(1, ORIGIN, Purpose::Login, Some("sid-1"), Some(bind))
    }

    pub async fn call(&self, n: u128, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        let request = format!(
            "POST /instances/{}{path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            id(n),
            body.len()
        );
        Answer::parse(&raw(self.house.internal, request.as_bytes()).await)
    }

    pub async fn log_in(&self, claims: &AssertionClaims) -> Answer {
        let edge_token = self.house.authz.edge_token(1, ORIGIN);
        let body = json!({ "assertion": self.house.authz.sign(claims), "edge_token": edge_token, "rd": "/here?a=b" });
        self.call(1, "/api/auth/login", &body).await
    }

    pub async fn log_out(&self, sid: Option<&str>) -> Answer {
        let claims = self.house.authz.claims(1, ORIGIN, Purpose::Logout, sid, None);
        self.call(1, "/api/auth/logout", &json!({ "assertion": self.house.authz.sign(&claims) })).await
    }

    /// What a browser gets at the beginning: its bind cookie's line, and the bind.
    pub async fn begin(&self) -> (String, String) {
        let answer = self.get("/auth/start?rd=/here", "").await;
        assert_eq!((answer.status, answer.headers["referrer-policy"].as_str()), (303, "no-referrer"));
        let location = url::Url::parse(&answer.headers["location"]).unwrap();
        let portal = location.origin().ascii_serialization();
        assert_eq!((portal.as_str(), location.path()), ("http://localhost:3081", "/open/alice"));
        let bind = location.query_pairs().find(|(name, _)| name == "bind").unwrap().1.into_owned();
        (format!("cookie: beaver_bind={}\r\n", answer.cookies["beaver_bind"]), bind)
    }

    /// A bind cookie's line and the code that goes with it.
    pub async fn code(&self, sid: &str) -> (String, String) {
        let (own, bind) = self.begin().await;
        let mut claims = self.claims(&bind);
        claims.extra.sid = Some(sid.into());
        let answer = self.log_in(&claims).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        (own, answer.json()["code"].as_str().unwrap().to_owned())
    }

    pub async fn finish(&self, code: &str, lines: &str) -> Answer {
        self.get(&format!("/auth/finish?code={code}"), lines).await
    }

    /// The cookie line of a browser that is signed in.
    pub async fn sign_in(&self, sid: &str) -> String {
        let (own, code) = self.code(sid).await;
        let answer = self.finish(&code, &own).await;
        assert_eq!(answer.status, 303, "{}", answer.body);
        format!("cookie: beaver_workspace={}\r\n", answer.cookies["beaver_workspace"])
    }

    pub async fn is_signed_in(&self, cookie: &str) -> bool {
        match self.get("/", cookie).await.status {
            200 => true,
            401 => false,
            other => panic!("neither in nor out: {other}"),
        }
    }
}
