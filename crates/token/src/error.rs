//! Why a token, a key or a key set was refused.

/// The error of a key set's fetch, whatever it was.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a token, a key or a key set was refused. What it shows is safe to log: nothing of a token is in it, which is also why
/// the JSON parser's error, which quotes what it reads, is not kept as a source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token is longer than [`MAX_TOKEN_BYTES`](crate::MAX_TOKEN_BYTES); the answer is 400, for every other refusal 401.
    #[error("the token is longer than 8 KB")]
    TooLarge,
    /// Not a compact JWS (RFC 7515 section 7.1) with JSON objects in it.
    #[error("the token is malformed")]
    Malformed,
    /// The header asks for another algorithm than EdDSA.
    #[error("the token's algorithm is not EdDSA")]
    Algorithm,
    /// The header has this parameter: it carries or points to a key, or changes how the token is to be read.
    #[error("the token's header has the parameter {0}")]
    ForbiddenHeader(&'static str),
    /// The token is of another kind.
    #[error("the token is of another type")]
    WrongType,
    /// The header's `kid` is missing or none that we would ever make; no reason to fetch anything.
    #[error("the token's kid is missing or malformed")]
    OddKid,
    /// No key of that `kid` is in the set. It may be newer than the set.
    #[error("the token's kid is unknown")]
    UnknownKid,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Signature,
    /// This claim is missing.
    #[error("the token lacks the claim {0}")]
    MissingClaim(&'static str),
    /// This claim is empty, too long or has characters it must not have.
    #[error("the token's claim {0} is malformed")]
    MalformedClaim(&'static str),
    /// The claims of this kind of token are missing or malformed.
    #[error("the token's own claims are missing or malformed")]
    Extra,
    /// Another issuer's token.
    #[error("the token has another issuer")]
    Issuer,
    /// Another audience's token, or one for several.
    #[error("the token is for another audience")]
    Audience,
    /// The token is over.
    #[error("the token has expired")]
    Expired,
    /// `iat` or `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp` is not after `iat`, or is later than the kind allows.
    #[error("the token's lifetime is not allowed")]
    Lifetime,
    /// Not an Ed25519 key that we take: the text says what about it.
    #[error("the key is not acceptable: {0}")]
    Key(&'static str),
    /// The cryptographic library failed to make a key or a signature.
    #[error("signing failed")]
    Signing(#[source] BoxError),
    /// The issuer's keys cannot be had, and none are kept that are young enough.
    #[error("the issuer's keys are not available")]
    KeysUnavailable(#[source] BoxError),
}
