//! A house for one instance: its folders, its neighbours' fakes, and a browser.

use std::{path::PathBuf, time::Duration};

use app_instance::{Roots, app::Means, run_with, settings::Settings};
use clock::{Clock, ManualClock};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use service::Shutdown;
use settings::Env;
use tempfile::TempDir;
use token::Purpose;

use crate::fakes::{FakeAuthz, FakeProvider, INITIAL_TOKEN, ISSUER, ORIGIN, OWNER, fake_egress};

pub const PROVIDER_KEY: &str = "canary-provider-key";

pub struct House {
    pub folder: TempDir,
    pub authz: FakeAuthz,
    pub provider: FakeProvider,
    pub hand: Option<ManualClock>,
    pub clock: Clock,
    pub roots: Roots,
    running: Option<(Shutdown, tokio::task::JoinHandle<anyhow::Result<()>>)>,
}

impl House {
    /// With the system's clock, nothing running.
    pub async fn build() -> Self {
        Self::build_with(Clock::system(), None).await
    }

    /// With an instance in it whose provider answers as `model` says.
    pub async fn with_model(model: &str) -> Self {
        let mut house = Self::build().await;
        house.configure(2, Some(("http://provider.example/v1", model)));
        house.start().await;
        house
    }

    /// With a clock that the test moves, and an instance in it.
    pub async fn with_manual_clock() -> Self {
        let (clock, hand) = Clock::manual(1_800_000_000_000);
        let mut house = Self::build_with(clock, Some(hand)).await;
        house.start().await;
        house
    }

    async fn build_with(clock: Clock, hand: Option<ManualClock>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["data", "config", "in", "out"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let (authz, provider) = (FakeAuthz::new(clock.clone()), FakeProvider::start().await);
        let house = Self { folder, authz, provider, hand, clock, roots: Roots::Public, running: None };
        house.authz.listen(&house.path("out"));
        fake_egress(&house.path("out"), house.provider.address);
        house.configure(1, None);
        let registration = json!({ "initial_access_token": INITIAL_TOKEN, "expires_at_ms": i64::MAX });
        std::fs::write(house.path("config/registration.json"), registration.to_string()).unwrap();
        house
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `config.json`: generation, and base URL and model of a provider.
    pub fn configure(&self, generation: i64, provider: Option<(&str, &str)>) {
        let mut config = json!({
            "generation": generation, "instance_id": "i-00000000000000000000000000000001", "slug": "alice",
            "owner": OWNER, "origin": ORIGIN, "issuer": ISSUER, "portal": "http://localhost:3081",
        });
        if let Some((base_url, model)) = provider {
            config["provider"] = json!({
                "kind": "openai-compatible", "base_url": base_url, "model": model, "api_key": PROVIDER_KEY,
            });
        }
        std::fs::write(self.path("config/config.json"), config.to_string()).unwrap();
    }

    pub fn env(&self) -> Vec<(String, String)> {
        [("DATA", "data"), ("CONFIG", "config"), ("IN", "in"), ("OUT", "out")]
            .map(|(name, folder)| (format!("INSTANCE_{name}_DIR"), self.path(folder).to_str().unwrap().to_owned()))
            .to_vec()
    }

    /// Starts the instance in this process and waits until it answers.
    pub async fn start(&mut self) {
        let settings = Settings::from_env(&Env::from_pairs(self.env())).unwrap();
        let means = Means { clock: self.clock.clone(), roots: self.roots.clone(), ..Means::default() };
        let stop = Shutdown::new();
        self.running = Some((stop.clone(), tokio::spawn(run_with(settings, means, stop))));
        self.until_ready().await;
    }

    /// Ends it as SIGTERM does.
    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    pub async fn until_ready(&self) {
        eventually(async || self.internal(Method::GET, "/readyz").send().await.is_ok_and(|r| r.status() == 200)).await;
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let client = reqwest::Client::builder()
            .unix_socket(self.path("in/http.sock"))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        client.request(method, format!("http://alice.localhost:8088{path}"))
    }

    /// As the router's public edge passes it on.
    pub fn edge(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path)
    }

    /// As the router's internal listener passes it on.
    pub fn internal(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).header(contracts::INTERNAL, "1")
    }

