//! People, what they do, and what of it was acknowledged.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clock::Entropy;
use contracts::InstanceId;

use super::OTHER_PLAN;
use crate::{
    people::{Person, by_form},
    provider::{CHAT, GOOD_KEY, reply_to},
    stack::Places,
    wait,
    web::Web,
    workspace,
};

/// How long somebody tries one thing while the answer is that it cannot be done now.
const TRIES: Duration = Duration::from_secs(20);
/// How long somebody waits for a workspace to be made or changed before doing something else.
const WAITS: Duration = Duration::from_secs(15);

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Sign up, and wait for the workspace.
    SignUp,
    /// Give a provider: another key each time.
    Configure,
    /// Say something in a new chat.
    Chat,
    /// Press stop.
    Stop,
    /// Press start.
    Start,
    /// Press restart.
    Restart,
    /// Press “try again”.
    Retry,
    /// Have the operator change the plan to another program.
    ToOther,
    /// And back.
    ToWorkspace,
    /// Delete the workspace, by its name.
    Delete,
    /// Take that back.
    Undelete,
    /// Take everything along as a file, and put it back.
    PutBack,
}

/// Something said and answered, both acknowledged.
#[derive(Debug, Clone)]
pub struct Said {
    /// The chat.
    pub chat: String,
    /// What was said.
    pub said: String,
}

/// A provider that was given.
#[derive(Debug, Clone)]
pub struct Given {
    /// Its key.
    pub key: String,
    /// Its address: another one for each key, so that a mixture of two is seen.
    pub base_url: String,
    /// Whether it was acknowledged.
    pub taken: bool,
}

/// Somebody with what they know.
pub struct Somebody {
    /// Who.
    pub person: Person,
    web: Web,
    /// Whether the account was acknowledged.
    pub signed_up: bool,
    /// Their instance, once they have heard of it.
    pub id: Option<InstanceId>,
    /// Everything said and acknowledged.
    pub said: Vec<Said>,
    /// Every provider given, the newest last.
    pub given: Vec<Given>,
    /// Whether it is wanted up; `None` when the last wish was not answered.
    pub up: Option<bool>,
    /// What it is wanted to run; `None` when the last wish was not answered.
    pub plan: Option<&'static str>,
    /// Whether it is deleted; `None` when the last wish was not answered.
    pub deleted: Option<bool>,
    /// How many wishes were acknowledged that change something.
    pub wishes: i64,
    count: usize,
}

impl Somebody {
    /// Somebody of this name, who has done nothing yet.
    ///
    /// # Panics
    /// When no client can be made.
    pub fn new(slug: &str) -> Self {
        Self {
            person: Person::new(slug),
            web: Web::new("en").expect("a client"),
            signed_up: false,
            id: None,
            said: Vec::new(),
            given: Vec::new(),
            up: Some(true),
            plan: Some("workspace"),
            deleted: Some(false),
            wishes: 0,
            count: 0,
        }
    }

    /// What comes next for them.
    pub fn choose(&self, entropy: &Entropy) -> Doing {
        if !self.signed_up {
            return Doing::SignUp;
        }
        if self.deleted != Some(false) {
            return Doing::Undelete;
        }
        if self.given.iter().all(|given| !given.taken) {
            return Doing::Configure;
        }
        if self.plan != Some("workspace") {
            return if entropy.below(2) == 0 { Doing::Restart } else { Doing::ToWorkspace };
        }
        if self.up == Some(false) {
            return if entropy.below(3) == 0 { Doing::Configure } else { Doing::Start };
        }
        match entropy.below(22) {
            20 => Doing::Delete,
            21 => Doing::PutBack,
            0..9 => Doing::Chat,
            9..12 => Doing::Configure,
            12..14 => Doing::Stop,
            14 => Doing::Start,
            15..18 => Doing::Restart,
            18 => Doing::Retry,
            _ => Doing::ToOther,
        }
    }

    /// Does it, and keeps what was acknowledged.
    ///
    /// # Errors
    /// When it was not.
    pub async fn act(&mut self, places: Places, base_url: &str, doing: Doing) -> anyhow::Result<()> {
        match doing {
            Doing::SignUp => self.sign_up(&places).await,
            Doing::Configure => self.configure(&places, base_url).await,
            Doing::Chat => self.chat(&places).await,
            Doing::Stop => self.wish(&places, "stop", Some(false)).await,
            Doing::Start => self.wish(&places, "start", Some(true)).await,
            Doing::Restart => self.wish(&places, "restart", Some(true)).await,
            Doing::Retry => self.wish(&places, "retry", self.up).await,
            Doing::ToOther => self.change_plan(&places, OTHER_PLAN).await,
            Doing::ToWorkspace => self.change_plan(&places, "workspace").await,
            Doing::Delete => self.delete(&places).await,
            Doing::Undelete => self.undelete(&places).await,
            Doing::PutBack => self.put_back(&places).await,
        }
    }

