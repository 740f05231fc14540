//! AI providers: which there are, and what a person says of theirs.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

/// A kind of provider. All speak OpenAI's chat completions at their base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// OpenAI.
    Openai,
    /// Anthropic, through its OpenAI-compatible endpoint.
    Anthropic,
    /// DeepSeek.
    Deepseek,
    /// Google Gemini, through its OpenAI-compatible endpoint.
    Gemini,
    /// Moonshot (Kimi).
    Moonshot,
    /// Alibaba Cloud's Qwen, in its OpenAI-compatible mode.
    Qwen,
    /// An Ollama server; needs a base URL, and usually no key.
    Ollama,
    /// Any other OpenAI-compatible server; needs a base URL.
    OpenaiCompatible,
}

impl ProviderKind {
    /// Every kind, in the order that people are shown.
    pub const ALL: [Self; 8] = [
        Self::Openai,
        Self::Anthropic,
        Self::Deepseek,
        Self::Gemini,
        Self::Moonshot,
        Self::Qwen,
        Self::Ollama,
        Self::OpenaiCompatible,
    ];

    /// The name on the wire: as serde writes it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Deepseek => "deepseek",
            Self::Gemini => "gemini",
            Self::Moonshot => "moonshot",
            Self::Qwen => "qwen",
            Self::Ollama => "ollama",
            Self::OpenaiCompatible => "openai-compatible",
        }
    }

    /// The kind with this name on the wire.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The name people know it by; `None` for [`Self::OpenaiCompatible`], whose name is a phrase to be translated.
    pub fn brand(self) -> Option<&'static str> {
        Some(match self {
            Self::Openai => "OpenAI",
            Self::Anthropic => "Anthropic",
            Self::Deepseek => "DeepSeek",
            Self::Gemini => "Gemini",
            Self::Moonshot => "Moonshot",
            Self::Qwen => "Qwen",
            Self::Ollama => "Ollama",
            Self::OpenaiCompatible => return None,
        })
    }

    /// The base URL to offer; empty where the person must give one. `/chat/completions` is put behind it.
    pub fn default_base_url(self) -> &'static str {
        match self {
            Self::Openai => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
            Self::Deepseek => "https://api.deepseek.com/v1",
            Self::Gemini => "https://generativelanguage.googleapis.com/v1beta/openai",
            Self::Moonshot => "https://api.moonshot.cn/v1",
            Self::Qwen => "https://dashscope.aliyuncs.com/compatible-mode/v1",
            Self::Ollama | Self::OpenaiCompatible => "",
        }
    }

    /// A model name to show as an example.
    pub fn example_model(self) -> &'static str {
        match self {
            Self::Openai => "gpt-4o-mini",
            Self::Anthropic => "claude-sonnet-4-5",
            Self::Deepseek => "deepseek-chat",
            Self::Gemini => "gemini-2.5-flash",
            Self::Moonshot => "moonshot-v1-8k",
            Self::Qwen => "qwen-plus",
            Self::Ollama => "llama3.2",
            Self::OpenaiCompatible => "",
        }
    }

    /// Whether a key must be given.
    pub fn needs_key(self) -> bool {
        !matches!(self, Self::Ollama | Self::OpenaiCompatible)
    }
}

/// A person's provider. Its `Debug` hides the key; its `Serialize` does not, for that is how it reaches its instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Which kind.
    pub kind: ProviderKind,
    /// Where it is: an absolute http or https URL without query; `/chat/completions` is put behind it.
    pub base_url: String,
    /// The model to use.
    pub model: String,
    /// The key; empty where the provider needs none.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub api_key: SecretString,
}

fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// What is wrong with a [`ProviderConfig`], before anything is asked of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No base URL.
    #[error("the base URL is missing")]
    BaseUrlMissing,
    /// Not an absolute http or https URL, or one with user, query or fragment, or over 512 bytes.
    #[error("the base URL must be an http or https address without user, query or fragment")]
    BaseUrlInvalid,
    /// No model.
    #[error("the model is missing")]
    ModelMissing,
    /// Over 200 bytes, or with control characters.
    #[error("the model's name has at most 200 characters and no control characters")]
    ModelInvalid,
    /// No key where one is needed.
    #[error("the key is missing")]
    KeyMissing,
    /// Over 512 bytes, or with a space or a control character in it, or not ASCII: such a key fits no header.
    #[error("the key has characters that no key has; copy it again, without spaces or line ends")]
    KeyInvalid,
}