    /// A login assertion handed in; the answer.
    pub async fn log_in(&self, assertion: &str) -> Response {
        let body = json!({ "assertion": assertion, "edge_token": self.authz.edge_token(), "rd": "/settings" });
        self.internal(Method::POST, "/api/auth/login").json(&body).send().await.unwrap()
    }

    /// What `/auth/start` gives a browser: its bind cookie, and the bind.
    pub async fn begin(&self) -> (String, String) {
        let response = self.edge(Method::GET, "/auth/start?rd=/settings").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let cookie = cookie(&response, "beaver_bind").unwrap();
        let location = url::Url::parse(response.headers()["location"].to_str().unwrap()).unwrap();
        assert_eq!(
            (location.origin().ascii_serialization().as_str(), location.path()),
            ("http://localhost:3081", "/open/alice")
        );
        let bind = location.query_pairs().find(|(name, _)| name == "bind").unwrap().1.into_owned();
        (cookie, bind)
    }

    pub async fn code(&self, bind: &str) -> String {
        let response = self.log_in(&self.authz.assertion(Purpose::Login, "sid-1", Some(bind))).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json::<Value>().await.unwrap()["code"].as_str().unwrap().to_owned()
    }

    pub async fn finish(&self, code: &str, cookies: &str) -> Response {
        let request = self.edge(Method::GET, &format!("/auth/finish?code={code}")).header("cookie", cookies);
        request.send().await.unwrap()
    }

    /// A signed-in browser.
    pub async fn sign_in(&self) -> Browser<'_> {
        let (secret, bind) = self.begin().await;
        let response = self.finish(&self.code(&bind).await, &format!("beaver_bind={secret}")).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        Browser { house: self, session: cookie(&response, "beaver_workspace").unwrap() }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.running {
            stop.cancel();
        }
    }
}

/// A browser with a session.
pub struct Browser<'a> {
    house: &'a House,
    pub session: String,
}

impl<'a> Browser<'a> {
    /// One that signed in before.
    pub fn with(house: &'a House, session: &str) -> Self {
        Self { house, session: session.to_owned() }
    }

    /// As a page of the workspace sends it.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let cookie = format!("beaver_workspace={}", self.session);
        self.house.edge(method, path).header("cookie", cookie).header("origin", ORIGIN)
    }

    pub async fn get(&self, path: &str) -> Value {
        self.request(Method::GET, path).send().await.unwrap().json().await.unwrap()
    }

    pub async fn signed_in(&self) -> bool {
        self.request(Method::GET, "/api/chats").send().await.unwrap().status() == StatusCode::OK
    }

    pub async fn new_chat(&self) -> String {
        let chat: Value = self.request(Method::POST, "/api/chats").send().await.unwrap().json().await.unwrap();
        chat["id"].as_str().unwrap().to_owned()
    }

    pub async fn say(&self, chat: &str, id: &str, content: &str, again: bool) -> Response {
        let body = json!({ "id": id, "content": content, "again": again });
        self.request(Method::POST, &format!("/api/chats/{chat}/messages")).json(&body).send().await.unwrap()
    }

    /// A new `sk-` key, as the settings page shows it.
    pub async fn new_key(&self) -> String {
        let response = self.request(Method::POST, "/settings/keys").form(&[("name", "test")]).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        let page = response.text().await.unwrap();
        let begin = page.find("value=\"sk-").unwrap() + 7;
        page[begin..].split('"').next().unwrap().to_owned()
    }
}

/// The events of a stream, one at a time.
pub struct Events {
    response: Response,
    rest: String,
}

impl Events {
    pub fn of(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        Self { response, rest: String::new() }
    }

    /// The next event's name and data; `None` at the end.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        let wait = async {
            loop {
                if let Some((event, rest)) = self.rest.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.rest = rest;
                    let field = |name| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                    if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                        return Some((name.to_owned(), serde_json::from_str(data).unwrap()));
                    }
                    continue;
                }
                let chunk = self.response.chunk().await.ok().flatten()?;
                self.rest.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("an event in time")
    }

    /// Everything that is left.
    pub async fn all(mut self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// The value that the response sets a cookie to.
pub fn cookie(response: &Response, name: &str) -> Option<String> {
    let lines = response.headers().get_all("set-cookie").iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.filter_map(|line| line.split(';').next()?.split_once('='));
    pairs.filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value.to_owned()).next()
}

/// Waits until the condition holds, at most 20 s.
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), poll).await.expect("it came about in time");
}
