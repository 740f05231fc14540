//! How a worker is reached.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures_util::FutureExt;
use tokio::sync::Notify;

/// What others leave for a worker.
#[derive(Default)]
pub(super) struct Mailbox {
    /// Something came since the last look began.
    dirty: AtomicBool,
    /// What came may have to do with the row.
    outdated: AtomicBool,
    /// Ends a wait.
    pub(super) look: Notify,
    /// Something was wished; see [`Mailbox::superseded`].
    wish: Notify,
    /// The version of the row with the newest wish that was told of here.
    wished: AtomicI64,
    /// The version of the row that is worked on.
    read: AtomicI64,
}

impl Mailbox {
    /// Something may have changed; nothing of the row.
    pub(super) fn dirty(&self) {
        self.dirty.store(true, Ordering::SeqCst);
    }

    /// Something may have changed, and the row with it.
    pub(super) fn outdated(&self) {
        self.outdated.store(true, Ordering::SeqCst);
        self.dirty();
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// What came until now is seen by the look that begins now; whether the row may have changed, so that it must be read for that.
    pub(super) fn clear(&self) -> bool {
        self.dirty.store(false, Ordering::SeqCst);
        let _ = self.look.notified().now_or_never();
        let _ = self.wish.notified().now_or_never();
        self.outdated.swap(false, Ordering::SeqCst)
    }

    /// Ends a wait, this one or the next.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// A wish was written, as this version of the row.
    pub(super) fn wished(&self, version: i64) {
        self.wished.fetch_max(version, Ordering::SeqCst);
        self.wish.notify_one();
        self.look();
    }

    /// This version of the row is worked on from now on.
    pub(super) fn works_on(&self, version: i64) {
        self.read.store(version, Ordering::SeqCst);
    }

    /// Waits until something else is wanted than what is worked on. Somebody else may have told of a wish before whoever wished it,
    /// and what is under way be for that very wish.
    pub(super) async fn superseded(&self) {
        loop {
            self.wish.notified().await;
            if self.wished.load(Ordering::SeqCst) > self.read.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_that_is_worked_on_already_interrupts_nothing() {
        let mailbox = Mailbox::default();
        let is_superseded = || mailbox.superseded().now_or_never().is_some();
        // Told of between the beginning of a look and what it read.
        mailbox.wished(2);
        mailbox.works_on(2);
        assert!(!is_superseded());
        mailbox.wished(2);
        assert!(!is_superseded());
        mailbox.wished(3);
        assert!(is_superseded());
        // One that is told of late hides no newer one.
        mailbox.wished(4);
        mailbox.wished(2);
        assert!(is_superseded());
        mailbox.wished(5);
        mailbox.clear();
        assert!(!is_superseded(), "it is read now");
        mailbox.works_on(5);
        assert!(!is_superseded());
    }

    #[test]
    fn a_row_is_read_again_for_what_may_have_changed_it_and_for_nothing_else() {
        let mailbox = Mailbox::default();
        mailbox.dirty();
        assert!(mailbox.is_dirty());
        assert!(!mailbox.clear(), "a hint of the engine says nothing of the row");
        mailbox.outdated();
        assert!(mailbox.is_dirty(), "whoever is about to leave stays");
        assert!(mailbox.clear());
        assert!(!mailbox.is_dirty() && !mailbox.clear(), "once");
    }
}
