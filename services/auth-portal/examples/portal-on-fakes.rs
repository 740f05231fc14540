//! The portal on stand-ins for the other services, for looking at its pages:
//! `cargo run -p auth-portal --example portal-on-fakes`, then http://localhost:3081.
//!
//! A new workspace comes up by itself, a step every second and a half; a name that begins with `fail` fails half way,
//! one that begins with `slow` stays in the middle; one that begins with `roll` takes no provider. The operator's link is printed.

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
            let settle = |error: Option<&str>, events: &[EventCode]| {
                let with = |i: &mut Instance| {
                    i.applied_config_generation = i.config_generation;
                    i.error = error.map(|code| InstanceError { code: code.into(), detail: String::new() });
                };
                deploy.change_where(|i| i.id == id, with, events);
            };
            match instance.phase {
                Phase::Accepted => step(Phase::Preparing, &[]),
                Phase::Preparing => step(Phase::Creating, &[EventCode::Prepared]),
                Phase::Creating => step(Phase::Starting, &[EventCode::Created]),
                Phase::Starting if name.starts_with("slow") => {}
                Phase::Starting if name.starts_with("fail") => {
                    step(Phase::Failed, &[EventCode::Failed]);
                    settle(Some("not_healthy_in_time"), &[]);
                }
                Phase::Starting => step(Phase::Registering, &[EventCode::Started, EventCode::Healthy]),
                Phase::Registering => step(Phase::Ready, &[EventCode::Registered, EventCode::Ready]),
                Phase::Stopping => step(Phase::Stopped, &[EventCode::Stopped]),
                Phase::Ready if configuring && name.starts_with("roll") => {
                    settle(Some("config_not_accepted"), &[EventCode::ConfigRolledBack]);
                }
                Phase::Ready if configuring => settle(None, &[EventCode::ConfigApplied]),
                _ => {}
            }
        }
    }
}
