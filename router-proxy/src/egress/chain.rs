//! The operator's own proxy, where a host reaches the outside only through one.
//!
//! It is asked (CONNECT) for the address that was checked, not for the name: what it finds for a name might be another.
//! Only public addresses are asked of it; what a rule lets out of the rest is this host's own neighbourhood.

use std::{net::SocketAddr, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio_util::either::Either;
use url::Url;

use super::network::Outside;

/// A proxy that speaks HTTP and takes CONNECT.
#[derive(Clone)]
pub struct Chain {
    /// Its host's name, or its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    authorization: Option<HeaderValue>,
}

/// Why a connection through the proxy did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// It speaks no HTTP, or hung up.
    #[error("the operator's proxy gave no usable answer")]
    Broken(#[source] hyper::Error),
    /// It does not let it out, or cannot reach it.
    #[error("the operator's proxy answered {0}")]
    Refused(StatusCode),
}

impl FromStr for Chain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|_| "not an address")?;
        if url.scheme() != "http" || !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err("not http://[user:password@]host:port");
        }
        let host = url.host_str().ok_or("it has no host")?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or("it has no port")?;
        let authorization = if url.username().is_empty() {
            None
        } else {
            let part = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let pair = format!("{}:{}", part(url.username()), part(url.password().unwrap_or_default()));
            let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
            let mut value = HeaderValue::try_from(value).map_err(|_| "its user cannot be said in a header")?;
            value.set_sensitive(true);
            Some(value)
        };
        Ok(Self { host, port, authorization })
    }
}

impl Chain {
    /// A connection to `to` through the proxy, to which `stream` leads.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn through(&self, stream: TcpStream, to: SocketAddr) -> Result<Outside, ChainError> {
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(ChainError::Broken)?;
        // Ends with the tunnel, or with this future.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::connect(to.to_string()).header(header::HOST, to.to_string());
        if let Some(authorization) = &self.authorization {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).expect("an address is an authority");
        let response = sender.send_request(request).await.map_err(ChainError::Broken)?;
        if !response.status().is_success() {
            return Err(ChainError::Refused(response.status()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(ChainError::Broken)?;
        Ok(Either::Right(TokioIo::new(upgraded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_proxies() {
        let chain: Chain = "http://us%40er:p%3Aw@proxy.corp:3128".parse().unwrap();
        assert_eq!((chain.host.as_str(), chain.port), ("proxy.corp", 3128));
        assert_eq!(chain.authorization.unwrap(), format!("Basic {}", BASE64_STANDARD.encode("us@er:p:w")).as_str());
        let plain: Chain = "http://[fd00::1]/".parse().unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.authorization.is_none()), ("fd00::1", 80, true));
        for bad in ["proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://proxy/x", "http://proxy?x", ""] {
            assert!(bad.parse::<Chain>().is_err(), "{bad}");
        }
    }
}
