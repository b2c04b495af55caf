-- Returns the view, and changes nothing. `heartbeat` ends with this text, so that both return the same.
--
-- KEYS[1] lease          hash    term, and while the lease is held: holder, until, lasts, heard
-- KEYS[2] announcement   string  JSON, opaque here
-- KEYS[3] notices        hash    notice id -> "until worker_id wish reason"
-- ARGV[1] worker_id, or "". Only the holder and "" receive the notices.
--
-- Returns {term, holder or "", milliseconds since the holder's last tick, milliseconds until the lease expires,
--          announcement or "", then per notice: id, milliseconds until it expires, worker_id, wish, reason}.
-- May be repeated: it reads.
-- Instants are milliseconds of the server's clock. The reply has differences only.
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
local reply = {term, holder, age, left, redis.call('GET', KEYS[2]) or ''}
if ARGV[1] == '' or ARGV[1] == holder then
  local notices = redis.call('HGETALL', KEYS[3])
  for i = 1, #notices, 2 do
    local ends, worker, wish, reason = string.match(notices[i + 1], '^(%d+) (%S+) (%S+) (.*)$')
    if tonumber(ends) > now then
      for _, field in ipairs({notices[i], tonumber(ends) - now, worker, wish, reason}) do
        reply[#reply + 1] = field
      end
    end
  end
end
return reply
