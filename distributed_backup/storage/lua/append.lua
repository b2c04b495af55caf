-- Writes bytes behind the first bytes of a file, and removes those that stood there.
--
-- KEYS[1] files     hash     file name -> bytes, or the mark of a file whose bytes are in a key of its own
-- KEYS[2] content   string   the bytes of the file
-- ARGV[1] name of the file   ARGV[2] its mark   ARGV[3] number of bytes that stay, 0 creates the file
-- ARGV[4] the bytes to write
--
-- Returns how many of the bytes that stay are there, -1 if the file is missing. Writes only if all of them are.
-- May be repeated: the bytes that the first call wrote are replaced by the same.
local at = tonumber(ARGV[3])
if at == 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('SET', KEYS[2], ARGV[4])
  return 0
end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return -1
end
local length = redis.call('STRLEN', KEYS[2])
if length < at then
  return length
end
redis.call('SETRANGE', KEYS[2], at, ARGV[4])
if length > at + #ARGV[4] then
  redis.call('SET', KEYS[2], redis.call('GETRANGE', KEYS[2], 0, at + #ARGV[4] - 1))
end
return at
