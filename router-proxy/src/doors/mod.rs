//! Each instance's doors out: `out/egress.sock` and `out/identity.sock`, for as long as its route is known.
//!
//! They are opened as soon as the instance's folder is there, and again when they vanish. Which instance speaks is known by
//! the socket it speaks on.

pub mod listen;

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use beneath::Root;
use contracts::InstanceId;
use tokio::time::Instant;

use crate::{App, drain::Drain, egress::Egress, identity::Identity};

const EGRESS: &str = "egress.sock";
const IDENTITY: &str = "identity.sock";
const MODE: u32 = 0o660;
/// How often doors that are open are looked after.
const CHECK: Duration = Duration::from_secs(3);
/// The same, after a route has changed: a folder that was lost and made anew comes with a change.
const CHECK_AFTER_CHANGE: Duration = Duration::from_millis(250);
/// How soon a door that could not be opened is tried again, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(2));

/// Keeps the doors of all instances.
pub struct Doors {
    app: Arc<App>,
    run_dir: PathBuf,
    egress: Egress,
    identity: Identity,
    drain: Drain,
    open: HashMap<InstanceId, Open>,
}

/// An instance's two doors.
struct Open {
    /// Ends its listeners and its connections.
    drain: Drain,
    /// Device and inode of each socket: as long as they are the same, it is ours.
    sockets: [(u64, u64); 2],
}

impl Doors {
    /// No doors yet.
    pub fn new(app: Arc<App>, egress: Egress, identity: Identity, drain: Drain) -> Self {
        let run_dir = app.config.data_dir.join("run");
        Self { app, run_dir, egress, identity, drain, open: HashMap::new() }
    }

    /// Keeps them until the end is asked for.
    pub async fn keep(mut self) {
        let mut changes = self.app.table.watch();
        let mut check_at = Instant::now() + CHECK;
        let mut retry = RETRY.0;
        loop {
            changes.mark_unchanged();
            let wanted: HashSet<InstanceId> = self.app.table.all().iter().map(|route| route.instance_id).collect();
            self.close_unwanted(&wanted);
            if check_at <= Instant::now() {
                self.drop_vanished();
                check_at = Instant::now() + CHECK;
            }
            let mut missing = 0_usize;
            for id in &wanted {
                if !self.open.contains_key(id) && !self.open_one(*id) {
                    missing += 1;
                }
            }
            metrics::gauge!("router_open_doors").set(self.open.len() as f64);
            let until = if missing > 0 { check_at.min(Instant::now() + retry) } else { check_at };
            tokio::select! {
                () = tokio::time::sleep_until(until) => retry = if missing > 0 { (retry * 2).min(RETRY.1) } else { RETRY.0 },
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    retry = RETRY.0;
                    check_at = check_at.min(Instant::now() + CHECK_AFTER_CHANGE);
                }
                () = self.drain.stop.cancelled() => return,
            }
        }
    }

    fn close_unwanted(&mut self, wanted: &HashSet<InstanceId>) {
        let run_dir = &self.run_dir;
        self.open.retain(|id, door| {
            let keep = wanted.contains(id);
            if !keep {
                door.close();
                if let Ok(out) = out(run_dir, *id) {
                    for name in [EGRESS, IDENTITY] {
                        // Its folder is about to be removed anyway.
                        let _ = out.remove_file(name);
                    }
                }
                tracing::info!(instance = %id, "doors closed");
            }
            keep
        });
        // Also of those whose doors are not open: their folders may have gone before their routes.
        self.app.upstream.keep_only(wanted);
        self.app.tenants.keep_only(wanted);
        self.app.uses.keep_only(wanted);
    }

    fn drop_vanished(&mut self) {
        let run_dir = &self.run_dir;
        self.open.retain(|id, door| {
            let there = identify(run_dir, *id).is_some_and(|sockets| sockets == door.sockets);
            if !there {
                door.close();
                tracing::info!(instance = %id, "doors vanished; opening them again");
            }
            there
        });
    }

    fn open_one(&mut self, id: InstanceId) -> bool {
        let bound = out(&self.run_dir, id).and_then(|out| Ok((out.bind(EGRESS, MODE)?, out.bind(IDENTITY, MODE)?)));
        let (egress, identity) = match bound {
            Ok(bound) => bound,
            Err(beneath::Error::NotFound { .. }) => return false,
            Err(error) => {
                tracing::warn!(instance = %id, cause = format!("{:#}", anyhow::Error::from(error)), "doors not opened");
                return false;
            }
        };
        let Some(sockets) = identify(&self.run_dir, id) else { return false };
        let drain = Drain {
            stop: self.drain.stop.child_token(),
            cut: self.drain.cut.child_token(),
            tracker: self.drain.tracker.clone(),
        };
        let (proxy, tenant, of_tunnels) = (self.egress.clone(), self.app.tenants.get(id), drain.clone());
        let places = self.app.config.egress_limits.connections + listen::SPARE;
        listen::spawn(egress, places, &drain, move |request| {
            proxy.clone().handle(Arc::clone(&tenant), of_tunnels.clone(), request)
        });
        let authz = self.identity.clone();
        listen::spawn(identity, listen::IDENTITY_CONNECTIONS, &drain, move |request| authz.clone().handle(request));
        self.open.insert(id, Open { drain, sockets });
        tracing::info!(instance = %id, "doors opened");
        true
    }
}

impl Open {
    fn close(&self) {
        self.drain.stop.cancel();
        self.drain.cut.cancel();
    }
}

fn out(run_dir: &std::path::Path, id: InstanceId) -> Result<Root, beneath::Error> {
    Root::open(run_dir)?.dir(format!("{id}/out"))
}

/// What the two sockets are. `run/<id>/` and `out/` are not the instance's to write to, so the path may be trusted.
fn identify(run_dir: &std::path::Path, id: InstanceId) -> Option<[(u64, u64); 2]> {
    let out = run_dir.join(id.to_string()).join("out");
    let of = |name: &str| {
        let found = std::fs::symlink_metadata(out.join(name)).ok()?;
        Some((found.dev(), found.ino()))
    };
    Some([of(EGRESS)?, of(IDENTITY)?])
}
