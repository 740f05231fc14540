//! A tiny instance: this test's own program, started by an engine, serves instead of testing.
//!
//! It is static, so an image of it needs nothing else; and no binary of it is built for anybody but the tests.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
};

/// The arguments under which the test program is an instance: it runs this one "test".
pub const ARGUMENTS: [&str; 4] = ["--exact", "as_an_instance", "--nocapture", "--test-threads=1"];

/// Serves when an engine started this program; returns at once when it is a test run.
pub fn serve_if_started_by_an_engine() {
    let Some(inward) = std::env::var_os("INSTANCE_IN_DIR").map(PathBuf::from) else { return };
    if std::env::var_os("INSTANCE_EXIT_WITH_PARENT").is_some() {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let data = PathBuf::from(std::env::var_os("INSTANCE_DATA_DIR").unwrap());
    let runs = fs::read_to_string(data.join("runs")).ok().and_then(|text| text.parse().ok()).unwrap_or(0) + 1;
    fs::write(data.join("runs"), i32::to_string(&runs)).unwrap();

    let socket = inward.join("http.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut request = [0; 1024];
        let Ok(length) = stream.read(&mut request) else { continue };
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let said = match request.split(' ').nth(1) {
            Some("/crash") => std::process::exit(1),
            Some("/report") => report(),
            _ => format!("runs={runs}"),
        };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{said}");
    }
}

/// What an instance can see and do, one fact a line.
fn report() -> String {
    let mut facts = Vec::new();
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if ["Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"]
            .iter()
            .any(|k| line.starts_with(k))
        {
            facts.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let devices: Vec<_> = devices.lines().skip(2).filter_map(|line| Some(line.split(':').next()?.trim())).collect();
    facts.push(format!("network: {}", devices.join(" ")));
    for (name, path) in [
        ("root", "/x"),
        ("config", "/config/x"),
        ("out", "/run/beaver/out/x"),
        ("data", "/data/x"),
        ("in", "/run/beaver/in/x"),
        ("tmp", "/tmp/x"),
    ] {
        facts.push(format!("writes {name}: {}", fs::write(path, "x").is_ok()));
    }
    let readable = fs::read_to_string("/config/config.json").unwrap_or_else(|error| error.to_string());
    facts.push(format!("config: {readable}"));
    let names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
    facts.push(format!("env: {}", names.join(" ")));
    facts.join("\n")
}
