-- Permission to fill a row, or its value.
--   KEYS[1] row   KEYS[2] table shard, in the same slot
--   ARGV[1] id, 16 random bytes   ARGV[2] fingerprint, 8 bytes   ARGV[3] '1' to distrust a payload that is there
--   ARGV[4] elect for so many ms, or 0: neither elect nor hear of an election
-- Replies: {'hit', payload}   {'granted', row version, table version}   {'elected', row version, table version}
--   {'filling', row version, table version, ms that the elected one has left}   {'fenced'}
-- Atomic because one script runs at a time: nobody fences between the look at both keys and the grant, and of several
-- who ask one is elected. An election is advice: whoever has been granted the version may fill.

local version, pending, dropped, election = fence(read(KEYS[2]))
if not version then
  version, pending = fresh(ARGV[1] .. 'T'), ''
  put(KEYS[2], version, pending, FOREVER_MS)
elseif dropped or election then
  put(KEYS[2], version, pending, pending == '' and FOREVER_MS or FENCE_MS)
elseif pending == '' then
  -- Not at every lease: whoever tracks the key would be told each time that the table has changed.
  if redis.call('PTTL', KEYS[2]) < FOREVER_MS / 2 then redis.call('PEXPIRE', KEYS[2], FOREVER_MS) end
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
local lease, waiting, _, elected = fence(raw)
if not lease then
  lease, waiting = fresh(ARGV[1] .. 'R'), ''
end
if waiting ~= '' then return {'fenced'} end
local elect = tonumber(ARGV[4])
local stands = elected and elected > now
if elect > 0 and not stands then elected = now + elect end
put(KEYS[1], lease, (stands or elect > 0) and struct.pack('>d', elected) or '', LEASE_MS)
if elect <= 0 then return {'granted', lease, version} end
if not stands then return {'elected', lease, version} end
-- At most what this one would have asked for: the clock may have been set back, or the election be garbage.
return {'filling', lease, version, math.ceil(math.min(elected - now, elect))}
