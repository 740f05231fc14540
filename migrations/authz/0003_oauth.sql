-- One live initial access token an instance: a new one takes the place of the one before.
CREATE TABLE initial_access_tokens (
    instance_id TEXT NOT NULL PRIMARY KEY,
    token_hash TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    slug TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    -- 0 until it is used
    used_at_ms BIGINT NOT NULL,
    -- the thumbprint (RFC 7638) of the key it was used for; empty until then
    used_for TEXT NOT NULL
);
CREATE INDEX initial_access_tokens_by_end ON initial_access_tokens (expires_at_ms);

-- One client an instance.
CREATE TABLE clients (
    client_id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    redirect_uri TEXT NOT NULL,
    -- its public key, a JSON Web Key
    jwk TEXT NOT NULL,
    issued_at_ms BIGINT NOT NULL
);

-- Client assertions that were used, until they would have ended.
CREATE TABLE spent_assertions (
    client_id TEXT NOT NULL,
    jti_hash TEXT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    PRIMARY KEY (client_id, jti_hash)
);
CREATE INDEX spent_assertions_by_end ON spent_assertions (expires_at_ms);

-- The issuer's keys in the order of their use. Two processes that make the next one at once meet at its number.
CREATE TABLE signing_keys (
    seq BIGINT NOT NULL PRIMARY KEY,
    kid TEXT NOT NULL UNIQUE,
    -- base64url: nonce, then PKCS #8 under AES-256-GCM
    sealed TEXT NOT NULL,
    active_from_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
