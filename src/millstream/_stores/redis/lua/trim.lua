-- Forget a stream. KEYS: stream, meta
return redis.call('UNLINK', KEYS[1], KEYS[2])
