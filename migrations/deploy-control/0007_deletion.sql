-- When the instance was deleted, until when its data is kept all the same, and what was wanted of it before: 'running' or
-- 'stopped'. One that is discarded has neither time.
ALTER TABLE instances ADD COLUMN deleted_at_ms BIGINT;
ALTER TABLE instances ADD COLUMN data_until_ms BIGINT;
ALTER TABLE instances ADD COLUMN before_deletion TEXT NOT NULL DEFAULT '';

-- Archives that were put in the place of the instance's data: how many, the newest in force or taken back, and the newest
-- with which it did not come up.
ALTER TABLE instances ADD COLUMN archive_generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN applied_archive_generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN refused_archive_generation BIGINT NOT NULL DEFAULT 0;
