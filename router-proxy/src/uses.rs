//! Who uses which instance, and since when nobody has: what decides whether one may sleep.
//!
//! A request that is passed on counts as long as its answer has not ended, and a WebSocket as long as it is open, whosever it
//! is: nothing under way shall be cut, until the instance is gone for good. When it was last used says only what its owner did:
//! a stranger who knocks keeps nobody awake.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use contracts::InstanceId;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, BoxError};

/// For how long a browser that has proved itself the owner's need not be looked at closely again.
const PROVED: Duration = Duration::from_secs(60);

/// How every instance is used.
pub struct Uses {
    begun: Instant,
    all: Mutex<HashMap<InstanceId, Arc<Use>>>,
}

/// How one is.
struct Use {
    begun: Instant,
    in_flight: AtomicU64,
    /// Milliseconds from then until its last use.
    last_ms: AtomicU64,
    /// What its owner's browser showed last, and when that was looked at.
    proved: Mutex<Option<(String, Instant)>>,
    /// Cancelled once the instance is gone for good.
    gone: CancellationToken,
}

impl Use {
    fn mark(&self) {
        self.last_ms.fetch_max(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Default for Uses {
    fn default() -> Self {
        Self { begun: Instant::now(), all: Mutex::default() }
    }
}

impl Uses {
    /// Something is under way with this instance, until what comes back is dropped.
    pub fn enter(&self, id: InstanceId) -> InUse {
        let of = Arc::clone(self.all().entry(id).or_insert_with(|| {
            Arc::new(Use {
                begun: self.begun,
                in_flight: AtomicU64::new(0),
                last_ms: AtomicU64::new(0),
                proved: Mutex::default(),
                gone: CancellationToken::new(),
            })
        }));
        of.in_flight.fetch_add(1, Ordering::SeqCst);
        InUse { of, is_use: false }
    }

    /// How much is under way.
    pub fn in_flight(&self, id: InstanceId) -> u64 {
        self.all().get(&id).map_or(0, |of| of.in_flight.load(Ordering::SeqCst))
    }

    /// When the router began to look.
    pub fn began(&self) -> Instant {
        self.begun
    }

    /// When its owner used it last; when the router began, if that is not known.
    pub fn last(&self, id: InstanceId) -> Instant {
        let ms = self.all().get(&id).map_or(0, |of| of.last_ms.load(Ordering::Relaxed));
        self.begun + Duration::from_millis(ms)
    }

    /// All others are gone for good: what is under way with them ends.
    pub fn keep_only(&self, there: &HashSet<InstanceId>) {
        self.all().retain(|id, of| {
            let keep = there.contains(id);
            if !keep {
                of.gone.cancel();
            }
            keep
        });
    }

    fn all(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Use>>> {
        // Nothing panics under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something under way with an instance.
pub struct InUse {
    of: Arc<Use>,
    /// Whether it is its owner's, whose use lasts until this ends.
    is_use: bool,
}

impl InUse {
    /// It is its owner's.
    pub fn is_use(&mut self) {
        self.is_use = true;
        self.of.mark();
    }

    /// Whether this was shown by its owner's browser a short while ago.
    pub fn is_proved(&self, token: &str) -> bool {
        let proved = self.of.proved.lock().unwrap_or_else(PoisonError::into_inner);
        proved.as_ref().is_some_and(|(known, at)| known == token && at.elapsed() < PROVED)
    }

    /// Its owner's browser has shown this.
    pub fn proved(&self, token: &str) {
        let proved = Some((token.to_owned(), Instant::now()));
        *self.of.proved.lock().unwrap_or_else(PoisonError::into_inner) = proved;
    }

    /// Cancelled once the instance is gone for good.
    pub fn gone(&self) -> CancellationToken {
        self.of.gone.clone()
    }

    /// The same for as long as a body is under way.
    pub fn until_end_of(self, body: Body) -> Lasting {
        Lasting { inner: body, in_use: Some(self) }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.is_use {
            self.of.mark();
        }
        self.of.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body that is a use of an instance until it ends.
pub struct Lasting {
    inner: Body,
    in_use: Option<InUse>,
}

impl HttpBody for Lasting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            this.in_use = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_use_lasts_until_its_end_and_a_strangers_request_is_none() {
        let (uses, id) = (Uses::default(), InstanceId::from_uuid(Uuid::from_u128(1)));
        let begun = Instant::now();
        tokio::time::advance(Duration::from_secs(100)).await;
        let stranger = uses.enter(id);
        let mut owner = uses.enter(id);
        owner.is_use();
        assert_eq!((uses.in_flight(id), uses.last(id)), (2, begun + Duration::from_secs(100)));
        tokio::time::advance(Duration::from_secs(50)).await;
        let body = owner.until_end_of(crate::body::full("x"));
        assert_eq!(uses.last(id), begun + Duration::from_secs(100));
        body.collect().await.unwrap();
        assert_eq!((uses.in_flight(id), uses.last(id)), (1, begun + Duration::from_secs(150)));
        tokio::time::advance(Duration::from_secs(50)).await;
        drop(stranger);
        assert_eq!((uses.in_flight(id), uses.last(id)), (0, begun + Duration::from_secs(150)));

        // One that breaks off in the middle ends too.
        let mut owner = uses.enter(id);
        owner.is_use();
        drop(owner.until_end_of(crate::body::full("x")));
        assert_eq!((uses.in_flight(id), uses.last(id)), (0, begun + Duration::from_secs(200)));
        uses.keep_only(&HashSet::new());
        assert_eq!(uses.last(id), begun, "nothing is kept of who is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_proved_an_owner_holds_for_a_minute() {
        let in_use = Uses::default().enter(InstanceId::from_uuid(Uuid::from_u128(1)));
        assert!(!in_use.is_proved("token"));
        in_use.proved("token");
        assert!(in_use.is_proved("token") && !in_use.is_proved("other"));
        tokio::time::advance(PROVED).await;
        assert!(!in_use.is_proved("token"));
    }
}
