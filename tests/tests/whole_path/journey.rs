//! What the two do in their browsers, in the order in which they do it.

use std::time::Duration;

use anyhow::{Context, ensure};
use beaver_tests::{
    browser::Browser,
    people::{Person, Provider, by_hand},
    provider::{CHAT, GATED, reply_pieces, reply_to},
    stack::Stack,
    steps::Steps,
    wait,
};
use serde_json::json;

use crate::{Browsers, World};

/// What alice says first.
pub const ALICE_SAYS: &str = "canary-prompt-alice: is 7 × 6 = 42? <i>markup</i>";
/// What alice says while the provider is held.
pub const ALICE_SAYS_SLOWLY: &str = "canary-prompt-alice-slowly: one two three";
/// What alice has in the box when her session ends.
const ALICE_TYPES: &str = "canary-prompt-alice-typed: still here?";
/// What bob says.
pub const BOB_SAYS: &str = "canary-prompt-bob：你好，海狸";

impl World<'_> {
    fn good<'a>(&'a self, person: &'a Person, model: &'a str) -> Provider<'a> {
        Provider { base_url: self.provider.base_url(), model, key: &person.key }
    }

    /// From nothing to two people who chat.
    pub async fn two_people_chat(&self, steps: &mut Steps, browsers: &Browsers) -> anyhow::Result<()> {
        let Browsers { alice, bob } = browsers;
        steps
            .need(
                "alice signs up and watches the progress, through a reload and a closed tab",
                self.alice_signs_up(alice),
            )
            .await?;
        steps
            .check("a bad key, no such model and an unreachable address each say so", self.bad_providers(alice, EN))
            .await;
        steps
            .need("alice gives a provider, which is tested from inside her workspace", self.alice_onboards(alice))
            .await?;
        steps.need("alice chats", self.chat(alice, ALICE_SAYS, &self.alice)).await?;
        steps.check("what alice typed is there after her session ended", self.typed_text_stays(alice)).await;
        steps.need("alice sees an answer arrive piece by piece", self.piece_by_piece(alice)).await?;
        steps.need("bob signs up, in Chinese", by_hand::sign_up(bob, self.stack, &self.bob)).await?;
        steps.check("bob's bad provider, in Chinese", self.bad_providers(bob, ZH)).await;
        steps.need("bob skips the provider, and his workspace says what is missing", self.bob_skips(bob)).await?;
        steps.need("bob gives the provider later", self.bob_onboards_later(bob)).await?;
        steps.need("bob chats", self.chat(bob, BOB_SAYS, &self.bob)).await?;
        Ok(())
    }

    async fn alice_signs_up(&self, browser: &Browser) -> anyhow::Result<()> {
        let portal = self.stack.portal();
        browser.open(&format!("{portal}/register")).await?;
        browser.fill("#slug", "no_such--name").await?;
        wait::until("the form says that this is no name", Duration::from_secs(10), async || {
            let said = browser.script("return document.getElementById('slug-error').textContent.trim()").await?;
            anyhow::Ok((said != "").then_some(()))
        })
        .await?;
        browser.fill("#slug", &self.alice.slug).await?;
        wait::until("the form says that the name can be had", Duration::from_secs(10), async || {
            let js = "return [document.getElementById('slug-ok'), document.getElementById('slug-error')].map(e => e.textContent.trim() !== '').join()";
            anyhow::Ok((browser.script(js).await? == "true,false").then_some(()))
        })
        .await?;
        browser.fill("#email", &self.alice.email).await?;
        browser.fill("#password", &self.alice.password).await?;
        browser.click("form[action='/register'] button[type=submit]").await?;
        let url = browser
            .arrives("the progress page", |url| url.ends_with("/progress") || url.ends_with("/onboarding"))
            .await?;
        if url.ends_with("/progress") {
            let steps = browser.script("return document.querySelectorAll('.steps .step').length").await?;
            // It may have gone on in the meantime.
            ensure!(steps == 7 || browser.url().await?.ends_with("/onboarding"), "the progress shows {steps} steps");
            browser.client().refresh().await?;
            browser.open("about:blank").await?;
            browser.open(&format!("{portal}/progress")).await?;
        }
        browser.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await?;
        Ok(())
    }

    async fn bad_providers(&self, browser: &Browser, said: Bad) -> anyhow::Result<()> {
        browser.open(&format!("{}/onboarding", self.stack.portal())).await?;
        let base_url = self.provider.base_url();
        let nowhere = "https://no-such-host.invalid/v1";
        let good = &self.alice.key;
        for (provider, expected) in [
            (Provider { base_url, model: CHAT, key: "sk-wrong-key-0123456789" }, said.key),
            (Provider { base_url, model: "no-such-model", key: good }, said.model),
            (Provider { base_url: nowhere, model: CHAT, key: good }, said.unreachable),
            // The metadata service of clouds: an address that no rule allows.
            (Provider { base_url: "http://169.254.169.254/v1", model: CHAT, key: good }, said.refused),
        ] {
            by_hand::fill_provider(browser, provider).await?;
            let (is_good, text) = by_hand::test_provider(browser).await?;
            ensure!(!is_good && text.contains(expected), "{}: it says {text:?}, not {expected:?}", provider.base_url);
        }
        Ok(())
    }

    async fn alice_onboards(&self, browser: &Browser) -> anyhow::Result<()> {
        browser.open(&format!("{}/onboarding", self.stack.portal())).await?;
        by_hand::fill_provider(browser, self.good(&self.alice, CHAT)).await?;
        let (good, text) = by_hand::test_provider(browser).await?;
        ensure!(good, "the test finds: {text}");
        by_hand::save_provider(browser).await?;
        by_hand::enter(browser, self.stack, &self.alice.slug).await
    }

    async fn chat(&self, browser: &Browser, message: &str, person: &Person) -> anyhow::Result<()> {
        by_hand::say(browser, message).await?;
        by_hand::answered(browser, &reply_to(message)).await?;
        let asked = self.provider.asked(message).await?;
        ensure!(asked.len() == 1, "the provider was asked {} times", asked.len());
        let shown = asked[0].header("authorization");
        ensure!(shown == Some(&format!("Bearer {}", person.key)), "the provider was shown another key");
        ensure!(
            asked[0].headers.iter().all(|(name, _)| name != "cookie" && !name.starts_with("x-beaver")),
            "the provider sees {:?}",
            asked[0].headers
        );
        Ok(())
    }

    /// The workspace's session ends, the portal's does not: the way back is by itself, and what was typed comes along.
    async fn typed_text_stays(&self, browser: &Browser) -> anyhow::Result<()> {
        let origin = self.stack.origin(&self.alice.slug);
        browser.open(&origin).await?;
        browser.fill("#message", ALICE_TYPES).await?;
        let cookie = json!({"name": "beaver_workspace", "url": origin});
        browser.devtools("Network.deleteCookies", cookie).await?;
        browser.click("#send").await?;
        wait::until("the text is in the box again", Duration::from_secs(30), || async {
            let found = browser.script("return document.getElementById('message')?.value ?? ''").await?;
            ensure!(found == ALICE_TYPES, "the box has {found}");
            ensure!(browser.url().await?.starts_with(&origin), "it is at {}", browser.url().await?);
            let signed_in = browser.script("return fetch('/api/chats').then((answer) => answer.status)").await?;
            ensure!(signed_in == 200, "she is not signed in again: {signed_in}");
            Ok(Some(()))
        })
        .await?;
        browser.click("#send").await?;
        by_hand::answered(browser, &reply_to(ALICE_TYPES)).await?;
        ensure!(self.provider.asked(ALICE_TYPES).await?.len() == 1, "it was sent more than once");
        let kept = browser.script("return sessionStorage.length").await?;
        ensure!(kept == 0, "{kept} drafts are kept");
        Ok(())
    }

    async fn piece_by_piece(&self, browser: &Browser) -> anyhow::Result<()> {
        // The workspace's own settings change the model; the key stays.
        browser.open(&format!("{}/settings", self.stack.origin(&self.alice.slug))).await?;
        browser.fill("#model", GATED).await?;
        browser.click("button[name=action][value=save]").await?;
        browser.find("[role=status]").await?;
        browser.open(&self.stack.origin(&self.alice.slug)).await?;
        by_hand::say(browser, ALICE_SAYS_SLOWLY).await?;
        let mut so_far = String::new();
        for piece in reply_pieces(ALICE_SAYS_SLOWLY) {
            wait::until("the provider is about to give a piece", Duration::from_secs(20), || async {
                anyhow::Ok((self.provider.record().await?.waiting == 1).then_some(()))
            })
            .await?;
            // Everything given is shown, although the provider gives no more: nothing on the way keeps it back.
            by_hand::answered(browser, &so_far).await?;
            self.provider.release(1).await?;
            so_far.push_str(&piece);
        }
        by_hand::answered(browser, &so_far).await?;
        browser.open(&format!("{}/settings", self.stack.origin(&self.alice.slug))).await?;
        browser.fill("#model", CHAT).await?;
        browser.click("button[name=action][value=save]").await?;
        browser.find("[role=status]").await?;
        Ok(())
    }

    async fn bob_skips(&self, browser: &Browser) -> anyhow::Result<()> {
        browser.open(&format!("{}/onboarding", self.stack.portal())).await?;
        browser.click("a.skip-link").await?;
        browser.arrives("my workspace", |url| url.ends_with("/instance")).await?;
        by_hand::enter(browser, self.stack, &self.bob.slug).await?;
        browser.find("#no-provider").await?;
        let disabled = browser.script("return document.getElementById('send').disabled").await?;
        ensure!(disabled == true, "one can send to nobody");
        Ok(())
    }

    async fn bob_onboards_later(&self, browser: &Browser) -> anyhow::Result<()> {
        browser.open(&format!("{}/instance", self.stack.portal())).await?;
        browser.click("#provider-first").await?;
        browser.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await?;
        by_hand::fill_provider(browser, self.good(&self.bob, CHAT)).await?;
        by_hand::save_provider(browser).await?;
        by_hand::enter(browser, self.stack, &self.bob.slug).await
    }

    /// Signing out ends the workspace's session too; signing in leads back into it, and everything is there.
    pub async fn out_and_in(&self, browser: &Browser, person: &Person, shown: &str) -> anyhow::Result<()> {
        let origin = self.stack.origin(&person.slug);
        by_hand::sign_out(browser, self.stack).await?;
        wait::until("the workspace's session is over", Duration::from_secs(20), || async {
            browser.open(&format!("{origin}/")).await?;
            anyhow::Ok(browser.url().await?.starts_with(&format!("{}/login", self.stack.portal())).then_some(()))
        })
        .await?;
        by_hand::sign_in(browser, &person.email, &person.password).await?;
        browser.arrives("the workspace", |url| url.strip_prefix(&origin).is_some_and(|path| path == "/")).await?;
        // The chat is there again.
        let first = browser.find("#chat-list a").await?;
        first.click().await?;
        browser.sees(shown).await.context("the chat is not there again")
    }

    /// Messages that a person must understand, in the language of their browser.
    pub async fn refusals(&self, browsers: &Browsers) -> anyhow::Result<()> {
        for (languages, wrong, taken, email_taken) in [
            (
                "en",
                "The name or the password is wrong",
                "This name is taken",
                "account with this e-mail address already",
            ),
            ("zh-CN,zh", "名称或密码不正确", "这个名称已被使用", "这个邮箱已注册过账号"),
        ] {
            let browser = Browser::start(languages).await?;
            browser.open(&format!("{}/login", self.stack.portal())).await?;
            by_hand::sign_in(&browser, &self.alice.slug, "not her password at all").await?;
            browser.sees(wrong).await?;
            let same_name = Person { email: "other@example.com".into(), ..self.alice.clone() };
            by_hand::fill_sign_up(&browser, self.stack, &same_name).await?;
            browser.sees(taken).await?;
            let same_email = Person { slug: "somebody-else".into(), ..self.alice.clone() };
            by_hand::fill_sign_up(&browser, self.stack, &same_email).await?;
            browser.sees(email_taken).await?;
            browser.close().await?;
        }
        // The language can be switched by hand, and is remembered.
        browsers.alice.open(&format!("{}/instance", self.stack.portal())).await?;
        for (button, lang) in [("zh-CN", "zh-Hans"), ("en", "en")] {
            browsers.alice.click(&format!("form[action='/language'] button[value='{button}']")).await?;
            let is = async || browsers.alice.script("return document.documentElement.lang").await;
            wait::until("the language changes", Duration::from_secs(10), || async {
                anyhow::Ok((is().await? == lang).then_some(()))
            })
            .await?;
            browsers.alice.client().refresh().await?;
            ensure!(is().await? == lang, "the choice of {lang} is forgotten");
        }
        Ok(())
    }
}

