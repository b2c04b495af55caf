-- Ends a membership and removes its notices.
--
-- KEYS[1] members    hash   worker_id -> "seen role epoch batch"
-- KEYS[2] expiries   zset   worker_id by the instant at which its membership expires
-- KEYS[3] notices    hash   notice id -> "until worker_id wish reason"
-- ARGV[1] worker_id
--
-- Returns 1. May be repeated: removed records stay removed.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
local notices = redis.call('HGETALL', KEYS[3])
for i = 1, #notices, 2 do
  if string.match(notices[i + 1], '^%d+ (%S+)') == ARGV[1] then
    redis.call('HDEL', KEYS[3], notices[i])
  end
end
return 1
