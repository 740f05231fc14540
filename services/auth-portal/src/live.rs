//! An instance as the portal sees it: now, and from now on. That deploy-control has not heard of it yet, or is away,
//! is something to see too, not an error.

use std::time::Duration;

use contracts::{
    AccountId,
    authz::{Session, SessionToken},
    deploy::{Event, EventList, Instance, InstanceUpdate, ResolveInstance},
};
use futures_util::StreamExt;
use http::Method;
use service::{CallError, sse};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep, timeout},
};

use crate::{Portal, session::Person};

/// How many of the last events are read and kept: more than any bring-up has.
const KEPT: usize = 60;
/// A stream ends after this; the browser begins another.
const LIFE: Duration = Duration::from_secs(600);
/// How often the session behind a stream is looked at again.
const LOOK: Duration = Duration::from_secs(30);
/// Between two attempts to reach deploy-control.
const RETRY: Duration = Duration::from_secs(1);
/// A stream on which nothing comes for this long is taken to be dead.
const SILENCE: Duration = Duration::from_secs(60);

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
    /// Whose it is.
    pub account_id: AccountId,
    /// What is known.
    pub known: Known,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

impl Observed {
    /// What is known now.
    pub async fn now(portal: &Portal, person: &Person) -> Self {
        let (account_id, known) = (person.session.account_id, Known::now(portal, person).await);
        let mut observed = Self { account_id, known, events: Vec::new() };
        if observed.instance().is_some() {
            observed.read_events(portal, person).await;
        }
        observed
    }

    /// The instance, when it is known.
    pub fn instance(&self) -> Option<&Instance> {
        self.known.instance()
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
    /// What is known now.
    pub async fn now(portal: &Portal, person: &Person) -> Self {
        let body = ResolveInstance { account_id: person.session.account_id, slug: person.slug.clone() };
        match portal.deploy().post::<Instance>("/api/instances/resolve", &body).await {
            Ok(instance) => Self::Here(Box::new(instance)),
            Err(error) => Self::without(portal, person, error).await,
        }
    }

    /// The instance, when it is known.
    pub fn instance(&self) -> Option<&Instance> {
        match self {
            Self::Here(instance) => Some(instance),
            _ => None,
        }
    }

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

/// Where deploy-control tells a person of their instance's events.
pub fn events_path(person: &Person, end: &str, which: &str) -> String {
    format!("/api/instances/{}/events{end}?account_id={}&{which}", person.instance_id, person.session.account_id)
}

/// The instance now, and again at every change; until nobody listens, the session or the portal ends, or ten minutes are over.
pub fn watch(portal: Portal, person: Person) -> Receiver<Observed> {
    let (to, from) = mpsc::channel(4);
    tokio::spawn(async move {
        let stop = portal.stop().clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = to.closed() => {}
            () = sleep(LIFE) => {}
            () = session_ends(&portal, &person) => {}
            () = follow(&portal, &person, &to) => {}
        }
    });
    from
}

/// Waits until authz says that there is no such session any more.
async fn session_ends(portal: &Portal, person: &Person) {
    let body = SessionToken { session_token: person.token.clone() };
    loop {
        sleep(LOOK).await;
        match portal.authz().post::<Session>("/portal/session", &body).await {
            Err(error) if error.code() == Some("session_ended") => return,
            // That authz is away says nothing about it.
            _ => {}
        }
    }
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
    let mut events = sse::Parser::default();
    while let Ok(Some(Ok(chunk))) = timeout(SILENCE, body.next()).await {
        let Ok(received) = events.push(&chunk) else { return Ok(()) };
        for event in received.into_iter().filter(|event| event.name == b"instance") {
            let Ok(update) = serde_json::from_slice::<InstanceUpdate>(&event.data) else { continue };
            observed.known = Known::Here(Box::new(update.instance));
            observed.add(update.events);
            if to.send(observed.clone()).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
