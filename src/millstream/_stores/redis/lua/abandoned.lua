-- KEYS: leases, vouched by a worker whose lease is over   ARGV: worker, prefix of the groups' keys, at most so many
-- Gives: whether there's more, group, member, value, ...
local now = clock()
if alive(KEYS[1], ARGV[1], now) then
  return {0}
end
local found = {0}
for _, item in ipairs(redis.call('SPOP', KEYS[2], ARGV[3])) do
  local length, rest = string.match(item, '^(%d+):(.*)$')
  local group, member = string.sub(rest, 1, tonumber(length)), string.sub(rest, tonumber(length) + 1)
  local key = ARGV[2] .. group
  local field = redis.call('HGET', key, member)
  if field then
    local names, value = string.match(field, '^(%x+) (.*)$')
    local others, had = '', false
    for name in string.gmatch(names, string.rep('%x', 12)) do
      if name == ARGV[1] then
        had = true
      else
        others = others .. name
      end
    end
    if had and others ~= '' then
      -- Another one vouches, or is dead too: then its own list has this member.
      redis.call('HSET', key, member, others .. ' ' .. value)
    elseif had then
      redis.call('HDEL', key, member)
      found[#found + 1] = group
      found[#found + 1] = member
      found[#found + 1] = value
    end
  end
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  found[1] = 1
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return found
