//! Connecting: the name is resolved here, every address is checked, and the connection goes to the very address that was.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{
    rules::{Reason, Rules},
    target::{self, Target},
};

const RESOLVE: Duration = Duration::from_secs(5);
/// All of it: resolving, and each address after the other.
const ALL: Duration = Duration::from_secs(15);
const ONE: Duration = Duration::from_secs(5);
/// Names may have many addresses; the first few must do.
const MAX_ADDRESSES: usize = 8;
/// Names that are resolved at once: the system's resolver takes a thread for each.
const RESOLVING: usize = 64;
/// How long the host's own addresses are taken for known.
const OWN: Duration = Duration::from_secs(30);

/// The network as the proxy uses it; a test has its own.
pub trait Network: Send + Sync {
    /// The addresses of a name.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    /// A connection to exactly this address.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// Whether an address is this host's own.
    fn is_own(&self, address: IpAddr) -> bool;
}

/// The network of this host.
#[derive(Default)]
pub struct Host {
    own: Mutex<Option<(Instant, HashSet<IpAddr>)>>,
}

impl Network for Host {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }

    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.as_ref().is_none_or(|(since, _)| since.elapsed() > OWN) {
            match if_addrs::get_if_addrs() {
                Ok(interfaces) => *own = Some((Instant::now(), interfaces.iter().map(|i| i.ip()).collect())),
                Err(error) => {
                    tracing::warn!(%error, "this host's own addresses cannot be listed");
                    // What is not known is not let out.
                    return own.as_ref().is_none_or(|(_, addresses)| addresses.contains(&address));
                }
            }
        }
        own.as_ref().is_some_and(|(_, addresses)| addresses.contains(&address))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The rules do not let it out.
    #[error("refused")]
    Refused(Reason),
    /// The name has no address.
    #[error("the name cannot be resolved")]
    Unresolvable(#[source] io::Error),
    /// Nothing there takes the connection.
    #[error("it cannot be connected to")]
    Unreachable(#[source] io::Error),
    /// It took too long.
    #[error("it did not answer in time")]
    Timeout,
}

/// Connects by the rules.
#[derive(Clone)]
pub struct Dialer {
    rules: Arc<Rules>,
    network: Arc<dyn Network>,
    resolving: Arc<Semaphore>,
}

impl Dialer {
    /// A dialer by these rules, on this network.
    pub fn new(rules: Rules, network: Arc<dyn Network>) -> Self {
        Self { rules: Arc::new(rules), network, resolving: Arc::new(Semaphore::new(RESOLVING)) }
    }

    /// Connects to the first of the target's addresses that is let out and answers.
    ///
    /// # Errors
    /// Each [`DialError`]; refused when no address is let out.
    pub async fn dial(&self, target: &Target) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + ALL;
        self.rules.check_name(target).map_err(DialError::Refused)?;
        let found = match &target.host {
            target::Host::Address(address) => vec![*address],
            target::Host::Name(name) => self.resolve(name).await?,
        };
        let mut refused = None;
        let mut failed = None;
        for address in found.into_iter().take(MAX_ADDRESSES) {
            if let Err(reason) = self.rules.check(target, address, self.network.is_own(address)) {
                refused.get_or_insert(reason);
                continue;
            }
            let until = deadline.min(Instant::now() + ONE);
            match timeout_at(until, self.network.connect(SocketAddr::new(address, target.port))).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = Some(DialError::Unreachable(error)),
                Err(_) => failed = Some(DialError::Timeout),
            }
        }
        // Where one address was let out, that the others were not is beside the point.
        Err(failed.or(refused.map(DialError::Refused)).unwrap_or_else(no_address))
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let resolving = async {
            // Never closed.
            let _turn = self.resolving.acquire().await;
            self.network.resolve(name).await
        };
        match timeout(RESOLVE, resolving).await {
            Ok(Ok(found)) if found.is_empty() => Err(no_address()),
            Ok(found) => found.map_err(DialError::Unresolvable),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

fn no_address() -> DialError {
    DialError::Unresolvable(io::Error::new(io::ErrorKind::NotFound, "no address"))
}
