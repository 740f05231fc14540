//! Which paths are not there for the public, however they are written.
//!
//! The instance sees the path as it was sent. So the question is not what the path is, but what anything behind could
//! take it for: every reading is tried, and one that is private is enough.

use percent_encoding::percent_decode_str;

/// Paths that only Beaver itself may ask an instance for, and what is under them. The first two mean something to an instance
/// of its own alone.
const PRIVATE: [&str; 5] = ["/api/auth", "/api/provider/test", "/api/activity", "/metrics", "/readyz"];
/// Who decodes more often than this finds something else than anybody meant.
const MAX_DECODES: usize = 4;

/// Whether a raw path could be read as one that is not for the public.
pub fn is_private(path: &str) -> bool {
    could_be(path, &PRIVATE)
}

/// Whether it could be read as one that only an instance of Beaver's own understands.
pub fn is_for_instances(path: &str) -> bool {
    could_be(path, &PRIVATE[..2])
}

fn could_be(path: &str, private: &[&str]) -> bool {
    // Nearly every path has nothing in it that could be read in two ways.
    let mut reading = path.to_ascii_lowercase();
    for _ in 0..MAX_DECODES {
        if looks_private(&reading, private) {
            return true;
        }
        if !reading.contains('%') {
            return false;
        }
        let decoded = percent_decode_str(&reading).decode_utf8_lossy().to_ascii_lowercase();
        if decoded == reading {
            return false;
        }
        reading = decoded;
    }
    // Encoded more often than anything sensible is: nobody needs such a path.
    true
}

fn looks_private(path: &str, private: &[&str]) -> bool {
    // As written, with parameters and all, and with dots resolved: each is somebody's reading.
    let end = path.find(['?', '#', '\0']).unwrap_or(path.len());
    let segments = |resolve: bool| {
        let mut kept: Vec<&str> = Vec::new();
        for segment in path[..end].split(['/', '\\']) {
            match segment.split(';').next().unwrap_or_default().trim() {
                "" | "." => {}
                ".." if resolve => drop(kept.pop()),
                other => kept.push(other),
            }
        }
        kept
    };
    [segments(true), segments(false)].iter().any(|kept| {
        private.iter().any(|private| {
            let mut wanted = private.split('/').filter(|s| !s.is_empty());
            let mut kept = kept.iter();
            wanted.all(|segment| kept.next() == Some(&segment))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn however_it_is_written() {
        for path in [
            "/api/auth",
            "/api/auth/",
            "/api/auth/login",
            "/API/Auth/login",
            "//api//auth/login",
            "/./api/./auth/login",
            "/x/../api/auth/login",
            "/api/auth/../x",
            "/%61pi/auth/login",
            "/api%2fauth%2Flogin",
            "/api%252fauth/login",
            "/%25252561pi/auth/login",
            "/%2525252561pi/auth/login",
            "/api\\auth\\login",
            "/api%5cauth/login",
            "/x/%2e%2e/api/auth/login",
            "/x/%2e%2e%2fapi/auth/login",
            "/api;v=1/auth;x/login",
            "/api/auth%3fx",
            "/api/auth%23x",
            "/api/auth%00x",
            "/api/auth%20/login",
            "/api/provider/test",
            "/api/provider/test/",
            "/metrics",
            "/Metrics/",
            "/api/activity",
            "/readyz",
            "/%72eadyz",
        ] {
            assert!(is_private(path), "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_it_passes() {
        for path in [
            "/",
            "/api",
            "/api/authors",
            "/api/chat",
            "/api/activities",
            "/auth/start",
            "/auth/finish",
            "/api/provider",
            "/api/provider/tests",
            "/metricsx",
            "/healthz",
            "/v1/chat/completions",
            "/files/a%2Fb%20c",
            "/files/100%25",
            "/files/%e4%b8%ad",
            "/x/metrics",
            "*",
        ] {
            assert!(!is_private(path), "{path}");
        }
    }
}
