-- What the user of the URL may not do, or the server doesn't know, of all that Millstream needs. KEYS: a key
local key, missing = KEYS[1], {}
local needed = {
  {'GET', key}, {'SET', key, '1'}, {'UNLINK', key}, {'PEXPIRE', key, '1'}, {'SCAN', '0'}, {'TIME'},
  {'HGET', key, '1'}, {'HSET', key, '1', '1'}, {'HMGET', key, '1'}, {'HDEL', key, '1'}, {'HINCRBY', key, '1', '1'},
  {'SADD', key, '1'}, {'SREM', key, '1'}, {'SMEMBERS', key},
  {'ZADD', key, '1', '1'}, {'ZREM', key, '1'}, {'ZCARD', key}, {'ZRANGE', key, '0', '1'},
  {'ZRANGEBYSCORE', key, '0', '1'},
  {'XADD', key, '*', '1', '1'}, {'XRANGE', key, '-', '+'},
  {'XREVRANGE', key, '+', '-'}, {'XLEN', key}, {'INFO', 'replication'}, {'PING'},
  {'SPUBLISH', key, ''}, {'SSUBSCRIBE', key}, {'SUNSUBSCRIBE', key},
}
for _, command in ipairs(needed) do
  local known, allowed = pcall(redis.acl_check_cmd, unpack(command))
  if not (known and allowed) then
    missing[#missing + 1] = command[1]
  end
end
return missing
