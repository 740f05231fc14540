//! What authz is told by its environment.

use std::{net::SocketAddr, path::PathBuf};

use secrecy::SecretString;
use settings::{Env, Error, PublicAddress};
use store::Database;
use url::Url;

/// Everything authz takes from its environment.
#[derive(Clone)]
pub(crate) struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its tables are.
    pub database: Database,
    /// The issuer's name, byte by byte as it stands in tokens.
    pub issuer: String,
    /// Its name for programs outside: an origin that leads to the portal.
    pub public_issuer: String,
    /// The origins of workspaces.
    pub address: PublicAddress,
    /// What callers of the internal API may show.
    pub internal_tokens: Vec<SecretString>,
    /// How many accounts one address may make in an hour; `None`: any number.
    pub sign_ups_per_hour: Option<i64>,
    /// What opens the first operator's page.
    pub operator_token: SecretString,
    /// What the signing keys are sealed with.
    pub seal_key: SecretString,
    /// Where deploy-control is.
    pub deploy_url: Url,
    /// What deploy-control is shown.
    pub deploy_token: SecretString,
    /// Whether deploy-control makes workspaces ahead.
    pub has_pool: bool,
    /// Where the router's internal listener is.
    pub router_url: Url,
    /// What the router is shown.
    pub router_token: SecretString,
}

impl Config {
    /// Reads and checks every setting.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn from_env(env: &Env) -> Result<Self, Error> {
        let data_dir = PathBuf::from(env.string("BEAVER_DATA_DIR")?);
        let database = Database::from_env(env, "authz", &data_dir, "authz/authz.db")?;
        let address = env.public_address()?;
        Ok(Self {
            listen: env.parse("AUTHZ_LISTEN")?,
            database,
            issuer: issuer(env, "AUTHZ_ISSUER")?,
            public_issuer: public_issuer(env, &address)?,
            address,
            internal_tokens: env.live_secrets("BEAVER_AUTHZ_INTERNAL_TOKEN", &[])?,
            sign_ups_per_hour: Some(env.parse::<u32>("BEAVER_SIGN_UPS_PER_HOUR")?.into()).filter(|limit| *limit > 0),
            operator_token: env.secret("BEAVER_OPERATOR_TOKEN")?,
            seal_key: env.secret("BEAVER_SEAL_KEY")?,
            deploy_url: env.url("BEAVER_DEPLOY_URL")?,
            deploy_token: env.secret_or("DEPLOY_API_TOKEN", &["BEAVER_DEPLOY_TOKEN"])?,
            has_pool: env.parse::<u16>("BEAVER_POOL_SIZE")? > 0,
            router_url: env.url("BEAVER_ROUTER_INTERNAL_URL")?,
            router_token: env.secret("BEAVER_ROUTER_INTERNAL_TOKEN")?,
        })
    }
}

/// The issuer's name is compared byte by byte by everybody who verifies a token, so only one way of writing it is taken.
fn issuer(env: &Env, key: &str) -> Result<String, Error> {
    let given = env.string(key)?;
    let normal = env.url(key)?.to_string();
    let normal = normal.trim_end_matches('/');
    if given == normal {
        return Ok(given);
    }
    Err(Error::Invalid {
        key: key.into(),
        why: "a name that is compared byte by byte must be in its normal form".into(),
        cure: format!("write it as {normal}"),
    })
}

/// The name that leads to the portal, which serves `/.well-known` at its root: so it has no path (RFC 8414, section 3).
fn public_issuer(env: &Env, address: &PublicAddress) -> Result<String, Error> {
    const KEY: &str = "AUTHZ_PUBLIC_ISSUER";
    if env.optional(KEY).is_none() {
        return Ok(address.portal_origin());
    }
    let name = issuer(env, KEY)?;
    if env.url(KEY)?.path() == "/" {
        return Ok(name);
    }
    Err(Error::Invalid {
        key: KEY.into(),
        why: "it has a path".into(),
        cure: "write scheme, host and port alone, as browsers reach the portal".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::from_pairs([
            ("BEAVER_AUTHZ_INTERNAL_TOKEN", "a".repeat(32)),
            ("BEAVER_OPERATOR_TOKEN", "b".repeat(32)),
            ("BEAVER_SEAL_KEY", "c".repeat(32)),
            ("BEAVER_DEPLOY_TOKEN", "d".repeat(32)),
            ("BEAVER_ROUTER_INTERNAL_TOKEN", "e".repeat(32)),
        ])
    }

    #[test]
    fn the_defaults_and_five_secrets_suffice() {
        let config = Config::from_env(&env()).unwrap();
        assert_eq!(config.issuer, "http://beaver-authz-service:19090");
        assert_eq!(config.sign_ups_per_hour, Some(60));
        let unlimited = Config::from_env(&env().with("BEAVER_SIGN_UPS_PER_HOUR", "0")).unwrap();
        assert_eq!(unlimited.sign_ups_per_hour, None);
        assert_eq!(config.public_issuer, "http://localhost:3081", "the portal's origin");
        assert!(matches!(config.database, Database::Sqlite(path) if path.ends_with("runtime/authz/authz.db")));
    }

    #[test]
    fn postgres_when_there_is_a_url() {
        let config = Config::from_env(&env().with("DATABASE_URL", "postgres://u:p@h/d")).unwrap();
        assert!(matches!(config.database, Database::Postgres { schema, .. } if schema == "authz"));
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_named() {
        for key in [
            "BEAVER_AUTHZ_INTERNAL_TOKEN",
            "BEAVER_OPERATOR_TOKEN",
            "BEAVER_SEAL_KEY",
            "BEAVER_DEPLOY_TOKEN",
            "BEAVER_ROUTER_INTERNAL_TOKEN",
        ] {
            let error = Config::from_env(&env().with(key, "")).err().unwrap().to_string();
            assert!(error.starts_with(key), "{error}");
        }
        for issuer in ["https://id.example.com/", "https://id.example.com/beaver", "https://ID.example.com", "id"] {
            let error = Config::from_env(&env().with("AUTHZ_PUBLIC_ISSUER", issuer)).err().unwrap().to_string();
            assert!(error.starts_with("AUTHZ_PUBLIC_ISSUER"), "{error}");
        }
        for issuer in ["http://authz:19090/", "http://AUTHZ:19090", "http://authz:80", "authz"] {
            let error = Config::from_env(&env().with("AUTHZ_ISSUER", issuer)).err().unwrap().to_string();
            assert!(error.starts_with("AUTHZ_ISSUER"), "{error}");
        }
    }
}
