//! authz as a process: starting, answering, ending.

use std::time::Duration;

use clock::{Clock, Entropy};
use service::Shutdown;
use settings::Env;
use store::{Database, Store};

use super::harness::*;
use crate::{app::App, config::Config};

fn env(listen: &str) -> Env {
    Env::from_pairs([
        ("BEAVER_AUTHZ_INTERNAL_TOKEN", INTERNAL_TOKEN),
        ("BEAVER_OPERATOR_TOKEN", OPERATOR_TOKEN),
        ("BEAVER_SEAL_KEY", SEAL_KEY),
        ("BEAVER_DEPLOY_TOKEN", DEPLOY_TOKEN),
        ("BEAVER_DEPLOY_URL", "http://127.0.0.1:1"),
        ("BEAVER_ROUTER_INTERNAL_TOKEN", ROUTER_TOKEN),
        ("BEAVER_ROUTER_INTERNAL_URL", "http://127.0.0.1:1"),
        ("AUTHZ_LISTEN", listen),
    ])
}

/// An address that nobody listens on, below the ports that the system gives to others by itself: it stays free.
fn free_address() -> String {
    loop {
        let random = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Ok(free) = std::net::TcpListener::bind(("127.0.0.1", 20_000 + random % 12_000)) {
            return free.local_addr().unwrap().to_string();
        }
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time")
}

#[tokio::test]
async fn it_starts_answers_and_ends_and_the_keys_outlast_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let listen = free_address();
        let env = env(&listen).with("BEAVER_DATA_DIR", folder.path().to_str().unwrap());
        assert_eq!(crate::health_url(&env).unwrap(), format!("http://{listen}/readyz"));
        let stop = Shutdown::new();
        let running = tokio::spawn(crate::run(env, stop.clone()));
        let keys = within(async {
            let client = service::ServiceClient::new("authz", format!("http://{listen}").parse().unwrap(), "".into());
            loop {
                if let Ok(keys) = client.get::<token::KeySet>("/.well-known/jwks.json").await {
                    return keys;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        seen.insert(keys.keys()[0].kid().to_owned());
        stop.cancel();
        within(running).await.unwrap().unwrap();
        assert!(std::net::TcpStream::connect(&listen).is_err(), "nobody listens any more");
    }
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let env = env(&listen).with("BEAVER_DATA_DIR", folder.path().to_str().unwrap());
    let error = within(crate::run(env, Shutdown::new())).await.unwrap_err();
    assert!(format!("{error:#}").contains(&format!("AUTHZ_LISTEN {listen}")), "{error:#}");
}

#[tokio::test]
async fn it_waits_for_a_database_that_is_not_there_yet_and_can_be_ended_meanwhile() {
    let env = env(&free_address()).with("DATABASE_URL", "postgres://nobody:canary-password@127.0.0.1:1/none");
    let stop = Shutdown::new();
    let mut running = tokio::spawn(crate::run(env, stop.clone()));
    let early = tokio::time::timeout(Duration::from_millis(800), &mut running).await;
    assert!(early.is_err(), "it went on waiting: {early:?}");
    stop.cancel();
    within(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn with_another_seal_key_it_does_not_start_until_the_keys_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap().to_owned();
    let started = async |env: Env| {
        let config = Config::from_env(&env)?;
        let store = Store::open(&config.database, &crate::MIGRATOR).await?;
        App::new(config, store, Clock::system(), Entropy::system()).await.map(drop)
    };
    let forgets = async |env: Env| within(crate::forget_keys(env, Shutdown::new())).await.unwrap();
    let env = || env(&free_address()).with("BEAVER_DATA_DIR", data.clone());
    let other = || env().with("BEAVER_SEAL_KEY", "another-seal-key-0123456789abcdef0123");
    let database = Database::Sqlite(folder.path().join("authz/authz.db"));
    let kids = async || -> Vec<String> {
        let store = Store::open(&database, &crate::MIGRATOR).await.unwrap();
        sqlx::query_scalar("SELECT kid FROM signing_keys ORDER BY seq").fetch_all(store.pool()).await.unwrap()
    };
    started(env()).await.unwrap();
    let first = kids().await;
    forgets(env()).await;
    assert_eq!((first.len(), kids().await), (1, first.clone()), "what can be opened is not forgotten");
    let refused = format!("{:#}", started(other()).await.unwrap_err());
    assert!(refused.starts_with("BEAVER_SEAL_KEY") && refused.contains("authz forget-keys"), "{refused}");
    forgets(other()).await;
    started(other()).await.unwrap();
    let second = kids().await;
    assert!(second.len() == 1 && second != first, "{second:?}");
}
