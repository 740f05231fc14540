//! The router goes in the middle of everybody's streams.
//!
//! What is promised: a router that is killed ends what is under way, and none of it looks as if it had come to its end;
//! one that is asked to end lets what is under way go on for ten seconds first. Whoever opens it again gets their own.

use std::os::unix::net::UnixStream;

use anyhow::ensure;
use beaver_tests::{chaos::faults::kill_process, streams::Stream, wait};
use bollard::{Docker, query_parameters::RestartContainerOptionsBuilder};

use super::{PATIENCE, Town};
use crate::operating;

/// How long the engine gives it, in seconds: as much as `compose.yaml` says.
const GRACE_S: i32 = 20;

impl Town<'_> {
    fn router(&self) -> String {
        self.stack.container("router-proxy")
    }

    /// SIGKILL.
    pub(super) async fn router_killed(&self, docker: &Docker) -> anyhow::Result<()> {
        let streams = self.open_all().await?;
        self.go_on(&streams, 3).await?;
        kill_process(docker, &self.router()).await?;
        let whole = self.ended(&streams).await?;
        ensure!(whole == 0, "{whole} streams look as if they had come to their end");
        self.all_again().await
    }

    /// SIGTERM, and the same container again.
    pub(super) async fn router_restarted(&self, docker: &Docker) -> anyhow::Result<()> {
        let streams = self.open_all().await?;
        self.go_on(&streams, 3).await?;
        let (docker, router) = (docker.clone(), self.router());
        let restarting = tokio::spawn(async move {
            let patient = RestartContainerOptionsBuilder::new().t(GRACE_S).build();
            docker.restart_container(&router, Some(patient)).await
        });
        let tenant = self.tenants.first().expect("somebody");
        wait::until("it takes nothing new", PATIENCE, async || {
            anyhow::Ok(UnixStream::connect(self.door(tenant.id)).is_err().then_some(()))
        })
        .await?;
        let ended = streams.iter().filter(|stream| stream.has_ended()).count();
        ensure!(ended == 0, "{ended} streams have ended before they were to");
        self.provider.finish().await?;
        let whole = self.ended(&streams).await?;
        restarting.await??;
        ensure!(whole == streams.len(), "{whole} of {} streams came to their end", streams.len());
        self.all_again().await
    }

    /// `up` with another image, while what is under way does not come to an end by itself.
    pub(super) async fn router_replaced(&self, docker: &Docker) -> anyhow::Result<()> {
        let before = docker.inspect_container(&self.router(), None).await?.id;
        let streams = self.open_all().await?;
        self.go_on(&streams, 3).await?;
        operating::exchange(docker, self.stack.prefix(), "router-proxy").await?;
        let output = self.stack.beaver(&["up", "--no-build"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(docker.inspect_container(&self.router(), None).await?.id != before, "it is the same");
        let whole = self.ended(&streams).await?;
        ensure!(whole == 0, "{whole} streams look as if they had come to their end");
        self.all_again().await
    }

    /// Everybody opens everything again, by themselves, and has it to its end.
    async fn all_again(&self) -> anyhow::Result<()> {
        let streams: Vec<Stream> = self.open_all().await?;
        self.go_on(&streams, 3).await?;
        self.provider.finish().await?;
        let whole = self.ended(&streams).await?;
        ensure!(whole == streams.len(), "afterwards {whole} of {} come to their end", streams.len());
        Ok(())
    }
}
