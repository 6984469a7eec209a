-- KEYS: group, leases   Gives: member, value, ...
local now = clock()
local fields = redis.call('HGETALL', KEYS[1])
local known, found = {}, {}
for i = 1, #fields, 2 do
  local names, value = string.match(fields[i + 1], '^(%x+) (.*)$')
  for name in string.gmatch(names, string.rep('%x', 12)) do
    if known[name] == nil then
      known[name] = alive(KEYS[2], name, now) and true or false
    end
    if known[name] then
      found[#found + 1] = fields[i]
      found[#found + 1] = value
      break
    end
  end
end
return found
