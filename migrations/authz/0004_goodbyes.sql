-- Workspaces that have yet to hear that sessions ended (the outbox of sign-outs).
CREATE TABLE goodbyes (
    id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    slug TEXT NOT NULL,
    -- the session's id; empty for every session the workspace has
    sid TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE INDEX goodbyes_due ON goodbyes (next_attempt_at_ms);
CREATE INDEX goodbyes_by_instance ON goodbyes (instance_id);
