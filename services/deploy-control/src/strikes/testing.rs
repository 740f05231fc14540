//! Strikes, as tests plan them.

use std::{
    collections::HashMap,
    future::{pending, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use contracts::InstanceId;
use tokio::sync::{Notify, watch};

use super::{OUTSIDE, STEP, Strikes};

/// Calls that only look, and are made as often as it takes: all of one step are one place.
const LOOKS: [&str; 6] =
    ["engine.observe", "engine.fingerprint", "engine.list", "engine.id_shift", "peers.readiness", "peers.answers"];

/// Where a strike can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The step that is being taken.
    pub step: &'static str,
    /// What is called.
    pub call: &'static str,
    /// Which one of the same, from 0.
    pub nth: usize,
}

/// What a strike leaves of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum When {
    /// It is not made.
    Before,
    /// It is begun and left half-way.
    In,
    /// It is begun, and goes on without us until after we have looked again: only calls of an engine do.
    Late,
    /// It takes place, and nobody gets the answer.
    After,
}

/// What a service's lives have in common: what is recorded, and where they are struck. Clones are the same.
#[derive(Clone, Default)]
pub struct Strikers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    struck: Notify,
    /// How often the instance was looked at.
    looks: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Whose calls count.
    id: Option<InstanceId>,
    /// Every place so far with the number of times that its call had to wait, in order.
    recorded: Vec<(Place, usize)>,
    /// How often each call of a step was made in this life.
    counts: HashMap<(&'static str, &'static str), usize>,
    strike: Option<Strike>,
    struck: usize,
}

#[derive(Clone, Copy)]
struct Strike {
    place: Place,
    when: When,
    /// After so many waits of the call it is half-way.
    half: usize,
    left: usize,
}

/// One life of a service.
pub struct Life {
    shared: Arc<Shared>,
    dead: AtomicBool,
    /// A change of a file has ended it, and that was not told yet.
    file_strikes: AtomicBool,
}

