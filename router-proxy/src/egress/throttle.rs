//! What passes through an instance's connections: counted, and held to the instance's rate.
//!
//! All connections of an instance share one allowance in each direction, so that opening more of them gains nothing.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::tenant::Tenant;

/// The most that is let through in one go.
const CHUNK: usize = 64 << 10;
/// How much of a second must have come together before anything is let through: many small pieces cost more than they
/// bring.
const SHARE: f64 = 0.05;

/// An allowance that fills up steadily: so many bytes a second, and one second's worth saved up at most.
#[derive(Debug)]
pub struct Allowance {
    /// Bytes a second; `None` is no limit.
    rate: Option<f64>,
    saved: Mutex<(f64, Instant)>,
}

impl Allowance {
    /// So many bytes a second; 0 is no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        let rate = (bytes_per_second > 0).then_some(bytes_per_second as f64);
        Self { rate, saved: Mutex::new((rate.unwrap_or_default(), Instant::now())) }
    }

    /// Takes as much as there is, `wanted` at most.
    ///
    /// # Errors
    /// How long until there is something.
    fn take(&self, wanted: usize) -> Result<usize, Duration> {
        let wanted = wanted.min(CHUNK);
        let Some(rate) = self.rate else { return Ok(wanted) };
        // Nothing panics under the lock.
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        saved.0 = (saved.0 + rate * now.duration_since(saved.1).as_secs_f64()).min(rate);
        saved.1 = now;
        let least = (rate * SHARE).min(wanted as f64).max(1.0);
        if saved.0 < least {
            return Err(Duration::from_secs_f64((least - saved.0) / rate) + Duration::from_millis(1));
        }
        let taken = wanted.min(saved.0 as usize);
        saved.0 -= taken as f64;
        Ok(taken)
    }

    /// Puts back what was not needed.
    fn put_back(&self, unused: usize) {
        if self.rate.is_some() && unused > 0 {
            self.saved.lock().unwrap_or_else(PoisonError::into_inner).0 += unused as f64;
        }
    }
}

/// A connection to the outside, counted and held to its instance's rate.
pub struct Throttled<S> {
    inner: S,
    tenant: Arc<Tenant>,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl<S> Throttled<S> {
    /// For this instance.
    pub fn new(inner: S, tenant: Arc<Tenant>) -> Self {
        Self { inner, tenant, reading: None, writing: None }
    }
}

/// Waits for an allowance.
fn poll_take(
    allowance: &Allowance,
    wanted: usize,
    waiting: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<usize> {
    loop {
        if let Some(sleep) = waiting {
            ready!(sleep.as_mut().poll(cx));
            *waiting = None;
        }
        match allowance.take(wanted) {
            Ok(taken) => return Poll::Ready(taken),
            Err(until) => *waiting = Some(Box::pin(tokio::time::sleep(until))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Throttled<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let allowance = &this.tenant.inward.allowance;
        let taken = ready!(poll_take(allowance, to.remaining(), &mut this.reading, cx));
        let before = to.filled().len();
        let polled = Pin::new(&mut (&mut this.inner).take(taken as u64)).poll_read(cx, to);
        let passed = to.filled().len() - before;
        allowance.put_back(taken - passed);
        this.tenant.inward.count(passed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Throttled<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let allowance = &this.tenant.outward.allowance;
        let taken = ready!(poll_take(allowance, bytes.len(), &mut this.writing, cx));
        let polled = Pin::new(&mut this.inner).poll_write(cx, &bytes[..taken]);
        let passed = if let Poll::Ready(Ok(n)) = polled { n } else { 0 };
        allowance.put_back(taken - passed);
        this.tenant.outward.count(passed);
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use contracts::InstanceId;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;
    use crate::egress::tenant::{Limits, Tenants};

    fn tenant(bytes_per_second: u64) -> Arc<Tenant> {
        let limits = Limits { bytes_per_second, ..Limits::default() };
        let id = InstanceId::from_uuid(uuid::Uuid::from_u128(1));
        Tenants::new(limits, clock::Clock::system()).get(id)
    }

    /// Sends so many bytes over so many connections at once, each way; how long that takes.
    async fn send(tenant: &Arc<Tenant>, connections: usize, bytes: usize) -> Duration {
        let since = Instant::now();
        let sending = (0..connections).map(|_| async {
            let (near, mut far) = duplex(1 << 20);
            let (mut reader, mut writer) = tokio::io::split(Throttled::new(near, Arc::clone(tenant)));
            let out = async {
                writer.write_all(&vec![1; bytes]).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (mut came, mut reached) = (Vec::new(), Vec::new());
            let (mut far_reader, mut far_writer) = tokio::io::split(&mut far);
            let back = async {
                far_writer.write_all(&vec![2; bytes]).await.unwrap();
                far_writer.shutdown().await.unwrap();
            };
            let (_, _, a, b) =
                tokio::join!(out, back, reader.read_to_end(&mut came), far_reader.read_to_end(&mut reached));
            assert_eq!((a.unwrap(), b.unwrap()), (bytes, bytes));
            assert!(came.iter().all(|byte| *byte == 2) && reached.iter().all(|byte| *byte == 1));
        });
        futures_util::future::join_all(sending).await;
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_instances_connections_share_its_rate() {
        for connections in [1, 10] {
            let tenant = tenant(100_000);
            let took = send(&tenant, connections, 1_000_000 / connections).await;
            // A second's worth is saved up at the start.
            assert!((8.9..9.6).contains(&took.as_secs_f64()), "{connections} connections: {took:?}");
            assert_eq!((tenant.outward.bytes(), tenant.inward.bytes()), (1_000_000, 1_000_000));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let tenant = tenant(0);
        assert_eq!(send(&tenant, 3, 1_000_000).await, Duration::ZERO);
        assert_eq!(tenant.outward.bytes(), 3_000_000);
    }
}
