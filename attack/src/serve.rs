//! An instance's `http.sock`, as honest and as hostile as it is told to be.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use attack::{Behaviour, READY};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// The most that an answer without an end has.
const ENDLESS: usize = 64 << 20;
/// How long somebody may take to ask.
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts it in place, says so, and is it until the end.
pub fn be(behaviour: &Behaviour) -> Result<(), String> {
    begin(behaviour)?;
    println!("{READY}");
    std::thread::sleep(crate::WAIT);
    Ok(())
}

/// Puts it in place, and is it as long as this process lives.
pub fn begin(behaviour: &Behaviour) -> Result<(), String> {
    put(Path::new(crate::folders::IN), behaviour).map_err(|error| format!("http.sock as {behaviour:?}: {error}"))
}

/// Puts it in place in this folder, instead of whatever was there.
fn put(folder: &Path, behaviour: &Behaviour) -> io::Result<()> {
    let path = folder.join("http.sock");
    let removed = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match behaviour {
        Behaviour::Link(to) => symlink(to, &path),
        Behaviour::Fifo => Ok(mknodat(CWD, &path, FileType::Fifo, Mode::RWXU | Mode::RWXG, 0)?),
        Behaviour::Folder => fs::create_dir(&path),
        Behaviour::HugeFile => File::create(&path)?.set_len(1 << 30),
        answering => {
            let listener = UnixListener::bind(&path)?;
            // The folder's group is the router's.
            fs::set_permissions(&path, Permissions::from_mode(0o660))?;
            let answering = answering.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let answering = answering.clone();
                    std::thread::spawn(move || {
                        // Who hangs up has had enough.
                        let _ = answer(stream, &answering);
                    });
                }
            });
            Ok(())
        }
    }
}

fn answer(mut stream: UnixStream, behaviour: &Behaviour) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    loop {
        if matches!(behaviour, Behaviour::HangsUp) || !hear(&mut stream)? {
            return Ok(());
        }
        match behaviour {
            Behaviour::Honest(text) => stream.write_all(whole(text).as_bytes())?,
            Behaviour::TwoAnswers(evil) => stream.write_all(format!("{}{}", whole(""), whole(evil)).as_bytes())?,
            Behaviour::WrongLength(evil) => {
                let answer = whole(evil);
                stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{answer}").as_bytes())?;
            }
            Behaviour::Slow => {
                for byte in b"HTTP/1.1 200 OK\r\nX-Slow: ".iter().chain(std::iter::repeat_n(&b'x', 300)) {
                    stream.write_all(&[*byte])?;
                    std::thread::sleep(Duration::from_secs(1));
                }
                return Ok(());
            }
            Behaviour::EndlessHeader => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
                return endless(&mut stream, format!("X-Endless: {}\r\n", "x".repeat(1000)).as_bytes());
            }
            Behaviour::EndlessBody => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                return endless(&mut stream, format!("400\r\n{}\r\n", "x".repeat(0x400)).as_bytes());
            }
            Behaviour::Garbage => {
                stream.write_all(&[0, 255, 13, 10].repeat(4096))?;
                return Ok(());
            }
            Behaviour::Http2 => {
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
                return Ok(());
            }
            _ => {
                std::thread::sleep(crate::WAIT);
                return Ok(());
            }
        }
    }
}

fn whole(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

fn endless(stream: &mut UnixStream, piece: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < ENDLESS {
        stream.write_all(piece)?;
        written += piece.len();
    }
    Ok(())
}

/// Reads a request's header; false at the end.
fn hear(stream: &mut UnixStream) -> io::Result<bool> {
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    while !heard.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(false),
            length => heard.extend_from_slice(&piece[..length]),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn each_behaviour_takes_the_place_of_the_one_before() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("http.sock");
        for behaviour in [Behaviour::Folder, Behaviour::Fifo, Behaviour::HugeFile, Behaviour::Link("/x".into())] {
            put(folder.path(), &behaviour).unwrap();
        }
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        put(folder.path(), &Behaviour::Honest("here".into())).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut said = [0; 100];
            let length = stream.read(&mut said).unwrap();
            assert!(said[..length].ends_with(b"\r\n\r\nhere"));
        }
    }
}
