//! Programs that know nothing of Beaver, unmodified, in images of nothing but Debian's packages: a Jupyter server, a
//! calendar server and one that speaks WebSockets. Each is its owner's alone, and nobody else's request ever reaches it.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    browser::Browser,
    engine, packages, paths,
    people::{Person, by_form, by_hand},
    stack::Stack,
    steps::Steps,
    wait,
    web::{Page, Web},
};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::on_stack;

/// How long a program may take to be made, started or stopped.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program, and the plan by which people get it.
struct Program {
    /// The plan's name.
    plan: &'static str,
    packages: &'static [&'static str],
    port: u16,
    health: &'static str,
    command: &'static [&'static str],
    /// More lines of the plan.
    more: &'static str,
}

const NOTEBOOK: Program = Program {
    plan: "notebook",
    packages: &["jupyter-notebook"],
    port: 8888,
    health: "/api",
    command: &[
        "/usr/bin/jupyter",
        "notebook",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=8888",
        "--notebook-dir=/data",
        // Whoever comes so far is signed in.
        "--NotebookApp.token=",
        // It is asked under its owner's address.
        "--NotebookApp.allow_remote_access=True",
    ],
    more: "memory_mb = 512\nenv = { PYTHONPYCACHEPREFIX = \"/data/.cache/python\" }",
};
const CALENDAR: Program = Program {
    plan: "calendar",
    packages: &["radicale"],
    port: 5232,
    health: "/.web/",
    command: &[
        "/usr/bin/radicale",
        "--server-hosts=127.0.0.1:5232",
        // Who the router says is signed in.
        "--auth-type=http_x_remote_user",
        "--storage-filesystem-folder=/data/calendars",
        "--logging-level=info",
    ],
    more: "",
};
const LINES: Program = Program {
    plan: "lines",
    packages: &["websocketd", "dash"],
    port: 8080,
    health: "/",
    command: &[
        "/usr/bin/websocketd",
        "--address=127.0.0.1",
        "--port=8080",
        "--loglevel=access",
        "/bin/sh",
        "-c",
        "n=0; while read -r line; do n=$((n+1)); echo \"$n $HTTP_REMOTE_USER $line\"; [ \"$line\" = bye ] && exit; done",
    ],
    more: "",
};
const PROGRAMS: [Program; 3] = [NOTEBOOK, CALENDAR, LINES];

impl Program {
    fn image(&self, prefix: &str) -> String {
        format!("{prefix}/{}:1", self.plan)
    }

