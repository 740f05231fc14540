//! An honest client, beside the services: how the command asks them, and sees that nobody is hurt.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use attack::{Answer, Call, MAX_ANSWER, To};

/// Makes the calls on the first line of standard input, all at once; prints their answers, in order.
pub fn all() -> Result<(), String> {
    let mut text = String::new();
    io::stdin().read_line(&mut text).map_err(|error| error.to_string())?;
    let calls: Vec<Call> = crate::read(&text)?;
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let made: Vec<_> = calls.iter().map(|call| scope.spawn(|| make(call))).collect();
        made.into_iter().map(|call| call.join().unwrap_or_default()).collect()
    });
    println!("{}", serde_json::to_string(&answers).map_err(|error| error.to_string())?);
    Ok(())
}

fn make(call: &Call) -> Answer {
    ask(call).unwrap_or_else(|error| Answer { status: 0, body: error.to_string() })
}

fn ask(call: &Call) -> io::Result<Answer> {
    let (patience, begun) = (Duration::from_millis(call.patience_ms), Instant::now());
    let mut stream = match &call.to {
        To::Address(address) => TcpStream::connect_timeout(address, patience)?,
        // A stream is a stream: what is called here is the same for both.
        To::Path(path) => OwnedFd::from(UnixStream::connect(path)?).into(),
    };
    stream.set_write_timeout(Some(patience))?;
    let Call { method, path, token, body, .. } = call;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: beaver\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let (mut heard, mut piece) = (Vec::new(), [0; 8192]);
    // Who serves may keep the connection for the next one.
    while heard.len() < MAX_ANSWER && !is_whole(&heard) {
        let left = patience.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => heard.extend_from_slice(&piece[..length]),
        }
    }
    read(&heard).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether all is there of an answer that says how long it is.
fn is_whole(heard: &[u8]) -> bool {
    let text = String::from_utf8_lossy(heard);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    lengths.next().is_some_and(|length| body.len() >= length)
}

/// Status and body. Chunks are put together, as the services' answers may come in some.
fn read(heard: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(heard);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Some(Answer { status, body })
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        let Some(piece) = rest.get(..size).filter(|piece| !piece.is_empty()) else { break };
        whole.push_str(piece);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole() {
        let plain = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(read(plain), Some(Answer { status: 202, body: "{}".into() }));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(read(chunked), Some(Answer { status: 200, body: "abcd".into() }));
        assert_eq!(read(b"nothing"), None);
        assert!(is_whole(plain) && !is_whole(&plain[..plain.len() - 1]) && !is_whole(chunked) && !is_whole(b"nothing"));
    }
}
