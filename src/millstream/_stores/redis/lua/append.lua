-- KEYS: stream, meta, places, generation[, index, order, sizes]
-- ARGV: place, number, epoch, data, ttl, most, seal[, index ttl, most, room, streams]   Gives: offset, epoch
local epoch = epoch_of(KEYS[4], ARGV[3])
local known = before(KEYS[3], ARGV[1], ARGV[2])
if type(known) == 'table' then
  return known
end
if not known then
  local meta = redis.call('HMGET', KEYS[2], 'last', 'sealed', 'epoch')
  if meta[2] then
    return redis.error_reply('SEALED stream')
  end
  -- In each epoch, a stream begins at a time: offsets that were lost, or that it had before it was dropped, are lower.
  local next = (tonumber(meta[1]) or 0) + 1
  known = digits(meta[3] == epoch and next or math.max(next, clock()))
  -- Those who read along take the epoch from the entry.
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[6], known .. '-0', 'd', ARGV[4], 'e', epoch)
  redis.call('HSET', KEYS[2], 'last', known, 'epoch', epoch)
  if ARGV[7] == '1' then
    redis.call('HSET', KEYS[2], 'sealed', '1')
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  if KEYS[5] then
    index(KEYS[5], KEYS[6], KEYS[7], known, ARGV[4], ARGV[8], ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11]))
  end
  remember(KEYS[3], ARGV[1], ARGV[2], known)
end
return {known, epoch}
