//! Passwords of 15 characters and more that stand on lists of stolen ones.
//!
//! The list is ours, compact, and part of the program: of the many millions that were stolen, few are long, and what makes
//! those guessable is nearly always repetition, keyboard runs and dates, which zxcvbn sees by itself. What it cannot see
//! is a phrase that is long, looks unlike anything, and is famous: those are here. A complete corpus (gigabytes, or a
//! question to somebody else's server about every password) is the operator's to add later.

use std::{collections::HashSet, sync::LazyLock};

static LIST: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("breached.txt").lines().filter(|line| !line.starts_with('#')).collect());

/// Whether the password, or what is left of it without the digits and signs people put behind one, is on the list;
/// case, spaces, hyphens, dots and underscores make no difference.
pub(super) fn contains(password: &str) -> bool {
    let plain: String =
        password.chars().filter(|c| !matches!(c, ' ' | '-' | '.' | '_')).flat_map(char::to_lowercase).collect();
    let stem = plain.trim_end_matches(|c: char| c.is_ascii_digit() || c.is_ascii_punctuation());
    LIST.contains(plain.as_str()) || LIST.contains(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_can_be_met() {
        assert!(LIST.len() > 150);
        for line in LIST.iter() {
            assert!(contains(line), "{line} is not in the form that is compared");
            assert!(line.chars().count() >= 12, "{line} is refused for its length anyway");
        }
        assert!(!contains("seven sticks make one lodge"));
    }
}
