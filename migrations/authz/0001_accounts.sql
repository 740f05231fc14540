-- One SQL for SQLite and PostgreSQL: TEXT and BIGINT alone, times in Unix milliseconds, secrets as their SHA-256.

CREATE TABLE accounts (
    id TEXT NOT NULL PRIMARY KEY,
    email TEXT NOT NULL,
    -- The address as it is compared: lower case.
    email_key TEXT NOT NULL UNIQUE,
    -- PHC string, argon2id.
    password_hash TEXT NOT NULL,
    -- 'person' or 'operator'; an operator has neither slug nor instance.
    role TEXT NOT NULL,
    slug TEXT UNIQUE,
    instance_id TEXT UNIQUE,
    locale TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- Every name ever given. Rows stay when the account goes, so there is no reference to it: a name is never given twice.
CREATE TABLE slugs (
    slug TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    reserved_at_ms BIGINT NOT NULL
);

-- Sign-ups by idempotency key, for a day.
CREATE TABLE sign_ups (
    key_hash TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX sign_ups_by_age ON sign_ups (created_at_ms);

-- At most one row: whoever inserts it is the first operator.
CREATE TABLE first_operator (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    account_id TEXT NOT NULL
);

CREATE TABLE sessions (
    token_hash TEXT NOT NULL PRIMARY KEY,
    sid TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    created_at_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account_id);
CREATE INDEX sessions_by_end ON sessions (expires_at_ms);
CREATE INDEX sessions_by_use ON sessions (last_seen_ms);

-- Instances that deploy-control has yet to take (the outbox of sign-ups), and those that it refused for good.
CREATE TABLE deliveries (
    instance_id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    slug TEXT NOT NULL,
    -- 'pending' or 'refused'
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX deliveries_due ON deliveries (state, next_attempt_at_ms);
