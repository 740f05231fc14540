//! Whether sockets pass the border of instances' containers: tried before the first instance is started, and again when
//! the engine or the image is another; never while somebody waits who signs up.
//!
//! While they do not, nothing is started: every instance would only be "not healthy in time", and nobody would know why.
//! What runs goes on.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clock::{Backoff, Entropy};
use contracts::deploy::BLOCKED;
use service::Shutdown;
use tokio::sync::watch;

use crate::{
    chain,
    engine::{Engine, EngineError, ErrorKind, InstanceSpec, Passage},
    folders::{self, Folders},
    reconcile::Reconciler,
};

/// How often it is looked whether engine and image are still the same.
const LOOK: Duration = Duration::from_secs(30);
/// How long removing a probe may take when the service ends.
const LAST: Duration = Duration::from_secs(5);

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    Untried,
    /// It could not be tried, for this reason, which instances will meet too.
    NotTried(String),
    /// They pass.
    Free,
    /// They do not: why, and the cure.
    Blocked(String),
}

/// They do not pass: why, and the cure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Blocked(String);

/// What whoever starts instances asks. Cloning is cheap.
#[derive(Clone)]
pub struct Gate(watch::Receiver<State>);

impl Gate {
    /// Waits until it has been tried.
    ///
    /// # Errors
    ///
    /// [`Blocked`].
    pub async fn pass(&self) -> Result<(), Blocked> {
        let mut known = self.0.clone();
        match known.wait_for(|state| *state != State::Untried).await.as_deref() {
            Ok(State::Blocked(why)) => Err(Blocked(why.clone())),
            // Whoever tries has ended: so does everything.
            _ => Ok(()),
        }
    }

    /// Whether the need is met, for readiness; else why not.
    ///
    /// # Errors
    ///
    /// In words fit for an operator.
    pub fn need(&self) -> Result<(), String> {
        match &*self.0.borrow() {
            State::Free => Ok(()),
            State::Untried => Err("not tried yet".into()),
            State::NotTried(why) => Err(format!("not tried: {why}")),
            State::Blocked(why) => Err(format!("{BLOCKED}{why}")),
        }
    }
}

/// Tries it.
pub struct Keeper {
    engine: Arc<dyn Engine>,
    folders: Folders,
    /// What a probe is, but for its folders.
    spec: InstanceSpec,
    /// Where it stands for which border they passed.
    file: PathBuf,
    passed: Option<String>,
    /// Something may be left of a try.
    trying: bool,
    sender: watch::Sender<State>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the engine")]
    Engine(#[from] EngineError),
    #[error("the folders of a probe")]
    Folders(#[from] folders::Error),
}

/// The gate, closed until its keeper has tried.
pub fn gate(engine: Arc<dyn Engine>, folders: Folders, spec: InstanceSpec, file: PathBuf) -> (Gate, Keeper) {
    let (sender, known) = watch::channel(State::Untried);
    let passed = std::fs::read_to_string(&file).ok();
    // One that was killed may have left something.
    let keeper = Keeper { engine, folders, spec, file, passed, trying: true, sender };
    (Gate(known), keeper)
}

impl Keeper {
    /// Tries, and looks whether it is to be tried again, until `stop`. Instances that wait are told of what changes.
    pub async fn keep(mut self, reconciler: Reconciler, stop: Shutdown) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        let entropy = Entropy::system();
        loop {
            let state = tokio::select! {
                () = stop.cancelled() => break,
                state = self.look() => state,
            };
            let wait = if state == Some(State::Free) {
                backoff.reset();
                LOOK
            } else {
                backoff.next(&entropy)
            };
            if let Some(state) = state {
                self.tell(state, &reconciler);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        if self.trying && tokio::time::timeout(LAST, self.clear()).await.is_err() {
            tracing::info!("what is left of a probe is removed at the next start");
        }
    }

    fn tell(&self, state: State, reconciler: &Reconciler) {
        let before = self.sender.send_replace(state.clone());
        if before == state {
            return;
        }
        match &state {
            State::Blocked(why) => {
                tracing::error!("sockets do not pass the border of a container; instances wait: {why}")
            }
            State::NotTried(why) => {
                tracing::warn!(why, "whether sockets pass the border of a container cannot be tried")
            }
            _ => tracing::info!("sockets pass the border of a container"),
        }
        // Before the first time nobody passes, nor is turned away: they wait at the gate itself.
        if before != State::Untried {
            reconciler.nudge_waiting();
        }
    }

    /// What is known now; `None` when the engine cannot be asked, which changes nothing.
    async fn look(&mut self) -> Option<State> {
        match self.try_it().await {
            Ok(Passage::Free) => Some(State::Free),
            Ok(Passage::Blocked(why)) => Some(State::Blocked(why)),
            Err(Error::Engine(error)) if error.kind == ErrorKind::Unavailable => {
                tracing::debug!(error = chain(&error), "the engine cannot be asked");
                None
            }
            Err(error) => Some(State::NotTried(chain(&error))),
        }
    }

    async fn try_it(&mut self) -> Result<Passage, Error> {
        if self.trying {
            self.clear().await?;
        }
        let Some(border) = self.engine.border(&self.spec).await? else { return Ok(Passage::Free) };
        if self.passed.as_ref() == Some(&border) {
            return Ok(Passage::Free);
        }
        self.trying = true;
        let folders = self.folders.make_probe(self.spec.uid.unwrap_or_default()).await?;
        let tried = self.engine.try_passage(&InstanceSpec { folders, ..self.spec.clone() }).await;
        // Whatever came of it.
        self.clear().await?;
        let passage = tried?;
        if passage == Passage::Free {
            if let Err(error) = std::fs::write(&self.file, &border) {
                tracing::warn!(%error, "that sockets pass cannot be written down; it is tried again at the next start");
            }
            self.passed = Some(border);
        }
        Ok(passage)
    }

    async fn clear(&mut self) -> Result<(), Error> {
        self.engine.end_passage().await?;
        self.folders.remove_probe().await?;
        self.trying = false;
        Ok(())
    }
}
