//! A browser without JavaScript: cookies, forms, Origin.

use std::collections::BTreeMap;

use axum::{Router, body::Body};
use http::{HeaderMap, Request, StatusCode, header};
use tower::ServiceExt;
use url::form_urlencoded::Serializer;

use crate::{fakes::House, html};

#[derive(Clone)]
pub struct Browser {
    router: Router,
    pub cookies: BTreeMap<String, String>,
    pub language: &'static str,
    /// Sent with every request.
    pub headers: Vec<(&'static str, String)>,
}

/// An answer; every HTML page was checked when it came.
#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub location: Option<String>,
    pub body: String,
}

impl Page {
    /// The value of the form field with this name.
    pub fn value(&self, name: &str) -> Option<String> {
        html::value(&self.body, name)
    }

    /// What a reader sees: no tags, entities as characters.
    pub fn text(&self) -> String {
        html::text(&self.body)
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        assert!(self.text().contains(text), "{} has no “{text}”: {}", self.status, self.text());
    }
}

impl Browser {
    pub fn new(house: &House) -> Self {
        Self {
            router: house.router.clone(),
            cookies: BTreeMap::new(),
            language: "en-GB,en;q=0.8",
            headers: vec![("origin", "http://localhost:3081".into())],
        }
    }

    pub fn chinese(mut self) -> Self {
        self.language = "zh-CN,zh;q=0.9";
        self
    }

    pub async fn raw(&mut self, request: http::request::Builder, body: String) -> http::Response<Body> {
        let mut request = request.header(header::ACCEPT_LANGUAGE, self.language).header(header::HOST, "localhost:3081");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(header::COOKIE, pairs.join("; "));
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        for line in response.headers().get_all(header::SET_COOKIE) {
            let line = line.to_str().unwrap();
            let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
            if line.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.into(), value.into());
            }
        }
        response
    }

    async fn read(&mut self, request: http::request::Builder, body: String) -> Page {
        let response = self.raw(request, body).await;
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
        let page = Page {
            status: parts.status,
            location: parts.headers.get(header::LOCATION).map(|l| l.to_str().unwrap().to_owned()),
            body: String::from_utf8(bytes.to_vec()).unwrap(),
            headers: parts.headers,
        };
        if page.headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"text/html")) {
            html::check(&page.body);
            let chinese = self.cookies.get("beaver_lang").map_or(self.language.starts_with("zh"), |l| l == "zh-CN");
            assert!(page.body.contains(if chinese { "<html lang=\"zh-Hans\">" } else { "<html lang=\"en\">" }));
        }
        page
    }

    pub async fn get(&mut self, path: &str) -> Page {
        self.read(Request::get(path), String::new()).await
    }

    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Page {
        let body = Serializer::new(String::new()).extend_pairs(fields).finish();
        self.read(Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded"), body).await
    }

    /// Sends a form with a file in it.
    pub async fn upload(&mut self, path: &str, content: &str) -> Page {
        let body = format!(
            "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.tar\"\r\n\r\n{content}\r\n--xyz--\r\n"
        );
        self.read(Request::post(path).header(header::CONTENT_TYPE, "multipart/form-data; boundary=xyz"), body).await
    }

    /// Fills the sign-up form in, with the key that it holds.
    pub async fn register(&mut self, slug: &str, email: &str, password: &str) -> Page {
        let key = self.get("/register").await.value("key").unwrap();
        self.post("/register", &[("slug", slug), ("email", email), ("password", password), ("key", &key)]).await
    }

    pub async fn login(&mut self, login: &str, password: &str) -> Page {
        self.post("/login", &[("login", login), ("password", password)]).await
    }

    pub fn session(&self) -> Option<&str> {
        self.cookies.get("beaver_session").map(String::as_str)
    }
}
