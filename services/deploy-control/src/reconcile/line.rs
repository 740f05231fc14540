//! The line: who is brought up next when not everybody can be at once. Nobody is refused; whoever is beyond what the host
//! bears waits, knows the position, and goes on by itself.
//!
//! It is kept in memory alone. After a restart of this service everybody who is not up yet lines up again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::{
    InstanceId,
    deploy::{Waiting, WaitsFor},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};

/// What each bring-up that is under way will have taken of the host's memory by the time it is through, in bytes: the
/// instance's own, and its containers' share of the engine.
const ONE_START: u64 = 32 << 20;
/// How much of what was learned a new measurement replaces: one over this.
const WEIGHT: u32 = 8;
/// How long those who are in line wait, once it opens, for those who are about to line up before or behind them.
const GATHERING: Duration = Duration::from_secs(3);

/// What the host bears.
#[derive(Debug, Clone)]
pub struct LineConfig {
    /// How many are brought up at once.
    pub at_once: usize,
    /// How many may be up; `None`: as many as there is memory for.
    pub running: Option<usize>,
    /// Memory of the host that is left free, in bytes; `None`: it is not looked at.
    pub spare_bytes: Option<u64>,
    /// Where the kernel says how much memory is available (proc(5), `/proc/meminfo`).
    pub meminfo: PathBuf,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Up, and down only to come up again: it has its room, and somebody was just using it.
    Changing,
    /// Was up, and came down without anybody's wish: the newest use first. Unix milliseconds, negated.
    Returning(i64),
    /// Wished up: in the order of the wishes, in Unix milliseconds.
    Wished(i64),
}

/// The line. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    config: LineConfig,
    state: Mutex<State>,
    /// Somebody waits who did not before.
    joined: Notify,
    /// Since when it is known who is up; `None` while it is not. Nobody has a turn before.
    open: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct State {
    /// Being brought up; whether that adds one to those that are up.
    working: HashMap<InstanceId, bool>,
    /// Up, and when that was seen.
    up: HashMap<InstanceId, Instant>,
    waiting: BTreeMap<(Rank, InstanceId), oneshot::Sender<Turn>>,
    /// Those who are down and wanted up by the look that opened it, and have not lined up yet.
    awaited: HashSet<InstanceId>,
    /// How long a bring-up takes on this host, as far as it is known.
    usual: Option<Duration>,
    /// Whether those in front wait for room, rather than for others to be through.
    full: bool,
    /// When somebody last had room while others waited for it, or the first began to wait; `None` while nobody does.
    room_at: Option<Instant>,
    /// How long it takes on this host from room for one to room for the next, as far as it is known.
    usual_room: Option<Duration>,
}

impl State {
    /// The one in front has room. Those behind, if there are any, wait from now on.
    fn had_room(&mut self) {
        if let Some(at) = self.room_at.take() {
            learn(&mut self.usual_room, at.elapsed());
            self.room_at = (!self.waiting.is_empty()).then(Instant::now);
        }
    }

    /// How long it takes until there is room for one more. It is never less than it has taken this time.
    fn until_room(&self) -> Option<Duration> {
        Some(self.usual_room?.max(self.room_at.map(|at| at.elapsed()).unwrap_or_default()))
    }
}

/// Takes one more measurement into what is usual.
fn learn(usual: &mut Option<Duration>, took: Duration) {
    *usual = Some(usual.map_or(took, |usual| (usual * (WEIGHT - 1) + took) / WEIGHT));
}

/// A turn to be brought up; the next in line gets one when it is dropped.
pub(super) struct Turn {
    line: Line,
    id: InstanceId,
    begun: Instant,
}

impl Turn {
    /// It came up: what that took is learned.
    pub(super) fn done(self) {
        let took = self.begun.elapsed();
        let mut state = self.line.state();
        state.up.insert(self.id, Instant::now());
        learn(&mut state.usual, took);
        metrics::histogram!("beaver_bring_up_seconds").record(took.as_secs_f64());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.state().working.remove(&self.id);
        self.line.advance();
    }
}

