//! Keys, key sets, and that what is signed is what is read.

mod common;

use common::{AUDIENCE, EXPECTED, ISSUER, NOW_S, claims, encode, header, key, keys, payload, signed};
use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Access, Assertion, Claims, Error, Jwk, KeySet, Kind, Purpose, SigningKey, verify};

/// The key and thumbprint of RFC 8037, appendices A.1 to A.3.
#[test]
fn the_rfcs_key_has_the_rfcs_thumbprint() {
    let jwk: Jwk = serde_json::from_value(json!({
        "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    }))
    .expect("a key");
    assert_eq!(jwk.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert_eq!(jwk.thumbprint(), jwk.kid());
}

#[test]
fn a_key_survives_its_file_and_its_json() {
    let made = key(1);
    let read = SigningKey::from_pkcs8(made.to_pkcs8().expose_secret()).expect("the key");
    assert_eq!((read.kid(), read.public()), (made.kid(), made.public()));
    let token = read.sign(Kind::AccessToken, &claims()).expect("a token");
    assert_eq!(verify::<Access>(Kind::AccessToken, &token, &EXPECTED, &keys(&made)).expect("valid"), claims());

    let json = serde_json::to_value(made.public()).expect("JSON");
    assert_eq!(
        json,
        json!({"kty": "OKP", "crv": "Ed25519", "x": encode(made.public().as_bytes()), "kid": made.kid(), "use": "sig", "alg": "EdDSA"})
    );
    assert_eq!(serde_json::from_value::<Jwk>(json).expect("a key"), made.public());
    assert_ne!(key(1).kid(), key(2).kid());
}

#[test]
fn what_is_no_private_key_is_refused_without_a_panic() {
    let pkcs8 = key(1).to_pkcs8();
    let pkcs8 = pkcs8.expose_secret();
    let mut other_public = pkcs8.to_vec();
    *other_public.last_mut().expect("bytes") ^= 1;
    for bytes in
        [&[][..], &[0; 48], &pkcs8[..20], &pkcs8[..pkcs8.len() - 1], &other_public, b"-----BEGIN PRIVATE KEY-----"]
    {
        assert!(matches!(SigningKey::from_pkcs8(bytes), Err(Error::Key(_))), "{} bytes", bytes.len());
    }
}

#[test]
fn a_private_key_is_never_shown() {
    let key = key(1);
    let shown = format!("{key:?} {:?}", key.to_pkcs8());
    assert!(shown.contains(key.kid()) && shown.contains("REDACTED"), "{shown}");
    let pkcs8 = key.to_pkcs8();
    assert!(!shown.contains(&encode(&pkcs8.expose_secret()[16..48])));
    assert!(!shown.contains(&format!("{:?}", &pkcs8.expose_secret()[16..20])[1..12]));
}

#[test]
fn public_keys_that_are_none_of_ours() {
    let good = serde_json::to_value(key(1).public()).expect("JSON");
    assert!(serde_json::from_value::<Jwk>(good.clone()).is_ok(), "the control");
    for (member, value) in [
        ("kty", json!("oct")),
        ("kty", json!("okp")),
        ("kty", Value::Null),
        ("crv", json!("X25519")),
        ("crv", json!("Ed448")),
        ("x", json!("")),
        ("x", json!(encode([1; 31]))),
        ("x", json!(encode([1; 33]))),
        ("x", json!(format!("{}=", encode([1; 32])))),
        ("x", json!("+".repeat(43))),
        ("use", json!("enc")),
        ("alg", json!("HS256")),
        ("alg", json!("ES256")),
        ("kid", json!("")),
        ("kid", json!("../x")),
        ("kid", json!("a".repeat(129))),
        ("d", json!(encode([1; 32]))),
    ] {
        let mut jwk = good.clone();
        jwk[member] = value.clone();
        let refusal = serde_json::from_value::<Jwk>(jwk);
        assert!(refusal.is_err(), "{member} = {value}");
        assert!(!format!("{refusal:?}").contains(&encode([1; 32])), "a private key is not quoted");
    }
    for (member, value) in
        [("use", Value::Null), ("alg", Value::Null), ("alg", json!("Ed25519")), ("kid", json!("key-1"))]
    {
        let mut jwk = good.clone();
        jwk[member] = value.clone();
        assert!(serde_json::from_value::<Jwk>(jwk).is_ok(), "{member} = {value}");
    }
}

#[test]
fn a_set_passes_over_what_it_cannot_use() {
    let key = key(1);
    let mine = serde_json::to_value(key.public()).expect("JSON");
    let set: KeySet = serde_json::from_value(json!({
        "keys": [
            {"kty": "RSA", "n": "x", "e": "AQAB", "kid": "rsa"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"},
            "nonsense", null, 7,
            mine,
        ],
        "more": true,
    }))
    .expect("a set");
    assert_eq!(set.keys(), [key.public()]);
    assert_eq!(set.get(key.kid()), Some(&key.public()));
    assert_eq!((set.get("rsa"), set.get("")), (None, None));
    assert_eq!(serde_json::from_value::<KeySet>(serde_json::to_value(&set).expect("JSON")).expect("a set"), set);
    for wrong in [json!({}), json!({"keys": {}}), json!([])] {
        assert!(serde_json::from_value::<KeySet>(wrong).is_err());
    }
    let flood: Vec<_> = (0..100).map(|n| serde_json::to_value(common::key(n).public()).expect("JSON")).collect();
    assert_eq!(serde_json::from_value::<KeySet>(json!({"keys": flood})).expect("a set").keys().len(), 32);
}

/// Rotation: the old key's tokens live on while its public half is published, and the new key's are read at once.
#[test]
fn two_keys_are_read_side_by_side() {
    let (old, new) = (key(1), key(2));
    let both = KeySet::new([old.public(), new.public()]);
    for signer in [&old, &new] {
        let token = signer.sign(Kind::AccessToken, &claims()).expect("a token");
        assert!(verify::<Access>(Kind::AccessToken, &token, &EXPECTED, &both).is_ok());
        assert!(matches!(
            verify::<Access>(Kind::AccessToken, &token, &EXPECTED, &KeySet::default()),
            Err(Error::UnknownKid)
        ));
    }
    // The kid picks the key; the other one is not tried.
    let forged = signed(&new, &header(&old, Kind::AccessToken).to_string(), &payload().to_string());
    assert!(matches!(verify::<Access>(Kind::AccessToken, &forged, &EXPECTED, &both), Err(Error::Signature)));
}

#[test]
fn what_would_be_refused_is_not_signed() {
    let key = key(1);
    let sign = |change: fn(&mut Claims<Access>)| {
        let mut claims = claims();
        change(&mut claims);
        match key.sign(Kind::AccessToken, &claims) {
            Ok(_) => "signed".to_owned(),
            Err(error) => format!("{error:?}"),
        }
    };
    assert_eq!(sign(|_| {}), "signed", "the control");
    assert_eq!(sign(|claims| claims.exp = claims.iat + 301), "Lifetime");
    assert_eq!(sign(|claims| claims.exp = claims.iat), "Lifetime");
    assert_eq!(sign(|claims| (claims.iat, claims.exp) = (i64::MIN, i64::MAX)), "Lifetime");
    assert_eq!(sign(|claims| claims.jti.clear()), r#"MalformedClaim("jti")"#);
    assert_eq!(sign(|claims| claims.sub = "a\nb".into()), r#"MalformedClaim("sub")"#);
    assert_eq!(sign(|claims| claims.extra.scope = "s ".repeat(4_000)), "TooLarge");
}

#[test]
fn the_header_says_what_the_standards_ask_and_no_more() {
    let key = key(1);
    let token = key.sign(
        Kind::Assertion,
        &Claims {
            iss: ISSUER.into(),
            sub: "account-1".into(),
            aud: AUDIENCE.into(),
            iat: NOW_S,
            exp: NOW_S + 60,
            jti: "one".into(),
            extra: Assertion { sid: None, purpose: Purpose::ProviderTest, bind: None, at_ms: None },
        },
    );
    let token = token.expect("a token");
    let part = |n: usize| -> Value {
        use base64::Engine;
        let text = token.split('.').nth(n).expect("a part");
        serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).expect("base64"))
            .expect("JSON")
    };
    assert_eq!(part(0), json!({"alg": "EdDSA", "typ": "beaver-assertion+jwt", "kid": key.kid()}));
    assert_eq!(
        part(1),
        json!({"iss": ISSUER, "sub": "account-1", "aud": AUDIENCE, "iat": NOW_S, "exp": NOW_S + 60, "jti": "one", "purpose": "provider-test"})
    );
}

#[test]
fn an_unverified_issuer_is_read_from_any_token_and_checked_for_form() {
    let key = key(1);
    let read = |payload: Value| token::unverified_issuer(&signed(&key, "{}", &payload.to_string()));
    assert_eq!(read(json!({"iss": "client-1"})).expect("the issuer"), "client-1");
    assert!(matches!(read(json!({})), Err(Error::MissingClaim("iss"))));
    assert!(matches!(read(json!({"iss": ""})), Err(Error::MalformedClaim("iss"))));
    assert!(matches!(read(json!({"iss": "a\0"})), Err(Error::MalformedClaim("iss"))));
    assert!(matches!(read(json!({"iss": 1})), Err(Error::Malformed)));
    assert!(matches!(token::unverified_issuer("a.b"), Err(Error::Malformed)));
}

proptest! {
    /// Whatever is signed is read back the same, and not one character of it may change.
    #[test]
    fn a_token_is_all_or_nothing(sub in "\\PC{1,40}", scope in "\\PC{0,40}", at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let key = key(1);
        let mut claims = claims();
        claims.sub = sub;
        claims.extra.scope = scope;
        let token = key.sign(Kind::AccessToken, &claims).expect("a token");
        let read = |token: &str| verify::<Access>(Kind::AccessToken, token, &EXPECTED, &keys(&key));
        prop_assert_eq!(read(&token).expect("valid"), claims);

        let at = at.index(token.len());
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assert!(changed == token || read(&changed).is_err());
        prop_assert!(read(&token[..at]).is_err());
    }

    /// Whatever is sent, the answer is a refusal and not a panic.
    #[test]
    fn nonsense_is_refused(token in "\\PC{0,200}", header in "\\PC{0,60}", payload in "\\PC{0,60}") {
        let key = key(1);
        for token in [token, signed(&key, &header, &payload)] {
            prop_assert!(verify::<Access>(Kind::AccessToken, &token, &EXPECTED, &keys(&key)).is_err());
            let _ = token::unverified_issuer(&token);
        }
    }
}
