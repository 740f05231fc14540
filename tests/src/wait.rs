//! Waiting for conditions, never for time.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(25);

/// Asks `probe` until it gives a value. An error of the last look is part of what is said when time is up.
///
/// # Errors
/// When `within` is over: names `what` and says what the last look found.
pub async fn until<T, E: Display>(
    what: impl Display,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>, E>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    let mut last = String::from("not yet");
    loop {
        // A look that hangs must not keep the deadline from coming.
        match tokio::time::timeout(within.saturating_sub(begun.elapsed()).max(EVERY), probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => last = "the last look did not end".into(),
        }
        anyhow::ensure!(begun.elapsed() < within, "{what}: not within {within:?} ({last})");
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn it_ends_when_the_condition_holds_and_says_why_it_did_not() {
        let looks = AtomicU32::new(0);
        let found = until("third look", Duration::from_secs(5), async || {
            Ok::<_, String>((looks.fetch_add(1, Ordering::SeqCst) == 2).then_some("here"))
        });
        assert_eq!(found.await.unwrap(), "here");
        let missed = until("never", Duration::from_millis(60), async || Err::<Option<()>, _>("no such thing")).await;
        let said = missed.unwrap_err().to_string();
        assert!(said.contains("never") && said.contains("no such thing"), "{said}");
    }
}
