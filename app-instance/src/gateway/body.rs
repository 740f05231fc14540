//! A provider's body on its way to the caller: as it comes, and never ending cleanly unless it did.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Refusal;
use crate::{
    app::UnderWay,
    upstream::{Failure, FailureKind, SILENCE},
};

/// How long the closing error event has to reach the caller before the connection is broken off.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How many bytes hold `[DONE]` and the empty lines behind it.
const TAIL: usize = 16;

/// Passes frames on. When the provider's connection breaks or falls silent, a stream of events gets an error event and
/// then, like every other body, an aborted connection: official SDKs take a silent end for success.
pub struct PassThrough {
    inner: Incoming,
    events: bool,
    /// The last bytes, where only they can tell whether this was the end.
    tail: Option<Vec<u8>>,
    state: State,
    /// Runs out when the provider is silent for too long; afterwards, when the last words are over.
    timer: Pin<Box<Sleep>>,
    /// Something is under way for as long as this is there.
    _under_way: UnderWay,
}

enum State {
    Flowing,
    /// The error event has been given; this failure follows.
    Closing(Option<Failure>),
    Over,
}

impl PassThrough {
    /// Passes `inner` on; `events` says whether it is a stream of events in plain text, `framed` whether HTTP itself tells
    /// its end. Of one that ends with its connection, `[DONE]` alone tells. Until it is dropped, it is `under_way`.
    pub fn new(inner: Incoming, events: bool, framed: bool, under_way: UnderWay) -> Self {
        let tail = (events && !framed).then(Vec::new);
        let timer = Box::pin(tokio::time::sleep(SILENCE));
        Self { inner, events, tail, state: State::Flowing, timer, _under_way: under_way }
    }

    fn remember(&mut self, frame: &Frame<Bytes>) {
        if let (Some(tail), Some(data)) = (&mut self.tail, frame.data_ref()) {
            tail.extend_from_slice(&data[data.len().saturating_sub(TAIL)..]);
            tail.drain(..tail.len().saturating_sub(TAIL));
        }
    }

    fn fail(&mut self, failure: Failure, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        tracing::warn!(cause = failure.chain(), "the provider's answer broke off");
        if !self.events {
            self.state = State::Over;
            return Poll::Ready(Some(Err(failure)));
        }
        // The empty lines first end whatever event was cut in the middle.
        let event = format!("\n\ndata: {}\n\n", Refusal::upstream(failure.kind).json());
        self.state = State::Closing(Some(failure));
        self.timer.as_mut().reset(Instant::now() + LAST_WORDS);
        // Registers the timer, so that the end comes even if nothing else wakes this task.
        let _ = self.timer.as_mut().poll(cx);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
    }
}

impl Body for PassThrough {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        match &mut this.state {
            State::Over => Poll::Ready(None),
            State::Closing(failure) => {
                std::task::ready!(this.timer.as_mut().poll(cx));
                let failure = failure.take();
                this.state = State::Over;
                Poll::Ready(failure.map(Err))
            }
            State::Flowing => match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.timer.as_mut().reset(Instant::now() + SILENCE);
                    this.remember(&frame);
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(error))) => this.fail(Failure::new(FailureKind::Cut, error), cx),
                Poll::Ready(None) if this.tail.as_ref().is_some_and(|t| !t.trim_ascii_end().ends_with(b"[DONE]")) => {
                    this.fail(Failure::new(FailureKind::Cut, "the connection ended before the stream did"), cx)
                }
                Poll::Ready(None) => {
                    this.state = State::Over;
                    Poll::Ready(None)
                }
                Poll::Pending => match this.timer.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        let silent = Failure::new(FailureKind::Timeout, "the provider was silent for too long");
                        this.fail(silent, cx)
                    }
                    Poll::Pending => Poll::Pending,
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.state {
            State::Flowing => self.tail.is_none() && self.inner.is_end_stream(),
            State::Closing(_) => false,
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        // With a known length there is no room for an error event; such a body is not a stream.
        if self.events { SizeHint::default() } else { self.inner.size_hint() }
    }
}
