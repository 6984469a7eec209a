-- Change a value. KEYS: key[, order, sizes]   ARGV: compare, expected, present, value, ttl, lossy, room, mark
-- 'compare' is 'any', 'absent' or 'equal'. Without 'present' the value is deleted. With 'mark', order and sizes are those
-- of the value's share: it refuses what doesn't fit into its room and is larger than a mark.
local lossy = ARGV[6] == '1'
if ARGV[1] ~= 'any' then
  local value = redis.call('GET', KEYS[1])
  if (ARGV[1] == 'absent' and value) or (ARGV[1] == 'equal' and value ~= ARGV[2]) then
    return 0
  end
end
if ARGV[3] ~= '1' then
  if KEYS[2] then
    forget(KEYS[2], KEYS[3], KEYS[1])
  end
  local gone = redis.call('UNLINK', KEYS[1])
  return ARGV[1] == 'any' and gone or 1
end
local room = tonumber(ARGV[7])
local size = #KEYS[1] + #ARGV[4] + 200
if lossy and size > room then
  return redis.error_reply('TOOLARGE value')
end
if ARGV[8] ~= '' and not fits(KEYS[2], KEYS[3], KEYS[1], size, room, #ARGV[4] <= tonumber(ARGV[8]), ARGV[5]) then
  return redis.error_reply('SHAREFULL value')
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
if lossy then
  account(KEYS[2], KEYS[3], KEYS[1], redis.call('HGET', KEYS[3], KEYS[1]), size, '', ARGV[5], room, 1000000)
end
return 1
