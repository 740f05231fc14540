//! What kind of address an address is (the IANA special-purpose registries, RFC 6890), judged by what may be reached
//! with it rather than by how it is written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kinds that matter here. Only [`Class::Public`] is let out without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Reachable from everywhere.
    Public,
    /// This host, over its loopback.
    Loopback,
    /// This host, by one of its own addresses.
    Own,
    /// RFC 1918 and unique local (RFC 4193).
    Private,
    /// Carrier-grade NAT (RFC 6598).
    Shared,
    /// Link-local (RFC 3927, RFC 4291).
    LinkLocal,
    /// A cloud's metadata service outside of link-local.
    Metadata,
    /// Multicast and broadcast.
    Multicast,
    /// The address of nothing, or of "this network".
    Unspecified,
    /// For examples in texts (RFC 5737, 3849, 9637).
    Documentation,
    /// An IPv4 address in IPv6 clothes: mapped, compatible, NAT64, 6to4, Teredo, ISATAP.
    Embedded,
    /// Set aside, and reachable for nobody.
    Reserved,
}

impl Class {
    /// For a sentence: "it leads to …".
    pub fn words(self) -> &'static str {
        match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address",
            Self::Own => "an address of this server itself",
            Self::Private => "a private address",
            Self::Shared => "a shared (carrier NAT) address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a metadata service",
            Self::Multicast => "a multicast or broadcast address",
            Self::Unspecified => "an unspecified address",
            Self::Documentation => "a documentation address",
            Self::Embedded => "an IPv4 address inside an IPv6 one",
            Self::Reserved => "a reserved address",
        }
    }
}

/// The kind of an address, the host's own not taken into account.
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

fn classify_v4(address: Ipv4Addr) -> Class {
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [192, 168, ..] => Class::Private,
        [172, b, ..] if (16..32).contains(&b) => Class::Private,
        // Alibaba's is in the shared range, Azure's among public addresses.
        [100, 100, 100, 200] | [168, 63, 129, 16] => Class::Metadata,
        [100, b, ..] if (64..128).contains(&b) => Class::Shared,
        [169, 254, ..] => Class::LinkLocal,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Documentation,
        // Protocol assignments, the former 6to4 relay, AS112, AMT, benchmarking.
        [192, 0, 0, _] | [192, 88, 99, _] | [192, 31, 196, _] | [192, 52, 193, _] | [192, 175, 48, _] => {
            Class::Reserved
        }
        [198, 18 | 19, ..] => Class::Reserved,
        [224..240, ..] | [255, 255, 255, 255] => Class::Multicast,
        [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // Mapped, translated (RFC 2765), compatible.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0, 0, 0, 0, 0, 0, ..] => Class::Embedded,
        // NAT64 (RFC 6052, RFC 8215), 6to4, Teredo.
        [0x64, 0xff9b, ..] | [0x2002, ..] | [0x2001, 0, ..] => Class::Embedded,
        // ISATAP under any prefix (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => Class::Embedded,
        [0x2001, 0xdb8, ..] => Class::Documentation,
        [0x3fff, b, ..] if b < 0x1000 => Class::Documentation,
        // The rest of the protocol assignments: benchmarking, ORCHID and the like.
        [0x2001, b, ..] if b < 0x200 => Class::Reserved,
        [0x2620, 0x4f, 0x8000, ..] => Class::Reserved,
        [a, ..] if a & 0xffc0 == 0xfe80 => Class::LinkLocal,
        // Site-local, deprecated, and still somebody's inside.
        [a, ..] if a & 0xffc0 == 0xfec0 => Class::Private,
        [a, ..] if a & 0xfe00 == 0xfc00 => Class::Private,
        [a, ..] if a & 0xff00 == 0xff00 => Class::Multicast,
        // Global unicast is what has been given out so far.
        [a, ..] if a & 0xe000 == 0x2000 => Class::Public,
        _ => Class::Reserved,
    }
}