    fn table(&self, prefix: &str) -> String {
        let Self { plan, port, health, command, more, .. } = self;
        // A JSON string is a TOML string.
        let (image, command) = (json!(self.image(prefix)), json!(command));
        format!("[{plan}]\nimage = {image}\nport = {port}\nhealth = \"{health}\"\ncommand = {command}\n{more}\n\n")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_peoples_programs_run_unmodified_for_their_owners_alone() {
    const NAME: &str = "other people's programs on the Docker engine";
    if engine::required_or_none(NAME).await.is_none() || !packages::required_or_none(NAME).await {
        return;
    }
    let plans: String = PROGRAMS.iter().map(|program| program.table(&Stack::prefix_for("programs"))).collect();
    // What everybody gets who signs up; and time for Jupyter, which compiles itself at its first start.
    let settings = [("BEAVER_DEFAULT_PLAN", CALENDAR.plan), ("BEAVER_START_TIMEOUT", "150")];
    let stack = Stack::up_with("programs", &settings, &[("deploy-control/plans.toml", &plans)]).await.unwrap();
    on_stack("programs", stack, run).await;
}

/// The guide shows operators these programs: what it says is what is tried here.
#[test]
fn the_guide_has_these_plans() {
    let guide = std::fs::read_to_string(paths::root().join("部署指南.md")).unwrap();
    let block = guide.split("```toml\n").find(|block| block.starts_with("[notebook]")).expect("its plans");
    let plans: toml::Table = block.split("```").next().unwrap_or_default().parse().unwrap();
    assert_eq!(plans.len(), PROGRAMS.len());
    for program in &PROGRAMS {
        let (said, tried) = (&plans[program.plan], program.table("x").parse::<toml::Table>().unwrap());
        let tried = &tried[program.plan];
        for (key, value) in
            said.as_table().unwrap().iter().filter(|(key, _)| !["image", "command"].contains(&key.as_str()))
        {
            assert_eq!(Some(value), tried.get(key), "{}: {key}", program.plan);
        }
        let words: Vec<&str> = said["command"].as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
        // What the program does in the end is the operator's own to say.
        let same = if program.plan == LINES.plan { words.len() - 1 } else { words.len() };
        let unknown: Vec<_> = words[..same].iter().filter(|word| !program.command.contains(word)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", program.plan);
    }
}

/// Somebody with a workspace, and a client that is signed in to it.
struct Owner<'a> {
    stack: &'a Stack,
    person: Person,
    web: Web,
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    for program in &PROGRAMS {
        let name = program.image(stack.prefix());
        let docker = stack.docker().context("an engine")?;
        let image = packages::image(docker, stack.prefix(), &name, program.packages);
        steps.need(&format!("an image of {}", program.packages.join(" and ")), image).await?;
    }
    for program in &PROGRAMS {
        steps.check(&format!("image check says that {} works", program.plan), checked(stack, program)).await;
    }
    let owner = async |name: &str| Owner::sign_up(stack, Person::new(name)).await;
    // Each has what everybody has at first: the calendar.
    let mut bob = steps.need("bob signs up", owner("bob")).await?;
    let alice = steps.need("alice signs up", owner("alice")).await?;
    let carol = steps.need("carol signs up", owner("carol")).await?;
    steps.need("alice gets another plan", alice.gets(NOTEBOOK.plan)).await?;
    steps.need("carol gets another plan", carol.gets(LINES.plan)).await?;
    steps.check("there is no plan that nobody wrote", no_such_plan(&alice)).await;

    let browser = Browser::start("en-US,en;q=0.9").await?;
    steps.need("alice sees Jupyter's page", alice.sees_jupyter(&browser)).await?;
    steps.need("a cell is run, and its answer comes", alice.runs_a_cell(&browser)).await?;
    steps.need("bob writes an appointment down", bob.writes_down()).await?;
    let lines = Browser::start("en-US,en;q=0.9").await?;
    steps.need("carol's lines come back counted", carol.counts(&lines)).await?;
    let all = [&alice, &bob, &carol];
    steps.check("nothing of anybody else's reaches any of them", strangers(all)).await;

    steps.check("alice restarts it: her notebook is there", alice.still_has_her_notebook()).await;
    steps.check("bob restarts it: his appointment is there", bob.still_has_his_appointment()).await;
    steps.check("alice's way back to Beaver's own workspace", alice.back_to_the_workspace(&browser)).await;
    Ok(())
}

/// `beaver image check --run`, with what the plan says.
async fn checked(stack: &Stack, program: &Program) -> anyhow::Result<()> {
    let (image, port) = (program.image(stack.prefix()), program.port.to_string());
    let options = ["image", "check", &image, "--run", "--port", &port, "--health", program.health, "--"];
    let output = stack.beaver(&[&options[..], program.command].concat()).await?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answers = format!("✓ it answers on port {port}");
    ensure!(output.status.success() && said.contains(&answers) && !said.contains('✗'), "{said}{error}");
    Ok(())
}

async fn no_such_plan(owner: &Owner<'_>) -> anyhow::Result<()> {
    let output = owner.stack.beaver(&["plan", &owner.person.slug, "nobody-wrote-this"]).await?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(())
}

impl<'a> Owner<'a> {
    async fn sign_up(stack: &'a Stack, person: Person) -> anyhow::Result<Self> {
        let mut web = Web::new("en")?;
        by_form::sign_up(&mut web, stack, &person).await?.expect(200)?;
        by_form::ready(&mut web, stack).await?;
        // There is no provider to choose, as there is for Beaver's own workspace.
        let page = web.open(&format!("{}/onboarding", stack.portal())).await?.expect(200)?;
        ensure!(page.url.path() == "/instance", "the portal leads to {}", page.url);
        let mut owner = Self { stack, person, web };
        by_form::enter(&mut owner.web, stack, &owner.person.slug).await?;
        Ok(owner)
    }

    fn origin(&self) -> String {
        self.stack.origin(&self.person.slug)
    }

    fn url(&self, path: &str) -> anyhow::Result<Url> {
        Ok(Url::parse(&format!("{}{path}", self.origin()))?)
    }

    /// A request as a page of the same origin makes it.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> anyhow::Result<Page> {
        let (mut web, url) = (self.web.clone(), self.url(path)?);
        let mut request = web.request(Method::from_bytes(method.as_bytes())?, &url)?.header("origin", self.origin());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        web.once(request.body(body.to_owned()), &url).await
    }

    /// What the program has written since its container was made.
    async fn log(&self) -> anyhow::Result<String> {
        let output = self.stack.beaver(&["logs", &self.person.slug, "--tail", "100000"]).await?;
        ensure!(output.status.success(), "{output:?}");
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    async fn gets(&self, plan: &str) -> anyhow::Result<()> {
        let slug = &*self.person.slug;
        let output = self.stack.beaver(&["plan", slug, plan]).await?;
        ensure!(output.status.success(), "{output:?}");
        self.is_ready(plan).await
    }

    /// Waits until what runs is what the plan says.
    async fn is_ready(&self, plan: &str) -> anyhow::Result<()> {
        wait::until(format!("{} has the plan {plan}", self.person.slug), PATIENCE, || async {
            let status = self.stack.beaver(&["status", "--json"]).await?;
            let status: Value = serde_json::from_slice(&status.stdout)?;
            let mut instances = status["instances"].as_array().into_iter().flatten();
            let mine = instances.find(|instance| instance["slug"] == *self.person.slug).context("it is not there")?;
            ensure!(mine["plan"] == plan && mine["phase"] == "ready", "{mine}");
            ensure!(mine["generation"] == mine["observed_generation"], "{mine}");
            Ok(Some(()))
        })
        .await
    }

    /// She signs in on the way to it.
    async fn sees_jupyter(&self, browser: &Browser) -> anyhow::Result<()> {
        let tree = format!("{}/tree", self.origin());
        browser.open(&tree).await?;
        by_hand::sign_in(browser, &self.person.email, &self.person.password).await?;
        browser.arrives("Jupyter", |url| url == tree).await?;
        browser.find("#new-dropdown-button").await?;
        Ok(())
    }

    async fn runs_a_cell(&self, browser: &Browser) -> anyhow::Result<()> {
        let make = "const done = arguments[0], xsrf = document.cookie.match(/_xsrf=([^;]+)/)[1];
            const cell = {cell_type: 'code', source: '', metadata: {}, outputs: [], execution_count: null};
            const content = {cells: [cell], metadata: {}, nbformat: 4, nbformat_minor: 4};
            fetch('/api/contents/first.ipynb', {
                method: 'PUT', headers: {'content-type': 'application/json', 'x-xsrftoken': xsrf},
                body: JSON.stringify({type: 'notebook', content}),
            }).then(answer => done(answer.status))";
        let made = browser.client().execute_async(make, vec![]).await?;
        ensure!(made == 201, "making a notebook is answered {made}");
        browser.open(&format!("{}/notebooks/first.ipynb", self.origin())).await?;
        let connected = "return window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel \
            && Jupyter.notebook.kernel.is_connected() || false";
        let ready = wait::until("the kernel is connected", PATIENCE, || async {
            anyhow::Ok((browser.script(connected).await? == true).then_some(()))
        });
        ready.await.context(browser.describe().await)?;
        browser.click(".cell.code_cell .CodeMirror").await?;
        browser.client().active_element().await?.send_keys("import os; print(6 * 7, os.getcwd())").await?;
        browser.click("#run_int button[data-jupyter-action='jupyter-notebook:run-cell-and-select-next']").await?;
        let answer = wait::until("the kernel's answer is shown", PATIENCE, || async {
            let shown = browser.script("return (document.querySelector('.output_stdout pre') || {}).innerText || ''");
            let shown = shown.await?;
            let shown = shown.as_str().unwrap_or_default().trim().to_owned();
            anyhow::Ok((!shown.is_empty()).then_some(shown))
        });
        let answer = answer.await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let complaints = browser.complaints().await.unwrap_or_default().join("\n");
                return Err(error.context(format!("{}; {complaints}", browser.describe().await)));
            }
        };
        ensure!(answer == "42 /data", "the kernel answers “{answer}”");
        browser.script("Jupyter.notebook.save_notebook()").await?;
        wait::until("it is saved", PATIENCE, || async {
            anyhow::Ok(self.notebook().await?.contains("42 /data").then_some(()))
        })
        .await
    }

