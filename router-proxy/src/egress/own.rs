//! The host's own addresses: those of its interfaces, those the operator names, and those its public names lead to.
//!
//! In a container the host's interfaces cannot be seen, and behind a NAT the public address is on none of them. What the
//! portal's name and the base domain lead to is where this very server is reached, so no instance needs to go there.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use ipnet::{IpNet, Ipv6Net};
use service::Shutdown;
use settings::PublicAddress;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    address::{Class, classify},
    network::Network,
    target,
};

/// How often the names are resolved.
const AGAIN: Duration = Duration::from_secs(300);
/// How soon, after one of them could not be.
const RETRY: Duration = Duration::from_secs(60);
/// How soon, as long as one of them was never answered.
const SOON: Duration = Duration::from_secs(2);
/// How long an address counts after a name led to it last: names may lead to a few in turn.
const KEPT: Duration = Duration::from_secs(3600);
/// How many addresses of one name are kept.
const MAX_FOUND: usize = 64;
/// How long a name is resolved, and how long a connection waits for that.
const FIRST: Duration = Duration::from_secs(5);
/// How long after the start nothing goes out that might lead here. A name that is never answered, because its zone is broken
/// or not for this resolver, would otherwise keep everybody in for good.
const GRACE: Duration = Duration::from_secs(60);
/// A label under the base domain that is nobody's slug: it leads to where all of them lead.
const ANY_LABEL: &str = "egress";
/// The prefix of an IPv6 network that one link has (RFC 7421); the host takes addresses in it as it likes.
const LINK_PREFIX: u8 = 64;

/// The host's own addresses.
pub struct Own {
    given: Vec<IpNet>,
    names: Vec<String>,
    network: Arc<dyn Network>,
    /// Where each of the names leads.
    led: Mutex<Vec<Led>>,
    /// Whether each of them was answered.
    known: watch::Sender<bool>,
    begun: Instant,
}

/// Where a name leads.
#[derive(Default)]
struct Led {
    /// Whether it was ever answered, be it by "nowhere".
    answered: bool,
    to: HashMap<IpAddr, Instant>,
}

impl Led {
    /// Only an answer takes an address away, and only one that the name has not led to for long.
    fn answered(&mut self, addresses: &[IpAddr]) {
        self.answered = true;
        self.to.retain(|_, since| since.elapsed() < KEPT);
        for address in addresses.iter().map(IpAddr::to_canonical) {
            if self.to.contains_key(&address) || self.to.len() < MAX_FOUND {
                self.to.insert(address, Instant::now());
            }
        }
    }
}

impl Own {
    /// The `given` ones, those of the interfaces that `network` sees, and those that `names` lead to, as soon as
    /// [`Own::keep`] has looked.
    pub fn new(given: Vec<IpNet>, names: Vec<String>, network: Arc<dyn Network>) -> Self {
        let known = watch::Sender::new(names.is_empty());
        let led = names.iter().map(|_| Led::default()).collect();
        Self { given, names, network, led: Mutex::new(led), known, begun: Instant::now() }
    }

