-- Workspaces that are made ahead, and nobody's yet: whoever signs up next takes one over, and nobody after them.
CREATE TABLE pool (
    id TEXT PRIMARY KEY,
    -- Given once, as every instance's.
    uid BIGINT NOT NULL UNIQUE,
    -- warming: being made; ready: frozen, and waiting; reserved: somebody was told its id; discarded: being removed.
    state TEXT NOT NULL,
    -- Since when, in Unix milliseconds.
    since_ms BIGINT NOT NULL
);
