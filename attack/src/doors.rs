//! The doors that an instance has: HTTP on Unix sockets, spoken well and badly.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::verdict::{Verdict, reason};

/// How long a door may take to say something.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a door may take to be there.
const OPENING: Duration = Duration::from_secs(5);
/// The most of an answer that is read.
const MOST: usize = 64 << 10;

/// What a door said.
struct Said {
    text: String,
    /// Whether it is done: hung up, rather than silent.
    ended: bool,
}

fn open(door: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + OPENING;
    // The router opens them while the instance is made.
    let stream = loop {
        match UnixStream::connect(door) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            outcome => break outcome?,
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Reads until `enough`, the end, or until nothing comes any more.
fn hear(stream: &mut UnixStream, enough: impl Fn(&[u8]) -> bool) -> Said {
    let (mut heard, mut piece) = (Vec::new(), [0; 8192]);
    let until = Instant::now() + PATIENCE;
    let mut ended = false;
    while heard.len() < MOST && !enough(&heard) && Instant::now() < until {
        match stream.read(&mut piece) {
            Ok(0) => {
                ended = true;
                break;
            }
            Ok(length) => heard.extend_from_slice(&piece[..length]),
            Err(error) => {
                ended = !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                break;
            }
        }
    }
    Said { text: String::from_utf8_lossy(&heard).into_owned(), ended }
}

/// Status and the rest of the first line.
fn status(text: &str) -> Option<(u16, String)> {
    let line = text.strip_prefix("HTTP/1.")?.lines().next()?;
    let status = line.get(2..)?;
    Some((status.split(' ').next()?.parse().ok()?, status.to_owned()))
}

/// Whether a problem's header and body are there.
fn is_whole(heard: &[u8]) -> bool {
    let text = String::from_utf8_lossy(heard);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    if status(head).is_some_and(|(status, _)| status == 200 && !head.to_ascii_lowercase().contains("content-length")) {
        return true;
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// What an egress door's answer means.
fn let_out(said: &Said) -> Verdict {
    let Some((status, line)) = status(&said.text) else {
        return if said.ended { Verdict::refused("hung up") } else { Verdict::broken("no answer") };
    };
    match status {
        200..=399 => Verdict::done(line),
        // It does not know the name, which says nothing of where the name leads.
        _ if said.text.contains("egress_unresolvable") => Verdict::broken(line),
        400..=499 => Verdict::refused(line),
        // The rules let it out; that nobody was there is not their merit.
        _ => Verdict::done(format!("let out, then {line}")),
    }
}

fn exchange(door: &Path, bytes: &str, meaning: impl Fn(&Said) -> Verdict) -> Verdict {
    let said = open(door).map(|mut stream| {
        // Who hangs up in the middle of it has an answer too.
        let _ = stream.write_all(bytes.as_bytes());
        hear(&mut stream, is_whole)
    });
    match said {
        Ok(said) => meaning(&said),
        Err(error) => Verdict::broken(format!("the door does not open: {}", reason(&error))),
    }
}

pub fn connect(door: &Path, target: &str) -> Verdict {
    exchange(door, &format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"), let_out)
}

pub fn absolute(door: &Path, target: &str) -> Verdict {
    let request = format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    exchange(door, &request, let_out)
}

pub fn say(door: &Path, bytes: &str) -> Verdict {
    let said = open(door).map(|mut stream| {
        let _ = stream.write_all(bytes.as_bytes());
        let mut said = hear(&mut stream, |_| false);
        if said.text.is_empty() && !said.ended {
            // It waits for more; there is no more. Not sooner: whoever stops sending may be taken for gone.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            said = hear(&mut stream, |_| false);
        }
        said
    });
    match said {
        Ok(said) => any_success(&said),
        Err(error) => Verdict::broken(format!("the door does not open: {}", reason(&error))),
    }
}

/// Done when one of the answers is a success: after the first there may be one to what was smuggled behind it.
fn any_success(said: &Said) -> Verdict {
    let answers: Vec<(u16, String)> =
        said.text.match_indices("HTTP/1.").filter_map(|(at, _)| status(&said.text[at..])).collect();
    match answers.as_slice() {
        [] if said.ended => Verdict::refused("hung up"),
        [] => Verdict::broken("no answer"),
        answers => match answers.iter().find(|(status, _)| (100..400).contains(status)) {
            Some((_, line)) => Verdict::done(line),
            // 501 and 505 refuse a way of asking; the others tell of trouble.
            None if answers.iter().any(|(status, _)| *status >= 500 && ![501, 505].contains(status)) => {
                Verdict::broken(&answers[0].1)
            }
            None => Verdict::refused(&answers[0].1),
        },
    }
}

pub fn endless_header(door: &Path, kib: u32) -> Verdict {
    let mut stream = match open(door) {
        Ok(stream) => stream,
        Err(error) => return Verdict::broken(format!("the door does not open: {}", reason(&error))),
    };
    let line = format!("X-Endless: {}\r\n", "x".repeat(1024 - 13));
    let begun = stream.write_all(b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: authz\r\n");
    let mut written = 0;
    let mut writing = begun;
    while writing.is_ok() && written < kib {
        writing = stream.write_all(line.as_bytes());
        written += u32::from(writing.is_ok());
    }
    // A header that ends after all, when it is short: the control.
    let _ = stream.write_all(b"Connection: close\r\n\r\n");
    let said = hear(&mut stream, |_| false);
    match (any_success(&said), writing) {
        (Verdict { outcome: attack::Outcome::Done, what }, _) => Verdict::done(format!("after {written} KiB: {what}")),
        (verdict, Err(_)) => Verdict::refused(format!("after {written} KiB: {}", verdict.what)),
        (verdict, Ok(())) if verdict.outcome == attack::Outcome::Refused => {
            Verdict::refused(format!("after {written} KiB: {}", verdict.what))
        }
        (_, Ok(())) => Verdict::done(format!("{written} KiB were taken")),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, path::PathBuf};

    use attack::Outcome;
    use tempfile::TempDir;

    use super::*;

    /// A door that answers one connection with this, once it has heard the end of a header.
    fn door(answer: &'static str) -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("door.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            let mut piece = [0; 1024];
            while !heard.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(length) if length > 0 => heard.extend_from_slice(&piece[..length]),
                    _ => break,
                }
            }
            let _ = stream.write_all(answer.as_bytes());
        });
        (folder, path)
    }

    #[test]
    fn refused_let_out_and_unknown_are_told_apart() {
        for (answer, outcome) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Outcome::Done),
            ("HTTP/1.1 403 Refused: a private address\r\nContent-Length: 2\r\n\r\n{}", Outcome::Refused),
            ("HTTP/1.1 502 It cannot be connected to\r\nContent-Length: 2\r\n\r\n{}", Outcome::Done),
            ("HTTP/1.1 502 x\r\nContent-Length: 30\r\n\r\n{\"code\":\"egress_unresolvable\"} ", Outcome::Broken),
            ("", Outcome::Refused),
        ] {
            let (_folder, door) = door(answer);
            assert_eq!(connect(&door, "10.0.0.1:80").outcome, outcome, "{answer}");
        }
        // One that is no socket: for one that is not there it is waited.
        assert_eq!(connect(Path::new("/"), "10.0.0.1:80").outcome, Outcome::Broken);
    }

    #[test]
    fn a_second_answer_counts_too() {
        let refused = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let (_folder, path) = door("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(say(&path, "GET / HTTP/1.1\r\n\r\n").outcome, Outcome::Done);
        let (_folder, path) = door(refused);
        assert_eq!(say(&path, "GET / HTTP/1.1\r\n\r\n"), Verdict::refused("404 Not Found"));
    }

    #[test]
    fn a_header_is_endless_when_all_of_it_is_taken() {
        let (_folder, path) = door("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(endless_header(&path, 1).outcome, Outcome::Done);
        let (_folder, path) = door("HTTP/1.1 431 Too Large\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(endless_header(&path, 1), Verdict::refused("after 1 KiB: 431 Too Large"));
    }
}
