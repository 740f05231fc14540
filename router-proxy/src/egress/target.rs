//! What an instance asks to be connected to, read in one way only.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::uri::Authority;

use super::refusal::Refusal;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, not 0.
    pub port: u16,
}

/// A host as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name to be resolved: lower case, no dot at the end.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Why a text is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetError {
    /// No port, or none that exists.
    Port,
    /// Not a host at all, or one with a user before it.
    Host,
    /// A number that some programs read as an address and others do not: decimal, octal, hexadecimal, shortened.
    Number,
}

impl Target {
    /// What a request asks for; `default_port` serves when it names none.
    ///
    /// # Errors
    /// A [`Refusal`] to be answered with.
    pub fn of(uri: &http::Uri, default_port: Option<u16>) -> Result<Self, Refusal> {
        let authority = uri.authority().ok_or_else(Refusal::bad_target)?;
        Self::parse(authority, default_port).map_err(|error| Refusal::from((error, authority.host())))
    }

    /// Reads `host:port`; `default_port` serves when none is named.
    ///
    /// # Errors
    /// Each [`TargetError`].
    pub fn parse(authority: &Authority, default_port: Option<u16>) -> Result<Self, TargetError> {
        let text = authority.as_str();
        let host = authority.host();
        let port = match text.strip_prefix(host).ok_or(TargetError::Host)? {
            "" => default_port.ok_or(TargetError::Port)?,
            rest => {
                let digits = rest.strip_prefix(':').ok_or(TargetError::Host)?;
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(TargetError::Port);
                }
                digits.parse().map_err(|_| TargetError::Port)?
            }
        };
        if port == 0 {
            return Err(TargetError::Port);
        }
        Ok(Self { host: parse_host(host)?, port })
    }
}

fn parse_host(text: &str) -> Result<Host, TargetError> {
    if let Some(inside) = text.strip_prefix('[') {
        let inside = inside.strip_suffix(']').ok_or(TargetError::Host)?;
        return inside.parse::<Ipv6Addr>().map(|a| Host::Address(a.into())).map_err(|_| TargetError::Host);
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let last = name.rsplit('.').next().unwrap_or_default();
    // As the URL standard has it: what ends in a number is meant for an address.
    let numeric = last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if numeric && !last.is_empty() {
        return name.parse::<Ipv4Addr>().map(|a| Host::Address(a.into())).map_err(|_| TargetError::Number);
    }
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(TargetError::Host);
    }
    Ok(Host::Name(name))
}

/// Whether a name is this host's loopback by definition (RFC 6761, section 6.3).
pub fn is_local(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
            ref host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, TargetError> {
        Target::parse(&text.parse().map_err(|_| TargetError::Host)?, None).map(|t| t.to_string())
    }

    #[test]
    fn one_reading_or_none() {
        for (text, expected) in [
            ("api.openai.com:443", Ok("api.openai.com:443")),
            ("API.OpenAI.com.:443", Ok("api.openai.com:443")),
            ("my_host:80", Ok("my_host:80")),
            ("1.2.3.4:80", Ok("1.2.3.4:80")),
            ("[::1]:80", Ok("[::1]:80")),
            ("[::ffff:127.0.0.1]:80", Ok("[::ffff:127.0.0.1]:80")),
            ("a.com", Err(TargetError::Port)),
            ("a.com:0", Err(TargetError::Port)),
            ("a.com:99999", Err(TargetError::Port)),
            ("a.com:+80", Err(TargetError::Port)),
            ("user@a.com:80", Err(TargetError::Host)),
            ("2130706433:80", Err(TargetError::Number)),
            ("0x7f000001:80", Err(TargetError::Number)),
            ("0x7f.1:80", Err(TargetError::Number)),
            ("0177.0.0.1:80", Err(TargetError::Number)),
            ("127.1:80", Err(TargetError::Number)),
            ("127.0.0.01:80", Err(TargetError::Number)),
            ("127.0.0.1.:80", Ok("127.0.0.1:80")),
            ("1.2.3.4.5:80", Err(TargetError::Number)),
            ("256.0.0.1:80", Err(TargetError::Number)),
            ("a..b:80", Err(TargetError::Host)),
            ("[fe80::1%25eth0]:80", Err(TargetError::Host)),
            ("a%2eb:80", Err(TargetError::Host)),
        ] {
            assert_eq!(parse(text), expected.map(str::to_owned), "{text}");
        }
    }
}
