//! The seam at which tests end this service as a kill does: before, in and after each call that changes something.
//!
//! Nothing outside of tests: [`Strikes::default`] passes every call on. Whatever changes the registry, the folders, the
//! engine or a peer goes through it, so a test learns of each such place by recording a run ([`testing`]), and none has to
//! be listed.

#[cfg(feature = "testing")]
pub mod testing;

use contracts::InstanceId;

tokio::task_local! {
    /// The step that is being taken.
    static STEP: &'static str;
}

/// What calls are passed through. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Strikes {
    #[cfg(feature = "testing")]
    life: Option<std::sync::Arc<testing::Life>>,
}

impl std::fmt::Debug for Strikes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Strikes")
    }
}

impl Strikes {
    /// Makes a call for an instance; where a test strikes at it, this never comes back.
    pub(crate) fn pass<'a, T: 'a>(
        &'a self,
        call: &'static str,
        id: InstanceId,
        work: impl Future<Output = T> + 'a,
    ) -> impl Future<Output = T> + 'a {
        #[cfg(feature = "testing")]
        {
            // Boxed: what is passed through here is passed through again further out.
            let work = Box::pin(work);
            async move {
                match &self.life {
                    Some(life) => life.pass(call, id, work).await,
                    None => work.await,
                }
            }
        }
        #[cfg(not(feature = "testing"))]
        {
            let _ = (call, id);
            work
        }
    }
}

/// Does it as part of this step.
pub(crate) fn within<T>(step: &'static str, work: impl Future<Output = T>) -> impl Future<Output = T> {
    STEP.scope(step, work)
}

/// Carries the step that is being taken over to a thread for blocking work.
pub(crate) fn carried<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let step = STEP.try_with(|step| *step).unwrap_or(OUTSIDE);
    move || STEP.sync_scope(step, work)
}

/// Where no step is being taken: a call of the API, a look.
const OUTSIDE: &str = "outside";
