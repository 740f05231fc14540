//! Where to go after signing in: one of a few places, never an address from outside.

use contracts::Slug;
use serde::Deserialize;
use url::form_urlencoded::Serializer;

/// A place to go on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// "My workspace", or the console for operators.
    Home,
    /// The choice of a provider.
    Onboarding,
    /// The console.
    Operator,
    /// One's own account.
    Account,
    /// Into a workspace, which waits with a bind cookie.
    Open {
        /// Its name.
        slug: Slug,
        /// What it waits with.
        bind: String,
        /// Where to go in it.
        rd: String,
    },
}

/// A [`Next`] as a query or a form has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NextFields {
    next: Option<String>,
    slug: Option<String>,
    bind: Option<String>,
    rd: Option<String>,
}

impl NextFields {
    /// The place; whatever makes no sense leads home.
    pub fn read(&self) -> Next {
        match self.next.as_deref() {
            Some("onboarding") => Next::Onboarding,
            Some("operator") => Next::Operator,
            Some("account") => Next::Account,
            Some("open") => self.read_open().unwrap_or(Next::Home),
            _ => Next::Home,
        }
    }

    fn read_open(&self) -> Option<Next> {
        let slug = Slug::parse(self.slug.as_deref()?).ok()?;
        let bind = self.bind.clone().filter(|bind| is_bind(bind))?;
        let rd = self.rd.clone().filter(|rd| is_local_path(rd)).unwrap_or_else(|| "/".into());
        Some(Next::Open { slug, bind, rd })
    }
}

impl Next {
    /// The path and query of the place.
    pub fn location(&self) -> String {
        match self {
            Self::Home => "/instance".into(),
            Self::Onboarding => "/onboarding".into(),
            Self::Operator => "/operator".into(),
            Self::Account => "/account".into(),
            Self::Open { slug, bind, rd } => {
                let query = Serializer::new(String::new()).append_pair("bind", bind).append_pair("rd", rd).finish();
                format!("/open/{slug}?{query}")
            }
        }
    }

    /// The fields that [`NextFields`] reads back, for a form.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Home => vec![],
            Self::Onboarding => vec![("next", "onboarding".into())],
            Self::Operator => vec![("next", "operator".into())],
            Self::Account => vec![("next", "account".into())],
            Self::Open { slug, bind, rd } => {
                vec![("next", "open".into()), ("slug", slug.to_string()), ("bind", bind.clone()), ("rd", rd.clone())]
            }
        }
    }

    /// The sign-in page that goes on to here.
    pub fn login(&self) -> String {
        let fields = self.fields();
        if fields.is_empty() {
            return "/login".into();
        }
        format!("/login?{}", Serializer::new(String::new()).extend_pairs(fields).finish())
    }
}

/// Whether a text is base64url of a SHA-256.
pub fn is_bind(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether a text is a path (with query) of the origin it is used on, whatever a browser makes of it.
pub fn is_local_path(text: &str) -> bool {
    let sound = text.len() <= 512
        && text.starts_with('/')
        && !text.starts_with("//")
        && !text.chars().any(|c| c == '\\' || c.is_control());
    let Ok(base) = url::Url::parse("http://own.invalid") else { return false };
    sound && base.join(text).is_ok_and(|joined| joined.origin() == base.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> NextFields {
        let query = Serializer::new(String::new()).extend_pairs(pairs).finish();
        axum::extract::Query::try_from_uri(&format!("http://p/?{query}").parse().unwrap()).unwrap().0
    }

    #[test]
    fn every_place_survives_its_own_form_and_query() {
        let open = Next::Open { slug: Slug::parse("alice").unwrap(), bind: "b".repeat(43), rd: "/c/1?a=b&c=d".into() };
        for place in [Next::Home, Next::Onboarding, Next::Operator, Next::Account, open] {
            let pairs = place.fields();
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (*k, v.as_str())).collect();
            assert_eq!(fields(&pairs).read(), place);
            assert!(is_local_path(&place.location()) && is_local_path(&place.login()), "{place:?}");
        }
    }

    #[test]
    fn nothing_leads_elsewhere() {
        let bind = "b".repeat(43);
        for next in ["https://evil.example", "//evil.example", "/instance", "", "OPEN"] {
            assert_eq!(fields(&[("next", next)]).read(), Next::Home);
        }
        for (slug, bind) in [("../x", &*bind), ("alice.evil", &bind), ("alice", "short"), ("alice", &"é".repeat(43))] {
            assert_eq!(fields(&[("next", "open"), ("slug", slug), ("bind", bind)]).read(), Next::Home);
        }
        let long = format!("/{}", "x".repeat(512));
        for rd in ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "x", "", &long] {
            let Next::Open { rd: kept, .. } =
                fields(&[("next", "open"), ("slug", "alice"), ("bind", &bind), ("rd", rd)]).read()
            else {
                panic!("{rd:?} spoilt the rest")
            };
            assert_eq!(kept, "/", "{rd:?}");
        }
    }
}
