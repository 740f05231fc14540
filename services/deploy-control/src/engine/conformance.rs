//! What every engine must do, as a suite that each runs against itself.
//!
//! The instances it starts must put an HTTP server on `http.sock` in their inward folder that answers `GET /` with
//! `runs=<n>`, counting its starts in a file in its data folder, and ends without an answer on `GET /crash`.

use std::{io, path::Path, time::Duration};

use contracts::InstanceId;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{Endpoint, Engine, ErrorKind, InstanceSpec, Unit, UnitState};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often what is waited for is looked at.
const EVERY: Duration = Duration::from_millis(5);

/// Runs the suite; `a` and `b` are two instances of this stack whose folders are made.
///
/// # Panics
///
/// At the first thing that the engine does not do.
pub async fn suite(engine: &dyn Engine, a: &InstanceSpec, b: &InstanceSpec) {
    what_is_not_there(engine, a).await;
    made_once(engine, a).await;
    started_and_stopped(engine, a).await;
    coming_down_is_seen(engine, a).await;
    frozen_and_going_on(engine, a).await;
    apart_from_each_other(engine, a, b).await;
    abandoned_calls(engine, a).await;
    removed(engine, a).await;
    removed(engine, b).await;
    assert!(engine.list().await.expect("a list").is_empty(), "nothing is left");
}

async fn what_is_not_there(engine: &dyn Engine, spec: &InstanceSpec) {
    assert_eq!(engine.observe(spec.id).await.expect("an observation"), None);
    assert_eq!(engine.start(spec.id).await.expect_err("nothing to start").kind, ErrorKind::NotFound);
    assert_eq!(engine.pause(spec.id).await.expect_err("nothing to pause").kind, ErrorKind::NotFound);
    engine.stop(spec.id).await.expect("nothing to stop is fine");
    engine.remove(spec.id).await.expect("nothing to remove is fine");
    assert!(engine.list().await.expect("a list").is_empty());
    engine.capabilities().await.expect("capabilities");
}

async fn made_once(engine: &dyn Engine, spec: &InstanceSpec) {
    let (one, two) = tokio::join!(engine.ensure(spec), engine.ensure(spec));
    one.and(two).expect("both find it made");
    engine.ensure(spec).await.expect("and a third");
    let unit = observe(engine, spec.id).await;
    assert_eq!((unit.state, &unit.run), (UnitState::Created, &None));
    assert_eq!(unit.fingerprint, engine.fingerprint(spec).await.expect("a fingerprint"));
    let later_wish = InstanceSpec { generation: spec.generation + 1, ..spec.clone() };
    assert_eq!(engine.fingerprint(&later_wish).await.expect("a fingerprint"), unit.fingerprint);

    let mut other = spec.clone();
    other.limits.pids += 1;
    assert_ne!(engine.fingerprint(&other).await.expect("a fingerprint"), unit.fingerprint);
    assert_eq!(engine.ensure(&other).await.expect_err("another is there").kind, ErrorKind::Conflict);
    assert_eq!(observe(engine, spec.id).await, unit, "it was left as it was");
}

async fn started_and_stopped(engine: &dyn Engine, spec: &InstanceSpec) {
    engine.start(spec.id).await.expect("a start");
    let first = observe(engine, spec.id).await;
    assert_eq!(first.state, UnitState::Running);
    assert!(first.run.is_some(), "a run has a name");
    assert_eq!(answer(engine, spec).await, "runs=1");
    engine.start(spec.id).await.expect("starting what runs is fine");
    assert_eq!(observe(engine, spec.id).await, first, "and changes nothing");
    let listed = engine.list().await.expect("a list");
    assert_eq!(listed, [Unit { run: None, ..first.clone() }]);

    engine.stop(spec.id).await.expect("a stop");
    let stopped = observe(engine, spec.id).await;
    assert_eq!((stopped.state, &stopped.run), (UnitState::Exited, &None));
    assert!(ask(engine, spec, "/").await.is_err(), "nobody answers");
    engine.stop(spec.id).await.expect("stopping what is down is fine");

    engine.start(spec.id).await.expect("a second start");
    assert_eq!(answer(engine, spec).await, "runs=2", "its data is still there");
    assert_ne!(observe(engine, spec.id).await.run, first.run, "each start is another run");
}

async fn coming_down_is_seen(engine: &dyn Engine, spec: &InstanceSpec) {
    let mut hints = engine.watch().await.expect("hints");
    let _ = ask(engine, spec, "/crash").await;
    let hinted = async {
        while let Some(hint) = hints.next().await {
            if hint.0 == spec.id {
                return;
            }
        }
        panic!("the hints broke off");
    };
    tokio::time::timeout(PATIENCE, hinted).await.expect("a hint");
    until(engine, spec.id, "down", |unit| unit.state == UnitState::Exited).await;
    engine.start(spec.id).await.expect("a start after a crash");
    assert_eq!(answer(engine, spec).await, "runs=3");
}

