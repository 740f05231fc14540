//! People, and what they do at the portal: without JavaScript ([`Web`]) and in a browser.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;

use crate::{
    browser::Browser,
    provider::{CHAT, GOOD_KEY},
    stack::Places,
    wait,
    web::{Page, Web},
};

/// How long a workspace may take to be made or changed.
const BRING_UP: Duration = Duration::from_secs(90);

/// Somebody with secrets that are found wherever they leak to.
#[derive(Debug, Clone)]
pub struct Person {
    /// The name, which is the workspace's.
    pub slug: String,
    /// The e-mail address.
    pub email: String,
    /// The password.
    pub password: String,
    /// The provider's key, a good one.
    pub key: String,
}

/// Everybody there is in this process.
static EVERYBODY: Mutex<Vec<Person>> = Mutex::new(Vec::new());

impl Person {
    /// A person of that name; password and key are new in every run.
    pub fn new(slug: &str) -> Self {
        let entropy = clock::Entropy::system();
        let person = Self {
            slug: slug.into(),
            email: format!("{slug}@example.com"),
            password: format!("{} of {slug}", entropy.token()),
            key: format!("{GOOD_KEY}{}", entropy.token()),
        };
        EVERYBODY.lock().unwrap_or_else(PoisonError::into_inner).push(person.clone());
        person
    }

    /// Everybody so far, of every run in this process: what must leak from none of them.
    pub fn everybody() -> Vec<Self> {
        EVERYBODY.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a person gives as their provider.
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a> {
    /// Where it is.
    pub base_url: &'a str,
    /// The model.
    pub model: &'a str,
    /// The key.
    pub key: &'a str,
}

/// Signing up and all that follows, by forms alone.
pub mod by_form {
    use super::*;

    /// Sends the sign-up form; the page after it.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn sign_up(web: &mut Web, stack: &Places, person: &Person) -> anyhow::Result<Page> {
        let form = format!("{}/register", stack.portal());
        let key = web.open(&form).await?.expect(200)?.hidden("key").context("the form has no key")?;
        let Person { slug, email, password, .. } = person;
        web.submit(&form, &[("slug", slug), ("email", email), ("password", password), ("key", &key)]).await
    }

    /// Whether the progress page goes on.
    ///
    /// # Errors
    /// When it is neither that nor a page that waits.
    pub async fn is_ready(web: &mut Web, stack: &Places) -> anyhow::Result<bool> {
        let page = web.open(&format!("{}/progress", stack.portal())).await?;
        anyhow::ensure!(page.status == 200 || page.status == 503, "{} {}", page.status, page.text);
        Ok(page.status == 200 && page.url.path() != "/progress")
    }

    /// Waits on the progress page until it goes on.
    ///
    /// # Errors
    /// When the workspace does not come up.
    pub async fn ready(web: &mut Web, stack: &Places) -> anyhow::Result<()> {
        wait::until("the workspace is ready", BRING_UP, || {
            let mut web = web.clone();
            async move { is_ready(&mut web, stack).await.map(|ready| ready.then_some(())) }
        })
        .await
    }

    /// The whole way: signs up, waits for the workspace, and gives the fake provider at `base_url`, with this person's key.
    ///
    /// # Errors
    /// When a step of it fails.
    pub async fn settle(stack: &Places, person: &Person, base_url: &str) -> anyhow::Result<Web> {
        let mut web = Web::new("en")?;
        sign_up(&mut web, stack, person).await?.expect(200)?;
        ready(&mut web, stack).await?;
        provide(&mut web, stack, Provider { base_url, model: CHAT, key: &person.key }).await?;
        Ok(web)
    }

    /// Gives the provider and waits until it is in force.
    ///
    /// # Errors
    /// When it is refused or does not come into force.
    pub async fn provide(web: &mut Web, stack: &Places, provider: Provider<'_>) -> anyhow::Result<()> {
        let Provider { base_url, model, key } = provider;
        let fields = [
            ("kind", "openai-compatible"),
            ("base_url", base_url),
            ("model", model),
            ("api_key", key),
            ("action", "save"),
        ];
        let page = web.submit(&format!("{}/onboarding", stack.portal()), &fields).await?.expect(200)?;
        anyhow::ensure!(page.url.path() == "/applying", "the provider was not taken: {}", page.text);
        let applying = page.url.to_string();
        wait::until("the provider is in force", BRING_UP, || {
            let (mut web, applying) = (web.clone(), applying.clone());
            async move {
                let page = web.open(&applying).await?.expect(200)?;
                Ok::<_, anyhow::Error>(page.text.contains("id=\"open\"").then_some(()))
            }
        })
        .await
    }

    /// Into the workspace; its page.
    ///
    /// # Errors
    /// When the way does not lead there.
    pub async fn enter(web: &mut Web, stack: &Places, slug: &str) -> anyhow::Result<Page> {
        let origin = stack.origin(slug);
        let page = web.open(&format!("{origin}/auth/start?rd=%2F")).await?.expect(200)?;
        anyhow::ensure!(page.url.origin().ascii_serialization() == origin, "the way ends at {}", page.url);
        Ok(page)
    }

    /// Signs in; the page after it.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn sign_in(web: &mut Web, stack: &Places, login: &str, password: &str) -> anyhow::Result<Page> {
        web.submit(&format!("{}/login", stack.portal()), &[("login", login), ("password", password)]).await
    }
}

