-- Lists the members.
--
-- KEYS[1] members    hash   worker_id -> "seen role epoch batch"
-- KEYS[2] expiries   zset   worker_id by the instant at which its membership expires
--
-- Returns per member: worker_id, milliseconds since its last tick, "role epoch batch".
-- May be repeated: it reads.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', now), '+inf')) do
  local seen, rest = string.match(redis.call('HGET', KEYS[1], worker) or '', '^(%d+) (.*)$')
  if seen then
    found[#found + 1] = worker
    found[#found + 1] = now - seen
    found[#found + 1] = rest
  end
end
return found
