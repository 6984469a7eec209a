-- KEYS: stream, meta, places, followers or generation[, index, order, sizes]
-- ARGV: place, number, epoch, run, data, ttl, most, seal, floor, about[, index ttl, most, room, streams]
local epoch, refusal = ARGV[3], nil
local followers = {}
if ARGV[4] ~= '' then
  epoch, refusal = generation(KEYS[4], ARGV[4])
  if not epoch then
    return refusal
  end
end
local known = before(KEYS[3], ARGV[1], ARGV[2])
if type(known) == 'table' then
  return known
end
if not known then
  known, refusal = append(KEYS[1], KEYS[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1', tonumber(ARGV[9]), ARGV[10])
  if not known then
    return refusal
  end
  if KEYS[5] then
    index(KEYS[5], KEYS[6], KEYS[7], known, ARGV[5], ARGV[11], ARGV[12], tonumber(ARGV[13]), tonumber(ARGV[14]))
  end
  remember(KEYS[3], ARGV[1], ARGV[2], known)
end
if ARGV[4] == '' then
  -- A stream outside the hub's slot keeps the generation in which it began.
  redis.call('HSETNX', KEYS[2], 'epoch', epoch)
  epoch = redis.call('HGET', KEYS[2], 'epoch')
  followers = redis.call('SMEMBERS', KEYS[4])
end
return {known, epoch, followers}
