//! Reading streams piece by piece.

use std::{collections::VecDeque, time::Duration};

use futures_util::StreamExt;
use serde::de::DeserializeOwned;

/// Reads the blocks of a streaming body: lines, or the messages of an event stream.
pub struct Reader {
    body: futures_util::stream::BoxStream<'static, reqwest::Result<Vec<u8>>>,
    separator: &'static str,
    rest: String,
    blocks: VecDeque<String>,
}

impl Reader {
    pub fn lines(response: reqwest::Response) -> Self {
        Self::new(response, "\n")
    }

    pub fn messages(response: reqwest::Response) -> Self {
        Self::new(response, "\n\n")
    }

    fn new(response: reqwest::Response, separator: &'static str) -> Self {
        assert_eq!(response.status(), 200);
        let body = response.bytes_stream().map(|piece| piece.map(|bytes| bytes.to_vec())).boxed();
        Self { body, separator, rest: String::new(), blocks: VecDeque::new() }
    }

    /// The next block; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                return Some(block);
            }
            let piece =
                tokio::time::timeout(Duration::from_secs(20), self.body.next()).await.expect("something in 20 s");
            self.rest.push_str(&String::from_utf8(piece?.ok()?).unwrap());
            while let Some((block, rest)) = self.rest.split_once(self.separator) {
                self.blocks.push_back(block.to_owned());
                self.rest = rest.to_owned();
            }
        }
    }

    pub async fn json<T: DeserializeOwned>(&mut self) -> Option<T> {
        Some(serde_json::from_str(&self.next().await?).unwrap())
    }

    /// The next message of an event stream: its id and its data.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Option<(String, T)> {
        let block = self.next().await?;
        let field = |name| block.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim);
        assert_eq!(field("event:"), Some("instance"), "{block}");
        Some((field("id:").unwrap().to_owned(), serde_json::from_str(field("data:").unwrap()).unwrap()))
    }
}
