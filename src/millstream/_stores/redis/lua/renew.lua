-- A worker uses the store. KEYS: generation, places   ARGV: epoch   Gives: time, epoch
local epoch = epoch_of(KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], 7776000000)
redis.call('PEXPIRE', KEYS[2], 600000)
return {digits(clock()), epoch}