    /// Whether an address is this host's own, as far as is known.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.given.iter().any(|net| net.contains(&address))
            || self.network.is_own(address)
            || self.led().iter().any(|led| led.to.contains_key(&address))
    }

    /// Waits, for a few seconds at most, until it is known where the names lead; whether it is, or will not be.
    pub async fn known(&self) -> bool {
        let mut known = self.known.subscribe();
        let waiting = async { known.wait_for(|known| *known).await.is_ok() };
        // After the grace it is what it is.
        let left = GRACE.saturating_sub(self.begun.elapsed());
        timeout(FIRST.min(left), waiting).await.unwrap_or(self.begun.elapsed() >= GRACE)
    }

    /// Resolves the names now and again, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: Shutdown) {
        let mut warned = false;
        loop {
            let pause = tokio::select! {
                pause = self.look() => pause,
                () = stop.cancelled() => return,
            };
            let in_the_dark = !*self.known.borrow() && self.begun.elapsed() >= GRACE;
            if in_the_dark && !std::mem::replace(&mut warned, true) {
                tracing::warn!(
                    names = self.names.join(" "),
                    "a name of this server is not answered: instances may reach the address behind it; \
                     say which it is with BEAVER_HOST_ADDRESSES"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Resolves the names; how long until that is worth doing again. A name that leads nowhere, as one may that is not set
    /// up yet, harms nothing.
    async fn look(&self) -> Duration {
        let looking = self.names.iter().map(|name| timeout(FIRST, self.network.resolve(name)));
        let answers = join_all(looking).await;
        let mut led = self.led();
        let mut failed = false;
        for ((name, led), answer) in self.names.iter().zip(led.iter_mut()).zip(answers) {
            match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(addresses) => led.answered(&addresses),
                Err(error) => {
                    failed = true;
                    tracing::debug!(name, %error, "a name of this server does not resolve");
                    if error.kind() == io::ErrorKind::NotFound {
                        led.answered(&[]);
                    }
                }
            }
        }
        let known = led.iter().all(|led| led.answered);
        if known {
            self.known.send_replace(true);
        }
        match (failed, known) {
            (false, _) => AGAIN,
            (true, false) if self.begun.elapsed() < GRACE => SOON,
            (true, _) => RETRY,
        }
    }

    fn led(&self) -> MutexGuard<'_, Vec<Led>> {
        // Nothing panics under the lock.
        self.led.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names, and the addresses written as such, by which people reach this server.
pub fn of_public(public: &PublicAddress, base_domains: &[String]) -> (Vec<String>, Vec<IpNet>) {
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    let portal = url::Url::parse(&public.portal_origin()).ok().and_then(|url| url.host().map(|h| h.to_owned()));
    match portal {
        Some(url::Host::Domain(name)) => names.push(name),
        Some(url::Host::Ipv4(v4)) => addresses.push(IpNet::from(IpAddr::from(v4))),
        Some(url::Host::Ipv6(v6)) => addresses.push(IpNet::from(IpAddr::from(v6))),
        None => {}
    }
    for domain in base_domains {
        // Often only the names below it are set up.
        names.extend([domain.clone(), format!("{ANY_LABEL}.{domain}")]);
    }
    // On this host by definition, and refused as loopback.
    names.retain(|name| !target::is_local(name));
    names.sort();
    names.dedup();
    (names, addresses)
}

/// What is a host's own by this address and prefix length: with IPv6 the whole link, in which a host changes its address
/// as it likes and which holds its neighbours.
fn network(address: IpAddr, prefix_len: u8) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::from(address),
        IpAddr::V6(v6) => {
            let prefix = prefix_len.clamp(LINK_PREFIX, 128);
            Ipv6Net::new(v6, prefix).map_or_else(|_| IpNet::from(address), |net| IpNet::V6(net.trunc()))
        }
    }
}

/// This host's networks of its own, loopback left out.
///
/// # Errors
/// When the operating system does not list the interfaces.
pub fn of_interfaces() -> io::Result<Vec<IpNet>> {
    let mut nets: Vec<IpNet> = if_addrs::get_if_addrs()?
        .into_iter()
        .filter(|interface| !interface.is_loopback())
        .map(|interface| match interface.addr {
            if_addrs::IfAddr::V4(v4) => IpNet::from(IpAddr::from(v4.ip)),
            if_addrs::IfAddr::V6(v6) => network(v6.ip.into(), prefix_len(v6.netmask)),
        })
        .collect();
    nets.sort();
    nets.dedup();
    Ok(nets)
}

/// Those of them that would be let out if nobody knew them: what a router that cannot see them must be told. The others
/// are refused by their kind, and come and go with every bridge of the engine's.
///
/// # Errors
/// As [`of_interfaces`].
pub fn public_of_interfaces() -> io::Result<Vec<IpNet>> {
    let mut nets = of_interfaces()?;
    nets.retain(|net| classify(net.addr()) == Class::Public);
    Ok(nets)
}

fn prefix_len(netmask: Ipv6Addr) -> u8 {
    u128::from(netmask).leading_ones() as u8
}

#[cfg(test)]
mod tests;
