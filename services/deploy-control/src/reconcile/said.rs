//! The last lines of a program that came down, as far as its owner and the operator may see them.
//!
//! They are somebody else's words: a program may write down what it was given. So they are few and short, and whatever looks
//! like a key, a password or a token is blotted out.

use super::Inner;
use crate::{chain, registry::Row};

/// So many lines are kept, of so many characters.
const LINES: usize = 6;
const LENGTH: usize = 240;
/// What stands for something that looks like a secret.
const BLOT: &str = "[…]";
/// A run of letters and digits of this length is no word of any language.
const LONG: usize = 20;
/// What is followed by a secret, whatever that looks like.
const NAMES: [&str; 8] = ["password", "passwd", "pwd", "pass", "secret", "token", "key", "bearer"];
/// What is followed by secrets up to the end of the line.
const LISTS: [&str; 2] = ["authorization", "cookie"];

impl Inner {
    /// The last lines of an instance's program, without what they must not hold; none where they cannot be had.
    pub(super) async fn last_lines(&self, row: &Row) -> Vec<String> {
        match self.parts.engine.last_lines(row.id).await {
            Ok(said) => safe(&said),
            Err(error) => {
                error.count();
                tracing::debug!(error = chain(&error), "what it wrote last cannot be read");
                Vec::new()
            }
        }
    }
}

/// The last lines of this, made safe.
fn safe(said: &str) -> Vec<String> {
    let lines: Vec<_> = said.lines().map(line).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

fn line(said: &str) -> String {
    let mut safe = String::new();
    // Of a name that is followed by a secret; what stands between the two, such as `":"`, does not count.
    let mut named = false;
    // Of one that is followed by several.
    let mut listed = false;
    let mut rest = without_userinfo(&plain(said));
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_in_word(c) != is_in_word(first)).unwrap_or(rest.len());
        let word: String = rest.drain(..end).collect();
        if !is_in_word(first) {
            // Another member, or another sentence.
            named &= !word.contains([',', ';', '}']);
            safe.push_str(&word);
        } else if is_token(&word) || (listed && !word.eq_ignore_ascii_case("bearer")) {
            safe.push_str(BLOT);
        } else if ends_with_one_of(&word, &LISTS) {
            listed = true;
            safe.push_str(&word);
        } else if ends_with_one_of(&word, &NAMES) {
            named = true;
            safe.push_str(&word);
        } else {
            safe.push_str(if named { BLOT } else { &word });
        }
    }
    match safe.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &safe[..end]),
        None => safe,
    }
}

fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || "-_+/.~%".contains(c)
}

/// Whether a part of a name such as `client_secret`, `accessToken` or `X-Api-Key` ends with one of these.
fn ends_with_one_of(word: &str, names: &[&str]) -> bool {
    let lower = word.to_ascii_lowercase();
    lower.split(['-', '_', '.', '/']).any(|part| names.iter().any(|name| part.ends_with(name)))
}

/// Without who signs in in a URL, and with what.
fn without_userinfo(said: &str) -> String {
    let mut pieces = said.split("://");
    let mut safe = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let authority = piece.find(['/', '?', '#', ' ', '"', '\'']).unwrap_or(piece.len());
        let host = piece[..authority].rfind('@').map_or(0, |at| at + 1);
        safe.push_str("://");
        safe.push_str(if host > 0 { BLOT } else { "" });
        safe.push_str(if host > 0 { "@" } else { "" });
        safe.push_str(&piece[host..]);
    }
    safe
}

/// Without colours and other control characters.
fn plain(said: &str) -> String {
    let mut plain = String::new();
    let mut chars = said.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            // As ECMA-48 has it: parameters, then one letter.
            while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
            chars.next();
        } else if !c.is_control() || c == '\t' {
            plain.push(c);
        }
    }
    plain
}

/// Whether a word is made by a machine rather than by a person: a key, a token, a digest.
fn is_token(word: &str) -> bool {
    if ["sk-", "pk-", "eyJ", "ghp_", "xox"].iter().any(|start| word.starts_with(start)) {
        return true;
    }
    // A path is not one for being long, but what is in it may be. A slash is also a digit of base64.
    word.split(['/', '.']).any(is_made) || (!word.starts_with('/') && !word.contains('.') && is_made(word))
}

fn is_made(part: &str) -> bool {
    let digits = part.chars().filter(char::is_ascii_digit).count();
    let letters = part.chars().filter(char::is_ascii_alphabetic).count();
    let mixed = part.contains(char::is_uppercase) && part.contains(char::is_lowercase);
    part.len() >= LONG && letters > 0 && (digits > 2 || (mixed && digits > 0)) && part.len() - digits - letters <= 5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_needs_stays_and_what_nobody_may_see_goes() {
        for (said, kept) in [
            ("thread 'main' panicked at src/main.rs:10:5:", "thread 'main' panicked at src/main.rs:10:5:"),
            ("Error: address already in use (os error 98)", "Error: address already in use (os error 98)"),
            ("\u{1b}[31mERROR\u{1b}[0m no such table: notes", "ERROR no such table: notes"),
            ("calling with sk-abc and more", "calling with […] and more"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer […]"),
            (r#"{"api_key":"short","model":"m"}"#, r#"{"api_key":"[…]","model":"m"}"#),
            ("PASSWORD=hunter2; retrying", "PASSWORD=[…]; retrying"),
            ("got 0123456789abcdef0123456789abcdef", "got […]"),
            ("eyJhbGciOiJub25lIn0.e30. was refused", "[…] was refused"),
            ("connecting to postgres://app:hunter2@db/notes failed", "connecting to postgres://[…]@db/notes failed"),
            ("see https://notes.example/a@b", "see https://notes.example/a@b"),
            (r#"{"accessToken":"short","name":"n"}"#, r#"{"accessToken":"[…]","name":"n"}"#),
            ("DB_PASS=hunter2 and clientSecret: x1", "DB_PASS=[…] […] clientSecret: […]"),
            ("Cookie: a=b; session=abc", "Cookie: […]=[…]; […]=[…]"),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1 it said", "[…] it said"),
            (
                "no such file: /usr/lib/notes/plugins/1.2.3/spell.so",
                "no such file: /usr/lib/notes/plugins/1.2.3/spell.so",
            ),
        ] {
            assert_eq!(line(said), kept);
        }
    }

    #[test]
    fn they_are_few_and_short() {
        let said = (0..50).map(|n| format!("line {n} {}\n\n", "x ".repeat(400))).collect::<String>();
        let lines = safe(&said);
        assert_eq!(lines.len(), LINES);
        assert!(lines[LINES - 1].starts_with("line 49 "));
        assert!(lines.iter().all(|line| line.chars().count() <= LENGTH + 1));
        assert!(safe("").is_empty());
    }
}
