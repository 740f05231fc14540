//! The network as the proxy uses it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::{net::TcpStream, time::Instant};
use tokio_util::either::Either;

use super::{own, resolver::Resolver};

/// How long the addresses of the interfaces are taken for known.
const INTERFACES: Duration = Duration::from_secs(30);

/// A connection to the outside: straight, or through the operator's proxy.
pub type Outside = Either<TcpStream, TokioIo<Upgraded>>;

/// The network as the proxy uses it; a test has its own.
pub trait Network: Send + Sync {
    /// The addresses of a name; [`io::ErrorKind::NotFound`] when the answer is that it has none. Whoever drops the future ends
    /// the work.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    /// A connection to exactly this address.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// Whether an address is one of this machine's interfaces.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// The network of this host.
#[derive(Default)]
pub struct Host {
    resolver: Resolver,
    interfaces: Mutex<Option<(Instant, Vec<IpNet>)>>,
}

impl Network for Host {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(self.resolver.resolve(name))
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let is = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        let mut known = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(since, _)| since.elapsed() > INTERFACES) {
            match own::of_interfaces() {
                Ok(nets) => *known = Some((Instant::now(), nets)),
                Err(error) => {
                    tracing::warn!(%error, "this host's own addresses cannot be listed");
                    // What is not known is not let out.
                    return known.as_ref().is_none_or(|(_, nets)| is(nets));
                }
            }
        }
        known.as_ref().is_some_and(|(_, nets)| is(nets))
    }
}
