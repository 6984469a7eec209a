-- Change a value. KEYS: key[, order, sizes[, order, sizes]]
-- ARGV: compare, expected, present, value, ttl, lossy, room, shared, room of the kind
-- 'compare' is 'any', 'absent' or 'equal'. Without 'present' the value is deleted. With 'shared', order and sizes are
-- those of the value's share: it refuses what doesn't fit into its room. Of a lossy value, it drops the oldest instead.
-- The second order and sizes are those of the kind.
local lossy = ARGV[6] == '1'
if ARGV[1] ~= 'any' then
  local value = redis.call('GET', KEYS[1])
  if (ARGV[1] == 'absent' and value) or (ARGV[1] == 'equal' and value ~= ARGV[2]) then
    return 0
  end
end
if ARGV[3] ~= '1' then
  for i = 2, #KEYS, 2 do
    forget(KEYS[i], KEYS[i + 1], KEYS[1])
  end
  local gone = redis.call('UNLINK', KEYS[1])
  return ARGV[1] == 'any' and gone or 1
end
local room = tonumber(ARGV[7])
local size = #KEYS[1] + #ARGV[4] + 200
if lossy and size > room then
  return redis.error_reply('TOOLARGE value')
end
if ARGV[8] == '1' and not lossy and not fits(KEYS[2], KEYS[3], KEYS[1], size, room, ARGV[5]) then
  return redis.error_reply('SHAREFULL value')
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
for i = 2, lossy and #KEYS or 0, 2 do
  local known = redis.call('HGET', KEYS[i + 1], KEYS[1])
  account(KEYS[i], KEYS[i + 1], KEYS[1], known, size, '', ARGV[5], room, 1000000, KEYS[i + 2], KEYS[i + 3])
  room = tonumber(ARGV[9])
end
return 1
