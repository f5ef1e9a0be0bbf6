-- Take one message and lease it in one step: a worker killed at any moment leaves it in a queue or in the leases.
-- KEYS: lists in the order in which they are looked at. ARGV: now, leases (hash), lease times (sorted set),
-- quarantine (list), then one queue name a key. Returns {queue, message, tag}, or nil when all lists are empty.
for number, key in ipairs(KEYS) do
  -- RPOP first: Redis at its memory limit refuses scripts that begin with a command that may need more.
  local message = redis.call('RPOP', key)
  while message do
    local readable, decoded = pcall(cjson.decode, message)
    local tag = readable and type(decoded) == 'table' and type(decoded.properties) == 'table'
      and decoded.properties.delivery_tag
    if type(tag) == 'string' then
      local queue = ARGV[4 + number]
      redis.call('ZADD', ARGV[3], ARGV[1], tag)
      -- kombu's form of a leased message, with the message as it came: cjson would change [] and large numbers.
      redis.call('HSET', ARGV[2], tag, '[' .. message .. ',"",' .. cjson.encode(queue) .. ']')
      return {queue, message, tag}
    end
    redis.call('LPUSH', ARGV[4], message)
    message = redis.call('RPOP', key)
  end
end
return nil
