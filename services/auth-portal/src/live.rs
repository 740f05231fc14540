//! An instance as the portal sees it: now, and from now on. That deploy-control has not heard of it yet, or is away,
//! is something to see too, not an error.

use std::time::Duration;

use contracts::{
    authz::{Session, SessionToken},
    deploy::{Event, EventList, Instance, InstanceUpdate, ResolveInstance},
};
use futures_util::StreamExt;
use http::Method;
use service::CallError;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep, timeout},
};

use crate::{Portal, session::Person};

/// How many of the last events are read and kept: more than any bring-up has.
const KEPT: usize = 60;
/// A stream ends after this, so that a browser's session is looked at again.
const LIFE: Duration = Duration::from_secs(600);
/// Between two attempts to reach deploy-control.
const RETRY: Duration = Duration::from_secs(1);
/// A stream on which nothing comes for this long is taken to be dead.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest message that is read from deploy-control, in bytes.
const MESSAGE_LIMIT: usize = 1 << 20;

/// What is known of an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Its state.
    Here(Box<Instance>),
    /// deploy-control has not heard of it yet.
    Waiting,
    /// deploy-control refused to take it, with this code.
    Refused(String),
    /// deploy-control cannot be asked.
    Away,
}

/// An instance and its last events.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// What is known.
    pub known: Known,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

impl Observed {
    /// What is known now.
    pub async fn now(portal: &Portal, person: &Person) -> Self {
        let body = ResolveInstance { account_id: person.session.account_id, slug: person.slug.clone() };
        let known = match portal.deploy().post::<Instance>("/api/instances/resolve", &body).await {
            Ok(instance) => Known::Here(Box::new(instance)),
            Err(error) => Known::without(portal, person, error).await,
        };
        let mut observed = Self { known, events: Vec::new() };
        if observed.instance().is_some() {
            observed.read_events(portal, person).await;
        }
        observed
    }

    /// The instance, when it is known.
    pub fn instance(&self) -> Option<&Instance> {
        match &self.known {
            Known::Here(instance) => Some(instance),
            _ => None,
        }
    }

    fn last_seq(&self) -> i64 {
        self.events.last().map_or(0, |event| event.seq)
    }

    fn add(&mut self, events: Vec<Event>) {
        let after = self.last_seq();
        self.events.extend(events.into_iter().filter(|event| event.seq > after));
        let surplus = self.events.len().saturating_sub(KEPT);
        self.events.drain(..surplus);
    }

    /// Events are an extra: without them the state is still right.
    async fn read_events(&mut self, portal: &Portal, person: &Person) {
        let path = events_path(person, "", &format!("last={KEPT}"));
        match portal.deploy().get::<EventList>(&path).await {
            Ok(list) => self.add(list.events),
            Err(error) => {
                tracing::info!(cause = format!("{:#}", anyhow::Error::from(error)), "events could not be read");
            }
        }
    }
}

impl Known {
    async fn without(portal: &Portal, person: &Person, error: CallError) -> Self {
        if error.code() == Some("instance_not_found") {
            // Asked now: while somebody watches, waiting may turn into a refusal.
            let body = SessionToken { session_token: person.token.clone() };
            let session = portal.authz().post::<Session>("/portal/session", &body).await;
            return session.ok().and_then(|session| session.instance_error).map_or(Self::Waiting, Self::Refused);
        }
        tracing::info!(cause = format!("{:#}", anyhow::Error::from(error)), "deploy-control does not tell");
        Self::Away
    }
}

fn events_path(person: &Person, end: &str, which: &str) -> String {
    format!("/api/instances/{}/events{end}?account_id={}&{which}", person.instance_id, person.session.account_id)
}

/// The instance now, and again at every change; until nobody listens, the portal ends, or ten minutes are over.
pub fn watch(portal: Portal, person: Person) -> Receiver<Observed> {
    let (to, from) = mpsc::channel(4);
    tokio::spawn(async move {
        let stop = portal.stop().clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = to.closed() => {}
            () = sleep(LIFE) => {}
            () = follow(&portal, &person, &to) => {}
        }
    });
    from
}

async fn follow(portal: &Portal, person: &Person, to: &Sender<Observed>) {
    let mut observed = Observed::now(portal, person).await;
    loop {
        if to.send(observed.clone()).await.is_err() {
            return;
        }
        let begun = Instant::now();
        let known = match listen(portal, person, &mut observed, to).await {
            Ok(()) => observed.known.clone(),
            Err(error) => Known::without(portal, person, error).await,
        };
        // A stream that broke says nothing about the instance; the next attempt tells.
        observed.known = known;
        sleep(RETRY.saturating_sub(begun.elapsed())).await;
    }
}

/// Passes on what deploy-control streams, until that ends.
async fn listen(
    portal: &Portal,
    person: &Person,
    observed: &mut Observed,
    to: &Sender<Observed>,
) -> Result<(), CallError> {
    let deploy = portal.deploy();
    let path = events_path(person, "/stream", &format!("after={}", observed.last_seq()));
    let request = deploy.request(Method::GET, &path).header("accept", "text/event-stream");
    let Ok(response) = timeout(Duration::from_secs(15), deploy.send(request)).await else { return Ok(()) };
    let mut body = response?.bytes_stream();
    let mut messages = Messages::default();
    while let Ok(Some(Ok(chunk))) = timeout(SILENCE, body.next()).await {
        let Some(received) = messages.push(&chunk) else { return Ok(()) };
        for data in received {
            let Ok(update) = serde_json::from_str::<InstanceUpdate>(&data) else { continue };
            observed.known = Known::Here(Box::new(update.instance));
            observed.add(update.events);
            if to.send(observed.clone()).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The data of server-sent events (HTML Living Standard, section 9.2), of those named `instance`.
#[derive(Default)]
struct Messages {
    rest: Vec<u8>,
    name: String,
    data: String,
}

impl Messages {
    /// What is complete after this chunk; `None` when a message is too long.
    fn push(&mut self, chunk: &[u8]) -> Option<Vec<String>> {
        self.rest.extend_from_slice(chunk);
        let mut complete = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\r', '\n']), &mut complete);
        }
        (self.rest.len() + self.data.len() <= MESSAGE_LIMIT).then_some(complete)
    }

    fn line(&mut self, line: &str, complete: &mut Vec<String>) {
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            if name == "instance" && !data.is_empty() {
                complete.push(data);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        let text = ": hello\n\nevent: instance\nid: 3\ndata: {\"a\":\ndata: \"ü\"}\n\nevent: other\ndata: x\r\n\r\nevent: instance\r\ndata:y\r\n\r\n";
        for size in 1..text.len() {
            let mut messages = Messages::default();
            let found: Vec<String> =
                text.as_bytes().chunks(size).flat_map(|chunk| messages.push(chunk).unwrap()).collect();
            assert_eq!(found, ["{\"a\":\n\"ü\"}", "y"], "{size}");
        }
    }

    #[test]
    fn an_endless_line_is_given_up() {
        let mut messages = Messages::default();
        assert!(messages.push(&[b'x'; 1000]).is_some());
        assert!(messages.push(&vec![b'x'; MESSAGE_LIMIT]).is_none());
    }
}
