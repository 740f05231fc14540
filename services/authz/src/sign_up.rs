//! Signing up: `POST /portal/register`, and whether a name can be had.

use std::sync::Arc;

use axum::extract::{Path, State};
use contracts::{
    AccountId, ProblemDetails, Slug,
    authz::{IDEMPOTENCY_KEY, RegisterAccount, Role, SignedIn, SlugAvailability},
};
use http::{HeaderMap, StatusCode};
use locale::Locale;
use service::{Json, Problem};

use crate::{
    accounts::{self, Account},
    app::App,
    deliveries,
    devices::Visitor,
    digest::sha256,
    email::Email,
    password::{self, Purpose},
    refused::{Answer, Refused},
    sessions, sign_up_limit, suspension,
};

/// How long a repeated sign-up is recognised.
pub(crate) const REMEMBERED_MS: i64 = 24 * 60 * 60 * 1000;

/// What was asked for, checked.
struct SignUp {
    key_hash: String,
    slug: Slug,
    email: Email,
    locale: Locale,
    visitor: Visitor,
    body: RegisterAccount,
}

/// Makes an account, reserves its name for good, begins a session, and sees to it that deploy-control hears of the instance.
#[utoipa::path(post, path = "/portal/register", tag = "portal", request_body = RegisterAccount,
    params(("Idempotency-Key" = String, Header, description = "16 to 64 characters, random; repeats are the same sign-up")),
    responses(
        (status = 201, body = SignedIn),
        (status = 400, description = "idempotency_key_required", body = ProblemDetails),
        (status = 409, description = "slug_taken, slug_reserved, email_taken", body = ProblemDetails),
        (status = 422, description = "slug_*, email_invalid, password_*, locale_unknown, idempotency_key_reused", body = ProblemDetails),
        (status = 429, description = "too_many_sign_ups, with Retry-After", body = ProblemDetails),
        (status = 503, description = "busy, unavailable", body = ProblemDetails)))]
pub(crate) async fn register(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Json(body): Json<RegisterAccount>,
) -> Answer<(StatusCode, Json<SignedIn>)> {
    let asked = SignUp::check(&app, &headers, body)?;
    sign_up_limit::try_once(&app, asked.visitor.address).await?;
    if let Some(again) = asked.repeated(&app).await? {
        return Ok((StatusCode::CREATED, Json(again)));
    }
    sign_up_limit::check(&app, asked.visitor.address).await?;
    // Before anything is looked up: a refusal of the password would say that the address is free, and count nothing.
    let own_words = password::own_words(Some(asked.slug.as_str()), asked.email.as_str());
    let password = app.passwords.check(asked.body.password.clone(), own_words).await?;
    // Asked before the expensive part, and decided again by the database below.
    if let Err(refused) = asked.still_free(&app).await {
        // Its place is free for the comparison, and for others.
        drop(password);
        // It may be this very sign-up, sent twice, that has them by now.
        let again = asked.repeated(&app).await?.ok_or(refused)?;
        return Ok((StatusCode::CREATED, Json(again)));
    }
    let password_hash = app.passwords.hash(password).await?;
    let account = Account {
        id: AccountId::from_uuid(app.entropy.uuid_v7(&app.clock)),
        email: asked.email.as_str().to_owned(),
        password_hash,
        role: Role::Person,
        slug: Some(asked.slug.clone()),
        instance_id: Some(deliveries::instance_id(&app).await),
        locale: asked.locale.code().to_owned(),
        created_at_ms: app.clock.now_ms(),
        suspended_at_ms: 0,
    };
    let Some(signed_in) = asked.commit(&app, &account).await? else {
        // The same sign-up won elsewhere in the meantime.
        let again = asked
            .repeated(&app)
            .await?
            .ok_or_else(|| Problem::unavailable(anyhow::anyhow!("a sign-up with the same key came and went")))?;
        return Ok((StatusCode::CREATED, Json(again)));
    };
    metrics::counter!("authz_sign_ups_total").increment(1);
    tracing::info!(account_id = %account.id, slug = %asked.slug, "signed up");
    deliveries::deliver_now(&app, &account).await;
    Ok((StatusCode::CREATED, Json(signed_in)))
}

