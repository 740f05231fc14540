//! Stands between a client's connection and hyper: passes what [`Framing`] finds good, and ends what stalls.
//!
//! A head that is refused becomes a request of our own making, of the method [`REFUSED`], which no client can send; so
//! the refusal is answered in its turn, like everything else, by the service. In a body there is no such way: there the
//! connection fails.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use service::stall::{STALL, Stall, Taken};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::framing::{Framing, Refusal, Step};

/// The method of a request that stands for a refused one; its path is the refusal's place in [`Refusal::ALL`].
pub const REFUSED: &str = "BEAVER-REFUSED";

/// How long the first head of a connection may take, and every other one from its first byte.
const HEAD: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 8 << 10;
/// How much of what follows a refused head is read.
const MAX_DISCARDED: usize = 256 << 10;

/// Tells a connection's guard what its last request to switch protocols came to.
#[derive(Clone, Default)]
pub struct Switch(Arc<AtomicU8>);

const UNDECIDED: u8 = 0;
const SWITCHED: u8 = 1;
const STAYED: u8 = 2;

impl Switch {
    /// From here on the bytes are no HTTP.
    pub fn switched(&self) {
        self.0.store(SWITCHED, Ordering::Release);
    }

    /// The connection goes on with HTTP.
    pub fn stayed(&self) {
        self.0.store(STAYED, Ordering::Release);
    }
}

/// A client's connection, guarded.
pub struct Guard<S> {
    io: Taken<S>,
    framing: Framing,
    switch: Switch,
    /// Bytes read; the first `good` of them may pass.
    buffer: BytesMut,
    good: usize,
    refused: bool,
    discarded: usize,
    tunnel: bool,
    /// Whether a head has passed: then the connection may lie idle, for as long as hyper lets it.
    begun: bool,
    heading: Stall,
    reading: Stall,
}

impl<S> Guard<S> {
    /// Guards `io`.
    pub fn new(io: S, switch: Switch) -> Self {
        Self {
            io: Taken::new(io),
            framing: Framing::default(),
            switch,
            buffer: BytesMut::new(),
            good: 0,
            refused: false,
            discarded: 0,
            tunnel: false,
            begun: false,
            heading: Stall::default(),
            reading: Stall::default(),
        }
    }

    /// Whether a head is due: the first, or the rest of one of which something has come. It is not one byte at a time
    /// that it may come, so nothing but its end stops its clock.
    fn awaits_head(&self) -> bool {
        !self.refused && (!self.begun || !self.buffer.is_empty()) && !self.framing.is_switching()
    }

    /// Lets as much of the buffer pass as is good.
    fn advance(&mut self) -> io::Result<()> {
        while !self.refused && self.good < self.buffer.len() {
            let in_body = self.framing.in_body();
            match self.framing.step(&self.buffer[self.good..]) {
                Step::Pass(n) => {
                    self.good += n;
                    if !in_body {
                        self.begun = true;
                        self.heading.clear();
                    }
                }
                Step::More => break,
                Step::Hold => match self.switch.0.swap(UNDECIDED, Ordering::AcqRel) {
                    SWITCHED => {
                        self.tunnel = true;
                        self.good = self.buffer.len();
                    }
                    STAYED => self.framing.not_switched(),
                    // hyper asks again when the answer has been sent, whichever it is.
                    _ => break,
                },
                Step::Refuse(refusal) => {
                    metrics::counter!("router_edge_refused_total").increment(1);
                    if in_body {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "the body's framing is malformed"));
                    }
                    self.buffer.truncate(self.good);
                    let place = Refusal::ALL.iter().position(|r| *r == refusal).unwrap_or_default();
                    let request = format!("{REFUSED} /{place} HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n");
                    self.buffer.extend_from_slice(request.as_bytes());
                    self.good = self.buffer.len();
                    self.refused = true;
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // An upgrade may have been decided without a byte being held for it.
            if !this.tunnel && this.switch.0.load(Ordering::Acquire) != UNDECIDED {
                match this.switch.0.swap(UNDECIDED, Ordering::AcqRel) {
                    SWITCHED => {
                        this.tunnel = true;
                        this.good = this.buffer.len();
                    }
                    _ => this.framing.not_switched(),
                }
            }
            if this.good == 0 && !this.buffer.is_empty() {
                this.advance()?;
            }
            if this.good > 0 {
                let n = this.good.min(to.remaining());
                to.put_slice(&this.buffer[..n]);
                this.buffer.advance(n);
                this.good -= n;
                if this.buffer.is_empty() {
                    // An idle connection keeps no memory.
                    this.buffer = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.tunnel {
                return Pin::new(&mut this.io).poll_read(cx, to);
            }
            let free = this.framing.free_bytes();
            if free > 0 && this.buffer.is_empty() {
                // A body's bytes go straight to where they are wanted.
                let before = to.filled().len();
                let polled = Pin::new(&mut (&mut this.io).take(free)).poll_read(cx, to);
                if polled.is_pending() {
                    return this.reading.poll(cx, STALL);
                }
                this.reading.clear();
                this.framing.passed_free((to.filled().len() - before) as u64);
                return polled;
            }
            let mut scratch = [std::mem::MaybeUninit::uninit(); READ_BYTES];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut this.io).poll_read(cx, &mut scratch) {
                Poll::Pending if this.framing.in_body() => return this.reading.poll(cx, STALL),
                Poll::Pending if this.awaits_head() => return this.heading.poll(cx, HEAD),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result?,
            }
            this.reading.clear();
            if this.refused {
                // Read and thrown away, so that closing does not reset the connection before the answer was read; an
                // end here must not look like one to hyper, which would give up the answer.
                this.discarded += scratch.filled().len();
                if scratch.filled().is_empty() || this.discarded > MAX_DISCARDED {
                    return Poll::Pending;
                }
                continue;
            }
            if scratch.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.buffer.extend_from_slice(scratch.filled());
            this.advance()?;
            if this.good == 0 && this.buffer.len() > super::framing::MAX_HEAD + READ_BYTES {
                // Held while a switch of protocols is undecided: what a client sends ahead is bounded too.
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
