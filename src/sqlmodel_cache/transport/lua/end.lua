-- Release the fence of one writer after its COMMIT.
--   KEYS rows, then table shards, of one slot
--   ARGV[1] token   ARGV[2] id, 16 random bytes   ARGV[3] how many of KEYS are rows
-- Replies: 1
-- Atomic because one script runs at a time. A token that is missing (lapsed, evicted, flushed) may have let a reader
-- fill the old row meanwhile: the new version makes such a value, and such a lease, invalid.

for i, key in ipairs(KEYS) do
  local version, pending, dropped = fence(read(key), ARGV[1])
  if dropped ~= 'owner' then version = fresh(ARGV[2] .. i) end
  local resting = i <= tonumber(ARGV[3]) and LEASE_MS or FOREVER_MS
  pending = pending or ''
  put(key, version, pending, pending == '' and resting or FENCE_MS)
end
return 1
