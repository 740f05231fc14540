use std::sync::atomic::{AtomicUsize, Ordering};

use contracts::InstanceId;
use futures_util::{future::BoxFuture, poll};

use super::*;
use crate::egress::{
    rules::Rules,
    tenant::{self, Limits, Tenants},
};

/// A network in which names below `slow.test` are never answered and all others lead to the same address, where nobody
/// listens.
#[derive(Default)]
struct Slow {
    asking: AtomicUsize,
}

struct Asking<'a>(&'a AtomicUsize);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Network for Slow {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            self.asking.fetch_add(1, Ordering::SeqCst);
            let _asking = Asking(&self.asking);
            if name.ends_with(".slow.test") {
                std::future::pending::<()>().await;
            }
            Ok(vec![IpAddr::from([93, 184, 216, 34])])
        })
    }

    fn connect(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }

    fn is_own(&self, _: IpAddr) -> bool {
        false
    }
}

fn target(text: &str) -> Target {
    Target::parse(&text.parse().unwrap(), None).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_slow_names_waits_alone() {
    let network = Arc::new(Slow::default());
    let rules = Rules { default: "allow-public".parse().unwrap(), allow: Vec::new(), deny: Vec::new() };
    let rules = tokio::sync::watch::channel(Arc::new(rules)).1;
    let own = Arc::new(Own::new(Vec::new(), Vec::new(), Arc::clone(&network) as _));
    let dialer = Dialer::new(rules, Arc::clone(&network) as _, own);
    let tenants = Tenants::new(Limits::default(), clock::Clock::system());
    let [alice, bob] = [1, 2].map(|n| tenants.get(InstanceId::from_uuid(uuid::Uuid::from_u128(n))));

    let slow: Vec<Target> = (0..1000).map(|n| target(&format!("{n}.slow.test:80"))).collect();
    let mut waiting: Vec<_> = slow.iter().map(|slow| Box::pin(dialer.dial(&alice, slow))).collect();
    for dialling in &mut waiting {
        assert!(poll!(dialling).is_pending());
    }
    assert_eq!(network.asking.load(Ordering::SeqCst), tenant::RESOLVING, "the rest of hers wait for her own turn");
    let quick = target("quick.test:80");
    let since = Instant::now();
    // Nobody listens there; that is known at once, since the name is resolved at once.
    assert!(matches!(dialer.dial(&bob, &quick).await, Err(DialError::Unreachable(_))));
    assert_eq!(since.elapsed(), Duration::ZERO);

    // Who gives up waiting gives the turn back.
    drop(waiting);
    assert_eq!(network.asking.load(Ordering::SeqCst), 0);
    assert!(matches!(dialer.dial(&alice, &quick).await, Err(DialError::Unreachable(_))));

    // A name that is never answered is given up.
    assert!(matches!(dialer.dial(&alice, &slow[0]).await, Err(DialError::Timeout)));
    assert_eq!(since.elapsed(), RESOLVE);
}

#[tokio::test(start_paused = true)]
async fn what_might_be_this_very_host_is_not_let_out() {
    let network = Arc::new(Slow::default());
    let allow = vec!["named.test".parse().unwrap(), "93.184.217.0/24".parse().unwrap()];
    let rules = Rules { default: "allow-public".parse().unwrap(), allow, deny: Vec::new() };
    let rules = tokio::sync::watch::channel(Arc::new(rules)).1;
    let own = Arc::new(Own::new(Vec::new(), vec!["portal.slow.test".into()], Arc::clone(&network) as _));
    let dialer = Dialer::new(rules, Arc::clone(&network) as _, Arc::clone(&own));
    let tenant = Tenants::new(Limits::default(), clock::Clock::system()).get(InstanceId::from_uuid(uuid::Uuid::nil()));
    for unknown in ["anybody.test:80", "93.184.216.34:80"] {
        assert!(matches!(dialer.dial(&tenant, &target(unknown)).await, Err(DialError::NotYet)), "{unknown}");
    }
    // What the operator lets out even here needs no knowledge; nor does what is refused anyway.
    for allowed in ["named.test:80", "93.184.217.1:80"] {
        assert!(matches!(dialer.dial(&tenant, &target(allowed)).await, Err(DialError::Unreachable(_))), "{allowed}");
    }
    assert!(matches!(dialer.dial(&tenant, &target("10.0.0.1:80")).await, Err(DialError::Refused(_))));
    // A name that is never answered keeps nobody in for good.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(dialer.dial(&tenant, &target("anybody.test:80")).await, Err(DialError::Unreachable(_))));
}
