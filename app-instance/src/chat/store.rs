//! Chats and messages in the database. What was acknowledged to the browser was committed before.

use clock::{Clock, Entropy};
use serde::Serialize;
use store::Store;

/// The longest title, in characters.
const MAX_TITLE: usize = 60;

/// A chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Chat {
    /// Its id.
    pub id: String,
    /// The beginning of its first message; empty before that.
    pub title: String,
    /// When it was begun.
    pub created_at_ms: i64,
    /// When it last changed.
    pub updated_at_ms: i64,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Message {
    /// Its id; the browser chose it for the person's messages.
    pub id: String,
    /// `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// `done`; an answer may also be `streaming`, `partial`, `interrupted` or `failed`.
    pub status: String,
    /// What went wrong, as a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was made.
    pub created_at_ms: i64,
}

/// A message as a model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A message that has been committed, with the answer that is to come.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The answer's id.
    pub answer_id: String,
    /// Everything said so far, the new message last.
    pub history: Vec<Turn>,
}

/// What posting a message led to.
#[derive(Debug)]
pub enum Posted {
    /// It is new, or its answer is to be made again.
    Accepted(Accepted),
    /// It was there already, with this answer.
    Before(Message),
    /// There is no such chat.
    NoChat,
    /// The id belongs to another message.
    IdTaken,
    /// Its answer was to be made again, but more has been said since.
    NotLast,
}

/// The chats of this workspace.
#[derive(Debug, Clone)]
pub struct Chats {
    store: Store,
    clock: Clock,
    entropy: Entropy,
}

impl Chats {
    /// The chats in this database.
    pub fn new(store: Store, clock: Clock, entropy: Entropy) -> Self {
        Self { store, clock, entropy }
    }

    /// Marks the answers that an earlier process left unfinished.
    ///
    /// # Errors
    /// Any database error.
    pub async fn mark_interrupted(&self) -> Result<u64, sqlx::Error> {
        let marked = sqlx::query("UPDATE messages SET status = 'interrupted' WHERE status = 'streaming'");
        Ok(marked.execute(self.store.pool()).await?.rows_affected())
    }

