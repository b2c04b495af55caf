-- Gives the lease back, if the worker holds it.
--
-- KEYS[1] lease   hash   term; holder, until, lasts, heard: gone when it was given back
-- ARGV[1] worker_id   ARGV[2] channel of the hints
--
-- Returns 1 if it was given back, 0 if it was not the worker's.
-- May be repeated: then it is not the worker's any more.
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return 0
end
-- Deleting, unlike writing, works on a server that is out of memory.
redis.call('HDEL', KEYS[1], 'holder', 'until', 'lasts', 'heard')
-- pcall: a user without the right to publish gets on without hints.
redis.pcall('PUBLISH', ARGV[2], 'free')
return 1
