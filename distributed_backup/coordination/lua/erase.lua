-- Forgets the run.
--
-- KEYS all keys of the run
--
-- Returns 1. May be repeated: what is gone stays gone.
redis.call('UNLINK', unpack(KEYS))
return 1
