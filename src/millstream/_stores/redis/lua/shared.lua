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
  if redis.call('HSET', places, place, number .. ' ' .. gave) == 1 then
    redis.call('PEXPIRE', places, 600000, 'NX')
  end
end

-- Epochs begin with the time when they began, so that of two the later one is known.
local function older(epoch, than)
  return string.sub(epoch, 1, 11) < string.sub(than, 1, 11)
end

local function fresh(chance, after)
  local now = math.floor(clock() / 1000)
  return string.format('%011x', math.max(now, (tonumber(string.sub(after, 1, 11), 16) or 0) + 1)) .. chance
end

-- A run as a worker says it: which run of a server, and the turn of the data that it knows, if it knows any.
local function server_and_turn(run)
  local server, turn = string.match(run or '', '^(.*)%.(%d*)$')
  return server, tonumber(turn) or 0
end

-- Turns are times, too: data that are settled on two servers, neither of which knows of the other, are not the same.
local function next_turn(turn)
  return digits(math.max(turn + 1, math.floor(clock() / 1000)))
end

-- Whether the data that this server has are those that the worker knows, or later ones. Data that others settled later,
-- of an epoch that was given up elsewhere meanwhile, lack what was added there.
local function settled_for(data, known, epoch)
  local here, turn = server_and_turn(data[1])
  local server, needed = server_and_turn(known)
  return here == server and turn >= needed and not older(data[2], epoch)
end

-- Whether this server may take appends: it has the generation of the data, and nobody has yet to bring it what its
-- predecessor had. Gives the generation, or an error.
local function generation(about, run)
  local known = redis.call('HMGET', about, 'epoch', 'run')
  if not known[1] then
    return nil, redis.error_reply('EMPTY store')
  end
  if known[2] ~= run then
    return nil, redis.error_reply('SUCCESSOR server')
  end
  return known[1]
end

-- Append to a stream; gives the offset as digits, or an error. `floor` is the highest offset of this stream that the
-- worker knows of: where the stream is behind it, the stream lost its tail, and goes on with a hole that tells.
local function append(stream, meta, data, ttl, most, seal, floor, about)
  local known = redis.call('HMGET', meta, 'last', 'sealed')
  if known[2] then
    return nil, redis.error_reply('SEALED stream')
  end
  local offset
  if known[1] then
    offset = tonumber(known[1]) + 1
  end
  if not offset or offset <= floor then
    offset = math.max(clock(), floor + 2)
  end
  offset = digits(offset)
  if about == '' then
    redis.call('XADD', stream, 'MAXLEN', '~', most, offset .. '-0', 'd', data)
  else
    -- How it was appended, for those who may have to append it again to another server.
    redis.call('XADD', stream, 'MAXLEN', '~', most, offset .. '-0', 'd', data, 'x', about)
  end
  redis.call('HSET', meta, 'last', offset)
  if seal then
    redis.call('HSET', meta, 'sealed', '1')
  end
  redis.call('PEXPIRE', stream, ttl)
  redis.call('PEXPIRE', meta, ttl)
  return offset
end

-- The room that the streams or values of one kind have: what was written the longest ago goes first. `order` is a sorted
-- set of keys, `sizes` a hash of their bytes, whose field with the empty name has the sum. What has expired is counted
-- until it's the oldest.
local function forget(order, sizes, key)
  local size = redis.call('HGET', sizes, key)
  redis.call('ZREM', order, key)
  redis.call('HDEL', sizes, key)
  if size then
    redis.call('HINCRBY', sizes, '', -tonumber(string.match(size, '^%d+')))
  end
end

local function account(order, sizes, key, known, size, note, ttl, room, most)
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
    redis.call('UNLINK', oldest)
    forget(order, sizes, oldest)
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

-- Count a value to its share, if it fits into the share's room, is a mark, or doesn't grow. `order` has the keys by when
-- they end.
local function fits(order, sizes, key, size, room, mark, ttl)
  local now = clock()
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', digits(now), 'LIMIT', 0, 1000)) do
    forget(order, sizes, each)
  end
  local old = tonumber(redis.call('HGET', sizes, key) or 0)
  local sum = tonumber(redis.call('HGET', sizes, '') or 0)
  if size > old and sum + size - old > room and not mark then
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
  local length = redis.call('XLEN', stream)
  local known = redis.call('HGET', sizes, stream)
  local size = cost + #stream + 600
  if known then
    local bytes, entries = string.match(known, '^(%d+) (%d+)$')
    -- Nothing tells the bytes of what was trimmed away: they count as the average.
    size = (tonumber(bytes) + cost) * math.min(1, length / (tonumber(entries) + 1))
  end
  account(order, sizes, stream, known, math.floor(size), ' ' .. length, ttl, room, streams)
end

-- Whether a worker has its lease. Where nobody has one, nobody could renew it: Redis stood still, or its clock was set.
-- Until somebody does, those who had one to the end go on as if they had it.
local function alive(leases, worker, now)
  local until_ = redis.call('ZSCORE', leases, worker)
  if not until_ then
    return false
  end
  if tonumber(until_) > now then
    return true
  end
  local last = tonumber(redis.call('ZREVRANGE', leases, 0, 0, 'WITHSCORES')[2])
  return last <= now and tonumber(until_) > last - 20000000 -- microseconds: more than three leases
end

-- Where nobody could renew a lease since a time, all that had one to the end have another one. It comes before anybody
-- takes one.
local function outlast(leases, now, lease, since)
  local latest = redis.call('ZREVRANGE', leases, 0, 0, 'WITHSCORES')
  if latest[2] and tonumber(latest[2]) <= now and tonumber(latest[2]) > since then
    for _, worker in ipairs(redis.call('ZRANGEBYSCORE', leases, digits(tonumber(latest[2]) - 2 * lease), '+inf')) do
      redis.call('ZADD', leases, digits(now + lease), worker)
    end
  end
end
