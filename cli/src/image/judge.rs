//! What an image says of itself, and what follows from that for an instance.

use bollard::models::ImageInspect;

use crate::{args::ImageCheck, text, ui::Ui};

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name, as it was given.
    pub name: String,
    /// What it is made for: system and processor.
    pub system: (String, String),
    /// The processor of the engine's host.
    pub host: String,
    /// What it starts.
    pub argv: Vec<String>,
    /// Whether that was given by the operator.
    pub own_command: bool,
    /// The TCP ports it exposes.
    pub tcp: Vec<u16>,
    /// The other ports it exposes, as it writes them: `53/udp`.
    pub other_ports: Vec<String>,
    /// The port that the operator named.
    pub named_port: Option<u16>,
    /// The user it wants to be; empty: root.
    pub user: String,
    /// The folder it starts in; empty: the root.
    pub folder: String,
    /// Where it wants volumes.
    pub volumes: Vec<String>,
    /// Whether it has a health check.
    pub has_healthcheck: bool,
}

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Good,
    /// It works otherwise than its makers meant, or needs a word in the plan.
    Note,
    /// It will not work as it is.
    Bad,
}

/// One line of what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub verdict: Verdict,
    /// The line; the cure is in it where there is one.
    pub line: String,
}

impl Finding {
    /// The line with its mark.
    pub fn marked(&self) -> String {
        let mark = match self.verdict {
            Verdict::Good => "✓",
            Verdict::Note => "!",
            Verdict::Bad => "✗",
        };
        format!("{mark} {}", self.line)
    }
}

impl Facts {
    /// What an inspection says, and what the operator does.
    pub fn new(name: &str, found: ImageInspect, host: String, options: &ImageCheck) -> Self {
        let config = found.config.unwrap_or_default();
        let (mut tcp, mut other_ports) = (Vec::new(), Vec::new());
        for port in config.exposed_ports.unwrap_or_default() {
            match port.split_once('/').unwrap_or((&port, "tcp")) {
                (number, "tcp") => tcp.extend(number.parse::<u16>()),
                _ => other_ports.push(port),
            }
        }
        tcp.sort_unstable();
        other_ports.sort_unstable();
        let mut volumes = config.volumes.unwrap_or_default();
        volumes.sort_unstable();
        let own_command = !options.command.is_empty();
        let argv = match own_command {
            true => options.command.clone(),
            false => [config.entrypoint.unwrap_or_default(), config.cmd.unwrap_or_default()].concat(),
        };
        // A check that says nothing, or says that there shall be none, is none.
        let check = config.healthcheck.and_then(|check| check.test).unwrap_or_default();
        Self {
            name: name.to_owned(),
            system: (found.os.unwrap_or_default(), found.architecture.unwrap_or_default()),
            host,
            argv,
            own_command,
            tcp,
            other_ports,
            named_port: options.port,
            user: config.user.unwrap_or_default(),
            folder: config.working_dir.unwrap_or_default(),
            volumes,
            has_healthcheck: check.first().is_some_and(|kind| kind != "NONE"),
        }
    }

    /// The port that a plan names, where that is clear.
    pub fn port(&self) -> Option<u16> {
        match (self.named_port, &self.tcp[..]) {
            (Some(port), _) => Some(port),
            (None, [port]) => Some(*port),
            (None, _) => None,
        }
    }
}

/// Each finding, good or bad.
pub fn judge(facts: &Facts, ui: &Ui) -> Vec<Finding> {
    let mut findings = vec![system(facts, ui), program(facts, ui), port(facts, ui)];
    let mut note = |line| findings.push(Finding { verdict: Verdict::Note, line });
    if !facts.other_ports.is_empty() {
        let ports = facts.other_ports.join(", ");
        note(text!(ui, "{ports}: will not work; only TCP comes in", "{ports}:不行,只有 TCP 能进来"));
    }
    let user = if facts.user.is_empty() { "root" } else { &facts.user };
    note(text!(
        ui,
        "its user ({user}) is ignored: each instance has a user id of its own, so files that only {user} may read fail",
        "它的用户({user})不起作用:每个实例用自己的用户号,所以只有 {user} 能读的文件会读取失败"
    ));
    let others: Vec<&str> =
        facts.volumes.iter().map(|path| path.trim_end_matches('/')).filter(|p| *p != "/data").collect();
    if !others.is_empty() {
        let paths = others.join(", ");
        note(text!(
            ui,
            "{paths}: in memory, empty at each start, nothing in it can be executed; only /data is kept: point the program there",
            "{paths}:在内存里,每次启动都是空的,其中的文件不能执行;只有 /data 保留,请让程序把数据放在那里"
        ));
    }
    if facts.has_healthcheck {
        note(text!(
            ui,
            "its HEALTHCHECK is ignored: the plan's `health` path is asked instead",
            "它的 HEALTHCHECK 不执行:改为访问套餐里的 `health` 路径"
        ));
    }
    if !["", "/"].contains(&facts.folder.as_str()) {
        let folder = &facts.folder;
        note(text!(
            ui,
            "it starts in {folder}, which everybody must be allowed to enter",
            "它从 {folder} 启动,这个目录必须允许所有人进入"
        ));
    }
    note(text!(
        ui,
        "everything but /data and /tmp is read-only; /tmp is in memory, and nothing in it can be executed",
        "除 /data 和 /tmp 外都是只读的;/tmp 在内存里,其中的文件不能执行"
    ));
    note(text!(
        ui,
        "what it fetches goes through HTTP_PROXY and HTTPS_PROXY; a program that ignores them reaches nothing, and neither \
         does UDP or TCP to anything but through that proxy",
        "访问外部要经过 HTTP_PROXY 和 HTTPS_PROXY;不认这些变量的程序什么也访问不到,UDP 和不经过代理的 TCP 也不行"
    ));
    findings
}