    /// Begins a chat.
    ///
    /// # Errors
    /// Any database error.
    pub async fn create(&self) -> Result<Chat, sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let chat = Chat { id: self.id(), title: String::new(), created_at_ms: now_ms, updated_at_ms: now_ms };
        sqlx::query("INSERT INTO chats (id, title, created_at_ms, updated_at_ms) VALUES ($1, $2, $3, $3)")
            .bind(&chat.id)
            .bind(&chat.title)
            .bind(now_ms)
            .execute(self.store.pool())
            .await?;
        Ok(chat)
    }

    /// Every chat, the one last used first.
    ///
    /// # Errors
    /// Any database error.
    pub async fn list(&self) -> Result<Vec<Chat>, sqlx::Error> {
        sqlx::query_as("SELECT id, title, created_at_ms, updated_at_ms FROM chats ORDER BY updated_at_ms DESC, id DESC")
            .fetch_all(self.store.pool())
            .await
    }

    /// One chat with its messages in order.
    ///
    /// # Errors
    /// Any database error.
    pub async fn read(&self, id: &str) -> Result<Option<(Chat, Vec<Message>)>, sqlx::Error> {
        let chat: Option<Chat> =
            sqlx::query_as("SELECT id, title, created_at_ms, updated_at_ms FROM chats WHERE id = $1")
                .bind(id)
                .fetch_optional(self.store.pool())
                .await?;
        let Some(chat) = chat else { return Ok(None) };
        let messages = sqlx::query_as(
            "SELECT id, role, content, status, error, created_at_ms FROM messages WHERE chat_id = $1 ORDER BY position",
        )
        .bind(id)
        .fetch_all(self.store.pool())
        .await?;
        Ok(Some((chat, messages)))
    }

    /// Deletes a chat and its messages; whether there was one.
    ///
    /// # Errors
    /// Any database error.
    pub async fn delete(&self, id: &str) -> Result<bool, sqlx::Error> {
        let deleted = sqlx::query("DELETE FROM chats WHERE id = $1").bind(id).execute(self.store.pool()).await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Gives what deleted chats took back to the file system, which SQLite by itself keeps for what comes. Without success,
    /// as when something else is being written, it is said in the log, and done after the next deletion.
    pub async fn compact(&self) {
        let compacted = async {
            sqlx::query("VACUUM").execute(self.store.pool()).await?;
            // The log has all of it once more.
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(self.store.pool()).await
        };
        if let Err(error) = compacted.await {
            tracing::warn!(%error, "the database could not be made smaller");
        }
    }

    /// Adds the person's message and an empty answer, together. A message that is there already is not added again;
    /// with `again`, an answer to it that did not end well is made anew.
    ///
    /// # Errors
    /// Any database error; then nothing was added.
    pub async fn post(&self, chat_id: &str, id: &str, content: &str, again: bool) -> Result<Posted, sqlx::Error> {
        let now_ms = self.clock.now_ms();
        let mut transaction = self.store.begin().await?;
        let title: Option<String> = sqlx::query_scalar("SELECT title FROM chats WHERE id = $1")
            .bind(chat_id)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(title) = title else { return Ok(Posted::NoChat) };
        let there: Option<(String, String, String, i64)> =
            sqlx::query_as("SELECT chat_id, role, content, position FROM messages WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *transaction)
                .await?;
        let (answer_id, position) = match there {
            Some((there_chat, role, there_content, position)) => {
                if there_chat != chat_id || role != "user" || there_content != content {
                    return Ok(Posted::IdTaken);
                }
                let answer: Message = sqlx::query_as(
                    "SELECT id, role, content, status, error, created_at_ms FROM messages \
                     WHERE chat_id = $1 AND position = $2",
                )
                .bind(chat_id)
                .bind(position + 1)
                .fetch_one(&mut *transaction)
                .await?;
                if !again || answer.status == "done" {
                    return Ok(Posted::Before(answer));
                }
                let more: Option<i64> =
                    sqlx::query_scalar("SELECT position FROM messages WHERE chat_id = $1 AND position > $2 LIMIT 1")
                        .bind(chat_id)
                        .bind(position + 1)
                        .fetch_optional(&mut *transaction)
                        .await?;
                // What came later was said knowing this answer.
                if more.is_some() {
                    return Ok(Posted::NotLast);
                }
                // What came of it before stays until something new has come.
                sqlx::query("UPDATE messages SET status = 'streaming', error = NULL WHERE id = $1")
                    .bind(&answer.id)
                    .execute(&mut *transaction)
                    .await?;
                (answer.id, position)
            }
            None => {
                let last: Option<i64> = sqlx::query_scalar("SELECT MAX(position) FROM messages WHERE chat_id = $1")
                    .bind(chat_id)
                    .fetch_one(&mut *transaction)
                    .await?;
                let (answer_id, position) = (self.id(), last.map_or(0, |last| last + 1));
                for (id, position, role, content, status) in
                    [(id, position, "user", content, "done"), (&answer_id, position + 1, "assistant", "", "streaming")]
                {
                    sqlx::query(
                        "INSERT INTO messages (id, chat_id, position, role, content, status, created_at_ms) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7)",
                    )
                    .bind(id)
                    .bind(chat_id)
                    .bind(position)
                    .bind(role)
                    .bind(content)
                    .bind(status)
                    .bind(now_ms)
                    .execute(&mut *transaction)
                    .await?;
                }
                (answer_id, position)
            }
        };
        let title = if title.is_empty() { title_of(content) } else { title };
        sqlx::query("UPDATE chats SET title = $1, updated_at_ms = $2 WHERE id = $3")
            .bind(title)
            .bind(now_ms)
            .bind(chat_id)
            .execute(&mut *transaction)
            .await?;
        let history: Vec<(String, String)> = sqlx::query_as(
            "SELECT role, content FROM messages WHERE chat_id = $1 AND position <= $2 AND content <> '' ORDER BY position",
        )
        .bind(chat_id)
        .bind(position)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let history = history.into_iter().map(|(role, content)| Turn { role, content }).collect();
        Ok(Posted::Accepted(Accepted { answer_id, history }))
    }

    /// Writes what there is of an answer. Nothing at all replaces an earlier attempt's text only when it is `done`.
    ///
    /// # Errors
    /// Any database error.
    pub async fn save_answer(
        &self,
        id: &str,
        content: &str,
        status: &str,
        error: Option<&str>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE messages SET content = CASE WHEN $1 = '' AND $2 <> 'done' THEN content ELSE $1 END, \
             status = $2, error = $3 WHERE id = $4",
        )
        .bind(content)
        .bind(status)
        .bind(error)
        .bind(id)
        .execute(self.store.pool())
        .await
        .map(drop)
    }

    fn id(&self) -> String {
        self.entropy.uuid_v7(&self.clock).simple().to_string()
    }
}

