//! A file from a form (`multipart/form-data`, RFC 7578), in pieces as they come: it may be larger than memory.

use std::{io, time::Duration};

use axum::{
    body::{BodyDataStream, Bytes},
    extract::Request,
};
use futures_util::{Stream, StreamExt, stream};
use http::header;
use memchr::memmem;
use service::Problem;
use tokio::time::timeout;

/// The longest head of a part, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// The longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;
/// How long a browser may send nothing.
const STALL: Duration = Duration::from_secs(60);

/// The file in the form's field of this name, which must be the first. What breaks off ends with an error.
///
/// # Errors
/// 400 when the body is no such form.
pub fn file(
    request: Request,
    field: &'static str,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let boundary = boundary(kind).ok_or_else(|| Problem::bad_request("Send the form as multipart/form-data."))?;
    let parts = Parts {
        body: request.into_body().into_data_stream(),
        delimiter: format!("\r\n--{boundary}").into_bytes(),
        // The first delimiter has no line before it.
        buffer: b"\r\n".to_vec(),
        field,
        state: State::Head,
    };
    Ok(Box::pin(stream::unfold(parts, |mut parts| async move {
        match parts.next().await {
            Ok(Some(piece)) => Some((Ok(piece), parts)),
            Ok(None) => None,
            Err(error) => {
                parts.state = State::Over;
                Some((Err(error), parts))
            }
        }
    })))
}

fn boundary(kind: &str) -> Option<String> {
    let (essence, parameters) = kind.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    let sound = (1..=MAX_BOUNDARY).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic());
    sound.then_some(value)
}

enum State {
    /// Before the file.
    Head,
    /// In it.
    File,
    /// Nothing follows.
    Over,
}

struct Parts {
    body: BodyDataStream,
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    field: &'static str,
    state: State,
}

impl Parts {
    /// The next piece of the file.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.state {
                State::Over => return Ok(None),
                State::Head => {
                    let end = memmem::find(&self.buffer, b"\r\n\r\n");
                    match end {
                        Some(end) if end <= MAX_HEAD => {
                            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                            let begins = self.buffer.starts_with(&self.delimiter);
                            let names = format!("name=\"{}\"", self.field);
                            if !begins || !head.contains("form-data") || !head.contains(&names) {
                                return Err(io::Error::other("the form has no such file"));
                            }
                            self.buffer.drain(..end + 4);
                            self.state = State::File;
                        }
                        None if self.buffer.len() <= MAX_HEAD => self.more().await?,
                        _ => return Err(io::Error::other("the form's head is too long")),
                    }
                }
                State::File => {
                    if let Some(end) = memmem::find(&self.buffer, &self.delimiter) {
                        let piece = self.buffer.drain(..end).collect::<Vec<u8>>();
                        self.state = State::Over;
                        self.read_on().await?;
                        return Ok(Some(piece.into()));
                    }
                    // What could be the beginning of the delimiter stays.
                    let sure = self.buffer.len().saturating_sub(self.delimiter.len());
                    if sure > 0 {
                        return Ok(Some(self.buffer.drain(..sure).collect::<Vec<u8>>().into()));
                    }
                    self.more().await?;
                }
            }
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match timeout(STALL, self.body.next()).await {
            Ok(Some(piece)) => self.buffer.extend_from_slice(&piece.map_err(io::Error::other)?),
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        Ok(())
    }

    /// Reads what comes after the file, which is next to nothing: nobody answers a browser that still sends.
    async fn read_on(&mut self) -> io::Result<()> {
        while let Ok(Some(piece)) = timeout(STALL, self.body.next()).await {
            piece.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    async fn read(kind: &str, pieces: Vec<Vec<u8>>) -> Result<Vec<u8>, String> {
        let stream = stream::iter(pieces.into_iter().map(Ok::<_, io::Error>));
        let request = Request::post("/").header("content-type", kind).body(Body::from_stream(stream)).unwrap();
        let mut file = file(request, "file").map_err(|_| "no form".to_owned())?;
        let mut all = Vec::new();
        while let Some(piece) = file.next().await {
            all.extend_from_slice(&piece.map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_file_is_what_stands_between_the_delimiters_however_it_is_cut() {
        const KIND: &str = "multipart/form-data; boundary=----xyz";
        let content = b"\r\n--\r\n----xy\r\n------xy\x00\xff\r\n".to_vec();
        let form = [
            b"------xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.tar\"\r\n\
              Content-Type: application/x-tar\r\n\r\n"
                .as_slice(),
            &content,
            b"\r\n------xyz--\r\n",
        ]
        .concat();
        for size in [1, 2, 3, 7, 50, form.len()] {
            let pieces = form.chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(read(KIND, pieces).await.as_ref(), Ok(&content), "{size}");
        }
        // Whatever is missing at the end, it is not taken for whole.
        for length in 0..form.len() - 6 {
            assert!(read(KIND, vec![form[..length].to_vec()]).await.is_err(), "{length}");
        }
        let other = String::from_utf8_lossy(&form).replace("name=\"file\"", "name=\"other\"").into_bytes();
        assert!(read(KIND, vec![other]).await.is_err());
        assert!(read(KIND, vec![vec![b'x'; 20_000]]).await.is_err());
        for kind in
            ["text/plain", "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=a b"]
        {
            assert_eq!(read(kind, vec![form.clone()]).await, Err("no form".into()), "{kind}");
        }
    }
}
