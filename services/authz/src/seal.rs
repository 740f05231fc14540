//! Keys derived from `BEAVER_SEAL_KEY`, one for each use (HKDF, RFC 5869).

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    hkdf, hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clock::Entropy;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// What was kept cannot be opened: the key is another one, or it was changed.
#[derive(Debug, thiserror::Error)]
#[error("it was sealed with another key, or has been changed")]
pub(crate) struct SealBroken;

/// Seals and opens what is kept in the database, and makes keyed hashes.
pub(crate) struct Seal {
    sealing: LessSafeKey,
    naming: hmac::Key,
}

impl Seal {
    /// The keys that `secret` stands for.
    pub fn new(secret: &SecretString) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"beaver authz").extract(secret.expose_secret().as_bytes());
        let sealing: UnboundKey = root
            .expand(&[b"signing keys, AES-256-GCM, 1"], &AES_256_GCM)
            .expect("32 bytes are within HKDF's limit")
            .into();
        let naming: hmac::Key = root
            .expand(&[b"names, HMAC-SHA-256, 1"], hkdf::HKDF_SHA256.hmac_algorithm())
            .expect("32 bytes are within HKDF's limit")
            .into();
        Self { sealing: LessSafeKey::new(sealing), naming }
    }

    /// Encrypts `plain` so that it opens only under the same `context`. base64url.
    pub fn seal(&self, entropy: &Entropy, context: &str, plain: &SecretSlice<u8>) -> Result<String, Unspecified> {
        // Random nonces of 96 bits are safe for 2^32 messages; there is one a month.
        let nonce: [u8; NONCE_LEN] = entropy.bytes();
        let mut buffer = plain.expose_secret().to_vec();
        let nonce_for_key = Nonce::assume_unique_for_key(nonce);
        self.sealing.seal_in_place_append_tag(nonce_for_key, Aad::from(context.as_bytes()), &mut buffer)?;
        Ok(URL_SAFE_NO_PAD.encode([nonce.as_slice(), &buffer].concat()))
    }

    /// Opens what [`Seal::seal`] gave for the same `context`.
    ///
    /// # Errors
    /// [`SealBroken`] for everything else.
    pub fn open(&self, context: &str, sealed: &str) -> Result<SecretSlice<u8>, SealBroken> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| SealBroken)?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN).ok_or(SealBroken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealBroken)?;
        let mut buffer = sealed.to_vec();
        let plain = self
            .sealing
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut buffer)
            .map_err(|_| SealBroken)?
            .to_vec();
        Ok(plain.into())
    }

    /// A name for something that must not be readable in the database, nor be found by trying candidates.
    pub fn name(&self, parts: &[&str]) -> String {
        let mut context = hmac::Context::with_key(&self.naming);
        for part in parts {
            // The length first, so that no two lists of parts are the same bytes.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        hex::encode(context.sign())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(secret: &str) -> Seal {
        Seal::new(&SecretString::from(secret))
    }

    #[test]
    fn opens_with_the_same_key_and_context_only() {
        let (one, entropy) = (seal("one"), Entropy::system());
        let sealed = one.seal(&entropy, "kid", &SecretSlice::from(b"canary".to_vec())).unwrap();
        assert_eq!(one.open("kid", &sealed).unwrap().expose_secret(), b"canary");
        assert!(one.open("other", &sealed).is_err());
        assert!(seal("two").open("kid", &sealed).is_err());
        assert!(one.open("kid", &sealed[..sealed.len() - 4]).is_err());
        assert!(one.open("kid", "").is_err() && one.open("kid", "!").is_err());
        let other = one.seal(&entropy, "kid", &SecretSlice::from(b"canary".to_vec())).unwrap();
        assert_ne!(sealed, other, "a nonce is used once");
    }

    #[test]
    fn names_depend_on_the_key_and_on_where_parts_end() {
        assert_eq!(seal("one").name(&["a", "bc"]), seal("one").name(&["a", "bc"]));
        assert_ne!(seal("one").name(&["a", "bc"]), seal("one").name(&["ab", "c"]));
        assert_ne!(seal("one").name(&["a"]), seal("two").name(&["a"]));
    }
}