/// The beginning of a text's first line.
fn title_of(content: &str) -> String {
    let line = content.trim().lines().next().unwrap_or_default().trim();
    let mut title: String = line.chars().filter(|c| !c.is_control()).take(MAX_TITLE).collect();
    if line.chars().count() > MAX_TITLE {
        title.push('…');
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_posted_twice_is_there_once_and_its_answer_can_be_made_again() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let chats = Chats::new(store.clone(), Clock::system(), Entropy::system());
        let chat = chats.create().await.unwrap();
        let Posted::Accepted(first) = chats.post(&chat.id, "m1", "hello\nthere", false).await.unwrap() else {
            panic!()
        };
        assert_eq!(first.history, [Turn { role: "user".into(), content: "hello\nthere".into() }]);
        assert!(matches!(chats.post(&chat.id, "m1", "hello\nthere", false).await.unwrap(), Posted::Before(_)));
        assert!(matches!(chats.post(&chat.id, "m1", "other", false).await.unwrap(), Posted::IdTaken));
        assert!(matches!(chats.post("none", "m2", "x", false).await.unwrap(), Posted::NoChat));

        assert_eq!(chats.mark_interrupted().await.unwrap(), 1);
        let Posted::Accepted(again) = chats.post(&chat.id, "m1", "hello\nthere", true).await.unwrap() else { panic!() };
        assert_eq!(again.answer_id, first.answer_id);
        chats.save_answer(&again.answer_id, "hi", "done", None).await.unwrap();
        assert!(matches!(chats.post(&chat.id, "m1", "hello\nthere", true).await.unwrap(), Posted::Before(_)));

        let Posted::Accepted(next) = chats.post(&chat.id, "m2", "more", false).await.unwrap() else { panic!() };
        let said: Vec<_> = next.history.iter().map(|turn| turn.content.as_str()).collect();
        assert_eq!(said, ["hello\nthere", "hi", "more"]);
        let (chat, messages) = chats.read(&chat.id).await.unwrap().unwrap();
        assert_eq!((chat.title.as_str(), messages.len()), ("hello", 4));
        assert!(chats.delete(&chat.id).await.unwrap() && !chats.delete(&chat.id).await.unwrap());
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM messages").fetch_one(store.pool()).await.unwrap();
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn an_attempt_that_brings_nothing_leaves_what_the_one_before_brought() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let chats = Chats::new(store.clone(), Clock::system(), Entropy::system());
        let chat = chats.create().await.unwrap();
        let Posted::Accepted(first) = chats.post(&chat.id, "m1", "hello", false).await.unwrap() else { panic!() };
        let kept = async || {
            let (_, messages) = chats.read(&chat.id).await.unwrap().unwrap();
            (messages[1].content.clone(), messages[1].status.clone(), messages[1].error.clone())
        };
        chats.save_answer(&first.answer_id, "half", "failed", Some("cut")).await.unwrap();
        let again = async || chats.post(&chat.id, "m1", "hello", true).await.unwrap();
        assert!(matches!(again().await, Posted::Accepted(_)));
        assert_eq!(kept().await, ("half".into(), "streaming".into(), None));
        // As at the start after a crash.
        chats.mark_interrupted().await.unwrap();
        assert_eq!(kept().await, ("half".into(), "interrupted".into(), None));
        chats.save_answer(&first.answer_id, "", "failed", Some("bad_key")).await.unwrap();
        assert_eq!(kept().await, ("half".into(), "failed".into(), Some("bad_key".into())));
        chats.save_answer(&first.answer_id, "new", "partial", None).await.unwrap();
        assert_eq!(kept().await.0, "new");

        // An answer that more was said after is not made again.
        chats.post(&chat.id, "m2", "more", false).await.unwrap();
        assert!(matches!(again().await, Posted::NotLast));
        assert_eq!(kept().await, ("new".into(), "partial".into(), None));
    }
}
