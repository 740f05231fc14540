//! What an address stands for, where clients are counted by theirs.

use std::net::{IpAddr, Ipv6Addr};

/// What one client has whole: its IPv4 address, or the /64 that one IPv6 subscriber chooses addresses from.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into(),
        v4 => v4,
    }
}

/// Whether a peer is likely not the client itself: a private address is a proxy in front or Docker's own, which stands for
/// everybody.
pub fn stands_for_many(peer: IpAddr) -> bool {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_subscriber_is_one_client_and_a_mapped_address_is_ipv4() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn private_addresses_stand_for_many() {
        for (text, many) in [
            ("127.0.0.1", true),
            ("172.17.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("169.254.0.1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("::1", true),
            ("1.1.1.1", false),
            ("100.64.0.1", false),
            ("2606:4700::1", false),
        ] {
            assert_eq!(stands_for_many(text.parse().unwrap()), many, "{text}");
        }
    }
}
