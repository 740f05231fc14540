-- The newest instance's number. Taken by an update of this row, which makes those who take one at the same time wait for
-- each other; the greatest number in `instances` would be read by both.
CREATE TABLE numbers (
    name TEXT PRIMARY KEY,
    newest BIGINT NOT NULL
);

INSERT INTO numbers (name, newest) SELECT 'instance', COALESCE(MAX(number), 0) FROM instances;
