-- Permission to fill a row, or its value.
--   KEYS[1] row   KEYS[2] table shard, in the same slot
--   ARGV[1] id, 16 random bytes   ARGV[2] fingerprint, 8 bytes   ARGV[3] '1' to distrust a payload that is there
-- Replies: {'hit', payload}   {'granted', row version, table version}   {'fenced'}
-- Atomic because one script runs at a time: nobody fences between the look at both keys and the grant.

local version, pending, dropped = fence(read(KEYS[2]))
if not version then
  version, pending = fresh(ARGV[1] .. 'T'), ''
  put(KEYS[2], version, pending, FOREVER_MS)
elseif dropped then
  put(KEYS[2], version, pending, pending == '' and FOREVER_MS or FENCE_MS)
elseif pending == '' then
  redis.call('PEXPIRE', KEYS[2], FOREVER_MS)
end
if pending ~= '' then return {'fenced'} end

local raw = read(KEYS[1])
local filled, under, payloads = value(raw)
if filled and under == version then
  for _, each in ipairs(payloads) do
    if each.fingerprint == ARGV[2] and ARGV[3] ~= '1' then return {'hit', each.payload} end
  end
  return {'granted', filled, version}
end
local lease, waiting = fence(raw)
if not lease then
  lease, waiting = fresh(ARGV[1] .. 'R'), ''
end
if waiting ~= '' then return {'fenced'} end
put(KEYS[1], lease, '', LEASE_MS)
return {'granted', lease, version}