impl ProviderError {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::BaseUrlMissing => "provider_base_url_missing",
            Self::BaseUrlInvalid => "provider_base_url_invalid",
            Self::ModelMissing => "provider_model_missing",
            Self::ModelInvalid => "provider_model_invalid",
            Self::KeyMissing => "provider_key_missing",
            Self::KeyInvalid => "provider_key_invalid",
        }
    }

    /// The member of [`ProviderConfig`] that is wrong.
    pub fn field(self) -> &'static str {
        match self {
            Self::BaseUrlMissing | Self::BaseUrlInvalid => "base_url",
            Self::ModelMissing | Self::ModelInvalid => "model",
            Self::KeyMissing | Self::KeyInvalid => "api_key",
        }
    }
}

impl ProviderConfig {
    /// Trims what people paste, and checks it.
    ///
    /// # Errors
    /// The first [`ProviderError`] that holds.
    pub fn checked(mut self) -> Result<Self, ProviderError> {
        let base = self.base_url.trim().trim_end_matches('/');
        let base = if base.is_empty() { self.kind.default_base_url() } else { base };
        if base.is_empty() {
            return Err(ProviderError::BaseUrlMissing);
        }
        let url = url::Url::parse(base).map_err(|_| ProviderError::BaseUrlInvalid)?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|h| !h.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
            && base.len() <= 512
            && !base.chars().any(|c| c.is_control() || c.is_whitespace());
        if !plain {
            return Err(ProviderError::BaseUrlInvalid);
        }
        self.base_url = base.to_owned();
        self.model = self.model.trim().to_owned();
        if self.model.is_empty() {
            return Err(ProviderError::ModelMissing);
        }
        if self.model.len() > 200 || self.model.chars().any(char::is_control) {
            return Err(ProviderError::ModelInvalid);
        }
        let key = self.api_key.expose_secret().trim().to_owned();
        if key.is_empty() && self.kind.needs_key() {
            return Err(ProviderError::KeyMissing);
        }
        if key.len() > 512 || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ProviderError::KeyInvalid);
        }
        self.api_key = key.into();
        Ok(self)
    }
}

/// What a provider's live test found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderTest {
    /// What was found.
    pub outcome: TestOutcome,
    /// The provider's status, where it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The provider's own words, shortened, free of the key; may be shown to the person behind a heading of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_said: Option<String>,
}

/// The ends that a live test can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestOutcome {
    /// The model answered.
    Ok,
    /// The provider does not take the key (401, 403).
    BadKey,
    /// The provider has no such model (404, or 400 that says so).
    NoSuchModel,
    /// The base URL leads to something that does not speak this API.
    NotAnApi,
    /// The key has no credit or is over its limits (402, 429).
    QuotaOrRate,
    /// The address cannot be reached from this server: name, connection, or certificate.
    Unreachable,
    /// The operator's or the built-in address rules refuse this address.
    Refused,
    /// The provider failed on its side (5xx).
    ProviderFailed,
    /// No answer in time.
    Timeout,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: ProviderKind, base: &str, model: &str, key: &str) -> ProviderConfig {
        ProviderConfig { kind, base_url: base.into(), model: model.into(), api_key: key.to_owned().into() }
    }

    #[test]
    fn codes_are_those_on_the_wire() {
        for kind in ProviderKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.code());
            assert_eq!(ProviderKind::from_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn what_people_paste_is_trimmed() {
        let checked =
            config(ProviderKind::Openai, " https://api.openai.com/v1/ ", " gpt ", " sk-1\n").checked().unwrap();
        assert_eq!(
            (checked.base_url.as_str(), checked.model.as_str(), checked.api_key.expose_secret()),
            ("https://api.openai.com/v1", "gpt", "sk-1")
        );
        assert_eq!(
            config(ProviderKind::Qwen, "", "m", "k").checked().unwrap().base_url,
            ProviderKind::Qwen.default_base_url()
        );
    }

    #[test]
    fn each_fault_names_its_field() {
        use ProviderError::*;
        use ProviderKind::*;
        for (bad, error) in [
            (config(Ollama, "", "m", ""), BaseUrlMissing),
            (config(Openai, "ftp://x", "m", "k"), BaseUrlInvalid),
            (config(Openai, "https://u:p@x", "m", "k"), BaseUrlInvalid),
            (config(Openai, "https://x/?q", "m", "k"), BaseUrlInvalid),
            (config(Openai, "", "", "k"), ModelMissing),
            (config(Openai, "", "a\nb", "k"), ModelInvalid),
            (config(Openai, "", "m", ""), KeyMissing),
            (config(Openai, "", "m", "a\nb"), KeyInvalid),
            (config(Openai, "", "m", "a\0b"), KeyInvalid),
            (config(Openai, "", "m", "ключ"), KeyInvalid),
        ] {
            assert_eq!(bad.checked().unwrap_err(), error);
        }
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let shown = format!("{:?}", config(ProviderKind::Openai, "", "m", "canary-key"));
        assert!(!shown.contains("canary-key"), "{shown}");
    }
}
