-- What the instance runs, by the name of one of the operator's plans. Those from before are Beaver's own workspaces.
ALTER TABLE instances ADD COLUMN plan TEXT NOT NULL DEFAULT 'workspace';