impl SignUp {
    fn check(app: &App, headers: &HeaderMap, body: RegisterAccount) -> Answer<Self> {
        let key = headers
            .get(IDEMPOTENCY_KEY)
            .and_then(|value| value.to_str().ok())
            .filter(|key| (16..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "idempotency_key_required",
                    "Send the header Idempotency-Key: 16 to 64 random characters.",
                )
            })?;
        let slug = slug_of(&body.slug)?;
        let (email, locale) = (email(&body.email)?, locale(&body.locale)?);
        let visitor = Visitor::read(app, &body.browser)?;
        Ok(Self { key_hash: sha256(key), slug, email, locale, visitor, body })
    }

    /// The answer of the sign-up that used this key before: its account, in a new session.
    async fn repeated(&self, app: &App) -> Answer<Option<SignedIn>> {
        let earlier: Option<(String,)> =
            sqlx::query_as("SELECT account_id FROM sign_ups WHERE key_hash = $1 AND created_at_ms > $2")
                .bind(self.key_hash.clone())
                .bind(app.clock.now_ms() - REMEMBERED_MS)
                .fetch_optional(app.store.pool())
                .await?;
        let Some((account_id,)) = earlier else { return Ok(None) };
        let reused = || {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key belongs to another sign-up. Take a new one.",
            )
        };
        let account = accounts::by_id(app.store.pool(), &account_id).await?.ok_or_else(reused)?;
        let same = account.slug.as_ref() == Some(&self.slug)
            && account.email == self.email.as_str()
            && account.locale == self.locale.code();
        // The body is not kept: a fast hash of it would be a fast hash of the password.
        let hash = account.password_hash.clone();
        let compare = async || {
            let place = app.passwords.line_up(Purpose::SignUp).await?;
            app.passwords.verify(place, self.body.password.clone(), Some(hash)).await
        };
        if !same || !compare().await? {
            return Err(reused().into());
        }
        if account.suspended_at_ms > 0 {
            return Err(suspension::refusal());
        }
        let mut transaction = app.store.begin().await?;
        if !accounts::password_holds(&mut transaction, &account).await? {
            transaction.rollback().await?;
            return Err(reused().into());
        }
        let signed_in = sessions::begin(&mut transaction, app, &account, &self.visitor).await?;
        transaction.commit().await?;
        app.deliveries_nudge.notify_one();
        Ok(Some(signed_in))
    }

    /// Refuses a name or an address that somebody has. Whoever learns anything of the address has it counted first, and it stays
    /// counted whatever becomes of the sign-up.
    async fn still_free(&self, app: &App) -> Answer<()> {
        if is_taken(app, &self.slug).await? {
            return Err(slug_taken());
        }
        let mut transaction = app.store.begin().await?;
        sign_up_limit::count(&mut transaction, app, self.visitor.address).await?;
        transaction.commit().await?;
        let (with_email,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM accounts WHERE email_key = $1")
            .bind(self.email.key().to_owned())
            .fetch_one(app.store.pool())
            .await?;
        if with_email > 0 {
            return Err(email_taken());
        }
        Ok(())
    }

    /// Account, name, session and delivery: all of it or nothing. `None` when the key was used in the meantime.
    async fn commit(&self, app: &App, account: &Account) -> Answer<Option<SignedIn>> {
        let now = app.clock.now_ms();
        let mut transaction = app.store.begin().await?;
        // A key from yesterday is as good as none.
        let keyed = sqlx::query(
            "INSERT INTO sign_ups (key_hash, account_id, created_at_ms) VALUES ($1, $2, $3)
             ON CONFLICT (key_hash) DO UPDATE SET account_id = $2, created_at_ms = $3 WHERE sign_ups.created_at_ms <= $4",
        )
        .bind(self.key_hash.clone())
        .bind(account.id.to_string())
        .bind(now)
        .bind(now - REMEMBERED_MS)
        .execute(&mut *transaction)
        .await?;
        if keyed.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(None);
        }
        if !reserve(&mut transaction, app, &self.slug, account).await? {
            return Err(slug_taken());
        }
        if !accounts::insert(&mut transaction, account, &self.email).await? {
            return Err(email_taken());
        }
        deliveries::insert(&mut transaction, app, account).await?;
        let signed_in = sessions::begin(&mut transaction, app, account, &self.visitor).await?;
        transaction.commit().await?;
        Ok(Some(signed_in))
    }
}

/// The address in what somebody typed, or 422.
pub(crate) fn email(typed: &str) -> Answer<Email> {
    Email::parse(typed).ok_or_else(|| {
        Problem::field("email", "email_invalid", "This is not an e-mail address of the form name@example.com.").into()
    })
}

/// The language asked for, or 422.
pub(crate) fn locale(code: &str) -> Answer<Locale> {
    Locale::from_code(code)
        .ok_or_else(|| Problem::field("locale", "locale_unknown", "The language is en or zh-CN.").into())
}

/// 409: the address has an account. Whoever fills in the form learns of it; that changes with mails that confirm.
pub(crate) fn email_taken() -> Refused {
    Problem::field("email", "email_taken", "There is an account with this e-mail address.")
        .status(StatusCode::CONFLICT)
        .into()
}

/// The name in what somebody typed, or 422, or 409 for one that nobody gets.
pub(crate) fn slug_of(typed: &str) -> Answer<Slug> {
    Slug::parse_new(typed).map_err(|error| {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY);
        Problem::field("slug", error.code(), error.to_string()).status(status).into()
    })
}

/// Reserves a name for good; false when somebody has it, or had it.
pub(crate) async fn reserve(
    db: &mut sqlx::AnyConnection,
    app: &App,
    slug: &Slug,
    account: &Account,
) -> Result<bool, sqlx::Error> {
    let named =
        sqlx::query("INSERT INTO slugs (slug, account_id, reserved_at_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(slug.to_string())
            .bind(account.id.to_string())
            .bind(app.clock.now_ms())
            .execute(db)
            .await?;
    Ok(named.rows_affected() > 0)
}

pub(crate) fn slug_taken() -> Refused {
    Problem::field("slug", "slug_taken", "This name is taken. Take another.").status(StatusCode::CONFLICT).into()
}

async fn is_taken(app: &App, slug: &Slug) -> Answer<bool> {
    let (given,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM slugs WHERE slug = $1")
        .bind(slug.to_string())
        .fetch_one(app.store.pool())
        .await?;
    Ok(given > 0)
}

/// Whether a name can be had, for the form as it is typed.
#[utoipa::path(get, path = "/portal/slugs/{text}", tag = "portal",
    params(("text" = String, Path, description = "The name, as typed")),
    responses((status = 200, body = SlugAvailability)))]
pub(crate) async fn slug(State(app): State<Arc<App>>, Path(text): Path<String>) -> Answer<Json<SlugAvailability>> {
    let code = match Slug::parse_new(&text) {
        Err(error) => Some(error.code()),
        Ok(slug) if is_taken(&app, &slug).await? => Some("slug_taken"),
        Ok(_) => None,
    };
    Ok(Json(SlugAvailability { available: code.is_none(), code: code.map(str::to_owned) }))
}
