-- What is done with, and what is given back. KEYS: leases, ends, queue. ARGV: pairs of how and lease.
-- How: '' is done with; seconds: given out again after these; last: again when all that waits has been.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for number = 1, #ARGV, 2 do
  local delay, lease = ARGV[number], ARGV[number + 1]
  if delay == '' then
    redis.call('HDEL', KEYS[1], lease)
    redis.call('ZREM', KEYS[2], lease)
  -- A lease that is over was swept: the message is in the queue or another's, and stays there.
  elseif redis.call('ZREM', KEYS[2], lease) == 1 then
    if delay ~= 'last' and tonumber(delay) > 0 then
      redis.call('ZADD', KEYS[2], now + delay, lease)
    else
      local message = redis.call('HGET', KEYS[1], lease)
      if message then
        redis.call('HDEL', KEYS[1], lease)
        redis.call(delay == 'last' and 'LPUSH' or 'RPUSH', KEYS[3], message)
      end
    end
  end
end
