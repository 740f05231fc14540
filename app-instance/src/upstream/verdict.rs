//! What a provider's answer means, and its own words made fit to be shown.

use contracts::provider::TestOutcome;
use serde_json::Value;

/// The longest piece of a provider's own words that is shown, in characters.
const MAX_SAID: usize = 300;
/// A piece of the key of this length, in bytes, is not shown either.
const KEY_PIECE: usize = 8;

/// What an unsuccessful answer means. Providers agree on statuses only in part, so for 400 and 404 the words count.
pub fn judge(status: u16, body: &[u8]) -> TestOutcome {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let words = String::from_utf8_lossy(body).to_lowercase();
    let says = |parts: &[&str]| json.is_some() && parts.iter().any(|part| words.contains(part));
    match status {
        401 | 403 => TestOutcome::BadKey,
        402 | 429 => TestOutcome::QuotaOrRate,
        408 | 504 => TestOutcome::Timeout,
        500..=599 => TestOutcome::ProviderFailed,
        // Gemini answers a bad key with 400.
        400 if says(&["api key", "api_key", "apikey"]) => TestOutcome::BadKey,
        400 | 404 | 422 if says(&["model"]) => TestOutcome::NoSuchModel,
        _ => TestOutcome::NotAnApi,
    }
}

/// The provider's own words in an error body, in the shapes that providers use; shortened, in one line, free of the key.
pub fn said(body: &[u8], key: &str) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    // Gemini puts its error into a list.
    let json = json.as_array().and_then(|list| list.first()).unwrap_or(&json);
    let error = json.get("error").unwrap_or(json);
    let words = [error, &error["message"], &error["detail"], &json["message"]].into_iter().find_map(Value::as_str)?;
    let words = scrub(words, key);
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut shown: String = line.trim().chars().take(MAX_SAID).collect();
    if line.trim().chars().count() > MAX_SAID {
        shown.push('…');
    }
    (!shown.is_empty()).then_some(shown)
}

/// `text` without the key and without longer pieces of it.
fn scrub(text: &str, key: &str) -> String {
    let (bytes, key) = (text.as_bytes(), key.as_bytes());
    let piece = KEY_PIECE.min(key.len());
    if piece == 0 {
        return text.to_owned();
    }
    let mut hidden = vec![false; bytes.len()];
    for (at, window) in bytes.windows(piece).enumerate() {
        if key.windows(piece).any(|part| part == window) {
            hidden[at..at + piece].fill(true);
        }
    }
    // A key is ASCII, so what is hidden begins and ends between characters.
    let mut shown = String::new();
    for (at, c) in text.char_indices() {
        if !hidden[at] {
            shown.push(c);
        } else if at == 0 || !hidden[at - 1] {
            shown.push('…');
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_real_providers_are_understood() {
        use TestOutcome::*;
        for (status, body, outcome) in [
            (401, r#"{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}"#, BadKey),
            (403, "", BadKey),
            (400, r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}]"#, BadKey),
            (404, r#"{"error":{"message":"The model `x` does not exist","code":"model_not_found"}}"#, NoSuchModel),
            (404, r#"{"error":{"type":"not_found_error","message":"model: x"}}"#, NoSuchModel),
            (400, r#"{"error":{"message":"Model Not Exist"}}"#, NoSuchModel),
            (404, r#"{"error":{"message":"Invalid URL (POST /chat/completions)"}}"#, NotAnApi),
            (404, "<html>a model of a page</html>", NotAnApi),
            (400, r#"{"error":{"message":"bad"}}"#, NotAnApi),
            (301, "", NotAnApi),
            (405, "", NotAnApi),
            (402, "{}", QuotaOrRate),
            (429, "{}", QuotaOrRate),
            (503, "", ProviderFailed),
            (504, "", Timeout),
        ] {
            assert_eq!(judge(status, body.as_bytes()), outcome, "{status} {body}");
        }
    }

    #[test]
    fn the_providers_words_are_short_and_free_of_the_key() {
        let key = "sk-canary-0123456789";
        let whole = format!(r#"{{"error":{{"message":"bad key {key}\nthe end"}}}}"#);
        assert_eq!(said(whole.as_bytes(), key).unwrap(), "bad key … the end");
        let part = r#"{"error":{"message":"bad key sk-canary-01*****"}}"#;
        assert_eq!(said(part.as_bytes(), key).unwrap(), "bad key …*****");
        assert_eq!(said(br#"[{"error":{"message":"m"}}]"#, "").unwrap(), "m");
        assert_eq!(said(br#"{"error":"model not found"}"#, key).unwrap(), "model not found");
        assert_eq!(said(br#"{"detail":"no"}"#, key).unwrap(), "no");
        assert_eq!(said(b"<html>", key), None);
        let long = format!(r#"{{"message":"{}"}}"#, "ü".repeat(400));
        assert_eq!(said(long.as_bytes(), "k").unwrap().chars().count(), 301);
    }
}
