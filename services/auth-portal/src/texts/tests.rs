//! Every text in both languages, every key in use there, and no text that nothing shows.

use std::{collections::BTreeSet, fs, path::Path};

use contracts::{SlugError, deploy::Phase, egress::RefusalReason, provider::ProviderError};

use super::*;

fn files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((path.display().to_string(), text));
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(&root.join("src"), &mut found);
    files(&root.join("../../templates/portal"), &mut found);
    found
}

/// Keys as text of a call with a literal: `t("…")`, `with("…"`, `get("…")`, and those `format!`ted as prefixes.
fn literals() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (path, text) in sources() {
        if path.ends_with("tests.rs") {
            continue;
        }
        for call in ["t(\"", "with(\"", "t(&format!(\"", "get(&format!(\"", "error(\""] {
            for (at, _) in text.match_indices(call) {
                let before = text[..at].chars().next_back();
                let rest = &text[at + call.len()..];
                if !matches!(before, Some('.')) {
                    continue;
                }
                let Some((key, _)) = rest.split_once('"').filter(|(key, _)| !key.starts_with('/')) else { continue };
                let key = if call == "error(\"" { format!("error.{key}") } else { key.to_owned() };
                keys.insert(key);
            }
        }
    }
    keys
}

fn all_keys(locale: Locale) -> BTreeSet<String> {
    let listed = crate::_rust_i18n_backend().messages_for_locale(locale.code()).unwrap_or_default();
    listed.into_iter().map(|(key, _)| key.into_owned()).collect()
}

#[test]
fn both_languages_have_the_same_keys_and_placeholders() {
    let english = all_keys(Locale::En);
    assert!(english.len() > 200, "{}", english.len());
    assert_eq!(english, all_keys(Locale::ZhCn));
    let places = |text: &str| {
        let names = text.match_indices("%{").filter_map(|(at, _)| text[at..].split('}').next().map(str::to_owned));
        names.collect::<BTreeSet<_>>()
    };
    for key in &english {
        let (en, zh) = (Texts(Locale::En).t(key), Texts(Locale::ZhCn).t(key));
        assert!(!en.trim().is_empty() && !zh.trim().is_empty(), "{key}");
        assert_eq!(places(&en), places(&zh), "{key}");
        assert!(en.is_ascii() || en.chars().all(|c| c.is_ascii() || "…’“”–—".contains(c)), "{key}: {en}");
        let chinese = zh.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        assert!(chinese || key == "operator.id", "{key}: {zh}");
    }
}

#[test]
fn every_key_in_use_exists() {
    let (known, used) = (all_keys(Locale::En), literals());
    assert!(used.len() > 100, "{}", used.len());
    for key in used {
        let found = match key.split_once('{') {
            None => known.contains(&key),
            Some(("", _)) => true,
            Some((prefix, _)) => known.iter().any(|k| k.starts_with(prefix)),
        };
        assert!(found, "{key}");
    }
}

#[test]
fn no_text_is_left_over() {
    let used = literals();
    let prefixes: Vec<&str> =
        used.iter().filter_map(|key| Some(key.split_once('{')?.0)).filter(|p| !p.is_empty()).collect();
    for key in all_keys(Locale::En) {
        let by_code = key.starts_with("error.") || key.starts_with("instance_error.");
        // The title of a live page is its view's.
        let title = ["progress.title", "applying.title", "instance.title"].contains(&key.as_str());
        let shown = by_code || title || used.contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix));
        assert!(shown, "{key} is shown nowhere");
    }
}

#[test]
fn every_code_and_state_of_the_contracts_has_its_words() {
    let t = Texts(Locale::ZhCn);
    let mut keys: Vec<String> = Vec::new();
    for error in
        [SlugError::TooShort, SlugError::TooLong, SlugError::Characters, SlugError::Hyphen, SlugError::Reserved]
    {
        keys.push(format!("error.{}", error.code()));
    }
    for error in [
        ProviderError::BaseUrlMissing,
        ProviderError::BaseUrlInvalid,
        ProviderError::ModelMissing,
        ProviderError::ModelInvalid,
        ProviderError::KeyMissing,
        ProviderError::KeyInvalid,
    ] {
        keys.push(format!("error.{}", error.code()));
    }
    let phases = [
        Phase::Accepted,
        Phase::Preparing,
        Phase::Creating,
        Phase::Starting,
        Phase::Registering,
        Phase::Ready,
        Phase::Paused,
        Phase::Asleep,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Failed,
        Phase::Unknown,
        Phase::PendingDeletion,
        Phase::Deleting,
        Phase::Deleted,
    ];
    for name in phases.map(crate::view::phase_name) {
        keys.extend(["phase", "phase_text", "progress"].map(|group| format!("{group}.{name}")));
    }
    for code in [
        "engine_unavailable",
        "engine_capacity",
        "engine_rejected",
        "image_missing",
        "plan_missing",
        "plan_needs_images",
        "not_healthy_in_time",
        "crash_loop",
        "registration_failed",
        "config_not_accepted",
        "storage_failed",
        "sockets_blocked",
        "disk_exceeded",
        "restore_not_accepted",
        "internal",
        "other",
    ] {
        keys.push(format!("instance_error.{code}"));
    }
    // What the router says of an instance that it cannot hand a call to.
    keys.extend(
        ["instance_unreachable", "instance_asleep", "instance_timeout", "instance_broken"]
            .map(|code| format!("error.{code}")),
    );
    for reason in [RefusalReason::Denied, RefusalReason::NotListed, RefusalReason::Address, RefusalReason::Number] {
        keys.push(format!("egress_reason.{}", reason.as_str()));
    }
    for key in keys {
        assert!(t.get(&key).is_some(), "{key}");
    }
    for phase in phases {
        assert_eq!(serde_json::to_value(phase).unwrap(), crate::view::phase_name(phase));
    }
}

