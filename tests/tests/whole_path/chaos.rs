//! A short walk of `bench chaos`: people do what people do while everything that they depend on is broken.

use anyhow::ensure;
use beaver_tests::{
    chaos::{Ground, Violation, Walk, walk},
    engine,
    steps::Steps,
};

use crate::report;

#[tokio::test(flavor = "multi_thread")]
async fn a_short_walk_under_faults() {
    if engine::required_or_none("a walk under faults").await.is_none() {
        return;
    }
    let mut ground = Ground::up("walk").await.unwrap();
    let mut steps = Steps::new("chaos");
    // A message that is gone must be found missing, or nothing that is found whole is known to be.
    let plan = Walk { seed: 7, actions: 30, faults: 8, instances: 3, violate: Some(Violation::NoLostMessage) };
    let result = async {
        let outcome = steps.need("30 actions and 8 faults", walk(&mut ground, &plan)).await?;
        let whole = async {
            ensure!(outcome.faults == 8 && outcome.acknowledged > 0, "{outcome:?}");
            ensure!(outcome.violations > 0, "the message that was removed in the end was not missed");
            let others = outcome.violated.iter().filter(|found| !found.starts_with("no_lost_message"));
            ensure!(others.count() == 0, "{:?}", outcome.violated);
            Ok(())
        };
        steps.check("nothing is lost, doubled or mixed but what was removed on purpose", whole).await;
        anyhow::Ok(())
    };
    let result = result.await;
    report(&ground.stack, result.is_err() || steps.failures() > 0).await;
    drop(ground);
    steps.end(result).unwrap();
}
