//! TLS to PostgreSQL, against a server of the test's own with a certificate that the test makes.

mod common;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::Engine as _;
use common::{MIGRATOR, count, insert};
use store::testing::REQUIRED_VARIABLE;
use store::{Database, Error, Store};
use tempfile::TempDir;

/// A PostgreSQL that speaks TLS and nothing else.
struct Server {
    process: Child,
    port: u16,
    /// Its certificate, as PEM.
    certificate: String,
    folder: TempDir,
}

/// The programs of PostgreSQL; `None`, said on standard error, when there are none and none are demanded.
fn programs() -> Option<PathBuf> {
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let found = installed.chain(env::split_paths(&path)).find(|dir| dir.join("initdb").is_file());
    if found.is_none() {
        let required = env::var(REQUIRED_VARIABLE).is_ok_and(|value| value == "required");
        assert!(!required, "{REQUIRED_VARIABLE}=required, but there is no initdb in PATH or /usr/lib/postgresql");
        eprintln!("TLS to PostgreSQL was not tested: there is no initdb in PATH or /usr/lib/postgresql");
    }
    found
}

/// Whom PostgreSQL, which refuses to run as root, runs as; `None` when this is not root.
fn user() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??))
    };
    let root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    root.then(|| ids("postgres").or_else(|| ids("nobody")).expect("a user for PostgreSQL"))
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Server {
    fn start() -> Option<Self> {
        let programs = programs()?;
        let (folder, user) = (tempfile::tempdir().expect("a folder"), user());
        let data = folder.path().join("data");
        let give =
            |path: &Path| user.into_iter().for_each(|(uid, gid)| chown(path, Some(uid), Some(gid)).expect("given"));
        let command = |name: &str| {
            let mut command = Command::new(programs.join(name));
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        give(folder.path());
        let made = command("initdb").arg("-D").arg(&data).args(["-U", "beaver", "-A", "trust", "--no-sync"]).output();
        let made = made.expect("initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = pem("CERTIFICATE", certified.cert.der());
        let files = [
            ("server.crt", certificate.clone()),
            ("server.key", pem("PRIVATE KEY", &certified.signing_key.serialize_der())),
            // Nobody is let in without TLS.
            ("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust\n".into()),
        ];
        for (name, text) in files {
            let path = data.join(name);
            fs::write(&path, text).expect("a file");
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
            give(&path);
        }
        // It cannot be given a socket, and a free port may be taken by the time it listens: then another.
        let mut said = String::new();
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
            let mut process = command("postgres")
                .arg("-D")
                .arg(&data)
                .args(["-p", &port.to_string(), "-c", "listen_addresses=localhost", "-c", "ssl=on", "-c", "fsync=off"])
                .args(["-c", "unix_socket_directories="])
                .stderr(Stdio::piped())
                .spawn()
                .expect("postgres");
            let mut log = BufReader::new(process.stderr.take().expect("its log"));
            said.clear();
            // Its log ends when it does.
            while log.read_line(&mut said).expect("a line") > 0 {
                if said.contains("ready to accept connections") {
                    // What it says later is read too: a full pipe would stop it.
                    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                    return Some(Self { process, port, certificate, folder });
                }
            }
            process.wait().expect("its end");
        }
        panic!("PostgreSQL does not start: {said}");
    }

    async fn open(&self, host: &str, query: &str) -> Result<Store, Error> {
        let url = format!("postgres://beaver@{host}:{}/postgres?{query}", self.port);
        Store::open(&Database::Postgres { url: url.into(), schema: "tls".into() }, &MIGRATOR).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children notice that their parent is gone and end too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_server_that_demands_tls_is_spoken_to_with_tls() {
    let Some(server) = Server::start() else { return };
    for (n, query) in (1..).zip(["sslmode=require", "sslmode=prefer", ""]) {
        let store = server.open("localhost", query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
        let encrypted: i64 =
            sqlx::query_scalar("SELECT CAST(COUNT(*) AS BIGINT) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")
                .fetch_one(store.pool())
                .await
                .expect("an answer");
        assert_eq!(encrypted, 1, "{query}");
        insert(&store, query, n).await.expect("inserted");
        assert_eq!(count(&store).await, n, "{query}");
        store.close().await;
    }
    // The control: it lets nobody in without.
    assert!(matches!(server.open("localhost", "sslmode=disable").await, Err(Error::Connect(_))));
}

#[tokio::test]
async fn a_certificate_is_checked_where_that_is_asked_for() {
    let Some(server) = Server::start() else { return };
    let file = server.folder.path().join("root.pem");
    fs::write(&file, &server.certificate).expect("a file");
    let root = format!("sslrootcert={}", file.display());
    for mode in ["verify-full", "verify-ca"] {
        let opened = server.open("localhost", &format!("sslmode={mode}&{root}")).await;
        opened.unwrap_or_else(|error| panic!("{mode} {error:?}")).close().await;
    }
    // Another name than the certificate's.
    let refusal = server.open("127.0.0.1", &format!("sslmode=verify-full&{root}")).await.expect_err("another name");
    assert!(matches!(refusal, Error::Connect(_)), "{refusal:?}");
    // A certificate that nobody vouches for.
    let refusal = server.open("localhost", "sslmode=verify-full").await.expect_err("nobody vouches for it");
    assert!(matches!(refusal, Error::Connect(_)), "{refusal:?}");
}
