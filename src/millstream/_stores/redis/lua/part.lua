-- KEYS and ARGV as join.lua; the value is empty.
local epoch, refusal = generation(KEYS[4], ARGV[3])
if not epoch then
  return refusal
end
local known = before(KEYS[3], ARGV[1], ARGV[2])
if type(known) == 'table' then
  return known
end
if not known then
  local now = clock()
  local field = redis.call('HGET', KEYS[1], ARGV[6])
  local others, mine, value = '', false, ''
  known = ''
  if field then
    local names, kept = string.match(field, '^(%x+) (.*)$')
    value = kept
    for name in string.gmatch(names, string.rep('%x', 12)) do
      if name == ARGV[4] then
        mine = true
      elseif alive(KEYS[5], name, now) then
        others = others .. name
      end
    end
  end
  if mine then
    if others ~= '' then
      redis.call('HSET', KEYS[1], ARGV[6], others .. ' ' .. value)
    else
      known, refusal = append(KEYS[6], KEYS[7], ARGV[9], ARGV[10], ARGV[11], false, tonumber(ARGV[12]), '- - - ' .. ARGV[10] .. ' ' .. ARGV[11])
      if not known then
        return refusal
      end
      redis.call('HDEL', KEYS[1], ARGV[6])
    end
  end
  redis.call('SREM', KEYS[2], #ARGV[5] .. ':' .. ARGV[5] .. ARGV[6])
  remember(KEYS[3], ARGV[1], ARGV[2], known)
end
return {known, epoch}
