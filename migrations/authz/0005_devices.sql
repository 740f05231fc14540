-- Devices on which an account has signed in: the SHA-256 of a random id in a cookie. What others do to the account does not
-- lock these out. They take the place of addresses, which whole networks share.
DROP TABLE known_addresses;

CREATE TABLE devices (
    device_hash TEXT NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    last_seen_ms BIGINT NOT NULL,
    PRIMARY KEY (device_hash, account_id)
);
CREATE INDEX devices_by_account ON devices (account_id, last_seen_ms);
CREATE INDEX devices_by_age ON devices (last_seen_ms);

-- Sign-ups by client address, a keyed hash of it, within an hour that begins with the first.
CREATE TABLE sign_ups_by_address (
    scope TEXT NOT NULL PRIMARY KEY,
    sign_ups BIGINT NOT NULL,
    since_ms BIGINT NOT NULL
);
CREATE INDEX sign_ups_by_address_by_age ON sign_ups_by_address (since_ms);

-- Where a session began, for its own person to recognise it.
ALTER TABLE sessions ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN user_agent TEXT NOT NULL DEFAULT '';
