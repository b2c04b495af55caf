-- Refreshes a membership; renews the lease of its holder, or grants it if it is free and wanted; tells what is.
--
-- KEYS[1] lease          hash    term; holder, until, lasts, heard: gone when it was given back
-- KEYS[2] announcement   string  JSON, opaque here
-- KEYS[3] notices        hash    notice id -> "until worker_id wish reason"
-- KEYS[4] members        hash    worker_id -> "seen role epoch batch"
-- KEYS[5] expiries       zset    worker_id by the instant at which it stops to count as a member
-- ARGV[1] worker_id   ARGV[2] "1" to campaign   ARGV[3] floor: a granted term is higher
-- ARGV[4] duration of lease and membership, ms   ARGV[5] how long the keys of a silent run stay, ms
-- ARGV[6] "role epoch batch", the last two "-" where it doesn't know
--
-- Returns what `view` returns.
-- May be repeated: who holds the lease renews it under its term, so that the grant whose reply was lost is told again.
do
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local function instant(ms) return string.format('%.0f', ms) end
  local worker, ends = ARGV[1], instant(now + ARGV[4])

  local gone = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', instant(now), 'LIMIT', 0, 16)
  if #gone > 0 then
    redis.call('ZREM', KEYS[5], unpack(gone))
    redis.call('HDEL', KEYS[4], unpack(gone))
  end
  -- What lasts for so long was written before the clock was set back.
  local ahead = redis.call('ZRANGEBYSCORE', KEYS[5], instant(now + 20 * ARGV[4]), '+inf', 'LIMIT', 0, 16)
  for _, other in ipairs(ahead) do
    redis.call('ZADD', KEYS[5], ends, other)
  end
  redis.call('ZADD', KEYS[5], ends, worker)
  redis.call('HSET', KEYS[4], worker, instant(now) .. ' ' .. ARGV[6])
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[5], ARGV[5])

  local lease = redis.call('HMGET', KEYS[1], 'term', 'holder', 'until', 'lasts')
  local holder = lease[2] or ''
  if holder ~= '' and tonumber(lease[3]) <= now then
    holder = ''
  elseif holder ~= '' and tonumber(lease[3]) > now + tonumber(lease[4]) then
    redis.call('HSET', KEYS[1], 'until', instant(now + lease[4]))  -- the same
  end
  if holder == '' and ARGV[2] == '1' then
    holder = worker
    local term = math.max(tonumber(lease[1] or 0), tonumber(ARGV[3])) + 1
    redis.call('HSET', KEYS[1], 'term', instant(term), 'holder', worker)
  end
  if holder == worker then
    redis.call('HSET', KEYS[1], 'until', ends, 'lasts', ARGV[4], 'heard', instant(now))
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    redis.call('PEXPIRE', KEYS[2], ARGV[5])
  end
end
