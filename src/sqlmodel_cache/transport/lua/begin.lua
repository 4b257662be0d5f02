-- Fence every key before a COMMIT: a new version, and a pending token.
--   KEYS rows, then table shards, of one slot
--   ARGV[1] token, 16 random bytes   ARGV[2] fence ttl in ms, from now   ARGV[3] how many of KEYS are rows
-- Replies: 1
-- Atomic because one script runs at a time; the tokens of other writers stay.

local mine = ARGV[1] .. struct.pack('>d', now + tonumber(ARGV[2]))
local px = math.max(FENCE_MS, 2 * tonumber(ARGV[2]))
for i, key in ipairs(KEYS) do
  local version = fresh(ARGV[1] .. i)
  if i <= tonumber(ARGV[3]) then
    local _, others = fence(read(key), ARGV[1])
    put(key, version, (others or '') .. mine, px)
  else
    local server, _, others = shard(read(key), ARGV[1])
    put_shard(key, server or NOBODY, version, (others or '') .. mine, px)
  end
end
return 1
