use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use settings::Env;
use tokio::net::TcpStream;

use super::*;

#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<&'static str, Vec<&'static str>>>,
    asked: Mutex<Vec<String>>,
    /// Nobody answers.
    silent: AtomicBool,
    /// The answer is that there is none to be had.
    broken: AtomicBool,
}

impl Network for Names {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.asked.lock().unwrap().push(name.to_owned());
        Box::pin(async move {
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("SERVFAIL"));
            }
            let found = self.answers.lock().unwrap().get(name).cloned();
            let found = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok(found.iter().map(|address| address.parse().unwrap()).collect())
        })
    }

    fn connect(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        unreachable!("nobody connects")
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address == IpAddr::from([198, 51, 100, 1])
    }
}

fn own(given: &[&str], names: &[&str], network: &Arc<Names>) -> Arc<Own> {
    let given = given.iter().map(|net| net.parse().unwrap()).collect();
    Arc::new(Own::new(given, names.iter().map(|name| (*name).to_owned()).collect(), Arc::clone(network) as _))
}

fn has(own: &Own, address: &str) -> bool {
    own.contains(address.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_the_names_lead_to_is_own_and_stays_so_for_a_while() {
    let network = Arc::new(Names::default());
    network.answers.lock().unwrap().insert("portal.test", vec!["93.184.216.1", "::ffff:93.184.216.2"]);
    let own = own(&["93.184.216.64/26", "2606:4700::/64"], &["portal.test", "away.test"], &network);
    for (address, is) in [
        ("93.184.216.70", true),
        ("93.184.216.1", false),
        ("2606:4700::9", true),
        ("2606:4700:0:1::9", false),
        ("198.51.100.1", true),
        ("::ffff:93.184.216.70", true),
    ] {
        assert_eq!(has(&own, address), is, "{address} before looking");
    }

    let stop = Shutdown::new();
    let keeping = tokio::spawn(Arc::clone(&own).keep(stop.clone()));
    assert!(own.known().await);
    assert!(has(&own, "93.184.216.1") && has(&own, "93.184.216.2"));

    // The name moves; both count until the old one is old.
    network.answers.lock().unwrap().insert("portal.test", vec!["93.184.216.3"]);
    tokio::time::sleep(AGAIN).await;
    assert!(has(&own, "93.184.216.3") && has(&own, "93.184.216.1"));
    tokio::time::sleep(KEPT).await;
    assert!(has(&own, "93.184.216.3") && !has(&own, "93.184.216.1"));

    // It cannot be resolved, however long: what is known stays.
    for failing in [&network.broken, &network.silent] {
        failing.store(true, Ordering::SeqCst);
        tokio::time::sleep(KEPT * 3).await;
        assert!(has(&own, "93.184.216.3") && own.known().await);
        failing.store(false, Ordering::SeqCst);
        tokio::time::sleep(RETRY * 2).await;
    }
    // It is answered that it leads nowhere any more.
    network.answers.lock().unwrap().clear();
    tokio::time::sleep(KEPT / 2).await;
    assert!(has(&own, "93.184.216.3"));
    tokio::time::sleep(KEPT).await;
    assert!(!has(&own, "93.184.216.3"));
    stop.cancel();
    keeping.await.unwrap();
    assert!(network.asked.lock().unwrap().iter().any(|name| name == "away.test"));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_said_and_not_for_ever() {
    let ways: [fn(&Names) -> &AtomicBool; 2] = [|network| &network.silent, |network| &network.broken];
    for failing in ways {
        let network = Arc::new(Names::default());
        network.answers.lock().unwrap().insert("portal.test", vec!["93.184.216.1"]);
        failing(&network).store(true, Ordering::SeqCst);
        let own = own(&[], &["portal.test"], &network);
        let keeping = tokio::spawn(Arc::clone(&own).keep(Shutdown::new()));
        for _ in 0..3 {
            let since = Instant::now();
            assert!(!own.known().await);
            assert_eq!(since.elapsed(), FIRST, "nobody is held up for long");
        }
        // As soon as it is answered, it is known.
        failing(&network).store(false, Ordering::SeqCst);
        let since = Instant::now();
        while !own.known().await {}
        assert!(since.elapsed() <= FIRST + SOON && has(&own, "93.184.216.1"));
        keeping.abort();

        failing(&network).store(true, Ordering::SeqCst);
        let never = self::own(&[], &["portal.test"], &network);
        let keeping = tokio::spawn(Arc::clone(&never).keep(Shutdown::new()));
        tokio::time::sleep(GRACE - Duration::from_secs(1)).await;
        let since = Instant::now();
        assert!(never.known().await, "the grace is over meanwhile");
        assert_eq!(since.elapsed(), Duration::from_secs(1));
        assert!(never.known().await);
        assert_eq!(since.elapsed(), Duration::from_secs(1), "and nobody waits any more");
        keeping.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_with_countless_addresses_is_cut_short() {
    let network = Arc::new(Names::default());
    let many: Vec<&'static str> = (0..200).map(|n| &*Box::leak(format!("93.184.217.{n}").into_boxed_str())).collect();
    network.answers.lock().unwrap().insert("portal.test", many);
    let own = own(&[], &["portal.test"], &network);
    own.look().await;
    assert_eq!(own.led()[0].to.len(), MAX_FOUND);
}

#[test]
fn the_names_are_the_portals_and_those_below_the_base_domain() {
    let env = Env::from_pairs([
        ("BEAVER_BASE_DOMAIN", "apps.example.com"),
        ("BEAVER_PORTAL_URL", "https://portal.example.com"),
        ("DEPLOY_PUBLIC_SCHEME", "https"),
    ]);
    let (names, addresses) = of_public(&env.public_address().unwrap(), &["apps.example.com".to_owned()]);
    assert_eq!(names, ["apps.example.com", "egress.apps.example.com", "portal.example.com"]);
    assert!(addresses.is_empty());

    let (names, addresses) = of_public(&Env::default().public_address().unwrap(), &["localhost".to_owned()]);
    assert!(names.is_empty() && addresses.is_empty(), "{names:?}");

    let env = Env::from_pairs([("BEAVER_PORTAL_URL", "http://203.0.113.5:3081")]);
    let (_, addresses) = of_public(&env.public_address().unwrap(), &[]);
    assert_eq!(addresses, ["203.0.113.5/32".parse::<IpNet>().unwrap()]);
    assert!(contracts::Slug::parse_new(ANY_LABEL).is_err(), "no workspace can be called so");
}

#[test]
fn of_ipv6_the_whole_link_is_own() {
    for (address, prefix, net) in [
        ("93.184.216.34", 24, "93.184.216.34/32"),
        ("2606:4700::1234:5678", 64, "2606:4700::/64"),
        ("2606:4700::1234:5678", 48, "2606:4700::/64"),
        ("2606:4700::1234:5678", 128, "2606:4700::1234:5678/128"),
    ] {
        assert_eq!(network(address.parse().unwrap(), prefix), net.parse::<IpNet>().unwrap(), "{address}/{prefix}");
    }
    assert_eq!(prefix_len("ffff:ffff:ffff:ffff::".parse().unwrap()), 64);
    let all = of_interfaces().unwrap();
    assert!(all.iter().all(|net| !net.addr().is_loopback()), "{all:?}");
    assert!(public_of_interfaces().unwrap().iter().all(|net| all.contains(net)));
}