    /// The notebook's file, as Jupyter tells of it.
    async fn notebook(&self) -> anyhow::Result<String> {
        Ok(self.ask("GET", "/api/contents/first.ipynb", &[], "").await?.expect(200)?.text)
    }

    async fn still_has_her_notebook(&self) -> anyhow::Result<()> {
        let kernels = async || anyhow::Ok(self.ask("GET", "/api/kernels", &[], "").await?.expect(200)?.text);
        ensure!(kernels().await?.contains("python3"), "the control: a kernel runs");
        self.restarts().await?;
        wait::until("no kernel runs", PATIENCE, || async {
            anyhow::Ok((kernels().await?.trim() == "[]").then_some(()))
        })
        .await?;
        ensure!(self.notebook().await?.contains("42 /data"), "the notebook has lost its answer");
        Ok(())
    }

    async fn restarts(&self) -> anyhow::Result<()> {
        self.web.clone().submit(&format!("{}/instance/restart", self.stack.portal()), &[]).await?.expect(200)?;
        Ok(())
    }

    async fn writes_down(&mut self) -> anyhow::Result<()> {
        const HERS: &[(&str, &str)] = &[("x-remote-user", "alice"), ("remote_user", "alice")];
        self.ask("MKCALENDAR", "/bob/work/", &[], "").await?.expect(201)?;
        let calendar = [("content-type", "text/calendar; charset=utf-8")];
        self.ask("PUT", APPOINTMENT, &calendar, EVENT).await?.expect(201)?;
        self.reads_it().await?;
        // Whose calendar it is, the router alone says.
        let principal = "<propfind xmlns='DAV:'><prop><current-user-principal/></prop></propfind>";
        let whose = self.ask("PROPFIND", "/", HERS, principal).await?.expect(207)?;
        ensure!(whose.text.contains("<href>/bob/</href>") && !whose.text.contains("alice"), "{}", whose.text);
        self.ask("MKCALENDAR", "/alice/work/", HERS, "").await?.expect(403)?;
        Ok(())
    }

