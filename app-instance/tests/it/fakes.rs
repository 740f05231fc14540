//! Stand-ins for what an instance talks to. They are fakes: nothing of authz, the router or a provider is in them.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Form, Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clock::{Clock, Entropy};
use serde_json::{Value, json};
use token::{Assertion, Claims, ClientAssertionClaims, Edge, Expected, Jwk, KeySet, Kind, Purpose, SigningKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{Semaphore, mpsc},
};

pub const ISSUER: &str = "http://beaver-authz-service:19090";
pub const ORIGIN: &str = "http://alice.localhost:8088";
pub const OWNER: &str = "a-00000000000000000000000000000002";
pub const INITIAL_TOKEN: &str = "canary-initial-access-token";

/// An issuer behind `identity.sock`.
#[derive(Clone)]
pub struct FakeAuthz(Arc<Authz>);

struct Authz {
    key: SigningKey,
    clock: Clock,
    entropy: Entropy,
    state: Mutex<AuthzState>,
}

#[derive(Default)]
struct AuthzState {
    /// The one-time token is spent.
    registered: Option<Jwk>,
    /// The token that may be used once.
    token: Option<String>,
    registrations: usize,
    token_jtis: HashSet<String>,
    tokens: usize,
}

impl FakeAuthz {
    pub fn new(clock: Clock) -> Self {
        let entropy = Entropy::system();
        let key = SigningKey::generate(&entropy).unwrap();
        Self(Arc::new(Authz { key, clock, entropy, state: Mutex::default() }))
    }

    pub fn listen(&self, folder: &Path) {
        let listener = UnixListener::bind(folder.join("identity.sock")).unwrap();
        let routes = Router::new()
            .route("/.well-known/jwks.json", get(async |State(me): State<Self>| Json(KeySet::new([me.0.key.public()]))))
            .route("/oauth/register", post(Self::register))
            .route("/oauth/token", post(Self::token))
            .with_state(self.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
    }

    /// Takes the client away, and gives another one-time token.
    pub fn revoke(&self, token: &str) {
        let mut state = self.0.state.lock().unwrap();
        (state.registered, state.token) = (None, Some(token.into()));
    }

    pub fn registrations(&self) -> usize {
        self.0.state.lock().unwrap().registrations
    }

    async fn register(State(me): State<Self>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
        let mut state = me.0.state.lock().unwrap();
        let shown = headers.get("authorization").and_then(|v| v.to_str().ok());
        let token = state.token.clone().unwrap_or_else(|| INITIAL_TOKEN.into());
        if shown != Some(&format!("Bearer {token}")) || state.registered.is_some() {
            return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "invalid_token" }))).into_response();
        }
        assert_eq!(body["redirect_uris"], json!([format!("{ORIGIN}/auth/callback")]));
        assert_eq!(body["token_endpoint_auth_method"], "private_key_jwt");
        assert!(body["jwks"]["keys"][0].get("d").is_none(), "the private key stays where it is");
        state.registered = Some(serde_json::from_value(body["jwks"]["keys"][0].clone()).unwrap());
        state.registrations += 1;
        (StatusCode::CREATED, Json(json!({ "client_id": "client-1", "client_id_issued_at": 1 }))).into_response()
    }

    async fn token(State(me): State<Self>, Form(form): Form<HashMap<String, String>>) -> Response {
        let mut state = me.0.state.lock().unwrap();
        let keys = KeySet::new(state.registered.clone());
        let expected = Expected { issuer: "client-1", audience: ISSUER, now_s: me.0.clock.now_s() };
        let claims: Result<ClientAssertionClaims, _> =
            token::verify(Kind::ClientAssertion, &form["client_assertion"], &expected, &keys);
        let good = form["grant_type"] == "client_credentials"
            && form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            && claims.is_ok_and(|c| c.sub == "client-1" && state.token_jtis.insert(c.jti));
        if !good {
            return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "invalid_client" }))).into_response();
        }
        state.tokens += 1;
        let token = format!("token-{}-for-{}", state.tokens, form["resource"]);
        Json(json!({ "access_token": token, "token_type": "Bearer", "expires_in": 300 })).into_response()
    }

    /// Claims of an assertion that the instance accepts; tests spoil them.
    pub fn claims(&self, purpose: Purpose, sid: &str, bind: Option<&str>) -> Claims<Assertion> {
        let now_s = self.0.clock.now_s();
        Claims {
            iss: ISSUER.into(),
            sub: OWNER.into(),
            aud: ORIGIN.into(),
            iat: now_s,
            exp: now_s + 60,
            jti: self.0.entropy.token(),
            extra: Assertion {
                sid: Some(sid.into()),
                purpose,
                bind: bind.map(str::to_owned),
                at_ms: Some(self.0.clock.now_ms()),
            },
        }
    }

    pub fn sign(&self, claims: &Claims<Assertion>) -> String {
        self.0.key.sign(Kind::Assertion, claims).unwrap()
    }

    pub fn assertion(&self, purpose: Purpose, sid: &str, bind: Option<&str>) -> String {
        self.sign(&self.claims(purpose, sid, bind))
    }

    pub fn edge_token(&self) -> String {
        let now_s = self.0.clock.now_s();
        let claims = Claims {
            iss: ISSUER.into(),
            sub: OWNER.into(),
            aud: ORIGIN.into(),
            iat: now_s,
            exp: now_s + 3600,
            jti: self.0.entropy.token(),
            extra: Edge { sid: "sid-1".into() },
        };
        self.0.key.sign(Kind::Edge, &claims).unwrap()
    }
}

