//! Which passwords are taken: NIST SP 800-63B-4, section 3.1.1.2, and identity.md.

use super::breached;

/// The shortest and longest password, in characters (Unicode code points).
const LENGTH: std::ops::RangeInclusive<usize> = 15..=256;
/// The least that zxcvbn must say: 3 of 4, "safely unguessable: over 10^8 guesses".
const LEAST: zxcvbn::Score = zxcvbn::Score::Three;

/// Why a password is not taken. The text is for people who read APIs; pages go by the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("A password has at least 15 characters.")]
    TooShort,
    #[error("A password has at most 256 characters.")]
    TooLong,
    #[error("This password is on lists of stolen ones. Take another.")]
    Breached,
    #[error("This password is easy to guess. Take several unrelated words.")]
    Weak,
}

impl PolicyError {
    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooShort => "password_too_short",
            Self::TooLong => "password_too_long",
            Self::Breached => "password_breached",
            Self::Weak => "password_weak",
        }
    }
}

/// Checks a password, in NFC, with the words that anybody would try for this person. Takes milliseconds of a core.
///
/// # Errors
/// The first [`PolicyError`] that holds.
pub(crate) fn check(password: &str, own_words: &[String]) -> Result<(), PolicyError> {
    // At most 257 are counted, however long it is.
    let length = password.chars().take(LENGTH.end() + 1).count();
    if length < *LENGTH.start() {
        return Err(PolicyError::TooShort);
    }
    if length > *LENGTH.end() {
        return Err(PolicyError::TooLong);
    }
    if breached::contains(password) {
        return Err(PolicyError::Breached);
    }
    let words: Vec<&str> = own_words.iter().map(String::as_str).chain(["beaver"]).collect();
    if zxcvbn::zxcvbn(password, &words).score() < LEAST {
        return Err(PolicyError::Weak);
    }
    Ok(())
}

/// What anybody would try for this person: name, address, and the parts of it.
pub(crate) fn own_words(slug: Option<&str>, email: &str) -> Vec<String> {
    let parts = email.split(['@', '.', '+', '-', '_']);
    let local = email.rsplit_once('@').map(|(local, _)| local);
    slug.into_iter()
        .chain([email])
        .chain(local)
        .chain(parts)
        .filter(|word| word.len() >= 3)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(password: &str) -> Result<(), PolicyError> {
        check(password, &own_words(Some("wilhelmina"), "wilhelmina.hartley@example.com"))
    }

    #[test]
    fn good_passwords_need_no_classes() {
        for good in [
            "seven sticks make one lodge",
            "kiefer mond ampel wolke",
            "水獭在河边建了七座小木屋，昨天下雨了呢",
            "tHq9mXv2LwRz7KbN",
        ] {
            assert_eq!(verdict(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn lengths_are_counted_in_characters_at_both_ends() {
        assert_eq!(verdict("Vq8#zKp2!mXw9R"), Err(PolicyError::TooShort));
        assert_eq!(verdict("Vq8#zKp2!mXw9Rt"), Ok(()));
        assert_eq!(verdict("河狸河狸河狸河狸"), Err(PolicyError::TooShort), "24 bytes are 8 characters");
        let unlike: String = (0..256_u32).map(|i| char::from(b'!' + (i * i * 7 % 90 + i % 4) as u8)).collect();
        assert_eq!(verdict(&unlike), Ok(()));
        assert_eq!(verdict(&format!("{unlike}x")), Err(PolicyError::TooLong));
        assert_eq!(verdict(&"x".repeat(1 << 20)), Err(PolicyError::TooLong));
    }

    #[test]
    fn what_people_would_guess_is_weak() {
        for weak in [
            "aaaaaaaaaaaaaaaaaaaa",
            "abcabcabcabcabcabc",
            "wilhelminawilhelmina",
            "wilhelmina.hartley1",
            "wilhelmina.hartley@example.com",
            "beaverbeaverbeaver",
            "abcdefghijklmnopqrst",
        ] {
            assert_eq!(verdict(weak), Err(PolicyError::Weak), "{weak}");
        }
        // The control: somebody else may have what is this person's name.
        assert_eq!(verdict("wilhelmina.hartley1"), Err(PolicyError::Weak));
        assert_eq!(check("wilhelmina.hartley1", &[]), Ok(()));
    }

    #[test]
    fn what_was_stolen_is_refused_in_every_dress() {
        for stolen in [
            "correcthorsebatterystaple",
            "Correct Horse Battery Staple",
            "correct-horse-battery-staple",
            "CorrectHorseBatteryStaple1!",
            "1q2w3e4r5t6y7u8i9o0p",
            "123456789012345",
        ] {
            assert_eq!(verdict(stolen), Err(PolicyError::Breached), "{stolen}");
        }
        assert_eq!(verdict("correct donkey charger staple"), Ok(()));
    }
}