impl Line {
    pub(super) fn new(config: LineConfig) -> Self {
        Self(Arc::new(Inner { config, state: Mutex::default(), joined: Notify::new(), open: watch::Sender::new(None) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are up, of everything there is, by a look that began then. The first one opens the line; `awaited` are those
    /// who are to line up before anybody has a turn, so that it is theirs who come first.
    pub(super) fn seen_all(
        &self,
        began: Instant,
        up: impl Iterator<Item = InstanceId>,
        awaited: impl Iterator<Item = InstanceId>,
    ) {
        let mut state = self.state();
        // What came up since the look began is not in it.
        state.up.retain(|_, seen| *seen >= began);
        state.up.extend(up.map(|id| (id, began)));
        if !self.is_open() {
            // Who is in line, or at it, does not come once more.
            let there: HashSet<_> = in_line(&state).chain(state.working.keys().copied()).collect();
            state.awaited = awaited.filter(|id| !there.contains(id)).collect();
            // The host's being away says nothing of how soon there is room.
            state.room_at = None;
            self.0.open.send_replace(Some(Instant::now()));
        }
        drop(state);
        self.advance();
    }

    /// What is up is not known any more, until everything is looked at again.
    pub(super) fn close(&self) {
        // Under the lock, so that no turn is given meanwhile.
        let _state = self.state();
        self.0.open.send_replace(None);
    }

    /// Whether it is known who is up.
    pub(super) fn is_open(&self) -> bool {
        self.0.open.borrow().is_some()
    }

    /// Waits until it is known who is up.
    pub(super) async fn opened(&self) {
        // It is closed with the line itself, and then nobody waits.
        let _ = self.0.open.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until it is not known any more who is up.
    pub(super) async fn closed(&self) {
        let _ = self.0.open.subscribe().wait_for(Option::is_none).await;
    }

    /// This one does not line up now.
    pub(super) fn stays_away(&self, id: InstanceId) {
        if self.state().awaited.remove(&id) {
            self.advance();
        }
    }

    /// Whether an instance is up takes room, whoever brought it up.
    pub(super) fn seen(&self, id: InstanceId, up: bool) {
        let mut state = self.state();
        if up {
            state.up.insert(id, Instant::now());
        } else if state.up.remove(&id).is_some() && !state.waiting.is_empty() {
            drop(state);
            self.advance();
        }
    }

    /// Lines up. The turn comes at once where there is room and nobody is before it; whoever stops waiting drops the
    /// receiver and has left.
    pub(super) fn enter(&self, id: InstanceId, rank: Rank) -> oneshot::Receiver<Turn> {
        let (sender, turn) = oneshot::channel();
        let mut state = self.state();
        state.waiting.insert((rank, id), sender);
        state.awaited.remove(&id);
        drop(state);
        self.advance();
        self.0.joined.notify_one();
        turn
    }

    /// Gives turns to those in front, as many as the host bears.
    fn advance(&self) {
        loop {
            let mut state = self.state();
            state.waiting.retain(|_, sender| !sender.is_closed());
            metrics::gauge!("beaver_line_waiting").set(state.waiting.len() as f64);
            let Some((&(rank, id), _)) = state.waiting.first_key_value() else {
                state.room_at = None;
                return;
            };
            let adds = !(rank == Rank::Changing || state.up.contains_key(&id));
            let room = !adds || self.has_room(&state);
            state.full = !room;
            if !room {
                state.room_at.get_or_insert_with(Instant::now);
            }
            let Some(since) = *self.0.open.borrow() else { return };
            let gathers = !state.awaited.is_empty() && since.elapsed() < GATHERING;
            if gathers || !room || state.working.len() >= self.0.config.at_once {
                return;
            }
            let Some((_, sender)) = state.waiting.pop_first() else { return };
            state.working.insert(id, adds);
            if adds {
                state.had_room();
            }
            // What is dropped here takes the lock.
            drop(state);
            let _ = sender.send(Turn { line: self.clone(), id, begun: Instant::now() });
        }
    }

    /// Whether the host bears one more.
    fn has_room(&self, state: &State) -> bool {
        let config = &self.0.config;
        let coming = state.working.iter().filter(|(id, adds)| **adds && !state.up.contains_key(*id)).count();
        if config.running.is_some_and(|most| state.up.len() + coming >= most) {
            return false;
        }
        let Some(spare) = config.spare_bytes else { return true };
        // Where the kernel does not say, the engine will.
        let Some(available) = available_bytes(&config.meminfo) else { return true };
        available >= spare.saturating_add(ONE_START.saturating_mul(coming as u64 + 1))
    }

    /// Whether those who wait do so for room, rather than for others to be through.
    pub(super) fn is_full(&self) -> bool {
        let state = self.state();
        state.full && in_line(&state).next().is_some()
    }

    /// Whether nobody waits, and there is room for one more.
    pub(super) fn has_spare(&self) -> bool {
        let state = self.state();
        self.is_open() && in_line(&state).next().is_none() && self.has_room(&state)
    }

    /// Where an instance is in line; `None` when it does not wait.
    pub(super) fn waiting(&self, id: InstanceId) -> Option<Waiting> {
        let state = self.state();
        let at = in_line(&state).position(|waits| waits == id)?;
        let position = u32::try_from(at + 1).unwrap_or(u32::MAX);
        let at_once = u32::try_from(self.0.config.at_once).unwrap_or(u32::MAX).max(1);
        let (waits_for, until) = match state.full {
            true => (WaitsFor::Room, state.until_room().map(|one| one.saturating_mul(position))),
            false => (WaitsFor::Turn, state.usual.map(|one| one.saturating_mul(position.div_ceil(at_once)))),
        };
        let seconds = until.map(|until| until.as_secs().max(1));
        Some(Waiting { position, waits_for, seconds })
    }

    /// Everybody who waits, the first in line first.
    pub(super) fn all(&self) -> Vec<InstanceId> {
        in_line(&self.state()).collect()
    }

    /// Looks, while somebody waits, whether there is room again: memory tells nobody. Calls `moved` each time.
    pub(super) async fn keep(&self, moved: impl Fn(&[InstanceId])) {
        loop {
            let joined = self.0.joined.notified();
            self.advance();
            let waiting = self.all();
            if waiting.is_empty() {
                joined.await;
            } else {
                moved(&waiting);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Everybody who has not left.
fn in_line(state: &State) -> impl Iterator<Item = InstanceId> {
    state.waiting.iter().filter(|(_, sender)| !sender.is_closed()).map(|((_, id), _)| *id)
}

/// The memory that can be had without swapping, in bytes.
fn available_bytes(meminfo: &std::path::Path) -> Option<u64> {
    let text = std::fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> InstanceId {
        InstanceId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn line(at_once: usize, running: Option<usize>) -> Line {
        let line = Line::new(LineConfig { at_once, running, spare_bytes: None, meminfo: PathBuf::new() });
        line.seen_all(Instant::now(), [].into_iter(), [].into_iter());
        line
    }

    fn turn(receiver: &mut oneshot::Receiver<Turn>) -> Option<Turn> {
        receiver.try_recv().ok()
    }

    #[tokio::test]
    async fn some_at_once_and_the_others_in_their_order() {
        let line = line(2, None);
        let mut all: Vec<_> = [30, 10, 20, 40].map(|at| line.enter(id(at), Rank::Wished(at as i64))).into();
        let (first, second) = (turn(&mut all[0]).unwrap(), turn(&mut all[1]).unwrap());
        assert!(turn(&mut all[2]).is_none() && turn(&mut all[3]).is_none());
        assert_eq!([20, 40].map(|n| line.waiting(id(n)).unwrap().position), [1, 2]);
        assert_eq!(line.waiting(id(30)), None, "it does not wait any more");
        assert_eq!(line.waiting(id(20)).unwrap().seconds, None, "nothing is known of this host yet");
        // Who was in use goes first, the newest use before an older one; and what is up already before everybody.
        let mut older = line.enter(id(5), Rank::Returning(-100));
        let mut newer = line.enter(id(6), Rank::Returning(-200));
        let mut changing = line.enter(id(7), Rank::Changing);
        assert_eq!(line.all(), [7, 6, 5, 20, 40].map(id));
        first.done();
        assert!(turn(&mut changing).is_some_and(|turn| turn.id == id(7)), "and given back at once");
        assert!(turn(&mut newer).is_some());
        assert!(turn(&mut older).is_some());
        assert!(turn(&mut all[2]).is_some() && turn(&mut all[3]).is_some(), "every turn given back was given on");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn as_it_opens_everybody_lines_up_before_anybody_has_a_turn() {
        let line = line(1, None);
        let all = || [1, 2, 3].map(id).into_iter();
        let opens = || line.seen_all(Instant::now(), [].into_iter(), all());
        line.close();
        let mut late = line.enter(id(1), Rank::Returning(-100));
        opens();
        assert!(turn(&mut late).is_none(), "two more are to come");
        let mut early = line.enter(id(2), Rank::Returning(-200));
        assert!(turn(&mut early).is_none());
        line.stays_away(id(3));
        let held = turn(&mut early).expect("all are there, and it was in use last");
        assert!(turn(&mut late).is_none());
        drop(held);
        drop(turn(&mut late).expect("it is next"));

        // A look that finds it open makes nobody wait.
        opens();
        drop(turn(&mut line.enter(id(2), Rank::Wished(1))).expect("nobody is awaited"));
        // Closed, nobody has a turn, and whoever does not come holds nobody up for long.
        line.close();
        let mut first = line.enter(id(1), Rank::Wished(1));
        assert!(turn(&mut first).is_none() && !line.has_spare());
        opens();
        tokio::time::advance(GATHERING).await;
        line.advance();
        assert!(turn(&mut first).is_some());
    }

    #[tokio::test]
    async fn whoever_leaves_holds_nobody_up() {
        let line = line(1, None);
        let mut held = line.enter(id(1), Rank::Wished(1));
        let held = turn(&mut held).unwrap();
        let gone = line.enter(id(2), Rank::Wished(2));
        let mut next = line.enter(id(3), Rank::Wished(3));
        drop(gone);
        // Left before its turn, and with its turn on the way to it.
        let late = line.enter(id(4), Rank::Wished(1));
        drop(held);
        assert!(turn(&mut next).is_none());
        drop(late);
        assert!(turn(&mut next).is_some());
    }

    #[tokio::test]
    async fn room_is_counted_and_comes_back() {
        let line = line(9, Some(2));
        line.seen(id(1), true);
        let mut second = line.enter(id(2), Rank::Wished(2));
        let mut third = line.enter(id(3), Rank::Wished(3));
        let second = turn(&mut second).unwrap();
        assert_eq!(line.waiting(id(3)).unwrap().waits_for, WaitsFor::Room);
        // It is up now: the same room, not one more.
        line.seen(id(2), true);
        second.done();
        assert!(turn(&mut third).is_none());
        assert_eq!(line.waiting(id(3)).unwrap(), Waiting { position: 1, waits_for: WaitsFor::Room, seconds: None });
        // What is up has its room, whatever is done to it.
        let mut again = line.enter(id(1), Rank::Changing);
        assert!(turn(&mut again).is_some());
        line.seen(id(1), false);
        assert!(turn(&mut third).is_some());
    }

    #[tokio::test]
    async fn nothing_is_started_into_the_last_of_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let meminfo = folder.path().join("meminfo");
        let say =
            |mib: u64| std::fs::write(&meminfo, format!("MemTotal: 9 kB\nMemAvailable:  {} kB\n", mib << 10)).unwrap();
        let config = LineConfig { at_once: 9, running: None, spare_bytes: Some(100 << 20), meminfo: meminfo.clone() };
        let line = Line::new(config);
        line.seen_all(Instant::now(), [].into_iter(), [].into_iter());
        say(170);
        let mut all: Vec<_> = (1..=3).map(|n| line.enter(id(n), Rank::Wished(n as i64))).collect();
        let turns: Vec<_> = all.iter_mut().filter_map(turn).collect();
        assert_eq!(turns.len(), 2, "what those that are coming up will need is not given twice");
        assert_eq!(line.waiting(id(3)).unwrap().waits_for, WaitsFor::Room);
        say(131);
        drop(turns);
        assert!(turn(&mut all[2]).is_none());
        say(132);
        line.advance();
        assert!(turn(&mut all[2]).is_some());
        // A kernel that does not say leaves it to the engine.
        std::fs::remove_file(&meminfo).unwrap();
        assert!(turn(&mut line.enter(id(9), Rank::Wished(9))).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_estimate_is_learned_here() {
        let line = line(1, None);
        let mut first = line.enter(id(1), Rank::Wished(1));
        let first = turn(&mut first).unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        first.done();
        let mut held = line.enter(id(2), Rank::Wished(2));
        let _held = turn(&mut held).unwrap();
        let _waiting: Vec<_> = (3..=5).map(|n| line.enter(id(n), Rank::Wished(n as i64))).collect();
        assert_eq!([3, 4, 5].map(|n| line.waiting(id(n)).unwrap().seconds), [Some(4), Some(8), Some(12)]);
    }

    #[tokio::test(start_paused = true)]
    async fn so_is_how_soon_there_is_room() {
        let line = line(9, Some(2));
        let seconds = |n| line.waiting(id(n)).unwrap().seconds;
        line.seen(id(1), true);
        line.seen(id(2), true);
        let mut waiting: Vec<_> = (3..=7).map(|n| line.enter(id(n), Rank::Wished(n as i64))).collect();
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(seconds(3), None, "nobody has gone down on this host yet");
        line.seen(id(1), false);
        turn(&mut waiting[0]).unwrap().done();
        assert_eq!([seconds(4), seconds(5)], [Some(40), Some(80)]);
        // What is up has its room, whatever is done to it: that says nothing of when there will be more.
        tokio::time::advance(Duration::from_secs(10)).await;
        turn(&mut line.enter(id(2), Rank::Changing)).unwrap().done();
        // It takes longer this time, and that much is learned of it.
        tokio::time::advance(Duration::from_secs(70)).await;
        assert_eq!([seconds(4), seconds(5)], [Some(80), Some(160)]);
        line.seen(id(2), false);
        turn(&mut waiting[1]).unwrap().done();
        assert_eq!(seconds(5), Some(45), "seven times 40 and once 80");
        // Two find room one right after the other.
        tokio::time::advance(Duration::from_secs(45)).await;
        line.seen(id(3), false);
        line.seen(id(4), false);
        assert_eq!(seconds(7), Some(39), "45 again, and once nothing");
        // Nothing is learned of the time that the host was away, or that nobody waited.
        let up = || [5, 6].map(id).into_iter();
        line.close();
        tokio::time::advance(Duration::from_secs(1000)).await;
        line.seen_all(Instant::now(), up(), [].into_iter());
        assert_eq!(seconds(7), Some(39));
        waiting.clear();
        line.advance();
        tokio::time::advance(Duration::from_secs(1000)).await;
        let _waits = line.enter(id(8), Rank::Wished(8));
        assert_eq!(seconds(8), Some(39));
    }
}
