//! The kinds of token there are.

/// What a token is for. Its `typ` header says so (RFC 8725 section 3.11), and a token is verified as exactly one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An OAuth 2 access token (RFC 9068) for one audience; extra claims [`Access`](crate::Access).
    AccessToken,
    /// authz says to an instance who somebody is; extra claims [`Assertion`](crate::Assertion).
    Assertion,
    /// A client proves itself to the token endpoint (RFC 7523 section 3, `private_key_jwt`); no extra claims.
    ClientAssertion,
    /// The router's proof that somebody may pass its public edge; extra claims [`Edge`](crate::Edge).
    Edge,
}

impl Kind {
    /// The `typ` header that is written. Read are also its forms with `application/` in front and in other case (RFC 7515
    /// section 4.1.9), and for a client assertion plain `JWT`, which RFC 7523 clients have always written.
    pub fn typ(self) -> &'static str {
        match self {
            Self::AccessToken => "at+jwt",
            Self::Assertion => "beaver-assertion+jwt",
            Self::ClientAssertion => "client-authentication+jwt",
            Self::Edge => "beaver-edge+jwt",
        }
    }

    /// The longest that `exp` may be after `iat`, in seconds.
    pub fn max_lifetime_s(self) -> i64 {
        match self {
            Self::AccessToken => 300,
            Self::Assertion | Self::ClientAssertion => 60,
            Self::Edge => 7 * 24 * 60 * 60,
        }
    }

    /// Whether a token with this `typ` header is of this kind.
    pub(crate) fn accepts(self, typ: &str) -> bool {
        let typ = match typ.get(..12) {
            Some(prefix) if prefix.eq_ignore_ascii_case("application/") => &typ[12..],
            _ => typ,
        };
        typ.eq_ignore_ascii_case(self.typ()) || (self == Self::ClientAssertion && typ.eq_ignore_ascii_case("JWT"))
    }
}
