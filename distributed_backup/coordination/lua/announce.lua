-- Makes an announcement the newest one, if its worker holds the lease under its term.
--
-- KEYS[1] lease          hash    term; holder, until, lasts, heard: gone when it was given back
-- KEYS[2] announcement   string  JSON, opaque here
-- ARGV[1] worker_id   ARGV[2] term   ARGV[3] the announcement   ARGV[4] how long it stays, ms
-- ARGV[5] channel of the hints   ARGV[6] the hint
--
-- Returns 1 if it was made, 0 if it was refused.
-- Its worker counts as heard of: who waits for it to be alive need not wait for its next heartbeat.
-- May be repeated: the same is written again.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'term', 'holder', 'until')
if lease[2] ~= ARGV[1] or tonumber(lease[1]) ~= tonumber(ARGV[2]) or tonumber(lease[3]) <= now then
  return 0
end
redis.call('HSET', KEYS[1], 'heard', string.format('%.0f', now))
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
-- pcall: a user without the right to publish gets on without hints.
redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return 1
