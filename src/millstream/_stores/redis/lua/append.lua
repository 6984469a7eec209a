-- KEYS: stream, meta, places, generation, order and sizes of the owner, order and sizes of the kind, then for each entry:
-- [index, order, sizes] [once]. Without an owner, those of the kind come twice.
-- ARGV: place, number, epoch, ttl, most, seal, room of indexes, streams, channel, room of the kind or 0 (not counted), then for
-- each entry: data, index ttl or '', index most, once ttl or '', topic
-- Gives: the offsets, separated by blanks, where 0 is an entry that repeats another, and the epoch
local epoch = epoch_of(KEYS[4], ARGV[3])
local known = before(KEYS[3], ARGV[1], ARGV[2])
if type(known) == 'table' then
  return known
end
if not known then
  local meta = redis.call('HMGET', KEYS[2], 'last', 'sealed', 'epoch', 'size')
  if meta[2] then
    return redis.error_reply('SEALED stream')
  end
  local last, offsets, indexes, key = tonumber(meta[1]) or 0, {}, {}, 9
  local room, cost = tonumber(ARGV[10]), 0
  local share = KEYS[5] == KEYS[7] and room or room / 2
  local most = entries_in(meta[4], share, ARGV[5])
  -- In each epoch, a stream begins at a time: offsets that were lost, or that it had before it was dropped, are lower.
  if meta[3] ~= epoch then
    last = math.max(last, clock() - 1)
  end
  local first = last
  for at = 11, #ARGV, 5 do
    local index_key, offset = key, '0'
    if ARGV[at + 1] ~= '' then
      key = key + 3
    end
    local new = true
    if ARGV[at + 3] ~= '' then
      new = redis.call('SET', KEYS[key], '', 'NX', 'PX', ARGV[at + 3])
      key = key + 1
    end
    if new then
      last = last + 1
      offset = digits(last)
      redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, offset .. '-0', 'd', ARGV[at])
      cost = cost + #ARGV[at] + 200
      local message, topic = epoch .. ' ' .. offset .. ' ' .. ARGV[at], ARGV[at + 4]
      redis.call('SPUBLISH', ARGV[9], message)
      if topic ~= '' then
        redis.call('SPUBLISH', ARGV[9] .. '\0' .. string.match(topic, '^[^.]*') .. '.', message)
        redis.call('SPUBLISH', ARGV[9] .. '\0' .. topic, message)
      end
      if ARGV[at + 1] ~= '' then
        indexes[#indexes + 1] = {index_key, offset, at}
      end
    end
    offsets[#offsets + 1] = offset
  end
  if last > first then
    local before, entries = string.match(meta[4] or '', '^(%d+) (%d+)$')
    local size, length = (tonumber(before) or #KEYS[1] + 600) + cost, (tonumber(entries) or 0) + last - first
    -- Not each time, because that costs as much as the rest.
    local step = room / 16384
    if room > 0 and (not before or ARGV[6] == '1' or math.floor(before / step) ~= math.floor(size / step)) then
      size, length = kept(KEYS[1], size, length)
      for i = share < room and 5 or 7, 7, 2 do
        account(KEYS[i], KEYS[i + 1], KEYS[1], redis.call('HGET', KEYS[i + 1], KEYS[1]), size, '', ARGV[4],
          i == 7 and room or share, 1000000, KEYS[12 - i], KEYS[13 - i])
      end
    end
    redis.call('HSET', KEYS[2], 'last', digits(last), 'epoch', epoch, 'size', digits(size) .. ' ' .. length)
    if ARGV[6] == '1' then
      redis.call('HSET', KEYS[2], 'sealed', '1')
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
  end
  for _, each in ipairs(indexes) do
    local at, to = each[3], each[1]
    index(KEYS[to], KEYS[to + 1], KEYS[to + 2], each[2], ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[7]),
      tonumber(ARGV[8]))
  end
  known = table.concat(offsets, ' ')
  remember(KEYS[3], ARGV[1], ARGV[2], known)
end
return {known, epoch}
