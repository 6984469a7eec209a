-- KEYS: one for each charge
-- ARGV: worker, how many workers are gone, those, and for each charge: p(ace), q(uota) or s(eat), count, microseconds (of
-- the pace, or when the quota ends), cost, most or holder
-- Gives: for each charge: microseconds to wait, what is left, what was taken
local now = clock()
local gone, first = {}, 3 + tonumber(ARGV[2])
for i = 3, first - 1 do
  gone[ARGV[i]] = true
end
local found, charges, refused = {}, {}, false

local function look(kind, key, count, span, cost, more)
  if kind == 'p' then
    local each = span / count
    local whole = math.max(now, tonumber(redis.call('GET', key) or now))
    local room = span - (whole - now)
    local missing = each * math.min(cost, count) - room
    if missing > 1 then
      return math.ceil(missing), room / each, 0, nil
    end
    local amount = math.max(cost, math.min(tonumber(more), math.floor((room + 1) / each)))
    return 0, room / each, amount, function()
      whole = math.max(now, whole + each * amount)
      redis.call('SET', key, digits(whole), 'PX', math.ceil((whole - now) / 1000) + 1)
    end
  elseif kind == 'q' then
    local used = tonumber(redis.call('GET', key) or 0)
    if math.min(cost, count) > count - used + 0.000001 then
      return math.max(1, span - now), count - used, 0, nil
    end
    return 0, count - used, cost, function()
      if span > now then
        redis.call('SET', key, string.format('%.6f', used + cost), 'PXAT', math.ceil(span / 1000))
      end
    end
  end
  local member, held = ARGV[1] .. ' ' .. more, 0
  for _, each in ipairs(redis.call('SMEMBERS', key)) do
    if each == member then
      return 0, 0, 0, function() end
    elseif gone[string.match(each, '^%S+')] then
      redis.call('SREM', key, each)
    else
      held = held + 1
    end
  end
  if held >= count then
    return 1000000, 0, 0, nil
  end
  return 0, count - held, 1, function()
    redis.call('SADD', key, member)
    redis.call('PEXPIRE', key, 86400000)
  end
end

for i = 1, #KEYS do
  local at = first + 5 * (i - 1)
  local wait, room, amount, charge = look(
    ARGV[at], KEYS[i], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4])
  refused = refused or not charge
  charges[#charges + 1] = {wait, room, amount, charge}
end
for _, each in ipairs(charges) do
  local amount = refused and 0 or each[3]
  if not refused then
    each[4]()
  end
  found[#found + 1] = digits(each[1])
  found[#found + 1] = string.format('%.6f', math.max(0, each[2] - amount))
  found[#found + 1] = string.format('%.6f', amount)
end
return found
