//! Rows that need somebody outside of the hostile instance: who connects to its socket, who keeps its log, who removes its
//! folders. The honest instance beside it must not notice anything.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ::attack::{Answer, Attempt, Behaviour, Call, Outcome, Plan, Prepared, To};
use anyhow::{Context, ensure};
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use secrecy::ExposeSecret;

use super::{
    field::Field,
    table::{Line, Verdict},
    victims::{Deploy, Victim},
};

/// How long the router is waited for, when it asks a hostile instance: it has more patience itself.
const HOSTILE_MS: u64 = 2_000;
/// The same, for the honest one.
const HONEST_MS: u64 = 10_000;
/// How often the honest one is asked while the hostile one is.
const AT_ONCE: usize = 3;
/// How much is written to a log, in bytes.
const FLOOD: usize = 40 << 20;
/// What may be left of it: three files of ten megabytes, and some.
const KEPT: usize = 32 << 20;

/// The rows of [`Stage::sockets`].
pub const SOCKETS: [&str; 4] = ["socket_link", "socket_kind", "socket_slow", "socket_smuggling"];
/// The row of [`Stage::log`].
pub const LOG: &str = "log";
/// The row of [`Stage::removal`].
pub const REMOVAL: &str = "removal";
/// Every row of these.
pub const ROWS: [&str; 6] = [SOCKETS[0], SOCKETS[1], SOCKETS[2], SOCKETS[3], LOG, REMOVAL];

/// The two instances, and the router's internal listener, through which the house reaches them.
pub struct Stage<'a> {
    pub field: &'a Field<'a>,
    pub hostile: &'a Victim,
    pub honest: &'a Victim,
    pub router: SocketAddr,
    /// Instead of through the router, the house reaches them by their sockets' paths, as a router would that looked at
    /// nothing.
    pub follows_links: bool,
}

/// The router's user and group, as compose.yaml has them.
const ROUTER: &str = "10001:10001";
/// Who reaches instances by their sockets' paths.
pub const FOLLOWER: &str = "follower";

/// What makes a row of its own of some behaviours.
struct Scene {
    id: &'static str,
    what: [&'static str; 2],
    behaviours: Vec<Behaviour>,
    /// Whether any answer at all, but the router's own that there is none, would be somebody else's.
    silent: bool,
}

impl Stage<'_> {
    fn call(&self, victim: &Victim, patience_ms: u64) -> anyhow::Result<Call> {
        let to =
            if self.follows_links { To::Path(self.run(victim).join("in/http.sock")) } else { To::Address(self.router) };
        Ok(Call {
            to,
            method: "GET".into(),
            path: format!("/instances/{}/attack", victim.id),
            token: self.field.stack.env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?.expose_secret().to_owned(),
            body: String::new(),
            patience_ms,
        })
    }

    fn run(&self, victim: &Victim) -> PathBuf {
        self.field.stack.data_dir.join("run").join(victim.id.to_string())
    }

    async fn ask(&self, calls: &[Call]) -> anyhow::Result<Vec<Answer>> {
        let role = if self.follows_links { FOLLOWER } else { "neighbour" };
        self.field.have_asked(role, calls).await
    }

    /// Starts what reaches the two instances by path: as the router's user, with their two folders where the router has
    /// them, and no others.
    async fn follow(&self) -> anyhow::Result<()> {
        let folders = [self.hostile, self.honest].map(|victim| self.run(victim).display().to_string());
        let host_config = HostConfig {
            network_mode: Some("none".into()),
            userns_mode: Some("host".into()),
            binds: Some(folders.map(|folder| format!("{folder}:{folder}:ro")).to_vec()),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges:true".into(), "label=disable".into()]),
            ..HostConfig::default()
        };
        let body = self.field.body(&["wait"], host_config);
        self.field.begin(FOLLOWER, ContainerCreateBody { user: Some(ROUTER.into()), ..body }).await
    }

    async fn serve(&self, role: &str, victim: &Victim, behaviour: &Behaviour) -> anyhow::Result<()> {
        let body = victim.hostile(self.field, &["serve", &serde_json::to_string(behaviour)?]);
        self.field.begin(role, body).await
    }

    /// Starts the honest instance beside the hostile one; what it answers.
    async fn be_honest(&self) -> anyhow::Result<String> {
        let secret = clock::Entropy::system().token();
        self.serve("honest", self.honest, &Behaviour::Honest(secret.clone())).await?;
        Ok(secret)
    }

    /// Has the hostile instance behave so; what the house gets from it, and from the honest one meanwhile.
    async fn play(&self, behaviour: &Behaviour) -> anyhow::Result<(Answer, Vec<Answer>)> {
        self.serve("hostile", self.hostile, behaviour).await?;
        let mut calls = vec![self.call(self.hostile, HOSTILE_MS)?];
        for _ in 0..AT_ONCE {
            calls.push(self.call(self.honest, HONEST_MS)?);
        }
        let mut answers = self.ask(&calls).await?.into_iter();
        let of_hostile = answers.next().context("the neighbour does not answer")?;
        let mut of_honest: Vec<Answer> = answers.collect();
        // And once more, now that whatever the hostile one left lying on a connection is there.
        of_honest.extend(self.ask(&[self.call(self.honest, HONEST_MS)?]).await?);
        self.field.engine.remove(&self.field.name("hostile")).await?;
        Ok((of_hostile, of_honest))
    }

