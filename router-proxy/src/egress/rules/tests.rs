use super::*;

fn rules(default: &str, allow: &str, deny: &str) -> Rules {
    let list = |text: &str| text.split(',').filter(|t| !t.is_empty()).map(|t| t.trim().parse().unwrap()).collect();
    Rules { default: default.parse().unwrap(), allow: list(allow), deny: list(deny) }
}

fn check(rules: &Rules, target: &str, address: &str) -> Result<(), Reason> {
    let target = Target::parse(&target.parse().unwrap(), None).unwrap();
    rules.check(&target, address.parse().unwrap(), false)
}

#[test]
fn without_rules_only_public_addresses_are_let_out() {
    let rules = rules("allow-public", "", "");
    assert_eq!(check(&rules, "api.test:443", "93.184.216.34"), Ok(()));
    assert_eq!(check(&rules, "93.184.216.34:443", "93.184.216.34"), Ok(()));
    for (address, class) in [
        ("127.0.0.1", Class::Loopback),
        ("10.0.0.1", Class::Private),
        ("100.64.0.1", Class::Shared),
        ("169.254.169.254", Class::LinkLocal),
        ("::ffff:10.0.0.1", Class::Embedded),
        ("64:ff9b::a00:1", Class::Embedded),
        ("fd00::1", Class::Private),
        ("0.0.0.0", Class::Unspecified),
    ] {
        assert_eq!(check(&rules, "rebound.test:443", address), Err(Reason::Kind(class)), "{address}");
    }
    let target = Target::parse(&"me.test:443".parse().unwrap(), None).unwrap();
    assert_eq!(rules.check(&target, "93.184.216.34".parse().unwrap(), true), Err(Reason::Kind(Class::Own)));
}

#[test]
fn allowing_an_address_is_for_that_address_and_port() {
    let rules =
        rules("allow-public", "192.168.1.10:11434, 10.8.0.0/16, [fd00::5]:80, fd01::/64, 10.9.1.0/24:8000-8100", "");
    for (target, address, let_out) in [
        ("192.168.1.10:11434", "192.168.1.10", true),
        ("named.test:11434", "192.168.1.10", true),
        ("192.168.1.10:22", "192.168.1.10", false),
        ("192.168.1.11:11434", "192.168.1.11", false),
        ("a.test:1", "10.8.255.255", true),
        ("a.test:1", "10.9.0.0", false),
        ("a.test:8000", "10.9.1.1", true),
        ("a.test:8100", "10.9.1.1", true),
        ("a.test:7999", "10.9.1.1", false),
        ("a.test:8101", "10.9.1.1", false),
        ("a.test:1", "::ffff:10.8.0.1", false),
        ("a.test:80", "fd00::5", true),
        ("a.test:81", "fd00::5", false),
        ("a.test:81", "fd01::9", true),
    ] {
        assert_eq!(check(&rules, target, address).is_ok(), let_out, "{target} {address}");
    }
}

#[test]
fn allowing_a_name_is_for_what_it_leads_to_but_never_metadata() {
    let rules = rules("allow-public", "ollama.lan:11434, *.corp.test", "");
    for (target, address, let_out) in [
        ("ollama.lan:11434", "192.168.1.10", true),
        ("ollama.lan:11434", "127.0.0.1", true),
        ("ollama.lan:22", "192.168.1.10", false),
        ("ollama.lan:11434", "169.254.169.254", false),
        ("ollama.lan:11434", "100.100.100.200", false),
        ("ollama.lan:11434", "::ffff:10.0.0.1", false),
        ("x.ollama.lan:11434", "192.168.1.10", false),
        ("a.corp.test:1", "10.0.0.1", true),
        ("a.b.corp.test:1", "10.0.0.1", true),
        ("corp.test:1", "10.0.0.1", false),
        ("evilcorp.test:1", "10.0.0.1", false),
        ("192.168.1.10:11434", "192.168.1.10", false),
    ] {
        assert_eq!(check(&rules, target, address).is_ok(), let_out, "{target} {address}");
    }
}

#[test]
fn denying_outranks_allowing() {
    let rules = rules("allow-public", "10.0.0.0/8, good.test", "10.1.0.0/16, *:25, *.bad.test, good.test:81");
    for (target, address, let_out) in [
        ("a.test:80", "10.0.0.1", true),
        ("a.test:80", "10.1.0.1", false),
        ("a.test:80", "::ffff:10.1.0.1", false),
        ("a.test:80", "64:ff9b::a01:1", false),
        ("mail.test:25", "93.184.216.34", false),
        ("93.184.216.34:25", "93.184.216.34", false),
        ("a.bad.test:80", "93.184.216.34", false),
        ("bad.test:80", "93.184.216.34", true),
        ("good.test:80", "192.168.0.1", true),
        ("good.test:81", "192.168.0.1", false),
    ] {
        assert_eq!(check(&rules, target, address).is_ok(), let_out, "{target} {address}");
    }
    assert_eq!(check(&rules, "a.test:80", "64:ff9b::a01:1"), Err(Reason::Denied));
}

#[test]
fn deny_all_lets_out_what_is_listed() {
    let closed = rules("deny-all", "api.test:443, 1.1.1.1", "");
    assert_eq!(check(&closed, "api.test:443", "93.184.216.34"), Ok(()));
    assert_eq!(check(&closed, "api.test:80", "93.184.216.34"), Err(Reason::NotListed));
    assert_eq!(check(&closed, "1.1.1.1:53", "1.1.1.1"), Ok(()));
    assert_eq!(check(&closed, "other.test:443", "93.184.216.34"), Err(Reason::NotListed));
    let web = rules("deny-all", "*:443", "");
    assert_eq!(check(&web, "other.test:443", "93.184.216.34"), Ok(()));
    assert_eq!(check(&web, "other.test:443", "10.0.0.1"), Err(Reason::Kind(Class::Private)));
}

#[test]
fn rules_are_refused_when_they_mean_nothing() {
    for text in [
        "",
        "a b",
        "10.0.0.0/33",
        "10.0.0",
        "host:0",
        "host:x",
        "*.*",
        "a.*.b",
        "http://a",
        "[fd00::1",
        "::1:x",
        "a:9-8",
        "a:1-",
        "a:0-5",
    ] {
        assert!(text.parse::<Rule>().is_err(), "{text}");
    }
}

#[test]
fn a_refusal_names_host_and_kind_but_no_address() {
    let sentence = Reason::Kind(Class::Private).sentence("db.corp.test");
    assert!(sentence.contains("db.corp.test") && sentence.contains("private address"), "{sentence}");
}
