-- Releases the lease, if the worker holds it.
--
-- KEYS[1] lease   hash   term, and while the lease is held: holder, until, lasts, heard
-- ARGV[1] worker_id   ARGV[2] channel of the hints
--
-- Returns 1 if it was released, 0 if the worker does not hold it.
-- May be repeated: the second call finds that the worker does not hold it.
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return 0
end
-- Deleting, unlike writing, works on a server that is out of memory.
redis.call('HDEL', KEYS[1], 'holder', 'until', 'lasts', 'heard')
-- pcall: a user without the right to publish has no hints, and all else works.
redis.pcall('PUBLISH', ARGV[2], 'free')
return 1
