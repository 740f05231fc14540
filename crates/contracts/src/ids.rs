//! Names of people's things: slugs, and the ids of accounts and instances.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Names that are not given away: services, and what people would take for the operator.
const RESERVED: &[&str] = &[
    "admin",
    "administrator",
    "api",
    "app",
    "apps",
    "assets",
    "auth",
    "authz",
    "beaver",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "deploy",
    "dev",
    "docs",
    "egress",
    "email",
    "ftp",
    "gateway",
    "git",
    "healthz",
    "help",
    "home",
    "host",
    "identity",
    "imap",
    "info",
    "internal",
    "localhost",
    "login",
    "logout",
    "mail",
    "metrics",
    "ns1",
    "ns2",
    "oauth",
    "open",
    "operator",
    "pop",
    "portal",
    "postmaster",
    "proxy",
    "readyz",
    "register",
    "root",
    "router",
    "security",
    "signin",
    "signup",
    "smtp",
    "sso",
    "static",
    "status",
    "support",
    "system",
    "test",
    "webmail",
    "well-known",
    "www",
];

/// The name a person chose: a DNS label (RFC 1035) of 3 to 40 lower-case letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "alice")]
pub struct Slug(String);

/// Why a text is no slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlugError {
    /// Under 3 characters.
    #[error("a name has at least 3 characters")]
    TooShort,
    /// Over 40 characters.
    #[error("a name has at most 40 characters")]
    TooLong,
    /// Something other than `a-z`, `0-9` and `-`.
    #[error("a name has only lower-case letters a-z, digits and hyphens")]
    Characters,
    /// A hyphen first, last, or in both the third and fourth place (which DNS keeps for encoded names, RFC 5891).
    #[error("a hyphen stands between other characters, and not twice in a row after the second")]
    Hyphen,
    /// A name that is not given away.
    #[error("this name is reserved")]
    Reserved,
}

impl SlugError {
    /// The stable code: what [`crate::ProblemDetails::code`] says for it.
    pub fn code(self) -> &'static str {
        match self {
            Self::TooShort => "slug_too_short",
            Self::TooLong => "slug_too_long",
            Self::Characters => "slug_characters",
            Self::Hyphen => "slug_hyphen",
            Self::Reserved => "slug_reserved",
        }
    }

    /// 409 for a reserved name, else 422.
    pub fn status(self) -> u16 {
        if self == Self::Reserved { 409 } else { 422 }
    }
}

impl Slug {
    /// The shape alone: what a router needs in order to look a name up.
    ///
    /// # Errors
    /// Everything but [`SlugError::Reserved`].
    pub fn parse(text: &str) -> Result<Self, SlugError> {
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(SlugError::Characters);
        }
        match text.len() {
            0..3 => return Err(SlugError::TooShort),
            41.. => return Err(SlugError::TooLong),
            _ => {}
        }
        if text.starts_with('-') || text.ends_with('-') || text.get(2..4) == Some("--") {
            return Err(SlugError::Hyphen);
        }
        Ok(Self(text.to_owned()))
    }

    /// The shape, and that the name may be given to somebody.
    ///
    /// # Errors
    /// Each [`SlugError`].
    pub fn parse_new(text: &str) -> Result<Self, SlugError> {
        let slug = Self::parse(text)?;
        if RESERVED.contains(&slug.as_str()) { Err(SlugError::Reserved) } else { Ok(slug) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Slug {
    type Error = SlugError;
    fn try_from(text: String) -> Result<Self, SlugError> {
        Self::parse(&text)
    }
}

impl FromStr for Slug {
    type Err = SlugError;
    fn from_str(text: &str) -> Result<Self, SlugError> {
        Self::parse(text)
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this kind")]
pub struct IdError;

/// The name of a plan: what an instance runs, and with how much. 1 to 40 lower-case letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "workspace")]
pub struct PlanName(String);

/// A text is no name of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a plan's name has 1 to 40 lower-case letters a-z, digits and inner hyphens")]
pub struct NotAPlanName;

impl PlanName {
    /// The plan of Beaver's own workspaces, which is always there.
    pub fn workspace() -> Self {
        Self("workspace".into())
    }

    /// Whether it is a plan of Beaver's own workspaces: `workspace`, or the same with other limits, `workspace-…`. Every other
    /// one names an image that knows nothing of Beaver: it takes no owner and no provider, and the router's edge lets people in.
    pub fn is_workspace(&self) -> bool {
        self.0 == "workspace" || self.0.starts_with("workspace-")
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PlanName {
    fn default() -> Self {
        Self::workspace()
    }
}

impl FromStr for PlanName {
    type Err = NotAPlanName;

    fn from_str(text: &str) -> Result<Self, NotAPlanName> {
        let good = (1..=40).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text.to_owned())) } else { Err(NotAPlanName) }
    }
}

impl TryFrom<String> for PlanName {
    type Error = NotAPlanName;

    fn try_from(text: String) -> Result<Self, NotAPlanName> {
        text.parse()
    }
}

impl From<PlanName> for String {
    fn from(name: PlanName) -> Self {
        name.0
    }
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(Uuid);

        impl $name {
            /// An id from a UUID; version 7, so that ids sort by the time they were made.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID in it.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = text.strip_prefix($prefix).ok_or(IdError)?;
                // One spelling only: ids are folder and container names.
                if hex.len() != 32 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(IdError);
                }
                Uuid::parse_str(hex).map(Self).map_err(|_| IdError)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

id!(
    /// A person's account: `a-` and 32 hexadecimal digits.
    AccountId,
    "a-"
);
id!(
    /// An instance: `i-` and 32 hexadecimal digits. The name of its folders, and part of its container's name.
    InstanceId,
    "i-"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_what_dns_and_people_can_bear() {
        for good in ["abc", "alice", "a-b-c", "x1y", "1abc", &"a".repeat(40)] {
            assert!(Slug::parse_new(good).is_ok(), "{good}");
        }
        for (bad, error) in [
            ("ab", SlugError::TooShort),
            ("", SlugError::TooShort),
            (&*"a".repeat(41), SlugError::TooLong),
            ("Alice", SlugError::Characters),
            ("аlice", SlugError::Characters),
            ("a_b", SlugError::Characters),
            ("a.b", SlugError::Characters),
            ("a\0b", SlugError::Characters),
            ("-abc", SlugError::Hyphen),
            ("abc-", SlugError::Hyphen),
            ("xn--80ak6aa92e", SlugError::Hyphen),
            ("admin", SlugError::Reserved),
            ("www", SlugError::Reserved),
        ] {
            assert_eq!(Slug::parse_new(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn every_reserved_name_would_otherwise_be_given() {
        for name in RESERVED {
            assert!(Slug::parse(name).is_ok(), "{name} needs no reserving");
        }
    }

    #[test]
    fn names_of_plans_are_short_and_plain() {
        for good in ["workspace", "a", "jupyter-2", &"a".repeat(40)] {
            assert_eq!(good.parse::<PlanName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a b", "a.b", "a/b", "é", &*"a".repeat(41)] {
            assert!(bad.parse::<PlanName>().is_err(), "{bad}");
        }
        assert!(PlanName::default().is_workspace());
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = InstanceId::from_uuid(Uuid::from_u128(0xabc));
        assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        for bad in [
            "",
            "i-",
            "i-ABC",
            "a-00000000000000000000000000000abc",
            "i-00000000000000000000000000000ABC",
            "i-../../../../etc/passwd/aaaaaaaaaa",
        ] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }
}
