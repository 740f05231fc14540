//! A provider of models that records what it is sent and answers by rule.
//!
//! It speaks as much of OpenAI's API as Beaver's path needs: `/v1/models` and `/v1/chat/completions`, streamed and not.
//! What it does is decided by what it is asked, so that one of them serves a whole run:
//!
//! | asked with | answer |
//! | --- | --- |
//! | a key that does not begin with [`GOOD_KEY`] | 401 `invalid_api_key` |
//! | model [`CHAT`] | [`reply_to`] what the person said last |
//! | model [`GATED`] | the same, each piece held until [`FakeProvider::release`] lets it go |
//! | model [`STEADY`] | a [`steady_piece`] every [`BEAT`], without an end until [`FakeProvider::finish`] |
//! | model [`CUT`] | the same, but the connection ends after two pieces, without an end of the stream |
//! | any other model | 404 `model_not_found` |
//!
//! Its second listener, for the test alone, tells the record and lets pieces go.

mod handle;
mod server;

pub use handle::FakeProvider;
pub use server::{State, serve};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What every key that is taken begins with.
pub const GOOD_KEY: &str = "sk-fake-good-";
/// Answers at once.
pub const CHAT: &str = "fake-chat";
/// Answers piece by piece, as it is let.
pub const GATED: &str = "fake-gated";
/// Goes on and on, as it is let.
pub const STEADY: &str = "fake-steady";
/// How often [`STEADY`] says something.
pub const BEAT: Duration = Duration::from_millis(50);
/// Is cut off in the middle.
pub const CUT: &str = "fake-cut";
/// The models it lists.
pub const MODELS: [&str; 4] = [CHAT, CUT, GATED, STEADY];

/// The n-th piece of what [`STEADY`] says to `said`: each has all of it in it, and is no other's.
pub fn steady_piece(said: &str, n: usize) -> String {
    format!("{n}:{said};")
}

/// The pieces of the answer to `said`. Their first is known beforehand; Chinese and markup are in it, since both must
/// arrive as they are.
pub fn reply_pieces(said: &str) -> Vec<String> {
    let mut pieces = vec!["Heard ".to_owned(), "you: ".to_owned(), "“".to_owned()];
    pieces.extend(said.split_inclusive(' ').map(str::to_owned));
    pieces.extend(["” ".to_owned(), "好的，".to_owned(), "<b>not bold</b>".to_owned(), " & done.".to_owned()]);
    pieces
}

/// The whole answer to `said`.
pub fn reply_to(said: &str) -> String {
    reply_pieces(said).concat()
}

/// One request as it arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recorded {
    /// `GET` or `POST`.
    pub method: String,
    /// The path.
    pub path: String,
    /// Every header, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body as JSON; `null` when it is none.
    pub body: serde_json::Value,
    /// The status it was answered with.
    pub status: u16,
    /// How its answer ended: so far not, wholly, or because the caller left.
    pub ended: Ended,
}

impl Recorded {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// What the person said last.
    pub fn last_said(&self) -> Option<&str> {
        server::last_said(&self.body)
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It is still being given.
    Open,
    /// To its last byte, or to where the rule cuts it.
    Whole,
    /// The caller went away first.
    Left,
}

/// What the second listener tells.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// Every request since the start, oldest first.
    pub requests: Vec<Recorded>,
    /// How many answers wait at the gate at this moment.
    pub waiting: usize,
}
