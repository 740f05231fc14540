//! The languages Beaver speaks, and which of them a request wants.
//!
//! The choice somebody made (the cookie [`COOKIE`]) goes before what their browser asks for (`Accept-Language`, RFC 9110
//! section 12.5.4), and English is what is left.

use std::convert::Infallible;
use std::fmt;

use axum::extract::FromRequestParts;
use http::header::{ACCEPT_LANGUAGE, COOKIE as COOKIE_HEADER};
use http::request::Parts;
use serde::{Deserialize, Serialize};

/// The name of the cookie that keeps the language somebody chose; its value is a [`Locale::code`].
pub const COOKIE: &str = "beaver_lang";

/// How long the choice is kept: a year, in seconds.
const COOKIE_MAX_AGE_S: u32 = 365 * 24 * 60 * 60;

/// A language that every page and message exists in. Serialised as its [`code`](Locale::code).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Locale {
    /// English.
    #[default]
    #[serde(rename = "en")]
    En,
    /// Chinese in simplified characters; the nearest we have for every kind of Chinese.
    #[serde(rename = "zh-CN")]
    ZhCn,
}

impl Locale {
    /// Every language, in the order in which a choice of them is shown.
    pub const ALL: [Self; 2] = [Self::En, Self::ZhCn];

    /// The code it is stored and translated under: `en` or `zh-CN`.
    pub fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::ZhCn => "zh-CN",
        }
    }

    /// The language of exactly this [`code`](Locale::code), as a cookie or a form field brings it.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|locale| locale.code() == code)
    }

    /// The value of HTML's `lang` attribute (BCP 47), which also picks the right glyphs.
    pub fn html_lang(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::ZhCn => "zh-Hans",
        }
    }

    /// What the language calls itself, for the switch between them.
    pub fn name(self) -> &'static str {
        match self {
            Self::En => "English",
            Self::ZhCn => "简体中文",
        }
    }

    /// Picks the language from the value of the cookie [`COOKIE`] and of the header `Accept-Language`.
    ///
    /// A cookie that names no language of ours counts as none. In the header the highest weight wins, the first of equals;
    /// every `zh` is [`Locale::ZhCn`], every `en` and `*` is [`Locale::En`], weight 0 means "not this one". Nothing known
    /// gives English. It never fails: a malformed entry is passed over.
    pub fn negotiate(cookie: Option<&str>, accept_language: Option<&str>) -> Self {
        cookie.and_then(Self::from_code).or_else(|| accept_language.and_then(Self::accepted)).unwrap_or_default()
    }

    /// The value of a `Set-Cookie` header (RFC 6265) that keeps this choice for a year on the whole site. `secure` says whether
    /// the site is on https; a browser drops a `Secure` cookie that came over plain http.
    pub fn set_cookie(self, secure: bool) -> String {
        let secure = if secure { "; Secure" } else { "" };
        format!("{COOKIE}={}; Path=/; Max-Age={COOKIE_MAX_AGE_S}; SameSite=Lax; HttpOnly{secure}", self.code())
    }

    fn accepted(header: &str) -> Option<Self> {
        let mut best: Option<(u16, Self)> = None;
        for entry in header.split(',') {
            let mut parts = entry.split(';');
            let Some(locale) = parts.next().and_then(Self::of_range) else { continue };
            let Some(weight) = weight(parts) else { continue };
            if weight > best.map_or(0, |(weight, _)| weight) {
                best = Some((weight, locale));
            }
        }
        best.map(|(_, locale)| locale)
    }

    /// The language a range such as `zh-Hant-TW` asks for (RFC 4647: the first subtag decides, in any case).
    fn of_range(range: &str) -> Option<Self> {
        let primary = range.trim().split('-').next()?;
        if primary.eq_ignore_ascii_case("zh") {
            Some(Self::ZhCn)
        } else if primary.eq_ignore_ascii_case("en") || primary == "*" {
            Some(Self::En)
        } else {
            None
        }
    }
}

/// The weight of an entry in thousandths: 1000 when it has none, nothing when it is not a number from 0 to 1.
fn weight<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    for parameter in parameters {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("q") {
            let value: f32 = value.trim().parse().ok()?;
            if !(0.0..=1.0).contains(&value) {
                return None;
            }
            // In range as just checked, so the cast loses nothing but the digits beyond three.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            return Some((value * 1000.0).round() as u16);
        }
    }
    Some(1000)
}

impl fmt::Display for Locale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Takes the language from the request's cookie and `Accept-Language`; it cannot fail.
impl<S: Send + Sync> FromRequestParts<S> for Locale {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let cookie = parts
            .headers
            .get_all(COOKIE_HEADER)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            // The name may be there twice, from us and from a sibling site: the first that makes sense will do.
            .find(|(name, value)| *name == COOKIE && Self::from_code(value).is_some())
            .map(|(_, value)| value);
        // Several header lines are one list (RFC 9110 section 5.2).
        let accepted: Vec<&str> =
            parts.headers.get_all(ACCEPT_LANGUAGE).iter().filter_map(|line| line.to_str().ok()).collect();
        Ok(Self::negotiate(cookie, Some(&accepted.join(","))))
    }
}

#[cfg(test)]
mod tests;
