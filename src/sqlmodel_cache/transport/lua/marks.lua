-- Prepended to every script: the one layout of fences and values, and the one clock.
--
--   fence   "F" version(12) { token(16) deadline(8) } ...
--   fence   "F" version(12) election(8)                    nobody writes, somebody is elected to fill until then
--   shard   "T" server(16) version(12) { token(16) deadline(8) } ...
--   value   "V" format(1) version(12) table_version(12) { fingerprint(8) length(4: big-endian) payload } ...
--
-- Deadlines and elections are big-endian doubles, in ms since the epoch. Anything else, of any Redis type, reads as
-- absent.
--
-- A version has 96 bits, since it is only ever compared with other versions of its own key: a lease that outlived its
-- fence fits the one of now with probability 2^-96, and a row would need 2^48 of them at once for a likely pair.
--
-- A shard names the server that has granted leases under its version. BEGIN and END leave the name as it is.

local VERSION, TOKEN, DEADLINE, SERVER = 12, 16, 8, 16
local NOBODY = ('-'):rep(SERVER)
local FOREVER_MS = 30 * 24 * 3600 * 1000  -- a table's version outlives its values; its loss costs misses only
local FENCE_MS = 24 * 3600 * 1000         -- long after any deadline, so that no eviction policy prefers a fence
local LEASE_MS = 60 * 1000                -- a fence that only waits for its fill, or keeps late fills out

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- A version that was never used before: a command that a client library sends twice gets another one.
local function fresh(id)
  local hex = redis.sha1hex(id .. time[1] .. '.' .. time[2])
  return (hex:sub(1, 2 * VERSION):gsub('..', function(pair) return string.char(tonumber(pair, 16)) end))
end

local function read(key)
  local raw = redis.pcall('GET', key)
  if type(raw) ~= 'string' then return nil end
  return raw
end

-- Returns version, live pendings (as stored) but for that of the token `except`, what was left out ('owner' when it
-- was live, 'lapsed' when a deadline has passed, or false), and the election, past or not; nil when raw is not a
-- fence. A lapsed token is nobody's.
local function fence(raw, except)
  if not raw or raw:sub(1, 1) ~= 'F' or #raw <= VERSION then return nil end
  local version = raw:sub(2, 1 + VERSION)
  if #raw == 1 + VERSION + DEADLINE then return version, '', false, (struct.unpack('>d', raw, 2 + VERSION)) end
  if (#raw - 1 - VERSION) % (TOKEN + DEADLINE) ~= 0 then return nil end
  local live, dropped = '', false
  for at = 2 + VERSION, #raw, TOKEN + DEADLINE do
    local token = raw:sub(at, at + TOKEN - 1)
    if not (struct.unpack('>d', raw, at + TOKEN) > now) then
      dropped = dropped or 'lapsed'
    elseif token == except then
      dropped = 'owner'
    else
      live = live .. raw:sub(at, at + TOKEN + DEADLINE - 1)
    end
  end
  return version, live, dropped
end

-- Returns the server's name, and what `fence` returns; nil when raw is not a shard's.
local function shard(raw, except)
  if not raw or raw:sub(1, 1) ~= 'T' then return nil end
  local version, live, dropped = fence('F' .. raw:sub(2 + SERVER), except)
  if version then return raw:sub(2, 1 + SERVER), version, live, dropped end
end

-- Returns version, table version, and the payloads, the latest first; nil when raw is not a value.
local function value(raw)
  local head = 2 + 2 * VERSION
  if not raw or raw:sub(1, 2) ~= 'V\3' or #raw < head then return nil end
  local payloads, at = {}, head + 1
  while at + 11 <= #raw do
    local past = at + 12 + struct.unpack('>I4', raw, at + 8)
    if past > #raw + 1 then break end
    payloads[#payloads + 1] = {
      fingerprint = raw:sub(at, at + 7), payload = raw:sub(at + 12, past - 1), stored = raw:sub(at, past - 1),
    }
    at = past
  end
  return raw:sub(3, 2 + VERSION), raw:sub(3 + VERSION, head), payloads
end

local function put(key, version, rest, px)
  redis.call('SET', key, 'F' .. version .. rest, 'PX', px)
end

local function put_shard(key, server, version, rest, px)
  redis.call('SET', key, 'T' .. server .. version .. rest, 'PX', px)
end
