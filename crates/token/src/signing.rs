//! The private half: making keys and signing with them.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use clock::Entropy;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretSlice};
use serde::Serialize;

use crate::verify::check_lifetime;
use crate::{Claims, Error, Jwk, Kind, MAX_TOKEN_BYTES};

/// An Ed25519 private key. Its `Debug` shows the `kid` alone.
#[derive(Clone)]
pub struct SigningKey {
    key: EncodingKey,
    pkcs8: SecretSlice<u8>,
    public: Jwk,
}

impl SigningKey {
    /// A new key from 32 random bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Signing`] when the cryptographic library fails.
    pub fn generate(entropy: &Entropy) -> Result<Self, Error> {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&entropy.bytes::<32>()).map_err(|e| Error::Signing(Box::new(e)))?;
        let pkcs8 = pair.to_pkcs8().map_err(|e| Error::Signing(Box::new(e)))?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// The key in these bytes: PKCS #8 (RFC 5958, DER), as [`to_pkcs8`](Self::to_pkcs8) gives it.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] when they are not an Ed25519 key, or its public half does not belong to it.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, Error> {
        // The library's own error says no more than "rejected", and would name what is wrong with a secret.
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| Error::Key("it is not an Ed25519 key in PKCS #8"))?;
        let x = <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| Error::Key("its length is wrong"))?;
        Ok(Self {
            key: EncodingKey::from_ed_der(pkcs8),
            pkcs8: SecretSlice::from(pkcs8.to_vec()),
            public: Jwk::from_bytes(x),
        })
    }

    /// The private key as PKCS #8 DER, to be kept in a file of mode 0600 or encrypted.
    pub fn to_pkcs8(&self) -> SecretSlice<u8> {
        self.pkcs8.expose_secret().to_vec().into()
    }

    /// The public half.
    pub fn public(&self) -> Jwk {
        self.public.clone()
    }

    /// The key's name: its thumbprint (RFC 7638).
    pub fn kid(&self) -> &str {
        self.public.kid()
    }

    /// Makes a token of this kind: a compact JWS with `alg` EdDSA, the kind's `typ` and this key's `kid`.
    ///
    /// # Errors
    ///
    /// What [`verify`](crate::verify) would refuse is not signed: [`Error::Lifetime`], [`Error::MalformedClaim`],
    /// [`Error::TooLarge`]. [`Error::Signing`] when the claims are not JSON or the cryptographic library fails.
    pub fn sign<T: Serialize>(&self, kind: Kind, claims: &Claims<T>) -> Result<String, Error> {
        check_lifetime(kind, claims.iat, claims.exp)?;
        claims.check_text()?;
        let header = Header {
            typ: Some(kind.typ().to_owned()),
            kid: Some(self.kid().to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        let token = jsonwebtoken::encode(&header, claims, &self.key).map_err(|e| Error::Signing(Box::new(e)))?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Error::TooLarge);
        }
        Ok(token)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid()).finish_non_exhaustive()
    }
}
