-- When does a server that took over have all that anybody can bring it? When each worker that had a lease at the end of
-- its predecessor has said that it brought what it has, or when their time is over.
-- KEYS: generation, leases, repair   ARGV: run, worker, what it has to say, lease, patience, the end of a new epoch, its epoch
-- It says 'done', 'differs' where something else is there, or 'hole' and an offset in front of which something is missing.
-- Gives 'wait', 'again' (to bring what's behind the hole, too), or 'over', the epoch and the run.
local known = redis.call('HMGET', KEYS[1], 'epoch', 'run')
if not known[1] or settled_for(known[2], ARGV[1]) then
  return {'over', known[1] or '', known[2] or ''}
end
local server, turn = server_and_turn(ARGV[1])
local now, lease = clock(), tonumber(ARGV[4])
if redis.call('HGET', KEYS[3], 'server') ~= server then
  redis.call('UNLINK', KEYS[3])
  redis.call('HSET', KEYS[3], 'server', server, 'until', digits(now + tonumber(ARGV[5])))
  local _, past = server_and_turn(known[2])
  redis.call('HSET', KEYS[3], 'turn', past)
  redis.call('PEXPIRE', KEYS[3], 600000)
  -- It's nobody's until then: who has a connection from before comes, too.
  redis.call('HSET', KEYS[1], 'run', '.' .. past)
  local latest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if latest[2] then
    for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], digits(tonumber(latest[2]) - 2 * lease), '+inf')) do
      redis.call('HSET', KEYS[3], 'w' .. worker, '')
      -- It had no chance to renew its lease while there was no server.
      redis.call('ZADD', KEYS[2], 'GT', digits(now + lease), worker)
    end
  else
    redis.call('HSET', KEYS[3], 'unsure', '')
  end
end
if older(known[1], ARGV[7]) then
  -- The data are of an epoch that was given up already.
  redis.call('HSET', KEYS[3], 'unsure', ARGV[7])
end
if turn > tonumber(redis.call('HGET', KEYS[3], 'turn')) then
  redis.call('HSET', KEYS[3], 'turn', turn)
end
redis.call('HSET', KEYS[3], 'w' .. ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[2], digits(now + lease), ARGV[2])
redis.call('PEXPIRE', KEYS[2], 86400000)

local fields = redis.call('HGETALL', KEYS[3])
local pending, lowest, holder, unsure = false, nil, nil, nil
local late = false
for i = 1, #fields, 2 do
  local field, value = fields[i], fields[i + 1]
  if field == 'until' then
    late = now > tonumber(value)
  elseif field == 'unsure' then
    unsure = value
  elseif string.sub(field, 1, 1) == 'w' and value == '' then
    pending = true
  elseif value == 'differs' then
    unsure = unsure or ''
  elseif string.sub(value, 1, 5) == 'hole ' then
    local offset = tonumber(string.sub(value, 6))
    if not lowest or offset < lowest then
      lowest, holder = offset, string.sub(field, 2)
    end
  end
end
if (pending or holder) and not late then
  if not pending and holder == ARGV[2] then
    return {'again', '', ''}
  end
  return {'wait', '', ''}
end
local epoch = known[1]
if late or unsure then
  -- Somebody may have seen what nobody brought: offsets would mean two things.
  epoch = fresh(ARGV[6], unsure or epoch)
end
local run = server .. '.' .. next_turn(tonumber(redis.call('HGET', KEYS[3], 'turn')))
redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', run)
redis.call('UNLINK', KEYS[3])
return {'over', epoch, run}
