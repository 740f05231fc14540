//! Texts in the reader's language, from `locales/`.

use std::borrow::Cow;

use locale::Locale;

/// Texts in one language.
#[derive(Debug, Clone, Copy)]
pub struct Texts(pub Locale);

impl Texts {
    /// The text under `key`; the key itself when there is none, which a test rules out for every key in use.
    pub fn t(self, key: &str) -> Cow<'static, str> {
        self.get(key).unwrap_or_else(|| Cow::Owned(key.to_owned()))
    }

    /// The text under `key`, its `%{name}` replaced.
    pub fn with(self, key: &str, name: &str, value: impl ToString) -> String {
        rust_i18n::replace_patterns(&self.t(key), &[name], &[value.to_string()])
    }

    /// The text under `key`, when there is one.
    pub fn get(self, key: &str) -> Option<Cow<'static, str>> {
        crate::_rust_i18n_try_translate(self.0.code(), key)
    }

    /// What a refusal's stable code means, or, for a code without a text, a sentence with the code in it.
    pub fn error(self, code: &str) -> Cow<'static, str> {
        // A code comes from another service: only one that looks like a code is looked up or shown.
        let sound = !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !sound {
            return self.t("error.unknown_code");
        }
        self.get(&format!("error.{code}")).unwrap_or_else(|| Cow::Owned(self.with("error.generic", "code", code)))
    }

    /// What was wrong with a workspace, said as the reason for something else; when the code has words for that.
    pub fn cause(self, code: &str) -> Option<Cow<'static, str>> {
        self.get(&format!("cause.{code}"))
    }
}

#[cfg(test)]
mod tests;