/// The IPv4 address that is reached by an IPv6 one, where that is so: a rule that denies the one denies the other.
pub fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] | [0, 0, 0, 0, 0, 0, a, b] => Some(of(a, b)),
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => Some(of(a, b)),
        [0x2002, a, b, ..] => Some(of(a, b)),
        // Teredo writes the client's address inverted.
        [0x2001, 0, _, _, _, _, a, b] => Some(of(!a, !b)),
        [_, _, _, _, 0 | 0x200, 0x5efe, a, b] => Some(of(a, b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Class::*, *};

    #[test]
    fn every_kind() {
        for (text, class) in [
            ("1.1.1.1", Public),
            ("8.8.8.8", Public),
            ("93.184.216.34", Public),
            ("100.63.255.255", Public),
            ("100.128.0.0", Public),
            ("172.15.255.255", Public),
            ("172.32.0.0", Public),
            ("192.167.255.255", Public),
            ("198.17.255.255", Public),
            ("198.20.0.0", Public),
            ("223.255.255.255", Public),
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("127.0.0.1", Loopback),
            ("127.255.255.254", Loopback),
            ("10.0.0.1", Private),
            ("10.255.255.255", Private),
            ("172.16.0.1", Private),
            ("172.17.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.0.1", Private),
            ("100.64.0.1", Shared),
            ("100.127.255.255", Shared),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("169.254.169.254", LinkLocal),
            ("169.254.0.1", LinkLocal),
            ("192.0.2.1", Documentation),
            ("198.51.100.7", Documentation),
            ("203.0.113.9", Documentation),
            ("192.0.0.192", Reserved),
            ("192.88.99.1", Reserved),
            ("198.18.0.1", Reserved),
            ("198.19.255.255", Reserved),
            ("224.0.0.1", Multicast),
            ("239.255.255.250", Multicast),
            ("240.0.0.1", Reserved),
            ("255.255.255.254", Reserved),
            ("255.255.255.255", Multicast),
            ("2606:4700::1111", Public),
            ("2a00:1450:4001::1", Public),
            ("2001:4860:4860::8888", Public),
            ("::", Unspecified),
            ("::1", Loopback),
            ("::ffff:8.8.8.8", Embedded),
            ("::ffff:127.0.0.1", Embedded),
            ("::ffff:0:10.0.0.1", Embedded),
            ("::127.0.0.1", Embedded),
            ("::2", Embedded),
            ("64:ff9b::7f00:1", Embedded),
            ("64:ff9b:1::1", Embedded),
            ("2002:7f00:1::", Embedded),
            ("2001::1", Embedded),
            ("2600::5efe:10.0.0.1", Embedded),
            ("2600::200:5efe:10.0.0.1", Embedded),
            ("2001:db8::1", Documentation),
            ("3fff::1", Documentation),
            ("2001:2::1", Reserved),
            ("2001:20::1", Reserved),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("fec0::1", Private),
            ("fc00::1", Private),
            ("fd00:ec2::254", Private),
            ("ff02::1", Multicast),
            ("100::1", Reserved),
            ("4000::1", Reserved),
            ("5f00::1", Reserved),
        ] {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn what_is_inside_is_seen() {
        for (text, inside) in [
            ("::ffff:10.1.2.3", Some("10.1.2.3")),
            ("::10.1.2.3", Some("10.1.2.3")),
            ("64:ff9b::a01:203", Some("10.1.2.3")),
            ("2002:a01:203::1", Some("10.1.2.3")),
            ("2001::f5fe:fdfc", Some("10.1.2.3")),
            ("2600::5efe:a01:203", Some("10.1.2.3")),
            ("::1", None),
            ("2606:4700::1111", None),
        ] {
            let found = embedded_v4(text.parse().unwrap());
            assert_eq!(found, inside.map(|i| i.parse().unwrap()), "{text}");
        }
    }
}
