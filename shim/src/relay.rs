//! Connections, each passed on to another.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    task::JoinSet,
};

/// How much is read at once; it is written on before more is read.
const PIECE: usize = 16 << 10;
/// The wait after a connection could not be accepted, as when there are too many.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections that are passed on at present. They end when this is dropped.
#[derive(Default)]
pub(crate) struct Relays(JoinSet<()>);

impl Relays {
    /// Accepts connections, for ever, and passes each on to one that is made for it. One that nobody takes is closed: who
    /// made it sees that nobody is there yet.
    pub(crate) async fn serve<A, B>(
        &mut self,
        accept: impl AsyncFn() -> io::Result<A>,
        connect: impl AsyncFn() -> io::Result<B>,
    ) where
        A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        loop {
            while self.0.try_join_next().is_some() {}
            let Ok(mut from) = accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // Connecting is to loopback or a Unix socket, which answers or refuses at once.
            let Ok(mut to) = connect().await else { continue };
            self.0.spawn(async move {
                // Either side may break off: the other then sees the end.
                let _ = copy_bidirectional_with_sizes(&mut from, &mut to, PIECE, PIECE).await;
            });
        }
    }

    /// Waits until all of them have ended.
    pub(crate) async fn drain(&mut self) {
        while self.0.join_next().await.is_some() {}
    }
}
