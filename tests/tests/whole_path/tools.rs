//! What an operator looks at a workspace with, whose container has neither network nor shell.

use anyhow::ensure;
use beaver_tests::{stack::Engine, steps::Steps};

use crate::World;

impl World<'_> {
    /// `logs`, `curl`, `exec` and `status`.
    pub async fn tools(&self, steps: &mut Steps) {
        let slug = self.alice.slug.as_str();
        let beaver = async |arguments: &[&str]| {
            let output = self.stack.beaver(arguments).await?;
            let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            anyhow::Ok((output.status.code(), out.into_owned(), error.into_owned()))
        };
        let logs = async {
            let (code, out, error) = beaver(&["logs", slug, "--tail", "5"]).await?;
            let lines = out.lines().count() + error.lines().count();
            ensure!(code == Some(0) && (1..=5).contains(&lines), "{code:?}: {out}{error}");
            let (code, _, error) = beaver(&["logs", "nobody-at-all"]).await?;
            ensure!(code == Some(2) && error.contains("there is no workspace nobody-at-all"), "{code:?}: {error}");
            Ok(())
        };
        steps.check("beaver logs shows what a workspace writes", logs).await;

        let curl = async {
            let (code, out, error) = beaver(&["curl", slug, "/readyz", "--include"]).await?;
            let (head, body) = out.split_once("\n\n").unwrap_or_default();
            let ready: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            ensure!(code == Some(0) && head.starts_with("HTTP/1.1 200 OK\n"), "{code:?}: {out}{error}");
            ensure!(ready["registered"] == true, "{out}");
            // The control of --fail, and of data on its way in: nothing is made without a key.
            let ask =
                ["curl", slug, "/v1/chat/completions", "--fail", "-H", "content-type: application/json", "-d", "{}"];
            let (code, out, error) = beaver(&ask).await?;
            ensure!(code == Some(1) && out.contains("\"error\""), "{code:?}: {out}{error}");
            Ok(())
        };
        steps.check("beaver curl asks a workspace", curl).await;

        let exec = async {
            let (code, out, error) = beaver(&["exec", slug, "/app-instance", "--version"]).await?;
            match self.stack.engine() {
                Engine::Process => ensure!(code == Some(2) && error.contains("a shell of yours"), "{code:?}: {error}"),
                _ => {
                    ensure!(code == Some(0) && out.starts_with("app-instance "), "{code:?}: {out}{error}");
                    let (code, out, error) = beaver(&["exec", slug, "sh"]).await?;
                    ensure!(code == Some(1) && error.contains("no such program"), "{code:?}: {out}{error}");
                }
            }
            Ok(())
        };
        steps.check("beaver exec runs what an image has", exec).await;

        let status = async {
            let (code, out, error) = beaver(&["status", "--json"]).await?;
            let told: serde_json::Value = serde_json::from_str(&out)?;
            let used = told["egress"]["instances"].as_array().cloned().unwrap_or_default();
            // She asked a model: something went out, and came back.
            let busy =
                used.iter().any(|used| used["bytes_out"].as_u64() > Some(0) && used["bytes_in"].as_u64() > Some(0));
            ensure!(code == Some(0) && busy, "{code:?}: {out}{error}");
            let (code, out, _) = beaver(&["status"]).await?;
            ensure!(code == Some(0) && out.contains("RECEIVED") && out.contains(slug), "{code:?}: {out}");
            Ok(())
        };
        steps.check("beaver status tells what workspaces sent and received", status).await;
    }
}
