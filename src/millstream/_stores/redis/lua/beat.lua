-- A worker lives. KEYS: generation, leases, inbox, places, vouched   ARGV: worker, lease, what it has read of its inbox, run
-- Gives: time, epoch, run, workers (those with a lease, itself only if it kept its own), when the first of these ends
local now = clock()
local known = redis.call('HMGET', KEYS[1], 'epoch', 'run')
local latest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local lease = tonumber(ARGV[2])
if known[2] == ARGV[4] and latest[2] and tonumber(latest[2]) > now + 2 * lease then
  -- Nobody takes so long a lease: Redis' clock was set back. Who lives renews it, and who is dead has it no longer.
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], digits(now + 2 * lease), '+inf')) do
    redis.call('ZADD', KEYS[2], digits(now + lease), worker)
  end
end
if known[2] == ARGV[4] then
  outlast(KEYS[2], now, lease, 0)
end
if known[2] == ARGV[4] and alive(KEYS[2], ARGV[1], now) then
  redis.call('ZADD', KEYS[2], digits(now + tonumber(ARGV[2])), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 7776000000)
  redis.call('PEXPIRE', KEYS[2], 86400000)
  redis.call('PEXPIRE', KEYS[4], 600000)
  redis.call('PEXPIRE', KEYS[5], 86400000)
  -- The probe: it must come back through the connection that reads.
  redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3])
  redis.call('XADD', KEYS[3], '1-*', 'p', digits(now))
  redis.call('PEXPIRE', KEYS[3], 600000)
end
-- What those had whom nobody missed for a day has expired.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', digits(now - 86400000000))
local living = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. digits(now), '+inf')
local first = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. digits(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {digits(now), known[1] or '', known[2] or '', living, first[2] and digits(tonumber(first[2])) or ''}
