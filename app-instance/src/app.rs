//! All of one instance, put together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Router, middleware};
use clock::{Clock, Entropy};
use contracts::instance::InstanceConfig;
use service::{
    Shutdown,
    http::{RequestIds, layers_with_limit},
};
use sign_in::{Sessions, SignIn};
use store::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    chat::{self, Chats},
    disk::Disk,
    gateway::{self, Keys},
    guard,
    identity::{self, AccessTokens, Door, Registrar},
    internal, kept, pages,
    provider::Provider,
    settings::Settings,
    upstream::{Roots, Upstream},
};

/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(15 * 60);
/// After how long without another one a deletion was the last in a row.
const NO_MORE_DELETED: Duration = Duration::from_secs(5);

/// What time, randomness and trust come from.
#[derive(Debug, Clone)]
pub struct Means {
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Whom to believe who they are, for https to providers.
    pub roots: Roots,
}

impl Default for Means {
    fn default() -> Self {
        Self { clock: Clock::system(), entropy: Entropy::system(), roots: Roots::Public }
    }
}

/// Something is under way, for as long as one of these is there.
pub type UnderWay = Arc<()>;

/// One instance.
pub struct App {
    /// `config.json`.
    pub config: InstanceConfig,
    /// Whether it is served over https.
    pub secure: bool,
    /// The content security policy of its pages.
    pub content_policy: http::HeaderValue,
    /// Its database.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Its owner's way in.
    pub sign_in: SignIn,
    /// Its OAuth client.
    pub registrar: Arc<Registrar>,
    /// Access tokens for other services, such as an MCP server.
    pub access_tokens: AccessTokens,
    /// The provider in use.
    pub provider: Provider,
    /// The way to providers.
    pub upstream: Upstream,
    /// The gateway's keys.
    pub keys: Keys,
    /// The chats.
    pub chats: Chats,
    /// What lasts.
    pub data: std::path::PathBuf,
    /// One snapshot at a time.
    pub snapshots: tokio::sync::Mutex<()>,
    /// Whether there is room for more.
    pub disk: Disk,
    /// Cancelled when it shall end.
    pub stop: Shutdown,
    /// Answers being made: waited for at the end.
    pub tasks: TaskTracker,
    /// Chats whose answer is being made.
    running: Mutex<HashMap<String, CancellationToken>>,
    /// Whatever else is under way holds a clone.
    under_way: UnderWay,
    /// Calls off making the database smaller, since more was deleted.
    more_deleted: Mutex<Option<CancellationToken>>,
}

impl App {
    /// Puts an instance together from its folders and its open database.
    ///
    /// # Errors
    /// When `config.json` cannot be used, or the database fails.
    pub async fn new(settings: &Settings, store: Store, means: Means, stop: Shutdown) -> anyhow::Result<Arc<Self>> {
        let Means { clock, entropy, roots } = means;
        let config = settings.read_config()?;
        let provider = Provider::load(store.clone(), &config).await?;
        let door = Door::new(&settings.outward);
        let sign_in = SignIn {
            origin: config.origin.clone(),
            slug: config.slug.clone(),
            owner: config.owner,
            portal: config.portal.clone(),
            verifier: identity::verifier(&config.issuer, door.clone(), store.clone(), clock.clone()).await?,
            sessions: sessions(store.clone(), clock.clone(), entropy.clone()).await?,
        };
        let registrar = Arc::new(Registrar::new(
            settings.clone(),
            config.origin.clone(),
            door.clone(),
            store.clone(),
            entropy.clone(),
        ));
        let access_tokens =
            AccessTokens::new(config.issuer.clone(), door, registrar.clone(), clock.clone(), entropy.clone());
        let keys = Keys::load(store.clone(), clock.clone(), entropy.clone()).await?;
        let chats = Chats::new(store.clone(), clock.clone(), entropy.clone());
        let interrupted = chats.mark_interrupted().await?;
        if interrupted > 0 {
            tracing::info!(interrupted, "answers were unfinished when the program last ended");
        }
        Ok(Arc::new(Self {
            content_policy: guard::content_policy(&config.portal)?,
            secure: sign_in.secure(),
            upstream: Upstream::new(&settings.outward, roots)?,
            config,
            store,
            clock,
            entropy,
            sign_in,
            registrar,
            access_tokens,
            provider,
            keys,
            chats,
            data: settings.data.clone(),
            snapshots: tokio::sync::Mutex::default(),
            disk: Disk::new(settings),
            stop,
            tasks: TaskTracker::new(),
            running: Mutex::default(),
            under_way: UnderWay::default(),
            more_deleted: Mutex::default(),
        }))
    }

    /// Everything it serves.
    pub fn routes(self: &Arc<Self>) -> Router {
        let workspace = pages::workspace()
            .route_layer(middleware::from_fn_with_state(self.clone(), guard::page))
            .merge(chat::api::routes().route_layer(middleware::from_fn_with_state(self.clone(), guard::api)))
            .merge(pages::open())
            .route_layer(middleware::from_fn_with_state(self.clone(), guard::same_origin))
            .merge(internal::routes().route_layer(middleware::from_fn(guard::internal)))
            .with_state(self.clone());
        // The body extractors have a limit of their own, and the gateway, whose refusals have another shape, too.
        layers_with_limit(workspace.merge(gateway::routes(self.clone())), RequestIds::FromCaller, usize::MAX)
            .layer(middleware::from_fn_with_state(self.clone(), pages::dress))
    }

    /// The chats whose answer is being made.
    pub fn running(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For something that is under way from now on.
    pub fn under_way(&self) -> UnderWay {
        self.under_way.clone()
    }

    /// Whether anything is under way: an answer, a gateway's stream, work behind the scenes.
    pub fn is_busy(&self) -> bool {
        !self.running().is_empty() || !self.tasks.is_empty() || Arc::strong_count(&self.under_way) > 1
    }

    /// Has the database made smaller, soon. Nothing else can be written meanwhile, so it is done once for everything that is
    /// deleted in a row.
    pub fn make_smaller(self: &Arc<Self>) {
        let (this, more) = (self.clone(), CancellationToken::new());
        self.more_deleted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(more.clone())
            .inspect(|one| one.cancel());
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(NO_MORE_DELETED) => this.chats.compact().await,
                () = more.cancelled() => {}
                () = this.stop.cancelled() => {}
            }
        });
    }

    /// Removes what has expired, now and then, until the end.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            if let Err(error) = self.sign_in.sessions.sweep().await {
                tracing::warn!(cause = format!("{error:#}"), "what has expired could not be removed");
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }
}

/// Who is signed in, as it was kept in the database.
async fn sessions(store: Store, clock: Clock, entropy: Entropy) -> Result<Sessions, sqlx::Error> {
    let text = kept::get(store.pool(), kept::SIGN_INS).await?;
    Ok(Sessions::new(text.as_deref(), clock, entropy, move |text| {
        let store = store.clone();
        async move { Ok(kept::set(store.pool(), kept::SIGN_INS, &text).await?) }
    }))
}
