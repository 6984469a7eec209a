-- A worker hears what is appended to a stream outside the hub's slot. KEYS: followers   ARGV: worker, ttl
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
