//! A tiny instance: this test's own program, started by an engine, serves instead of testing.
//!
//! It is static, so an image of it needs nothing else; and no binary of it is built for anybody but the tests.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use contracts::instance::{PROBE, PROBE_FAILED, PROBE_SOCKET};

/// The arguments under which the test program is an instance: it runs this one "test".
pub const ARGUMENTS: [&str; 4] = ["--exact", "as_an_instance", "--nocapture", "--test-threads=1"];

/// Serves when an engine started this program; returns at once when it is a test run.
pub fn serve_if_started_by_an_engine() {
    let Some(inward) = std::env::var_os("INSTANCE_IN_DIR").map(PathBuf::from) else { return };
    if std::env::args().any(|argument| argument == PROBE) {
        return probe(&inward);
    }
    if std::env::var_os("INSTANCE_EXIT_WITH_PARENT").is_some() {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let data = PathBuf::from(std::env::var_os("INSTANCE_DATA_DIR").unwrap());
    let runs = fs::read_to_string(data.join("runs")).ok().and_then(|text| text.parse().ok()).unwrap_or(0) + 1;
    fs::write(data.join("runs"), i32::to_string(&runs)).unwrap();

    if let Ok(most) = std::env::var("TEST_WRITES") {
        let most = most.parse().unwrap();
        std::thread::spawn(move || write(&data, most));
    }

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

/// Writes so many mebibytes, whatever it is told.
fn write(data: &Path, most: usize) {
    for file in 0..most {
        fs::write(data.join(format!("file-{file}")), vec![1; 1 << 20]).unwrap();
    }
}

/// Passes a byte both ways, as an instance's program does; or, as the image has it, does not.
fn probe(inward: &Path) {
    let listener = UnixListener::bind(inward.join(PROBE_SOCKET)).unwrap();
    match std::env::var("TEST_PROBE").as_deref() {
        Ok("silent") => loop {
            std::thread::park();
        },
        Ok("fails") => {
            eprintln!("the socket in out/: Permission denied (os error 13)");
            std::process::exit(PROBE_FAILED.into());
        }
        Ok("without_in") => fs::remove_file(inward.join(PROBE_SOCKET)).unwrap(),
        _ => {}
    }
    let mut byte = *b"b";
    let mut out = UnixStream::connect(Path::new("/run/beaver/out").join(PROBE_SOCKET)).unwrap();
    out.write_all(&byte).unwrap();
    out.read_exact(&mut byte).unwrap();
    let mut stream = listener.accept().unwrap().0;
    stream.read_exact(&mut byte).unwrap();
    stream.write_all(&byte).unwrap();
    std::process::exit(0);
}

/// What an instance can see and do, one fact a line.
fn report() -> String {
    let mut facts = Vec::new();
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if ["Uid:", "Gid:", "Groups:", "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"]
            .iter()
            .any(|k| line.starts_with(k))
        {
            facts.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for line in fs::read_to_string("/proc/self/limits").unwrap_or_default().lines() {
        if ["Max open files", "Max core file size"].iter().any(|name| line.starts_with(name)) {
            facts.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        if let [_, place, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..]
            && ["/", "/tmp", "/dev/shm", "/sys/fs/cgroup", "/proc/sys", "/config"].contains(&place)
        {
            facts.push(format!("mount {place}: {kind} {options}"));
        }
    }
    // Cgroups of the second kind and of the first.
    for (name, path) in [
        ("init", "/proc/1/comm"),
        ("apparmor", "/proc/self/attr/current"),
        ("cgroup", "/proc/self/cgroup"),
        ("oom", "/proc/self/oom_score_adj"),
        ("memory", "/sys/fs/cgroup/memory.max"),
        ("memory", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        ("swap", "/sys/fs/cgroup/memory.swap.max"),
        ("memory and swap", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
        ("pids", "/sys/fs/cgroup/pids.max"),
        ("pids", "/sys/fs/cgroup/pids/pids.max"),
        ("cpu", "/sys/fs/cgroup/cpu.max"),
        ("cpu", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        ("kcore", "/proc/kcore"),
        ("timers", "/proc/timer_list"),
    ] {
        let text = fs::File::open(path).and_then(|file| {
            let mut text = String::new();
            file.take(4096).read_to_string(&mut text).map(|_| text)
        });
        match text {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => facts.push(format!("{name}: {error}")),
            Ok(text) => facts.push(format!("{name}: {}", text.trim().replace('\n', " "))),
        }
    }
    // What a process that asks for more gets.
    let opened = (0..5_000).map_while(|_| fs::File::open("/proc/self/status").ok()).collect::<Vec<_>>().len();
    facts.push(format!("opens: {opened}"));
    // Not by making them: that takes long where others are busy too.
    let files = rustix::fs::statvfs("/tmp").map_or(0, |tmp| tmp.f_files);
    facts.push(format!("files in tmp: {files}"));
    let big = fs::File::create("/tmp/big").map(|mut file| {
        let piece = vec![0_u8; 1 << 20];
        (0..80).take_while(|_| file.write_all(&piece).is_ok()).count() * piece.len()
    });
    let _ = fs::remove_file("/tmp/big");
    facts.push(format!("bytes in tmp: {}", big.unwrap_or(0)));
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
