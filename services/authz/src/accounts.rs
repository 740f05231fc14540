//! Accounts as rows.

use contracts::{AccountId, InstanceId, Slug, authz::Role};
use service::Problem;
use sqlx::{Any, AnyConnection, Executor};

use crate::{email::Email, refused::Answer};

/// An account, with what recognises its password.
#[derive(Clone)]
pub(crate) struct Account {
    pub id: AccountId,
    pub email: String,
    pub password_hash: String,
    pub role: Role,
    pub slug: Option<Slug>,
    pub instance_id: Option<InstanceId>,
    pub locale: String,
    pub created_at_ms: i64,
    /// 0: it is not.
    pub suspended_at_ms: i64,
}

/// A row, before its texts are known to be what they must be.
#[derive(sqlx::FromRow)]
pub(crate) struct AccountRow {
    id: String,
    email: String,
    password_hash: String,
    role: String,
    slug: Option<String>,
    instance_id: Option<String>,
    locale: String,
    created_at_ms: i64,
    suspended_at_ms: i64,
}

impl AccountRow {
    /// The account in the row; 500 for a row that we did not write.
    pub fn read(self) -> Result<Account, Problem> {
        let odd = |what: &str| Problem::internal(anyhow::anyhow!("an account's {what} in the database is malformed"));
        Ok(Account {
            id: self.id.parse().map_err(|_| odd("id"))?,
            email: self.email,
            password_hash: self.password_hash,
            role: match self.role.as_str() {
                "person" => Role::Person,
                "operator" => Role::Operator,
                _ => return Err(odd("role")),
            },
            slug: self.slug.map(|slug| slug.parse().map_err(|_| odd("slug"))).transpose()?,
            instance_id: self.instance_id.map(|id| id.parse().map_err(|_| odd("instance"))).transpose()?,
            locale: self.locale,
            created_at_ms: self.created_at_ms,
            suspended_at_ms: self.suspended_at_ms,
        })
    }
}

/// The account with this id.
pub(crate) async fn by_id(db: impl Executor<'_, Database = Any>, id: &str) -> Answer<Option<Account>> {
    find(db, "SELECT * FROM accounts WHERE id = $1", id).await
}

/// What somebody typed to sign in, as it is compared: two spellings that mean one account are the same.
pub(crate) enum Login {
    /// An e-mail address.
    Email(Email),
    /// A name.
    Slug(Slug),
    /// Neither, so nobody's.
    Neither(String),
}

impl Login {
    /// Reads what was typed.
    pub fn read(typed: &str) -> Self {
        let typed = typed.trim();
        let neither = || Self::Neither(typed.to_lowercase());
        if typed.contains('@') {
            return Email::parse(typed).map_or_else(neither, Self::Email);
        }
        Slug::parse(&typed.to_ascii_lowercase()).map_or_else(|_| neither(), Self::Slug)
    }

    /// What failures are counted by: the text alone, so that it tells nobody which name and address are one person's.
    pub fn key(&self) -> &str {
        match self {
            Self::Email(email) => email.key(),
            Self::Slug(slug) => slug.as_str(),
            Self::Neither(text) => text,
        }
    }
}

/// The account that somebody means who signs in.
pub(crate) async fn by_login(db: impl Executor<'_, Database = Any>, login: &Login) -> Answer<Option<Account>> {
    match login {
        Login::Email(email) => find(db, "SELECT * FROM accounts WHERE email_key = $1", email.key()).await,
        Login::Slug(slug) => find(db, "SELECT * FROM accounts WHERE slug = $1", slug.as_str()).await,
        Login::Neither(_) => Ok(None),
    }
}

async fn find(db: impl Executor<'_, Database = Any>, sql: &'static str, key: &str) -> Answer<Option<Account>> {
    let row: Option<AccountRow> = sqlx::query_as(sql).bind(key.to_owned()).fetch_optional(db).await?;
    Ok(row.map(AccountRow::read).transpose()?)
}

/// Whether the account's password still is the one that was checked. If so it remains so until the transaction ends: a change
/// of the password, which ends all sessions, comes before it or after it, never in between.
pub(crate) async fn password_holds(db: &mut AnyConnection, account: &Account) -> Result<bool, sqlx::Error> {
    // An UPDATE, because it waits for a change under way and makes the next one wait, on every database.
    let found = sqlx::query("UPDATE accounts SET password_hash = password_hash WHERE id = $1 AND password_hash = $2")
        .bind(account.id.to_string())
        .bind(account.password_hash.clone())
        .execute(db)
        .await?;
    Ok(found.rows_affected() == 1)
}

/// Adds an account. `false`, and nothing done, when its e-mail address (or its slug) has one already.
pub(crate) async fn insert(db: &mut AnyConnection, account: &Account, email: &Email) -> Result<bool, sqlx::Error> {
    let role = match account.role {
        Role::Person => "person",
        Role::Operator => "operator",
    };
    let inserted = sqlx::query(
        "INSERT INTO accounts (id, email, email_key, password_hash, role, slug, instance_id, locale, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
    )
    .bind(account.id.to_string())
    .bind(email.as_str().to_owned())
    .bind(email.key().to_owned())
    .bind(account.password_hash.clone())
    .bind(role)
    .bind(account.slug.as_ref().map(Slug::to_string))
    .bind(account.instance_id.map(|id| id.to_string()))
    .bind(account.locale.clone())
    .bind(account.created_at_ms)
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}
