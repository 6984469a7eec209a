-- End a read that waits. KEYS: a stream that only its worker reads
redis.call('XADD', KEYS[1], 'MAXLEN', '1', '*', 'p', '')
redis.call('PEXPIRE', KEYS[1], 600000)
return 1
