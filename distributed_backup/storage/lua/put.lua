-- Makes or replaces a file of a run, unless a newer writer has been here.
--
-- KEYS[1] files    hash   name -> bytes, opaque here
-- ARGV[1] name     ARGV[2] bytes
-- ARGV[3] "1" to refuse if the file is there
-- ARGV[4] "" or a name: refuse if there is a file that sorts after it, or is called so; of those that begin with a digit
--         and end as ARGV[1] does
--
-- Returns 1 if the file was written, 0 if it was refused.
-- May be repeated: what is written again is the same; a file that must be new is then refused, and can be compared.
if ARGV[3] == '1' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  return 0
end
if ARGV[4] ~= '' then
  local ending = string.match(ARGV[1], '%.[^.]*$') or ''
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if name >= ARGV[4] and name < ':' and string.sub(name, -#ending) == ending then  -- ':' is what follows '9'
      return 0
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
