-- Let leases last from now on. KEYS: ends. ARGV: seconds, leases. What is over and swept, or done, stays so.
-- ZREM first: Redis at its memory limit refuses scripts that begin with a command that may need more.
local time = redis.call('TIME')
local ends = time[1] + time[2] / 1000000 + ARGV[1]
for number = 2, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[number]) == 1 then
    redis.call('ZADD', KEYS[1], ends, ARGV[number])
  end
end
