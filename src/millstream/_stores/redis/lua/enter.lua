-- A worker comes, or comes again. Where this server has yet to be brought what it lacks, that comes first.
-- KEYS: generation, leases   ARGV: worker, lease, epoch if there's none, run
-- Gives: time, epoch, run
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[3]) == 1 then
  redis.call('HSET', KEYS[1], 'run', ARGV[4])
end
redis.call('PEXPIRE', KEYS[1], 7776000000)
local now = clock()
local known = redis.call('HMGET', KEYS[1], 'epoch', 'run')
if known[2] == ARGV[4] then
  redis.call('ZADD', KEYS[2], digits(now + tonumber(ARGV[2])), ARGV[1])
  redis.call('PEXPIRE', KEYS[2], 86400000)
end
return {digits(now), known[1], known[2]}
