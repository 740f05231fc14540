//! The cookies of the workspace's own origin. With https all of them are `__Host-` and `Secure`; without, they cannot be.

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
    fn https_brings_the_prefix_and_secure() {
        assert!(session(true).starts_with("__Host-") && bind(true).starts_with("__Host-"));
        assert_eq!(
            set(session(true), "v", 5, true),
            "__Host-beaver_workspace=v; Path=/; Max-Age=5; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(!set(session(false), "v", 5, false).contains("Secure"));
    }
}
