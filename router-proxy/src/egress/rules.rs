//! The operator's rules, and what follows from them and from an address's kind.

use std::{net::IpAddr, str::FromStr};

use contracts::egress::RefusalReason;
use ipnet::IpNet;

use super::{
    address::{Class, classify, embedded_v4},
    target::{Host, Target},
};

/// What instances may reach: `BEAVER_EGRESS_DEFAULT`, `_ALLOW` and `_DENY`, and a [`file`].
#[derive(Debug, Clone)]
pub struct Rules {
    /// What holds where no rule does.
    pub default: Default,
    /// Let out even when private.
    pub allow: Vec<Rule>,
    /// Kept in even when public or let out above.
    pub deny: Vec<Rule>,
}

/// What holds where no rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Every public address.
    AllowPublic,
    /// Nothing.
    DenyAll,
}

impl FromStr for Default {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "allow-public" => Ok(Self::AllowPublic),
            "deny-all" => Ok(Self::DenyAll),
            _ => Err("neither allow-public nor deny-all"),
        }
    }
}

/// One rule: whom it is about, and at which ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    whom: Whom,
    /// The first and the last.
    ports: Option<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    /// `*`: everything.
    Any,
    /// A CIDR or an address.
    Net(IpNet),
    /// A host's name.
    Name(String),
    /// `*.name`: every host below it.
    Below(String),
}

impl FromStr for Rule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An IPv6 address has colons of its own: with a port it stands in brackets.
        if let Ok(net) = net(text) {
            return Ok(Self { whom: Whom::Net(net), ports: None });
        }
        let (whom, ports) = match text.rsplit_once(':') {
            Some((whom, text)) => (whom, Some(ports(text)?)),
            None => (text, None),
        };
        let bare = whom.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(whom);
        let whom = match net(bare) {
            Ok(net) => Whom::Net(net),
            Err(()) => by_name(whom)?,
        };
        Ok(Self { whom, ports })
    }
}

/// `443`, or `8000-8100`.
fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err("the port is no number from 1 to 65535"),
        Ok(port) => Ok(port),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err("the ports end before they begin") } else { Ok((first, last)) }
}

fn net(text: &str) -> Result<IpNet, ()> {
    text.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| ())
}

fn by_name(text: &str) -> Result<Whom, &'static str> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    if text == "*" {
        return Ok(Whom::Any);
    }
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, &*text),
    };
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if numeric || !name.split('.').all(label) {
        return Err("neither a CIDR, an address, a host name nor *.name");
    }
    Ok(if below { Whom::Below(name.to_owned()) } else { Whom::Name(name.to_owned()) })
}

impl Rule {
    fn at(&self, port: u16) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
    }

    /// Whether it is about this host by its name.
    fn names(&self, target: &Target) -> bool {
        let Host::Name(host) = &target.host else { return false };
        self.at(target.port)
            && match &self.whom {
                Whom::Name(name) => host == name,
                Whom::Below(name) => host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')),
                Whom::Any | Whom::Net(_) => false,
            }
    }

    fn holds(&self, address: IpAddr, port: u16) -> bool {
        self.at(port) && matches!(&self.whom, Whom::Net(net) if net.contains(&address))
    }

    fn is_any(&self, port: u16) -> bool {
        self.at(port) && self.whom == Whom::Any
    }
}

/// Why a target is not let out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The operator refuses it.
    Denied,
    /// The operator lets out only what is listed, and it is not.
    NotListed,
    /// It leads to an address of a kind that is not public.
    Kind(Class),
    /// It is written as a number.
    Number,
}

impl Reason {
    /// A sentence for whoever reads the refusal; it never names the address that was found.
    pub fn sentence(self, host: &str) -> String {
        match self {
            Self::Denied => format!("{host} is refused: the operator of this server has blocked it."),
            Self::NotListed => {
                format!(
                    "{host} is refused: the operator of this server allows only listed addresses, and it is not one."
                )
            }
            Self::Kind(class) => format!(
                "{host} is refused: it leads to {}, which the operator of this server has not allowed.",
                class.words()
            ),
            Self::Number => format!("{host} is refused: write the address in its usual form."),
        }
    }

    /// A few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Denied => "blocked by the operator",
            Self::NotListed => "not among what the operator allows",
            Self::Kind(class) => class.words(),
            Self::Number => "write the address in its usual form",
        }
    }

    /// The error type of RFC 9209, section 2.3.
    pub fn error(self) -> &'static str {
        match self {
            Self::Kind(_) => "destination_ip_prohibited",
            Self::Denied | Self::NotListed | Self::Number => "http_request_denied",
        }
    }

    /// For metrics.
    pub fn code(self) -> &'static str {
        self.told().as_str()
    }

    /// As the other services are told of it.
    pub fn told(self) -> RefusalReason {
        match self {
            Self::Denied => RefusalReason::Denied,
            Self::NotListed => RefusalReason::NotListed,
            Self::Kind(_) => RefusalReason::Address,
            Self::Number => RefusalReason::Number,
        }
    }
}

impl Rules {
    /// Whether the target is refused before its name is resolved.
    ///
    /// # Errors
    /// The [`Reason`].
    pub fn check_name(&self, target: &Target) -> Result<(), Reason> {
        let denied = self.deny.iter().any(|rule| rule.names(target) || rule.is_any(target.port));
        if denied { Err(Reason::Denied) } else { Ok(()) }
    }

    /// Whether `address`, which the target stands for, may be connected to. `own` says whether it is this host's.
    ///
    /// # Errors
    /// The [`Reason`].
    pub fn check(&self, target: &Target, address: IpAddr, own: bool) -> Result<(), Reason> {
        self.check_name(target)?;
        let inside = match address {
            IpAddr::V6(v6) => embedded_v4(v6).map(IpAddr::from),
            IpAddr::V4(_) => None,
        };
        let port = target.port;
        if self.deny.iter().any(|rule| rule.holds(address, port) || inside.is_some_and(|a| rule.holds(a, port))) {
            return Err(Reason::Denied);
        }
        if self.allow.iter().any(|rule| rule.holds(address, port)) {
            return Ok(());
        }
        let class = match classify(address) {
            Class::Public if own => Class::Own,
            class => class,
        };
        if self.allow.iter().any(|rule| rule.names(target)) {
            // A name lets out to where its owner keeps it, also inside; never to what no name sensibly stands for.
            return match class {
                Class::Public | Class::Private | Class::Shared | Class::Loopback | Class::Own => Ok(()),
                other => Err(Reason::Kind(other)),
            };
        }
        let public = self.default == Default::AllowPublic || self.allow.iter().any(|rule| rule.is_any(port));
        match class {
            _ if !public => Err(Reason::NotListed),
            Class::Public => Ok(()),
            other => Err(Reason::Kind(other)),
        }
    }
}

pub mod file;
#[cfg(test)]
mod tests;