    /// What an instance can do to the router with its own socket.
    ///
    /// # Errors
    /// When a container cannot be run.
    pub async fn sockets(&self, wanted: &impl Fn(&str) -> bool) -> anyhow::Result<Vec<Line>> {
        if self.follows_links {
            self.follow().await?;
        }
        let secret = self.be_honest().await?;
        // The control: an honest socket is answered through the same way, with its own words.
        let own = clock::Entropy::system().token();
        let (answer, of_honest) = self.play(&Behaviour::Honest(own.clone())).await?;
        let heard = answer.body == own && of_honest.iter().all(|answer| is(answer, &secret));
        let control = if heard { Ok("answered".to_owned()) } else { Err(format!("{answer:?}, {of_honest:?}")) };
        let mut lines = Vec::new();
        for scene in self.scenes().into_iter().filter(|scene| wanted(scene.id)) {
            let (mut broke, mut hurt) = (Vec::new(), Vec::new());
            for behaviour in &scene.behaviours {
                let (answer, of_honest) = self.play(behaviour).await?;
                let name = name_of(behaviour);
                if answer.body.contains(&secret) || (scene.silent && !matches!(answer.status, 0 | 502..=504)) {
                    broke.push(format!("{name}: {} {}", answer.status, answer.body));
                }
                if let Some(answer) = of_honest.iter().find(|answer| !is(answer, &secret)) {
                    hurt.push(format!("{name}: the other one's was {} {}", answer.status, answer.body));
                }
            }
            broke.append(&mut hurt);
            let count = scene.behaviours.len();
            let verdict = match (&control, broke.is_empty()) {
                (_, false) => Verdict::GotThrough,
                (Err(_), true) => Verdict::NotTried,
                (Ok(_), true) => Verdict::Held,
            };
            lines.push(Line {
                id: scene.id,
                what: scene.what,
                must: ["nobody else's, nobody hurt", "不串扰,不影响他人"],
                happened: if broke.is_empty() { format!("{count} of {count}") } else { broke.join("; ") },
                control: control.clone().unwrap_or_else(|error| error),
                verdict,
            });
        }
        for role in ["honest", FOLLOWER] {
            self.field.engine.remove(&self.field.name(role)).await?;
        }
        Ok(lines)
    }

    fn scenes(&self) -> Vec<Scene> {
        let run = self.field.stack.data_dir.join("run");
        let of_other = format!("{}/in/http.sock", self.honest.id);
        let links = [
            run.join(&of_other).display().to_string(),
            format!("../../{of_other}"),
            format!("/proc/1/root{}", run.join(&of_other).display()),
            format!("{}/out/egress.sock", run.join(self.hostile.id.to_string()).display()),
            "../out/identity.sock".into(),
            "/var/run/docker.sock".into(),
        ];
        // In what it is asked it may say what it likes; in what the honest one is answered it may not.
        let evil = "evil words".to_owned();
        vec![
            Scene {
                id: SOCKETS[0],
                what: [
                    "http.sock as a link to another's, to a door, to the engine's",
                    "http.sock 指向他人、出口或引擎的套接字",
                ],
                behaviours: links.map(Behaviour::Link).to_vec(),
                silent: true,
            },
            Scene {
                id: SOCKETS[1],
                what: ["http.sock as a fifo, a folder, a file of a gibibyte", "http.sock 为管道、目录或 1 GiB 文件"],
                behaviours: vec![Behaviour::Fifo, Behaviour::Folder, Behaviour::HugeFile],
                silent: true,
            },
            Scene {
                id: SOCKETS[2],
                what: ["answers that are silent, slow, endless", "不响应、极慢或没有尽头的响应"],
                behaviours: vec![
                    Behaviour::Silent,
                    Behaviour::Slow,
                    Behaviour::EndlessHeader,
                    Behaviour::EndlessBody,
                    Behaviour::HangsUp,
                ],
                silent: false,
            },
            Scene {
                id: SOCKETS[3],
                what: ["two answers, wrong lengths, noise, HTTP/2", "双重响应、长度不符、乱码、HTTP/2"],
                behaviours: vec![
                    Behaviour::TwoAnswers(evil.clone()),
                    Behaviour::WrongLength(evil),
                    Behaviour::Garbage,
                    Behaviour::Http2,
                ],
                silent: false,
            },
        ]
    }

