-- What this server lacks of a stream, from the memory of a worker that had it from the server before.
-- KEYS: generation, stream, meta
-- ARGV: run, epoch, the offset in front of which a hole may stay, start of the hub's keys, offset, about, data, ...
-- 'about' is how the entry was appended: worker place number ttl most[ index ttl most room streams name], or the same
-- with '-' for worker, place and number.
-- Gives 'done' and where the stream ends now, which is empty where all that it has must be compared; 'differs' where it
-- has something else at an offset, and where it ends; 'over'; or 'hole' and the offset in front of which something is
-- missing.
local known = redis.call('HMGET', KEYS[1], 'run', 'epoch')
if settled_for(known, ARGV[1], ARGV[2]) or older(ARGV[2], known[2]) then
  return {'over', ''}
end
local _, turn = server_and_turn(known[1])
local _, needed = server_and_turn(ARGV[1])
local compared = turn < needed or older(known[2], ARGV[2])
local hub, told = ARGV[4], 'done'
local last = redis.call('HGET', KEYS[3], 'last')
last = last and tonumber(last)
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
first = first and tonumber(string.match(first[1], '^%d+'))

local function put(offset, about, data)
  local worker, place, number, ttl, most, rest = string.match(about, '^(%S+) (%S+) (%S+) (%d+) (%d+) ?(.*)$')
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', most, offset .. '-0', 'd', data, 'x', about)
  redis.call('HSET', KEYS[3], 'last', offset)
  redis.call('PEXPIRE', KEYS[2], ttl)
  redis.call('PEXPIRE', KEYS[3], ttl)
  last = tonumber(offset)
  if rest ~= '' then
    local keep, count, room, streams, name = string.match(rest, '^(%d+) (%d+) (%d+) (%d+) (.*)$')
    local kind = string.match(name, '^([^:]*):') or name
    index(hub .. 'l:' .. name, hub .. 'o:' .. kind, hub .. 's:' .. kind, offset, data, keep, count, tonumber(room),
      tonumber(streams))
  end
  if place ~= '-' then
    remember(hub .. 'd:' .. worker, place, number, offset)
  end
end

-- Whether an attempt left its entry here already, perhaps at another offset: a reply may have been lost, and the attempt
-- made again elsewhere. Gives nil where nothing tells.
local attempts
local function is_here(about)
  local worker, place, number = string.match(about, '^(%x+) (%d+) (%d+)')
  if not worker then
    return nil
  end
  local known = redis.call('HGET', hub .. 'd:' .. worker, place)
  local latest = known and tonumber(string.match(known, '^%d+')) or 0
  if latest <= tonumber(number) then
    return latest == tonumber(number)
  end
  -- The place was used again: the entries themselves tell.
  if not attempts then
    attempts = {}
    for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
      attempts[string.match(entry[2][4] or '', '^%x+ %d+ %d+') or ''] = true
    end
  end
  return attempts[worker .. ' ' .. place .. ' ' .. number] or false
end

for i = 5, #ARGV, 3 do
  local offset, about, data = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  if not last or offset > last then
    if compared and is_here(about) then
      told = 'differs'
    else
      -- Another worker may have what belongs there, and behind it: one hole at a time. One that stays is seen by the
      -- offsets. Where all have come, what's missing was never given out.
      if (not last or offset > last + 1) and ARGV[3] ~= ARGV[i] then
        return {'hole', ARGV[i]}
      end
      put(ARGV[i], about, data)
    end
  elseif compared and first and offset >= first then
    -- This server had been given up and comes back, and somebody may have gone on with it meanwhile. What it has instead
    -- stays, and what it lacks comes behind that.
    local entry = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
    if not entry or entry[2][2] ~= data then
      told = 'differs'
      if is_here(about) == false then
        put(digits(last + 1), about, data)
      end
    end
  end
end
return {told, last and (not compared or ARGV[5]) and digits(last) or ''}
