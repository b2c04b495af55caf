-- Refreshes a membership, renews or grants the lease, and returns the view.
--
-- The holder's lease is renewed. A free lease is granted to a worker that campaigns, unless it gives way.
--
-- KEYS[1] lease          hash    term, and while the lease is held: holder, until, lasts, heard
-- KEYS[2] announcement   string  JSON, opaque here
-- KEYS[3] notices        hash    notice id -> "until worker_id wish reason"
-- KEYS[4] members        hash    worker_id -> "seen role epoch batch"
-- KEYS[5] expiries       zset    worker_id by the instant at which its membership expires
-- ARGV[1] worker_id   ARGV[2] "1" to campaign   ARGV[3] floor: a granted term is higher
-- ARGV[4] duration of lease and membership, ms   ARGV[5] expiry of the run's keys, ms
-- ARGV[6] "role epoch batch", the last two "-" before training
-- ARGV[7] the worker gives way to a member that is ahead and sent a heartbeat less than so many ms ago. 0: to none
--
-- Returns the reply of `view`.
-- May be repeated: the holder renews its lease under the same term, so a grant whose reply was lost is returned again.
do
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local function instant(ms) return string.format('%.0f', ms) end
  local worker, ends = ARGV[1], instant(now + ARGV[4])

  local expired = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', instant(now), 'LIMIT', 0, 16)
  if #expired > 0 then
    redis.call('ZREM', KEYS[5], unpack(expired))
    redis.call('HDEL', KEYS[4], unpack(expired))
  end
  -- An expiry that far ahead was written before the clock was set back.
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
    redis.call('HSET', KEYS[1], 'until', instant(now + lease[4]))  -- written before the clock was set back
  end
  -- As `giving_way.is_ahead`. It reads all members, so it is called in a vacancy only.
  local function gives_way()
    local own_epoch, own_batch = string.match(ARGV[6], '(%d+) (%d+)$')
    own_epoch, own_batch = tonumber(own_epoch or -1), tonumber(own_batch or -1)
    local members = redis.call('HGETALL', KEYS[4])
    for i = 1, #members, 2 do
      local seen, role, epoch, batch = string.match(members[i + 1], '^(%d+) (%S+) (%d+) (%d+)$')
      if seen and members[i] ~= worker and role ~= 'leader' then
        epoch, batch = tonumber(epoch), tonumber(batch)
        local is_ahead = epoch > own_epoch or (epoch == own_epoch and batch > own_batch)
        if is_ahead and now - seen < tonumber(ARGV[7]) then
          return true
        end
      end
    end
    return false
  end
  if holder == '' and ARGV[2] == '1' and not (tonumber(ARGV[7]) > 0 and gives_way()) then
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
