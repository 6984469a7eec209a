-- A worker goes. KEYS: leases, inbox, places, vouched   ARGV: worker
redis.call('UNLINK', KEYS[2], KEYS[3])
if redis.call('EXISTS', KEYS[4]) == 1 then
  -- Somebody has to tell that its members are gone.
  redis.call('ZADD', KEYS[1], 'XX', digits(clock()), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
