//! The person's provider: taken from a newer `config.json` once, given back when that is rolled back, changed by the
//! person's own settings page.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use contracts::{instance::InstanceConfig, provider::ProviderConfig};
use store::Store;

use crate::kept;

/// The provider in use, kept in memory and in the database.
#[derive(Debug)]
pub struct Provider {
    store: Store,
    current: RwLock<Option<Arc<ProviderConfig>>>,
    /// What its owner tried last: in memory alone, so that its key need not be typed again to save it.
    tried: RwLock<Option<Arc<ProviderConfig>>>,
}

impl Provider {
    /// Reads what is kept, after taking over what `config` brings that is newer, or undoing that when `config` is an older
    /// one put back. The generation that was seen last changes nothing: what the person chose since then stands.
    ///
    /// A generation without a provider (before onboarding) takes nothing away.
    ///
    /// # Errors
    /// A database error, or a kept value that is unreadable.
    pub async fn load(store: Store, config: &InstanceConfig) -> anyhow::Result<Self> {
        let mut transaction = store.begin().await?;
        let seen = match kept::get(&mut *transaction, kept::GENERATION).await? {
            Some(text) => text.parse::<i64>().context("the kept generation is no number")?,
            None => i64::MIN,
        };
        if config.generation > seen {
            if let Some(provider) = &config.provider {
                let before = kept::get(&mut *transaction, kept::PROVIDER).await?;
                kept::set(&mut *transaction, kept::PROVIDER_BEFORE, before.as_deref().unwrap_or("null")).await?;
                kept::set(&mut *transaction, kept::PROVIDER, &serde_json::to_string(provider)?).await?;
                tracing::info!(generation = config.generation, "took the provider of a newer configuration");
            } else {
                kept::remove(&mut *transaction, kept::PROVIDER_BEFORE).await?;
            }
        } else if config.generation < seen {
            // Not the older file's provider: the person may have chosen another while that file was the newest.
            if let Some(before) = kept::get(&mut *transaction, kept::PROVIDER_BEFORE).await? {
                kept::set(&mut *transaction, kept::PROVIDER, &before).await?;
                kept::remove(&mut *transaction, kept::PROVIDER_BEFORE).await?;
                tracing::warn!(generation = config.generation, "went back to the provider of an older configuration");
            }
        }
        if config.generation != seen {
            kept::set(&mut *transaction, kept::GENERATION, &config.generation.to_string()).await?;
        }
        let text = kept::get(&mut *transaction, kept::PROVIDER).await?;
        transaction.commit().await?;
        // The parser's error may quote the value, so it is not kept as a cause.
        let current: Option<ProviderConfig> = text
            .map(|text| serde_json::from_str(&text).map_err(|_| anyhow::anyhow!("the kept provider is unreadable")))
            .transpose()?
            .flatten();
        Ok(Self { store, current: RwLock::new(current.map(Arc::new)), tried: RwLock::default() })
    }

    /// The provider in use; `None` before there is one.
    pub fn current(&self) -> Option<Arc<ProviderConfig>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was tried last and has not been saved.
    pub fn tried(&self) -> Option<Arc<ProviderConfig>> {
        self.tried.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what is being tried.
    pub fn set_tried(&self, provider: Option<Arc<ProviderConfig>>) {
        *self.tried.write().unwrap_or_else(PoisonError::into_inner) = provider;
    }

    /// Uses this one from now on; it has been checked.
    ///
    /// # Errors
    /// A database error; then the one before stays.
    pub async fn set(&self, provider: ProviderConfig) -> anyhow::Result<()> {
        kept::set(self.store.pool(), kept::PROVIDER, &serde_json::to_string(&provider)?).await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(provider));
        self.set_tried(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contracts::provider::ProviderKind;

    use super::*;

    fn config(generation: i64, model: Option<&str>) -> InstanceConfig {
        InstanceConfig { generation, provider: model.map(provider), ..crate::testing::config() }
    }

    fn provider(model: &str) -> ProviderConfig {
        ProviderConfig {
            kind: ProviderKind::Openai,
            base_url: "https://api.openai.com/v1".into(),
            model: model.into(),
            api_key: "k".to_owned().into(),
        }
    }

    #[tokio::test]
    async fn a_newer_generation_is_taken_once_and_the_persons_own_choice_stands_until_the_next() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let model = |loaded: &Provider| loaded.current().map(|p| p.model.clone());
        let first = Provider::load(store.clone(), &config(1, None)).await.unwrap();
        assert_eq!(model(&first), None);
        let second = Provider::load(store.clone(), &config(2, Some("from-portal"))).await.unwrap();
        assert_eq!(model(&second).as_deref(), Some("from-portal"));
        second.set(provider("own")).await.unwrap();
        // The same generation again and a newer one without a provider change nothing.
        for same in [config(2, Some("from-portal")), config(3, None), config(2, Some("from-portal"))] {
            assert_eq!(model(&Provider::load(store.clone(), &same).await.unwrap()).as_deref(), Some("own"));
        }
        let newer = Provider::load(store.clone(), &config(4, Some("newer"))).await.unwrap();
        assert_eq!(model(&newer).as_deref(), Some("newer"));
    }

    #[tokio::test]
    async fn an_older_generation_put_back_brings_back_the_provider_before() {
        let store = store::testing::sqlite(&crate::MIGRATOR).await;
        let load = async |config: InstanceConfig| Provider::load(store.clone(), &config).await.unwrap();
        let model = |loaded: &Provider| loaded.current().map(|p| p.model.clone());
        load(config(1, None)).await;
        assert_eq!(model(&load(config(2, Some("first"))).await).as_deref(), Some("first"));
        assert_eq!(model(&load(config(1, None)).await), None, "there was none before");

        let first = load(config(2, Some("first"))).await;
        assert_eq!(model(&first).as_deref(), Some("first"), "tried again, it is taken again");
        first.set(provider("own")).await.unwrap();
        for _ in 0..2 {
            assert_eq!(model(&load(config(3, Some("bad"))).await).as_deref(), Some("bad"));
        }
        for _ in 0..2 {
            assert_eq!(model(&load(config(2, Some("first"))).await).as_deref(), Some("own"));
        }
        load(config(2, Some("first"))).await.set(provider("later")).await.unwrap();
        assert_eq!(model(&load(config(2, Some("first"))).await).as_deref(), Some("later"));
        assert_eq!(model(&load(config(3, Some("better"))).await).as_deref(), Some("better"));
    }
}
