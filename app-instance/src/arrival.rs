//! What happened to the data while no program ran on it: it came from an archive, perhaps of another instance, or it was
//! deleted and that was taken back. It is used as its owner's, and nothing in it from before lets anybody in.

use std::{fs::File, path::Path};

use anyhow::Context;
use clock::Clock;
use contracts::instance::{FROM_ARCHIVE, FromArchive, REVOKED};
use store::Store;

use crate::{gateway::keys, kept};

/// Takes data over that came from an archive: nobody is signed in, no key of the gateway holds, and there is no identity yet.
/// What was said stays, and the provider as the mark says. `generation`: the configuration's. May be repeated.
///
/// # Errors
/// Any database error, or when the mark cannot be read or taken away.
pub async fn take_over(data: &Path, generation: i64, store: &Store) -> anyhow::Result<()> {
    if !is_marked(data, FROM_ARCHIVE)? {
        return Ok(());
    }
    let mark = std::fs::read_to_string(data.join(FROM_ARCHIVE)).context("the mark of an archive cannot be read")?;
    let counts = match mark.as_str() {
        "" => FromArchive::Over(generation),
        mark => mark.parse().map_err(anyhow::Error::msg).context("the mark of an archive")?,
    };
    let mut transaction = store.begin().await?;
    for name in [kept::CLIENT_ID, kept::REGISTERED_WITH, kept::ISSUER_KEYS, kept::SIGN_INS, kept::PROVIDER_BEFORE] {
        kept::remove(&mut *transaction, name).await?;
    }
    // Where the archive has no provider, this instance's own is taken.
    match (kept::get(&mut *transaction, kept::PROVIDER).await?, counts) {
        (None, _) => kept::remove(&mut *transaction, kept::GENERATION).await?,
        (Some(_), FromArchive::Over(generation)) => {
            kept::set(&mut *transaction, kept::GENERATION, &generation.to_string()).await?;
        }
        (Some(_), FromArchive::AsItWas) => {}
    }
    sqlx::query("DELETE FROM api_keys").execute(&mut *transaction).await?;
    transaction.commit().await?;
    take_away(data, FROM_ARCHIVE)?;
    tracing::info!("took over data from an archive");
    Ok(())
}

/// Revokes every key of the gateway and ends every session, where the instance was deleted and that was taken back. Everything
/// else stays. May be repeated: nothing is served before the mark is gone, so nothing new can be among what is revoked.
///
/// # Errors
/// Any database error, or when the mark cannot be taken away.
pub async fn revoke(data: &Path, clock: &Clock, store: &Store) -> anyhow::Result<()> {
    if !is_marked(data, REVOKED)? {
        return Ok(());
    }
    let mut transaction = store.begin().await?;
    kept::remove(&mut *transaction, kept::SIGN_INS).await?;
    let keys = keys::revoke_all(&mut *transaction, clock.now_ms()).await?;
    transaction.commit().await?;
    // Last, and for good: once a key has been made again, it must not be found by the next start.
    take_away(data, REVOKED)?;
    tracing::info!(keys, "revoked every key and session, since the deletion was taken back");
    Ok(())
}

fn is_marked(data: &Path, mark: &str) -> anyhow::Result<bool> {
    data.join(mark).try_exists().context("the data folder cannot be looked at")
}

