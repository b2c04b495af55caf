-- Records an announcement, if its worker holds the lease under its term.
--
-- KEYS[1] lease          hash    term, and while the lease is held: holder, until, lasts, heard
-- KEYS[2] announcement   string  JSON, opaque here
-- ARGV[1] worker_id   ARGV[2] term   ARGV[3] the announcement   ARGV[4] expiry of its key, ms
-- ARGV[5] channel of the hints   ARGV[6] the hint
--
-- Returns 1 if it was recorded, 0 if it was refused.
-- It counts as a heartbeat of its worker, so that others need not wait for the next one to see it alive.
-- May be repeated: it writes the same again.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'term', 'holder', 'until')
if lease[2] ~= ARGV[1] or tonumber(lease[1]) ~= tonumber(ARGV[2]) or tonumber(lease[3]) <= now then
  return 0
end
redis.call('HSET', KEYS[1], 'heard', string.format('%.0f', now))
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
-- pcall: a user without the right to publish has no hints, and all else works.
redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return 1
