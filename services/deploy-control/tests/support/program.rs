//! A program that knows nothing of Beaver: it serves plain HTTP on a TCP port, and finds its way out by `HTTP_PROXY`.
//!
//! It is this test's own program, as [`instance`](super::instance) is; a variable of its plan's says that it is this one.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

/// The variable that says which port it listens on.
pub const PORT: &str = "NOTES_PORT";

/// What it says before bytes go both ways.
pub const UPGRADED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n";

/// Serves when this program was started as that one.
pub fn serve_if_started_as_one() {
    let Some(port) = std::env::var(PORT).ok().and_then(|port| port.parse::<u16>().ok()) else { return };
    let runs = fs::read_to_string("/data/runs").ok().and_then(|text| text.parse().ok()).unwrap_or(0) + 1;
    fs::write("/data/runs", i32::to_string(&runs)).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        std::thread::spawn(move || answer(stream, runs));
    }
}

fn answer(mut stream: TcpStream, runs: i32) {
    let mut request = [0; 4096];
    let Ok(length) = stream.read(&mut request) else { return };
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, said) = match path.split_once('?').unwrap_or((path, "")) {
        ("/echo", _) => return echo(stream),
        ("/fetch", url) => ("200 OK", fetch(url)),
        ("/report", _) => ("200 OK", report()),
        ("/sick", _) => ("503 Service Unavailable", String::new()),
        ("/", _) => ("200 OK", format!("runs={runs}")),
        _ => ("401 Unauthorized", String::new()),
    };
    let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{said}");
}

/// As a WebSocket does: after the upgrade, bytes go both ways.
fn echo(mut stream: TcpStream) {
    let _ = stream.write_all(UPGRADED.as_bytes());
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..length]).is_err() {
            return;
        }
    }
    let _ = stream.write_all(b"that was all");
}

/// What is under a URL, asked of the proxy that the environment names.
fn fetch(url: &str) -> String {
    let asked = || {
        let proxy = std::env::var("HTTP_PROXY").map_err(|error| error.to_string())?;
        let address = proxy.strip_prefix("http://").ok_or("it is no proxy")?.to_owned();
        let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        write!(stream, "GET {url} HTTP/1.1\r\nConnection: close\r\n\r\n").map_err(|error| error.to_string())?;
        let mut said = String::new();
        stream.read_to_string(&mut said).map_err(|error| error.to_string())?;
        Ok::<_, String>(said)
    };
    asked().unwrap_or_else(|error| error)
}

/// What it can see and do, one fact a line.
fn report() -> String {
    let mut facts = Vec::new();
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if ["Uid:", "CapEff:", "NoNewPrivs:", "Seccomp:"].iter().any(|name| line.starts_with(name)) {
            facts.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for path in ["/x", "/.beaver/shim", "/run/beaver/out/x", "/data/x", "/tmp/x", "/var/lib/notes/x"] {
        facts.push(format!("writes {path}: {}", fs::write(path, "x").is_ok()));
    }
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        if let [_, place @ ("/tmp" | "/var/lib/notes" | "/.beaver/shim"), kind, options, ..] =
            line.split(' ').collect::<Vec<_>>()[..]
        {
            facts.push(format!("mount {place}: {kind} {options}"));
        }
    }
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let devices: Vec<_> = devices.lines().skip(2).filter_map(|line| Some(line.split(':').next()?.trim())).collect();
    facts.push(format!("network: {}", devices.join(" ")));
    facts.push(format!("config: {}", fs::exists("/config").unwrap_or(true)));
    facts.extend(std::env::vars().map(|(name, value)| format!("{name}={value}")));
    facts.join("\n")
}
