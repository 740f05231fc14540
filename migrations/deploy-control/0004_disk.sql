-- Whether the instance's data is over its limit, as last told.
ALTER TABLE instances ADD COLUMN disk_full BIGINT NOT NULL DEFAULT 0;
