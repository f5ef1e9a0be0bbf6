-- Give out again what has a lease that is over. KEYS: leases, ends and queue of each lane. Returns how many.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local count = 0
for lane = 1, #KEYS, 3 do
  local over = redis.call('ZRANGEBYSCORE', KEYS[lane + 1], '-inf', now, 'LIMIT', 0, 100)
  for number = #over, 1, -1 do -- the oldest is pushed last and taken first
    redis.call('ZREM', KEYS[lane + 1], over[number])
    local message = redis.call('HGET', KEYS[lane], over[number])
    if message then
      redis.call('HDEL', KEYS[lane], over[number])
      redis.call('RPUSH', KEYS[lane + 2], message)
    end
    count = count + 1
  end
end
return count