async fn frozen_and_going_on(engine: &dyn Engine, spec: &InstanceSpec) {
    let before = observe(engine, spec.id).await;
    if !engine.capabilities().await.expect("capabilities").pauses {
        assert_eq!(engine.pause(spec.id).await.expect_err("it cannot").kind, ErrorKind::Rejected);
        return;
    }
    let frozen = Unit { state: UnitState::Paused, ..before.clone() };
    engine.pause(spec.id).await.expect("a pause");
    assert_eq!(observe(engine, spec.id).await, frozen, "the same run, frozen");
    assert_eq!(engine.list().await.expect("a list"), [Unit { run: None, ..frozen.clone() }]);
    engine.pause(spec.id).await.expect("pausing what is paused is fine");
    // Connections are taken, and answered once it goes on.
    let (asked, started) = tokio::join!(ask(engine, spec, "/"), async {
        tokio::task::yield_now().await;
        engine.start(spec.id).await
    });
    started.expect("it goes on");
    assert_eq!(asked.expect("an answer to what was asked meanwhile"), "runs=3", "from where it was");
    assert_eq!(observe(engine, spec.id).await, before);

    engine.pause(spec.id).await.expect("a pause");
    engine.stop(spec.id).await.expect("a stop, though it is frozen");
    assert_eq!(observe(engine, spec.id).await.state, UnitState::Exited);
    assert_eq!(engine.pause(spec.id).await.expect_err("it is down").kind, ErrorKind::Rejected);
    engine.start(spec.id).await.expect("a start");
    assert_eq!(answer(engine, spec).await, "runs=4");
    // However it is, it is removed; and the next one begins anew.
    engine.pause(spec.id).await.expect("a pause");
    engine.remove(spec.id).await.expect("a removal, though it is frozen");
    engine.ensure(spec).await.expect("another unit");
    engine.start(spec.id).await.expect("its start");
    assert_eq!(answer(engine, spec).await, "runs=5");
}

async fn apart_from_each_other(engine: &dyn Engine, a: &InstanceSpec, b: &InstanceSpec) {
    engine.ensure(b).await.expect("a second instance");
    engine.start(b.id).await.expect("a start");
    assert_eq!(answer(engine, b).await, "runs=1");
    let mut ids: Vec<InstanceId> = engine.list().await.expect("a list").into_iter().map(|unit| unit.id).collect();
    ids.sort_unstable();
    let mut expected = [a.id, b.id];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let before = observe(engine, b.id).await;
    engine.stop(a.id).await.expect("a stop");
    assert_eq!(observe(engine, b.id).await, before, "the other goes on");
    assert_eq!(answer(engine, b).await, "runs=1");
}

/// A caller that goes away in the middle leaves something that the next one can go on from.
async fn abandoned_calls(engine: &dyn Engine, spec: &InstanceSpec) {
    engine.remove(spec.id).await.expect("a removal");
    for wait_ms in [0, 1, 5, 20] {
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms), engine.ensure(spec)).await;
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms), engine.start(spec.id)).await;
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms), engine.stop(spec.id)).await;
    }
    eventually(async || engine.ensure(spec).await.map_err(|error| format!("never made: {error}"))).await;
    engine.start(spec.id).await.expect("a start");
    assert!(answer(engine, spec).await.starts_with("runs="));
}

async fn removed(engine: &dyn Engine, spec: &InstanceSpec) {
    engine.remove(spec.id).await.expect("a removal, though it runs");
    assert_eq!(engine.observe(spec.id).await.expect("an observation"), None);
    engine.remove(spec.id).await.expect("a second removal is fine");
    assert!(spec.folders.data.join("runs").exists(), "what the person has stays");
}

async fn observe(engine: &dyn Engine, id: InstanceId) -> Unit {
    engine.observe(id).await.expect("an observation").expect("a unit")
}

async fn until(engine: &dyn Engine, id: InstanceId, what: &str, is_so: impl Fn(&Unit) -> bool) {
    eventually(async || {
        let unit = observe(engine, id).await;
        is_so(&unit).then_some(()).ok_or_else(|| format!("never {what}: {unit:?}"))
    })
    .await;
}

/// Looks again and again until it is there.
///
/// # Panics
///
/// With what was seen last, when it is not there in half a minute.
pub async fn eventually<T>(look: impl AsyncFn() -> Result<T, String>) -> T {
    within(PATIENCE, look).await.unwrap_or_else(|seen| panic!("{seen}"))
}

/// Waits until something is so, but not longer than this.
///
/// # Errors
///
/// What was seen last, when it is not so by then.
pub async fn within<T>(patience: Duration, look: impl AsyncFn() -> Result<T, String>) -> Result<T, String> {
    let mut last = "the first look did not end".to_owned();
    let looking = async {
        loop {
            match look().await {
                Ok(seen) => return seen,
                Err(seen) => last = seen,
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let in_time = tokio::time::timeout(patience, looking).await;
    in_time.map_err(|_| last)
}

/// What the instance says, once it is up.
pub async fn answer(engine: &dyn Engine, spec: &InstanceSpec) -> String {
    answer_to(engine, spec, "/").await
}

/// What the instance says to this, once it is up.
///
/// # Panics
///
/// When it does not in half a minute.
pub async fn answer_to(engine: &dyn Engine, spec: &InstanceSpec, path: &str) -> String {
    eventually(async || ask(engine, spec, path).await.map_err(|error| format!("it never answered: {error}"))).await
}

async fn ask(engine: &dyn Engine, spec: &InstanceSpec, path: &str) -> io::Result<String> {
    let Endpoint::Socket(socket) = engine.endpoint(spec);
    tokio::time::timeout(Duration::from_secs(5), ask_socket(&socket, path)).await?
}

async fn ask_socket(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: instance\r\n\r\n").as_bytes()).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    let (head, body) = said.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(body.to_owned()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
