//! A long flow as named steps: each is timed and printed, and one that fails does not hide those after it.

use std::time::Instant;

/// Collects how the steps of a run went.
pub struct Steps {
    run: String,
    failed: Vec<String>,
}

impl Steps {
    /// Of the run `run`, which goes before each line: the engine it is on.
    pub fn new(run: impl Into<String>) -> Self {
        Self { run: run.into(), failed: Vec::new() }
    }

    /// A step that later ones do not need: a failure is kept for the end.
    pub async fn check(&mut self, name: &str, step: impl Future<Output = anyhow::Result<()>>) {
        // What it says is recorded already.
        let _ = self.need(name, step).await;
    }

    /// A step that later ones need: a failure ends the run at the caller's `?`.
    ///
    /// # Errors
    /// The step's own.
    pub async fn need<T>(&mut self, name: &str, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let result = step.await;
        let took = begun.elapsed().as_secs_f64();
        match &result {
            Ok(_) => crate::say(format!("{}: ok     {took:6.2} s  {name}", self.run)),
            Err(error) => {
                crate::say(format!("{}: FAILED {took:6.2} s  {name}: {error:#}", self.run));
                self.failed.push(format!("{name}: {error:#}"));
            }
        }
        result
    }

    /// How many steps failed so far.
    pub fn failures(&self) -> usize {
        self.failed.len()
    }

    /// Ends the run.
    ///
    /// # Errors
    /// Names every step that failed, and `result`'s own error.
    pub fn end(mut self, result: anyhow::Result<()>) -> anyhow::Result<()> {
        if let Err(error) = result {
            let said = format!("{error:#}");
            if !self.failed.iter().any(|f| f.contains(&said)) {
                self.failed.push(said);
            }
        }
        anyhow::ensure!(
            self.failed.is_empty(),
            "{}: {} failed:\n  {}",
            self.run,
            self.failed.len(),
            self.failed.join("\n  ")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_failure_is_in_the_end() {
        let mut steps = Steps::new("self-test");
        steps.check("good", async { Ok(()) }).await;
        steps.check("bad", async { anyhow::bail!("one") }).await;
        let needed = steps.need("worse", async { anyhow::bail!("two") }).await.map(|(): ()| ());
        assert_eq!(steps.failures(), 2);
        let said = steps.end(needed).unwrap_err().to_string();
        assert!(said.contains("bad: one") && said.contains("worse: two") && !said.contains("good"), "{said}");
        Steps::new("self-test").end(Ok(())).unwrap();
    }
}
