-- A worker comes, or comes again. Where this server has yet to be brought what it lacks, that comes first.
-- KEYS: generation, leases   ARGV: worker, lease, the end of an epoch if there's none, run, epoch
-- Gives: time, epoch, run, whether the worker takes the data as they are
if redis.call('HSETNX', KEYS[1], 'epoch', fresh(ARGV[3], '')) == 1 then
  local server, turn = server_and_turn(ARGV[4])
  redis.call('HSET', KEYS[1], 'run', server .. '.' .. next_turn(turn))
end
redis.call('PEXPIRE', KEYS[1], 7776000000)
local now = clock()
local known = redis.call('HMGET', KEYS[1], 'run', 'epoch')
local settled = settled_for(known, ARGV[4], ARGV[5])
if settled then
  -- After a longer time it's more likely that all of them are dead, and somebody waits to hear that.
  outlast(KEYS[2], now, tonumber(ARGV[2]), now - tonumber(ARGV[2]))
  redis.call('ZADD', KEYS[2], digits(now + tonumber(ARGV[2])), ARGV[1])
  redis.call('PEXPIRE', KEYS[2], 86400000)
end
return {digits(now), known[2], known[1], settled and 1 or 0}