    async fn reads_it(&self) -> anyhow::Result<()> {
        let found = self.ask("GET", APPOINTMENT, &[], "").await?.expect(200)?;
        ensure!(found.text.contains("SUMMARY:Cut the hedge – 修剪树篱"), "{}", found.text);
        Ok(())
    }

    async fn still_has_his_appointment(&self) -> anyhow::Result<()> {
        let starts = async || anyhow::Ok(self.log().await?.matches("Radicale server ready").count());
        let before = starts().await?;
        self.restarts().await?;
        wait::until("it has started once more", PATIENCE, || async {
            anyhow::Ok((starts().await? > before).then_some(()))
        })
        .await?;
        wait::until("his appointment is there", PATIENCE, || async { self.reads_it().await.map(Some) }).await
    }

    async fn counts(&self, browser: &Browser) -> anyhow::Result<()> {
        browser.open(&self.origin()).await?;
        by_hand::sign_in(browser, &self.person.email, &self.person.password).await?;
        browser.arrives("her program", |url| url == format!("{}/", self.origin())).await?;
        let talk = "window.said = []; window.over = null;
            const socket = new WebSocket(location.origin.replace('http', 'ws') + '/talk');
            socket.onopen = () => ['one', 'two', '三', 'bye'].forEach(line => socket.send(line));
            socket.onmessage = event => said.push(event.data);
            socket.onclose = event => { window.over = event.code }";
        browser.script(talk).await?;
        let said = async || anyhow::Ok(browser.script("return {said, over}").await?);
        let ended = wait::until("it has said goodbye", PATIENCE, || async {
            let now = said().await?;
            ensure!(!now["over"].is_null(), "{now}");
            Ok(Some(now))
        });
        let ended = ended.await?;
        let expected = json!(["1 carol one", "2 carol two", "3 carol 三", "4 carol bye"]);
        ensure!(ended["said"] == expected, "{ended}");
        // It ends by hanging up, as websocketd does. One that she closes is closed in good order, on its side too.
        let leave = "window.over = null; const socket = new WebSocket(location.origin.replace('http', 'ws') + '/left');
            socket.onopen = () => socket.send('one');
            socket.onmessage = () => socket.close(1000);
            socket.onclose = event => { window.over = event.code }";
        browser.script(leave).await?;
        wait::until("the program has seen that she left", PATIENCE, || async {
            let (log, now) = (self.log().await?, said().await?);
            let of_it = |what: &str| log.lines().any(|line| line.contains("/left") && line.ends_with(what));
            ensure!(of_it("| CONNECT") && of_it("| DISCONNECT") && now["over"] == 1000, "{now}: {log}");
            Ok(Some(()))
        })
        .await
    }

