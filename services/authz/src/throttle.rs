//! Slowing down whoever guesses passwords, without locking out whose password is guessed.
//!
//! Three counters, each with a number of failures that are free and a pause that doubles with every one after that:
//!
//! | counter | free | longest pause | a success there |
//! | --- | --- | --- | --- |
//! | this account from this address | 5 | 15 min | clears it |
//! | this account from everywhere | 50 | 1 min | takes back itself only |
//! | this address, whatever the account | 100 | 15 min | takes back itself only |
//!
//! An address from which the account has signed in within 90 days is known: it is held to the first counter alone, so that
//! nothing others do to an account or in a shared network locks its person out. (A cookie that names a device is the better
//! sign, and takes the address's place here when the portal has one.) IPv6 addresses count by their /64. A counter is
//! forgotten after an hour without a failure.
//!
//! An attempt is counted as failed before the password is looked at and taken back if it was right: five hundred at once
//! are not five hundred free ones. While a pause lasts nothing is looked at or counted, so it cannot be prolonged.
//! People who do not exist are counted like those who do.

use std::net::{IpAddr, Ipv6Addr};

use http::StatusCode;
use service::Problem;
use sqlx::AnyConnection;

use crate::{app::App, refused::Answer};

/// After how long without a failure a counter begins anew.
pub(crate) const FORGOTTEN_MS: i64 = 60 * 60 * 1000;
/// For how long an address stays known.
pub(crate) const KNOWN_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// How patient a counter is.
#[derive(Clone, Copy)]
struct Limit {
    free: i64,
    longest_pause_s: i64,
}

const PAIR: Limit = Limit { free: 5, longest_pause_s: 900 };
const ACCOUNT: Limit = Limit { free: 50, longest_pause_s: 60 };
const ADDRESS: Limit = Limit { free: 100, longest_pause_s: 900 };

impl Limit {
    /// The pause after so many failures, in milliseconds.
    fn pause_ms(self, failures: i64) -> i64 {
        let beyond = failures - self.free;
        if beyond < 0 { 0 } else { 1_000 * self.longest_pause_s.min(1 << beyond.min(20)) }
    }
}

/// One attempt to sign in, counted as failed until it is said to be otherwise.
pub(crate) struct Attempt {
    pair: String,
    /// The counters of the account and of the address; none for a known address.
    shared: Vec<String>,
}

/// Counts an attempt on `subject` (an account's id, or what was typed where there is no account) from `address`.
///
/// # Errors
/// 429 `too_many_attempts` with Retry-After, and nothing is counted.
pub(crate) async fn begin(app: &App, subject: &str, address: IpAddr) -> Answer<Attempt> {
    let address = network(address);
    let now = app.clock.now_ms();
    let pair = app.seal.name(&["pair", subject, &address]);
    let mut transaction = app.store.begin().await?;
    let (known,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM known_addresses WHERE scope = $1 AND last_seen_ms > $2")
            .bind(pair.clone())
            .bind(now - KNOWN_MS)
            .fetch_one(&mut *transaction)
            .await?;
    let mut counters = vec![];
    if known == 0 {
        counters.push((app.seal.name(&["account", subject]), ACCOUNT));
    }
    counters.push((pair.clone(), PAIR));
    if known == 0 {
        counters.push((app.seal.name(&["address", &address]), ADDRESS));
    }
    // Always in this order: two attempts that share counters wait for one another, but never in a circle.
    let mut wait_ms = 0;
    for (scope, limit) in &counters {
        wait_ms = wait_ms.max(count(&mut transaction, scope, *limit, now).await?);
    }
    if wait_ms > 0 {
        transaction.rollback().await?;
        metrics::counter!("authz_sign_ins_total", "outcome" => "throttled").increment(1);
        return Err(too_many(wait_ms).into());
    }
    transaction.commit().await?;
    let shared = counters.into_iter().map(|(scope, _)| scope).filter(|scope| *scope != pair).collect();
    Ok(Attempt { pair, shared })
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
    /// The password was right: the pair starts anew, the shared counters lose this attempt alone, the address is known.
    pub async fn succeeded(&self, db: &mut AnyConnection, now: i64) -> Result<(), sqlx::Error> {
        self.take_back(db).await?;
        sqlx::query("DELETE FROM login_failures WHERE scope = $1").bind(self.pair.clone()).execute(&mut *db).await?;
        sqlx::query(
            "INSERT INTO known_addresses (scope, last_seen_ms) VALUES ($1, $2)
             ON CONFLICT (scope) DO UPDATE SET last_seen_ms = $2",
        )
        .bind(self.pair.clone())
        .bind(now)
        .execute(db)
        .await?;
        Ok(())
    }

    /// Nobody looked at the password: the attempt does not count.
    pub async fn withdrawn(&self, db: &mut AnyConnection) -> Result<(), sqlx::Error> {
        self.take_back(db).await?;
        undo(db, &self.pair).await
    }

    async fn take_back(&self, db: &mut AnyConnection) -> Result<(), sqlx::Error> {
        for scope in &self.shared {
            undo(db, scope).await?;
        }
        Ok(())
    }
}

/// Takes one failure and its pause back. The pause before it was over, or there would have been no attempt.
async fn undo(db: &mut AnyConnection, scope: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE login_failures SET failures = failures - 1, blocked_until_ms = 0 WHERE scope = $1 AND failures > 0",
    )
    .bind(scope.to_owned())
    .execute(db)
    .await
    .map(drop)
}

/// What an address counts as: itself, or the /64 that one IPv6 subscriber has whole.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).to_string(),
    }
}

fn too_many(wait_ms: i64) -> Problem {
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
        assert_eq!(ACCOUNT.pause_ms(10_000), 60_000);
    }

    #[test]
    fn an_ipv6_subscriber_is_one_address_and_a_mapped_one_is_ipv4() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
