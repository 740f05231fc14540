//! What a person reads, in their language: `locales/`.

use locale::Locale;

use crate::app::App;

/// The text of `key` in `locale`.
pub fn text(locale: Locale, key: &str) -> String {
    rust_i18n::t!(key, locale = locale.code()).into_owned()
}

/// What every page is made with.
#[derive(Debug, Clone)]
pub struct Texts {
    /// The language.
    pub locale: Locale,
    /// The workspace's name.
    pub slug: String,
    /// The portal's origin.
    pub portal: String,
    /// The page's own path, to come back to after a change of language.
    pub here: &'static str,
}

impl Texts {
    /// For the page at `here`.
    pub fn new(app: &App, locale: Locale, here: &'static str) -> Self {
        Self { locale, slug: app.config.slug.to_string(), portal: app.config.portal.clone(), here }
    }

    /// The text of `key`.
    pub fn get(&self, key: &str) -> String {
        text(self.locale, key)
    }

    /// The language to switch to.
    pub fn other(&self) -> Locale {
        Locale::ALL.into_iter().find(|locale| *locale != self.locale).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The quoted words in a text that look like keys of ours.
    fn keys_in(text: &str, found: &mut BTreeSet<String>) {
        for word in text.split('"') {
            if let Some((area, name)) = word.split_once('.')
                && ["nav", "notice", "chat", "answer", "settings", "test", "field"].contains(&area)
                && !["", "html"].contains(&name)
                && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            {
                found.insert(word.to_owned());
            }
        }
    }

    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "html") {
                keys_in(&fs::read_to_string(&path).unwrap(), found);
            }
        }
    }

    #[test]
    fn every_text_that_is_used_exists_in_both_languages_and_differs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut used = BTreeSet::new();
        walk(&root.join("src"), &mut used);
        walk(&root.join("../templates/instance"), &mut used);
        assert!(used.len() > 60, "{}", used.len());
        for code in ["bad_key", "no_such_model", "not_an_api", "quota_or_rate", "unreachable", "refused"] {
            used.insert(format!("answer.{code}"));
            used.insert(format!("test.{code}"));
        }
        for key in used {
            let [english, chinese] = Locale::ALL.map(|locale| text(locale, &key));
            assert!(!english.contains(&key) && !chinese.contains(&key), "{key} is missing");
            assert!(english != chinese || key == "settings.base_url", "{key} is not translated: {english}");
        }
    }
}
