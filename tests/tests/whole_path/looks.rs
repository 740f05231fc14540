//! Every page as people see it: light and dark, wide and narrow, in both languages.

use beaver_tests::{
    browser::Browser,
    pages,
    people::{Person, by_hand},
    python,
    steps::Steps,
};

use crate::{Browsers, World};

/// Checks the page at an address under a name.
async fn at(browser: &Browser, axe: &str, name: &str, url: &str) -> anyhow::Result<()> {
    browser.open(url).await?;
    pages::check(browser, axe, name).await
}

impl World<'_> {
    /// The pages that can be had at any time. Each is a step of its own.
    pub async fn pages(&self, steps: &mut Steps, browsers: &Browsers) -> anyhow::Result<()> {
        let axe = python::axe().await?;
        let portal = self.stack.portal();
        for (lang, languages, browser, slug) in
            [("en", "en", &browsers.alice, &self.alice.slug), ("zh", "zh-CN,zh", &browsers.bob, &self.bob.slug)]
        {
            let nobody = Browser::start(languages).await?;
            let workspace = self.stack.origin(slug);
            for (name, path) in [
                ("welcome", "/"),
                ("register", "/register"),
                ("login", "/login"),
                ("signed-out", "/login?signed_out=1"),
                ("not-found", "/no-such-page"),
                ("operator-setup", "/operator/setup?token=wrong"),
            ] {
                let name = format!("portal-{name}-{lang}");
                steps.check(&name, at(&nobody, &axe, &name, &format!("{portal}{path}"))).await;
            }
            let name = format!("portal-register-faults-{lang}");
            steps
                .check(&name, async {
                    nobody.open(&format!("{portal}/register")).await?;
                    // Past the browser's own checks, to see the portal's.
                    nobody.script("document.querySelectorAll('form').forEach(f => f.noValidate = true)").await?;
                    nobody.fill("#slug", "admin").await?;
                    nobody.fill("#email", "nonsense").await?;
                    nobody.fill("#password", "short").await?;
                    nobody.click("form[action='/register'] button[type=submit]").await?;
                    nobody.find("#password-error:not(:empty)").await?;
                    pages::check(&nobody, &axe, &name).await
                })
                .await;
            for (name, path) in [
                ("instance", "/instance"),
                ("data", "/instance/data"),
                ("onboarding", "/onboarding"),
                ("applying", "/applying"),
                ("account", "/account"),
                ("password", "/account/password"),
            ] {
                let name = format!("portal-{name}-{lang}");
                steps.check(&name, at(browser, &axe, &name, &format!("{portal}{path}"))).await;
            }
            for (name, path) in
                [("no-such-address", self.stack.origin("nobody-has-this")), ("refused", format!("{workspace}/readyz"))]
            {
                let name = format!("router-{name}-{lang}");
                steps.check(&name, at(&nobody, &axe, &name, &path)).await;
            }
            for (name, path) in [("signed-out", "/auth/signed-out"), ("bad-code", "/auth/finish?code=none")] {
                let name = format!("workspace-{name}-{lang}");
                steps.check(&name, at(&nobody, &axe, &name, &format!("{workspace}{path}"))).await;
            }
            let name = format!("workspace-chat-{lang}");
            steps
                .check(&name, async {
                    browser.open(&format!("{workspace}/")).await?;
                    browser.find("#chat-list a").await?.click().await?;
                    browser.find("#log article.assistant").await?;
                    pages::check(browser, &axe, &name).await
                })
                .await;
            let name = format!("workspace-settings-{lang}");
            steps.check(&name, at(browser, &axe, &name, &format!("{workspace}/settings"))).await;
            let name = format!("workspace-new-key-{lang}");
            steps
                .check(&name, async {
                    browser.open(&format!("{workspace}/settings")).await?;
                    browser.fill("#key-name", "looks").await?;
                    browser.click("form[action='/settings/keys'] button").await?;
                    browser.find("#new-key").await?;
                    pages::check(browser, &axe, &name).await
                })
                .await;
            nobody.close().await?;
        }
        Ok(())
    }

    /// The pages of a workspace that its owner stopped, to the owner and to a stranger; and that it starts again.
    pub async fn stopped(&self, steps: &mut Steps, browsers: &Browsers) -> anyhow::Result<()> {
        let axe = python::axe().await?;
        let browser = &browsers.alice;
        let (portal, workspace) = (self.stack.portal(), self.stack.origin(&self.alice.slug));
        steps
            .need("alice stops her workspace", async {
                browser.open(&format!("{portal}/instance")).await?;
                browser.click("#stop-ask summary").await?;
                browser.click("#stop").await?;
                browser.find("#start").await.map(drop)
            })
            .await?;
        steps.check("portal-instance-stopped-en", pages::check(browser, &axe, "portal-instance-stopped-en")).await;
        steps.check("router-stopped-en", at(browser, &axe, "router-stopped-en", &workspace)).await;
        let open = format!("{portal}/open/{}?bind={}", self.alice.slug, "b".repeat(43));
        steps.check("portal-not-running-en", at(browser, &axe, "portal-not-running-en", &open)).await;
        steps.check("router-unavailable-zh", at(&browsers.bob, &axe, "router-unavailable-zh", &workspace)).await;
        steps
            .need("alice starts it again", async {
                browser.open(&format!("{portal}/instance")).await?;
                browser.click("#start").await?;
                browser.find("#open").await?;
                by_hand::enter(browser, self.stack, &self.alice.slug).await
            })
            .await
    }

    /// The operator's pages.
    pub async fn operator(&self, steps: &mut Steps) -> anyhow::Result<()> {
        let axe = python::axe().await?;
        let browser = Browser::start("en").await?;
        let portal = self.stack.portal();
        let settings = self.stack.settings()?;
        let token = settings.get("BEAVER_OPERATOR_TOKEN").map(String::as_str).unwrap_or_default();
        let setup = format!("{portal}/operator/setup?token={token}");
        steps.check("portal-operator-setup-en", at(&browser, &axe, "portal-operator-setup-en", &setup)).await;
        steps
            .need("the operator's account is made by the one-time link", async {
                browser.open(&setup).await?;
                let operator = Person::new("operator");
                browser.fill("#email", &operator.email).await?;
                browser.fill("#password", &operator.password).await?;
                browser.click("main form button[type=submit]").await?;
                browser.arrives("the console", |url| url.ends_with("/operator")).await?;
                browser.sees(&self.alice.slug).await
            })
            .await?;
        steps.check("portal-operator-en", pages::check(&browser, &axe, "portal-operator-en")).await;
        let account = format!("{portal}/operator/accounts/{}", self.alice.slug);
        steps.check("portal-operator-account-en", at(&browser, &axe, "portal-operator-account-en", &account)).await;
        browser.close().await
    }
}
