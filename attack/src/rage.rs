//! As much of something as there is, for so long: what an instance does that wants to take everybody down with it. Each
//! ends by itself, and tells what came of it.

use std::{
    io::{self, Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use attack::{Behaviour, Fury, READY, Rage, Raged};

/// How much is written to the log at once.
const LINE: usize = 4095;
/// A pause where there is nothing more to be had at present.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a door may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is heard of a door's answer.
const HEAD: usize = 4096;

/// Until when.
#[derive(Clone, Copy)]
struct Until(Instant);

impl Until {
    fn seconds(seconds: u64) -> Self {
        Self(Instant::now() + Duration::from_secs(seconds))
    }

    fn goes_on(self) -> bool {
        Instant::now() < self.0
    }

    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Rages, and says what came of it.
pub fn be(rage: &Rage) -> Result<(), String> {
    println!("{READY}");
    let until = Until::seconds(rage.seconds);
    let raged = match &rage.fury {
        Fury::Fork => fork(until),
        Fury::Memory(bytes) => memory(*bytes, until),
        Fury::Spin(threads) => spin(*threads, until),
        Fury::Log => log(until),
        Fury::Connections { door, target, say } => connections(door, target, say, until),
        Fury::Door(behaviour) => door(behaviour, until)?,
    };
    println!("\n{}", serde_json::to_string(&raged).map_err(|error| error.to_string())?);
    Ok(())
}

/// Processes that make processes, until there are no more to be had.
fn fork(until: Until) -> Raged {
    let (mut raged, mut children) = (Raged::default(), Vec::new());
    while until.goes_on() {
        // Each knows how much is left, and so ends in time, whatever becomes of the one that made it.
        let left_ms = until.left().as_millis().to_string();
        let bred =
            Command::new("/proc/self/exe").args(["breed", &left_ms]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        match bred {
            Ok(child) => {
                raged.done += 1;
                children.push(child);
            }
            Err(_) => {
                raged.refused += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
    raged
}

/// Is one of those processes: makes more of its kind, for so many milliseconds.
pub fn be_bred(left_ms: u64) {
    fork(Until(Instant::now() + Duration::from_millis(left_ms)));
}

/// Takes more memory than there is, again and again.
fn memory(bytes: u64, until: Until) -> Raged {
    let mut raged = Raged::default();
    while until.goes_on() {
        let eaten = Command::new("/proc/self/exe").args(["eat", &bytes.to_string()]).stdin(Stdio::null()).status();
        match eaten {
            Ok(status) if status.success() => raged.done += 1,
            Ok(status) if status.signal().is_some() => raged.refused += 1,
            _ => std::thread::sleep(PAUSE),
        }
    }
    raged
}

fn spin(threads: usize, until: Until) -> Raged {
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while until.goes_on() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    Raged { done: done.into_inner(), refused: 0 }
}

fn log(until: Until) -> Raged {
    let line = format!("{}\n", "x".repeat(LINE));
    let (mut raged, mut out) = (Raged::default(), io::stdout().lock());
    while until.goes_on() {
        match out.write_all(line.as_bytes()) {
            Ok(()) => raged.done += 1,
            Err(_) => raged.refused += 1,
        }
    }
    raged
}

/// Connections to the outside, as many as are to be had: each says something and hears nothing of the answer.
fn connections(door: &std::path::Path, target: &str, say: &str, until: Until) -> Raged {
    let (mut raged, mut held) = (Raged::default(), Vec::new());
    while until.goes_on() {
        match connect(door, target) {
            Ok(Some(mut stream)) => {
                let _ = stream.write_all(say.as_bytes());
                raged.done += 1;
                held.push(stream);
            }
            Ok(None) => {
                raged.refused += 1;
                // One that never comes to the end of its question, beside those that are refused.
                if let Ok(mut stream) = UnixStream::connect(door) {
                    let _ = stream.write_all(b"CONNECT ");
                    held.push(stream);
                }
                if held.len() > 1000 {
                    held.drain(..100);
                }
                std::thread::sleep(PAUSE);
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    raged
}

/// A tunnel; `None` when it is refused.
fn connect(door: &std::path::Path, target: &str) -> io::Result<Option<UnixStream>> {
    let mut stream = UnixStream::connect(door)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(head.starts_with(b"HTTP/1.1 200").then_some(stream))
}

/// Behaves so behind its own door.
fn door(behaviour: &Behaviour, until: Until) -> Result<Raged, String> {
    crate::serve::begin(behaviour)?;
    std::thread::sleep(until.left());
    Ok(Raged { done: 1, refused: 0 })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn connections_are_counted_as_they_are_answered() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("door.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut heard = [0; 8];
                // Those that never come to the end begin alike.
                if stream.read_exact(&mut heard).is_ok() {
                    let answer: &[u8] =
                        if held.len() < 3 { b"HTTP/1.1 200 OK\r\n\r\n" } else { b"HTTP/1.1 429 x\r\n\r\n" };
                    let _ = stream.write_all(answer);
                    held.push(stream);
                }
            }
        });
        let raged = connections(&path, "x.test:1", "hello", Until::seconds(1));
        assert_eq!(raged.done, 3);
        assert!(raged.refused > 0);
    }

    #[test]
    fn a_rage_ends_by_itself() {
        let raged = spin(2, Until::seconds(0));
        assert_eq!((raged.refused, raged.done), (0, 0));
        assert!(!Until::seconds(0).goes_on() && Until::seconds(60).goes_on());
    }
}