    /// In the browser that was signed in to the program, with all that this left in it.
    async fn back_to_the_workspace(&self, browser: &Browser) -> anyhow::Result<()> {
        self.gets("workspace").await?;
        browser.open(&format!("{}/", self.origin())).await?;
        browser.find("#no-provider").await?;
        let output = self.stack.beaver(&["curl", &self.person.slug, "/readyz"]).await?;
        let ready: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(ready["registered"] == true, "{ready}");
        // What she had is hers, whatever runs.
        let kept = std::fs::read_dir(self.stack.data_dir().join("instances"))?
            .filter_map(|instance| std::fs::read_to_string(instance.ok()?.path().join("data/first.ipynb")).ok());
        ensure!(
            kept.filter(|notebook| notebook.contains("42 /data")).count() == 1,
            "her notebook is not in the folder"
        );
        self.gets(NOTEBOOK.plan).await?;
        let there = wait::until("her notebook is there", PATIENCE, || async {
            let mut again = Self { stack: self.stack, person: self.person.clone(), web: self.web.clone() };
            by_form::enter(&mut again.web, self.stack, &self.person.slug).await?;
            anyhow::Ok(again.notebook().await?.contains("42 /data").then_some(()))
        });
        there.await
    }
}

const APPOINTMENT: &str = "/bob/work/hedge.ics";
const EVENT: &str = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//beaver//tests//EN\r\nBEGIN:VEVENT\r\nUID:hedge\r\n\
    DTSTAMP:20260101T000000Z\r\nDTSTART:20260102T090000Z\r\nDTEND:20260102T100000Z\r\n\
    SUMMARY:Cut the hedge – 修剪树篱\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";

