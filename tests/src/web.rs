//! A browser without a screen: cookies by host, redirects, forms. For what needs no rendering, and for attacks.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use reqwest::{Method, Url, header};

/// How many redirects are followed.
const HOPS: usize = 12;

/// One person's cookies and language. Every `*.localhost` leads to loopback, as in a browser.
#[derive(Clone)]
pub struct Web {
    http: reqwest::Client,
    language: String,
    cookies: BTreeMap<(String, String), String>,
}

/// A page as it came.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where it came from, after redirects.
    pub url: Url,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: header::HeaderMap,
    /// Its text.
    pub text: String,
}

impl Page {
    /// The page, when it has the status.
    ///
    /// # Errors
    /// With the page's beginning, when it has another.
    pub fn expect(self, status: u16) -> anyhow::Result<Self> {
        let shown: String = self.words().chars().take(400).collect();
        anyhow::ensure!(self.status == status, "{} answered {}, not {status}: {shown}", self.url, self.status);
        Ok(self)
    }

    /// What a person would read of it, roughly: the text of its main part without markup.
    fn words(&self) -> String {
        let main = self.text.split_once("<main").map_or(self.text.as_str(), |(_, main)| main);
        let pieces = main.split('<').filter_map(|tag| tag.split_once('>').map(|(_, text)| text).or(Some(tag)));
        pieces.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
    }

    /// The value of a hidden field. It holds nothing that HTML must escape, or this is no way to read it.
    pub fn hidden(&self, name: &str) -> Option<String> {
        let tag =
            self.text.split('<').find(|tag| tag.starts_with("input ") && tag.contains(&format!("name=\"{name}\"")))?;
        let value = tag.split_once("value=\"")?.1.split_once('"')?.0;
        (!value.contains('&')).then(|| value.to_owned())
    }

    /// Where a redirect leads.
    pub fn location(&self) -> Option<Url> {
        self.url.join(self.headers.get(header::LOCATION)?.to_str().ok()?).ok()
    }
}

impl Web {
    /// Nobody yet, in a language (`Accept-Language`).
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(language: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self { http, language: language.into(), cookies: BTreeMap::new() })
    }

    /// The cookies that a host (without port) set, by name.
    pub fn cookies(&self, host: &str) -> BTreeMap<String, String> {
        self.cookies.iter().filter(|((h, _), _)| h == host).map(|((_, n), v)| (n.clone(), v.clone())).collect()
    }

    /// Sets a cookie, as somebody does who copied it.
    pub fn set_cookie(&mut self, host: &str, name: &str, value: &str) {
        self.cookies.insert((host.into(), name.into()), value.into());
    }

    /// A request with this person's cookies, to be changed further; not followed, and its cookies not kept.
    ///
    /// # Errors
    /// When `url` has no host.
    pub fn request(&self, method: Method, url: &Url) -> anyhow::Result<reqwest::RequestBuilder> {
        let host = url.host_str().context("no host")?.to_owned();
        let authority = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
        let mut address = url.clone();
        if host == "localhost" || host.ends_with(".localhost") {
            address.set_host(Some("127.0.0.1"))?;
        }
        let mut request = self
            .http
            .request(method, address)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "text/html,application/xhtml+xml,*/*;q=0.8")
            .header(header::ACCEPT_LANGUAGE, &self.language);
        let cookies: Vec<_> = self.cookies(&host).into_iter().map(|(n, v)| format!("{n}={v}")).collect();
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies.join("; "));
        }
        Ok(request)
    }

    /// Opens an address and follows its redirects.
    ///
    /// # Errors
    /// When nobody answers, or redirects do not end.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<Page> {
        let url = Url::parse(url)?;
        let first = self.once(self.request(Method::GET, &url)?, &url).await?;
        self.follow(first).await
    }

    /// Opens an address and does not follow.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn peek(&mut self, url: &str) -> anyhow::Result<Page> {
        let url = Url::parse(url)?;
        self.once(self.request(Method::GET, &url)?, &url).await
    }

    /// Sends a form from a page of the same origin, as a browser does, and follows redirects.
    ///
    /// # Errors
    /// When nobody answers, or redirects do not end.
    pub async fn submit(&mut self, url: &str, fields: &[(&str, &str)]) -> anyhow::Result<Page> {
        let url = Url::parse(url)?;
        let first = self.once(self.form(&url, fields)?, &url).await?;
        self.follow(first).await
    }

    /// A form from a page of the same origin, not yet sent.
    ///
    /// # Errors
    /// When `url` has no host.
    pub fn form(&self, url: &Url, fields: &[(&str, &str)]) -> anyhow::Result<reqwest::RequestBuilder> {
        Ok(self.post(url)?.form(fields))
    }

    /// A post from a page of the same origin.
    fn post(&self, url: &Url) -> anyhow::Result<reqwest::RequestBuilder> {
        let origin = url.origin().ascii_serialization();
        let request = self.request(Method::POST, url)?;
        Ok(request.header(header::ORIGIN, origin).header("sec-fetch-site", "same-origin"))
    }

    /// A form with one file in it, not yet sent (RFC 7578).
    ///
    /// # Errors
    /// When `url` has no host.
    pub fn upload(&self, url: &Url, field: &str, file: &[u8]) -> anyhow::Result<reqwest::RequestBuilder> {
        const BOUNDARY: &str = "----------------------------a-form-with-a-file-in-it";
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"a.tar\"\r\n\
             Content-Type: application/x-tar\r\n\r\n"
        );
        let body = [head.as_bytes(), file, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat();
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        Ok(self.post(url)?.header(header::CONTENT_TYPE, kind).body(body))
    }

    /// Sends a prepared request, keeps its cookies and does not follow.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn once(&mut self, request: reqwest::RequestBuilder, url: &Url) -> anyhow::Result<Page> {
        let response =
            request.timeout(Duration::from_secs(60)).send().await.with_context(|| format!("asking {url}"))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        for line in response.headers().get_all(header::SET_COOKIE) {
            let line = line.to_str().context("a cookie that is no text")?;
            let mut parts = line.split(';').map(str::trim);
            let (name, value) = parts.next().and_then(|p| p.split_once('=')).context("a cookie without a name")?;
            let ends = parts.any(|p| p.eq_ignore_ascii_case("max-age=0")) || value.is_empty();
            let key = (host.clone(), name.to_owned());
            if ends {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
        Ok(Page {
            url: url.clone(),
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.with_context(|| format!("reading {url}"))?,
        })
    }

    async fn follow(&mut self, mut page: Page) -> anyhow::Result<Page> {
        for _ in 0..HOPS {
            if !(300..400).contains(&page.status) {
                return Ok(page);
            }
            let to = page.location().with_context(|| format!("{} redirects to nowhere", page.url))?;
            page = self.once(self.request(Method::GET, &to)?, &to).await?;
        }
        anyhow::bail!("redirects do not end: {}", page.url)
    }
}
