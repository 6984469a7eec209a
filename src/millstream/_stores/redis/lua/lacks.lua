-- Whether a stream lacks, behind its beginning, something of what a worker had of it. KEYS: stream   ARGV: offset, data, ...
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
first = first and tonumber(string.match(first[1], '^%d+'))
for i = 1, #ARGV, 2 do
  if first and tonumber(ARGV[i]) >= first then
    local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
    if not entry or entry[2][2] ~= ARGV[i + 1] then
      return 1
    end
  end
end
return 0
