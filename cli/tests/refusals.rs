//! What `beaver` refuses to begin: the real program, in a folder of its own, says why in one line, with an exit code that
//! tells, and has changed nothing.

use std::{
    fs,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
};

/// A check failed, and nothing was changed.
const CHECK_FAILED: i32 = 3;
/// An unusable command line or setting.
const USAGE: i32 = 2;

fn beaver(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above");
    let mut command = Command::new(env!("CARGO_BIN_EXE_beaver"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    command.envs(environment.iter().copied());
    command.arg("--project-dir").arg(root).arg("--env-file").arg(folder.join("env"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Everything it said.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `up` with everything of its own in `folder`.
fn up(folder: &Path, ports: [u16; 2], more: &[&str], environment: &[(&str, &str)]) -> Output {
    let (data, [portal, router]) = (folder.join("data").display().to_string(), ports.map(|port| port.to_string()));
    let mut arguments = vec!["up", "--prefix", "beaver-refusals", "--data-dir", &data];
    arguments.extend(["--portal-port", portal.as_str(), "--router-port", router.as_str()]);
    arguments.extend(more);
    beaver(folder, &arguments, environment)
}

fn free_ports() -> [u16; 2] {
    let both = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    both.map(|listener| listener.local_addr().unwrap().port())
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_port_that_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = up(folder.path(), [port, free_ports()[1]], &["--engine", "process"], &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(CHECK_FAILED), "{text}");
    let lines: Vec<_> = text.lines().filter(|line| line.contains(&port.to_string())).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("BEAVER_PORTAL_PORT"), "{text}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn an_engine_that_does_not_answer_is_no_reason_to_go_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let engine = UnixListener::bind(&socket).unwrap();
    // It takes every connection and says nothing; ends with the test.
    std::thread::spawn(move || engine.incoming().for_each(drop));
    let host = format!("unix://{}", socket.display());
    let output = up(folder.path(), free_ports(), &[], &[("DOCKER_HOST", &host)]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(CHECK_FAILED), "{text}");
    assert!(text.contains(&socket.display().to_string()), "{text}");
    assert_eq!(names(folder.path()), ["docker.sock"], "{text}");
}

#[test]
fn an_engine_that_cannot_be_on_this_host() {
    let folder = tempfile::tempdir().unwrap();
    let output = up(folder.path(), free_ports(), &[], &[("DOCKER_HOST", "tcp://127.0.0.1:1")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(USAGE), "{text}");
    assert!(text.contains("DOCKER_HOST"), "{text}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn purging_where_nobody_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/authz")).unwrap();
    fs::write(folder.path().join("data/engine"), "process\n").unwrap();
    let data = folder.path().join("data").display().to_string();
    let output = beaver(folder.path(), &["down", "--purge"], &[("BEAVER_DATA_DIR", &data)]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(USAGE), "{text}");
    assert!(text.contains("--yes"), "{text}");
    assert!(folder.path().join("data/authz").exists());
}

#[test]
fn a_setting_that_is_unusable() {
    let folder = tempfile::tempdir().unwrap();
    let output = up(folder.path(), [3081, 3081], &["--engine", "process"], &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(USAGE), "{text}");
    assert!(text.contains("BEAVER_PORTAL_PORT and BEAVER_ROUTER_PORT"), "{text}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn what_runs_already() {
    let folder = tempfile::tempdir().unwrap();
    // As the one that runs holds it, and its ports.
    fs::create_dir(folder.path().join("data")).unwrap();
    let held = fs::File::create(folder.path().join("data/process.json")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [taken.local_addr().unwrap().port(), free_ports()[1]];
    let output = up(folder.path(), ports, &["--engine", "process"], &[]);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("it runs already") && text.contains("beaver down"), "{text}");
    assert!(!text.contains("BEAVER_PORTAL_PORT"), "a port is not what is wrong: {text}");
}