fn take_away(data: &Path, mark: &str) -> anyhow::Result<()> {
    let path = data.join(mark);
    std::fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
    Ok(File::open(data)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use clock::Entropy;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::{gateway::Keys, provider::Provider};

    #[tokio::test]
    async fn the_provider_of_an_archive_counts_until_another_is_chosen_and_one_that_was_chosen_before_it_was_made_is_not_lost()
     {
        let provider = |model: &str| serde_json::json!({ "kind": "ollama", "base_url": "http://o", "model": model, "api_key": "" });
        for (mark, taken, there, expected) in [
            // Put back when 5 was the newest: older than the archive, and then not.
            ("over 5", 2, 5, "archive"),
            ("over 5", 2, 6, "config"),
            ("over 5", 9, 6, "config"),
            // Made when 5 was chosen and not taken yet, or taken.
            ("as it was", 2, 5, "config"),
            ("as it was", 5, 5, "archive"),
            // From before it was said.
            ("", 2, 5, "archive"),
        ] {
            let (store, data) = (store::testing::sqlite(&crate::MIGRATOR).await, tempfile::tempdir().unwrap());
            kept::set(store.pool(), kept::PROVIDER, &provider("archive").to_string()).await.unwrap();
            kept::set(store.pool(), kept::GENERATION, &i32::to_string(&taken)).await.unwrap();
            std::fs::write(data.path().join(FROM_ARCHIVE), mark).unwrap();
            let config = serde_json::from_value(serde_json::json!({
                "generation": there, "instance_id": "i-00000000000000000000000000000001", "slug": "alice",
                "owner": "a-00000000000000000000000000000001", "origin": "http://a", "issuer": "http://i",
                "portal": "http://p", "provider": provider("config"),
            }))
            .unwrap();
            take_over(data.path(), there, &store).await.unwrap();
            let current = Provider::load(store.clone(), &config).await.unwrap().current().unwrap();
            assert_eq!(current.model, expected, "{mark:?}, {taken} taken, {there} there");
        }
        let (store, data) = (store::testing::sqlite(&crate::MIGRATOR).await, tempfile::tempdir().unwrap());
        std::fs::write(data.path().join(FROM_ARCHIVE), "x").unwrap();
        assert!(take_over(data.path(), 1, &store).await.is_err() && data.path().join(FROM_ARCHIVE).exists());
    }

    #[tokio::test]
    async fn what_was_revoked_before_the_mark_could_be_taken_away_is_revoked_again_and_nothing_comes_of_it() {
        let (store, data) = (store::testing::sqlite(&crate::MIGRATOR).await, tempfile::tempdir().unwrap());
        let (clock, hand) = Clock::manual(1_000);
        let load = async || Keys::load(store.clone(), clock.clone(), Entropy::system()).await.unwrap();
        let revoked = async || {
            let query = "SELECT revoked_at_ms FROM api_keys ORDER BY name";
            sqlx::query_scalar::<_, Option<i64>>(query).fetch_all(store.pool()).await.unwrap()
        };
        let keys = load().await;
        keys.create("first").await.unwrap();
        let first = keys.list().await.unwrap()[0].id.clone();
        keys.revoke(&first).await.unwrap();
        keys.create("second").await.unwrap();
        kept::set(store.pool(), kept::SIGN_INS, "{}").await.unwrap();
        kept::set(store.pool(), kept::CLIENT_ID, "client").await.unwrap();
        revoke(data.path(), &clock, &store).await.unwrap();
        assert_eq!(revoked().await, [Some(1_000), None], "without the mark nothing is touched");

        // A mark that cannot be taken away: as if the program had died between the two.
        let mark = data.path().join(REVOKED);
        std::fs::create_dir(&mark).unwrap();
        hand.advance_ms(1_000);
        assert!(revoke(data.path(), &clock, &store).await.is_err(), "nothing may be served yet");
        assert_eq!(revoked().await, [Some(1_000), Some(2_000)]);
        assert_eq!(kept::get(store.pool(), kept::SIGN_INS).await.unwrap(), None);

        std::fs::remove_dir(&mark).unwrap();
        File::create(&mark).unwrap();
        hand.advance_ms(1_000);
        revoke(data.path(), &clock, &store).await.unwrap();
        assert_eq!(revoked().await, [Some(1_000), Some(2_000)], "when it was revoked stays");
        assert!(!mark.exists());
        assert_eq!(kept::get(store.pool(), kept::CLIENT_ID).await.unwrap().as_deref(), Some("client"));

        let keys = load().await;
        let third = keys.create("third").await.unwrap().unwrap();
        revoke(data.path(), &clock, &store).await.unwrap();
        assert!(load().await.is_live(third.expose_secret()));
    }
}
