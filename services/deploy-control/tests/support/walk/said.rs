//! What the services of a walk have said, so that a failure can be told with it.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, Once, PoisonError},
};

/// So many lines are kept.
const LINES: usize = 20_000;

static SAID: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
static LISTENS: Once = Once::new();

/// Keeps what is said from now on. Whether others listen already does not matter.
pub fn listen() {
    LISTENS.call_once(|| {
        let _ = tracing_subscriber::fmt()
            .with_env_filter("deploy_control=debug")
            .with_ansi(false)
            .with_target(false)
            .with_writer(|| Line)
            .try_init();
    });
}

/// The last `count` lines that name this.
pub fn of(what: &str, count: usize) -> String {
    let said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<_> = said.iter().filter(|line| line.contains(what)).map(String::as_str).collect();
    lines[lines.len().saturating_sub(count)..].concat()
}

struct Line;

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES {
            said.pop_front();
        }
        said.push_back(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
