//! The live test of a provider: one tiny chat completion.

use std::{sync::Arc, time::Duration};

use contracts::provider::{ProviderConfig, ProviderTest, TestOutcome};
use http_body_util::{BodyExt, Limited};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{Failure, FailureKind, Upstream, chat_request, verdict};

/// How long the whole test may take: a model that has to be loaded first answers late.
const LIMIT: Duration = Duration::from_secs(40);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// How many tokens the model may spend on its answer.
const TOKENS: u32 = 16;

/// Asks the provider for a few words; what came of it.
pub async fn run(upstream: &Upstream, provider: &Arc<ProviderConfig>) -> ProviderTest {
    let test = async {
        let (status, body) = ask(upstream, provider, "max_tokens").await?;
        // Newer models of OpenAI refuse the older name, and other servers do not know the newer one.
        if status == 400 && String::from_utf8_lossy(&body).contains("max_completion_tokens") {
            return ask(upstream, provider, "max_completion_tokens").await;
        }
        Ok((status, body))
    };
    let answer = match tokio::time::timeout(LIMIT, test).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(Failure::new(FailureKind::Timeout, elapsed)),
    };
    match answer {
        Err(failure) => {
            tracing::info!(cause = failure.chain(), "a provider's test had no answer");
            ProviderTest { outcome: failure.kind.outcome(), status: None, provider_said: None }
        }
        Ok((status @ 200..=299, body)) => {
            let json: Option<Value> = serde_json::from_slice(&body).ok();
            let answered = json.is_some_and(|json| json["choices"].is_array());
            let outcome = if answered { TestOutcome::Ok } else { TestOutcome::NotAnApi };
            ProviderTest { outcome, status: Some(status), provider_said: None }
        }
        Ok((status, body)) => ProviderTest {
            outcome: verdict::judge(status, &body),
            status: Some(status),
            provider_said: verdict::said(&body, provider.api_key.expose_secret()),
        },
    }
}

async fn ask(upstream: &Upstream, provider: &Arc<ProviderConfig>, limit: &str) -> Result<(u16, Vec<u8>), Failure> {
    let body = json!({
        "model": provider.model,
        "messages": [{ "role": "user", "content": "Say OK." }],
        limit: TOKENS,
    });
    let request = chat_request(provider, &body, "application/json")
        .map_err(|error| Failure::new(FailureKind::Unreachable, error))?;
    let response = upstream.send(request).await?;
    let status = response.status().as_u16();
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(body) => Ok((status, body.to_bytes().to_vec())),
        // Too long for a chat completion of a few words: some other thing, which its beginning would not tell either.
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Ok((status, Vec::new())),
        Err(error) => Err(Failure::new(FailureKind::Cut, error)),
    }
}
