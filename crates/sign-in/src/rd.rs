//! Where to go after signing in: a path of this workspace, or its first page.

use url::Url;

use crate::{FINISH, SIGN_OUT, SIGNED_OUT, START};

/// The longest `rd`, in bytes.
const MAX: usize = 512;

/// `rd` when it is a path of `origin`: at most 512 bytes, beginning with one `/`, without backslash or control character,
/// and still of this origin when read as a browser reads it. Otherwise, and for the sign-in's own paths, `/`.
pub fn checked<'a>(rd: Option<&'a str>, origin: &str) -> &'a str {
    rd.filter(|rd| is_local(rd, origin)).unwrap_or("/")
}

fn is_local(rd: &str, origin: &str) -> bool {
    if rd.len() > MAX || !rd.starts_with('/') || rd.starts_with("//") {
        return false;
    }
    // It becomes a header: only what a URL may hold unescaped gets in.
    if rd.bytes().any(|b| !b.is_ascii_graphic() || b == b'\\') {
        return false;
    }
    let Ok(base) = Url::parse(origin) else { return false };
    let Ok(url) = base.join(rd) else { return false };
    let own = [START, FINISH, SIGN_OUT, SIGNED_OUT].contains(&url.path());
    url.origin() == base.origin() && !own && !url.path().starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "https://alice.apps.example.com";

    #[test]
    fn paths_of_ours_stay_as_they_are() {
        for rd in ["/", "/settings", "/c/1?x=%2F&y#z", "/a//b", "/auth/mine", &format!("/{}", "a".repeat(511))] {
            assert_eq!(checked(Some(rd), ORIGIN), rd);
        }
    }

    #[test]
    fn everything_else_is_the_first_page() {
        for rd in [
            "",
            "settings",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "/\u{0}",
            "https://evil.example/",
            "javascript:alert(1)",
            " /x",
            "/x y",
            "/ü",
            "/./\\evil.example",
            "/.//evil.example",
            "/a/..//evil.example",
            "/auth/start?rd=/",
            "/auth/finish?code=x",
            "/x/../auth/signout",
            "/auth/signed-out",
            &format!("/{}", "a".repeat(512)),
        ] {
            assert_eq!(checked(Some(rd), ORIGIN), "/", "{rd:?}");
        }
        assert_eq!(checked(None, ORIGIN), "/");
    }
}
