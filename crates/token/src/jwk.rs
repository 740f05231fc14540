//! Public keys: RFC 7517 as RFC 8037 fills it in for Ed25519.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::header::is_kid;

/// The most keys that are taken from one set; an issuer that rotates has two or three.
const MAX_KEYS: usize = 32;

/// An Ed25519 public key as a JSON Web Key (RFC 8037 section 2): written with `kty`, `crv`, `x`, `kid`, `use` and `alg`.
///
/// Reading refuses another type of key, another use, and above all a private key. A key without `kid` gets its thumbprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    kid: String,
    x: [u8; 32],
}

impl Jwk {
    /// The key of these 32 bytes (RFC 8032 section 5.1.5), named by its thumbprint.
    pub fn from_bytes(x: [u8; 32]) -> Self {
        Self { kid: thumbprint(&x), x }
    }

    /// The name it is looked up by.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public key, 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.x
    }

    /// The thumbprint (RFC 7638, SHA-256, base64url): the same key always has the same one, whatever its `kid` says.
    pub fn thumbprint(&self) -> String {
        thumbprint(&self.x)
    }
}

/// The members of RFC 8037 section 2 that a thumbprint covers, in RFC 7638's order and form.
fn thumbprint(x: &[u8; 32]) -> String {
    let x = URL_SAFE_NO_PAD.encode(x);
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)))
}

/// The key as JSON has it.
#[derive(Serialize, Deserialize)]
struct Wire {
    kty: String,
    crv: String,
    x: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    /// The private half. Its presence alone is refused, so its content is never kept.
    #[serde(default, skip_serializing)]
    d: Option<serde::de::IgnoredAny>,
}

impl TryFrom<Wire> for Jwk {
    type Error = Error;

    fn try_from(wire: Wire) -> Result<Self, Error> {
        if wire.d.is_some() {
            return Err(Error::Key("it is a private key"));
        }
        if wire.kty != "OKP" || wire.crv != "Ed25519" {
            return Err(Error::Key("it is not an Ed25519 key"));
        }
        if wire.usage.is_some_and(|usage| usage != "sig") {
            return Err(Error::Key("its use is not sig"));
        }
        // RFC 9864 gave EdDSA with Ed25519 a name of its own; as a property of a key both say the same.
        if wire.alg.is_some_and(|alg| alg != "EdDSA" && alg != "Ed25519") {
            return Err(Error::Key("its alg is not EdDSA"));
        }
        let x = URL_SAFE_NO_PAD
            .decode(&wire.x)
            .ok()
            .and_then(|x| <[u8; 32]>::try_from(x).ok())
            .ok_or(Error::Key("its x is not 32 bytes in base64url"))?;
        let mut key = Self::from_bytes(x);
        if let Some(kid) = wire.kid {
            if !is_kid(&kid) {
                return Err(Error::Key("its kid is malformed"));
            }
            key.kid = kid;
        }
        Ok(key)
    }
}

impl<'de> Deserialize<'de> for Jwk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(Wire::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Jwk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            x: URL_SAFE_NO_PAD.encode(self.x),
            kid: Some(self.kid.clone()),
            usage: Some("sig".into()),
            alg: Some("EdDSA".into()),
            d: None,
        }
        .serialize(serializer)
    }
}

/// A set of public keys (RFC 7517 section 5), as an issuer publishes it at its `jwks_uri`.
///
/// Reading passes over keys that are not ours to use, as RFC 7517 asks, and takes the first 32 of the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeySet {
    keys: Vec<Jwk>,
}

impl KeySet {
    /// A set of these keys.
    pub fn new(keys: impl IntoIterator<Item = Jwk>) -> Self {
        Self { keys: keys.into_iter().collect() }
    }

    /// The key of this name.
    pub fn get(&self, kid: &str) -> Option<&Jwk> {
        self.keys.iter().find(|key| key.kid == kid)
    }

    /// Every key in it.
    pub fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    /// Whether there is no key in it.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<'de> Deserialize<'de> for KeySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let keys = Set::deserialize(deserializer)?.keys;
        Ok(Self::new(keys.into_iter().filter_map(|key| Jwk::deserialize(key).ok()).take(MAX_KEYS)))
    }
}