fn system(facts: &Facts, ui: &Ui) -> Finding {
    let ((os, processor), host) = (&facts.system, &facts.host);
    if os == "linux" && processor == host {
        let line = text!(ui, "it is here, for {os}/{processor}", "镜像存在,适用于 {os}/{processor}");
        return Finding { verdict: Verdict::Good, line };
    }
    let line = text!(
        ui,
        "it is made for {os}/{processor}; this host is linux/{host}: get that variant",
        "它适用于 {os}/{processor},而这台主机是 linux/{host}:请换用对应的版本"
    );
    Finding { verdict: Verdict::Bad, line }
}

fn program(facts: &Facts, ui: &Ui) -> Finding {
    if facts.argv.is_empty() {
        let line = text!(
            ui,
            "it names no program to start: the plan needs `command` (try it here: beaver image check … -- PROGRAM)",
            "它没有指明要启动的程序:套餐里需要 `command`(可以在这里试:beaver image check … -- 程序)"
        );
        return Finding { verdict: Verdict::Bad, line };
    }
    let argv = facts.argv.join(" ");
    Finding { verdict: Verdict::Good, line: text!(ui, "it starts {argv}", "它启动 {argv}") }
}

fn port(facts: &Facts, ui: &Ui) -> Finding {
    let note = |line| Finding { verdict: Verdict::Note, line };
    match (facts.port(), &facts.tcp[..]) {
        (Some(port), _) if port == shim::PROXY_PORT => Finding {
            verdict: Verdict::Bad,
            line: text!(
                ui,
                "port {port} is where programs find the way out: let it listen on another",
                "{port} 是程序访问外部的代理端口:请让它监听别的端口"
            ),
        },
        (Some(port), _) => Finding {
            verdict: Verdict::Good,
            line: text!(ui, "it is asked on TCP port {port} of its loopback", "请求转到它本机回环上的 TCP 端口 {port}"),
        },
        (None, []) => note(text!(
            ui,
            "it exposes no TCP port: find out on which one it listens and name it in the plan (try it here with --port)",
            "它没有声明 TCP 端口:请查明它监听哪个端口并写进套餐(可以在这里用 --port 试)"
        )),
        (None, ports) => {
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            note(text!(
                ui,
                "it exposes the TCP ports {ports}: an instance has one; name in the plan the one with its pages (--port)",
                "它声明了 TCP 端口 {ports}:一个实例只有一个,请把网页所在的那个写进套餐(--port)"
            ))
        }
    }
}

/// A plan to begin with, as it stands in the file.
pub fn plan(facts: &Facts) -> String {
    // A JSON string is a TOML string.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let port = facts.port().or(facts.tcp.first().copied());
    let mut lines = vec![format!("[{}]", plan_name(&facts.name)), format!("image = {}", quoted(&facts.name))];
    lines.push(match port {
        Some(port) => format!("port = {port}"),
        None => "port = 8080  # ?".into(),
    });
    if facts.own_command {
        let words: Vec<String> = facts.argv.iter().map(|word| quoted(word)).collect();
        lines.push(format!("command = [{}]", words.join(", ")));
    } else if facts.argv.is_empty() {
        lines.push("command = [\"/path/to/program\"]  # ?".into());
    }
    lines.join("\n")
}

