-- One person's workspace. Times are Unix milliseconds; secrets that only have to be recognised are kept as SHA-256.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- Assertions that have been used, until they would have expired anyway.
CREATE TABLE spent_assertions (
    jti           TEXT   NOT NULL PRIMARY KEY,
    expires_at_ms BIGINT NOT NULL
);

-- Portal sessions that have ended, for as long as an assertion made under one could still arrive.
CREATE TABLE ended_sids (
    sid           TEXT   NOT NULL PRIMARY KEY,
    expires_at_ms BIGINT NOT NULL
);

-- One-time codes. A used one stays a while, so that its second use can end what came of the first.
CREATE TABLE hand_offs (
    code_hash     TEXT   NOT NULL PRIMARY KEY,
    bind          TEXT   NOT NULL,
    sid           TEXT   NOT NULL,
    rd            TEXT   NOT NULL,
    edge_token    TEXT,
    edge_until_ms BIGINT,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms    BIGINT
);

CREATE TABLE sessions (
    token_hash    TEXT   NOT NULL PRIMARY KEY,
    sid           TEXT   NOT NULL,
    code_hash     TEXT   NOT NULL,
    seen_at_ms    BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_sid ON sessions (sid);
CREATE INDEX sessions_by_code ON sessions (code_hash);

CREATE TABLE chats (
    id            TEXT   NOT NULL PRIMARY KEY,
    title         TEXT   NOT NULL,
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

-- role: user or assistant. status: done; for an answer also streaming, partial (its reader left), interrupted (this
-- program ended) and failed (the provider did; error says how).
CREATE TABLE messages (
    id            TEXT   NOT NULL PRIMARY KEY,
    chat_id       TEXT   NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    position      BIGINT NOT NULL,
    role          TEXT   NOT NULL,
    content       TEXT   NOT NULL,
    status        TEXT   NOT NULL,
    error         TEXT,
    created_at_ms BIGINT NOT NULL,
    UNIQUE (chat_id, position)
);

CREATE TABLE api_keys (
    id              TEXT   NOT NULL PRIMARY KEY,
    name            TEXT   NOT NULL,
    hint            TEXT   NOT NULL,
    key_hash        TEXT   NOT NULL UNIQUE,
    created_at_ms   BIGINT NOT NULL,
    last_used_at_ms BIGINT,
    revoked_at_ms   BIGINT
);
