//! What is somebody's is theirs to take along, to put back, and to delete; and a deletion can be taken back for a while.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use beaver_tests::{
    browser::Browser,
    engine,
    house::House,
    pages,
    people::{Person, by_form, by_hand},
    provider::{FakeProvider, reply_to},
    python,
    stack::{Stack, fake_provider_program},
    steps::Steps,
    wait,
    web::Web,
    workspace,
};
use bollard::Docker;
use contracts::deploy::{Instance, Phase};
use reqwest::{Method, Url};

use crate::{World, on_stack};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long the data of what is deleted is kept here: long enough for taking it back, short enough to be waited for.
const KEPT: Duration = Duration::from_secs(45);
const BEFORE: &str = "canary-prompt-in-the-file";
const AFTER: &str = "canary-prompt-after-the-file";

#[tokio::test(flavor = "multi_thread")]
async fn taken_along_put_back_and_deleted() {
    if engine::required_or_none("people's data").await.is_none() {
        return;
    }
    let rule = FakeProvider::rule(&Stack::prefix_for("data"));
    let days = format!("{:.7}", KEPT.as_secs_f64() / 86_400.0);
    let settings = [("BEAVER_EGRESS_ALLOW", rule.as_str()), ("BEAVER_DELETE_AFTER_DAYS", days.as_str())];
    let stack = Stack::up_with("data", &settings, &[]).await.unwrap();
    on_stack("data", stack, run).await;
}

async fn run(steps: &mut Steps, stack: &Stack) -> anyhow::Result<()> {
    let docker = stack.docker().context("a stack on Docker has an engine")?;
    let program = fake_provider_program()?;
    let provider = FakeProvider::in_container(docker, stack.prefix(), &stack.network(), &program).await?;
    let (alice, bob) = (Person::new("alice"), Person::new("bob"));
    let world = World { stack, provider: &provider, alice, bob };
    let files = tempfile::tempdir()?;
    let owns = Owns {
        world: &world,
        docker,
        house: House::of(stack).await?,
        browser: Browser::start("en").await?,
        axe: python::axe().await?,
        file: files.path().join("alice.tar"),
    };
    let settled = async {
        for person in [&world.alice, &world.bob] {
            by_form::settle(stack, person, provider.base_url()).await?;
        }
        owns.browser.open(&format!("{}/login", stack.portal())).await?;
        by_hand::sign_in(&owns.browser, &world.alice.email, &world.alice.password).await?;
        owns.browser.find("#open").await?;
        owns.says(BEFORE).await
    };
    steps.need("alice and bob have workspaces, and alice chats", settled).await?;
    steps.need("she takes everything along as one file", owns.taken()).await?;
    steps.check("the page for that, as people see it", owns.looks("/instance/data", "portal-data-en")).await;
    steps.need("she goes on, and puts the file back: all of it, and nothing newer", owns.put_back()).await?;
    steps.check("half a file is refused, and nothing is lost", owns.half()).await;
    steps.check("the operator takes bob's along, and puts alice's into bob's", owns.by_the_operator()).await;
    steps.check("deleted only by its name", owns.not_by_mistake()).await;
    steps.need("deleted: nothing runs, nobody is let in", owns.deleted()).await?;
    steps.need("taken back: everything is there", owns.taken_back()).await?;
    steps.check("the same by the operator", owns.deleted_by_the_operator()).await;
    steps.need("deleted for good: nothing is left", owns.gone()).await?;
    steps.check("and she gets another, under another name", owns.another()).await;
    steps.check("no secret, password or prompt is anywhere it does not belong", world.no_leaks(&[])).await;
    owns.browser.close().await
}

struct Owns<'a> {
    world: &'a World<'a>,
    docker: &'a Docker,
    house: House,
    /// Alice's.
    browser: Browser,
    axe: String,
    /// Where what she takes along is kept.
    file: PathBuf,
}

