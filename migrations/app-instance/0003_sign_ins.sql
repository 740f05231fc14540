-- Who is signed in is one value of the table settings, held in memory while the program runs. Everybody signs in once more,
-- which asks for no password where the portal's session still lasts.
DROP TABLE sessions;
DROP TABLE hand_offs;
DROP TABLE ended_sids;
DROP TABLE spent_assertions;
DELETE FROM settings WHERE name = 'ended_before_ms';
