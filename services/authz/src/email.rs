//! E-mail addresses: which are taken, and when two are the same.

/// An address that mail can be sent to: `local@domain` in ASCII, at most 254 characters (RFC 5321).
///
/// The local part is a dot-atom of at most 64 characters (RFC 5322, section 3.2.3; no quotes, no comments); the domain has
/// at least two labels of letters, digits and inner hyphens, the last one not all digits. Two addresses are the same when
/// they differ in case alone: mail systems that tell `Ann@` from `ann@` are extinct, people who type both are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Email {
    text: String,
    key: String,
}

impl Email {
    /// The address in what somebody typed; spaces around it are dropped. `None` when it is not one.
    pub fn parse(typed: &str) -> Option<Self> {
        let text = typed.trim();
        let (local, domain) = text.rsplit_once('@')?;
        let local_fits = (1..=64).contains(&local.len())
            && local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext));
        let labels: Vec<_> = domain.split('.').collect();
        let domain_fits = labels.len() >= 2
            && labels.iter().all(|label| is_label(label))
            && labels.last().is_some_and(|top| top.bytes().any(|b| b.is_ascii_alphabetic()));
        (local_fits && domain_fits && text.len() <= 254)
            .then(|| Self { text: text.to_owned(), key: text.to_ascii_lowercase() })
    }

    /// The address as it was typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it is compared by.
    pub fn key(&self) -> &str {
        &self.key
    }
}

fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&byte)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_people_have() {
        for good in [
            "alice@example.com",
            "  Alice.B+tag@Mail.Example.co.uk ",
            "a@b.cn",
            "o'hara@xn--fiqs8s.example",
            &format!("{}@example.com", "a".repeat(64)),
        ] {
            assert!(Email::parse(good).is_some(), "{good}");
        }
        assert_eq!(Email::parse(" Alice@Example.COM ").unwrap().key(), "alice@example.com");
        assert_eq!(Email::parse(" Alice@Example.COM ").unwrap().as_str(), "Alice@Example.COM");
    }

    #[test]
    fn what_is_no_address() {
        for bad in [
            "",
            "alice",
            "@example.com",
            "alice@",
            "alice@localhost",
            "alice@example..com",
            "alice@-a.com",
            "alice@1.2.3.4",
            "a..b@example.com",
            ".a@example.com",
            "a b@example.com",
            "a@b@example.com",
            "\"a b\"@example.com",
            "аlice@example.com",
            "alice@exаmple.com",
            "a\r\nBcc: x@example.com",
            "a\0@example.com",
            "<a@example.com>",
            &format!("{}@example.com", "a".repeat(65)),
            &format!("a@{}com", "a.".repeat(126)),
        ] {
            assert!(Email::parse(bad).is_none(), "{bad:?}");
        }
    }
}
