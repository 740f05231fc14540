//! What happened to an instance, as its owner is told of it: when, what, who did it, and more where there is more to say.

use std::borrow::Cow;

use contracts::{
    AccountId,
    deploy::{By, EVENT_PAGE, Event, EventCode, EventList},
};

use crate::{Portal, live::events_path, session::Person, texts::Texts, view::utc};

/// How many events "my workspace" shows.
pub const SHOWN: usize = 10;
/// How many a page of older ones shows.
const OLDER: usize = 50;
/// How often deploy-control is asked for one such page at most: there may be many events between two that are told.
const QUESTIONS: usize = 5;

/// Some of the events, the newest first.
pub struct History {
    /// Those that are told.
    pub rows: Vec<Row>,
    /// Before which event older ones are to be asked for; absent when there are none.
    pub older: Option<i64>,
}

/// One event.
pub struct Row {
    /// When.
    pub when: String,
    /// The same, for readers without JavaScript.
    pub shown: String,
    /// What.
    pub text: String,
    /// Who.
    pub who: Cow<'static, str>,
    /// What it is about, where that has a name.
    pub name: Option<String>,
    /// Why.
    pub why: Option<String>,
    /// Until when data is kept: for programs, and for readers without JavaScript.
    pub until: Option<(String, String)>,
}

impl History {
    /// The newest `count` that are told of `events`, which come oldest first and lack none in between.
    pub fn of(events: &[Event], owner: AccountId, count: usize, t: Texts) -> Self {
        let told: Vec<&Event> = events.iter().rev().filter(|event| is_told(event.code)).take(count).collect();
        // When there are fewer, all of `events` has been looked at.
        let last = if told.len() == count { told.last().copied() } else { events.first() };
        Self {
            older: last.map(|event| event.seq).filter(|seq| *seq > 1),
            rows: told.into_iter().map(|event| Row::new(event, owner, t)).collect(),
        }
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.older.is_none()
    }
}

/// What a page of older events shows.
pub struct Past {
    /// The events; absent when they could not be read.
    pub history: Option<History>,
}

impl Past {
    /// Those from before the event `before`.
    pub async fn of(portal: &Portal, person: &Person, before: i64, t: Texts) -> Self {
        let (mut found, mut from) = (Vec::<Event>::new(), before);
        for _ in 0..QUESTIONS {
            let path = events_path(person, "", &format!("last={EVENT_PAGE}&before={from}"));
            let events = match portal.deploy().get::<EventList>(&path).await {
                Ok(list) => list.events,
                Err(error) => {
                    tracing::warn!(cause = format!("{:#}", anyhow::Error::from(error)), "events could not be read");
                    return Self { history: None };
                }
            };
            let Some(first) = events.first().map(|event| event.seq) else { break };
            found.splice(0..0, events);
            if first <= 1 || found.iter().filter(|event| is_told(event.code)).count() >= OLDER {
                break;
            }
            from = first;
        }
        Self { history: Some(History::of(&found, person.session.account_id, OLDER, t)) }
    }
}

/// Whether it is of interest to its owner: of a pause nobody shall notice anything, here neither.
fn is_told(code: EventCode) -> bool {
    !matches!(code, EventCode::SleepRequested | EventCode::Paused | EventCode::WakeRequested | EventCode::Woken)
}

impl Row {
    fn new(event: &Event, owner: AccountId, t: Texts) -> Self {
        let mut row = Self {
            when: clock::rfc3339(event.at_ms),
            shown: utc(event.at_ms),
            text: t.t(&format!("event.{}", event_name(event.code))).into(),
            who: who(&event.actor, owner, t),
            name: None,
            why: None,
            until: None,
        };
        row.tell(event.code, event.detail.as_deref().unwrap_or_default(), t);
        row
    }

