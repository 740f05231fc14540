//! Slowing down whoever guesses passwords, without locking out whose password is guessed.
//!
//! Three counters, each with a number of failures that are free and a pause that doubles with every one after that:
//!
//! | counter | free | longest pause | a success there |
//! | --- | --- | --- | --- |
//! | this name from this address | 5 | 15 min | clears it |
//! | this name from everywhere | 50 | 1 min | takes back itself only |
//! | this address, whatever the name | 100 | 15 min | takes back itself only |
//!
//! A name is what was typed, an e-mail address or a slug, in one spelling, whether or not it is anybody's: that both of
//! somebody's names are one account does not show. A device on which the account has signed in ([`crate::devices`]) is held to
//! a counter of its own alone, like the first one: nothing others do to an account or in a shared network locks its person
//! out there. IPv6 addresses count by their /64. A counter is forgotten after an hour without a failure.
//!
//! An attempt is counted as failed before the password is looked at and taken back if it was right: five hundred at once
//! are not five hundred free ones. While a pause lasts nothing is looked at or counted, so it cannot be prolonged.
//! People who do not exist are counted like those who do.

use std::net::IpAddr;

use http::StatusCode;
use service::Problem;
use sqlx::AnyConnection;

use crate::{app::App, refused::Answer};

/// After how long without a failure a counter begins anew.
pub(crate) const FORGOTTEN_MS: i64 = 60 * 60 * 1000;

/// How patient a counter is.
#[derive(Clone, Copy)]
struct Limit {
    free: i64,
    longest_pause_s: i64,
}

const PAIR: Limit = Limit { free: 5, longest_pause_s: 900 };
const NAME: Limit = Limit { free: 50, longest_pause_s: 60 };
const ADDRESS: Limit = Limit { free: 100, longest_pause_s: 900 };

impl Limit {
    /// The pause after so many failures, in milliseconds.
    fn pause_ms(self, failures: i64) -> i64 {
        let beyond = failures - self.free;
        if beyond < 0 { 0 } else { 1_000 * self.longest_pause_s.min(1 << beyond.min(20)) }
    }
}

/// One attempt, counted as failed until it is said to be otherwise.
pub(crate) struct Attempt {
    /// The counter that a success clears.
    own: Counted,
    /// The counters of the name and of the address; none for a known device.
    shared: Vec<Counted>,
    /// When it was counted.
    at_ms: i64,
}

/// A counter that an attempt was added to.
struct Counted {
    scope: String,
    /// When it was added to before; 0 when there was nothing.
    before_ms: i64,
}

/// The counters of attempts on `name` from `address`, or from a `device` that is known to the account, by its series: the one
/// that a success clears, and all of them. Always in this order: two attempts that share counters wait for one another, but
/// never in a circle.
fn counters(app: &App, name: &str, address: &str, device: Option<&str>) -> (String, Vec<(String, Limit)>) {
    match device {
        Some(device) => {
            let own = app.seal.name(&["device", device, name]);
            (own.clone(), vec![(own, PAIR)])
        }
        None => {
            let own = app.seal.name(&["pair", name, address]);
            let (by_name, by_address) = (app.seal.name(&["name", name]), app.seal.name(&["address", address]));
            (own.clone(), vec![(by_name, NAME), (own, PAIR), (by_address, ADDRESS)])
        }
    }
}

/// Refuses whoever [`begin`] would refuse at present, so that they stand in no line. Nothing is counted.
///
/// # Errors
/// 429 `too_many_attempts` with Retry-After.
pub(crate) async fn look(app: &App, name: &str, address: IpAddr, device: Option<&str>) -> Answer<()> {
    let now = app.clock.now_ms();
    for (scope, _) in counters(app, name, &network(address), device).1 {
        let blocked = sqlx::query_scalar::<_, i64>("SELECT blocked_until_ms FROM login_failures WHERE scope = $1");
        let blocked_until_ms = blocked.bind(scope).fetch_optional(app.store.pool()).await?.unwrap_or(0);
        if blocked_until_ms > now {
            return Err(too_many(blocked_until_ms - now).into());
        }
    }
    Ok(())
}

