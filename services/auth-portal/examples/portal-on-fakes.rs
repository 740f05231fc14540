//! The portal on stand-ins for the other services, for looking at its pages:
//! `cargo run -p auth-portal --example portal-on-fakes`, then http://localhost:3081.
//!
//! A new workspace comes up by itself, a step every second and a half; a name that begins with `fail` fails half way and has
//! written why, one that begins with `slow` stays in the middle; one that begins with `roll` does not come up with any
//! provider, and one that begins with `long` has a long history. The operator's link is printed.

#[path = "../tests/fakes/mod.rs"]
mod fakes;

use std::time::Duration;

use contracts::{
    deploy::{EventCode, Instance, InstanceError, Phase},
    provider::TestOutcome,
};
use fakes::{House, authz::OPERATOR_TOKEN, deploy::Deploy};
use service::Shutdown;
use tokio::{net::TcpListener, time::sleep};

/// A line as long as programs write them.
const WROTE: &str =
    "thread 'main' panicked at src/main.rs:118:27: called `Result::unwrap()` on an `Err` value: Os { code: 13 }";

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "3081".into());
    let house = House::with(&[("BEAVER_PORTAL_URL", &format!("http://localhost:{port}"))]).await;
    house.workspace.finds(TestOutcome::BadKey, Some("Incorrect API key provided: sk-…1234."));
    tokio::spawn(bring_up(house.deploy.clone()));
    println!("http://localhost:{port}  operator: http://localhost:{port}/operator/setup?token={OPERATOR_TOKEN}");
    let stop = Shutdown::new();
    tokio::spawn(service::run::stop_on_signal(stop.clone()));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("the port is free");
    service::serve(listener, house.router.clone(), stop).await.expect("serving");
}

async fn bring_up(deploy: Deploy) {
    loop {
        sleep(Duration::from_millis(1500)).await;
        let all: Vec<Instance> = deploy.inner.lock().instances.values().map(|(instance, _)| instance.clone()).collect();
        for instance in all {
            let (id, name) = (instance.id, instance.slug.as_str());
            let configuring = instance.config_generation > instance.applied_config_generation;
            let step = |phase, events: &[EventCode]| deploy.change_where(|i| i.id == id, |i| i.phase = phase, events);
            let settle = |error: Option<InstanceError>, event: (EventCode, Option<&str>)| {
                let with = |i: &mut Instance| {
                    i.applied_config_generation = i.config_generation;
                    i.error.clone_from(&error);
                };
                deploy.write(|i| i.id == id, with, &[event], "beaver");
            };
            let wrote = || vec!["reading /data/settings.json".into(), "no such model: <none>".into(), WROTE.into()];
            match instance.phase {
                Phase::Accepted => step(Phase::Preparing, &[]),
                Phase::Preparing => step(Phase::Creating, &[EventCode::Prepared]),
                Phase::Creating => step(Phase::Starting, &[EventCode::Created]),
                Phase::Starting if name.starts_with("slow") => {}
                Phase::Starting if name.starts_with("fail") => {
                    step(Phase::Failed, &[]);
                    let error = InstanceError { code: "crash_loop".into(), log: wrote(), ..InstanceError::default() };
                    settle(Some(error), (EventCode::Failed, Some("crash_loop")));
                }
                Phase::Starting => step(Phase::Registering, &[EventCode::Started, EventCode::Healthy]),
                Phase::Registering => {
                    step(Phase::Ready, &[EventCode::Registered, EventCode::Ready]);
                    if name.starts_with("long") {
                        live_through(&deploy, &instance);
                    }
                }
                Phase::Stopping => step(Phase::Stopped, &[EventCode::Stopped]),
                Phase::Ready if configuring && name.starts_with("roll") => {
                    let error = InstanceError {
                        code: "config_not_accepted".into(),
                        cause: Some("not_healthy_in_time".into()),
                        log: wrote(),
                        ..InstanceError::default()
                    };
                    settle(Some(error), (EventCode::ConfigRolledBack, Some("1 not_healthy_in_time")));
                }
                Phase::Ready if configuring => settle(None, (EventCode::ConfigApplied, Some("1"))),
                _ => {}
            }
        }
    }
}

/// A little of everything, several pages of it.
fn live_through(deploy: &Deploy, instance: &Instance) {
    let (you, until) = (instance.account_id.to_string(), (instance.created_at_ms + 604_800_000).to_string());
    let of = |i: &Instance| i.id == instance.id;
    for _ in 0..12 {
        for (actor, code, detail) in [
            (&*you, EventCode::RestartRequested, None),
            ("beaver", EventCode::AttemptFailed, Some("not_healthy_in_time")),
            ("beaver", EventCode::Ready, None),
            ("beaver", EventCode::EgressRefused, Some("10.0.0.1:80 address")),
            ("beaver", EventCode::RenewalBegun, Some("release 4f2a91bc0d3e")),
            ("beaver", EventCode::Upgraded, Some("4f2a91bc0d3e")),
            ("beaver", EventCode::ReleaseRolledBack, Some("9c01d2e3f4a5 crash_loop")),
            ("operator", EventCode::PlanRequested, Some("notes")),
            (&you, EventCode::DeleteRequested, Some(&until)),
            ("operator", EventCode::UndeleteRequested, None),
        ] {
            deploy.write(of, |_| {}, &[(code, detail)], actor);
        }
    }
}
