//! Following deploy-control's route feed: a full snapshot at every connection, then changes without gaps.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clock::{Backoff, Entropy};
use contracts::routes::{PATH, RouteMessage};
use http::Method;
use service::{ServiceClient, Shutdown};

use super::Table;

/// The feed says something at least every 15 s; two in a row missed, and the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(40);
const CONNECT: Duration = Duration::from_secs(10);
/// One line: a snapshot of some ten thousand routes has 2 MB.
const MAX_LINE_BYTES: usize = 64 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Follows the feed until `stop`, connecting again whenever it ends or makes no sense.
pub async fn follow(client: ServiceClient, table: Arc<Table>, entropy: Entropy, stop: Shutdown) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let mut applied = Applier::default();
        let ended = tokio::select! {
            ended = once(&client, &table, &mut applied) => ended,
            () = stop.cancelled() => return,
        };
        if let Err(error) = ended {
            metrics::counter!("router_route_feed_errors_total").increment(1);
            tracing::warn!(cause = format!("{error:#}"), "the route feed ended; connecting again");
        }
        // Only a connection that brought something proves the other side well; one that just closes must not be stormed.
        if applied.messages > 1 {
            backoff.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(&entropy)) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One connection, from its snapshot to its end.
async fn once(client: &ServiceClient, table: &Table, applier: &mut Applier) -> anyhow::Result<()> {
    let request = client.request(Method::GET, PATH);
    let mut response = tokio::time::timeout(CONNECT, client.send(request)).await.context("no answer in time")??;
    let mut line = Vec::new();
    while let Some(chunk) = tokio::time::timeout(SILENCE, response.chunk()).await.context("no heartbeat")?? {
        let mut rest = &chunk[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            if !line.is_empty() {
                let message = serde_json::from_slice(&line).context("a line that is no route message")?;
                applier.apply(table, message)?;
            }
            line.clear();
        }
        if line.len() + rest.len() > MAX_LINE_BYTES {
            bail!("a line without an end");
        }
        line.extend_from_slice(rest);
    }
    bail!("closed by the other side")
}

/// What one connection has said so far.
#[derive(Default)]
struct Applier {
    /// Those that prove the other side well.
    messages: u64,
    /// The version of the last message; none before the snapshot.
    version: Option<u64>,
}

impl Applier {
    /// Takes a message into the table.
    ///
    /// # Errors
    /// When it does not follow from what was said before: then everything must be asked for again.
    fn apply(&mut self, table: &Table, message: RouteMessage) -> anyhow::Result<()> {
        match (self.version, message) {
            (_, RouteMessage::Snapshot(snapshot)) => {
                self.version = Some(snapshot.version);
                tracing::info!(routes = snapshot.routes.len(), version = snapshot.version, "routes learned");
                table.replace(snapshot);
            }
            (Some(known), RouteMessage::Change { version, route }) if version == known + 1 => {
                self.version = Some(version);
                table.change(version, route);
            }
            (Some(_), RouteMessage::Engine { away }) => {
                table.set_engine_away(away);
                // It follows the snapshot by itself, so it proves no more than that: it is not counted.
                return Ok(());
            }
            (Some(known), RouteMessage::Heartbeat { version }) if version == known => {}
            (None, _) => bail!("the feed did not begin with a snapshot"),
            (Some(known), RouteMessage::Change { version, .. } | RouteMessage::Heartbeat { version }) => {
                bail!("a gap: version {version} after {known}")
            }
        }
        self.messages += 1;
        metrics::gauge!("router_routes").set(table.len() as f64);
        Ok(())
    }
}
