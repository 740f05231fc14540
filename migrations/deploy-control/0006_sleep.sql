-- How deep the instance sleeps while nobody uses it: awake, paused or stopped. A wish like the others; what is wanted of
-- it (`desired`) stays running.
ALTER TABLE instances ADD COLUMN sleep TEXT NOT NULL DEFAULT 'awake';
-- By what its owner's programs are known meanwhile: the fingerprints of the API keys that it knew as it fell asleep, with
-- spaces between them.
ALTER TABLE instances ADD COLUMN wake_keys TEXT NOT NULL DEFAULT '';
