//! When bytes last moved on a connection that is carried through, and whose they were.
//!
//! What is inside cannot be read, being another protocol or encrypted. But who spoke last tells enough: after the asking
//! side's bytes an answer is due; some time after the answering side's, nothing is under way.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep, sleep_until},
};

/// How long after the answering side's last bytes nothing is taken to be under way: longer than the pauses in a
/// model's stream of words.
pub const QUIET: Duration = Duration::from_secs(2);

/// How long a connection may be silent: longer than any answer is waited for.
const OPEN: Duration = Duration::from_secs(2 * 3600);
/// How long, after one side has ended.
const HALF_OPEN: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(60);

/// The last movement on one connection.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Microseconds since then, doubled, plus one when the asking side's bytes were the last.
    last: AtomicU64,
    /// Whether one side has ended.
    half: AtomicBool,
}

impl Activity {
    /// Nothing has moved yet.
    #[allow(clippy::new_without_default, reason = "it begins a measurement")]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), last: AtomicU64::new(0), half: AtomicBool::new(false) })
    }

    fn mark(&self, asked: bool) {
        let us = self.begun.elapsed().as_micros() as u64;
        self.last.store(us << 1 | u64::from(asked), Ordering::Relaxed);
    }

    /// One side has said its last.
    fn end(&self, asked: bool) {
        self.mark(asked);
        self.half.store(true, Ordering::Relaxed);
    }

    /// When bytes last moved, and whether they were the asking side's.
    pub fn last(&self) -> (Instant, bool) {
        let last = self.last.load(Ordering::Relaxed);
        (self.begun + Duration::from_micros(last >> 1), last & 1 == 1)
    }

    /// Ends as soon as nothing is under way: at once on a connection that has lain idle.
    pub async fn settled(&self) {
        loop {
            self.silent(QUIET).await;
            match self.last() {
                (_, true) => sleep(QUIET).await,
                (_, false) => return,
            }
        }
    }

    /// Ends when nothing has moved for so long that nobody can be waiting any more.
    pub async fn abandoned(&self) {
        loop {
            let (at, _) = self.last();
            let limit = if self.half.load(Ordering::Relaxed) { HALF_OPEN } else { OPEN };
            if at.elapsed() >= limit {
                return;
            }
            // That a side has ended is noticed in between.
            sleep_until((at + limit).min(Instant::now() + LOOK)).await;
        }
    }

    /// Ends when nothing has moved for so long.
    pub async fn silent(&self, long: Duration) {
        loop {
            let (at, _) = self.last();
            if at.elapsed() >= long {
                return;
            }
            sleep_until(at + long).await;
        }
    }
}

/// The answering side's end of a connection, watched: what is read from it are answers.
pub struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    /// Marks in `activity` what moves on `inner`.
    pub fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }

    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(polled, Poll::Ready(Ok(n)) if n > 0) {
            self.activity.mark(true);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, to))?;
        if to.filled().len() > before {
            this.activity.mark(false);
        } else if to.remaining() > 0 {
            this.activity.end(false);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.written(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        this.activity.end(true);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_due_is_waited_for_and_an_idle_connection_is_not() {
        let (mut far, near) = duplex(64);
        let activity = Activity::new();
        let mut near = Watched::new(near, Arc::clone(&activity));
        let since = Instant::now();
        activity.settled().await;
        assert_eq!(since.elapsed(), QUIET, "a fresh one may be about to be used");
        let since = Instant::now();
        activity.settled().await;
        assert_eq!(since.elapsed(), Duration::ZERO);

        near.write_all(b"question").await.unwrap();
        let answering = tokio::spawn(async move {
            sleep(Duration::from_secs(30)).await;
            far.write_all(b"answer").await.unwrap();
            far
        });
        let since = Instant::now();
        let reading = tokio::spawn(async move { near.read(&mut [0; 64]).await.map(|_| near) });
        activity.settled().await;
        let waited = since.elapsed();
        assert!(
            waited >= Duration::from_secs(30) + QUIET && waited <= Duration::from_secs(30) + QUIET * 2,
            "{waited:?}"
        );
        drop((answering.await, reading.await));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_late_and_half_a_connection_sooner() {
        let (mut far, near) = duplex(64);
        let activity = Activity::new();
        let mut near = Watched::new(near, Arc::clone(&activity));
        let since = Instant::now();
        let of_task = Arc::clone(&activity);
        let abandoned = tokio::spawn(async move { of_task.abandoned().await });
        // An hour and a half of silence, and it goes on.
        sleep(Duration::from_secs(5400)).await;
        far.write_all(b"answer").await.unwrap();
        near.read_exact(&mut [0; 6]).await.unwrap();
        sleep(Duration::from_secs(5400)).await;
        assert!(!abandoned.is_finished());
        near.shutdown().await.unwrap();
        abandoned.await.unwrap();
        let (ended, limit) = (since.elapsed(), Duration::from_secs(2 * 5400) + HALF_OPEN);
        assert!(ended >= limit && ended <= limit + LOOK, "{ended:?}");
    }
}