/// The same in a browser.
pub mod by_hand {
    use super::*;

    /// Fills in the sign-up form and sends it.
    ///
    /// # Errors
    /// When the form is not as it must be.
    pub async fn fill_sign_up(browser: &Browser, stack: &Places, person: &Person) -> anyhow::Result<()> {
        browser.open(&format!("{}/register", stack.portal())).await?;
        browser.fill("#slug", &person.slug).await?;
        browser.fill("#email", &person.email).await?;
        browser.fill("#password", &person.password).await?;
        browser.click("form[action='/register'] button[type=submit]").await
    }

    /// Signs up and follows the progress to its end.
    ///
    /// # Errors
    /// When the workspace does not come up.
    pub async fn sign_up(browser: &Browser, stack: &Places, person: &Person) -> anyhow::Result<()> {
        fill_sign_up(browser, stack, person).await?;
        browser.arrives("the progress page", |url| url.ends_with("/progress") || url.ends_with("/onboarding")).await?;
        browser.arrives("the choice of a provider", |url| url.ends_with("/onboarding")).await?;
        Ok(())
    }

    /// Fills in the provider's form.
    ///
    /// # Errors
    /// When the form is not as it must be.
    pub async fn fill_provider(browser: &Browser, provider: Provider<'_>) -> anyhow::Result<()> {
        browser.click("label.choice:has(input[value='openai-compatible'])").await?;
        browser.fill("#base_url", provider.base_url).await?;
        browser.fill("#model", provider.model).await?;
        browser.fill("#api_key", provider.key).await
    }

    /// Presses “test”; what it finds, good or bad.
    ///
    /// # Errors
    /// When nothing is found in time.
    pub async fn test_provider(browser: &Browser) -> anyhow::Result<(bool, String)> {
        browser.script("document.getElementById('finding').replaceChildren()").await?;
        browser.click("button[name=action][value=test]").await?;
        let finding = browser.find("#finding .notice.good, #finding .notice.bad").await?;
        let good = finding.attr("class").await?.unwrap_or_default().contains("good");
        Ok((good, finding.text().await?))
    }

    /// Saves it and waits until it is in force.
    ///
    /// # Errors
    /// When it does not come into force.
    pub async fn save_provider(browser: &Browser) -> anyhow::Result<()> {
        browser.click("button[name=action][value=save]").await?;
        browser.arrives("the page that applies it", |url| url.ends_with("/applying")).await?;
        browser.find("#open").await?;
        Ok(())
    }

    /// From the portal into the workspace.
    ///
    /// # Errors
    /// When the way does not lead there.
    pub async fn enter(browser: &Browser, stack: &Places, slug: &str) -> anyhow::Result<()> {
        let origin = stack.origin(slug);
        browser.click("#open").await?;
        browser.arrives("the workspace", |url| url.strip_prefix(&origin).is_some_and(|path| path == "/")).await?;
        Ok(())
    }

    /// Signs out of the portal.
    ///
    /// # Errors
    /// When there is no way to.
    pub async fn sign_out(browser: &Browser, stack: &Places) -> anyhow::Result<()> {
        browser.open(&format!("{}/instance", stack.portal())).await?;
        browser.click("details.menu summary").await?;
        browser.click("form[action='/logout'] button").await?;
        browser.arrives("the page that says so", |url| url.ends_with("/login?signed_out=1")).await?;
        Ok(())
    }

    /// Signs in, wherever the form is shown.
    ///
    /// # Errors
    /// When the form is not as it must be.
    pub async fn sign_in(browser: &Browser, login: &str, password: &str) -> anyhow::Result<()> {
        browser.fill("#login", login).await?;
        browser.fill("#password", password).await?;
        browser.click("form[action='/login'] button[type=submit]").await
    }

    /// Says something in the workspace's chat.
    ///
    /// # Errors
    /// When the page is not as it must be.
    pub async fn say(browser: &Browser, message: &str) -> anyhow::Result<()> {
        browser.fill("#message", message).await?;
        browser.click("#send").await
    }

    /// What the last answer says so far.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn answer(browser: &Browser) -> anyhow::Result<String> {
        let last = "const all = document.querySelectorAll('#log article.assistant .text');
                    return all.length ? all[all.length - 1].textContent : ''";
        Ok(browser.script(last).await?.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the last answer is exactly this.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn answered(browser: &Browser, expected: &str) -> anyhow::Result<()> {
        let there = wait::until(format!("the answer is “{expected}”"), Duration::from_secs(30), || async {
            let answer = answer(browser).await?;
            anyhow::ensure!(answer == expected, "it is “{answer}”");
            Ok(Some(()))
        });
        match there.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(browser.describe().await)),
        }
    }
}
