CREATE TABLE owners (
    id TEXT PRIMARY KEY
);

CREATE TABLE items (
    id TEXT PRIMARY KEY,
    owner TEXT REFERENCES owners (id),
    amount BIGINT NOT NULL,
    used_at BIGINT
);
