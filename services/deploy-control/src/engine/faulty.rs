//! An engine whose calls tests strike at; see [`crate::strikes`].

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use contracts::InstanceId;
use futures_util::stream::BoxStream;
use tokio::runtime::Handle;

use super::{Capabilities, Endpoint, Engine, EngineError, Hint, InstanceSpec, Passage, Unit};
use crate::strikes::Strikes;

/// An engine, decorated.
pub struct Faulty {
    inner: Arc<dyn Engine>,
    strikes: Strikes,
    /// Where calls go on that nobody waits for any more.
    beyond: Handle,
}

impl Faulty {
    /// This engine with this seam. Calls that go on after the end of the service do so on the present runtime.
    pub fn new(inner: Arc<dyn Engine>, strikes: Strikes) -> Self {
        Self { inner, strikes, beyond: Handle::current() }
    }

    async fn pass<T, F>(
        &self,
        call: &'static str,
        id: InstanceId,
        work: impl FnOnce(Arc<dyn Engine>) -> F,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let work = work(self.inner.clone());
        if let Some(looked) = self.strikes.life().and_then(|life| life.late(call, id)) {
            // The engine has been asked, and whoever asked is gone.
            self.beyond.spawn(async move {
                looked.await;
                let _ = work.await;
            });
            return self.strikes.pass(call, id, std::future::pending()).await;
        }
        self.strikes.pass(call, id, work).await
    }
}

#[async_trait]
impl Engine for Faulty {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        self.inner.capabilities().await
    }

    async fn fingerprint(&self, spec: &InstanceSpec) -> Result<String, EngineError> {
        let wanted = spec.clone();
        self.pass("engine.fingerprint", spec.id, move |engine| async move { engine.fingerprint(&wanted).await }).await
    }

    async fn release(&self, spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        let wanted = spec.clone();
        self.pass("engine.release", spec.id, move |engine| async move { engine.release(&wanted).await }).await
    }

    async fn keep_release(&self, release: &str) -> Result<(), EngineError> {
        self.inner.keep_release(release).await
    }

    async fn keep_releases(&self, releases: &BTreeSet<String>) -> Result<(), EngineError> {
        self.inner.keep_releases(releases).await
    }

    async fn observe(&self, id: InstanceId) -> Result<Option<Unit>, EngineError> {
        let seen = self.pass("engine.observe", id, move |engine| async move { engine.observe(id).await }).await;
        if let Some(life) = self.strikes.life() {
            life.looked(id);
        }
        seen
    }

    async fn list(&self) -> Result<Vec<Unit>, EngineError> {
        self.inner.list().await
    }

    async fn ensure(&self, spec: &InstanceSpec) -> Result<(), EngineError> {
        let wanted = spec.clone();
        self.pass("engine.ensure", spec.id, move |engine| async move { engine.ensure(&wanted).await }).await
    }

    async fn start(&self, id: InstanceId) -> Result<(), EngineError> {
        self.pass("engine.start", id, move |engine| async move { engine.start(id).await }).await
    }

    async fn pause(&self, id: InstanceId) -> Result<(), EngineError> {
        self.pass("engine.pause", id, move |engine| async move { engine.pause(id).await }).await
    }

    async fn stop(&self, id: InstanceId) -> Result<(), EngineError> {
        self.pass("engine.stop", id, move |engine| async move { engine.stop(id).await }).await
    }

    async fn last_lines(&self, id: InstanceId) -> Result<String, EngineError> {
        self.inner.last_lines(id).await
    }

    async fn remove(&self, id: InstanceId) -> Result<(), EngineError> {
        self.pass("engine.remove", id, move |engine| async move { engine.remove(id).await }).await
    }

    fn runs_images(&self) -> bool {
        self.inner.runs_images()
    }

    async fn id_shift(&self) -> Result<u32, EngineError> {
        self.inner.id_shift().await
    }

    async fn border(&self, spec: &InstanceSpec) -> Result<Option<String>, EngineError> {
        self.inner.border(spec).await
    }

    async fn try_passage(&self, spec: &InstanceSpec) -> Result<Passage, EngineError> {
        self.inner.try_passage(spec).await
    }

    async fn end_passage(&self) -> Result<(), EngineError> {
        self.inner.end_passage().await
    }

    fn endpoint(&self, spec: &InstanceSpec) -> Endpoint {
        self.inner.endpoint(spec)
    }

    async fn watch(&self) -> Result<BoxStream<'static, Hint>, EngineError> {
        self.inner.watch().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