    /// Whether the engine keeps more of a log than it should.
    ///
    /// # Errors
    /// When a container cannot be run.
    pub async fn log(&self, without: bool) -> anyhow::Result<Line> {
        let flood = FLOOD.to_string();
        let mut hostile = self.hostile.hostile(self.field, &["flood", &flood]);
        let all = HostConfigLogConfig {
            typ: Some("json-file".into()),
            config: Some([("max-size".to_owned(), "200m".to_owned())].into()),
        };
        if without && let Some(host_config) = &mut hostile.host_config {
            host_config.log_config = Some(all.clone());
        }
        let kept = self.keep("hostile", hostile).await?;
        let host_config =
            HostConfig { network_mode: Some("none".into()), log_config: Some(all), ..HostConfig::default() };
        let of_control = self.keep("control", self.field.body(&["flood", &flood], host_config)).await?;
        let verdict = match (kept <= KEPT, of_control >= FLOOD) {
            (false, _) => Verdict::GotThrough,
            (true, false) => Verdict::NotTried,
            (true, true) => Verdict::Held,
        };
        Ok(Line {
            id: LOG,
            what: ["40 MiB of log", "40 MiB 日志"],
            must: ["only the last 30 MB are kept", "只保留最后 30 MB"],
            happened: format!("{} MiB kept", kept >> 20),
            control: format!("{} MiB kept", of_control >> 20),
            verdict,
        })
    }

    /// How much of what a container writes is there once it has ended.
    async fn keep(&self, role: &str, body: ContainerCreateBody) -> anyhow::Result<usize> {
        self.field.end(role, body).await?;
        let kept = self.field.log_size(role).await;
        self.field.engine.remove(&self.field.name(role)).await?;
        kept
    }

    /// Fills the hostile instance's folders with what whoever removes them may stumble over, and has it removed.
    ///
    /// # Errors
    /// When a container cannot be run.
    pub async fn removal(&self, deploy: &Deploy<'_>) -> anyhow::Result<Line> {
        // Something of the other instance's own, at the places that the links lead to.
        let mine = |folder: &str| format!("{folder}/beaver-attack-kept");
        let put = Plan {
            prepare: ["/data", "/run/beaver/in"]
                .map(|folder| Prepared::File(mine(folder).into(), "kept".into()))
                .to_vec(),
            attempts: Vec::new(),
        };
        let look = Plan {
            prepare: Vec::new(),
            attempts: ["/data", "/run/beaver/in"].map(|folder| Attempt::Write(mine(folder).into())).to_vec(),
        };
        let lay = self.honest.hostile(self.field, &["lay", &serde_json::to_string(&put)?]);
        self.field.run("honest", lay, 1 << 16).await?;
        let before = self.still_there(&look).await?;
        let data = &self.field.stack.data_dir;
        let honest = self.honest.id.to_string();
        let links = [
            data.join("instances").join(&honest).join("data"),
            data.join("run").join(&honest).join("in"),
            data.clone(),
            "/".into(),
            "/etc/shadow".into(),
            "/var/run/docker.sock".into(),
        ];
        let links: Vec<String> = links.iter().map(|link| link.display().to_string()).collect();
        let litter = self.hostile.hostile(self.field, &["litter", &serde_json::to_string(&links)?]);
        self.field.run("hostile", litter, 1 << 16).await.context("the hostile instance's folders")?;
        let removed = tokio::time::timeout(Duration::from_secs(60), deploy.discard_victim(self.hostile)).await;
        let removed = removed.context("in time").and_then(|removed| removed);
        let after = self.still_there(&look).await?;
        let verdict = match (before, after, &removed) {
            (true, false, _) | (_, _, Err(_)) => Verdict::GotThrough,
            (false, _, _) => Verdict::NotTried,
            (true, true, Ok(())) => Verdict::Held,
        };
        let happened = match (&removed, after) {
            (Err(error), _) => format!("not removed: {error:#}"),
            (Ok(()), false) => "removed, and some of another's with it".to_owned(),
            (Ok(()), true) => "removed, and nothing else".to_owned(),
        };
        Ok(Line {
            id: REMOVAL,
            what: [
                "20,000 files, depths, links to others' data, removed",
                "含 2 万个文件、深层目录和指向他人数据的链接的目录被删除",
            ],
            must: ["gone, and nothing else is", "仅删除其自身"],
            happened,
            control: if before { "the other's files were there".into() } else { "they were not".into() },
            verdict,
        })
    }

    /// Whether the other instance's own files are there, and still its own.
    async fn still_there(&self, look: &Plan) -> anyhow::Result<bool> {
        let body = self.honest.hostile(self.field, &["try", &serde_json::to_string(look)?]);
        let reports = self.field.try_all("honest", body, look).await?;
        ensure!(!reports.is_empty(), "nothing was looked at");
        Ok(reports.iter().all(|report| report.as_ref().is_some_and(|report| report.outcome == Outcome::Done)))
    }
}

fn is(answer: &Answer, secret: &str) -> bool {
    answer.status == 200 && answer.body == secret
}

/// A behaviour's name, with where it leads.
fn name_of(behaviour: &Behaviour) -> String {
    match behaviour {
        Behaviour::Link(to) => format!("link to {to}"),
        other => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
    }
}