/// A router's egress door: `provider.example` leads to `provider`, `refused.example` is refused, all else is unreachable.
pub fn fake_egress(folder: &Path, provider: std::net::SocketAddr) {
    let listener = UnixListener::bind(folder.join("egress.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(inner.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                let refuse = |status: &str, code: &str| {
                    let (number, title) = status.split_once(' ').unwrap();
                    let body = json!({ "type": "about:blank", "title": title, "status": number.parse::<u16>().unwrap(),
                        "code": code, "detail": "a fake refusal" })
                    .to_string();
                    format!(
                        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    )
                };
                if target.starts_with("provider.example:") {
                    let mut outer = TcpStream::connect(provider).await?;
                    inner.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                    tokio::io::copy_bidirectional(&mut inner, &mut outer).await?;
                } else if target.starts_with("refused.example:") {
                    inner.write_all(refuse("403 Forbidden", "egress_refused").as_bytes()).await?;
                } else {
                    inner.write_all(refuse("502 Bad Gateway", "egress_unreachable").as_bytes()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
}

/// What the fake provider was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Sent {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A provider on loopback that does what the model's name says.
#[derive(Clone)]
pub struct FakeProvider {
    pub sent: Arc<Mutex<Vec<Sent>>>,
    /// One permit lets one held piece go.
    pub gate: Arc<Semaphore>,
    /// How many answers were dropped before they were over.
    pub left: Arc<Semaphore>,
    pub address: std::net::SocketAddr,
}

/// A body with fields and white space that no library would write.
pub const ODD_ANSWER: &str = "{ \"id\":\"x\",\"choices\" : [{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hi\"},\"odd\":1e2}],\r\n\"unknown\":{\"a\":[1,2 ,3]} }";
/// A stream with comments, CRLF and unknown fields.
pub const ODD_STREAM: &[&str] = &[
    ": comment\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"pi\"}}],\"odd\" : 1}\r\n\r\n",
    "data: {\"choices\":[{\"delta\":{\"content\":\"ece\"},\"finish_reason\":\"stop\"}]}\r\n\r\nevent: odd\r\ndata: {\"choices\":[]}\r\n\r\n",
    "data: [DONE]\r\n\r\n",
];

fn piece(text: &str) -> Bytes {
    format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "content": text } }] })).into()
}

