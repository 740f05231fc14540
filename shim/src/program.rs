//! The program: started, signalled, waited for.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt, pin::pin, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// What is passed on: everything by which a program is told something. An image may name any of them to end with.
const PASSED_ON: [(SignalKind, Signal); 7] = [
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
    (SignalKind::window_change(), Signal::WINCH),
];

pub(crate) struct Program {
    child: Child,
    signals: mpsc::UnboundedReceiver<Signal>,
}

impl Program {
    /// Starts it, with this process's environment, output and folder. From then on signals are the program's.
    pub(crate) fn start(command: &[OsString]) -> io::Result<Self> {
        let (to, signals) = mpsc::unbounded_channel();
        // First listening, then starting: none is lost in between.
        for (kind, passed_on) in PASSED_ON {
            let (mut heard, to) = (signal(kind)?, to.clone());
            tokio::spawn(async move { while heard.recv().await.is_some() && to.send(passed_on).is_ok() {} });
        }
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let child = Command::new(program).args(arguments).kill_on_drop(true).spawn()?;
        Ok(Self { child, signals })
    }

    /// Waits for its end and passes signals on meanwhile. Once somebody has `asked_to_end`, it is told to; when it has not
    /// ended after `patience`, it is killed.
    pub(crate) async fn ended(&mut self, asked_to_end: impl Future<Output = ()>, patience: Duration) -> io::Result<u8> {
        let mut asked_to_end = pin!(asked_to_end);
        let mut deadline = None;
        loop {
            tokio::select! {
                () = &mut asked_to_end, if deadline.is_none() => {
                    deadline = Some(Instant::now() + patience);
                    self.signal(Signal::TERM);
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.child.start_kill()?;
                    deadline = Some(Instant::now() + patience);
                }
                status = self.child.wait() => {
                    let status = status?;
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                    return Ok(u8::try_from(code).unwrap_or(u8::MAX));
                }
                Some(signal) = self.signals.recv() => self.signal(signal),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Known only until it was waited for: nobody else gets a signal that was meant for it.
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }
}
