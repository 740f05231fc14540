//! Data that came from an archive, perhaps of another instance: it is used as its owner's, and nothing in it lets anybody in.

use std::{fs::File, path::Path};

use anyhow::Context;
use contracts::instance::FROM_ARCHIVE;
use store::Store;

use crate::kept;

/// Takes data over that came from an archive: nobody is signed in, no key of the gateway holds, and there is no identity yet.
/// What was said and the provider stay. May be repeated.
///
/// # Errors
/// Any database error, or when the mark cannot be taken away.
pub async fn take_over(data: &Path, generation: i64, store: &Store) -> anyhow::Result<()> {
    let mark = data.join(FROM_ARCHIVE);
    if !mark.try_exists().context("the data folder cannot be looked at")? {
        return Ok(());
    }
    let mut transaction = store.begin().await?;
    for name in [kept::CLIENT_ID, kept::REGISTERED_WITH, kept::ISSUER_KEYS, kept::SIGN_INS, kept::PROVIDER_BEFORE] {
        kept::remove(&mut *transaction, name).await?;
    }
    // The provider in the archive stands until somebody chooses another; where it has none, this instance's own is taken.
    match kept::get(&mut *transaction, kept::PROVIDER).await? {
        Some(_) => kept::set(&mut *transaction, kept::GENERATION, &generation.to_string()).await?,
        None => kept::remove(&mut *transaction, kept::GENERATION).await?,
    }
    sqlx::query("DELETE FROM api_keys").execute(&mut *transaction).await?;
    transaction.commit().await?;
    std::fs::remove_file(&mark).with_context(|| format!("{} cannot be removed", mark.display()))?;
    File::open(data)?.sync_all()?;
    tracing::info!("took over data from an archive");
    Ok(())
}
