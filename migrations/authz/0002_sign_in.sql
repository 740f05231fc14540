-- Failed sign-ins. A scope is a keyed hash: of an account, a client address, or the pair; people type passwords into the
-- name field, so nothing typed is kept.
CREATE TABLE login_failures (
    scope TEXT NOT NULL PRIMARY KEY,
    failures BIGINT NOT NULL,
    last_failed_at_ms BIGINT NOT NULL,
    blocked_until_ms BIGINT NOT NULL
);
CREATE INDEX login_failures_by_age ON login_failures (last_failed_at_ms);

-- From where an account has signed in before: what others do to the account does not lock these out. Keyed hashes too.
CREATE TABLE known_addresses (
    scope TEXT NOT NULL PRIMARY KEY,
    last_seen_ms BIGINT NOT NULL
);
CREATE INDEX known_addresses_by_age ON known_addresses (last_seen_ms);
