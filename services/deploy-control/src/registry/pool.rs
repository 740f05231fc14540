//! Workspaces that are made ahead: rows of nobody's, until somebody takes one over.
//!
//! Each goes `warming` → `ready` → `reserved` and then becomes an instance's, or goes to `discarded` from wherever it is and
//! is removed. Nothing leads back: whoever was told of one is the only one who ever is.

use clock::Entropy;
use contracts::InstanceId;
use serde::{Deserialize, Serialize};

use super::{
    Error, Registry, row,
    wishes::{TRIES, next},
};
use crate::folders::Whose;

/// How far one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// Being made.
    Warming,
    /// Frozen, and waiting for somebody.
    Ready,
    /// Somebody was told its id, and is expected.
    Reserved,
    /// Being removed.
    Discarded,
}

/// One that is made ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Its id, which will be the instance's.
    pub id: InstanceId,
    /// Its user id, which will be the instance's.
    pub uid: u32,
    /// How far it is.
    pub state: Made,
    /// Since when, in Unix milliseconds.
    pub since_ms: i64,
}

impl From<&Ahead> for Whose {
    fn from(ahead: &Ahead) -> Self {
        Self { id: ahead.id, uid: ahead.uid }
    }
}

/// The columns as the driver gives them: id, uid, state, since_ms.
type Columns = (String, i64, String, i64);

fn read((id, uid, state, since_ms): Columns) -> Result<Ahead, Error> {
    Ok(Ahead {
        id: id.parse().map_err(|_| Error::Corrupt { column: "id" })?,
        uid: u32::try_from(uid).map_err(|_| Error::Corrupt { column: "uid" })?,
        state: row::read("state", &state)?,
        since_ms,
    })
}

impl Registry {
    /// An id that nothing has.
    pub fn new_id(&self, entropy: &Entropy) -> InstanceId {
        InstanceId::from_uuid(entropy.uuid_v7(&self.clock))
    }

    /// All that are made ahead, the oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn pool(&self) -> Result<Vec<Ahead>, Error> {
        let all = sqlx::query_as::<_, Columns>("SELECT id, uid, state, since_ms FROM pool ORDER BY since_ms, id")
            .fetch_all(self.store.pool())
            .await?;
        all.into_iter().map(read).collect()
    }

    /// Writes down that one is to be made under this id, with a user id of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn add_ahead(&self, id: InstanceId) -> Result<Ahead, Error> {
        let mut transaction = self.store.begin().await?;
        let uid = next(&mut transaction, "uid").await?;
        let columns = sqlx::query_as::<_, Columns>(
            "INSERT INTO pool (id, uid, state, since_ms) VALUES ($1, $2, $3, $4) RETURNING id, uid, state, since_ms",
        )
        .bind(id.to_string())
        .bind(uid)
        .bind(row::word(&Made::Warming))
        .bind(self.now_ms())
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        read(columns)
    }

    /// Writes down how far one is; false when it is not any more where it was seen, and nothing was written.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn move_ahead(&self, seen: &Ahead, to: Made) -> Result<bool, Error> {
        let moved = sqlx::query("UPDATE pool SET state = $1, since_ms = $2 WHERE id = $3 AND state = $4")
            .bind(row::word(&to))
            .bind(self.now_ms())
            .bind(seen.id.to_string())
            .bind(row::word(&seen.state))
            .execute(self.store.pool())
            .await?;
        Ok(moved.rows_affected() == 1)
    }

    /// Forgets one of which nothing is left.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn forget_ahead(&self, id: InstanceId) -> Result<(), Error> {
        sqlx::query("DELETE FROM pool WHERE id = $1 AND state = $2")
            .bind(id.to_string())
            .bind(row::word(&Made::Discarded))
            .execute(self.store.pool())
            .await?;
        Ok(())
    }

    /// Forgets one that is somebody's, though no row here says so.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn drop_ahead(&self, id: InstanceId) -> Result<(), Error> {
        sqlx::query("DELETE FROM pool WHERE id = $1").bind(id.to_string()).execute(self.store.pool()).await?;
        Ok(())
    }

    /// Takes the oldest that waits for whoever is to be told of it; `None` when none waits.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn reserve_ahead(&self) -> Result<Option<InstanceId>, Error> {
        for _ in 0..TRIES {
            let Some(oldest) = self.pool().await?.into_iter().find(|ahead| ahead.state == Made::Ready) else {
                return Ok(None);
            };
            // Of two who saw the same one, one has it, and the other looks again.
            if self.move_ahead(&oldest, Made::Reserved).await? {
                return Ok(Some(oldest.id));
            }
        }
        Ok(None)
    }

    /// Whether a unit with this id is accounted for: an instance's, or one that is made ahead.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub async fn accounts_for(&self, id: InstanceId) -> Result<bool, Error> {
        // Looked for here first: it moves from here to there, in one transaction.
        let ahead: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pool WHERE id = $1")
            .bind(id.to_string())
            .fetch_one(self.store.pool())
            .await?;
        if ahead > 0 {
            return Ok(true);
        }
        match self.get(id).await {
            Ok(row) => Ok(row.phase != contracts::deploy::Phase::Deleted),
            Err(Error::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// In a transaction that takes an instance in: its user id, when what was made ahead under its id becomes its own; `None` when
/// nothing was.
pub(super) async fn take_over(transaction: &mut store::Transaction, id: InstanceId) -> Result<Option<i64>, Error> {
    let taken: Option<i64> = sqlx::query_scalar("DELETE FROM pool WHERE id = $1 AND state = $2 RETURNING uid")
        .bind(id.to_string())
        .bind(row::word(&Made::Reserved))
        .fetch_optional(&mut **transaction)
        .await?;
    if taken.is_some() {
        return Ok(taken);
    }
    let here: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pool WHERE id = $1")
        .bind(id.to_string())
        .fetch_one(&mut **transaction)
        .await?;
    // It is being removed: in a moment nothing of it is left, and it can be made anew.
    if here > 0 { Err(Error::Busy) } else { Ok(None) }
}
