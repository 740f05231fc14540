-- The release (what the image's name led to, by its id) with which the instance was last found healthy, and the one from
-- which it went back, which is not tried again by itself.
ALTER TABLE instances ADD COLUMN release TEXT;
ALTER TABLE instances ADD COLUMN refused_release TEXT;