impl Owns<'_> {
    fn portal(&self, path: &str) -> String {
        format!("{}{path}", self.world.stack.portal())
    }

    async fn says(&self, what: &str) -> anyhow::Result<()> {
        self.browser.open(&self.portal("/instance")).await?;
        self.browser.find("#open").await?;
        by_hand::enter(&self.browser, self.world.stack, &self.world.alice.slug).await?;
        by_hand::say(&self.browser, what).await?;
        by_hand::answered(&self.browser, &reply_to(what)).await
    }

    async fn looks(&self, path: &str, name: &str) -> anyhow::Result<()> {
        self.browser.open(&self.portal(path)).await?;
        pages::check(&self.browser, &self.axe, name).await
    }

    /// Somebody's session at the portal, and in their workspace.
    async fn inside(&self, person: &Person) -> anyhow::Result<Web> {
        let mut web = Web::new("en")?;
        by_form::sign_in(&mut web, self.world.stack, &person.email, &person.password).await?.expect(200)?;
        by_form::enter(&mut web, self.world.stack, &person.slug).await?;
        Ok(web)
    }

    /// What is said in somebody's workspace, as one text.
    async fn said(&self, person: &Person) -> anyhow::Result<String> {
        let mut web = self.inside(person).await?;
        Ok(format!("{:?}", workspace::everything(&mut web, self.world.stack, &person.slug).await?))
    }

    async fn instance(&self, person: &Person) -> anyhow::Result<Instance> {
        let all = self.house.instances().await?;
        all.into_iter().find(|one| one.slug.as_str() == person.slug).context("there is none of that name")
    }

    async fn is(&self, person: &Person, phase: Phase) -> anyhow::Result<Instance> {
        wait::until(format!("{} is {phase:?}", person.slug), PATIENCE, async || {
            let now = self.instance(person).await?;
            let settled = now.phase == phase && now.observed_generation == now.generation;
            ensure!(settled, "it is {:?}", now.phase);
            anyhow::Ok(Some(now))
        })
        .await
    }

    async fn beaver(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let output = self.world.stack.beaver(arguments).await?;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        Ok((output.status.success(), said))
    }

    async fn taken(&self) -> anyhow::Result<()> {
        let mut web = self.inside(&self.world.alice).await?;
        let page = self.portal("/instance/export").parse()?;
        let answer = web.request(reqwest::Method::GET, &page)?.send().await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let named =
            answer.headers().get("content-disposition").and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(named.contains(&format!("beaver-{}.tar", self.world.alice.slug)), "it is named {named:?}");
        let bytes = answer.bytes().await?;
        ensure!(contains(&bytes, BEFORE), "what she said is not in it");
        fs::write(&self.file, &bytes)?;
        // Nobody else's.
        let nobody = Web::new("en")?.peek(page.as_str()).await?;
        ensure!(nobody.status == 303, "{}", nobody.status);
        web.open(&self.portal("/instance/data")).await?.expect(200).map(drop)
    }

    async fn put_back(&self) -> anyhow::Result<()> {
        self.says(AFTER).await?;
        self.upload(&self.file).await?;
        self.browser.arrives("the page of her workspace", |url| url.ends_with("/instance")).await?;
        self.is(&self.world.alice, Phase::Ready).await?;
        let said = self.said(&self.world.alice).await?;
        ensure!(said.contains(BEFORE) && !said.contains(AFTER), "{said}");
        // Her browser's session ended with the data that it was in; the way in is the same as ever.
        self.says(AFTER).await
    }

    /// As a person does it: the button, the file, the other button.
    async fn upload(&self, file: &std::path::Path) -> anyhow::Result<()> {
        self.browser.open(&self.portal("/instance/data")).await?;
        self.browser.find("#file").await?.send_keys(&file.to_string_lossy()).await?;
        self.browser.click("#restore").await
    }

    async fn half(&self) -> anyhow::Result<()> {
        let whole = fs::read(&self.file)?;
        let half = self.file.with_extension("half");
        fs::write(&half, &whole[..whole.len() / 2])?;
        self.upload(&half).await?;
        self.browser.find("#file-error:not(:empty)").await?;
        pages::check(&self.browser, &self.axe, "portal-data-refused-en").await?;
        let said = self.said(&self.world.alice).await?;
        ensure!(said.contains(BEFORE) && said.contains(AFTER), "{said}");
        Ok(())
    }

    async fn by_the_operator(&self) -> anyhow::Result<()> {
        let (alice, bob) = (&self.world.alice, &self.world.bob);
        let bobs = self.file.with_file_name("bob.tar");
        let (well, said) = self.beaver(&["export", &bob.slug, "--output", &bobs.to_string_lossy()]).await?;
        ensure!(well && bobs.exists(), "{said}");
        let (well, said) = self.beaver(&["restore", &bob.slug, &self.file.to_string_lossy()]).await?;
        ensure!(well, "{said}");
        self.is(bob, Phase::Ready).await?;
        // It is bob's now: his way in, what she had said, and she is not let in.
        let said = self.said(bob).await?;
        ensure!(said.contains(BEFORE) && !said.contains(AFTER), "{said}");
        let mut hers = self.inside(alice).await?;
        let page = hers.peek(&format!("{}/api/chats", self.world.stack.origin(&bob.slug))).await?;
        ensure!(page.status == 401, "alice is answered with {}", page.status);
        let (well, said) = self.beaver(&["restore", &bob.slug, &bobs.to_string_lossy()]).await?;
        ensure!(well, "{said}");
        self.is(bob, Phase::Ready).await?;
        ensure!(!self.said(bob).await?.contains(BEFORE), "his own is back");
        let (well, said) = self.beaver(&["restore", &bob.slug, "/proc/self/status"]).await?;
        ensure!(!well && said.contains('✗'), "{said}");
        let (well, said) = self.beaver(&["export", "nobody-has-this"]).await?;
        ensure!(!well, "{said}");
        let (well, said) = self.beaver(&["upgrade"]).await?;
        ensure!(well && said.contains('✓'), "{said}");
        Ok(())
    }

    async fn not_by_mistake(&self) -> anyhow::Result<()> {
        self.browser.open(&self.portal("/instance/data")).await?;
        self.browser.fill("#slug", "alicia").await?;
        self.browser.click("#delete").await?;
        self.browser.find("#slug-error:not(:empty)").await?;
        let (well, said) = self.beaver(&["delete", &self.world.alice.slug, "--confirm", "alicia"]).await?;
        ensure!(!well, "{said}");
        self.is(&self.world.alice, Phase::Ready).await.map(drop)
    }

    async fn delete(&self) -> anyhow::Result<Instance> {
        self.browser.open(&self.portal("/instance/data")).await?;
        self.browser.fill("#slug", &self.world.alice.slug).await?;
        self.browser.click("#delete").await?;
        self.browser.find("#undelete").await?;
        self.is(&self.world.alice, Phase::PendingDeletion).await
    }

    async fn deleted(&self) -> anyhow::Result<()> {
        let mut before = self.inside(&self.world.alice).await?;
        let instance = self.delete().await?;
        let container = self.world.stack.container(&instance.id.to_string());
        ensure!(self.docker.inspect_container(&container, None).await.is_err(), "there is a container still");
        let origin = self.world.stack.origin(&self.world.alice.slug);
        for path in ["/", "/api/chats", "/auth/start"] {
            let page = before.peek(&format!("{origin}{path}")).await?;
            ensure!(matches!(page.status, 404 | 410), "{path} is answered with {}", page.status);
        }
        pages::check(&self.browser, &self.axe, "portal-deleted-en").await
    }

    async fn taken_back(&self) -> anyhow::Result<()> {
        self.browser.click("#undelete").await?;
        self.is(&self.world.alice, Phase::Ready).await?;
        let said = self.said(&self.world.alice).await?;
        ensure!(said.contains(BEFORE) && said.contains(AFTER), "{said}");
        Ok(())
    }

    async fn deleted_by_the_operator(&self) -> anyhow::Result<()> {
        let slug = self.world.bob.slug.as_str();
        let key =
            workspace::make_key(&mut self.inside(&self.world.bob).await?, self.world.stack, slug, "program").await?;
        ensure!(self.by_key(&key).await? == 200, "a new key is refused");
        let (well, said) = self.beaver(&["delete", slug, "--confirm", slug]).await?;
        ensure!(well && said.contains("beaver undelete"), "{said}");
        self.is(&self.world.bob, Phase::PendingDeletion).await?;
        let (well, said) = self.beaver(&["undelete", slug]).await?;
        ensure!(well, "{said}");
        self.is(&self.world.bob, Phase::Ready).await?;
        self.said(&self.world.bob).await?;
        ensure!(self.by_key(&key).await? == 401, "a key from before the deletion is taken");
        Ok(())
    }

    /// What bob's workspace answers a program with this key.
    async fn by_key(&self, key: &str) -> anyhow::Result<u16> {
        let models = Url::parse(&format!("{}/v1/models", self.world.stack.origin(&self.world.bob.slug)))?;
        let request = Web::new("en")?.request(Method::GET, &models)?.bearer_auth(key);
        Ok(request.send().await?.status().as_u16())
    }

    async fn gone(&self) -> anyhow::Result<()> {
        let id = self.delete().await?.id.to_string();
        let data = self.world.stack.data_dir();
        let (own, run) = (data.join("instances").join(&id), data.join("run").join(&id));
        ensure!(own.exists(), "its data is kept for a while");
        wait::until("nothing of it is left", KEPT + PATIENCE, async || {
            anyhow::Ok((!own.exists() && !run.exists()).then_some(()))
        })
        .await?;
        self.browser.open(&self.portal("/instance")).await?;
        self.browser.find("#new").await.map(drop)
    }

    async fn another(&self) -> anyhow::Result<()> {
        self.looks("/instance/new", "portal-new-instance-en").await?;
        self.browser.fill("#slug", &self.world.alice.slug).await?;
        self.browser.click("#make").await?;
        self.browser.find("#slug-error:not(:empty)").await?;
        self.browser.fill("#slug", "alice-again").await?;
        self.browser.click("#make").await?;
        self.browser.arrives("the form for a provider", |url| url.ends_with("/onboarding")).await?;
        let again = Person { slug: "alice-again".into(), ..self.world.alice.clone() };
        self.is(&again, Phase::Ready).await?;
        ensure!(!self.said(&again).await?.contains("canary"), "something of the one before is in it");
        Ok(())
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
