//! The one body type of the data path, and bodies that watch what passes through them. Nothing is collected.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way through.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is known whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that passes frame by frame, its trailers freed of what only Beaver may say.
///
/// `on_end` is called when the last frame has passed; when the body breaks off or is given up, it is only dropped.
pub struct Passing<F: FnOnce()> {
    inner: Incoming,
    on_end: Option<F>,
}

impl<F: FnOnce()> Passing<F> {
    /// Wraps `inner`; `on_end` is called once, when it has ended well.
    pub fn new(inner: Incoming, on_end: F) -> Self {
        let mut passing = Self { inner, on_end: Some(on_end) };
        // hyper does not poll a body that says it has ended.
        if passing.inner.is_end_stream() {
            passing.ended();
        }
        passing
    }

    fn ended(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end();
        }
    }
}

impl<F: FnOnce() + Unpin> HttpBody for Passing<F> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers);
                }
                if this.inner.is_end_stream() {
                    this.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.ended();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body that breaks off as soon as it may not go on.
pub struct Until {
    inner: Body,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Until {
    /// `inner`, as long as `over` is not cancelled.
    pub fn new(inner: Body, over: CancellationToken) -> Self {
        Self { inner, over: Box::pin(over.cancelled_owned()) }
    }
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("what it belongs to is over".into())));
        }
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Trailers may be merged into the headers by whoever reads them: nothing in them may be what headers may not.
fn clean_trailers(trailers: &mut HeaderMap) {
    let bad: Vec<_> = trailers.keys().filter(|name| crate::edge::headers::never_from_outside(name)).cloned().collect();
    for name in bad {
        trailers.remove(name);
    }
}
