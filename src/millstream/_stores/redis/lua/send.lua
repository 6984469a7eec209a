-- To one worker. KEYS: leases, inbox, places, generation   ARGV: place, number, worker, topic, data, run
local epoch, refusal = generation(KEYS[4], ARGV[6])
if not epoch then
  return refusal
end
local known = before(KEYS[3], ARGV[1], ARGV[2])
if known then
  return known
end
if not alive(KEYS[1], ARGV[3], clock()) then
  return '0'
end
if redis.call('XLEN', KEYS[2]) >= 10000 then
  -- It has a lease and doesn't read. What it can't be given isn't dropped in silence.
  return redis.error_reply('CLOGGED inbox')
end
redis.call('XADD', KEYS[2], '1-*', 't', ARGV[4], 'd', ARGV[5])
redis.call('PEXPIRE', KEYS[2], 600000)
remember(KEYS[3], ARGV[1], ARGV[2], '1')
return '1'
