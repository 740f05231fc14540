-- Instances: what is wanted, what is known, and what happened. Times are Unix milliseconds, truth is 0 or 1.

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    -- Counts instances from 1; its user id is the configured base plus this. Never given twice.
    number BIGINT NOT NULL UNIQUE,
    -- Never given twice, also not after deletion: rows stay.
    slug TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL,

    -- Wishes.
    desired TEXT NOT NULL,
    generation BIGINT NOT NULL,
    restart_generation BIGINT NOT NULL,
    config_generation BIGINT NOT NULL,

    -- How far each is fulfilled.
    observed_generation BIGINT NOT NULL,
    applied_restart_generation BIGINT NOT NULL,
    applied_config_generation BIGINT NOT NULL,
    -- The newest configuration that did not hold; it is not tried again.
    refused_config_generation BIGINT NOT NULL,

    -- What is known.
    phase TEXT NOT NULL,
    -- What the router was told last; empty before the first time.
    route TEXT NOT NULL,
    -- Whether it has its owner and its own identity.
    registered BIGINT NOT NULL,
    -- Which run of its container was found healthy, and when.
    ready_run TEXT,
    ready_at_ms BIGINT,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT NOT NULL,
    error_code TEXT,
    error_detail TEXT,

    -- Counts writes of this row: a write says which one it was made from.
    version BIGINT NOT NULL,
    -- The newest event's seq.
    last_event BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

CREATE INDEX instances_account ON instances (account_id);

CREATE TABLE events (
    instance_id TEXT NOT NULL REFERENCES instances (id),
    seq BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    code TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT,
    PRIMARY KEY (instance_id, seq)
);
