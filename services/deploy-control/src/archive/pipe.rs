//! Between blocking readers and writers and the bodies of requests and answers: a few pieces at a time.

use std::io::{self, Read, Write};

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// How many bytes a piece has.
const PIECE: usize = 64 << 10;
/// How many pieces wait to be taken.
const PIECES: usize = 4;

type Piece = io::Result<Bytes>;

/// A body, and the blocking end that writes it. A body whose writer ends without [`Writing::finish`] breaks off.
pub fn body() -> (Writing, Body) {
    let (to, from) = mpsc::channel::<Piece>(PIECES);
    let writing = Writing { to, piece: Vec::with_capacity(PIECE), finished: false };
    (writing, Body::from_stream(ReceiverStream::new(from)))
}

/// The blocking end of a body that is written.
pub struct Writing {
    to: mpsc::Sender<Piece>,
    piece: Vec<u8>,
    finished: bool,
}

impl Writing {
    /// Sends what is left, and ends the body well.
    ///
    /// # Errors
    ///
    /// When nobody reads any more.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.finished = true;
        Ok(())
    }
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.to.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.finished {
            // Without an error the reader could take it for the end.
            let broken = Err(io::Error::other("the archive broke off"));
            let to = self.to.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { to.send(broken).await });
            } else {
                let _ = to.blocking_send(broken);
            }
        }
    }
}

/// The blocking end of a body that is read, and what feeds it; the latter ends when everything is passed on, or nobody reads
/// any more.
pub fn reading<S, E>(mut stream: S) -> (Reading, impl Future<Output = S> + Send)
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let (to, from) = mpsc::channel::<Piece>(PIECES);
    let feeding = async move {
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(io::Error::other);
            let broke = piece.is_err();
            if to.send(piece).await.is_err() || broke {
                break;
            }
        }
        stream
    };
    (Reading { from, piece: Bytes::new() }, feeding)
}

/// The blocking end of a body that is read.
pub struct Reading {
    from: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl Read for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let taken = into.len().min(self.piece.len());
        into[..taken].copy_from_slice(&self.piece.split_to(taken));
        Ok(taken)
    }
}
