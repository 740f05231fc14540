//! Workspaces that nobody uses sleep, and whoever they belong to finds them as they were.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    browser::Browser,
    engine,
    house::House,
    people::{Person, by_form, by_hand},
    provider::{FakeProvider, STEADY, reply_to},
    stack::{Stack, fake_provider_program},
    steps::Steps,
    wait,
    web::Web,
    workspace,
};
use bollard::{Docker, models::ContainerState};
use contracts::deploy::{EventCode, Instance, Phase};
use futures_util::{StreamExt, future::try_join_all};
use reqwest::{Method, Url};
use serde_json::json;

use crate::{World, on_stack};

const PLANS: &str = "deploy-control/plans.toml";
const PATIENCE: Duration = Duration::from_secs(60);
const SAID: &str = "canary-prompt-before-it-slept";

/// After how many seconds without use workspaces are frozen, and stopped.
fn plan(pause_after: u32, idle_timeout: u32) -> String {
    format!("[workspace]\npause_after = {pause_after}\nidle_timeout = {idle_timeout}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn asleep_and_awake() {
    if engine::required_or_none("sleep and wake").await.is_none() {
        return;
    }
    let rule = FakeProvider::rule(&Stack::prefix_for("sleep"));
    let files = [(PLANS, plan(0, 0))];
    let files = files.each_ref().map(|(place, text)| (*place, text.as_str()));
    let stack = Stack::up_with("sleep", &[("BEAVER_EGRESS_ALLOW", &rule)], &files).await.unwrap();
    on_stack("sleep", stack, run).await;
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    let docker = stack.docker().context("a stack on Docker has an engine")?;
    let program = fake_provider_program()?;
    let provider = FakeProvider::in_container(docker, stack.prefix(), &stack.network(), &program).await?;
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let world = World { stack, provider: &provider, alice, bob };
    let field = Field { world: &world, docker, house: House::of(stack).await?, browser: Browser::start("en").await? };
    let settling = async {
        for person in [&world.alice, &world.bob] {
            by_form::settle(stack, person, provider.base_url()).await?;
        }
        field.browser.open(&format!("{}/login", stack.portal())).await?;
        by_hand::sign_in(&field.browser, &world.alice.email, &world.alice.password).await?;
        field.browser.find("#open").await?;
        by_hand::enter(&field.browser, stack, &world.alice.slug).await?;
        by_hand::say(&field.browser, SAID).await?;
        by_hand::answered(&field.browser, &reply_to(SAID)).await?;
        let mut web = world.inside(&world.alice).await?;
        workspace::make_key(&mut web, stack, &world.alice.slug, "sleeper").await
    };
    let key = steps.need("alice chats, and has a key; bob is there too", settling).await?;

    steps.need("nobody uses them, so they are frozen", field.frozen()).await?;
    steps.check("people read that they are asleep", field.told()).await;
    steps.check("alice's next visit finds it as it was, with what she said", field.visited_unnoticed()).await;
    steps.check("her program finds it awake", field.program(&key)).await;
    steps.check("a stream keeps hers awake while bob's falls asleep", field.stream(&key)).await;
    steps.check("strangers wake nobody", field.strangers()).await;
    field.all_asleep(plan(0, 1), Phase::Asleep).await?;
    steps.check("stopped, ten requests of hers start it once", field.ten_at_once(&key)).await;
    steps.check("stopped, her browser gets to it by itself", field.browser_goes_on()).await;
    steps.check("opened from the portal, in a browser that has never been there", field.opened_in_the_portal()).await;
    steps.check("her sign-out ends what slept in it", field.signed_out()).await;
    steps.check("what bob stopped stays so", field.stopped_stays()).await;
    steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&[key])).await;
    field.browser.close().await
}

struct Field<'a> {
    world: &'a World<'a>,
    docker: &'a Docker,
    house: House,
    browser: Browser,
}

