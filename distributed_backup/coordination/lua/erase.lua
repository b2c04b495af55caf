-- Deletes the run's records.
--
-- KEYS all keys of the run
--
-- Returns 1. May be repeated: deleted keys stay deleted.
redis.call('UNLINK', unpack(KEYS))
return 1
