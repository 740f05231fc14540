//! What of a message's header passes: nothing that belongs to one hop, nothing that only Beaver may say, and of cookies
//! nothing that is the portal's.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, COOKIE, SET_COOKIE},
};

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

/// Headers that say who the client is: written anew by the edge.
const FORWARDED: [&str; 7] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
];

/// The portal's cookies. They mean nothing to an instance, and nobody there shall see one.
const PORTAL_COOKIES: [&str; 2] = ["beaver_session", "__host-beaver_session"];

/// Whether a header of this name is never taken over from outside. Whoever makes variables of headers reads `_` as `-`.
pub fn never_from_outside(name: &HeaderName) -> bool {
    let plain = name.as_str();
    if plain.starts_with(contracts::HEADER_PREFIX) || FORWARDED.contains(&plain) || plain == contracts::REQUEST_ID {
        return true;
    }
    plain.contains('_') && {
        let name = plain.replace('_', "-");
        name.starts_with(contracts::HEADER_PREFIX) || FORWARDED.contains(&&*name) || name == contracts::REQUEST_ID
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

/// Removes what only Beaver may say, and the portal's cookies, from a request.
pub fn remove_ours(headers: &mut HeaderMap) {
    let bad: Vec<HeaderName> = headers.keys().filter(|name| never_from_outside(name)).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
    if headers.contains_key(COOKIE) {
        let kept: Vec<HeaderValue> = headers.get_all(COOKIE).iter().filter_map(without_portal_cookies).collect();
        headers.remove(COOKIE);
        for line in kept {
            headers.append(COOKIE, line);
        }
    }
}

/// Cleans an instance's answer: its hop, what only Beaver may say, and attempts to set the portal's cookies.
pub fn clean_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(header::TE);
    let bad: Vec<HeaderName> = headers.keys().filter(|name| never_from_outside(name)).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
    if headers.get_all(SET_COOKIE).iter().any(sets_portal_cookie) {
        let kept: Vec<HeaderValue> =
            headers.get_all(SET_COOKIE).iter().filter(|line| !sets_portal_cookie(line)).cloned().collect();
        headers.remove(SET_COOKIE);
        for line in kept {
            headers.append(SET_COOKIE, line);
        }
    }
}

/// The value of the one cookie of this name; none when it is there twice, since one of them is somebody else's.
pub fn single_cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut found = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(n, _)| *n == name)
        .map(|(_, value)| value);
    let value = found.next()?;
    found.next().is_none().then_some(value)
}

fn without_portal_cookies(line: &HeaderValue) -> Option<HeaderValue> {
    let is_portals = |pair: &[u8]| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default();
        PORTAL_COOKIES.iter().any(|cookie| name.trim_ascii().eq_ignore_ascii_case(cookie.as_bytes()))
    };
    if !line.as_bytes().split(|b| *b == b';').any(is_portals) {
        return Some(line.clone());
    }
    let kept: Vec<&[u8]> = line.as_bytes().split(|b| *b == b';').filter(|pair| !is_portals(pair)).collect();
    let joined = kept.join(&b';');
    let joined = joined.trim_ascii();
    (!joined.is_empty()).then(|| HeaderValue::from_bytes(joined).ok()).flatten()
}

fn sets_portal_cookie(line: &HeaderValue) -> bool {
    let name = line.as_bytes().split(|b| *b == b'=' || *b == b';').next().unwrap_or_default();
    PORTAL_COOKIES.iter().any(|cookie| name.trim_ascii().eq_ignore_ascii_case(cookie.as_bytes()))
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
    fn what_only_beaver_says_goes_also_with_underscores() {
        let mut headers = map(&[
            ("x-beaver-internal", "1"),
            ("x_beaver_internal", "1"),
            ("X-Beaver-Anything", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-request-id", "forged"),
            ("authorization", "Bearer k"),
        ]);
        remove_ours(&mut headers);
        assert_eq!(headers, map(&[("authorization", "Bearer k")]));
    }

    #[test]
    fn the_portals_cookies_go_and_the_others_stay() {
        let mut headers = map(&[
            ("cookie", "a=1; __Host-beaver_session=secret; b=2"),
            ("cookie", "beaver_session=secret"),
            ("cookie", "BEAVER_SESSION = secret;c=3"),
            ("cookie", "beaver_session2=x; beaver_edge=y"),
        ]);
        remove_ours(&mut headers);
        let lines: Vec<_> = headers.get_all(COOKIE).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(lines, ["a=1; b=2", "c=3", "beaver_session2=x; beaver_edge=y"]);
    }

    #[test]
    fn an_instance_cannot_toss_the_portals_cookie() {
        let mut headers =
            map(&[("set-cookie", "beaver_session=x; Domain=example.com"), ("set-cookie", "beaver_edge=y")]);
        clean_response(&mut headers);
        assert_eq!(headers, map(&[("set-cookie", "beaver_edge=y")]));
    }

    #[test]
    fn a_cookie_that_is_there_twice_is_not_there() {
        assert_eq!(single_cookie(&map(&[("cookie", "a=1; b=2")]), "b"), Some("2"));
        assert_eq!(single_cookie(&map(&[("cookie", "a=1"), ("cookie", "a=1")]), "a"), None);
        assert_eq!(single_cookie(&map(&[]), "a"), None);
    }
}