impl Field<'_> {
    async fn instance(&self, person: &Person) -> anyhow::Result<Instance> {
        let all = self.house.instances().await?;
        all.into_iter().find(|one| one.slug.as_str() == person.slug).context("it has an instance")
    }

    async fn container(&self, person: &Person) -> anyhow::Result<ContainerState> {
        let name = self.world.stack.container(&self.instance(person).await?.id.to_string());
        self.docker.inspect_container(&name, None).await?.state.context("it has a state")
    }

    async fn is(&self, person: &Person, phase: Phase) -> anyhow::Result<()> {
        wait::until(format!("{} is {phase:?}", person.slug), PATIENCE, || async {
            let now = self.instance(person).await?;
            let settled = now.phase == phase && now.observed_generation == now.generation;
            ensure!(settled, "it is {:?}", now.phase);
            anyhow::Ok(Some(()))
        })
        .await
    }

    /// Has both fall asleep, by this plan.
    async fn all_asleep(&self, plan: String, phase: Phase) -> anyhow::Result<()> {
        std::fs::write(self.world.stack.data_dir().join(PLANS), plan)?;
        for person in [&self.world.alice, &self.world.bob] {
            self.is(person, phase).await?;
        }
        Ok(())
    }

    /// Somebody signs in at the portal, and opens what is theirs from there, asleep or not.
    async fn comes(&self, person: &Person) -> anyhow::Result<Web> {
        let (mut web, stack) = (Web::new("en")?, self.world.stack);
        by_form::sign_in(&mut web, stack, &person.email, &person.password).await?.expect(200)?;
        let page = web.open(&format!("{}/open/{}", stack.portal(), person.slug)).await?.expect(200)?;
        let origin = page.url.origin().ascii_serialization();
        ensure!(origin == stack.origin(&person.slug), "the way ends at {}", page.url);
        Ok(web)
    }

    fn page(&self, person: &Person, path: &str) -> anyhow::Result<Url> {
        Ok(Url::parse(&format!("{}{path}", self.world.stack.origin(&person.slug)))?)
    }

    async fn frozen(&self) -> anyhow::Result<()> {
        // Nothing of the browser's is under way any more.
        self.all_asleep(plan(1, 0), Phase::Paused).await?;
        for person in [&self.world.alice, &self.world.bob] {
            ensure!(self.container(person).await?.paused == Some(true), "{} is not frozen", person.slug);
        }
        Ok(())
    }

    async fn told(&self) -> anyhow::Result<()> {
        let status = self.world.stack.beaver(&["status"]).await?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(status.contains("asleep (paused)") || status.contains("休眠(已暂停)"), "{status}");
        for (language, said) in [("en", "It wakes by itself as soon as you open it"), ("zh-CN", "打开时会自动唤醒")]
        {
            let mut web = Web::new(language)?;
            let Person { email, password, .. } = &self.world.bob;
            let page = by_form::sign_in(&mut web, self.world.stack, email, password).await?.expect(200)?;
            ensure!(page.text.contains(said) && page.text.contains("id=\"open\""), "{}", page.text);
        }
        Ok(())
    }

    async fn visited_unnoticed(&self) -> anyhow::Result<()> {
        let before = self.container(&self.world.alice).await?;
        self.browser.client().refresh().await?;
        let shown = wait::until("what was said is shown", PATIENCE, || async {
            anyhow::Ok(self.browser.text().await?.contains(SAID).then_some(()))
        });
        shown.await?;
        let after = self.container(&self.world.alice).await?;
        ensure!((before.started_at, before.pid) == (after.started_at, after.pid), "it was started anew");
        self.is(&self.world.alice, Phase::Paused).await
    }

    /// What a program of alice's asks her gateway.
    fn ask(&self, key: &str, model: &str, said: &str) -> anyhow::Result<reqwest::RequestBuilder> {
        let body = json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": said }] });
        let request = Web::new("en")?.request(Method::POST, &self.page(&self.world.alice, "/v1/chat/completions")?)?;
        Ok(request.bearer_auth(key).json(&body))
    }

    async fn program(&self, key: &str) -> anyhow::Result<()> {
        let said = "canary-prompt-by-a-program";
        let answer = self.ask(key, beaver_tests::provider::CHAT, said)?.send().await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let text = answer.text().await?;
        ensure!(text.contains("[DONE]"), "{text}");
        self.is(&self.world.alice, Phase::Paused).await
    }

    async fn stream(&self, key: &str) -> anyhow::Result<()> {
        let answer = self.ask(key, STEADY, "canary-prompt-that-goes-on")?.send().await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let mut pieces = answer.bytes_stream();
        pieces.next().await.context("a first piece")??;
        // Bob comes, and falls asleep again; meanwhile nothing of hers is touched.
        self.comes(&self.world.bob).await?;
        let begun = self.container(&self.world.alice).await?.started_at;
        for _ in 0..2 {
            self.is(&self.world.bob, Phase::Paused).await?;
            self.comes(&self.world.bob).await?;
            let now = self.container(&self.world.alice).await?;
            ensure!(now.paused == Some(false) && now.started_at == begun, "it sleeps in the middle of a stream");
        }
        self.world.provider.finish().await?;
        let mut end = Vec::new();
        while let Some(piece) = pieces.next().await {
            end.extend_from_slice(&piece?);
        }
        ensure!(String::from_utf8_lossy(&end).contains("[DONE]"), "the stream came to no good end");
        self.is(&self.world.alice, Phase::Paused).await
    }

    async fn strangers(&self) -> anyhow::Result<()> {
        self.is(&self.world.alice, Phase::Paused).await?;
        let generation = self.instance(&self.world.alice).await?.generation;
        let mut nobody = Web::new("en")?;
        let mut bob = self.comes(&self.world.bob).await?;
        for path in ["/", "/auth/start", "/v1/models", "/settings"] {
            for web in [&mut nobody, &mut bob] {
                web.peek(self.page(&self.world.alice, path)?.as_str()).await?.expect(503)?;
            }
        }
        let wrong = self.ask(&format!("sk-{}", "x".repeat(43)), "any", "anything")?.send().await?;
        ensure!(wrong.status() == 503, "{}", wrong.status());
        ensure!(self.instance(&self.world.alice).await?.generation == generation, "somebody woke it");
        Ok(())
    }

    async fn ten_at_once(&self, key: &str) -> anyhow::Result<()> {
        let before = self.container(&self.world.alice).await?;
        ensure!(before.running == Some(false), "it runs");
        let page = self.page(&self.world.alice, "/v1/models")?;
        let statuses = try_join_all((0..10).map(|_| async {
            let request = Web::new("en")?.request(Method::GET, &page)?.bearer_auth(key);
            anyhow::Ok(request.send().await?.status().as_u16())
        }))
        .await?;
        ensure!(statuses == [200; 10], "{statuses:?}");
        let events = self.house.events(&self.instance(&self.world.alice).await?).await?;
        let codes: Vec<_> = events.iter().map(|event| event.code).collect();
        let since = codes.iter().rposition(|code| *code == EventCode::Asleep).context("it slept")?;
        use EventCode::{Healthy, Ready, Started, WakeRequested};
        ensure!(codes[since + 1..] == [WakeRequested, Started, Healthy, Ready], "{:?}", &codes[since..]);
        self.is(&self.world.alice, Phase::Asleep).await
    }

    async fn browser_goes_on(&self) -> anyhow::Result<()> {
        self.browser.open(self.page(&self.world.alice, "/")?.as_str()).await?;
        wait::until("what was said is shown", PATIENCE, || async {
            anyhow::Ok(self.browser.text().await?.contains(SAID).then_some(()))
        })
        .await?;
        self.is(&self.world.alice, Phase::Asleep).await
    }

    async fn opened_in_the_portal(&self) -> anyhow::Result<()> {
        let fresh = Browser::start("zh-CN,zh;q=0.9").await?;
        fresh.open(&format!("{}/login", self.world.stack.portal())).await?;
        by_hand::sign_in(&fresh, &self.world.alice.email, &self.world.alice.password).await?;
        fresh.find("#open").await?;
        by_hand::enter(&fresh, self.world.stack, &self.world.alice.slug).await?;
        wait::until("what was said is there", PATIENCE, || async {
            anyhow::Ok(fresh.text().await?.contains(SAID).then_some(()))
        })
        .await?;
        fresh.close().await?;
        self.is(&self.world.alice, Phase::Asleep).await
    }

    async fn signed_out(&self) -> anyhow::Result<()> {
        let mut web = self.comes(&self.world.alice).await?;
        self.is(&self.world.alice, Phase::Asleep).await?;
        web.submit(&format!("{}/logout", self.world.stack.portal()), &[]).await?.expect(200)?;
        let chats = format!("{}/api/chats", self.world.stack.origin(&self.world.alice.slug));
        wait::until("its session is not let in any more", PATIENCE, || {
            let (mut web, chats) = (web.clone(), chats.clone());
            async move {
                let page = web.peek(&chats).await?;
                ensure!(page.status == 401, "it is answered with {}", page.status);
                anyhow::Ok(Some(()))
            }
        })
        .await
    }

    async fn stopped_stays(&self) -> anyhow::Result<()> {
        let mut bob = self.comes(&self.world.bob).await?;
        self.is(&self.world.bob, Phase::Asleep).await?;
        bob.submit(&format!("{}/instance/stop", self.world.stack.portal()), &[]).await?.expect(200)?;
        self.is(&self.world.bob, Phase::Stopped).await?;
        let page = bob.peek(self.page(&self.world.bob, "/")?.as_str()).await?.expect(503)?;
        ensure!(page.text.contains("is stopped"), "{}", page.text);
        self.is(&self.world.bob, Phase::Stopped).await
    }
}
