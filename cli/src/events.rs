//! `beaver events`: what happened to a workspace, and who did it.

use contracts::{
    AccountId,
    deploy::{By, Event, EventList},
};
use serde::{Deserialize, Serialize};
use service::{CallError, ServiceClient};
use settings::Env;

use crate::{
    Exit,
    args::{Events, Place},
    ask,
    stack::{self, Project, Stack},
    status::{table, word},
    text,
    ui::{Ui, harmless},
};

/// What deploy-control says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// What happened to the instance of this person, oldest first.
    Listed { owner: AccountId, events: Vec<Event> },
    /// Nothing, for this reason.
    Refused(String),
}

/// Prints a workspace's last events, or those before one of them, oldest first.
///
/// # Errors
/// When the services cannot be asked.
pub async fn events(place: &Place, options: &Events, ui: &Ui) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let slug = options.workspace.as_str();
    let (last, before) = (options.last.to_string(), options.before.map(|before| before.to_string()));
    let mut arguments = vec!["events-from-inside", slug, "--last", &last];
    if let Some(before) = &before {
        arguments.extend(["--before", before]);
    }
    match ask::either(&stack, async |env| tell(&env, options).await, &arguments).await? {
        Said::Listed { owner, events } => {
            if events.is_empty() {
                ui.line(text!(ui, "there are no older events", "没有更早的事件"));
            } else {
                println!("{}", lines(&events, owner));
            }
            // An instance's events are counted from 1.
            if let Some(first) = events.first().map(|event| event.seq).filter(|seq| *seq > 1) {
                ui.line(text!(
                    ui,
                    "older ones: beaver events {slug} --last {last} --before {first}",
                    "更早的事件:beaver events {slug} --last {last} --before {first}"
                ));
            }
            Ok(Exit::Ok)
        }
        Said::Refused(why) => {
            ui.line(format!("✗ {why}"));
            Ok(Exit::Failed)
        }
    }
}

/// `beaver events-from-inside`: the same from inside the services' network, answered as JSON.
///
/// # Errors
/// When a setting is unusable or deploy-control does not answer.
pub async fn from_inside(options: &Events) -> anyhow::Result<Exit> {
    println!("{}", serde_json::to_string(&tell(&Env::from_process().with_files()?, options).await?)?);
    Ok(Exit::Ok)
}

async fn tell(env: &Env, options: &Events) -> anyhow::Result<Said> {
    let token = env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?;
    let deploy = ServiceClient::new("deploy-control", env.url("BEAVER_DEPLOY_URL")?, token);
    let all = ask::all(&deploy).await?;
    let instance = match ask::named(&all, &options.workspace) {
        Ok(instance) => instance,
        Err(refused) => return Ok(Said::Refused(refused.to_string())),
    };
    let before = options.before.map(|before| format!("&before={before}")).unwrap_or_default();
    let path = format!("/api/instances/{}/events?by={}&last={}{before}", instance.id, By::Operator, options.last);
    match deploy.get::<EventList>(&path).await {
        Ok(list) => Ok(Said::Listed { owner: instance.account_id, events: list.events }),
        Err(CallError::Refused { problem, .. }) if problem.status < 500 => Ok(Said::Refused(problem.detail)),
        Err(error) => Err(error.into()),
    }
}

/// A line an event: when, who, what, and more of it. A detail may be what the workspace's program chose.
fn lines(events: &[Event], owner: AccountId) -> String {
    let owner = owner.to_string();
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            let who = if event.actor == owner { "owner" } else { &event.actor };
            let detail = event.detail.as_deref().map(harmless).unwrap_or_default();
            [clock::rfc3339(event.at_ms), harmless(who), word(&event.code), detail]
        })
        .collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use contracts::deploy::EventCode;

    use super::*;

    #[test]
    fn every_event_is_a_line_whatever_is_in_it() {
        let owner: AccountId = "a-0198f000000070008000000000000001".parse().unwrap();
        let event = |seq, code, actor: &str, detail: Option<&str>| Event {
            seq,
            at_ms: 1_795_000_000_000 + seq * 1000,
            code,
            actor: actor.into(),
            detail: detail.map(Into::into),
        };
        let events = [
            event(7, EventCode::StopRequested, &owner.to_string(), None),
            event(8, EventCode::PlanRequested, "operator", Some("notes")),
            event(9, EventCode::ConfigRolledBack, "beaver", Some("3 not_healthy_in_time")),
            event(10, EventCode::EgressRefused, "beaver", Some("a\u{1b}[2J\nb:80 denied")),
        ];
        assert_eq!(
            lines(&events, owner),
            "2026-11-18T11:06:47.000Z  owner     stop_requested\n\
             2026-11-18T11:06:48.000Z  operator  plan_requested      notes\n\
             2026-11-18T11:06:49.000Z  beaver    config_rolled_back  3 not_healthy_in_time\n\
             2026-11-18T11:06:50.000Z  beaver    egress_refused      a\u{fffd}[2J\u{fffd}b:80 denied"
        );
    }

    #[test]
    fn what_a_container_answers_is_understood() {
        let owner: AccountId = "a-0198f000000070008000000000000001".parse().unwrap();
        let said = Said::Listed { owner, events: vec![] };
        let line = serde_json::to_string(&said).unwrap();
        let found = ask::answer::<Said>(&format!("pulling\n{line}\n")).unwrap();
        assert!(matches!(found, Said::Listed { owner: its, events } if its == owner && events.is_empty()));
    }
}
