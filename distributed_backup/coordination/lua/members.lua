-- Tells who is a member.
--
-- KEYS[1] members    hash   worker_id -> "seen role epoch batch"
-- KEYS[2] expiries   zset   worker_id by the instant at which it stops to count as a member
--
-- Returns per member: worker_id, milliseconds since it was heard of, "role epoch batch".
-- May be repeated: it reads.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local told = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', now), '+inf')) do
  local seen, rest = string.match(redis.call('HGET', KEYS[1], worker) or '', '^(%d+) (.*)$')
  if seen then
    told[#told + 1] = worker
    told[#told + 1] = now - seen
    told[#told + 1] = rest
  end
end
return told