/// What is code, without its tests.
fn code_of(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder), &mut found);
    found.retain(|(path, _)| path.ends_with(".rs") && !path.contains("/tests"));
    for (_, text) in &mut found {
        let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        text.truncate(end);
    }
    found
}

/// The literals of a stretch of code that look like a stable code.
fn codes_in(text: &str) -> impl Iterator<Item = &str> {
    let literals = text.split('"').skip(1).step_by(2);
    literals.filter(|literal| {
        !literal.is_empty() && literal.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !literal.starts_with('_')
    })
}

/// The stretch from the end of `mark` to the parenthesis or brace that closes what it opened.
fn inside(text: &str, open: char, close: char) -> &str {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        depth += i32::from(c == open) - i32::from(c == close);
        if depth == 0 {
            return &text[..at];
        }
    }
    panic!("never closed: {text:.60}");
}

/// Every code that a part refuses with: of the calls that make problems, and of functions that name a code.
fn refusals(folder: &str) -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    for (path, text) in code_of(folder) {
        // What comes before the code among a call's literals: nothing, or the field's name.
        for (call, before) in [("Problem::new(", 0), ("Problem::field(", 1), ("not_found(", 0), ("Self::new(", 0)] {
            for (at, _) in text.match_indices(call) {
                let arguments = inside(&text[at + call.len()..], '(', ')');
                codes.extend(codes_in(arguments).nth(before).map(str::to_owned));
            }
        }
        for name in ["fn code(", "fn own_code("] {
            for (at, _) in text.match_indices(name) {
                let Some((_, body)) = text[at..].split_once('{') else { panic!("{path}: {name} has no body") };
                // One word is a kind's name, not a refusal's.
                let words = codes_in(inside(body, '{', '}')).filter(|code| code.contains('_'));
                codes.extend(words.map(str::to_owned));
            }
        }
    }
    codes
}

#[test]
fn every_code_that_a_service_refuses_with_has_its_words() {
    let parts = [
        // What is looked for is found: a few of each, made in each of the ways.
        (refusals("services/authz/src"), &["bad_credentials", "email_taken", "password_weak", "locale_unknown"][..]),
        (refusals("services/deploy-control/src"), &["instance_not_found", "slug_taken"]),
        (refusals("services/auth-portal/src"), &["wrong_origin", "session_ended", "method_not_allowed"]),
        (refusals("crates/service/src"), &["unavailable", "internal", "invalid_request", "service_token_required"]),
        (refusals("crates/contracts/src"), &["slug_hyphen", "provider_key_missing"]),
    ];
    let texts = all_keys(Locale::ZhCn);
    for (codes, known) in parts {
        for code in known {
            assert!(codes.contains(*code), "{code} is not found among {codes:?}");
        }
        for code in codes {
            assert!(texts.contains(&format!("error.{code}")), "there is no text for {code}");
        }
    }
}

#[test]
fn whatever_the_way_out_refuses_has_its_words() {
    let mut codes = BTreeSet::new();
    for (_, text) in code_of("router-proxy/src/egress") {
        codes.extend(codes_in(&text).filter(|code| code.starts_with("egress_")).map(str::to_owned));
    }
    // The reason of this one is the rule's.
    assert!(codes.remove("egress_refused") && codes.contains("egress_too_many"), "{codes:?}");
    let texts = all_keys(Locale::ZhCn);
    for code in codes {
        assert!(texts.contains(&format!("egress_reason.{code}")), "there is no text for {code}");
    }
}

#[test]
fn every_failure_of_an_instance_has_its_words() {
    let mut codes = BTreeSet::new();
    for (_, text) in code_of("services/deploy-control/src/reconcile") {
        for (at, mark) in text.match_indices("InstanceError {") {
            codes.extend(codes_in(inside(&text[at + mark.len()..], '{', '}')).map(str::to_owned));
        }
        for (at, mark) in text.match_indices(": &str = ") {
            codes.extend(codes_in(text[at + mark.len()..].lines().next().unwrap_or_default()).map(str::to_owned));
        }
    }
    for known in ["engine_unavailable", "image_missing", "crash_loop", "config_not_accepted", "not_healthy_in_time"] {
        assert!(codes.contains(known), "{known} is not found among {codes:?}");
    }
    let texts = all_keys(Locale::ZhCn);
    for code in codes {
        assert!(texts.contains(&format!("instance_error.{code}")), "there is no text for {code}");
        // What was taken back is no reason for taking something back.
        let is_cause = !code.ends_with("_not_accepted");
        assert!(!is_cause || texts.contains(&format!("cause.{code}")), "{code} has no words as a reason");
    }
}

#[test]
fn an_unknown_code_is_shown_and_a_strange_one_is_not() {
    let t = Texts(Locale::En);
    assert!(t.error("brand_new_code").contains("brand_new_code"));
    for strange in ["", "<script>", "error.x", "Ünïcode", &"x".repeat(65)] {
        let text = t.error(strange);
        assert_eq!(text, t.t("error.unknown_code"), "{strange}");
    }
}
