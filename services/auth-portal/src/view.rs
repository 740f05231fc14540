//! What people are shown of an instance: the part of a page that changes while they look at it. The page and the
//! stream render the same templates.

use std::borrow::Cow;

use askama::Template;
use contracts::deploy::{Event, EventCode, Instance, Phase, Waiting, WaitsFor};
use serde::{Deserialize, Serialize};
use service::Problem;

use crate::{
    history::{History, SHOWN},
    live::{Known, Observed},
    texts::Texts,
};

/// A page with a part that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The bring-up, step by step.
    Progress,
    /// A new provider on its way into force.
    Applying,
    /// "My workspace".
    Instance,
    /// The same, beside a page of older events: they do not change, and the newest are not shown.
    Past,
}

/// One state of the part that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Live {
    /// The part.
    pub html: String,
    /// The one sentence that a screen reader says of it.
    pub say: String,
    /// Where the page goes on to by itself, when it is done.
    pub go: Option<&'static str>,
    /// Whether there is still something to wait for: without JavaScript the page asks again.
    #[serde(skip)]
    pub waiting: bool,
}

impl View {
    /// The name in the stream's address.
    pub fn name(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Applying => "applying",
            Self::Instance => "instance",
            Self::Past => "past",
        }
    }

    /// The key of the page's title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Progress => "progress.title",
            Self::Applying => "applying.title",
            Self::Instance | Self::Past => "instance.title",
        }
    }

    /// Renders it.
    ///
    /// # Errors
    /// 500 when a template cannot be rendered.
    pub fn render(self, observed: &Observed, t: Texts) -> Result<Live, Problem> {
        match self {
            Self::Progress => progress(observed, t),
            Self::Applying => applying(observed, t),
            Self::Instance => instance(observed, true, t),
            Self::Past => instance(observed, false, t),
        }
    }
}

struct Failure {
    text: String,
    /// What was wrong with what was taken back, where that can be said.
    why: Option<String>,
    /// The error's code, and its cause's where there is one.
    codes: Vec<String>,
    /// The last lines that the program wrote, in one; empty when there are none.
    log: String,
}

fn failure(known: &Known, t: Texts) -> Option<Failure> {
    let error = match known {
        Known::Here(instance) => instance.error.as_ref()?,
        Known::Refused(code) => {
            let text = t.t("instance_error.not_taken").into();
            return Some(Failure { text, why: None, codes: vec![code.clone()], log: String::new() });
        }
        Known::Waiting | Known::Away => return None,
    };
    let text = t.get(&format!("instance_error.{}", error.code)).unwrap_or_else(|| t.t("instance_error.other"));
    let why = error.cause.as_deref().and_then(|cause| t.cause(cause));
    Some(Failure {
        text: text.into(),
        why: why.map(|why| t.with("failure.why", "cause", why)),
        codes: [&error.code].into_iter().chain(&error.cause).cloned().collect(),
        log: error.log.join("\n"),
    })
}

/// Where in line it is, and about how long that takes.
fn in_line(waiting: Waiting, t: Texts) -> String {
    let text = match (waiting.waits_for, waiting.seconds) {
        (WaitsFor::Room, None) => t.t("line.room"),
        (WaitsFor::Room, Some(..60)) => t.t("line.room_soon"),
        (WaitsFor::Room, Some(_)) => t.t("line.room_minutes"),
        (WaitsFor::Turn, None) => t.t("line.turn"),
        (WaitsFor::Turn, Some(..60)) => t.t("line.soon"),
        (WaitsFor::Turn, Some(_)) => t.t("line.minutes"),
    };
    let minutes = waiting.seconds.unwrap_or_default().div_ceil(60);
    text.replace("%{n}", &waiting.position.to_string()).replace("%{minutes}", &minutes.to_string())
}

struct Step {
    label: String,
    /// `done`, `now`, `failed` or `next`; also the end of a text's key.
    state: &'static str,
    state_text: String,
}

#[derive(Template)]
#[template(path = "portal/live/progress.html")]
struct ProgressPart {
    t: Texts,
    say: String,
    steps: Vec<Step>,
    /// Whether nothing follows by itself; else what is said of a failure is why it takes longer.
    failed: bool,
    failure: Option<Failure>,
}

const STEPS: [(&str, EventCode); 7] = [
    ("accepted", EventCode::Accepted),
    ("prepared", EventCode::Prepared),
    ("created", EventCode::Created),
    ("started", EventCode::Started),
    ("healthy", EventCode::Healthy),
    ("registered", EventCode::Registered),
    ("ready", EventCode::Ready),
];

