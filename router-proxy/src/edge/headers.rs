//! What of a message's header passes: nothing that belongs to one hop, nothing that only Beaver may say, and of cookies
//! nothing that is the portal's.

use contracts::routes::{Route, SignIn};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, COOKIE, SET_COOKIE},
};
use sign_in::cookies;

/// Headers of one hop (RFC 9110, section 7.6.1), besides those that Connection names.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Beginnings of the names by which proxies say who the client is, and who is signed in: what of it is true is written anew
/// by the edge.
const SAYS_WHO: [&str; 6] =
    [contracts::HEADER_PREFIX, "x-forwarded-", "remote-", "x-remote-", "x-auth-request-", "x-webauth-"];
/// More such names.
const SAYS_WHO_TOO: [&str; 3] = ["forwarded", "x-real-ip", contracts::REQUEST_ID];

/// The portal's cookies. They mean nothing to an instance, and nobody there shall see one.
const PORTAL_COOKIES: [&str; 4] = ["beaver_session", "__host-beaver_session", "beaver_device", "__host-beaver_device"];

/// Whether a header of this name is never taken over from outside. Whoever makes variables of headers makes `_` of whatever
/// is no letter and no digit, and then `X_Forwarded.User` is the same as `X-Forwarded-User`.
pub fn never_from_outside(name: &HeaderName) -> bool {
    let says_who = |name: &str| SAYS_WHO.iter().any(|start| name.starts_with(start)) || SAYS_WHO_TOO.contains(&name);
    let plain = name.as_str();
    if plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return says_who(plain);
    }
    says_who(&plain.replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
}

