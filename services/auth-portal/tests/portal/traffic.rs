//! What "my workspace" says of the workspace's way out.

use contracts::egress::{EgressRefusal, EgressUsage};

use crate::{PASSWORD, alice, browser::Browser, fakes::House};

const AT: i64 = 1_795_000_000_000;

fn refusal(target: &str, reason: &str, count: u64) -> EgressRefusal {
    EgressRefusal { target: target.into(), code: "egress_refused".into(), reason: reason.into(), count, at_ms: AT }
}

fn usage(house: &House) -> EgressUsage {
    EgressUsage {
        instance_id: house.deploy.only().id,
        since_ms: AT,
        bytes_out: 1_234_567,
        bytes_in: 98_765_432_100,
        connections: 7,
        open_connections: 3,
        connection_limit: 256,
        bytes_per_second_limit: None,
        refused: 42,
        refusals: vec![
            refusal("10.0.0.1:80", "address", 3),
            refusal("<b>x</b>.test:443", "denied", 1),
            refusal("new.test:1", "brand_new", 1),
            refusal("four.test:4", "not_listed", 1),
            refusal("five.test:5", "number", 1),
            refusal("six.test:6", "denied", 1),
        ],
    }
}

#[tokio::test]
async fn what_the_workspace_sent_received_and_was_refused_is_on_its_page() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.workspace.inner.lock().usage = Some(usage(&house));
    let page = browser.get("/instance").await;
    assert_eq!(page.status.as_u16(), 200);
    for text in [
        "Everything is fine",
        "Internet use",
        "1.2 MB",
        "98.7 GB",
        "3 / 256",
        "42",
        "10.0.0.1:80",
        "such as a private one (3 times)",
        "<b>x</b>.test:443",
        "The operator blocks it",
        "Not let out",
        "five.test:5",
    ] {
        page.shows(text);
    }
    assert!(!page.text().contains("six.test"), "the latest ones only");
    assert!(!page.body.contains("<b>x</b>"), "what the workspace wrote is no markup");
    let chinese = browser.clone().chinese().get("/instance").await;
    for text in ["网络使用", "98.7 GB", "指向不放行的地址，例如内网地址 （3 次）", "被管理员禁止"]
    {
        chinese.shows(text);
    }
    assert!(!browser.get("/progress").await.text().contains("Internet use"));
}

#[tokio::test]
async fn nobody_is_shown_anybody_elses() {
    let house = House::new().await;
    let mut alice = alice(&house).await;
    let hers = usage(&house);
    house.workspace.inner.lock().usage = Some(hers.clone());
    let mut bob = Browser::new(&house);
    bob.register("bob", "bob@example.com", PASSWORD).await;
    let page = bob.get("/instance").await;
    page.shows("It is waiting for its turn");
    assert!(!page.text().contains("Internet use") && !page.text().contains("10.0.0.1"), "{}", page.text());
    for (path, whose) in [("/instance?id=", &mut bob), ("/instance?instance_id=", &mut alice)] {
        whose.get(&format!("{path}{}", hers.instance_id)).await.shows("My workspace");
    }
    let asked = house.workspace.inner.lock().asked.clone();
    assert_eq!(asked.len(), 3);
    assert!(asked[0] == asked[1] && asked[0] != hers.instance_id && asked[2] == hers.instance_id, "{asked:?}");
}

#[tokio::test]
async fn a_router_that_does_not_answer_leaves_the_page_whole() {
    let house = House::new().await;
    let mut browser = alice(&house).await;
    house.workspace.inner.lock().usage = Some(usage(&house));
    for (away, silent) in [(true, false), (false, true)] {
        {
            let mut inner = house.workspace.inner.lock();
            (inner.away, inner.silent) = (away, silent);
        }
        let page = browser.get("/instance").await;
        assert_eq!(page.status.as_u16(), 200);
        page.shows("Everything is fine");
        page.shows("Recent events");
        assert!(!page.text().contains("Internet use"), "{}", page.text());
    }
    // The control: it is there again.
    house.workspace.inner.lock().silent = false;
    browser.get("/instance").await.shows("Internet use");
}
