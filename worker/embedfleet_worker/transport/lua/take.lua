-- Take messages and lease them in one step: a worker killed at any moment leaves each in a queue or in the leases.
-- KEYS: leases (hash), ends (sorted set), then the lists, first to last. ARGV: how many, seconds, names' first part.
-- Returns message, lease, message, lease …
local time = redis.call('TIME')
local ends = time[1] + time[2] / 1000000 + ARGV[2]
local taken = {}
for list = 3, #KEYS do
  while #taken < 2 * ARGV[1] do
    -- First of all the writes: Redis at its memory limit refuses scripts that begin with one that may need more.
    local message = redis.call('RPOP', KEYS[list])
    if not message then
      break
    end
    local lease = ARGV[3] .. #taken
    redis.call('HSET', KEYS[1], lease, message)
    redis.call('ZADD', KEYS[2], ends, lease)
    taken[#taken + 1] = message
    taken[#taken + 1] = lease
  end
end
return taken
