//! Where browsers find the portal and the workspaces.

use url::Url;

use crate::{Env, Error, invalid};

/// The portal's origin and the pattern of workspace origins, as browsers see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicAddress {
    scheme: String,
    base_domain: String,
    port: u16,
    portal: Url,
}

impl PublicAddress {
    pub(crate) fn from_env(env: &Env) -> Result<Self, Error> {
        let scheme = env.string("DEPLOY_PUBLIC_SCHEME")?;
        if scheme != "http" && scheme != "https" {
            return Err(invalid("DEPLOY_PUBLIC_SCHEME", format!("{scheme} is neither http nor https")));
        }
        let key = if env.optional("DEPLOY_PUBLIC_BASE_DOMAIN").is_some() {
            "DEPLOY_PUBLIC_BASE_DOMAIN"
        } else {
            "BEAVER_BASE_DOMAIN"
        };
        let base_domain = env.string(key)?.trim_end_matches('.').to_ascii_lowercase();
        let label =
            |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !base_domain.split('.').all(label) {
            return Err(invalid(key, format!("{base_domain} is not a domain name")));
        }
        let portal = env.url("BEAVER_PORTAL_URL")?;
        if portal.path() != "/" {
            return Err(invalid("BEAVER_PORTAL_URL", "it must have no path".into()));
        }
        // Whoever listens on the way would have the session on the portal that opens every workspace.
        if scheme == "https" && portal.scheme() != "https" {
            return Err(Error::Invalid {
                key: "BEAVER_PORTAL_URL".into(),
                why: format!("it is {} while DEPLOY_PUBLIC_SCHEME is https", portal.scheme()),
                cure: "give the portal https as well, or set DEPLOY_PUBLIC_SCHEME=http".into(),
            });
        }
        Ok(Self { scheme, base_domain, port: env.parse("DEPLOY_PUBLIC_PORT")?, portal })
    }

    /// The domain that slugs are put before, lower case, without a trailing dot.
    pub fn base_domain(&self) -> &str {
        &self.base_domain
    }

    /// The origin of a workspace (RFC 6454: scheme, host, port unless it is the scheme's own), without a trailing slash.
    pub fn workspace_origin(&self, slug: &str) -> String {
        let default = if self.scheme == "https" { 443 } else { 80 };
        let port = if self.port == default { String::new() } else { format!(":{}", self.port) };
        format!("{}://{slug}.{}{port}", self.scheme, self.base_domain)
    }

    /// The portal's origin, without a trailing slash.
    pub fn portal_origin(&self) -> String {
        self.portal.origin().ascii_serialization()
    }

    /// Whether workspaces are served over https: then their cookies are `Secure` and `__Host-`.
    pub fn workspaces_secure(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether the portal is served over https: then its cookies are `Secure` and `__Host-`.
    pub fn portal_secure(&self) -> bool {
        self.portal.scheme() == "https"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_a_browser_shows() {
        let local = Env::default().public_address().unwrap();
        assert_eq!(local.workspace_origin("alice"), "http://alice.localhost:8088");
        assert_eq!(local.portal_origin(), "http://localhost:3081");
        let server = Env::from_pairs([
            ("BEAVER_BASE_DOMAIN", "Apps.Example.com."),
            ("DEPLOY_PUBLIC_SCHEME", "https"),
            ("DEPLOY_PUBLIC_PORT", "443"),
            ("BEAVER_PORTAL_URL", "https://portal.example.com/"),
        ]);
        let server = server.public_address().unwrap();
        assert_eq!(server.workspace_origin("alice"), "https://alice.apps.example.com");
        assert_eq!(server.portal_origin(), "https://portal.example.com");
        assert!(server.workspaces_secure() && server.portal_secure());
    }

    #[test]
    fn https_workspaces_need_an_https_portal() {
        let with = |portal: &str| {
            Env::from_pairs([("DEPLOY_PUBLIC_SCHEME", "https"), ("BEAVER_PORTAL_URL", portal)]).public_address()
        };
        let error = with("http://portal.example.com").unwrap_err().to_string();
        assert!(error.starts_with("BEAVER_PORTAL_URL") && error.contains("DEPLOY_PUBLIC_SCHEME"), "{error}");
        assert!(with("https://portal.example.com").unwrap().portal_secure());
        // The other way round is somebody's choice: workspaces behind a proxy of their own.
        assert!(Env::from_pairs([("BEAVER_PORTAL_URL", "https://portal.example.com")]).public_address().is_ok());
    }

    #[test]
    fn unusable_addresses_name_their_setting() {
        for (key, value) in [
            ("DEPLOY_PUBLIC_SCHEME", "ftp"),
            ("DEPLOY_PUBLIC_BASE_DOMAIN", "a b"),
            ("DEPLOY_PUBLIC_PORT", "0x50"),
            ("BEAVER_PORTAL_URL", "portal"),
            ("BEAVER_PORTAL_URL", "http://portal/x"),
        ] {
            let error = Env::from_pairs([(key, value)]).public_address().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
