//! The program: started, signalled, waited for.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
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

    /// Waits for its end and passes signals on meanwhile.
    pub(crate) async fn ended(&mut self) -> io::Result<u8> {
        loop {
            tokio::select! {
                status = self.child.wait() => {
                    let status = status?;
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                    return Ok(u8::try_from(code).unwrap_or(u8::MAX));
                }
                Some(signal) = self.signals.recv() => {
                    // Known only until it was waited for: nobody else gets a signal that was meant for it.
                    let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
                    if let Some(pid) = pid {
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        }
    }
}
