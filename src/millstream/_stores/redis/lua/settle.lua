-- When does a server that took over have all that anybody can bring it? When each worker that had a lease at the end of
-- its predecessor has said that it brought what it has, or when their time is over.
-- KEYS: generation, leases, repair
-- ARGV: run, worker, what it has to say, lease, patience, the end of a new epoch, its epoch, the turn to which it says it
-- It says 'done', 'differs' where something else is there, or 'hole' and an offset in front of which something is missing.
-- Gives 'wait'; 'again' and a turn, to bring everything and say so to this turn, or what's behind the hole, too, where it
-- has said something to this turn; or 'over', the epoch and the run.
local known = redis.call('HMGET', KEYS[1], 'run', 'epoch')
if not known[2] or settled_for(known, ARGV[1], ARGV[7]) then
  return {'over', known[2] or '', known[1] or ''}
end
local server, turn = server_and_turn(ARGV[1])
local now, lease = clock(), tonumber(ARGV[4])
local begun = redis.call('HMGET', KEYS[3], 'server', 'turn')
if begun[1] ~= server then
  local _, past = server_and_turn(known[1])
  turn = math.max(turn, past)
  redis.call('UNLINK', KEYS[3])
  redis.call('HSET', KEYS[3], 'server', server, 'turn', digits(turn), 'until', digits(now + tonumber(ARGV[5])))
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
elseif turn > tonumber(begun[2]) then
  -- Somebody knows of data that were settled elsewhere since this began: whoever said something before may have gone
  -- there, and have come to know more.
  local said = redis.call('HGETALL', KEYS[3])
  for i = 1, #said, 2 do
    if string.sub(said[i], 1, 1) == 'w' then
      redis.call('HSET', KEYS[3], said[i], '')
    end
  end
  redis.call('HSET', KEYS[3], 'turn', digits(turn), 'until', digits(now + tonumber(ARGV[5])))
else
  turn = tonumber(begun[2])
end
if older(known[2], ARGV[7]) then
  -- The data are of an epoch that was given up already.
  redis.call('HSET', KEYS[3], 'unsure', ARGV[7])
end
local says = ARGV[8] == digits(turn) and ARGV[3] or ''
redis.call('HSET', KEYS[3], 'w' .. ARGV[2], says)
redis.call('ZADD', KEYS[2], digits(now + lease), ARGV[2])
redis.call('PEXPIRE', KEYS[2], 86400000)
if says == '' then
  return {'again', '', digits(turn)}
end

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
    return {'again', '', digits(turn)}
  end
  return {'wait', '', ''}
end
local epoch = known[2]
if late or unsure then
  -- Somebody may have seen what nobody brought: offsets would mean two things.
  epoch = fresh(ARGV[6], unsure or epoch)
end
local run = server .. '.' .. next_turn(turn)
redis.call('HSET', KEYS[1], 'epoch', epoch, 'run', run)
redis.call('UNLINK', KEYS[3])
return {'over', epoch, run}