    /// What of an event's detail is for its owner. The rest is for programs, or for operators: why they stopped a workspace,
    /// say.
    fn tell(&mut self, code: EventCode, detail: &str, t: Texts) {
        let mut words = detail.split(' ').filter(|word| !word.is_empty());
        let (first, second) = (words.next(), words.next());
        match (code, first) {
            (_, None) => {}
            (EventCode::EgressRefused, Some(target)) => {
                // Beaver tells of it; it was the workspace that asked.
                self.who = t.t("actor.workspace");
                self.text = format!("{}: {target}", self.text);
                let reason = second.and_then(|reason| t.get(&format!("egress_reason.{reason}")));
                self.why = reason.map(Into::into);
            }
            (EventCode::AttemptFailed | EventCode::Failed, Some(cause)) => self.blame(cause, t),
            // Which configuration or archive it was says nothing to a person.
            (EventCode::ConfigRolledBack | EventCode::RestoreRolledBack, Some(first)) => match second {
                Some(cause) => self.blame(cause, t),
                None => self.why = t.cause(first).map(Into::into),
            },
            (EventCode::ReleaseRolledBack, Some(release)) => {
                if let Some(cause) = second {
                    self.blame(cause, t);
                }
                self.name = Some(release.to_owned());
            }
            (EventCode::RenewalBegun, Some(reason)) => {
                self.why = t.get(&format!("renewal_reason.{reason}")).map(Into::into);
                self.name = second.map(str::to_owned);
            }
            (EventCode::Upgraded | EventCode::PlanRequested, Some(name)) => self.name = Some(name.to_owned()),
            (EventCode::DeleteRequested, Some(until)) => {
                self.until = until.parse().ok().map(|until_ms| (clock::rfc3339(until_ms), utc(until_ms)));
            }
            _ => {}
        }
    }

    /// Says why, or gives the code for which there are no words.
    fn blame(&mut self, cause: &str, t: Texts) {
        match t.cause(cause) {
            Some(why) => self.why = Some(why.into()),
            None => self.name = Some(cause.to_owned()),
        }
    }
}

fn who(actor: &str, owner: AccountId, t: Texts) -> Cow<'static, str> {
    match By::try_from(actor.to_owned()) {
        Ok(By::Operator) => t.t("actor.operator"),
        Ok(By::Owner(account)) if account == owner => t.t("actor.you"),
        _ if actor == "beaver" => t.t("actor.beaver"),
        _ => t.t("actor.other"),
    }
}

/// The end of an event's text's key; as on the wire.
fn event_name(code: EventCode) -> &'static str {
    match code {
        EventCode::Accepted => "accepted",
        EventCode::Queued => "queued",
        EventCode::Prepared => "prepared",
        EventCode::Created => "created",
        EventCode::Started => "started",
        EventCode::Healthy => "healthy",
        EventCode::Registered => "registered",
        EventCode::Ready => "ready",
        EventCode::StopRequested => "stop_requested",
        EventCode::Stopped => "stopped",
        EventCode::StartRequested => "start_requested",
        EventCode::RestartRequested => "restart_requested",
        EventCode::ConfigRequested => "config_requested",
        EventCode::ConfigApplied => "config_applied",
        EventCode::ConfigRolledBack => "config_rolled_back",
        EventCode::Recovered => "recovered",
        EventCode::AttemptFailed => "attempt_failed",
        EventCode::Failed => "failed",
        EventCode::RetryRequested => "retry_requested",
        EventCode::RenewalBegun => "renewal_begun",
        EventCode::Upgraded => "upgraded",
        EventCode::ReleaseRolledBack => "release_rolled_back",
        EventCode::UpgradeRequested => "upgrade_requested",
        EventCode::PlanRequested => "plan_requested",
        EventCode::DiscardRequested => "discard_requested",
        EventCode::DeleteRequested => "delete_requested",
        EventCode::UndeleteRequested => "undelete_requested",
        EventCode::Deleted => "deleted",
        EventCode::Exported => "exported",
        EventCode::RestoreRequested => "restore_requested",
        EventCode::Restored => "restored",
        EventCode::RestoreRolledBack => "restore_rolled_back",
        EventCode::EgressRefused => "egress_refused",
        EventCode::EngineLost => "engine_lost",
        EventCode::EngineBack => "engine_back",
        EventCode::DiskFull => "disk_full",
        EventCode::DiskFreed => "disk_freed",
        EventCode::SleepRequested => "sleep_requested",
        EventCode::Paused => "paused",
        EventCode::Asleep => "asleep",
        EventCode::WakeRequested => "wake_requested",
        EventCode::Woken => "woken",
    }
}
