//! Waiting for something with whoever knocks.

use service::Shutdown;
use tokio::net::UnixListener;

/// Waits until something is so, which is looked at whenever somebody knocks: they are turned away until then, and come again.
/// False when `stop` came first.
///
/// # Errors
/// When it cannot be looked at, or the socket fails.
pub async fn until(
    listener: &UnixListener,
    is_so: impl Fn() -> anyhow::Result<bool>,
    stop: &Shutdown,
) -> anyhow::Result<bool> {
    loop {
        tokio::select! {
            knock = listener.accept() => drop(knock?),
            () = stop.cancelled() => return Ok(false),
        }
        if is_so()? {
            return Ok(true);
        }
    }
}
