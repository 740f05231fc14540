//! OpenAI's own SDK for Python against a workspace's address, unchanged.

use anyhow::{Context, ensure};
use beaver_tests::{
    people::by_form,
    provider::{CHAT, MODELS, reply_to},
    python,
    web::Web,
    workspace,
};
use serde_json::Value;

use crate::World;

/// What is said through the SDK.
pub const SDK_SAYS: &str = "canary-prompt-sdk: tell me 一";

/// Prints one JSON object of what the SDK made of it.
const SCRIPT: &str = r#"
import json, os, openai
client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
messages = [{"role": "user", "content": os.environ["SAYS"]}]
model = os.environ["MODEL"]
out = {"models": sorted(m.id for m in client.models.list())}
whole = client.chat.completions.create(model=model, messages=messages)
out["whole"] = whole.choices[0].message.content
out["kept"] = (whole.model_extra or {}).get("x_fake", {}).get("kept")
pieces = [c.choices[0].delta.content for c in client.chat.completions.create(model=model, messages=messages, stream=True) if c.choices and c.choices[0].delta.content]
out["streamed"], out["pieces"] = "".join(pieces), len(pieces)
try:
    openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="sk-" + "x" * 40, max_retries=0).models.list()
    out["wrong_key"] = "taken"
except openai.AuthenticationError as e:
    out["wrong_key"] = e.status_code
try:
    client.chat.completions.create(model="no-such-model", messages=messages)
    out["wrong_model"] = "taken"
except openai.NotFoundError as e:
    out["wrong_model"] = e.code
cut = client.chat.completions.create(model="fake-cut", messages=messages, stream=True)
try:
    for _ in cut: pass
    out["cut"] = "ended well"
except openai.APIError as e:
    out["cut"] = "error"
except Exception as e:
    out["cut"] = "error"
print(json.dumps(out))
"#;

impl World<'_> {
    /// Lists models and chats, streaming and not, with alice's key at alice's address; the key.
    pub async fn openai_sdk(&self) -> anyhow::Result<String> {
        let mut web = Web::new("en")?;
        by_form::sign_in(&mut web, self.stack, &self.alice.email, &self.alice.password).await?.expect(200)?;
        by_form::enter(&mut web, self.stack, &self.alice.slug).await?;
        let key = workspace::make_key(&mut web, self.stack, &self.alice.slug, "sdk").await?;
        let base_url = format!("{}/v1", self.stack.origin(&self.alice.slug));
        let variables = [("BASE_URL", base_url.as_str()), ("API_KEY", &key), ("SAYS", SDK_SAYS), ("MODEL", CHAT)];
        let printed =
            python::script(SCRIPT, &variables).await.context("programs find *.localhost with libnss-myhostname")?;
        let out: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
        let mut models = MODELS.to_vec();
        models.sort_unstable();
        ensure!(out["models"] == serde_json::json!(models), "models: {}", out["models"]);
        ensure!(out["whole"] == reply_to(SDK_SAYS), "not streamed: {}", out["whole"]);
        ensure!(out["kept"] == true, "a member that no API has was lost: {out}");
        ensure!(out["streamed"] == reply_to(SDK_SAYS), "streamed: {}", out["streamed"]);
        ensure!(out["pieces"].as_u64().is_some_and(|pieces| pieces > 3), "it came in {} pieces", out["pieces"]);
        ensure!(out["wrong_key"] == 401, "a wrong key: {}", out["wrong_key"]);
        ensure!(out["wrong_model"] == "model_not_found", "a wrong model: {}", out["wrong_model"]);
        ensure!(out["cut"] == "error", "a stream that was cut {}", out["cut"]);
        // The key of the provider went out, and the workspace's own did not.
        for asked in self.provider.asked(SDK_SAYS).await? {
            let shown = asked.header("authorization");
            ensure!(shown == Some(&format!("Bearer {}", self.alice.key)), "the provider was shown {shown:?}");
        }
        Ok(key)
    }
}
