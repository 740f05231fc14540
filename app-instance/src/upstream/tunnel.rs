//! Connections: CONNECT (RFC 9110, section 9.3.6) on `egress.sock`, then TLS for https.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use door::SocketPath;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    rt::{Read, ReadBufCursor, Write},
    upgrade::Upgraded,
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::UnixStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Failure, FailureKind};

/// How long the router may take to reach the provider, and the provider to greet in TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// The longest refusal of the router that is read, in bytes.
const MAX_REFUSAL: usize = 16 * 1024;

/// Whom to believe who they are.
#[derive(Debug, Clone, Default)]
pub enum Roots {
    /// Mozilla's list, as it was at compile time.
    #[default]
    Public,
    /// These alone: for tests.
    These(RootCertStore),
}

/// Makes connections for the HTTP client.
#[derive(Clone)]
pub struct Connector {
    folder: PathBuf,
    tls: TlsConnector,
}

impl Connector {
    pub(super) fn new(folder: &Path, roots: Roots) -> anyhow::Result<Self> {
        let roots = match roots {
            Roots::Public => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
            Roots::These(roots) => roots,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { folder: folder.to_owned(), tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn connect(self, uri: Uri) -> Result<Tunnel, Failure> {
        let unreachable = |what: &str| Failure::new(FailureKind::Unreachable, what);
        let host = uri.host().ok_or_else(|| unreachable("the URL has no host"))?;
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = self.tunnel(&format!("{host}:{port}")).await?;
        if !https {
            return Ok(Tunnel::Plain(stream));
        }
        // An IPv6 address stands in brackets in a URL, and without them in a certificate.
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| Failure::new(FailureKind::Unreachable, error))?;
        let stream = self.tls.connect(name, TokioIo::new(stream)).await;
        let stream = stream.map_err(|error| Failure::new(FailureKind::Unreachable, error))?;
        Ok(Tunnel::Tls(Box::new(TokioIo::new(stream))))
    }

    /// A connection to `authority` that the router has made and allowed.
    async fn tunnel(&self, authority: &str) -> Result<Upgraded, Failure> {
        let away = |error: io::Error| Failure::new(FailureKind::Unreachable, error);
        let cut = |error: hyper::Error| Failure::new(FailureKind::Unreachable, error);
        let socket = SocketPath::new(&self.folder, "egress.sock").map_err(away)?;
        let stream = UnixStream::connect(&socket).await.map_err(away)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
        // Ends with the tunnel: with the connection's other half, when that is dropped.
        tokio::spawn(connection.with_upgrades());
        let request = Request::connect(authority)
            .header(header::HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failure::new(FailureKind::Unreachable, error))?;
        let response = sender.send_request(request).await.map_err(cut)?;
        if response.status().is_success() {
            return hyper::upgrade::on(response).await.map_err(cut);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        let code = serde_json::from_slice::<contracts::ProblemDetails>(&body).map(|p| p.code).unwrap_or_default();
        let kind = match status {
            StatusCode::FORBIDDEN => FailureKind::Refused,
            StatusCode::GATEWAY_TIMEOUT => FailureKind::Timeout,
            _ => FailureKind::Unreachable,
        };
        Err(Failure::new(kind, format!("the router answered {status} {code}")))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Tunnel;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Tunnel, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT, connecting).await {
                Ok(outcome) => outcome,
                Err(elapsed) => Err(Failure::new(FailureKind::Timeout, elapsed)),
            }
        })
    }
}

/// A connection to a provider.
pub enum Tunnel {
    /// As the router gives it.
    Plain(Upgraded),
    /// With TLS inside.
    Tls(Box<TokioIo<TlsStream<TokioIo<Upgraded>>>>),
}

impl Connection for Tunnel {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
