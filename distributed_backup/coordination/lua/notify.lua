-- Records a notice, or withdraws the one of its id if its duration is 0. Deletes expired ones.
--
-- KEYS[1] notices   hash   notice id -> "until worker_id wish reason"
-- ARGV[1] notice id   ARGV[2] worker_id   ARGV[3] wish   ARGV[4] reason   ARGV[5] its duration, ms
-- ARGV[6] expiry of the run's keys, ms   ARGV[7] channel of the hints
--
-- Returns 1. May be repeated: its duration then counts from the repetition.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local notices = redis.call('HGETALL', KEYS[1])
for i = 1, #notices, 2 do
  if tonumber(string.match(notices[i + 1], '^%d+')) <= now then
    redis.call('HDEL', KEYS[1], notices[i])
  end
end
if ARGV[5] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  local ends = string.format('%.0f', now + ARGV[5])
  redis.call('HSET', KEYS[1], ARGV[1], table.concat({ends, ARGV[2], ARGV[3], ARGV[4]}, ' '))
  redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[5]), tonumber(ARGV[6])))
end
-- pcall: a user without the right to publish has no hints, and all else works.
redis.pcall('PUBLISH', ARGV[7], 'noticed')
return 1