    async fn sign_up(&mut self, places: &Places) -> anyhow::Result<()> {
        let (person, web) = (self.person.clone(), &mut self.web);
        let signed = wait::until("signed up", TRIES, || {
            let (mut web, person) = (web.clone(), person.clone());
            async move {
                // Perhaps it took place the last time, and only the answer was lost.
                let page = by_form::sign_up(&mut web, places, &person).await?;
                if page.status != 200 || page.url.path() == "/register" {
                    let page = by_form::sign_in(&mut web, places, &person.email, &person.password).await?;
                    ensure!(page.status == 200 && page.url.path() != "/login", "{} {}", page.status, page.url);
                }
                anyhow::Ok(Some(web))
            }
        });
        *web = signed.await?;
        self.signed_up = true;
        self.waits("made", places, async |web, places| by_form::is_ready(web, places).await).await;
        Ok(())
    }

    /// Waits for something, but not for ever: there is more to do.
    async fn waits(
        &mut self,
        what: &str,
        places: &Places,
        is_so: impl AsyncFn(&mut Web, &Places) -> anyhow::Result<bool>,
    ) {
        let seen = wait::until(what, WAITS, async || {
            let mut web = self.web.clone();
            anyhow::Ok(is_so(&mut web, places).await?.then_some(web))
        });
        match seen.await {
            Ok(web) => self.web = web,
            Err(why) => crate::say(format!("    {}: {why:#}", self.person.slug)),
        }
    }

    async fn configure(&mut self, places: &Places, base_url: &str) -> anyhow::Result<()> {
        self.count += 1;
        let key = format!("{GOOD_KEY}{}-{}", self.person.slug, self.count);
        // The provider answers under any path that begins so.
        let base_url = format!("{}/{}-{}/v1", base_url.trim_end_matches("/v1"), self.person.slug, self.count);
        let provider = self.given.len();
        self.given.push(Given { key: key.clone(), base_url: base_url.clone(), taken: false });
        let fields = [
            ("kind", "openai-compatible"),
            ("base_url", base_url.as_str()),
            ("model", CHAT),
            ("api_key", key.as_str()),
            ("action", "save"),
        ];
        let page = self.web.submit(&format!("{}/onboarding", places.portal()), &fields).await?.expect(200)?;
        ensure!(page.url.path() == "/applying", "the provider was not taken: {}", page.url);
        self.given[provider].taken = true;
        self.wishes += 1;
        self.waits("applied", places, async |web, places| {
            let page = web.open(&format!("{}/applying", places.portal())).await?.expect(200)?;
            // One that is stopped takes it with its next start, and is not to be opened.
            Ok(page.text.contains("state applied"))
        })
        .await;
        Ok(())
    }

    async fn chat(&mut self, places: &Places) -> anyhow::Result<()> {
        self.count += 1;
        let said = format!("{} says number {}", self.person.slug, self.count);
        let saying = async {
            self.enter(places).await?;
            workspace::say(&mut self.web, places, &self.person.slug, &said).await
        };
        let (chat, answer) = tokio::time::timeout(TRIES, saying).await.context("no answer in time")??;
        ensure!(answer.text.contains("event: done"), "the answer did not come to its end");
        self.said.push(Said { chat, said });
        Ok(())
    }

    async fn sign_in(&mut self, places: &Places) -> anyhow::Result<()> {
        let page = by_form::sign_in(&mut self.web, places, &self.person.email, &self.person.password).await?;
        page.expect(200).with_context(|| self.person.slug.clone()).map(drop)
    }

    async fn enter(&mut self, places: &Places) -> anyhow::Result<()> {
        let slug = self.person.slug.clone();
        if by_form::enter(&mut self.web, places, &slug).await.is_ok() {
            return Ok(());
        }
        self.sign_in(places).await?;
        by_form::enter(&mut self.web, places, &slug).await.map(drop)
    }

    /// Sends a form of the workspace's page, and waits for the page that comes of it.
    async fn press(&mut self, places: &Places, what: &str, fields: &[(&str, &str)]) -> anyhow::Result<()> {
        let action = format!("{}/instance/{what}", places.portal());
        let page =
            tokio::time::timeout(TRIES, self.web.submit(&action, fields)).await.context("no answer in time")??;
        page.expect(200).map(drop)
    }

