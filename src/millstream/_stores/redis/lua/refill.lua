-- What this server lacks of a stream, from the memory of a worker that had it from the server before.
-- KEYS: generation, stream, meta   ARGV: run, the offset in front of which a hole may stay, start of the hub's keys, offset, about, data, ...
-- 'about' is how the entry was appended: worker place number ttl most[ index ttl most room streams name], or the same
-- with '-' for worker, place and number. Gives 'over', 'done', or the offset in front of which something is missing.
if redis.call('HGET', KEYS[1], 'run') == ARGV[1] then
  return 'over'
end
local hub = ARGV[3]
local last = redis.call('HGET', KEYS[3], 'last')
last = last and tonumber(last)
for i = 4, #ARGV, 3 do
  local offset, data = tonumber(ARGV[i]), ARGV[i + 2]
  if not last or offset > last then
    -- Another worker may have what belongs there, and behind it: one hole at a time. One that stays is seen by the offsets. Where all have come, what's missing was never given out.
    if (not last or offset > last + 1) and ARGV[2] ~= ARGV[i] then
      return ARGV[i]
    end
    local worker, place, number, ttl, most, rest =
      string.match(ARGV[i + 1], '^(%S+) (%S+) (%S+) (%d+) (%d+) ?(.*)$')
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', most, ARGV[i] .. '-0', 'd', data, 'x', ARGV[i + 1])
    redis.call('HSET', KEYS[3], 'last', ARGV[i])
    redis.call('PEXPIRE', KEYS[2], ttl)
    redis.call('PEXPIRE', KEYS[3], ttl)
    last = offset
    if rest ~= '' then
      local keep, count, room, streams, name = string.match(rest, '^(%d+) (%d+) (%d+) (%d+) (.*)$')
      local kind = string.match(name, '^([^:]*):') or name
      index(hub .. 'l:' .. name, hub .. 'o:' .. kind, hub .. 's:' .. kind, ARGV[i], data, keep, count, tonumber(room),
        tonumber(streams))
    end
    if place ~= '-' then
      remember(hub .. 'd:' .. worker, place, number, ARGV[i])
    end
  end
end
return 'done'
