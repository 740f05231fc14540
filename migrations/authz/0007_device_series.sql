-- What failures on a known device are counted by: an id of its own for each account on it. Unlike the device's id it stays the
-- same when somebody signs in.
ALTER TABLE devices ADD COLUMN series TEXT NOT NULL DEFAULT '';
UPDATE devices SET series = device_hash;
