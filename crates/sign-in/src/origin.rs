//! Who may change anything: pages of this very origin. SameSite is no help: neighbours are the same site.

use http::{HeaderMap, HeaderName, header};

/// Whether a request says that a page of `origin` sent it: by `Sec-Fetch-Site`, which no page can set, or, where a browser
/// sends none, by its `Origin`. What says nothing, or two things, was not; `Origin: null`, which a form of a page with
/// `Referrer-Policy: no-referrer` has, says nothing.
pub fn is_same_origin(headers: &HeaderMap, origin: &str) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let mut sites = headers.get_all(SITE).iter();
    let (first, second) = (origins.next(), origins.next());
    let (site, other_site) = (sites.next(), sites.next());
    if second.is_some() || other_site.is_some() {
        return false;
    }
    let shown = first.filter(|shown| *shown != "null");
    match site {
        Some(site) => site == "same-origin" && shown.is_none_or(|shown| shown == origin),
        None => shown.is_some_and(|shown| shown == origin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "https://alice.apps.example.com";

    #[test]
    fn only_pages_of_this_origin_change_anything() {
        let allowed = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect();
            is_same_origin(&headers, ORIGIN)
        };
        assert!(allowed(&[("origin", ORIGIN)]));
        assert!(allowed(&[("origin", ORIGIN), ("sec-fetch-site", "same-origin")]));
        assert!(allowed(&[("sec-fetch-site", "same-origin")]));
        assert!(allowed(&[("origin", "null"), ("sec-fetch-site", "same-origin")]));
        for refused in [
            &[][..],
            &[("origin", "null")],
            &[("origin", "https://bob.apps.example.com")],
            &[("origin", "http://alice.apps.example.com")],
            &[("origin", "https://alice.apps.example.com:444")],
            &[("origin", "https://ALICE.apps.example.com")],
            &[("origin", ORIGIN), ("origin", ORIGIN)],
            &[("origin", ORIGIN), ("sec-fetch-site", "same-site")],
            &[("origin", "null"), ("sec-fetch-site", "same-site")],
            &[("origin", "https://bob.apps.example.com"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!allowed(refused), "{refused:?}");
        }
    }
}
