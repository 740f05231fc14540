//! The portal as a browser meets it, on stand-ins for the other services.

mod account;
mod browser;
mod data;
mod everywhere;
#[path = "../fakes/mod.rs"]
mod fakes;
mod history;
mod html;
mod open;
mod operator;
mod own_account;
mod provider;
mod traffic;
mod workspace;

/// A password that passes what the portal itself checks.
const PASSWORD: &str = "correct horse battery";

/// Signs a person up and brings the workspace up.
async fn alice(house: &fakes::House) -> browser::Browser {
    let mut browser = browser::Browser::new(house);
    let page = browser.register("alice", "alice@example.com", PASSWORD).await;
    assert_eq!((page.status.as_u16(), page.location.as_deref()), (303, Some("/progress")));
    house.deploy.ready();
    browser
}
