//! Who the client is, past the proxies that are believed, and how the instance is told (RFC 7239 and its older cousins).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, header};
use ipnet::IpNet;

/// What is known of the client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Whether it came by https.
    pub secure: bool,
}

/// Finds the client: the peer itself, or, if that is a proxy that is believed, the rightmost address in
/// `X-Forwarded-For` that is not one. An entry that is no address ends the search: what is left of it may be anybody's.
pub fn client(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet], public_secure: bool) -> Client {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let peer = peer.ip().to_canonical();
    if !is_trusted(&peer) {
        return Client { address: peer, secure: public_secure };
    }
    let mut address = peer;
    let lines: Vec<&str> = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok()).collect();
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(named) = parse(entry.trim()) else { break };
        address = named;
        if !is_trusted(&address) {
            break;
        }
    }
    // The proxy next to us wrote the last one.
    let proto = headers.get_all("x-forwarded-proto").iter().next_back().and_then(|line| line.to_str().ok());
    let secure = match proto.and_then(|line| line.rsplit(',').next()).map(str::trim) {
        Some("https") => true,
        Some("http") => false,
        _ => public_secure,
    };
    Client { address, secure }
}

/// An address, with a port or brackets or not.
fn parse(entry: &str) -> Option<IpAddr> {
    let address = entry.parse::<IpAddr>().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|a| a.ip()));
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    address.or_else(bracketed).map(|a| a.to_canonical())
}

/// Tells the instance who the client is.
pub fn write(headers: &mut HeaderMap, client: Client, authority: &str) {
    let proto = if client.secure { "https" } else { "http" };
    let address = client.address.to_string();
    let node = if client.address.is_ipv6() { format!("\"[{address}]\"") } else { address.clone() };
    let forwarded = format!("for={node};host=\"{authority}\";proto={proto}");
    let text = |text: &str| HeaderValue::from_str(text).ok();
    headers.insert("x-forwarded-proto", HeaderValue::from_static(proto));
    // Addresses and a checked authority are always header text.
    for (name, value) in [
        ("x-forwarded-for", text(&address)),
        ("x-forwarded-host", text(authority)),
        (header::FORWARDED.as_str(), text(&forwarded)),
    ] {
        if let Some(value) = value {
            headers.insert(http::HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(peer: &str, lines: &[&str], proto: &[&str]) -> (String, bool) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        for line in proto {
            headers.append("x-forwarded-proto", line.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let found = client(peer.parse().unwrap(), &headers, &trusted, false);
        (found.address.to_string(), found.secure)
    }

    #[test]
    fn only_believed_proxies_are_believed() {
        for (peer, lines, expected) in [
            ("203.0.113.9:1", &["1.1.1.1"][..], "203.0.113.9"),
            ("10.0.0.1:1", &[], "10.0.0.1"),
            ("10.0.0.1:1", &["1.1.1.1"], "1.1.1.1"),
            ("[::ffff:10.0.0.1]:1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1:1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1:1", &["6.6.6.6 , 1.1.1.1,10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1:1", &["6.6.6.6", "1.1.1.1", "10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1:1", &["6.6.6.6, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1:1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1:1", &["1.1.1.1:5555"], "1.1.1.1"),
            ("[::1]:1", &["[2001:db8::1]:5555"], "2001:db8::1"),
            ("[::1]:1", &["[2001:db8::1]"], "2001:db8::1"),
        ] {
            assert_eq!(find(peer, lines, &[]).0, expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn the_scheme_is_the_nearest_proxys() {
        assert!(find("10.0.0.1:1", &[], &["https"]).1);
        assert!(!find("203.0.113.9:1", &[], &["https"]).1);
        assert!(!find("10.0.0.1:1", &[], &["https, http"]).1);
        assert!(find("10.0.0.1:1", &[], &["http", "https"]).1);
        assert!(!find("10.0.0.1:1", &[], &["ftp"]).1);
    }

    #[test]
    fn the_instance_is_told_in_every_form() {
        let mut headers = HeaderMap::new();
        write(&mut headers, Client { address: "2001:db8::1".parse().unwrap(), secure: true }, "a.localhost:8088");
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["x-forwarded-host"], "a.localhost:8088");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=\"a.localhost:8088\";proto=https");
    }
}
