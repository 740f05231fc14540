//! The page that one watches while a workspace is made, held in the middle.

use std::time::Duration;

use anyhow::ensure;
use beaver_tests::{
    browser::Browser,
    pages,
    people::{Person, Provider, by_hand},
    python,
    steps::Steps,
    wait,
};
use bollard::Docker;

use crate::{World, operating::container_of};

impl World<'_> {
    /// Two more people sign up while deploy-control does not answer. The page is there from the first second, survives a
    /// reload and a closed tab, and goes on by itself.
    pub async fn watched(&self, steps: &mut Steps, docker: &Docker, people: &[Person; 2]) -> anyhow::Result<()> {
        let axe = python::axe().await?;
        let control = self.stack.container("deploy-control");
        for (person, lang, languages) in [(&people[0], "en", "en"), (&people[1], "zh", "zh-CN,zh;q=0.9")] {
            let browser = Browser::start(languages).await?;
            docker.pause_container(&control).await?;
            let held = self.held(&browser, &axe, &format!("portal-progress-{lang}"), person).await;
            docker.unpause_container(&control).await?;
            steps.check(&format!("portal-progress-{lang}: a reload and a closed tab"), async { held }).await;
            let goes_on = async {
                // Nothing is pressed or loaded: the page hears of it.
                browser.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await?;
                browser.find("#base_url").await.map(drop)
            };
            steps.check(&format!("portal-progress-{lang}: it goes on by itself"), goes_on).await;
            let fitting = async {
                let shows = async |address: &str| {
                    let shown = browser.script("return document.getElementById('base_url').value").await?;
                    ensure!(shown == address, "the address is {shown}, not {address}");
                    anyhow::Ok(())
                };
                let (openai, deepseek) = ("https://api.openai.com/v1", "https://api.deepseek.com/v1");
                shows(openai).await?;
                browser.click("label.choice:has(input[value='deepseek'])").await?;
                shows(deepseek).await?;
                browser.fill("#base_url", openai).await?;
                browser.click("label.choice:has(input[value='ollama'])").await?;
                // Typed, not put there: it stays, whoever else's it is.
                shows(openai).await
            };
            steps
                .check(&format!("portal-onboarding-address-{lang}: the chosen provider's, unless typed"), fitting)
                .await;
            let name = format!("portal-onboarding-finding-{lang}");
            let finding = async {
                let nowhere =
                    Provider { base_url: "http://10.255.255.1/v1", model: "a-model", key: "sk-wrong-key-0123456789" };
                by_hand::fill_provider(&browser, nowhere).await?;
                let (good, text) = by_hand::test_provider(&browser).await?;
                ensure!(!good, "{text}");
                pages::check(&browser, &axe, &name).await
            };
            steps.check(&name, finding).await;
            let name = format!("workspace-no-provider-{lang}");
            let without = async {
                browser.open(&format!("{}/instance", self.stack.portal())).await?;
                by_hand::enter(&browser, self.stack, &person.slug).await?;
                browser.find("#no-provider").await?;
                pages::check(&browser, &axe, &name).await
            };
            steps.check(&name, without).await;
            browser.close().await?;
        }
        Ok(())
    }

    async fn held(&self, browser: &Browser, axe: &str, name: &str, person: &Person) -> anyhow::Result<()> {
        by_hand::fill_sign_up(browser, self.stack, person).await?;
        let at = |url: &str| url.ends_with("/progress");
        browser.arrives("the progress page", at).await?;
        let steps = "return document.querySelectorAll('.steps .step').length";
        let shows = async || {
            wait::until("the steps are shown", Duration::from_secs(20), || async {
                let shown = browser.script(steps).await?;
                ensure!(shown == 7, "{shown} steps");
                Ok(Some(()))
            })
            .await
        };
        shows().await?;
        pages::check(browser, axe, name).await?;
        browser.client().refresh().await?;
        shows().await?;
        browser.open("about:blank").await?;
        browser.open(&format!("{}/progress", self.stack.portal())).await?;
        browser.arrives("the progress page, again", at).await?;
        shows().await
    }

    /// Alice restarts her workspace, and then gives it another provider: it goes on with everything in it.
    pub async fn changes(&self, steps: &mut Steps, alice: &Browser) -> anyhow::Result<()> {
        let before = self.everything().await?;
        let (portal, workspace) = (self.stack.portal(), self.stack.origin(&self.alice.slug));
        let container = container_of(self.stack, &self.alice).await?;
        let started = async || {
            let docker = self.stack.docker().expect("a stack on Docker has an engine");
            let state = docker.inspect_container(&container, None).await?.state.unwrap_or_default();
            anyhow::Ok(state.started_at)
        };
        let at_first = started().await?;
        let restart = async {
            alice.open(&format!("{portal}/instance")).await?;
            alice.click("#restart-ask summary").await?;
            alice.click("#restart").await?;
            wait::until("it runs anew", Duration::from_secs(60), || async {
                anyhow::Ok((started().await? != at_first).then_some(()))
            })
            .await?;
            alice.find("#open").await?;
            self.whole_again(&before).await
        };
        steps.check("alice restarts her workspace", restart).await;
        let second = Person::new("alice-second-key");
        let other = async {
            alice.open(&format!("{portal}/instance")).await?;
            alice.click("#provider").await?;
            alice.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await?;
            let provider =
                Provider { base_url: self.provider.base_url(), model: beaver_tests::provider::CHAT, key: &second.key };
            by_hand::fill_provider(alice, provider).await?;
            by_hand::save_provider(alice).await?;
            alice.open(&workspace).await?;
            let said = "canary-prompt-with-another-key";
            by_hand::say(alice, said).await?;
            by_hand::answered(alice, &beaver_tests::provider::reply_to(said)).await?;
            let asked = self.provider.asked(said).await?;
            let shown = asked.first().and_then(|request| request.header("authorization"));
            ensure!(shown == Some(&format!("Bearer {}", second.key)), "the provider was not shown the new key");
            self.whole_again(&before).await
        };
        steps.check("alice changes her provider", other).await;
        Ok(())
    }

    /// In his browser, signed in as himself: her pages, and her link.
    pub async fn bob_s_browser_at_alices(&self, bob: &Browser) -> anyhow::Result<()> {
        let her = self.stack.origin(&self.alice.slug);
        let refused = async |what: &str| {
            let text = bob.text().await?;
            ensure!(!text.contains("canary-prompt-alice"), "{what}: her words are on the page");
            let inside = bob.script("return document.getElementById('message') !== null").await?;
            ensure!(inside == false, "{what}: he is in a workspace at {}", bob.url().await?);
            anyhow::Ok(())
        };
        for path in ["/", "/settings", "/auth/start?rd=%2F"] {
            bob.open(&format!("{her}{path}")).await?;
            let portal = format!("{}/open/", self.stack.portal());
            ensure!(bob.url().await?.starts_with(&portal), "{path} leads him to {}", bob.url().await?);
            refused(path).await?;
        }
        // Her link: the way of her own sign-in, just before its end.
        let mut alice = self.inside(&self.alice).await?;
        let start = alice.peek(&format!("{her}/auth/start?rd=%2F")).await?.expect(303)?;
        let open = alice.peek(start.location().expect("a redirect").as_str()).await?.expect(303)?;
        bob.open(open.location().expect("a redirect").as_str()).await?;
        refused("her link").await?;
        Ok(())
    }
}
