-- Fence every key before a COMMIT: a new version, and a pending token.
--   KEYS rows and table shards of one slot
--   ARGV[1] token, 16 random bytes   ARGV[2] fence ttl in ms, from now
-- Replies: 1
-- Atomic because one script runs at a time; the tokens of other writers stay.

local pending = ARGV[1] .. struct.pack('>d', now + tonumber(ARGV[2]))
for i, key in ipairs(KEYS) do
  local _, others = fence(read(key), ARGV[1])
  put(key, fresh(ARGV[1] .. i), (others or '') .. pending, math.max(FENCE_MS, 2 * tonumber(ARGV[2])))
end
return 1