impl Strikers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// The seam of another life of the service.
    pub fn life(&self) -> Strikes {
        self.state().counts.clear();
        Strikes {
            life: Some(Arc::new(Life {
                shared: self.0.clone(),
                dead: AtomicBool::new(false),
                file_strikes: AtomicBool::new(false),
            })),
        }
    }

    /// Counts and records the calls for this instance from now on; nothing strikes.
    pub fn record(&self, id: InstanceId) {
        *self.state() = State { id: Some(id), ..State::default() };
    }

    /// What was recorded: each place, and how often its call had to wait, in the order in which they were reached first.
    pub fn recorded(&self) -> Vec<(Place, usize)> {
        self.state().recorded.clone()
    }

    /// Strikes so often at this place, which a recording found with so many waits: the first time exactly there, then
    /// wherever the same step makes the same call.
    pub fn arm(&self, id: InstanceId, (place, waits): (Place, usize), when: When, times: usize) {
        let strike = Strike { place, when, half: (waits / 2).max(1), left: times };
        *self.state() = State { id: Some(id), strike: Some(strike), ..State::default() };
    }

    /// Nothing strikes or is recorded any more; how often it struck.
    pub fn disarm(&self) -> usize {
        std::mem::take(&mut *self.state()).struck
    }

    /// Waits for the next strike.
    pub async fn struck(&self, so_far: usize) {
        loop {
            let struck = self.0.struck.notified();
            if self.state().struck > so_far {
                return;
            }
            struck.await;
        }
    }

    /// How often it struck.
    pub fn times(&self) -> usize {
        self.state().struck
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Strikes {
    /// The life behind it, for what is decorated.
    pub(crate) fn life(&self) -> Option<&Arc<Life>> {
        self.life.as_ref()
    }
}

impl Life {
    /// A call for an instance: the place, and the strike that is due there.
    fn reach(&self, call: &'static str, id: InstanceId) -> Option<(Place, Option<(When, usize)>)> {
        let step = STEP.try_with(|step| *step).unwrap_or(OUTSIDE);
        let mut state = self.shared.state();
        if state.id != Some(id) {
            return None;
        }
        let count = state.counts.entry((step, call)).or_default();
        // What is tidied up beside is tidied as often as anybody looks.
        let is_any = LOOKS.contains(&call) || (step == OUTSIDE && call == "files.remove");
        let nth = if is_any { 0 } else { *count };
        *count += 1;
        let place = Place { step, call, nth };
        if !state.recorded.iter().any(|(known, _)| *known == place) {
            state.recorded.push((place, 0));
        }
        let first = state.struck == 0;
        let due = state.strike.as_mut().filter(|strike| {
            let same = strike.place.step == step && strike.place.call == call;
            strike.left > 0 && same && (!first || strike.place.nth == nth)
        });
        let due = due.map(|strike| {
            strike.left -= 1;
            (strike.when, strike.half)
        });
        Some((place, due))
    }

    fn waited(&self, place: Place, waits: usize) {
        if let Some((_, most)) = self.shared.state().recorded.iter_mut().find(|(known, _)| *known == place) {
            *most = (*most).max(waits);
        }
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.shared.state().struck += 1;
        self.shared.struck.notify_waiters();
    }

    /// Passes a call; never comes back once this life is over.
    pub(super) async fn pass<T>(
        &self,
        call: &'static str,
        id: InstanceId,
        mut work: Pin<Box<impl Future<Output = T>>>,
    ) -> T {
        if self.is_dead() {
            return pending().await;
        }
        let reached = self.reach(call, id);
        let due = reached.and_then(|(_, due)| due);
        if let Some((When::Before, _)) = due {
            self.die();
            return pending().await;
        }
        let half = due.and_then(|(when, half)| match when {
            When::In => Some(half),
            When::Late => Some(1),
            When::Before | When::After => None,
        });
        let mut waits = 0;
        let done = poll_fn(|context| {
            if self.is_dead() {
                // Nobody polls what a kill has ended.
                return Poll::Pending;
            }
            match work.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => {
                    waits += 1;
                    if half.is_some_and(|half| waits >= half) { Poll::Ready(None) } else { Poll::Pending }
                }
            }
        })
        .await;
        if let Some((place, _)) = reached {
            self.waited(place, waits);
        }
        match done {
            Some(done) if due.is_none() && !self.is_dead() => done,
            // Left half-way, or brought to its end with nobody there for the answer.
            _ => {
                drop(work);
                if due.is_some() {
                    self.die();
                }
                pending().await
            }
        }
    }

    /// Whether a strike ends this life at a change of a file, and when: nothing is changed in a life that is over.
    pub(crate) fn file(&self, call: &'static str, id: InstanceId) -> Option<When> {
        if self.is_dead() {
            return Some(When::Before);
        }
        let (when, _) = self.reach(call, id)?.1?;
        self.dead.store(true, Ordering::SeqCst);
        self.file_strikes.store(true, Ordering::SeqCst);
        Some(when)
    }

    /// After [`Life::file`] has said when, once what was to happen has: tells of the strike.
    pub(crate) fn file_struck(&self) {
        if self.file_strikes.swap(false, Ordering::SeqCst) {
            self.die();
        }
    }

    /// Somebody has looked at the instance.
    pub(crate) fn looked(&self, id: InstanceId) {
        if !self.is_dead() && self.shared.state().id == Some(id) {
            self.shared.looks.send_modify(|looks| *looks += 1);
        }
    }

    /// Whether the call that is to be made now is to go on without us: then a wait for a look at the instance by a later
    /// life, after which it does.
    pub(crate) fn late(&self, call: &'static str, id: InstanceId) -> Option<impl Future<Output = ()> + use<>> {
        let step = STEP.try_with(|step| *step).unwrap_or(OUTSIDE);
        let state = self.shared.state();
        let nth = state.counts.get(&(step, call)).copied().unwrap_or(0);
        let strike = state.strike.filter(|strike| strike.when == When::Late && strike.left > 0)?;
        let there = strike.place.step == step && strike.place.call == call;
        if state.id != Some(id) || !there || (state.struck == 0 && strike.place.nth != nth) {
            return None;
        }
        let mut looks = self.shared.looks.subscribe();
        looks.mark_unchanged();
        Some(async move {
            let _ = looks.changed().await;
        })
    }
}