/// Counts an attempt; see [`counters`].
///
/// # Errors
/// 429 `too_many_attempts` with Retry-After, and nothing is counted.
pub(crate) async fn begin(app: &App, name: &str, address: IpAddr, device: Option<&str>) -> Answer<Attempt> {
    let (address, now) = (network(address), app.clock.now_ms());
    let (own, counters) = counters(app, name, &address, device);
    let mut transaction = app.store.begin().await?;
    let (mut wait_ms, mut counted) = (0, vec![]);
    for (scope, limit) in counters {
        let before_ms = last_failed_at_ms(&mut transaction, &scope).await?;
        wait_ms = wait_ms.max(count(&mut transaction, &scope, limit, now).await?);
        counted.push(Counted { scope, before_ms });
    }
    if wait_ms > 0 {
        transaction.rollback().await?;
        return Err(too_many(wait_ms).into());
    }
    transaction.commit().await?;
    let (mut own, shared): (Vec<_>, Vec<_>) = counted.into_iter().partition(|counted| counted.scope == own);
    let own = own.pop().ok_or_else(|| Problem::internal(anyhow::anyhow!("an attempt has a counter of its own")))?;
    Ok(Attempt { own, shared, at_ms: now })
}

async fn last_failed_at_ms(db: &mut AnyConnection, scope: &str) -> Result<i64, sqlx::Error> {
    let last = sqlx::query_scalar("SELECT last_failed_at_ms FROM login_failures WHERE scope = $1")
        .bind(scope.to_owned())
        .fetch_optional(db)
        .await?;
    Ok(last.unwrap_or(0))
}

/// Counts one failure; how long it still is to wait because of earlier ones, in milliseconds.
async fn count(db: &mut AnyConnection, scope: &str, limit: Limit, now: i64) -> Result<i64, sqlx::Error> {
    let (failures, blocked_until_ms): (i64, i64) = sqlx::query_as(
        "INSERT INTO login_failures (scope, failures, last_failed_at_ms, blocked_until_ms) VALUES ($1, 1, $2, 0)
         ON CONFLICT (scope) DO UPDATE SET last_failed_at_ms = $2,
             failures = CASE WHEN login_failures.last_failed_at_ms <= $3 THEN 1 ELSE login_failures.failures + 1 END
         RETURNING failures, blocked_until_ms",
    )
    .bind(scope.to_owned())
    .bind(now)
    .bind(now - FORGOTTEN_MS)
    .fetch_one(&mut *db)
    .await?;
    if blocked_until_ms > now {
        return Ok(blocked_until_ms - now);
    }
    sqlx::query("UPDATE login_failures SET blocked_until_ms = $1 WHERE scope = $2")
        .bind(now + limit.pause_ms(failures))
        .bind(scope.to_owned())
        .execute(db)
        .await?;
    Ok(0)
}

impl Attempt {
    /// The password was right: its own counter starts anew, the shared ones lose this attempt alone.
    pub async fn succeeded(&self, db: &mut AnyConnection) -> Result<(), sqlx::Error> {
        self.take_back(db).await?;
        sqlx::query("DELETE FROM login_failures WHERE scope = $1")
            .bind(self.own.scope.clone())
            .execute(db)
            .await
            .map(drop)
    }

    /// Nobody looked at the password: the attempt does not count.
    pub async fn withdrawn(&self, db: &mut AnyConnection) -> Result<(), sqlx::Error> {
        self.take_back(db).await?;
        self.undo(db, &self.own).await
    }

    async fn take_back(&self, db: &mut AnyConnection) -> Result<(), sqlx::Error> {
        for counted in &self.shared {
            self.undo(db, counted).await?;
        }
        Ok(())
    }

    /// Takes one failure and its pause back, and the time of it unless somebody failed since: or a success an hour would keep a
    /// counter alive. The pause before it was over, or there would have been no attempt.
    async fn undo(&self, db: &mut AnyConnection, counted: &Counted) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE login_failures SET failures = failures - 1, blocked_until_ms = 0,
                 last_failed_at_ms = CASE WHEN last_failed_at_ms = $2 THEN $3 ELSE last_failed_at_ms END
             WHERE scope = $1 AND failures > 0",
        )
        .bind(counted.scope.clone())
        .bind(self.at_ms)
        .bind(counted.before_ms)
        .execute(db)
        .await
        .map(drop)
    }
}

/// What an address counts as, as text.
pub(crate) fn network(address: IpAddr) -> String {
    service::address::network(address).to_string()
}

fn too_many(wait_ms: i64) -> Problem {
    metrics::counter!("authz_sign_ins_total", "outcome" => "throttled").increment(1);
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_attempts",
        "Too many failed attempts. Wait as long as Retry-After says, then try again.",
    )
    .retry_after(u64::try_from(wait_ms.div_euclid(1000) + 1).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_second_to_the_longest() {
        assert_eq!([0, 4, 5, 6, 8, 14, 15, 10_000].map(|n| PAIR.pause_ms(n) / 1000), [0, 0, 1, 2, 8, 512, 900, 900]);
        assert_eq!(NAME.pause_ms(10_000), 60_000);
    }
}
