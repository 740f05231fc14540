//! A transaction that holds its turn to write.

use std::ops::{Deref, DerefMut};

use sqlx::{Any, AnyConnection};
use tokio::sync::OwnedSemaphorePermit;

/// A transaction: `&mut *transaction` runs statements in it. Dropping it without [`commit`](Self::commit) undoes it.
#[derive(Debug)]
pub struct Transaction {
    inner: sqlx::Transaction<'static, Any>,
    /// Given back when the transaction is over; declared after it, so dropped after it.
    _turn: OwnedSemaphorePermit,
}

impl Transaction {
    pub(crate) fn new(inner: sqlx::Transaction<'static, Any>, turn: OwnedSemaphorePermit) -> Self {
        Self { inner, _turn: turn }
    }

    /// Makes everything in it lasting, all of it or nothing.
    ///
    /// # Errors
    ///
    /// Any [`sqlx::Error`]. When the connection broke during the commit, nobody knows whether it took place.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }

    /// Undoes everything in it, and waits until that is done.
    ///
    /// # Errors
    ///
    /// Any [`sqlx::Error`]; the transaction is undone all the same.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.inner.rollback().await
    }
}

impl Deref for Transaction {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.inner
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }
}
