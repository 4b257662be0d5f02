-- Permission to fill a row, or its value.
--   KEYS[1] row   KEYS[2] table shard, in the same slot
--   ARGV[1] id, 16 random bytes   ARGV[2] fingerprint, 8 bytes   ARGV[3] '1' to distrust a payload that is there
--   ARGV[4] elect for so many ms, or 0: neither elect nor hear of an election
-- Replies, each with the server's name, or '' where it does not tell:
--   {'hit', name, payload}   {'granted', name, row version, table version}   {'elected', name, row version, table version}
--   {'filling', name, row version, table version, ms that the elected one has left}   {'fenced', name}
--   A replica's error is READONLY: it may lag behind, or be about to forget.
-- Atomic because one script runs at a time: nobody fences between the look at both keys and the grant, and of several
-- who ask one is elected. An election is advice: whoever has been granted the version may fill.

-- A master's replication id is random, and new after every start and every promotion; a replica has its master's. It
-- is in no snapshot that a master starts from.
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then info = '' end
if info:find('role:slave', 1, true) then return redis.error_reply('READONLY only a master grants leases') end
local me = (info:match('master_replid:(%x+)') or ''):sub(1, SERVER)
if #me ~= SERVER then me = nil end

local server, version, pending, dropped = shard(read(KEYS[2]))
-- 1 W: begin, COMMIT, end   2 the server is restored from before   3 a lookup hits: not under another server's name
if not version or (me and me ~= server and pending == '') then
  server, version, pending = me or server or NOBODY, fresh(ARGV[1] .. 'T'), ''
  put_shard(KEYS[2], server, version, pending, FOREVER_MS)
elseif dropped then
  put_shard(KEYS[2], server, version, pending, pending == '' and FOREVER_MS or FENCE_MS)
elseif pending == '' then
  -- Not at every lease: whoever tracks the key would be told each time that the table has changed.
  if redis.call('PTTL', KEYS[2]) < FOREVER_MS / 2 then redis.call('PEXPIRE', KEYS[2], FOREVER_MS) end
end
me = me or ''
if pending ~= '' then return {'fenced', me} end

local raw = read(KEYS[1])
local filled, under, payloads = value(raw)
if filled and under == version then
  for _, each in ipairs(payloads) do
    if each.fingerprint == ARGV[2] and ARGV[3] ~= '1' then return {'hit', me, each.payload} end
  end
  return {'granted', me, filled, version}
end
local lease, waiting, _, elected = fence(raw)
if not lease then
  lease, waiting = fresh(ARGV[1] .. 'R'), ''
end
if waiting ~= '' then return {'fenced', me} end
local elect = tonumber(ARGV[4])
local stands = elected and elected > now
if elect > 0 and not stands then elected = now + elect end
put(KEYS[1], lease, (stands or elect > 0) and struct.pack('>d', elected) or '', LEASE_MS)
if elect <= 0 then return {'granted', me, lease, version} end
if not stands then return {'elected', me, lease, version} end
-- At most what this one would have asked for: the clock may have been set back, or the election be garbage.
return {'filling', me, lease, version, math.ceil(math.min(elected - now, elect))}
