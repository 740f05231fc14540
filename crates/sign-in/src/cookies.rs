//! The cookies of the workspace's own origin. With https all of them are `__Host-` and `Secure`; without, they cannot be.

pub use contracts::instance::edge_cookie_name as edge;
use http::{HeaderMap, header};

/// How long a browser has between `/auth/start` and `/auth/finish`, in seconds.
pub const BIND_S: i64 = 300;

/// The session's cookie.
pub fn session(secure: bool) -> &'static str {
    if secure { "__Host-beaver_workspace" } else { "beaver_workspace" }
}

/// The cookie that binds a hand-off to the browser that began it.
pub fn bind(secure: bool) -> &'static str {
    if secure { "__Host-beaver_bind" } else { "beaver_bind" }
}

/// Whether a cookie of this name is one of ours, with the prefix or without, in whichever case somebody may read it.
pub fn is_ours(name: &[u8]) -> bool {
    [true, false]
        .iter()
        .flat_map(|secure| [session(*secure), bind(*secure), edge(*secure)])
        .any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
}

/// The value of the cookie `name`, when there is exactly one of that name: of two, one may be somebody else's.
pub fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    match (found.next(), found.next()) {
        (Some(value), None) if !value.is_empty() => Some(value),
        _ => None,
    }
}

/// `Set-Cookie` for a value that lasts `max_age_s` seconds.
pub fn set(name: &str, value: &str, max_age_s: i64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}")
}

/// `Set-Cookie` that takes the cookie away.
pub fn clear(name: &str, secure: bool) -> String {
    set(name, "", 0, secure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::COOKIE, line.parse().unwrap())).collect()
    }

    #[test]
    fn two_cookies_of_one_name_are_none() {
        assert_eq!(single(&headers(&["a=1; b=2"]), "b"), Some("2"));
        assert_eq!(single(&headers(&["xb=1", "b=2"]), "b"), Some("2"));
        for lines in [&["b=1; b=1"][..], &["b=1", "b=2"], &["b="], &["a=1"], &[]] {
            assert_eq!(single(&headers(lines), "b"), None, "{lines:?}");
        }
    }

    #[test]
    fn ours_are_known_in_every_case() {
        for name in ["beaver_workspace", "__Host-beaver_bind", "BEAVER_EDGE", "__host-beaver_Edge"] {
            assert!(is_ours(name.as_bytes()), "{name}");
        }
        for name in ["beaver_lang", "workspace", "xbeaver_edge", "beaver_edge2", ""] {
            assert!(!is_ours(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn https_brings_the_prefix_and_secure() {
        assert!(session(true).starts_with("__Host-") && bind(true).starts_with("__Host-"));
        assert_eq!(
            set(session(true), "v", 5, true),
            "__Host-beaver_workspace=v; Path=/; Max-Age=5; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(!set(session(false), "v", 5, false).contains("Secure"));
    }
}