/// How many steps of the present attempt are done: as many as the phase implies, or as the events tell.
fn steps_done(instance: &Instance, events: &[Event]) -> usize {
    let by_phase = match instance.phase {
        Phase::Preparing => 1,
        Phase::Creating => 2,
        Phase::Starting => 3,
        Phase::Registering => 5,
        Phase::Ready | Phase::Paused | Phase::Asleep => return STEPS.len(),
        _ => 1,
    };
    let attempt = events.iter().rposition(|event| {
        use EventCode::{RestartRequested, RetryRequested, StartRequested, WakeRequested};
        matches!(event.code, RetryRequested | StartRequested | RestartRequested | WakeRequested)
    });
    let by_events = events[attempt.map_or(0, |at| at + 1)..]
        .iter()
        .filter_map(|event| STEPS.iter().position(|(_, code)| *code == event.code))
        .max()
        .map_or(0, |at| at + 1);
    // Ready is the phase's to say: an event of it may be from before.
    by_phase.max(by_events.min(STEPS.len() - 1))
}

fn progress(observed: &Observed, t: Texts) -> Result<Live, Problem> {
    let instance = observed.instance();
    let refused = matches!(observed.known, Known::Refused(_));
    let failed = refused || instance.is_some_and(|instance| instance.phase == Phase::Failed);
    let done = instance.map_or(0, |instance| steps_done(instance, &observed.events));
    // Another's program takes no owner.
    let takes_owner = instance.is_none_or(|instance| instance.takes_provider);
    let taken = STEPS.iter().enumerate().filter(|(_, (name, _))| takes_owner || *name != "registered");
    let steps = taken.map(|(at, (name, _))| {
        let state = match at {
            _ if at < done => "done",
            _ if at == done && failed => "failed",
            _ if at == done => "now",
            _ => "next",
        };
        Step {
            label: t.t(&format!("step.{name}")).into(),
            state,
            state_text: t.t(&format!("step_state.{state}")).into(),
        }
    });
    let go = instance.and_then(|instance| match instance.phase {
        Phase::Ready if needs_provider(instance) => Some("/onboarding"),
        Phase::Ready
        | Phase::Paused
        | Phase::Asleep
        | Phase::Stopped
        | Phase::Stopping
        | Phase::PendingDeletion
        | Phase::Deleting
        | Phase::Deleted => Some("/instance"),
        _ => None,
    });
    let say = match &observed.known {
        Known::Waiting => t.t("progress.waiting"),
        Known::Away => t.t("progress.away"),
        Known::Refused(_) => t.t("progress.failed"),
        Known::Here(_) if failed => t.t("progress.failed"),
        Known::Here(instance) => match instance.waiting {
            Some(waiting) => Cow::Owned(in_line(waiting, t)),
            None => t.t(&format!("progress.{}", phase_name(instance.phase))),
        },
    };
    let part =
        ProgressPart { t, say: say.to_string(), steps: steps.collect(), failure: failure(&observed.known, t), failed };
    Ok(Live { html: part.render().map_err(Problem::internal)?, say: say.into(), go, waiting: !failed && go.is_none() })
}

/// The end of a phase's texts' keys; as on the wire.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Accepted => "accepted",
        Phase::Preparing => "preparing",
        Phase::Creating => "creating",
        Phase::Starting => "starting",
        Phase::Registering => "registering",
        Phase::Ready => "ready",
        Phase::Paused => "paused",
        Phase::Asleep => "asleep",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
        Phase::Unknown => "unknown",
        Phase::PendingDeletion => "pending_deletion",
        Phase::Deleting => "deleting",
        Phase::Deleted => "deleted",
    }
}

#[derive(Template)]
#[template(path = "portal/live/applying.html")]
struct ApplyingPart {
    t: Texts,
    say: String,
    /// `applying`, `applied`, `rolled_back` or `failed`.
    state: &'static str,
    open: Option<String>,
    failure: Option<Failure>,
}

fn applying(observed: &Observed, t: Texts) -> Result<Live, Problem> {
    let settled = observed.events.iter().rev().find_map(|event| match event.code {
        EventCode::ConfigRolledBack => Some(true),
        EventCode::ConfigApplied | EventCode::ConfigRequested => Some(false),
        _ => None,
    });
    let instance = observed.instance();
    let state = match (instance, settled) {
        (None, _) => "applying",
        (_, Some(true)) => "rolled_back",
        (Some(i), _) if i.phase == Phase::Failed => "failed",
        (Some(i), _) if i.applied_config_generation < i.config_generation => "applying",
        // A stopped workspace takes it when it is started next.
        (Some(i), _) if sleeps(i) || matches!(i.phase, Phase::Ready | Phase::Unknown | Phase::Stopped) => "applied",
        _ => "applying",
    };
    let say = match &observed.known {
        Known::Away | Known::Waiting => t.t("progress.away"),
        Known::Refused(_) => t.t("progress.failed"),
        Known::Here(_) => t.t(&format!("applying.{state}")),
    };
    let part = ApplyingPart {
        t,
        say: say.to_string(),
        state,
        open: instance.filter(|i| i.phase == Phase::Ready || sleeps(i)).map(open_url),
        failure: failure(&observed.known, t).filter(|_| matches!(state, "failed" | "rolled_back")),
    };
    let html = part.render().map_err(Problem::internal)?;
    Ok(Live { html, say: say.into(), go: None, waiting: state == "applying" })
}

