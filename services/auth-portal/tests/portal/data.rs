//! Taking one's data along, putting it back, deleting the workspace and taking that back.

use contracts::deploy::{Deletion, Desired, Phase};
use http::Request;

use crate::{alice, browser::Browser, fakes::House};

#[tokio::test]
async fn deleting_asks_for_the_name_and_can_be_taken_back() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    assert!(browser.get("/instance").await.body.contains("href=\"/instance/data\""));
    browser.get("/instance/data").await.shows("Type the name of your workspace: alice");
    for wrong in ["", "alicf", "ALICE"] {
        let page = browser.post("/instance/delete", &[("slug", wrong)]).await;
        assert_eq!(page.status.as_u16(), 422, "{wrong:?}");
        page.shows("This is not the name of your workspace");
        assert_eq!(page.value("slug").as_deref(), Some(wrong), "what was typed stays");
    }
    browser.clone().chinese().post("/instance/delete", &[("slug", "x")]).await.shows("这不是你的工作区名称");
    assert_eq!(house.deploy.only().deletion, None);

    let page = browser.post("/instance/delete", &[("slug", " alice ")]).await;
    assert_eq!(page.location.as_deref(), Some("/instance"));
    let page = browser.get("/instance").await;
    page.shows("Nobody can reach it any more");
    page.shows("You can take this back, and download your data, until 2026-11-25");
    for gone in ["id=\"open\"", "id=\"start\"", "id=\"retry\"", "id=\"stop\"", "id=\"provider", "/instance/data"] {
        assert!(!page.body.contains(gone), "{gone}: {}", page.body);
    }
    assert!(page.body.contains("href=\"/instance/export\""));
    browser.clone().chinese().get("/instance").await.shows("撤销删除");
    assert_eq!(browser.get("/instance/data").await.location.as_deref(), Some("/instance"));

    assert_eq!(browser.post("/instance/undelete", &[]).await.location.as_deref(), Some("/instance"));
    assert_eq!(house.deploy.only().desired, Desired::Running);
    // Gone for good: no way back is shown.
    house.deploy.change(
        |instance| {
            (instance.desired, instance.phase) = (Desired::Deleted, Phase::Deleted);
            instance.deletion = Some(Deletion { asked_at_ms: 1, data_until_ms: 2 });
        },
        &[],
    );
    let page = browser.get("/instance").await;
    page.shows("gone for good");
    assert!(page.body.contains("href=\"/instance/new\""));
    browser.get("/instance/new").await.shows("Make a new workspace");
    house.authz.refuse(("/portal/new-instance", 409, "slug_taken", Some("slug"), None));
    let taken = browser.post("/instance/new", &[("slug", "bob")]).await;
    assert_eq!((taken.status.as_u16(), taken.value("slug").as_deref()), (409, Some("bob")));
    taken.shows("This name is taken");
    assert!(!page.body.contains("undelete") && !page.body.contains("/instance/export"), "{}", page.body);
}

#[tokio::test]
async fn data_comes_as_a_file_and_goes_back_as_one() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let page = browser.get("/instance/export").await;
    assert_eq!((page.status.as_u16(), page.body.as_str()), (200, "an archive, whole"));
    assert_eq!(page.headers["content-type"], "application/x-tar");
    assert_eq!(page.headers["content-disposition"], "attachment; filename=\"beaver-alice.tar\"");
    house.deploy.inner.lock().cut_export = true;
    let cut = browser.raw(Request::get("/instance/export"), String::new()).await;
    let began = cut.status() == 200;
    let ended = axum::body::to_bytes(cut.into_body(), 1 << 20).await.is_ok();
    assert!(!(began && ended), "what breaks off is no end");

    let content = "x".repeat(200_000);
    let page = browser.upload("/instance/restore", &content).await;
    assert_eq!(page.location.as_deref(), Some("/instance"), "{}", page.body);
    let account = house.deploy.only().account_id.to_string();
    assert_eq!(house.deploy.inner.lock().restored, [(account, content.into_bytes())]);

    for (refusal, said) in [
        ((422, "archive_broken", "detail"), "This is not a file of a workspace"),
        (
            (422, "archive_entry", "data/../x: its path has .. in it"),
            "not acceptable, so nothing was changed: data/../x",
        ),
        ((422, "archive_too_large", "detail"), "more in this file than the workspace may have"),
        ((409, "archive_under_way", "detail"), "on its way already"),
    ] {
        house.deploy.inner.lock().refuse_archive = Some(refusal);
        let page = browser.upload("/instance/restore", "x").await;
        assert_eq!(page.status.as_u16(), refusal.0, "{refusal:?}");
        page.shows(said);
    }
    house.deploy.inner.lock().refuse_archive = Some((422, "archive_entry", "data/x: it is a device"));
    browser.clone().chinese().upload("/instance/restore", "x").await.shows("文件中有不能接受的内容");
    assert_eq!(browser.post("/instance/restore", &[("file", "x")]).await.status.as_u16(), 400, "no such form");
    assert_eq!(house.deploy.inner.lock().restored.len(), 1);
}

#[tokio::test]
async fn nobody_elses_page_and_nobody_without_a_session_does_any_of_it() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    let mut stranger = Browser::new(&house);
    for path in ["/instance/data", "/instance/export"] {
        assert_eq!(stranger.get(path).await.location.as_deref(), Some("/login"), "{path}");
    }
    assert_eq!(stranger.upload("/instance/restore", "x").await.location.as_deref(), Some("/login"));
    assert_eq!(stranger.post("/instance/delete", &[("slug", "alice")]).await.location.as_deref(), Some("/login"));
    browser.headers = vec![("origin", "http://alice.localhost:8088".into()), ("sec-fetch-site", "same-site".into())];
    assert_eq!(browser.upload("/instance/restore", "x").await.status.as_u16(), 403);
    assert_eq!(browser.post("/instance/delete", &[("slug", "alice")]).await.status.as_u16(), 403);
    assert_eq!(browser.post("/instance/undelete", &[]).await.status.as_u16(), 403);
    assert!(house.deploy.inner.lock().restored.is_empty() && house.deploy.only().deletion.is_none());
}