/// What a bad provider is said to be.
#[derive(Clone, Copy)]
struct Bad {
    key: &'static str,
    model: &'static str,
    unreachable: &'static str,
    refused: &'static str,
}

const EN: Bad = Bad {
    key: "The key is not accepted",
    model: "There is no such model",
    unreachable: "The address cannot be reached",
    refused: "This address is not allowed",
};
const ZH: Bad =
    Bad {
        key: "密钥无效", model: "没有这个模型", unreachable: "无法连接该地址", refused: "不允许访问该地址"
    };

/// A stack's egress rule for a provider on loopback.
pub fn loopback_rule(base_url: &str) -> String {
    base_url.trim_start_matches("http://").trim_end_matches("/v1").to_owned()
}

/// Waits until every service answers again after one was restarted.
pub async fn answers_again(stack: &Stack, slug: &str) -> anyhow::Result<()> {
    let (portal, workspace) = (format!("{}/login", stack.portal()), format!("{}/assets/style.css", stack.origin(slug)));
    wait::until("portal and workspace answer", Duration::from_secs(90), || async {
        let status = stack.beaver(&["status"]).await?;
        ensure!(status.status.success(), "status: {}", String::from_utf8_lossy(&status.stdout));
        let mut web = beaver_tests::web::Web::new("en")?;
        let (portal, workspace) = (web.peek(&portal).await?, web.peek(&workspace).await?);
        ensure!(portal.status == 200, "the portal answers {}", portal.status);
        ensure!(workspace.status == 200, "the workspace answers {}", workspace.status);
        Ok(Some(()))
    })
    .await
}