/// A name for a plan: the image's, without where it is from and which version it is.
fn plan_name(image: &str) -> String {
    let image = image.split('@').next().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    match plain.trim_matches('-') {
        "" | "workspace" => "my-plan".into(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{HealthConfig, ImageConfig};

    use super::*;

    fn options() -> ImageCheck {
        ImageCheck { image: String::new(), run: false, port: None, health: "/".into(), command: vec![] }
    }

    fn inspected() -> ImageInspect {
        let config = ImageConfig {
            entrypoint: Some(vec!["/usr/bin/notes".into()]),
            cmd: Some(vec!["--all".into()]),
            exposed_ports: Some(vec!["5232/tcp".into()]),
            ..ImageConfig::default()
        };
        let (os, architecture) = (Some("linux".into()), Some("amd64".into()));
        ImageInspect { config: Some(config), os, architecture, ..ImageInspect::default() }
    }

    fn with(change: impl FnOnce(&mut ImageInspect, &mut ImageConfig, &mut ImageCheck)) -> Facts {
        let (mut found, mut options) = (inspected(), options());
        let mut config = found.config.take().unwrap();
        change(&mut found, &mut config, &mut options);
        found.config = Some(config);
        Facts::new("registry.test/people/Notes:1.2", found, "amd64".into(), &options)
    }

    /// Whether there is a line of this kind with these words.
    fn says(facts: &Facts, verdict: Verdict, words: &str) -> bool {
        judge(facts, &Ui::plain()).iter().any(|finding| finding.verdict == verdict && finding.line.contains(words))
    }

    #[test]
    fn an_image_that_says_everything_is_good_with_what_every_image_is_told() {
        let facts = with(|_, _, _| {});
        let findings = judge(&facts, &Ui::plain());
        assert!(findings.iter().all(|finding| finding.verdict != Verdict::Bad), "{findings:?}");
        for words in ["linux/amd64", "/usr/bin/notes --all", "port 5232"] {
            assert!(says(&facts, Verdict::Good, words), "{words}: {findings:?}");
        }
        for words in ["root", "read-only", "HTTP_PROXY"] {
            assert!(says(&facts, Verdict::Note, words), "{words}: {findings:?}");
        }
        assert_eq!(findings.len(), 6, "and nothing else: {findings:?}");
    }

    #[test]
    fn what_will_not_work_is_said() {
        let no_program = with(|_, config, _| (config.entrypoint, config.cmd) = (None, None));
        assert!(says(&no_program, Verdict::Bad, "names no program"));
        let other = with(|found, _, _| found.architecture = Some("arm64".into()));
        assert!(says(&other, Verdict::Bad, "linux/arm64; this host is linux/amd64"));
        let proxy = with(|_, _, options| options.port = Some(3128));
        assert!(says(&proxy, Verdict::Bad, "3128"));

        let ports = |ports: &[&str]| {
            let ports = ports.iter().map(|port| (*port).to_owned()).collect();
            with(|_, config, _| config.exposed_ports = Some(ports))
        };
        assert!(says(&ports(&[]), Verdict::Note, "exposes no TCP port"));
        assert!(says(&ports(&["443/tcp", "80/tcp"]), Verdict::Note, "80, 443"));
        let udp = ports(&["53/udp", "80/tcp"]);
        assert!(says(&udp, Verdict::Note, "53/udp: will not work") && udp.port() == Some(80));

        let rest = with(|_, config, _| {
            config.user = Some("notes:notes".into());
            config.volumes = Some(vec!["/var/lib/notes".into(), "/data".into()]);
            config.working_dir = Some("/srv".into());
            config.healthcheck =
                Some(HealthConfig { test: Some(vec!["CMD".into(), "true".into()]), ..HealthConfig::default() });
        });
        for words in ["notes:notes", "/var/lib/notes: in memory", "HEALTHCHECK is ignored", "starts in /srv"] {
            assert!(says(&rest, Verdict::Note, words), "{words}");
        }
        assert!(!says(&rest, Verdict::Note, "/data, "));
    }

    #[test]
    fn the_plan_to_begin_with_is_one_that_is_taken_over() {
        let plain = plan(&with(|_, _, _| {}));
        assert_eq!(plain, "[notes]\nimage = \"registry.test/people/Notes:1.2\"\nport = 5232");
        let own =
            plan(&with(|_, _, options| options.command = vec!["/bin/sh".into(), "-c".into(), "a \"b\"\n\\c".into()]));
        let nothing = plan(&with(|_, config, _| {
            (config.entrypoint, config.cmd, config.exposed_ports) = (None, None, None);
        }));
        for text in [plain, own, nothing] {
            assert_eq!(deploy_control::plans::check(&text).unwrap(), ["notes"], "{text}");
        }
        for (image, name) in [("workspace", "my-plan"), ("a/--:b", "my-plan"), ("x@sha256:00", "x"), ("Ab_c:1", "ab-c")]
        {
            assert_eq!(plan_name(image), name);
        }
    }
}
