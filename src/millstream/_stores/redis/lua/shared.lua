-- What several scripts share. Every key of one script is in one slot. Values that came from a peer are only ever
-- arguments, never part of a script.

-- Redis' own clock in microseconds: 16 digits, which a double holds exactly.
local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function digits(number)
  return string.format('%.0f', number)
end

-- What this worker's attempt with this number gave before: a reply whose connection broke must not be made twice. Each
-- worker has so many places as attempts can be under way, and uses a place again after its attempt is settled, with a
-- higher number. So a lower number is a straggler of a connection that broke long ago.
local function before(places, place, number)
  local known = redis.call('HGET', places, place)
  if not known then
    return nil
  end
  local blank = string.find(known, ' ', 1, true)
  local last = tonumber(string.sub(known, 1, blank - 1))
  if last == tonumber(number) then
    return string.sub(known, blank + 1)
  end
  if last > tonumber(number) then
    return redis.error_reply('STALE attempt')
  end
  return nil
end

local function remember(places, place, number, gave)
  if redis.call('HSET', places, place, number .. ' ' .. gave) == 1 then  -- a new place, perhaps the first one
    redis.call('PEXPIRE', places, 600000, 'NX')
  end
end

-- Epochs begin with the time when they began, so that of two the later one is known.
local function older(epoch, than)
  return string.sub(epoch, 1, 11) < string.sub(than, 1, 11)
end

-- The epoch of the data. Another replication id is another primary, or another run of it: the newest entries may be
-- missing, so a new epoch begins. So it does where a worker has seen a later one than the data have.
local function epoch_of(about, seen)
  local run = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
  local known = redis.call('HMGET', about, 'epoch', 'run')
  if known[1] and known[2] == run and not older(known[1], seen) then
    return known[1]
  end
  local last = math.max(tonumber(string.sub(known[1] or '', 1, 11), 16) or 0, tonumber(string.sub(seen, 1, 11), 16) or 0)
  local epoch = string.format('%011x', math.max(math.floor(clock() / 1000), last + 1)) .. string.sub(run, 1, 4)
  redis.call('HSET', about, 'epoch', epoch, 'run', run)
  redis.call('PEXPIRE', about, 7776000000)
  return epoch
end

-- The room that the streams or values of one kind have: what was written the longest ago goes first. `order` is a sorted
-- set of keys, `sizes` a hash of their bytes, whose field with the empty name has the sum. What has expired is counted
-- until it's the oldest. `wider_order` and `wider_sizes` count the same keys among others.
local function forget(order, sizes, key)
  local size = redis.call('HGET', sizes, key)
  redis.call('ZREM', order, key)
  redis.call('HDEL', sizes, key)
  if size then
    redis.call('HINCRBY', sizes, '', -tonumber(string.match(size, '^%d+')))
  end
end

local function account(order, sizes, key, known, size, note, ttl, room, most, wider_order, wider_sizes)
  local old = 0
  if known then
    old = tonumber(string.match(known, '^%d+'))
  end
  local now = clock()
  redis.call('ZADD', order, digits(now), key)
  redis.call('HSET', sizes, key, digits(size) .. note)
  local sum = redis.call('HINCRBY', sizes, '', digits(size - old))
  local turns = 0
  while (sum > room or (not known and redis.call('ZCARD', order) > most)) and turns < 100 do
    local oldest = redis.call('ZRANGE', order, 0, 0)[1]
    if oldest == key then
      break
    end
    -- With the metadata if it's a stream: see keys.py.
    redis.call('UNLINK', oldest, (string.gsub(oldest, '^([^{]*{j0}:)l:', '%1n:')))
    forget(order, sizes, oldest)
    if wider_order then
      forget(wider_order, wider_sizes, oldest)
    end
    sum = tonumber(redis.call('HGET', sizes, ''))
    turns = turns + 1
  end
  if not known or now % 32 == 0 then
    -- They live on as long as the last of what they count, and some more, because this isn't said every time.
    local longer = digits(tonumber(ttl) * 2 + 60000)
    for _, each in ipairs({order, sizes}) do
      redis.call('PEXPIRE', each, longer, 'GT')
      redis.call('PEXPIRE', each, longer, 'NX')
    end
  end
end

-- Count a value to its share, if it fits into the share's room or doesn't grow. `order` has the keys by when
-- they end.
local function fits(order, sizes, key, size, room, ttl)
  local now = clock()
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', digits(now), 'LIMIT', 0, 1000)) do
    forget(order, sizes, each)
  end
  local old = tonumber(redis.call('HGET', sizes, key) or 0)
  local sum = tonumber(redis.call('HGET', sizes, '') or 0)
  if size > old and sum + size - old > room then
    return false
  end
  redis.call('ZADD', order, digits(now + tonumber(ttl) * 1000), key)
  redis.call('HSET', sizes, key, digits(size))
  redis.call('HINCRBY', sizes, '', digits(size - old))
  local longer = digits(tonumber(ttl) + 60000)
  for _, each in ipairs({order, sizes}) do
    redis.call('PEXPIRE', each, longer, 'GT')
    redis.call('PEXPIRE', each, longer, 'NX')
  end
  return true
end

-- How many entries a stream may have so that it takes at most three quarters of a room: the rest is for others of its
-- kind. `known` has its bytes and entries.
local function entries_in(known, room, most)
  local bytes, entries = string.match(known or '', '^(%d+) (%d+)$')
  if bytes and room > 0 and tonumber(bytes) > room * 3 / 4 then
    return math.max(1, math.min(tonumber(most), math.floor(tonumber(entries) * room * 3 / 4 / tonumber(bytes))))
  end
  return most
end

-- The bytes and entries of a stream that has had so many. Nothing tells the bytes of what was trimmed away: they count as
-- the average. Redis reserves 4 KiB for the first entries of a stream.
local function kept(stream, bytes, entries)
  local length = redis.call('XLEN', stream)
  return math.max(#stream + 5000, math.floor(bytes * math.min(1, length / entries))), length
end

-- Keep an entry in an index too. What alone is larger than the room is left out.
local function index(stream, order, sizes, offset, data, ttl, most, room, streams)
  local cost = #data + 200
  if cost + #stream + 600 > room then
    return
  end
  local added = redis.pcall('XADD', stream, 'MAXLEN', '~', most, offset .. '-0', 'd', data)
  if type(added) == 'table' and added.err then
    -- The first stream began anew behind this one: what the index has is of a time before.
    redis.call('UNLINK', stream)
    redis.call('XADD', stream, 'MAXLEN', '~', most, offset .. '-0', 'd', data)
  end
  redis.call('PEXPIRE', stream, ttl)
  local known = redis.call('HGET', sizes, stream)
  local bytes, entries = string.match(known or '', '^(%d+) (%d+)$')
  local size, length = kept(stream, (bytes or #stream + 600) + cost, (entries or 0) + 1)
  account(order, sizes, stream, known, size, ' ' .. length, ttl, room, streams)
end
