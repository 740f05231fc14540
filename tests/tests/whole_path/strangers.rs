//! What one person cannot do at another's workspace.

use anyhow::ensure;
use beaver_tests::{
    people::by_form,
    web::{Page, Web},
};
use reqwest::{Method, Url};

use crate::{World, journey};

/// The host of cookies of a workspace.
fn host(slug: &str) -> String {
    format!("{slug}.localhost")
}

/// Nothing of hers is on a page that a stranger got.
fn nothing_of_hers(page: &Page, what: &str) -> anyhow::Result<()> {
    ensure!(!page.text.contains("canary-prompt-alice"), "{what}: her words are on the page {}", page.url);
    ensure!(!page.text.contains("id=\"composer\""), "{what}: her workspace is on the page {}", page.url);
    Ok(())
}

impl World<'_> {
    /// With his cookie, hers copied, or her link.
    pub async fn bob_at_alices(&self) -> anyhow::Result<()> {
        let (stack, her) = (self.stack, &self.alice);
        let origin = stack.origin(&her.slug);
        let mut alice = Web::new("en")?;
        by_form::sign_in(&mut alice, stack, &her.email, &her.password).await?.expect(200)?;
        by_form::enter(&mut alice, stack, &her.slug).await?;
        let mut bob = Web::new("zh-CN")?;
        by_form::sign_in(&mut bob, stack, &self.bob.email, &self.bob.password).await?.expect(200)?;
        by_form::enter(&mut bob, stack, &self.bob.slug).await?;

        // As he is: her address leads him through his portal to nothing.
        for path in ["/", "/settings", "/auth/start?rd=%2F"] {
            let page = bob.open(&format!("{origin}{path}")).await?.expect(404)?;
            ensure!(page.url.as_str().starts_with(&format!("{}/open/", stack.portal())), "he ends at {}", page.url);
            nothing_of_hers(&page, path)?;
        }
        let api = bob.peek(&format!("{origin}/api/chats")).await?;
        ensure!(api.status == 401, "her API answers him {}", api.status);

        // His own workspace's cookies, sent to hers.
        let mut with_his = bob.clone();
        for (name, value) in bob.cookies(&host(&self.bob.slug)) {
            with_his.set_cookie(&host(&her.slug), &name, &value);
        }
        let api = with_his.peek(&format!("{origin}/api/chats")).await?;
        ensure!(api.status == 401, "his session is good for her API: {}", api.status);

        // Hers, at his workspace: they name no session there.
        let mut with_hers = Web::new("en")?;
        for (name, value) in alice.cookies(&host(&her.slug)) {
            with_hers.set_cookie(&host(&self.bob.slug), &name, &value);
        }
        let api = with_hers.peek(&format!("{}/api/chats", stack.origin(&self.bob.slug))).await?;
        ensure!(api.status == 401, "her session is good for his API: {}", api.status);

        // Her link: the code of her sign-in, taken on the way, in his browser, with and without a bind of his own.
        let start = alice.peek(&format!("{origin}/auth/start?rd=%2F")).await?.expect(303)?;
        let open = alice.peek(start.location().expect("a redirect").as_str()).await?.expect(303)?;
        let finish = open.location().expect("a redirect");
        ensure!(finish.query_pairs().any(|(name, _)| name == "code"), "the hand-off leads to {finish}");
        let mut fresh = Web::new("en")?;
        nothing_of_hers(&fresh.open(finish.as_str()).await?.expect(400)?, "her code without a bind")?;
        bob.peek(&format!("{origin}/auth/start?rd=%2F")).await?.expect(303)?;
        nothing_of_hers(&bob.open(finish.as_str()).await?.expect(400)?, "her code with his bind")?;
        // Her bind in his link: his portal does not answer for her workspace.
        nothing_of_hers(&bob.open(start.location().expect("a redirect").as_str()).await?.expect(404)?, "her bind")?;

        // Copied while it is good and used after she has signed out everywhere, her cookie is good for nothing.
        let copied = alice.clone();
        let workspaces = |mut web: Web| {
            let chats = format!("{origin}/api/chats");
            async move { anyhow::Ok(web.peek(&chats).await?.status) }
        };
        ensure!(workspaces(copied.clone()).await? == 200, "the control: before she signs out it is good");
        alice.submit(&format!("{}/logout", stack.portal()), &[]).await?.expect(200)?;
        beaver_tests::wait::until("her copied cookie is dead", std::time::Duration::from_secs(20), || async {
            anyhow::Ok((workspaces(copied.clone()).await? == 401).then_some(()))
        })
        .await?;
        let mut copied = copied;
        let portal = copied.open(&format!("{}/instance", stack.portal())).await?;
        ensure!(portal.url.path() == "/login", "her copied cookie opens {} of the portal", portal.url);
        Ok(())
    }

    /// What is Beaver's own is not on the public edge, and nothing comes from another site.
    pub async fn the_edge(&self) -> anyhow::Result<()> {
        let origin = self.stack.origin(&self.alice.slug);
        let mut nobody = Web::new("en")?;
        for path in ["/api/auth/login", "/api/auth/register", "/api/provider/test", "/readyz", "/metrics"] {
            let url = Url::parse(&format!("{origin}{path}"))?;
            for method in [Method::GET, Method::POST] {
                let request = nobody.request(method.clone(), &url)?.header("x-beaver-internal", "1");
                let page = nobody.once(request, &url).await?;
                ensure!(page.status == 404, "{method} {path} on the public edge answers {}", page.status);
            }
        }
        let nobody_s = nobody.open(&self.stack.origin("nobody-has-this")).await?;
        ensure!(nobody_s.status == 404, "a name that is nobody's answers {}", nobody_s.status);

        let mut alice = Web::new("en")?;
        by_form::sign_in(&mut alice, self.stack, &self.alice.email, &self.alice.password).await?.expect(200)?;
        by_form::enter(&mut alice, self.stack, &self.alice.slug).await?;
        for (url, from) in [
            (format!("{}/instance/stop", self.stack.portal()), self.stack.origin(&self.bob.slug)),
            (format!("{}/logout", self.stack.portal()), origin.clone()),
            (format!("{origin}/settings/keys"), self.stack.origin(&self.bob.slug)),
            (format!("{origin}/api/chats"), self.stack.portal().to_owned()),
        ] {
            let url = Url::parse(&url)?;
            let request =
                alice.request(Method::POST, &url)?.header("origin", &from).header("sec-fetch-site", "same-site");
            let page = alice.once(request.form(&[("name", "x")]), &url).await?;
            ensure!(page.status == 403, "POST {url} from {from} answers {}", page.status);
        }
        journey::answers_again(self.stack, &self.alice.slug).await
    }
}
