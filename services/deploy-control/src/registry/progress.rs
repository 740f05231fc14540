//! What the reconciler writes: how far an instance is, and what happened on the way.

use contracts::{
    deploy::{InstanceError, Phase, Sleep},
    routes::RouteState,
};

use super::{Error, NewEvent, Registry, Row};

/// Changes to a row, and the events that tell of them. `None` leaves a column as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is.
    pub phase: Option<Phase>,
    /// What the router is told.
    pub route: Option<RouteState>,
    /// How deep it sleeps, where it turned out deeper than it was to.
    pub sleep: Option<Sleep>,
    /// The wish that is fulfilled.
    pub observed_generation: Option<i64>,
    /// The restart after which it was down.
    pub applied_restart_generation: Option<i64>,
    /// The newest configuration there is, where a newer one was found than anybody asked for here.
    pub config_generation: Option<i64>,
    /// The configuration in force.
    pub applied_config_generation: Option<i64>,
    /// The configuration that did not hold.
    pub refused_config_generation: Option<i64>,
    /// The archive in force, or taken back.
    pub applied_archive_generation: Option<i64>,
    /// The archive with which it did not come up.
    pub refused_archive_generation: Option<i64>,
    /// Until when the data of one that is deleted is kept.
    pub data_until_ms: Option<i64>,
    /// The release with which it is healthy.
    pub release: Option<String>,
    /// The release from which it went back.
    pub refused_release: Option<String>,
    /// Whether it has its owner.
    pub registered: Option<bool>,
    /// The run found healthy, and when; or that there is none any more.
    pub ready: Option<Option<(String, i64)>>,
    /// Failed attempts, and when the next may be.
    pub attempts: Option<(i64, i64)>,
    /// Why something did not hold; or that nothing is wrong any more.
    pub error: Option<Option<InstanceError>>,
    /// What happened, in order.
    pub events: Vec<NewEvent>,
}

impl Progress {
    /// Puts later changes over these: what both set is as the later says, and events follow each other.
    pub fn then(&mut self, later: Self) {
        let Self {
            phase,
            route,
            sleep,
            observed_generation,
            applied_restart_generation,
            config_generation,
            applied_config_generation,
            refused_config_generation,
            applied_archive_generation,
            refused_archive_generation,
            data_until_ms,
            release,
            refused_release,
            registered,
            ready,
            attempts,
            error,
            mut events,
        } = later;
        self.phase = phase.or(self.phase);
        self.route = route.or(self.route);
        self.sleep = sleep.or(self.sleep);
        self.observed_generation = observed_generation.or(self.observed_generation);
        self.applied_restart_generation = applied_restart_generation.or(self.applied_restart_generation);
        self.config_generation = config_generation.or(self.config_generation);
        self.applied_config_generation = applied_config_generation.or(self.applied_config_generation);
        self.refused_config_generation = refused_config_generation.or(self.refused_config_generation);
        self.applied_archive_generation = applied_archive_generation.or(self.applied_archive_generation);
        self.refused_archive_generation = refused_archive_generation.or(self.refused_archive_generation);
        self.data_until_ms = data_until_ms.or(self.data_until_ms);
        self.release = release.or(self.release.take());
        self.refused_release = refused_release.or(self.refused_release.take());
        self.registered = registered.or(self.registered);
        self.ready = ready.or(self.ready.take());
        self.attempts = attempts.or(self.attempts);
        self.error = error.or(self.error.take());
        self.events.append(&mut events);
    }

    /// The row with these changes.
    pub fn applied_to(&self, mut row: Row) -> Row {
        row.phase = self.phase.unwrap_or(row.phase);
        row.route = self.route.or(row.route);
        row.sleep = self.sleep.unwrap_or(row.sleep);
        row.observed_generation = self.observed_generation.unwrap_or(row.observed_generation);
        row.applied_restart_generation = self.applied_restart_generation.unwrap_or(row.applied_restart_generation);
        row.config_generation = self.config_generation.unwrap_or(row.config_generation);
        row.applied_config_generation = self.applied_config_generation.unwrap_or(row.applied_config_generation);
        row.refused_config_generation = self.refused_config_generation.unwrap_or(row.refused_config_generation);
        row.applied_archive_generation = self.applied_archive_generation.unwrap_or(row.applied_archive_generation);
        row.refused_archive_generation = self.refused_archive_generation.unwrap_or(row.refused_archive_generation);
        if let (Some(deletion), Some(until)) = (&mut row.deletion, self.data_until_ms) {
            deletion.data_until_ms = until;
        }
        row.release = self.release.clone().or(row.release);
        row.refused_release = self.refused_release.clone().or(row.refused_release);
        row.registered = self.registered.unwrap_or(row.registered);
        if let Some(ready) = &self.ready {
            (row.ready_run, row.ready_at_ms) = ready.clone().unzip();
        }
        (row.attempts, row.next_attempt_at_ms) = self.attempts.unwrap_or((row.attempts, row.next_attempt_at_ms));
        if let Some(error) = &self.error {
            row.error.clone_from(error);
        }
        row
    }
}

impl Registry {
    /// Writes what came of working on `row`; the row as it is then. `None` when it has changed since it was read, by
    /// a wish, or by something that was told of it: then nothing is written.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn record(&self, row: &Row, progress: &Progress) -> Result<Option<Row>, Error> {
        let next = progress.applied_to(row.clone());
        if next == *row && progress.events.is_empty() {
            return Ok(Some(next));
        }
        self.write_together(next, &progress.events).await
    }
}
