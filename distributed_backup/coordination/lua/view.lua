-- Tells what is, and changes nothing. `heartbeat` ends with this text, so that both tell the same.
--
-- KEYS[1] lease          hash    term; holder, until, lasts, heard: gone when it was given back
-- KEYS[2] announcement   string  JSON, opaque here
-- KEYS[3] notices        hash    notice id -> "until worker_id wish reason"
-- ARGV[1] who asks: only the holder is told the notices; "" is told them too
--
-- Returns {term, holder or "", milliseconds since it was heard of, milliseconds that the lease lasts,
--          announcement or "", then per notice: id, milliseconds that it lasts, worker_id, wish, reason}.
-- May be repeated: it reads.
-- Instants are milliseconds of the server's clock and never leave it; only differences do.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'term', 'holder', 'until', 'heard')
local term, holder, left, age = tonumber(lease[1] or 0), lease[2] or '', 0, 0
if holder ~= '' then
  left, age = tonumber(lease[3]) - now, now - tonumber(lease[4])
end
if left <= 0 then
  holder, left, age = '', 0, 0
end
local told = {term, holder, age, left, redis.call('GET', KEYS[2]) or ''}
if ARGV[1] == '' or ARGV[1] == holder then
  local notices = redis.call('HGETALL', KEYS[3])
  for i = 1, #notices, 2 do
    local ends, worker, wish, reason = string.match(notices[i + 1], '^(%d+) (%S+) (%S+) (.*)$')
    if tonumber(ends) > now then
      for _, field in ipairs({notices[i], tonumber(ends) - now, worker, wish, reason}) do
        told[#told + 1] = field
      end
    end
  end
end
return told
