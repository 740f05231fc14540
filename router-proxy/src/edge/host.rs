//! Whom a request is for: the one authority it names.

use http::{HeaderMap, Uri, header, uri::Authority};

/// What the authority of a request is to this router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// `<name>.<base domain>`: the name, lower case, and the authority as the client wrote it.
    Workspace {
        /// The name before the base domain. It need not be one that was ever given.
        slug: String,
        /// Host and port as they were sent, lower case.
        authority: String,
    },
    /// Something else: the base domain itself, an address, another domain.
    Other,
}

/// No authority, more than one, or one that cannot be read: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHost;

/// Reads the authority of a request (RFC 9112, section 3.2) and finds the workspace it names.
///
/// A port is ignored and upper case folded; a trailing dot makes it another host, for which nothing is here: a browser
/// holds it for another origin too.
///
/// # Errors
/// [`BadHost`], also when an absolute-form target and the Host header differ.
pub fn host(uri: &Uri, headers: &HeaderMap, base_domains: &[String]) -> Result<Host, BadHost> {
    let mut lines = headers.get_all(header::HOST).iter();
    let named = match (lines.next(), lines.next()) {
        (None, _) => None,
        (Some(line), None) => Some(authority(line.to_str().map_err(|_| BadHost)?)?),
        (Some(_), Some(_)) => return Err(BadHost),
    };
    let target = uri.authority().map(|a| authority(a.as_str())).transpose()?;
    let authority = match (target, named) {
        (Some(target), Some(named)) if target != named => return Err(BadHost),
        (Some(one), _) | (None, Some(one)) => one,
        // HTTP/1.0 needs no Host; nothing can be found for it.
        (None, None) => return Ok(Host::Other),
    };
    let name = authority.rsplit_once(':').map_or(&*authority, |(name, _)| name);
    let slug = base_domains.iter().find_map(|base| name.strip_suffix(base.as_str())?.strip_suffix('.'));
    Ok(match slug {
        Some(slug) if !slug.is_empty() && !slug.contains('.') => Host::Workspace { slug: slug.to_owned(), authority },
        _ => Host::Other,
    })
}

/// An authority without user, lower case.
fn authority(text: &str) -> Result<String, BadHost> {
    let parsed: Authority = text.parse().map_err(|_| BadHost)?;
    let port_is_number = match text.strip_prefix(parsed.host()) {
        Some("") => true,
        Some(port) => port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok()),
        None => false,
    };
    if parsed.host().is_empty() || !port_is_number {
        return Err(BadHost);
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, hosts: &[&str]) -> Result<Host, BadHost> {
        let mut headers = HeaderMap::new();
        for line in hosts {
            headers.append(header::HOST, line.parse().unwrap());
        }
        host(&uri.parse().unwrap(), &headers, &["apps.example.com".to_owned()])
    }

    fn workspace(slug: &str, authority: &str) -> Result<Host, BadHost> {
        Ok(Host::Workspace { slug: slug.into(), authority: authority.into() })
    }

    #[test]
    fn a_name_is_found_whatever_its_case_and_port() {
        for (uri, host, expected) in [
            ("/", "alice.apps.example.com", workspace("alice", "alice.apps.example.com")),
            ("/", "ALICE.Apps.Example.COM:8088", workspace("alice", "alice.apps.example.com:8088")),
            ("http://alice.apps.example.com/", "alice.apps.example.com", workspace("alice", "alice.apps.example.com")),
            ("/", "apps.example.com", Ok(Host::Other)),
            ("/", ".apps.example.com", Ok(Host::Other)),
            ("/", "a.alice.apps.example.com", Ok(Host::Other)),
            ("/", "alice.apps.example.com.", Ok(Host::Other)),
            ("/", "aliceapps.example.com", Ok(Host::Other)),
            ("/", "alice.apps.example.com.evil.test", Ok(Host::Other)),
            ("/", "127.0.0.1:8088", Ok(Host::Other)),
            ("/", "[::1]:8088", Ok(Host::Other)),
        ] {
            assert_eq!(of(uri, &[host]), expected, "{uri} {host}");
        }
    }

    #[test]
    fn one_authority_and_no_other() {
        for (uri, hosts) in [
            ("/", &["alice.apps.example.com", "alice.apps.example.com"][..]),
            ("http://bob.apps.example.com/", &["alice.apps.example.com"]),
            ("http://alice.apps.example.com:80/", &["alice.apps.example.com"]),
            ("/", &["bob@alice.apps.example.com"]),
            ("/", &["alice.apps.example.com:"]),
            ("/", &["alice.apps.example.com:99999"]),
            ("/", &["alice.apps.example.com:80:80"]),
            ("/", &["alice.apps.example.com/x"]),
            ("/", &["alice.apps.example.com,bob.apps.example.com"]),
            ("/", &["a b"]),
        ] {
            let found = of(uri, hosts);
            // A comma is allowed in a registered name (RFC 3986); such a name is nobody's.
            assert!(found == Err(BadHost) || found == Ok(Host::Other), "{uri} {hosts:?}: {found:?}");
        }
        assert_eq!(of("/", &["alice.apps.example.com", "alice.apps.example.com"]), Err(BadHost));
        assert_eq!(of("http://bob.apps.example.com/", &["alice.apps.example.com"]), Err(BadHost));
    }
}
