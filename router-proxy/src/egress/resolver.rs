//! Names to addresses, as `/etc/resolv.conf` and `/etc/hosts` say: both families, kept for as long as the answer's own
//! time to live (RFC 2181, section 8). It takes no thread to wait for a slow answer, and who gives up waiting ends it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverOpts},
};
use tokio::time::Instant;

use super::target;

const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How often it is looked whether those have changed: a host moves to another network, WSL2 gets another address.
const CHECK: Duration = Duration::from_secs(5);
/// One question to one server. Asked once more, it must fit into what a dial waits: a server that drops the questions for
/// one family (RFC 8305, section 3.1, knows of them) must not hide what it answered for the other.
const ANSWER: Duration = Duration::from_millis(2000);
/// How often a question is repeated.
const REPEATED: usize = 1;
/// Questions under way on one TCP connection to a server.
const MAX_OVER_TCP: usize = 1024;
/// Answers that are kept, of all instances together.
const CACHED: u64 = 4096;
/// The longest that an answer is believed, whatever it says of itself.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// The same for the answer that there is none: names are often tried before they are set up.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10);

/// Resolves names, and notices when the host's settings for that change.
#[derive(Default)]
pub struct Resolver {
    current: Mutex<Option<Current>>,
}

struct Current {
    resolver: TokioResolver,
    /// When the files were changed last, as they were read.
    read: [Option<SystemTime>; 2],
    checked: Instant,
}

impl Resolver {
    /// The addresses of a name, IPv4 ones first.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when it has none; another one when no server answers, and when the host's settings cannot be
    /// read.
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if target::is_local(name) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        lookup(self.current()?, name).await
    }

    fn current(&self) -> io::Result<TokioResolver> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = current.as_ref().filter(|known| known.checked.elapsed() < CHECK) {
            return Ok(known.resolver.clone());
        }
        let read = changed();
        if let Some(known) = current.as_mut().filter(|known| known.read == read) {
            known.checked = Instant::now();
            return Ok(known.resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
        set(builder.options_mut());
        let resolver = builder.build().map_err(io::Error::other)?;
        *current = Some(Current { resolver: resolver.clone(), read, checked: Instant::now() });
        Ok(resolver)
    }
}

async fn lookup(resolver: TokioResolver, name: &str) -> io::Result<Vec<IpAddr>> {
    let found = resolver.lookup_ip(name).await.map_err(|error| {
        let kind = if error.is_no_records_found() { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
        io::Error::new(kind, error)
    })?;
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    // Where there is no IPv6, that is known at once; a broken IPv6 is not.
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

fn changed() -> [Option<SystemTime>; 2] {
    FILES.map(|file| fs::metadata(file).and_then(|found| found.modified()).ok())
}

fn set(options: &mut ResolverOpts) {
    options.timeout = ANSWER;
    // hickory means by it how often a question is asked again.
    options.attempts = REPEATED;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = CACHED;
    options.positive_max_ttl = Some(MAX_TTL);
    options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
    // Over TCP, where an answer is too long for a datagram, all share a connection.
    options.max_active_requests = MAX_OVER_TCP;
}

#[cfg(test)]
mod tests;
