-- Tell the end of a stream, and publish a text behind everything that was published up to it.
-- KEYS: meta, generation   ARGV: epoch, channel, text   Gives: the last offset or '', epoch
local epoch = epoch_of(KEYS[2], ARGV[1])
local last = redis.call('HGET', KEYS[1], 'last') or ''
redis.call('SPUBLISH', ARGV[2], ARGV[3])
return {last, epoch}