impl FakeProvider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let me = Self {
            sent: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            left: Arc::new(Semaphore::new(0)),
            address: listener.local_addr().unwrap(),
        };
        let routes = Router::new().fallback(Self::answer).with_state(me.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
        me
    }

    pub fn last(&self) -> Sent {
        self.sent.lock().unwrap().last().cloned().expect("something was sent")
    }

    async fn answer(State(me): State<Self>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        let path = parts.uri.path_and_query().unwrap().to_string();
        me.sent.lock().unwrap().push(Sent { path: path.clone(), headers: parts.headers, body: body.clone() });
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let error = |status: u16, text: &str| {
            let body = json!({ "error": { "message": text, "type": "fake" } });
            (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
        };
        match json["model"].as_str().unwrap_or_default() {
            _ if path.starts_with("/v1/models") => {
                ([("content-type", "application/json"), ("x-upstream", "1"), ("set-cookie", "a=b")], ODD_ANSWER)
                    .into_response()
            }
            "bad-key" => error(401, "Incorrect API key provided: canary-provider-key"),
            "no-such" => error(404, "The model `no-such` does not exist"),
            "no-credit" => error(429, "You exceeded your current quota"),
            "broken" => error(500, "boom"),
            "html" => ([("content-type", "text/html")], "<html>").into_response(),
            "redirect" => (StatusCode::FOUND, [("location", "http://provider.example/elsewhere")]).into_response(),
            "newer" if json.get("max_tokens").is_some() => error(400, "use max_completion_tokens"),
            model if model == "no-stream" || json["stream"] != true => {
                ([("content-type", "application/json")], ODD_ANSWER).into_response()
            }
            "odd" => me.stream(async |to| {
                for part in ODD_STREAM {
                    if to.send(Ok(Bytes::from_static(part.as_bytes()))).await.is_err() {
                        return;
                    }
                }
            }),
            "cut" => me.stream(async |to| {
                let _ = to.send(Ok(piece("half"))).await;
                let _ = to.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
            }),
            "silent-end" => me.stream(async |to| {
                let _ = to.send(Ok(piece("half"))).await;
            }),
            // The end of the answer, but not of the stream.
            "whole-and-open" => me.stream(async |to| {
                let _ = to.send(Ok([piece("whole"), Bytes::from_static(b"data: [DONE]\n\n")].concat().into())).await;
                to.closed().await;
            }),
            "whole-and-cut" => me.stream(async |to| {
                let _ = to.send(Ok(piece("whole"))).await;
                let end = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
                let _ = to.send(Ok(end)).await;
                let _ = to.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
            }),
            model @ ("half-and-error" | "half-and-noise") => {
                let behind = if model == "half-and-error" { "{\"error\":{\"message\":\"boom\"}}" } else { "noise" };
                let both = [piece("half"), format!("data: {behind}\n\n").into()].concat();
                me.stream(async move |to| {
                    let _ = to.send(Ok(both.into())).await;
                })
            }
            // Pieces one by one, each let go by the test.
            _ => {
                let (gate, left) = (me.gate.clone(), me.left.clone());
                me.stream(async move |to| {
                    for text in ["one", " <b>two</b>", " three"] {
                        tokio::select! {
                            permit = gate.acquire() => permit.unwrap().forget(),
                            () = to.closed() => { left.add_permits(1); return; }
                        }
                        if to.send(Ok(piece(text))).await.is_err() {
                            left.add_permits(1);
                            return;
                        }
                    }
                    let _ = to.send(Ok(Bytes::from_static(b"data: [DONE]\n\n"))).await;
                })
            }
        }
    }

    fn stream<F, Fut>(&self, write: F) -> Response
    where
        F: FnOnce(mpsc::Sender<std::io::Result<Bytes>>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (to, from) = mpsc::channel(1);
        tokio::spawn(write(to));
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(from));
        ([("content-type", "text/event-stream"), ("x-upstream", "1")], body).into_response()
    }
}
