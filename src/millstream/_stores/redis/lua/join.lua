-- KEYS: group, vouched, places, generation, leases, stream, meta
-- ARGV: place, number, run, worker, group's name, member, value, ttl of the group, data, ttl, most, floor
-- Without data nothing is told. Gives the offset of what
-- was told or '', the epoch, and the value that stands.
-- A member's field: the names of its workers, 12 digits each, a blank, and its value.
local epoch, refusal = generation(KEYS[4], ARGV[3])
if not epoch then
  return refusal
end
local known = before(KEYS[3], ARGV[1], ARGV[2])
if type(known) == 'table' then
  return known
end
local field = redis.call('HGET', KEYS[1], ARGV[6])
local value = field and string.match(field, '^%x+ (.*)$') or ARGV[7]
if not known then
  local now = clock()
  local workers = ARGV[4]
  known = ''
  if field then
    -- Also where only dead workers vouched: nobody was told that the member left.
    for name in string.gmatch(string.match(field, '^%x+'), string.rep('%x', 12)) do
      if name ~= ARGV[4] and alive(KEYS[5], name, now) then
        workers = workers .. name
      end
    end
  elseif ARGV[9] ~= '' then
    known, refusal = append(KEYS[6], KEYS[7], ARGV[9], ARGV[10], ARGV[11], false, tonumber(ARGV[12]), '- - - ' .. ARGV[10] .. ' ' .. ARGV[11])
    if not known then
      return refusal
    end
  end
  redis.call('HSET', KEYS[1], ARGV[6], workers .. ' ' .. value)
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  redis.call('SADD', KEYS[2], #ARGV[5] .. ':' .. ARGV[5] .. ARGV[6])
  redis.call('PEXPIRE', KEYS[2], 86400000)
  remember(KEYS[3], ARGV[1], ARGV[2], known)
end
return {known, epoch, value}
