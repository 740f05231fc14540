//! What people and services want of instances.

use contracts::{
    AccountId, InstanceId, PlanName,
    deploy::{By, Deletion, Desired, EventCode, InstanceError, Phase, RegisterInstance, Sleep},
    routes::RouteState,
};

use super::{Columns, Error, NewEvent, Progress, Registry, Row, insert_events, pool, word};

/// How often a write that lost against another is tried again.
pub(super) const TRIES: u32 = 8;

/// Something wanted of an instance that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Down.
    Stop,
    /// Down, because the operator wants it so, for this reason.
    Suspend(String),
    /// Up.
    Start,
    /// Down and up again.
    Restart,
    /// Another attempt, now.
    Retry,
    /// Gone, with its folders. Only one that nobody ever had.
    Discard,
    /// Gone; its data is kept for so many milliseconds.
    Delete(i64),
    /// As it was before it was deleted.
    Undelete,
    /// The data of this archive, which is in its place already.
    Restore(i64),
    /// This configuration, whose file is in its place already.
    Configure(i64),
    /// Another plan.
    Plan(PlanName),
    /// The newest release, also where it went back from that.
    Upgrade,
}

/// What came of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The instance.
    pub row: Row,
    /// Whether this call made it.
    pub new: bool,
}

impl Registry {
    /// Takes an instance in, with this plan; the same call again finds it, whatever its plan is by then.
    ///
    /// # Errors
    ///
    /// [`Error::IdTaken`], [`Error::SlugTaken`], [`Error::Busy`], [`Error::Database`].
    pub async fn register(&self, wanted: &RegisterInstance, plan: &PlanName) -> Result<Registered, Error> {
        let mut tries = TRIES;
        loop {
            match self.get(wanted.instance_id).await {
                Ok(row) if row.account_id == wanted.account_id && row.slug == wanted.slug => {
                    return Ok(Registered { row, new: false });
                }
                Ok(_) => return Err(Error::IdTaken),
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
            let holder = sqlx::query_scalar::<_, String>("SELECT id FROM instances WHERE slug = $1")
                .bind(wanted.slug.as_str())
                .fetch_optional(self.store.pool())
                .await?;
            match holder {
                // The same call, made twice at once: the other one took it in since the look above.
                Some(holder) if holder == wanted.instance_id.to_string() => continue,
                Some(_) => return Err(Error::SlugTaken),
                None => {}
            }
            tries -= 1;
            let inserting = self.strikes.pass("registry.insert", wanted.instance_id, self.insert(wanted, plan));
            match inserting.await {
                Ok(row) => return Ok(Registered { row, new: true }),
                // Somebody took the id or the slug in between: look again which.
                Err(Error::Database(error)) if store::is_unique_violation(&error) && tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn insert(&self, wanted: &RegisterInstance, plan: &PlanName) -> Result<Row, Error> {
        let now_ms = self.now_ms();
        let mut transaction = self.store.begin().await?;
        // Always in this order: who takes one of them waits for the other.
        let number = next(&mut transaction, "instance").await?;
        let uid = match pool::take_over(&mut transaction, wanted.instance_id).await? {
            Some(uid) => uid,
            None => next(&mut transaction, "uid").await?,
        };
        let columns = sqlx::query_as::<_, Columns>(
            "INSERT INTO instances (id, number, uid, slug, account_id, desired, generation, restart_generation, \
             config_generation, observed_generation, applied_restart_generation, applied_config_generation, \
             refused_config_generation, phase, route, registered, attempts, next_attempt_at_ms, version, last_event, \
             created_at_ms, updated_at_ms, plan) \
             VALUES ($1, $2, $3, $4, $5, $6, 1, 0, 0, 0, 0, 0, 0, $7, '', 0, 0, 0, 1, 1, $8, $9, $10) RETURNING *",
        )
        .bind(wanted.instance_id.to_string())
        .bind(number)
        .bind(uid)
        .bind(wanted.slug.as_str())
        .bind(wanted.account_id.to_string())
        .bind(word(&Desired::Running))
        .bind(word(&Phase::Accepted))
        .bind(now_ms)
        .bind(now_ms)
        .bind(plan.as_str())
        .fetch_one(&mut *transaction)
        .await?;
        let row = Row::try_from(columns)?;
        let event = NewEvent { code: EventCode::Accepted, actor: wanted.account_id.to_string(), detail: None };
        insert_events(&mut transaction, &row, 0, &[event], now_ms).await?;
        transaction.commit().await?;
        Ok(row)
    }

    /// The plan of the newest instance that an account had before: an account has one plan, whatever became of what it was for.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn plan_of(&self, account: AccountId) -> Result<Option<PlanName>, Error> {
        let plan: Option<String> =
            sqlx::query_scalar("SELECT plan FROM instances WHERE account_id = $1 ORDER BY number DESC LIMIT 1")
                .bind(account.to_string())
                .fetch_optional(self.store.pool())
                .await?;
        plan.map(|plan| plan.parse().map_err(|_| Error::Corrupt { column: "plan" })).transpose()
    }

    /// Writes a person's wish down; the row with it. A wish that is fulfilled already changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] also when it is another person's; [`Error::HadOwner`]; [`Error::Database`].
    pub async fn wish(&self, id: InstanceId, account: AccountId, wish: Wish) -> Result<Row, Error> {
        self.wish_of(id, Some(account), &wish).await
    }

    /// The same for the operator, whoever owns it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Database`].
    pub async fn operator_wish(&self, id: InstanceId, wish: Wish) -> Result<Row, Error> {
        self.wish_of(id, None, &wish).await
    }

    /// The same for whoever it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] also when it is another person's; [`Error::Deleted`]; [`Error::DeletionFinal`]; [`Error::Database`].
    pub async fn wish_by(&self, id: InstanceId, by: By, wish: Wish) -> Result<Row, Error> {
        self.wish_of(id, by.account(), &wish).await
    }

    /// Whether this can be wished of it at present.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Deleted`], [`Error::DeletionFinal`].
    pub fn may_be_wished(&self, row: &Row, wish: &Wish) -> Result<(), Error> {
        may_be_wished(row, wish, self.now_ms())
    }

    async fn wish_of(&self, id: InstanceId, account: Option<AccountId>, wish: &Wish) -> Result<Row, Error> {
        for _ in 0..TRIES {
            let row = match account {
                Some(account) => self.get_owned(id, account).await?,
                None => self.get(id).await?,
            };
            let now_ms = self.now_ms();
            may_be_wished(&row, wish, now_ms)?;
            if *wish == Wish::Discard && (row.has_its_owner() || self.ever_registered(id).await?) {
                return Err(Error::HadOwner);
            }
            let Some((next, code)) = wished(row.clone(), wish, now_ms) else { return Ok(row) };
            let detail = match wish {
                Wish::Configure(generation) => Some(generation.to_string()),
                Wish::Plan(plan) => Some(plan.to_string()),
                Wish::Delete(_) => next.deletion.map(|deletion| deletion.data_until_ms.to_string()),
                Wish::Suspend(why) => Some(why.clone()),
                _ => None,
            };
            let person = account.filter(|_| !matches!(wish, Wish::Suspend(_)));
            let actor = person.map_or_else(|| "operator".into(), |account| account.to_string());
            let event = NewEvent { code, actor, detail };
            if let Some(written) = self.write(next, &[event]).await? {
                return Ok(written);
            }
            // The reconciler or another wish was quicker: on what is true now.
        }
        // Busy beyond reason; the caller tells people to try again.
        Err(Error::Database(sqlx::Error::PoolTimedOut))
    }

    /// Whether it ever had its owner: what one who lost it had is in its data.
    async fn ever_registered(&self, id: InstanceId) -> Result<bool, Error> {
        let told = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM events WHERE instance_id = $1 AND code = $2")
            .bind(id.to_string())
            .bind(word(&EventCode::Registered))
            .fetch_one(self.store.pool())
            .await?;
        Ok(told > 0)
    }

    /// Writes events down that change nothing of the instance; the row with them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::Database`].
    pub async fn tell(&self, id: InstanceId, events: Vec<NewEvent>) -> Result<Row, Error> {
        let progress = Progress { events, ..Progress::default() };
        for _ in 0..TRIES {
            let row = self.get(id).await?;
            if let Some(written) = self.record(&row, &progress).await? {
                return Ok(written);
            }
            // Somebody else was quicker: on what is true now.
        }
        Err(Error::Database(sqlx::Error::PoolTimedOut))
    }
}

impl Registry {
    /// Writes down whether an instance's data is over its limit; the row as it is then, `None` when that was written already.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Database`].
    pub async fn set_disk_full(&self, id: InstanceId, is_full: bool, event: NewEvent) -> Result<Option<Row>, Error> {
        for _ in 0..TRIES {
            let row = self.get(id).await?;
            if row.disk_full == is_full {
                return Ok(None);
            }
            let next = Row { disk_full: is_full, ..row };
            if let Some(written) = self.write(next, std::slice::from_ref(&event)).await? {
                return Ok(Some(written));
            }
        }
        Err(Error::Database(sqlx::Error::PoolTimedOut))
    }
}

impl Registry {
    /// Writes down that an instance, as it was seen, must not go on, and why; the row as it is then, `None` when it is not to be
    /// up anyway, or something was wished of it since: that may have mended it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Database`].
    pub async fn give_up(&self, seen: &Row, why: InstanceError) -> Result<Option<Row>, Error> {
        for _ in 0..TRIES {
            let row = self.get(seen.id).await?;
            if row.generation != seen.generation {
                return Ok(None);
            }
            // What an archive is about to take the place of is no reason either.
            if row.desired != Desired::Running || row.phase == Phase::Failed || row.archive_pending() {
                return Ok(None);
            }
            let event = NewEvent::of(EventCode::Failed).detail(&why.code);
            let next = Row {
                phase: Phase::Failed,
                route: Some(RouteState::Failed),
                error: Some(why.clone()),
                sleep: Sleep::Awake,
                ready_run: None,
                ready_at_ms: None,
                ..row
            };
            if let Some(written) = self.write(next, &[event]).await? {
                return Ok(Some(written));
            }
        }
        Err(Error::Database(sqlx::Error::PoolTimedOut))
    }
}

/// The next number of this name, which is given to nobody else.
pub(super) async fn next(transaction: &mut store::Transaction, name: &str) -> Result<i64, Error> {
    let taken = sqlx::query_scalar("UPDATE numbers SET newest = newest + 1 WHERE name = $1 RETURNING newest");
    Ok(taken.bind(name).fetch_one(&mut **transaction).await?)
}

/// Whether anything can be wished of it: not when it is gone, and of one that is deleted only that it is not, or that it comes
/// back stopped.
fn may_be_wished(row: &Row, wish: &Wish, now_ms: i64) -> Result<(), Error> {
    let deletion = match (row.desired, row.deletion) {
        (Desired::Running | Desired::Stopped, _) => return Ok(()),
        (Desired::Deleted, Some(deletion)) if row.phase != Phase::Deleted => deletion,
        (Desired::Deleted, _) => return Err(Error::NotFound),
    };
    match wish {
        // Removing may have begun, which is written down, or may begin at any moment.
        Wish::Undelete if row.phase == Phase::Deleting || deletion.data_until_ms <= now_ms => Err(Error::DeletionFinal),
        Wish::Undelete | Wish::Delete(_) | Wish::Stop | Wish::Suspend(_) => Ok(()),
        _ => Err(Error::Deleted),
    }
}

/// The row with the wish in it, and how it is told; `None` when there is nothing to change.
pub(crate) fn wished(mut row: Row, wish: &Wish, now_ms: i64) -> Option<(Row, EventCode)> {
    let running = row.desired == Desired::Running;
    let failed = row.phase == Phase::Failed;
    let code = match wish {
        Wish::Stop | Wish::Suspend(_) if row.desired == Desired::Stopped => return None,
        // It is to come back so.
        Wish::Stop | Wish::Suspend(_)
            if row.desired == Desired::Deleted && row.before_deletion == Some(Desired::Stopped) =>
        {
            return None;
        }
        Wish::Stop | Wish::Suspend(_) if row.desired == Desired::Deleted => {
            row.before_deletion = Some(Desired::Stopped);
            EventCode::StopRequested
        }
        Wish::Stop | Wish::Suspend(_) => {
            row.desired = Desired::Stopped;
            // From here on its end is no surprise, also when another wish comes before the end was written down.
            row.ready_run = None;
            EventCode::StopRequested
        }
        // One that has failed already, though it is not given up yet, gets all of its attempts again.
        Wish::Start if running && !failed && row.attempts == 0 && row.sleep == Sleep::Awake => return None,
        Wish::Start => {
            row.desired = Desired::Running;
            EventCode::StartRequested
        }
        Wish::Restart => {
            row.desired = Desired::Running;
            row.restart_generation += 1;
            EventCode::RestartRequested
        }
        Wish::Retry if !running || (!failed && row.attempts == 0) => return None,
        Wish::Retry => EventCode::RetryRequested,
        Wish::Discard => {
            row.desired = Desired::Deleted;
            row.ready_run = None;
            EventCode::DiscardRequested
        }
        Wish::Delete(_) if row.desired == Desired::Deleted => return None,
        Wish::Delete(kept_ms) => {
            row.before_deletion = Some(row.desired);
            row.desired = Desired::Deleted;
            row.deletion = Some(Deletion { asked_at_ms: now_ms, data_until_ms: now_ms.saturating_add(*kept_ms) });
            row.ready_run = None;
            // Its identity ends with it. Should it come back, it gets one anew, and with that nobody is signed in.
            row.registered = false;
            row.wake_keys = Vec::new();
            // Nobody gets to it any more, and it gets nowhere, however long it takes to stop it.
            row.route = Some(RouteState::Deleted);
            EventCode::DeleteRequested
        }
        Wish::Undelete if row.desired != Desired::Deleted => return None,
        Wish::Undelete => {
            row.desired = row.before_deletion.take().unwrap_or(Desired::Running);
            row.deletion = None;
            // It may never have been down, and what it was told last it hears at its start.
            row.restart_generation += 1;
            row.phase = if row.desired == Desired::Running { Phase::Accepted } else { Phase::Stopping };
            EventCode::UndeleteRequested
        }
        Wish::Restore(generation) if *generation <= row.archive_generation => return None,
        Wish::Restore(generation) => {
            row.archive_generation = *generation;
            row.desired = Desired::Running;
            row.ready_run = None;
            // Whose identity may be in that data nobody knows.
            row.registered = false;
            if row.route == Some(RouteState::Running) {
                row.route = Some(RouteState::Starting);
            }
            EventCode::RestoreRequested
        }
        Wish::Configure(generation) if *generation <= row.config_generation => return None,
        Wish::Configure(generation) => {
            row.config_generation = *generation;
            EventCode::ConfigRequested
        }
        Wish::Upgrade if row.refused_release.is_none() => return None,
        Wish::Upgrade => {
            row.refused_release = None;
            EventCode::UpgradeRequested
        }
        Wish::Plan(plan) if *plan == row.plan => return None,
        // The same program with other limits: whoever is at it may finish.
        Wish::Plan(plan) if plan.is_workspace() && row.plan.is_workspace() => {
            row.plan = plan.clone();
            EventCode::PlanRequested
        }
        Wish::Plan(plan) => {
            row.plan = plan.clone();
            row.ready_run = None;
            // Of another program.
            (row.release, row.refused_release) = (None, None);
            // Who lets people in may be somebody else now, and what still runs is made for who did: nobody gets to it.
            if row.route == Some(RouteState::Running) {
                row.route = Some(RouteState::Starting);
            }
            EventCode::PlanRequested
        }
    };
    // An operator's other plan takes effect when it wakes; everybody else wants to see something of it.
    if !matches!(wish, Wish::Plan(_)) {
        row.sleep = Sleep::Awake;
    }
    row.generation += 1;
    // Somebody cares again: everything gets its full number of attempts, at once.
    row.attempts = 0;
    row.next_attempt_at_ms = 0;
    row.error = None;
    if failed && row.desired == Desired::Running {
        row.phase = if row.has_its_owner() { Phase::Starting } else { Phase::Accepted };
    }
    Some((row, code))
}
