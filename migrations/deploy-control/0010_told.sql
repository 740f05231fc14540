-- Of the last error: why what was taken back did not hold, by its code, and the last lines of the program that came down.
ALTER TABLE instances ADD COLUMN error_cause TEXT;
ALTER TABLE instances ADD COLUMN error_log TEXT;
-- When its owner last used it, as the router sees it, to about a minute, in Unix milliseconds: who was there last comes first
-- after a restart of the host. No part of what is compared before a write.
ALTER TABLE instances ADD COLUMN last_used_ms BIGINT;
-- `workspace-…` names Beaver's own workspace with other limits from now on. A plan of an image that was called so must be called
-- otherwise in the operator's file; until then nobody takes what it runs for a workspace, which lets its own people in.
UPDATE instances SET plan = 'image' || substr(plan, 10) WHERE plan LIKE 'workspace-%';
