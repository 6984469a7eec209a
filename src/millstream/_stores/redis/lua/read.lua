-- KEYS: stream, meta, generation   ARGV: after or '', its epoch, limit, bytes, 'newest' or '', epoch
-- Gives: epoch, {oldest, newest} where it can't go on from there, else {}, entries (id, data, ...)
local epoch = epoch_of(KEYS[3], ARGV[6])
local limit, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local newest = ARGV[5] == 'newest'
local found = {}
local from = newest and '+' or '-'
if ARGV[1] ~= '' then
  from = '(' .. ARGV[1] .. '-0'
end

-- Pages that grow, so that large entries aren't read only to be left out.
local page = 8
while limit > 0 and bytes > 0 do
  local entries
  if newest then
    entries = redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', math.min(page, limit))
  else
    entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', math.min(page, limit))
  end
  for _, entry in ipairs(entries) do
    if bytes > 0 then
      found[#found + 1] = string.sub(entry[1], 1, -3)
      found[#found + 1] = entry[2][2]
      bytes = bytes - #entry[2][2]
      limit = limit - 1
      from = '(' .. entry[1]
    end
  end
  if #entries < page then
    break
  end
  page = math.min(page * 2, 256)
end

if ARGV[1] == '' then
  return {epoch, {}, found}
end
local after, same = tonumber(ARGV[1]), ARGV[2] == epoch
if same and found[1] and tonumber(found[1]) == after + 1 then
  return {epoch, {}, found}
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then
  return {epoch, {'', ''}, {}}
end
local oldest = string.sub(first[1], 1, -3)
local last = redis.call('HGET', KEYS[2], 'last')
if not last then
  last = string.sub(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1], 1, -3)
end
if not same or after < tonumber(oldest) - 1 or after > tonumber(last) then
  return {epoch, {oldest, last}, {}}
end
return {epoch, {}, found}
