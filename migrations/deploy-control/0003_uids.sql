-- Each instance's user id, written down: neither another setting nor a restored back-up may give one person's files to
-- another. Instances from before get theirs, the configured base plus their number, when the service starts.
ALTER TABLE instances ADD COLUMN uid BIGINT;

CREATE UNIQUE INDEX instances_uid ON instances (uid);

-- The newest user id; it only ever grows.
INSERT INTO numbers (name, newest) VALUES ('uid', 0);
