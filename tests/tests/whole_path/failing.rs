//! What cannot be brought up: what people see meanwhile, and that trying again works once the cause is gone.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    browser::Browser,
    pages,
    people::{Person, by_hand},
    python,
    steps::Steps,
    wait,
};
use bollard::{
    Docker,
    query_parameters::{RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder},
};

use crate::{World, operating::container_of};

/// Long enough for all attempts and the waits between them, on a busy machine.
const GIVEN_UP: Duration = Duration::from_secs(90);

/// The image of instances under another name, so that nothing is lost while its own name is away.
struct Hidden<'a> {
    docker: &'a Docker,
    name: String,
    kept: String,
}

impl<'a> Hidden<'a> {
    async fn hide(docker: &'a Docker, container: &str, kept: String) -> anyhow::Result<Self> {
        let found = docker.inspect_container(container, None).await?;
        let name = found.config.and_then(|config| config.image).context("a container without an image")?;
        let this = Self { docker, name, kept };
        this.tag(&this.name, &this.kept).await?;
        this.untag(&this.name).await?;
        Ok(this)
    }

    async fn tag(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let (repo, tag) = to.rsplit_once(':').context("a name without a tag")?;
        let options = TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
        self.docker.tag_image(from, Some(options)).await.with_context(|| format!("naming {from} {to}"))
    }

    async fn untag(&self, name: &str) -> anyhow::Result<()> {
        let options = RemoveImageOptionsBuilder::new().noprune(true).build();
        self.docker.remove_image(name, Some(options), None).await.with_context(|| format!("taking away {name}"))?;
        Ok(())
    }

    async fn give_back(self) -> anyhow::Result<()> {
        self.tag(&self.kept, &self.name).await?;
        self.untag(&self.kept).await
    }
}

impl World<'_> {
    /// The program that workspaces run is gone, and so is alice's container. Her page says first that it starts, then
    /// that it cannot; carol's sign-up ends in the same; bob notices nothing. Once the program is back, both try again.
    pub async fn cannot_come_up(
        &self,
        steps: &mut Steps,
        alice: &Browser,
        docker: &Docker,
        carol: &Person,
    ) -> anyhow::Result<()> {
        let axe = python::axe().await?;
        let before = self.everything().await?;
        let (portal, workspace) = (self.stack.portal(), self.stack.origin(&self.alice.slug));
        let container = container_of(self.stack, &self.alice).await?;
        let kept = format!("{}-kept:latest", self.stack.prefix());
        let hidden = steps.need("the image goes away", Hidden::hide(docker, &container, kept)).await?;

        let starting = self.held_while_starting(steps, alice, &axe, docker, &container).await;
        steps.need("alice's workspace is starting, and its page says so", async { starting }).await?;
        let failed = async {
            alice.open(&workspace).await?;
            // The page goes on by itself, from starting to failed.
            shows(alice, "workspace_failed").await?;
            pages::check(alice, &axe, "router-failed-en").await?;
            alice.open(&format!("{portal}/instance")).await?;
            alice.find("#retry").await?;
            ensure!(alice.text().await?.contains("image_missing"), "{}", alice.describe().await);
            pages::check(alice, &axe, "portal-instance-failed-en").await
        };
        steps.check("then that it could not be started", failed).await;

        let browser = Browser::start("zh-CN,zh;q=0.9").await?;
        let clear = async {
            by_hand::fill_sign_up(&browser, self.stack, carol).await?;
            browser.arrives("the progress page", |url| url.ends_with("/progress")).await?;
            wait::until("the progress page says that it failed", GIVEN_UP, || async {
                let there = "return document.querySelector('#retry') !== null";
                anyhow::Ok((browser.script(there).await? == true).then_some(()))
            })
            .await?;
            ensure!(browser.text().await?.contains("image_missing"), "{}", browser.describe().await);
            pages::check(&browser, &axe, "portal-progress-failed-zh").await
        };
        steps.check("carol's sign-up ends in a clear failure", clear).await;
        let untouched = self.inside(&self.bob).await.map(drop);
        steps.check("bob's workspace runs on", async { untouched }).await;

        steps.need("the image comes back", hidden.give_back()).await?;
        let again = async {
            browser.click("#retry").await?;
            browser.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await.map(drop)
        };
        steps.check("carol tries again, and goes on", again).await;
        let again = async {
            alice.open(&format!("{portal}/instance")).await?;
            alice.click("#retry").await?;
            alice.find("#open").await?;
            self.whole_again(&before).await
        };
        steps.check("alice tries again, and everything is there", again).await;
        browser.close().await
    }

    /// Removes the container, and stops time for deploy-control when the router has heard of it.
    async fn held_while_starting(
        &self,
        steps: &mut Steps,
        alice: &Browser,
        axe: &str,
        docker: &Docker,
        container: &str,
    ) -> anyhow::Result<()> {
        let workspace = self.stack.origin(&self.alice.slug);
        let mut web = self.inside(&self.alice).await?;
        let control = self.stack.container("deploy-control");
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        docker.remove_container(container, Some(force)).await?;
        wait::until("the router says that it starts", Duration::from_secs(30), || {
            let (mut web, workspace) = (web.clone(), workspace.clone());
            async move { anyhow::Ok(web.peek(&workspace).await?.text.contains("workspace_starting").then_some(())) }
        })
        .await?;
        docker.pause_container(&control).await?;
        let looked = async {
            let page = web.peek(&workspace).await?;
            ensure!(page.text.contains("workspace_starting"), "paused too late: {}", page.text);
            alice.open(&workspace).await?;
            shows(alice, "workspace_starting").await?;
            pages::check(alice, axe, "router-starting-en").await
        };
        steps.check("router-starting-en, while deploy-control does not answer", looked).await;
        Ok(docker.unpause_container(&control).await?)
    }
}

/// Waits until the page shows a code.
async fn shows(browser: &Browser, code: &str) -> anyhow::Result<()> {
    browser.sees_within(code, GIVEN_UP).await
}