/// Tells a program that knows nothing of Beaver who is signed in: its owner.
pub fn identify(headers: &mut HeaderMap, route: &Route) {
    let account = route.account_id.to_string();
    let slug = route.slug.as_str();
    for (name, value) in [(contracts::ACCOUNT, &*account), (contracts::SLUG, slug)]
        .into_iter()
        .chain(contracts::USER.map(|name| (name, slug)))
    {
        // Ids and slugs are always header text.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Removes what belongs to one hop. Whether the sender takes trailers stays, since they pass.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The message's own framing and target are not a sender's to take away.
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH))
        .collect();
    let trailers = headers
        .get_all(header::TE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    for name in named {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what only Beaver may say, and cookies that are none of the instance's, from a request.
pub fn remove_ours(headers: &mut HeaderMap, sign_in: SignIn) {
    let bad: Vec<HeaderName> = headers.keys().filter(|name| never_from_outside(name)).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
    if headers.contains_key(COOKIE) {
        let kept: Vec<HeaderValue> =
            headers.get_all(COOKIE).iter().filter_map(|line| without_ours(line, sign_in)).collect();
        headers.remove(COOKIE);
        for line in kept {
            headers.append(COOKIE, line);
        }
    }
}

/// Cleans an instance's answer: its hop, what only Beaver may say, and attempts to set cookies that are none of its own, or
/// that its neighbours would be sent too. `host` is where the browser takes it to come from.
pub fn clean_response(headers: &mut HeaderMap, sign_in: SignIn, host: &str) {
    remove_hop_by_hop(headers);
    headers.remove(header::TE);
    let bad: Vec<HeaderName> = headers.keys().filter(|name| never_from_outside(name)).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
    let is_bad = |line: &&HeaderValue| is_not_its_own(line.as_bytes(), sign_in, host);
    if headers.get_all(SET_COOKIE).iter().any(|line| is_bad(&line)) {
        let kept: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().filter(|line| !is_bad(line)).cloned().collect();
        headers.remove(SET_COOKIE);
        for line in kept {
            headers.append(SET_COOKIE, line);
        }
    }
}

/// Whether a cookie of this name is not for an instance to see or to set. An instance that lets its owner in itself has the
/// cookies of that; a program before which the router does it has not.
fn is_ours(name: &[u8], sign_in: SignIn) -> bool {
    PORTAL_COOKIES.iter().any(|cookie| name.eq_ignore_ascii_case(cookie.as_bytes()))
        || (sign_in == SignIn::Edge && cookies::is_ours(name))
}

fn without_ours(line: &HeaderValue, sign_in: SignIn) -> Option<HeaderValue> {
    let is_ours = |pair: &[u8]| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default();
        is_ours(name.trim_ascii(), sign_in)
    };
    if !line.as_bytes().split(|b| *b == b';').any(is_ours) {
        return Some(line.clone());
    }
    let kept: Vec<&[u8]> = line.as_bytes().split(|b| *b == b';').filter(|pair| !is_ours(pair)).collect();
    let joined = kept.join(&b';');
    let joined = joined.trim_ascii();
    (!joined.is_empty()).then(|| HeaderValue::from_bytes(joined).ok()).flatten()
}

fn is_not_its_own(line: &[u8], sign_in: SignIn, host: &str) -> bool {
    let mut parts = line.split(|b| *b == b';');
    let name = parts.next().unwrap_or_default().split(|b| *b == b'=').next().unwrap_or_default();
    is_ours(name.trim_ascii(), sign_in) || parts.any(|attribute| is_wider(attribute, host))
}

/// Whether a cookie's attribute is a domain above `host` (RFC 6265, section 5.2.3).
fn is_wider(attribute: &[u8], host: &str) -> bool {
    let Ok(attribute) = std::str::from_utf8(attribute) else { return false };
    let Some((name, domain)) = attribute.split_once('=') else { return false };
    let domain = domain.trim().to_ascii_lowercase();
    let domain = domain.strip_prefix('.').unwrap_or(&domain);
    name.trim().eq_ignore_ascii_case("domain")
        && !domain.is_empty()
        && host.strip_suffix(domain).is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_belongs_to_one_hop_goes() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "keep-alive, X-Secret"),
            ("connection", "host, content-length"),
            ("x-secret", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a"), ("content-length", "3"), ("accept", "*/*"), ("te", "trailers")]));
    }

    #[test]
    fn what_only_beaver_says_goes_however_it_is_spelled() {
        let mut headers = map(&[
            ("x-beaver-internal", "1"),
            ("x_beaver_internal", "1"),
            ("X-Beaver-Anything", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-request-id", "forged"),
            ("x-forwarded-user", "forged"),
            ("x_forwarded.user", "forged"),
            ("Remote-User", "forged"),
            ("remote_user", "forged"),
            ("x~webauth|user", "forged"),
            ("authorization", "Bearer k"),
            ("x-remotely", "fine"),
        ]);
        remove_ours(&mut headers, SignIn::Instance);
        assert_eq!(headers, map(&[("authorization", "Bearer k"), ("x-remotely", "fine")]));
    }

    #[test]
    fn the_portals_cookies_go_and_the_others_stay() {
        let mut headers = map(&[
            ("cookie", "a=1; __Host-beaver_session=secret; b=2"),
            ("cookie", "beaver_session=secret"),
            ("cookie", "BEAVER_SESSION = secret;c=3"),
            ("cookie", "beaver_session2=x; beaver_edge=y"),
        ]);
        remove_ours(&mut headers, SignIn::Instance);
        let lines: Vec<_> = headers.get_all(COOKIE).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(lines, ["a=1; b=2", "c=3", "beaver_session2=x; beaver_edge=y"]);
    }

    #[test]
    fn before_a_program_that_knows_nothing_of_them_our_own_cookies_go_too() {
        let mut headers =
            map(&[("cookie", "a=1; __Host-beaver_workspace=s; beaver_edge=y;BEAVER_BIND=z; beaver_lang=en")]);
        remove_ours(&mut headers, SignIn::Edge);
        assert_eq!(headers, map(&[("cookie", "a=1; beaver_lang=en")]));
    }

    #[test]
    fn an_instance_sets_its_own_cookies_alone() {
        const HOST: &str = "alice.apps.example.com";
        for (line, instance, edge) in [
            ("own=1; Path=/; Domain=alice.apps.example.com", true, true),
            ("own=1; Domain=", true, true),
            ("own=1; Domain=other.test", true, true),
            ("domain=example.com", true, true),
            ("beaver_edge=y", true, false),
            ("__host-Beaver_Workspace=y; Path=/", true, false),
            ("beaver_session=x", false, false),
            ("__Host-beaver_device=x; Secure", false, false),
            ("own=1; domain = .Apps.Example.com ; Path=/", false, false),
            ("own=1;Domain=example.com", false, false),
            ("own=1; Domain=alice.apps.example.com; Domain=com", false, false),
        ] {
            for (sign_in, kept) in [(SignIn::Instance, instance), (SignIn::Edge, edge)] {
                let mut headers = map(&[("set-cookie", line), ("set-cookie", "other=1")]);
                clean_response(&mut headers, sign_in, HOST);
                assert_eq!(headers.get_all(SET_COOKIE).iter().count(), 1 + usize::from(kept), "{line} {sign_in:?}");
            }
        }
    }
}