/// What says who is signed in, to programs that believe it.
fn forged(slug: &str) -> [(&'static str, String); 9] {
    [
        "x-beaver-account",
        "x-beaver-slug",
        "x-forwarded-user",
        "remote-user",
        "remote_user",
        "x-remote-user",
        "x-webauth-user",
        "x-auth-request-user",
        "x-forwarded-for",
    ]
    .map(|name| (name, slug.to_owned()))
}

/// Whoever it is and whatever they say: they see the way in or a refusal, and the program does not see them.
async fn strangers(owners: [&Owner<'_>; 3]) -> anyhow::Result<()> {
    let hosts = owners.map(|owner| format!("{}.localhost", owner.person.slug));
    for (n, owner) in owners.into_iter().enumerate() {
        let (stack, slug) = (owner.stack, &*owner.person.slug);
        let neighbour = owners[(n + 1) % 3];
        // With all that the neighbour has at their own workspace.
        let mut copied = neighbour.web.clone();
        for (name, value) in neighbour.web.cookies(&hosts[(n + 1) % 3]) {
            copied.set_cookie(&hosts[n], &name, &value);
        }
        let mut guessed = Web::new("en")?;
        guessed.set_cookie(&hosts[n], "beaver_workspace", "nobody-gave-me-this");
        let nobody = Web::new("en")?;
        for (who, mut web) in
            [("nobody", nobody.clone()), ("neighbour", neighbour.web.clone()), ("copied", copied), ("guessed", guessed)]
        {
            let marker = |what: &str| format!("/stranger-{who}-{what}");
            let page = web.open(owner.url(&marker("page"))?.as_str()).await?;
            let (at, portal) = (page.url.clone(), stack.portal());
            let is_in = who == "neighbour" || who == "copied";
            let way = if is_in { page.status == 404 } else { page.status == 200 && at.path() == "/login" };
            ensure!(way && at.as_str().starts_with(portal), "{who} at {slug}: {} at {at}", page.status);
            for (what, method) in [("get", Method::GET), ("post", Method::POST), ("put", Method::PUT)] {
                let url = owner.url(&marker(what))?;
                let mut request = web.request(method, &url)?.header("origin", owner.origin());
                request = request.header("sec-fetch-site", "same-origin").header("sec-fetch-mode", "cors");
                for (name, value) in forged(slug) {
                    request = request.header(name, value);
                }
                let page = web.once(request, &url).await?;
                ensure!(page.status == 401, "{who} {what} at {slug}: {}", page.status);
            }
            let socket = upgrade(&web, owner, &marker("socket"), &owner.origin()).await?;
            ensure!(socket == 401, "{who}'s WebSocket at {slug}: {socket}");
        }
        // With the owner's session, from a neighbour's page.
        let theirs = upgrade(&owner.web, owner, "/stranger-origin", &neighbour.origin()).await?;
        ensure!(theirs == 403, "a WebSocket of a neighbour's page at {slug}: {theirs}");

        // The control: what the owner asks for is in what the program writes.
        let own = owner.ask("GET", "/asked-by-the-owner", &[], "").await?;
        ensure!(own.status == 404 || own.status == 403, "{slug}'s own question: {}", own.status);
        let log = wait::until("the owner's question is written down", PATIENCE, || async {
            let log = owner.log().await?;
            anyhow::Ok(log.contains("/asked-by-the-owner").then_some(log))
        });
        let log = log.await?;
        let seen: Vec<_> = log.lines().filter(|line| line.contains("stranger")).collect();
        ensure!(seen.is_empty(), "{slug}'s program saw {seen:#?}");
    }
    Ok(())
}

/// Asks for a WebSocket; the status of the answer.
async fn upgrade(web: &Web, owner: &Owner<'_>, path: &str, origin: &str) -> anyhow::Result<u16> {
    let (mut web, url) = (web.clone(), owner.url(path)?);
    let request = web.request(Method::GET, &url)?.header("origin", origin).header("connection", "upgrade");
    let request = request.header("upgrade", "websocket").header("sec-websocket-version", "13");
    let request = request.header("sec-fetch-mode", "websocket").header("sec-fetch-site", "same-origin");
    let page = web.once(request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), &url).await?;
    Ok(page.status)
}
