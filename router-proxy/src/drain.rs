//! Ending: no new work, idle connections closed at once, ten seconds for what is under way, then the rest is cut.

use std::time::Duration;

use service::Shutdown;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long what is under way may go on.
const GRACE: Duration = Duration::from_secs(10);

/// What every long task holds, in order to end in time.
#[derive(Clone)]
pub struct Drain {
    /// Take nothing new.
    pub stop: Shutdown,
    /// End now.
    pub cut: CancellationToken,
    /// The tasks that are waited for.
    pub tracker: TaskTracker,
}

impl Drain {
    /// A drain that begins when `stop` is cancelled.
    pub fn new(stop: Shutdown) -> Self {
        Self { stop, cut: CancellationToken::new(), tracker: TaskTracker::new() }
    }

    /// Waits until the end is asked for and every task has ended, and makes that come.
    pub async fn finish(self) {
        self.stop.cancelled().await;
        self.tracker.close();
        if tokio::time::timeout(GRACE, self.tracker.wait()).await.is_err() {
            tracing::warn!(after_s = GRACE.as_secs(), tasks = self.tracker.len(), "what is still open is cut");
            self.cut.cancel();
            self.tracker.wait().await;
        }
    }
}
