-- An account that an operator has suspended; 0: it is not.
ALTER TABLE accounts ADD COLUMN suspended_at_ms BIGINT NOT NULL DEFAULT 0;

-- What operators did to accounts. Rows stay.
CREATE TABLE operator_actions (
    id TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    -- the operator's account
    actor_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    -- 'suspended' or 'restored'
    action TEXT NOT NULL,
    -- why, in the operator's words
    reason TEXT NOT NULL
);
CREATE INDEX operator_actions_by_account ON operator_actions (account_id, at_ms);

-- Instances of suspended accounts that deploy-control has yet to stop (the outbox of suspensions).
CREATE TABLE stops (
    instance_id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL,
    -- how often deploy-control has taken it: the second time is for what was under way when the account was suspended
    taken BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT NOT NULL,
    last_error TEXT NOT NULL
);
CREATE INDEX stops_due ON stops (next_attempt_at_ms);