/// Whether its owner still has a provider to choose.
fn needs_provider(instance: &Instance) -> bool {
    instance.takes_provider && instance.config_generation == 0
}

#[derive(Template)]
#[template(path = "portal/live/instance.html")]
struct InstancePart {
    t: Texts,
    label: String,
    say: String,
    /// `good`, `busy`, `off` or `bad`.
    mood: &'static str,
    instance: Option<Instance>,
    open: Option<String>,
    failure: Option<Failure>,
    may_start: bool,
    may_stop: bool,
    may_retry: bool,
    needs_provider: bool,
    /// Until when a deletion can be taken back: for programs, and for readers without JavaScript.
    deleted: Option<(String, String)>,
    /// Whether nothing is left of it, and another one can be made.
    gone: bool,
    /// The newest events; absent where older ones are shown.
    history: Option<History>,
}

/// Whether it sleeps because nobody uses it: it opens all the same.
pub fn sleeps(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Paused | Phase::Asleep)
}

/// Where "open" leads: the workspace begins the hand-off; one that sleeps is woken before.
pub fn open_url(instance: &Instance) -> String {
    if sleeps(instance) {
        return format!("/open/{}", instance.slug);
    }
    format!("{}/auth/start?rd=%2F", instance.origin)
}

/// `2026-11-20 14:03 UTC`, for readers without JavaScript.
pub fn utc(at_ms: i64) -> String {
    let full = clock::rfc3339(at_ms);
    format!("{} UTC", full.get(..16).unwrap_or(&full).replace('T', " "))
}

fn instance(observed: &Observed, with_events: bool, t: Texts) -> Result<Live, Problem> {
    let instance = observed.instance();
    let (name, mood) = match (&observed.known, instance.map(|i| i.phase)) {
        (Known::Waiting, _) => ("waiting", "busy"),
        (Known::Refused(_), _) => ("failed", "bad"),
        (_, None) => ("away", "off"),
        (Known::Here(instance), _) if instance.waiting.is_some() => ("waiting", "busy"),
        (_, Some(phase)) => (
            phase_name(phase),
            match phase {
                Phase::Ready => "good",
                Phase::Paused | Phase::Asleep | Phase::Stopped | Phase::Unknown => "off",
                Phase::PendingDeletion | Phase::Deleting | Phase::Deleted => "off",
                Phase::Failed => "bad",
                _ => "busy",
            },
        ),
    };
    let say = match instance.and_then(|instance| instance.waiting) {
        Some(waiting) => Cow::Owned(in_line(waiting, t)),
        None => t.t(&format!("phase_text.{name}")),
    };
    let is = |phases: &[Phase]| instance.is_some_and(|i| phases.contains(&i.phase));
    let alive = instance.filter(|i| i.deletion.is_none());
    let history = with_events.then(|| History::of(&observed.events, observed.account_id, SHOWN, t));
    let part = InstancePart {
        t,
        label: t.t(&format!("phase.{name}")).into(),
        say: say.to_string(),
        mood,
        open: alive.filter(|_| is(&[Phase::Ready, Phase::Unknown, Phase::Paused, Phase::Asleep])).map(open_url),
        failure: failure(&observed.known, t),
        may_start: is(&[Phase::Stopped]) && mood != "busy",
        may_stop: alive.is_some()
            && is(&[Phase::Ready, Phase::Paused, Phase::Asleep, Phase::Starting, Phase::Registering]),
        may_retry: alive.is_some() && is(&[Phase::Failed]),
        needs_provider: alive.is_some_and(needs_provider),
        gone: is(&[Phase::Deleted]),
        deleted: instance
            .filter(|_| !is(&[Phase::Deleting, Phase::Deleted]))
            .and_then(|i| i.deletion)
            .map(|deletion| (clock::rfc3339(deletion.data_until_ms), utc(deletion.data_until_ms))),
        history: history.filter(|history| !history.is_empty()),
        instance: instance.cloned(),
    };
    let html = part.render().map_err(Problem::internal)?;
    Ok(Live { html, say: say.into(), go: None, waiting: mood == "busy" || instance.is_none() })
}
