//! Whether a name can be had, while it is being typed.

use std::{collections::HashMap, net::IpAddr, sync::Mutex};

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use clock::Clock;
use contracts::{Slug, SlugError, authz::SlugAvailability};
use http::StatusCode;
use serde::Serialize;
use service::{Json, Problem};

use crate::{Portal, address, session::away, texts::Texts};

/// Look-ups an address may make at once, and how many it gets back a second.
const BURST: f64 = 40.0;
const PER_SECOND: f64 = 2.0;
/// How many addresses are remembered; beyond, those that have waited long enough are forgotten first.
const REMEMBERED: usize = 10_000;

/// What the sign-up form is told.
#[derive(Debug, Serialize)]
pub struct Verdict {
    available: bool,
    /// What to show: why not, or that it is free.
    text: String,
}

/// `GET /api/slugs/{text}`.
pub async fn availability(
    State(portal): State<Portal>,
    locale: locale::Locale,
    client: address::Client,
    Path(text): Path<String>,
) -> Result<Response, Problem> {
    if !portal.limiter().admit(client.0) {
        return Err(
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "Slow down a little.").retry_after(5)
        );
    }
    let texts = Texts(locale);
    let availability = match Slug::parse_new(&text) {
        Err(error) => SlugAvailability { available: false, code: Some(error.code().into()) },
        // Only what has a slug's shape becomes part of a path.
        Ok(slug) => portal.authz().get(&format!("/portal/slugs/{slug}")).await.map_err(away)?,
    };
    let text = if availability.available {
        texts.t("register.slug_free")
    } else {
        texts.error(availability.code.as_deref().unwrap_or("slug_taken"))
    };
    Ok(Json(Verdict { available: availability.available, text: text.into() }).into_response())
}

/// The fault of a name that has no slug's shape or is reserved.
pub fn fault(text: &str, texts: Texts) -> Option<String> {
    let error: SlugError = Slug::parse_new(text).err()?;
    Some(texts.error(error.code()).into())
}

/// A token bucket an address.
pub struct Limiter {
    clock: Clock,
    buckets: Mutex<HashMap<IpAddr, (f64, i64)>>,
}

impl Limiter {
    /// Full buckets.
    pub fn new(clock: Clock) -> Self {
        Self { clock, buckets: Mutex::default() }
    }

    /// Whether one more is allowed. An IPv6 network of 64 bits counts as one client.
    pub fn admit(&self, client: IpAddr) -> bool {
        let client = service::address::network(client);
        let now = self.clock.now_ms();
        let refilled = |left: f64, since: i64| {
            // Lossless for any span that matters; a clock that went back adds nothing.
            #[allow(clippy::cast_precision_loss)]
            let seconds = (now - since).max(0) as f64 / 1000.0;
            (left + seconds * PER_SECOND).min(BURST)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&client) {
            buckets.retain(|_, (left, since)| refilled(*left, *since) < BURST);
            if buckets.len() >= REMEMBERED {
                return false;
            }
        }
        let (left, since) = buckets.entry(client).or_insert((BURST, now));
        let level = refilled(*left, *since);
        let admitted = level >= 1.0;
        (*left, *since) = (if admitted { level - 1.0 } else { level }, now);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_trickle_for_each_address() {
        let (clock, hand) = Clock::manual(0);
        let limiter = Limiter::new(clock);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!((0..100).filter(|_| limiter.admit(a)).count(), 40);
        assert!(limiter.admit(b));
        hand.advance_ms(1_000);
        assert_eq!((0..100).filter(|_| limiter.admit(a)).count(), 2);
        hand.advance_ms(-60_000);
        assert!(!limiter.admit(a));
        let net = |last: u16| format!("2001:db8::{last:x}").parse::<IpAddr>().unwrap();
        assert_eq!((0..100).filter(|last| limiter.admit(net(*last))).count(), 40);
    }

    #[test]
    fn memory_is_bounded() {
        let (clock, hand) = Clock::manual(0);
        let limiter = Limiter::new(clock);
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        assert_eq!((0..20_000).filter(|n| limiter.admit(address(*n))).count(), REMEMBERED);
        hand.advance_ms(1_000);
        assert!(limiter.admit(address(50_000)));
    }
}
