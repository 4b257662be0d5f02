-- Release the fence of one writer after its COMMIT.
--   KEYS rows, then table shards, of one slot
--   ARGV[1] token   ARGV[2] id, 16 random bytes   ARGV[3] how many of KEYS are rows
-- Replies: 1
-- Atomic because one script runs at a time. A token that is missing (lapsed, evicted, flushed, forgotten by a server
-- that was restored or promoted) may have let a reader fill the old row meanwhile: the new version makes such a value,
-- and such a lease, invalid.

for i, key in ipairs(KEYS) do
  local is_row = i <= tonumber(ARGV[3])
  local server, version, pending, dropped
  if is_row then
    version, pending, dropped = fence(read(key), ARGV[1])
  else
    server, version, pending, dropped = shard(read(key), ARGV[1])
  end
  if dropped ~= 'owner' then version = fresh(ARGV[2] .. i) end
  pending = pending or ''
  if is_row then
    put(key, version, pending, pending == '' and LEASE_MS or FENCE_MS)
  else
    put_shard(key, server or NOBODY, version, pending, pending == '' and FOREVER_MS or FENCE_MS)
  end
end
return 1
