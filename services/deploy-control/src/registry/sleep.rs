//! Falling asleep and waking: wishes of Beaver's own, and of whoever comes to use an instance.
//!
//! The router is told as the wish is written, before anything of it is done: from then on it asks before anybody gets in.

use contracts::{
    InstanceId,
    deploy::{Desired, EventCode, Phase, Sleep, WakeReason},
    routes::RouteState,
};

use super::{Error, NewEvent, Registry, Row, wishes::TRIES};

impl Registry {
    /// Writes down when instances were last used, in Unix milliseconds. Nobody is told: nothing else of them has changed.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn used(&self, when: &[(InstanceId, i64)]) -> Result<(), Error> {
        let mut transaction = self.store.begin().await?;
        for (id, at_ms) in when {
            sqlx::query("UPDATE instances SET last_used_ms = $1 WHERE id = $2")
                .bind(*at_ms)
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Wishes an instance asleep that was read as `row`, for whose programs `wake_keys` stand then, after `idle_s` seconds
    /// without use; the row as it is then. `None` when it has changed since, or is not one to sleep (deeper).
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn sleep(
        &self,
        row: &Row,
        depth: Sleep,
        wake_keys: Vec<String>,
        idle_s: u64,
    ) -> Result<Option<Row>, Error> {
        let Some(next) = asleep(row.clone(), depth, wake_keys) else { return Ok(None) };
        let depth = super::word(&depth);
        let event = NewEvent::of(EventCode::SleepRequested).detail(format!("{depth}, unused for {idle_s} s"));
        super::write(&self.store, next, &[event], self.now_ms()).await
    }

    /// Wakes an instance that sleeps, for its owner; the row as it is then, and how deep it slept. One that is awake stays so.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Down`] when somebody stopped it, or it could not be brought up; [`Error::Database`].
    pub async fn wake(&self, id: InstanceId, why: WakeReason) -> Result<(Row, Sleep), Error> {
        let told = |row: &Row| NewEvent {
            actor: row.account_id.to_string(),
            ..NewEvent::of(EventCode::WakeRequested).detail(why.as_str())
        };
        self.awaken(id, told).await
    }

    /// The same for Beaver itself, which found that it must not sleep.
    ///
    /// # Errors
    ///
    /// As [`Registry::wake`].
    pub async fn keep_awake(&self, id: InstanceId, why: &str) -> Result<(Row, Sleep), Error> {
        self.awaken(id, |_| NewEvent::of(EventCode::WakeRequested).detail(why)).await
    }

    async fn awaken(&self, id: InstanceId, event: impl Fn(&Row) -> NewEvent) -> Result<(Row, Sleep), Error> {
        for _ in 0..TRIES {
            let row = self.get(id).await?;
            match row.desired {
                Desired::Deleted => return Err(Error::NotFound),
                Desired::Stopped => return Err(Error::Down),
                Desired::Running if row.phase == Phase::Failed => return Err(Error::Down),
                Desired::Running => {}
            }
            let depth = row.sleep;
            let event = event(&row);
            let Some(next) = awake(row.clone()) else { return Ok((row, depth)) };
            if let Some(written) = super::write(&self.store, next, &[event], self.now_ms()).await? {
                return Ok((written, depth));
            }
            // Somebody else was quicker: on what is true now.
        }
        Err(Error::Database(sqlx::Error::PoolTimedOut))
    }
}

/// The row with the wish that it sleeps so deep; `None` when it is not to.
pub(crate) fn asleep(mut row: Row, depth: Sleep, wake_keys: Vec<String>) -> Option<Row> {
    let settled = row.observed_generation == row.generation && row.desired == Desired::Running;
    let (deeper, route) = match (row.phase, row.sleep, depth) {
        (Phase::Ready, Sleep::Awake, Sleep::Paused) => (true, RouteState::Paused),
        (Phase::Ready, Sleep::Awake, Sleep::Stopped) | (Phase::Paused, Sleep::Paused, Sleep::Stopped) => {
            // From here on its end is no surprise.
            row.ready_run = None;
            (true, RouteState::Asleep)
        }
        _ => (false, RouteState::Running),
    };
    if !settled || !deeper {
        return None;
    }
    (row.sleep, row.route, row.wake_keys) = (depth, Some(route), wake_keys);
    row.generation += 1;
    Some(row)
}

/// The row with the wish that it is awake; `None` when it is. What is told of an error stays: nobody has cared about it.
pub(crate) fn awake(mut row: Row) -> Option<Row> {
    if row.sleep == Sleep::Awake {
        return None;
    }
    row.sleep = Sleep::Awake;
    row.generation += 1;
    (row.attempts, row.next_attempt_at_ms) = (0, 0);
    Some(row)
}
