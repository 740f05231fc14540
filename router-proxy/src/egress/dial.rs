//! Connecting: the name is resolved here, every address is checked, and the connection goes to the very address that was.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::either::Either;

use super::{
    address::{Class, classify},
    chain::{Chain, ChainError},
    network::{Network, Outside},
    own::Own,
    rules::{Reason, file},
    target::{self, Target},
    tenant::Tenant,
};

pub(super) const RESOLVE: Duration = Duration::from_secs(5);
/// All of it: resolving, and each address after the other.
const ALL: Duration = Duration::from_secs(15);
const ONE: Duration = Duration::from_secs(5);
/// Names may have many addresses; the first few must do.
const MAX_ADDRESSES: usize = 8;
/// Names that are resolved at once, for all instances together.
const RESOLVING: usize = 512;

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
    /// The operator's proxy did not lead there.
    #[error("not through the operator's proxy")]
    Chain(#[source] ChainError),
    /// The operator's proxy itself cannot be connected to.
    #[error("the operator's proxy cannot be connected to")]
    NoProxy(#[source] io::Error),
    /// It took too long.
    #[error("it did not answer in time")]
    Timeout,
    /// It might be this host's own.
    #[error("this host's own addresses are not known yet")]
    NotYet,
}

/// A connection, and to which address of its target.
pub struct Reached {
    /// The connection.
    pub stream: Outside,
    /// The address.
    pub address: IpAddr,
}

/// Connects by the rules.
#[derive(Clone)]
pub struct Dialer {
    rules: file::Current,
    network: Arc<dyn Network>,
    own: Arc<Own>,
    chain: Option<Chain>,
    resolving: Arc<Semaphore>,
}

impl Dialer {
    /// A dialer by these rules, on this network, of a host with these addresses.
    pub fn new(rules: file::Current, network: Arc<dyn Network>, own: Arc<Own>) -> Self {
        Self { rules, network, own, chain: None, resolving: Arc::new(Semaphore::new(RESOLVING)) }
    }

    /// The same, with public addresses through this proxy.
    #[must_use]
    pub fn through(self, chain: Option<Chain>) -> Self {
        Self { chain, ..self }
    }

    /// Connects, for this instance, to the first of the target's addresses that is let out and answers.
    ///
    /// # Errors
    /// Each [`DialError`]; refused when no address is let out.
    pub async fn dial(&self, tenant: &Tenant, target: &Target) -> Result<Reached, DialError> {
        let rules = Arc::clone(&self.rules.borrow());
        let deadline = Instant::now() + ALL;
        rules.check_name(target).map_err(DialError::Refused)?;
        let found = match &target.host {
            target::Host::Address(address) => vec![*address],
            target::Host::Name(name) => self.resolve(tenant, name).await?,
        };
        let known = self.own.known().await;
        let mut refused = None;
        let mut failed = None;
        for address in found.into_iter().take(MAX_ADDRESSES) {
            if let Err(reason) = rules.check(target, address, self.own.contains(address)) {
                refused.get_or_insert(reason);
                continue;
            }
            // Where this host's names lead is not known yet, and it may be there.
            if !known && rules.check(target, address, true).is_err() {
                failed = Some(DialError::NotYet);
                continue;
            }
            let until = deadline.min(Instant::now() + ONE);
            match timeout_at(until, self.connect(SocketAddr::new(address, target.port))).await {
                Ok(Ok(stream)) => return Ok(Reached { stream, address }),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some(DialError::Timeout),
            }
        }
        // Where one address was let out, that the others were not is beside the point.
        Err(failed.or(refused.map(DialError::Refused)).unwrap_or_else(no_address))
    }

    async fn connect(&self, to: SocketAddr) -> Result<Outside, DialError> {
        let Some(chain) = self.chain.as_ref().filter(|_| classify(to.ip()) == Class::Public) else {
            let stream = self.network.connect(to).await.map_err(DialError::Unreachable)?;
            ready(&stream);
            return Ok(Either::Left(stream));
        };
        let stream = self.proxy(chain).await.map_err(DialError::NoProxy)?;
        ready(&stream);
        chain.through(stream, to).await.map_err(DialError::Chain)
    }

    /// A connection to the operator's proxy, which no rule is about.
    async fn proxy(&self, chain: &Chain) -> io::Result<TcpStream> {
        let found = match chain.host.parse() {
            Ok(address) => vec![address],
            Err(_) => self.network.resolve(&chain.host).await?,
        };
        let mut failed = io::ErrorKind::NotFound.into();
        for address in found {
            match self.network.connect(SocketAddr::new(address, chain.port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Ends when rules that came later do not let this address out any more.
    pub async fn refused_later(&self, target: &Target, address: IpAddr) -> Reason {
        let mut rules = self.rules.clone();
        loop {
            if rules.changed().await.is_err() {
                // No later rules can come.
                std::future::pending::<()>().await;
            }
            let now = Arc::clone(&rules.borrow_and_update());
            if let Err(reason) = now.check(target, address, self.own.contains(address)) {
                return reason;
            }
        }
    }

    async fn resolve(&self, tenant: &Tenant, name: &str) -> Result<Vec<IpAddr>, DialError> {
        // Its own turn first: whoever asks for slow names waits for them alone.
        let resolving = async {
            // Never closed.
            let _turns = (tenant.resolving.acquire().await, self.resolving.acquire().await);
            self.network.resolve(name).await
        };
        match timeout(RESOLVE, resolving).await {
            Ok(Ok(found)) if found.is_empty() => Err(no_address()),
            Ok(found) => found.map_err(DialError::Unresolvable),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

/// Nothing is held back; and a peer that has vanished without a word is noticed within some minutes, however silent the
/// connection may be.
fn ready(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(60));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(20));
    let _ = sockopt::set_tcp_keepcnt(stream, 6);
}

fn no_address() -> DialError {
    DialError::Unresolvable(io::Error::new(io::ErrorKind::NotFound, "no address"))
}

#[cfg(test)]
mod tests;
