-- KEYS: one for each slot   ARGV: the worker and the holder of each
for i, key in ipairs(KEYS) do
  redis.call('SREM', key, ARGV[i])
end
return 1
