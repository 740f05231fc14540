-- When the portal made the assertion that this came of, by its clock: what is ended as of a moment leaves alone what began later.
ALTER TABLE hand_offs ADD COLUMN asserted_at_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN asserted_at_ms BIGINT NOT NULL DEFAULT 0;
