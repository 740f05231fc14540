//! Every way in which a token can be wrong, each beside one that is right.

mod common;

use aws_lc_rs::hmac;
use common::{AUDIENCE, EXPECTED, ISSUER, NOW_S, claims, encode, header, key, keys, payload, signed};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use token::{Access, Assertion, Edge, Error, Expected, KeySet, Kind, MAX_TOKEN_BYTES, NoExtra, Purpose, verify};

fn outcome<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "accepted".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

fn check(token: &str, keys: &KeySet) -> String {
    outcome(verify::<Access>(Kind::AccessToken, token, &EXPECTED, keys))
}

/// Verifies an access token whose header and claims were changed by these.
fn with(change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let key = key(1);
    let (mut header, mut payload) = (header(&key, Kind::AccessToken), payload());
    change(&mut header, &mut payload);
    check(&signed(&key, &header.to_string(), &payload.to_string()), &keys(&key))
}

#[test]
fn claims_that_are_wrong() {
    assert_eq!(with(|_, _| {}), "accepted", "the control");
    for (claim, value, expected) in [
        // Who it is for.
        ("aud", Value::Null, r#"MissingClaim("aud")"#),
        ("aud", json!("https://bob.apps.example.com"), "Audience"),
        ("aud", json!("https://alice.apps.example.com/"), "Audience"),
        ("aud", json!("https://ALICE.apps.example.com"), "Audience"),
        ("aud", json!(""), "Audience"),
        ("aud", json!([AUDIENCE, "https://bob.apps.example.com"]), "Audience"),
        ("aud", json!([AUDIENCE, AUDIENCE]), "Audience"),
        ("aud", json!([]), "Audience"),
        ("aud", json!([AUDIENCE]), "accepted"),
        ("aud", json!({"a": AUDIENCE}), "Malformed"),
        ("aud", json!(1), "Malformed"),
        // Who made it.
        ("iss", Value::Null, r#"MissingClaim("iss")"#),
        ("iss", json!("http://evil.example"), "Issuer"),
        ("iss", json!("http://beaver-authz-service:19090/"), "Issuer"),
        ("iss", json!([ISSUER]), "Malformed"),
        // When it is valid.
        ("exp", Value::Null, r#"MissingClaim("exp")"#),
        ("exp", json!("1767323105"), "Malformed"),
        ("exp", json!(1_767_323_105.5), "Malformed"),
        ("exp", json!(u64::MAX), "Malformed"),
        ("exp", json!(i64::MAX), "Lifetime"),
        ("exp", json!(NOW_S), "Lifetime"),
        ("exp", json!(NOW_S + 300), "accepted"),
        ("exp", json!(NOW_S + 301), "Lifetime"),
        ("exp", json!(NOW_S + 10 * 365 * 86_400), "Lifetime"),
        ("iat", Value::Null, r#"MissingClaim("iat")"#),
        ("iat", json!(NOW_S + 5), "accepted"),
        ("iat", json!(NOW_S + 6), "NotYetValid"),
        ("iat", json!(i64::MIN), "Lifetime"),
        ("nbf", Value::Null, "accepted"),
        ("nbf", json!(NOW_S + 5), "accepted"),
        ("nbf", json!(NOW_S + 6), "NotYetValid"),
        ("nbf", json!(i64::MAX), "NotYetValid"),
        ("nbf", json!("soon"), "Malformed"),
        // What else it must have.
        ("sub", Value::Null, r#"MissingClaim("sub")"#),
        ("sub", json!(""), r#"MalformedClaim("sub")"#),
        ("sub", json!("a\0b"), r#"MalformedClaim("sub")"#),
        ("sub", json!("a\r\nb"), r#"MalformedClaim("sub")"#),
        ("sub", json!("a".repeat(513)), r#"MalformedClaim("sub")"#),
        ("sub", json!("a".repeat(512)), "accepted"),
        ("jti", Value::Null, r#"MissingClaim("jti")"#),
        ("jti", json!(""), r#"MalformedClaim("jti")"#),
        ("jti", json!(7), "Malformed"),
        ("client_id", Value::Null, "Extra"),
        ("scope", json!(["mail:read"]), "Extra"),
        // What nobody asked for.
        ("unheard-of", json!({"x": [1, null]}), "accepted"),
    ] {
        let shown = value.to_string();
        let found = with(|_, payload| match value {
            Value::Null => {
                payload.as_object_mut().expect("an object").remove(claim);
            }
            value => payload[claim] = value,
        });
        assert_eq!(found, expected, "{claim} = {shown}");
    }
}

#[test]
fn it_ends_five_seconds_late_and_no_later() {
    for (late, expected) in [(-60, "accepted"), (0, "accepted"), (5, "accepted"), (6, "Expired"), (60, "Expired")] {
        let found = with(|_, payload| {
            payload["exp"] = json!(NOW_S - late);
            payload["iat"] = json!(NOW_S - late - 60);
        });
        assert_eq!(found, expected, "{late} s late");
    }
}

#[test]
fn headers_that_are_wrong() {
    let public = serde_json::to_value(key(2).public()).expect("JSON");
    for (name, value, expected) in [
        ("alg", json!("EdDSA"), "accepted"),
        ("alg", json!("none"), "Algorithm"),
        ("alg", json!("None"), "Algorithm"),
        ("alg", json!("eddsa"), "Algorithm"),
        ("alg", json!("HS256"), "Algorithm"),
        ("alg", json!("RS256"), "Algorithm"),
        ("alg", json!("ES256"), "Algorithm"),
        ("alg", Value::Null, "Malformed"),
        ("alg", json!(["EdDSA"]), "Malformed"),
        ("typ", Value::Null, "WrongType"),
        ("typ", json!("JWT"), "WrongType"),
        ("typ", json!("beaver-assertion+jwt"), "WrongType"),
        ("typ", json!("client-authentication+jwt"), "WrongType"),
        ("typ", json!("beaver-edge+jwt"), "WrongType"),
        ("typ", json!("at+jwt "), "WrongType"),
        ("typ", json!("text/at+jwt"), "WrongType"),
        ("typ", json!("application/"), "WrongType"),
        ("typ", json!("äpplication/at+jwt"), "WrongType"),
        ("typ", json!("AT+JWT"), "accepted"),
        ("typ", json!("application/at+jwt"), "accepted"),
        ("typ", json!("Application/at+JWT"), "accepted"),
        ("kid", Value::Null, "OddKid"),
        ("kid", json!(""), "OddKid"),
        ("kid", json!("../../keys/other"), "OddKid"),
        ("kid", json!("' OR 1=1 --"), "OddKid"),
        ("kid", json!("a\0"), "OddKid"),
        ("kid", json!("ключ"), "OddKid"),
        ("kid", json!("a".repeat(129)), "OddKid"),
        ("kid", json!("a".repeat(128)), "UnknownKid"),
        ("kid", json!(".."), "UnknownKid"),
        ("kid", json!("another"), "UnknownKid"),
        ("kid", json!(1), "Malformed"),
        ("crit", json!(["exp"]), r#"ForbiddenHeader("crit")"#),
        ("crit", json!([]), r#"ForbiddenHeader("crit")"#),
        ("crit", json!(null), r#"ForbiddenHeader("crit")"#),
        ("jwk", public, r#"ForbiddenHeader("jwk")"#),
        ("jwk", json!(null), r#"ForbiddenHeader("jwk")"#),
        ("jku", json!("https://evil.example/keys"), r#"ForbiddenHeader("jku")"#),
        ("x5u", json!("https://evil.example/cert"), r#"ForbiddenHeader("x5u")"#),
        ("x5c", json!(["MII"]), r#"ForbiddenHeader("x5c")"#),
        ("x5t", json!("a"), r#"ForbiddenHeader("x5t")"#),
        ("x5t#S256", json!("a"), r#"ForbiddenHeader("x5t#S256")"#),
        ("b64", json!(false), r#"ForbiddenHeader("b64")"#),
        ("zip", json!("DEF"), r#"ForbiddenHeader("zip")"#),
        ("enc", json!("A256GCM"), r#"ForbiddenHeader("enc")"#),
        // What is not understood and not critical is passed over (RFC 7515 section 4).
        ("cty", json!("x"), "accepted"),
        ("unheard-of", json!({}), "accepted"),
    ] {
        let shown = value.to_string();
        let found = with(|header, _| match (name, &value) {
            ("alg" | "typ" | "kid", Value::Null) => {
                header.as_object_mut().expect("an object").remove(name);
            }
            _ => header[name] = value,
        });
        assert_eq!(found, expected, "{name} = {shown}");
    }
}

/// The classic: a verifier that takes the algorithm from the token would check this with the public key as the secret.
#[test]
fn the_public_key_is_nobodys_secret() {
    let key = key(1);
    let keys = keys(&key);
    let public = key.public();
    let jwk = serde_json::to_string(&public).expect("JSON");
    let spellings = [public.as_bytes().to_vec(), encode(public.as_bytes()).into_bytes(), jwk.into_bytes()];
    for secret in spellings {
        for alg in ["HS256", "EdDSA"] {
            let header = json!({"alg": alg, "typ": "at+jwt", "kid": key.kid()}).to_string();
            let message = format!("{}.{}", encode(header), encode(payload().to_string()));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
            let found = check(&format!("{message}.{}", encode(tag)), &keys);
            assert_eq!(found, if alg == "EdDSA" { "Signature" } else { "Algorithm" });
        }
    }
    assert_eq!(check(&key.sign(Kind::AccessToken, &claims()).expect("a token"), &keys), "accepted", "the control");
}

#[test]
fn signatures_that_are_wrong() {
    let (right, other) = (key(1), key(2));
    let keys = keys(&right);
    let (header, payload) = (header(&right, Kind::AccessToken).to_string(), payload().to_string());
    let good = signed(&right, &header, &payload);
    assert_eq!(check(&good, &keys), "accepted", "the control");

    let forged = signed(&other, &header, &payload);
    let (message, signature) = good.rsplit_once('.').expect("a token");
    let (first, _) = message.split_once('.').expect("a token");
    let raised = json!({"scope": "admin"}).to_string();
    for (what, token) in [
        ("another key under this kid", forged),
        ("no signature", format!("{message}.")),
        ("half a signature", format!("{message}.{}", &signature[..43])),
        ("a signature of zeros", format!("{message}.{}", encode([0; 64]))),
        ("other claims", format!("{first}.{}.{signature}", encode(raised))),
        ("padding", format!("{good}==")),
        ("not base64url", format!("{message}.{}", signature.replacen(|_: char| true, "+", 1))),
        ("a line break", format!("{good}\n")),
    ] {
        assert_eq!(check(&token, &keys), "Signature", "{what}");
    }
    // Leftover bits would be a second spelling of the same signature.
    let last = signature.chars().last().expect("a character");
    let twin = char::from_u32(u32::from(last) + 1).expect("a character");
    assert_eq!(check(&format!("{message}.{}{twin}", &signature[..85]), &keys), "Signature");
}

#[test]
fn forms_that_are_wrong() {
    let key = key(1);
    let keys = keys(&key);
    let good_header = header(&key, Kind::AccessToken).to_string();
    let good = signed(&key, &good_header, &payload().to_string());
    assert_eq!(check(&good, &keys), "accepted", "the control");

    let repeated_header = good_header.replacen('{', r#"{"alg":"none","#, 1);
    let repeated_claim = payload().to_string().replacen('{', r#"{"aud":"https://bob.apps.example.com","#, 1);
    let repeated_extra = payload().to_string().replacen('{', r#"{"scope":"admin","#, 1);
    for (token, expected) in [
        (String::new(), "Malformed"),
        (".".into(), "Malformed"),
        ("..".into(), "Malformed"),
        ("...".into(), "Malformed"),
        ("a.b".into(), "Malformed"),
        (format!("{good}.{}", encode("x")), "Malformed"),
        (format!(" {good}"), "Malformed"),
        (format!("Bearer {good}"), "Malformed"),
        (signed(&key, "[]", "{}"), "Malformed"),
        (signed(&key, "", "{}"), "Malformed"),
        (signed(&key, &good_header, "[]"), "Malformed"),
        (signed(&key, &good_header, ""), "Malformed"),
        (signed(&key, &good_header, "\u{feff}{}"), "Malformed"),
        (signed(&key, &good_header, &format!("{} x", payload())), "Malformed"),
        (signed(&key, &good_header, &"[".repeat(4_000)), "Malformed"),
        (signed(&key, &repeated_header, &payload().to_string()), "Malformed"),
        (signed(&key, &good_header, &repeated_claim), "Malformed"),
        (signed(&key, &good_header, &repeated_extra), "Extra"),
    ] {
        assert_eq!(check(&token, &keys), expected, "{token:.60}");
    }
}

#[test]
fn nothing_of_a_long_token_is_looked_at() {
    let key = key(1);
    let pad = |bytes: usize| {
        let mut claims = payload();
        claims["pad"] = json!("x".repeat(bytes));
        signed(&key, &header(&key, Kind::AccessToken).to_string(), &claims.to_string())
    };
    let mut fits = pad(5_500);
    for bytes in 5_501.. {
        let next = pad(bytes);
        if next.len() > MAX_TOKEN_BYTES {
            // Right in everything but its length, and refused for that alone.
            assert_eq!(check(&next, &keys(&key)), "TooLarge");
            break;
        }
        fits = next;
    }
    assert_eq!(check(&fits, &keys(&key)), "accepted", "the control, of {} bytes", fits.len());
    // Even what is no token at all: the length comes first.
    assert_eq!(check(&"é".repeat(MAX_TOKEN_BYTES), &keys(&key)), "TooLarge");
    assert_eq!(outcome(token::unverified_issuer(&"x".repeat(MAX_TOKEN_BYTES + 1))), "TooLarge");
}

/// One kind's token is no other kind's, though all else about it would do.
#[test]
fn no_kind_passes_for_another() {
    let key = key(1);
    let keys = keys(&key);
    let kinds = [Kind::AccessToken, Kind::Assertion, Kind::ClientAssertion, Kind::Edge];
    for made in kinds {
        let token = signed(&key, &header(&key, made).to_string(), &payload().to_string());
        for read in kinds {
            let found = match read {
                Kind::AccessToken => outcome(verify::<Access>(read, &token, &EXPECTED, &keys)),
                Kind::Assertion => outcome(verify::<Assertion>(read, &token, &EXPECTED, &keys)),
                Kind::ClientAssertion => outcome(verify::<NoExtra>(read, &token, &EXPECTED, &keys)),
                Kind::Edge => outcome(verify::<Edge>(read, &token, &EXPECTED, &keys)),
            };
            assert_eq!(found, if made == read { "accepted" } else { "WrongType" }, "{made:?} read as {read:?}");
        }
    }
}

#[test]
fn each_kind_has_its_longest_life() {
    let key = key(1);
    for (kind, longest) in
        [(Kind::AccessToken, 300), (Kind::Assertion, 60), (Kind::ClientAssertion, 60), (Kind::Edge, 604_800)]
    {
        assert_eq!(kind.max_lifetime_s(), longest);
        for (lifetime, expected) in
            [(longest, "accepted"), (longest + 1, "Lifetime"), (0, "Lifetime"), (-1, "Lifetime")]
        {
            let mut claims = payload();
            claims["exp"] = json!(NOW_S + lifetime);
            let token = signed(&key, &header(&key, kind).to_string(), &claims.to_string());
            let found = outcome(verify::<NoExtra>(kind, &token, &EXPECTED, &keys(&key)));
            assert_eq!(found, expected, "{kind:?} of {lifetime} s");
        }
    }
}

#[test]
fn a_client_may_write_plain_jwt_and_nobody_else() {
    let key = key(1);
    for (typ, expected) in
        [("JWT", "accepted"), ("jwt", "accepted"), ("client-authentication+jwt", "accepted"), ("JWS", "WrongType")]
    {
        let header = json!({"alg": "EdDSA", "typ": typ, "kid": key.kid()}).to_string();
        let token = signed(&key, &header, &payload().to_string());
        assert_eq!(
            outcome(verify::<NoExtra>(Kind::ClientAssertion, &token, &EXPECTED, &keys(&key))),
            expected,
            "{typ}"
        );
    }
}

#[test]
fn purposes_are_told_apart_and_unknown_ones_refused() {
    let key = key(1);
    for (written, expected) in [
        ("register", Some(Purpose::Register)),
        ("login", Some(Purpose::Login)),
        ("logout", Some(Purpose::Logout)),
        ("provider-test", Some(Purpose::ProviderTest)),
        ("Login", None),
        ("admin", None),
        ("", None),
    ] {
        let mut claims = payload();
        claims["purpose"] = json!(written);
        let token = signed(&key, &header(&key, Kind::Assertion).to_string(), &claims.to_string());
        let found = verify::<Assertion>(Kind::Assertion, &token, &EXPECTED, &keys(&key));
        assert_eq!(found.ok().map(|claims| claims.extra.purpose), expected, "{written:?}");
    }
}

#[test]
fn one_tenants_token_is_nothing_at_another() {
    let key = key(1);
    let token = key.sign(Kind::AccessToken, &claims()).expect("a token");
    let at = |audience, issuer| {
        outcome(verify::<Access>(Kind::AccessToken, &token, &Expected { audience, issuer, now_s: NOW_S }, &keys(&key)))
    };
    assert_eq!(at(AUDIENCE, ISSUER), "accepted", "the control");
    assert_eq!(at("https://bob.apps.example.com", ISSUER), "Audience");
    assert_eq!(at(AUDIENCE, "https://portal.example.com"), "Issuer");
    // A verifier that was not told what to expect expects nothing.
    assert_eq!(at("", ISSUER), "Audience");
    assert_eq!(at(AUDIENCE, ""), "Issuer");
}

#[test]
fn a_missing_scope_is_the_callers_403() {
    let access = |scope: &str| Access { client_id: "c".into(), scope: scope.into() };
    assert!(access("mail:read mail:send").has_scope("mail:send"));
    for (held, asked) in
        [("mail:read", "mail:send"), ("mail:reader", "mail:read"), ("", "mail:read"), ("a  b", ""), ("A", "a")]
    {
        assert!(!access(held).has_scope(asked), "{held:?} has no {asked:?}");
    }
}

/// What is logged of a refusal has nothing of the token in it, down to the last cause.
#[test]
fn no_refusal_quotes_the_token() {
    let key = key(1);
    let canary = "canary-7f3a";
    let mut tokens = Vec::new();
    for claim in ["iss", "aud", "sub", "jti", "exp", "iat", "nbf", "client_id", "scope"] {
        for value in [json!(canary), json!([canary]), json!({canary: canary}), json!(format!("{canary}\n"))] {
            let mut claims = payload();
            claims[claim] = value;
            tokens.push(signed(&key, &header(&key, Kind::AccessToken).to_string(), &claims.to_string()));
        }
    }
    for name in ["alg", "typ", "kid"] {
        for value in [json!(canary), json!([canary])] {
            let mut header = header(&key, Kind::AccessToken);
            header[name] = value;
            tokens.push(signed(&key, &header.to_string(), &payload().to_string()));
        }
    }
    tokens.push(canary.to_owned());
    let mut refused = 0;
    for token in tokens {
        let Err(error) = verify::<Access>(Kind::AccessToken, &token, &EXPECTED, &keys(&key)) else { continue };
        refused += 1;
        let mut shown = format!("{error} {error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            shown.push_str(&format!(" {error} {error:?}"));
            cause = error.source();
        }
        assert!(!shown.contains("canary"), "{shown}");
    }
    assert!(refused > 30, "{refused}");
}

/// Why there is this crate: what the library under it takes when it is only told the audience and the issuer.
#[test]
fn the_library_alone_would_take_them() {
    /// Changes header and claims, given the time.
    type Trap = fn(&mut Value, &mut Value, i64);
    let key = key(1);
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).expect("a time");
    let bare = |change: Trap| {
        let (mut header, mut payload) = (header(&key, Kind::AccessToken), payload());
        (payload["iat"], payload["exp"]) = (json!(now), json!(now + 60));
        change(&mut header, &mut payload, now);
        let token = signed(&key, &header.to_string(), &payload.to_string());
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        let public = DecodingKey::from_ed_der(key.public().as_bytes());
        let library = jsonwebtoken::decode::<Value>(&token, &public, &validation).is_ok();
        let expected = Expected { issuer: ISSUER, audience: AUDIENCE, now_s: now };
        (library, verify::<Access>(Kind::AccessToken, &token, &expected, &keys(&key)).is_ok())
    };
    assert_eq!(bare(|_, _, _| {}), (true, true), "the control");
    let traps: [(&str, Trap); 9] = [
        ("no aud", |_, payload, _| payload["aud"] = Value::Null),
        ("no iss", |_, payload, _| payload["iss"] = Value::Null),
        ("another aud beside", |_, payload, _| payload["aud"] = json!([AUDIENCE, "https://bob.example"])),
        ("late", |_, payload, now| (payload["iat"], payload["exp"]) = (json!(now - 90), json!(now - 30))),
        ("iat to come", |_, payload, now| (payload["iat"], payload["exp"]) = (json!(now + 900), json!(now + 960))),
        ("nbf to come", |_, payload, now| payload["nbf"] = json!(now + 900)),
        ("wrong typ", |header, _, _| header["typ"] = json!("JWT")),
        ("unknown crit", |header, _, _| header["crit"] = json!(["unheard-of"])),
        ("ten years", |_, payload, now| payload["exp"] = json!(now + 315_360_000)),
    ];
    for (what, trap) in traps {
        assert_eq!(bare(trap), (true, false), "{what}");
    }
}
