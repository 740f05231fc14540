//! Who is signed in to the workspaces that the router itself lets people into: a file each, `router/sign-ins/<id>.json`,
//! and all of them in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use beneath::Root;
use clock::{Clock, Entropy};
use contracts::{
    InstanceId,
    routes::{Route, SignIn},
};
use service::Shutdown;
use sign_in::Sessions;

use crate::routes::Table;

/// The folder below the router's own.
const DIR: &str = "sign-ins";
const SUFFIX: &str = ".json";
const MAX_FILES: usize = 1 << 20;
/// Far more than a hundred sessions and a hundred hand-offs take.
const MAX_BYTES: u64 = 4 << 20;
/// How often what is over is removed, and what hangs on it cut.
const SWEEP: Duration = Duration::from_secs(60);

/// The sign-ins of all workspaces.
pub struct SignIns {
    dir: Root,
    clock: Clock,
    entropy: Entropy,
    all: Mutex<HashMap<InstanceId, Sessions>>,
}

impl SignIns {
    /// Goes on with what is kept below the router's folder.
    ///
    /// # Errors
    /// When there is no such folder and none can be made, or it cannot be read.
    pub fn load(router_dir: &Root, clock: Clock, entropy: Entropy) -> anyhow::Result<Self> {
        router_dir.create_dir(DIR, 0o700, None)?;
        let this = Self { dir: router_dir.dir(DIR)?, clock, entropy, all: Mutex::default() };
        for entry in this.dir.list(".", MAX_FILES)? {
            let name = entry.name.to_string_lossy();
            let Some(id) = name.strip_suffix(SUFFIX).and_then(|id| id.parse().ok()) else { continue };
            let kept = this.dir.read(&*name, MAX_BYTES).with_context(|| format!("reading {DIR}/{name}"))?;
            let sessions = this.sessions(id, Some(&String::from_utf8_lossy(&kept)));
            this.all().insert(id, sessions);
        }
        Ok(this)
    }

    /// The sign-ins of one workspace.
    pub fn of(&self, id: InstanceId) -> Sessions {
        self.all().entry(id).or_insert_with(|| self.sessions(id, None)).clone()
    }

    /// Removes what is over, and forgets workspaces that are gone or let people in themselves by now, until `stop`.
    pub async fn keep(self: Arc<Self>, table: Arc<Table>, stop: Shutdown) {
        let mut changes = table.watch();
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                _ = sweep.tick() => self.sweep().await,
                changed = changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            if table.is_known() {
                self.forget_gone(&table);
            }
        }
    }

    async fn sweep(&self) {
        let all: Vec<Sessions> = self.all().values().cloned().collect();
        for sessions in all {
            if let Err(error) = sessions.sweep().await {
                tracing::warn!(cause = format!("{error:#}"), "sign-ins that are over could not be removed");
            }
        }
    }

    fn forget_gone(&self, table: &Table) {
        // Of what ended while another one let people in, nothing was heard here.
        let ours = |route: &&Arc<Route>| route.sign_in == SignIn::Edge;
        let there: HashSet<InstanceId> = table.all().iter().filter(ours).map(|route| route.instance_id).collect();
        self.all().retain(|id, sessions| {
            let keep = there.contains(id);
            if !keep {
                sessions.forget();
                match self.dir.remove_file(format!("{id}{SUFFIX}")) {
                    Ok(()) | Err(beneath::Error::NotFound { .. }) => {}
                    Err(error) => tracing::warn!(instance = %id, %error, "its sign-ins could not be removed"),
                }
            }
            keep
        });
    }

    fn sessions(&self, id: InstanceId, kept: Option<&str>) -> Sessions {
        let dir = self.dir.clone();
        Sessions::new(kept, self.clock.clone(), self.entropy.clone(), move |text| {
            let dir = dir.clone();
            async move {
                let write = move || dir.write_atomic(format!("{id}{SUFFIX}"), text.as_bytes(), 0o600, None);
                Ok(tokio::task::spawn_blocking(write).await??)
            }
        })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<InstanceId, Sessions>> {
        // Nothing panics under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
