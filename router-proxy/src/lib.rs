//! The router: the public edge before every workspace, the other services' way to instances, and each instance's doors
//! out. See `router-proxy/README.md`.

mod activity;
pub mod body;
pub mod config;
mod doors;
mod drain;
pub mod edge;
pub mod egress;
mod identity;
mod internal;
mod owner;
pub mod pages;
pub mod routes;
mod sign_ins;
pub mod upstream;
mod uses;
pub mod wakes;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use clock::{Clock, Entropy};
use contracts::routes::Route;
use service::{ServiceClient, Shutdown, run::local_url};
use settings::Env;
use sign_in::SignIn;
use tokio::net::TcpListener;

use config::Config;
use drain::Drain;
use egress::{Egress, Network, Own, dial::Dialer, rules::file::Ruling, tenant::Tenants};
use identity::Identity;
use owner::Owners;
use routes::{Table, disk, feed};
use sign_ins::SignIns;
use upstream::Upstream;
use uses::Uses;
use wakes::Wakes;

/// How often connections to instances that lie idle are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// What every part of the router shares.
pub struct App {
    config: Config,
    tenants: Tenants,
    table: Arc<Table>,
    upstream: Upstream,
    owners: Owners,
    sign_ins: Arc<SignIns>,
    portal: String,
    uses: Arc<Uses>,
    wakes: Arc<Wakes>,
}

impl App {
    /// The way into a workspace, where that is the router's.
    fn sign_in(&self, route: &Route) -> SignIn {
        SignIn {
            origin: self.config.public.workspace_origin(route.slug.as_str()),
            slug: route.slug.clone(),
            owner: route.account_id,
            portal: self.portal.clone(),
            verifier: self.owners.verifier(),
            sessions: self.sign_ins.of(route.instance_id),
        }
    }
}

/// A router that listens but does not serve yet.
pub struct Router {
    app: Arc<App>,
    edge: TcpListener,
    internal: TcpListener,
    dir: beneath::Root,
    network: Arc<dyn Network>,
}

/// Runs the router until `stop`, then drains.
///
/// # Errors
/// An unusable setting ([`settings::Error`]), or an address that cannot be listened on.
pub async fn run(env: Env, stop: Shutdown) -> anyhow::Result<()> {
    let config = Config::from_env(&env)?;
    Router::bind(config, Clock::system(), Arc::new(egress::Host::default())).await?.serve(stop).await
}

/// The URL by which the router's process is asked whether it is alive.
///
/// # Errors
/// An unusable setting.
pub fn health_url(env: &Env) -> anyhow::Result<String> {
    local_url(&env.string("ROUTER_INTERNAL_LISTEN")?, "/healthz")
}

impl Router {
    /// Takes the addresses and loads what was kept on disk.
    ///
    /// # Errors
    /// An address that cannot be listened on, or a data directory that cannot be used.
    pub async fn bind(config: Config, clock: Clock, network: Arc<dyn Network>) -> anyhow::Result<Self> {
        let dir = disk::open(&config.data_dir).context("opening the router's folder in BEAVER_DATA_DIR")?;
        let listen = async |address: SocketAddr, key: &str| {
            TcpListener::bind(address).await.with_context(|| format!("{key}: listening on {address}"))
        };
        let edge = listen(config.listen, "ROUTER_LISTEN").await?;
        let internal = listen(config.internal_listen, "ROUTER_INTERNAL_LISTEN").await?;
        let table = Arc::new(Table::default());
        match disk::load(&dir) {
            Ok(Some(snapshot)) => {
                tracing::info!(routes = snapshot.routes.len(), "routes from disk");
                table.replace(snapshot);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(cause = format!("{error:#}"), "the kept routes are not used"),
        }
        let tenants = Tenants::new(config.egress_limits, clock.clone());
        let sign_ins = SignIns::load(&dir, clock.clone(), Entropy::system())
            .context("opening the folder of sign-ins in BEAVER_DATA_DIR/router")?;
        let owners = Owners::new(&config.authz_url, &config.issuer, config.public.clone(), clock, &dir);
        let upstream = Upstream::new(config.data_dir.join("run"));
        let portal = config.public.portal_origin();
        let deploy = ServiceClient::new("deploy-control", config.deploy_url.clone(), config.deploy_token.clone());
        let (sign_ins, uses) = (Arc::new(sign_ins), Arc::default());
        let wakes = Wakes::new(deploy, Arc::clone(&table), config.hold);
        let app = Arc::new(App { config, tenants, table, upstream, owners, sign_ins, portal, uses, wakes });
        Ok(Self { app, edge, internal, dir, network })
    }

    /// Where the public edge and the internal listener are.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.edge.local_addr()?, self.internal.local_addr()?))
    }

    /// Serves until `stop`, then lets what is under way go on for 10 s.
    ///
    /// # Errors
    /// When the internal listener fails for good.
    pub async fn serve(self, stop: Shutdown) -> anyhow::Result<()> {
        let Self { app, edge, internal, dir, network } = self;
        let drain = Drain::new(stop.clone());
        let config = &app.config;
        let client = ServiceClient::new("deploy-control", config.deploy_url.clone(), config.deploy_token.clone());
        let own = Arc::new(Own::new(config.own_addresses.clone(), config.own_names.clone(), Arc::clone(&network)));
        drain.tracker.spawn(Arc::clone(&own).keep(stop.clone()));
        let (ruling, rules) = Ruling::new(config.egress.clone(), config.egress_rules_file.clone());
        drain.tracker.spawn(ruling.keep(stop.clone()));
        let egress = Egress::new(Dialer::new(rules, network, own).through(config.egress_chain.clone()));
        let identity = Identity::new(&config.authz_url);
        let doors = doors::Doors::new(Arc::clone(&app), egress, identity, drain.clone());

        drain.tracker.spawn(egress::report::send(client.clone(), app.tenants.outbox.clone(), stop.clone()));
        let feed = feed::follow(client, Arc::clone(&app.table), Entropy::system(), stop.clone());
        drain.tracker.spawn(feed);
        drain.tracker.spawn(disk::keep(dir.clone(), Arc::clone(&app.table), stop.clone()));
        drain.tracker.spawn(Arc::clone(&app.sign_ins).keep(Arc::clone(&app.table), stop.clone()));
        drain.tracker.spawn(app.owners.clone().refresh(dir, stop.clone()));
        drain.tracker.spawn(doors.keep());
        drain.tracker.spawn(Arc::clone(&app.wakes).keep(Arc::clone(&app.uses), stop.clone()));
        drain.tracker.spawn(sweep(app.upstream.clone(), stop.clone()));
        drain.tracker.spawn(edge::serve(Arc::clone(&app), edge, drain.clone()));

        let serving = async {
            let served = service::serve(internal, internal::router(app), stop.clone()).await;
            stop.cancel();
            served
        };
        // Side by side: one after the other they would take twice as long to end.
        let (served, ()) = tokio::join!(serving, drain.finish());
        served.context("the internal listener")
    }
}

async fn sweep(upstream: Upstream, stop: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => upstream.sweep(),
            () = stop.cancelled() => return,
        }
    }
}