    async fn wish(&mut self, places: &Places, wish: &str, up: Option<bool>) -> anyhow::Result<()> {
        let before = self.up.take();
        self.press(places, wish, &[]).await?;
        self.up = up;
        // What is so already is no new wish, and “try again” is one only where something failed.
        self.wishes += i64::from(wish == "restart" || (wish != "retry" && before.is_some() && before != up));
        Ok(())
    }

    async fn change_plan(&mut self, places: &Places, plan: &'static str) -> anyhow::Result<()> {
        let before = self.plan.take();
        let arguments = ["plan", &self.person.slug, plan];
        let output = tokio::time::timeout(TRIES, places.beaver(&arguments)).await.context("no answer in time")??;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "beaver plan: {told}");
        self.plan = Some(plan);
        self.wishes += i64::from(before.is_some() && before != Some(plan));
        Ok(())
    }

    async fn delete(&mut self, places: &Places) -> anyhow::Result<()> {
        let before = self.deleted.take();
        let slug = self.person.slug.clone();
        self.press(places, "delete", &[("slug", &slug)]).await?;
        self.deleted = Some(true);
        self.wishes += i64::from(before == Some(false));
        Ok(())
    }

    async fn undelete(&mut self, places: &Places) -> anyhow::Result<()> {
        let before = self.deleted.take();
        self.press(places, "undelete", &[]).await?;
        self.deleted = Some(false);
        self.wishes += i64::from(before == Some(true));
        Ok(())
    }

    /// All of it as it was: what comes of it half would be seen by what is missing.
    async fn put_back(&mut self, places: &Places) -> anyhow::Result<()> {
        let export = format!("{}/instance/export", places.portal()).parse()?;
        let taking = async {
            let answer = self.web.request(reqwest::Method::GET, &export)?.send().await?;
            ensure!(answer.status() == 200, "the file: {}", answer.status());
            anyhow::Ok(answer.bytes().await?)
        };
        let file = tokio::time::timeout(TRIES, taking).await.context("no file in time")??;
        let restore = format!("{}/instance/restore", places.portal()).parse()?;
        let request = self.web.upload(&restore, "file", &file)?;
        let page =
            tokio::time::timeout(TRIES, self.web.once(request, &restore)).await.context("no answer in time")??;
        page.expect(303)?;
        self.wishes += 1;
        // What is said until it is down goes with what is replaced.
        self.waits("put back", places, async |web, places| by_form::is_ready(web, places).await).await;
        Ok(())
    }

    /// Has it up, with Beaver's own workspace in it.
    ///
    /// # Errors
    /// When nobody takes the wish.
    pub async fn wants_everything(&mut self, places: &Places) -> anyhow::Result<()> {
        if !self.signed_up {
            self.sign_up(places).await?;
        }
        if self.deleted != Some(false) {
            self.sign_in(places).await?;
            self.undelete(places).await?;
        }
        if self.plan != Some("workspace") {
            self.change_plan(places, "workspace").await?;
        }
        if self.up != Some(true) {
            self.sign_in(places).await?;
            self.wish(places, "start", Some(true)).await?;
        }
        Ok(())
    }

    /// What of everything acknowledged in chats is not there; empty when all of it is.
    ///
    /// # Errors
    /// When the workspace cannot be entered.
    pub async fn misses(&mut self, places: &Places) -> anyhow::Result<Vec<String>> {
        self.enter(places).await?;
        let all = workspace::everything(&mut self.web, places, &self.person.slug).await?;
        let is_there = |said: &Said| {
            let chat = all.iter().find(|(id, _)| *id == said.chat);
            chat.is_some_and(|(_, messages)| {
                let has = |role: &str, content: &str| {
                    messages.iter().any(|m| m.role == role && m.content == content && m.status == "done")
                };
                has("user", &said.said) && has("assistant", &reply_to(&said.said))
            })
        };
        Ok(self.said.iter().filter(|said| !is_there(said)).map(|said| said.said.clone()).collect())
    }

    /// Says one more thing, to see that it works, and with which of the providers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn says_something(&mut self, places: &Places) -> anyhow::Result<String> {
        self.chat(places).await?;
        Ok(self.said.last().map(|said| said.said.clone()).unwrap_or_default())
    }

    /// The folder of their instance's configuration.
    pub fn config_file(&self, data_dir: &std::path::Path) -> Option<PathBuf> {
        Some(data_dir.join("instances").join(self.id?.to_string()).join("config/config.json"))
    }

    /// What stands in it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn config(&self, data_dir: &std::path::Path) -> anyhow::Result<serde_json::Value> {
        let file = self.config_file(data_dir).context("no instance")?;
        Ok(serde_json::from_slice(&fs::read(&file).with_context(|| file.display().to_string())?)?)
    }
}
