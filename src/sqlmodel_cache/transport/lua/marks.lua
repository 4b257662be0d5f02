-- Prepended to every script: the one layout of fences and values, and the one clock.
--
--   fence   "F" version(16) { token(16) deadline(8: big-endian double, ms since the epoch) } ...
--   value   "V" format(1) version(16) table_version(16) { fingerprint(8) length(4: big-endian) payload } ...
--
-- Anything else, of any Redis type, reads as absent.

local TOKEN, DEADLINE = 16, 8
local FOREVER_MS = 30 * 24 * 3600 * 1000  -- a table's version outlives its values; its loss costs misses only
local FENCE_MS = 24 * 3600 * 1000         -- long after any deadline, so that no eviction policy prefers a fence
local LEASE_MS = 60 * 1000                -- a fence that only waits for its fill, or keeps late fills out

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- A version that was never used before: a command that a client library sends twice gets another one.
local function fresh(id)
  local hex = redis.sha1hex(id .. time[1] .. '.' .. time[2])
  return (hex:sub(1, 32):gsub('..', function(pair) return string.char(tonumber(pair, 16)) end))
end

local function read(key)
  local raw = redis.pcall('GET', key)
  if type(raw) ~= 'string' then return nil end
  return raw
end

-- Returns version, live pendings (as stored) but for that of the token `except`, and what was left out: 'owner' when
-- it was live, 'lapsed' when a deadline has passed, or false; nil when raw is not a fence. A lapsed token is nobody's.
local function fence(raw, except)
  if not raw or raw:sub(1, 1) ~= 'F' or (#raw - 17) % (TOKEN + DEADLINE) ~= 0 or #raw < 17 then return nil end
  local live, dropped = '', false
  for at = 18, #raw, TOKEN + DEADLINE do
    local token = raw:sub(at, at + TOKEN - 1)
    if not (struct.unpack('>d', raw, at + TOKEN) > now) then
      dropped = dropped or 'lapsed'
    elseif token == except then
      dropped = 'owner'
    else
      live = live .. raw:sub(at, at + TOKEN + DEADLINE - 1)
    end
  end
  return raw:sub(2, 17), live, dropped
end

-- Returns version, table version, and the payloads, the latest first; nil when raw is not a value.
local function value(raw)
  if not raw or raw:sub(1, 2) ~= 'V\2' or #raw < 34 then return nil end
  local payloads, at = {}, 35
  while at + 11 <= #raw do
    local past = at + 12 + struct.unpack('>I4', raw, at + 8)
    if past > #raw + 1 then break end
    payloads[#payloads + 1] = {
      fingerprint = raw:sub(at, at + 7), payload = raw:sub(at + 12, past - 1), stored = raw:sub(at, past - 1),
    }
    at = past
  end
  return raw:sub(3, 18), raw:sub(19, 34), payloads
end

local function put(key, version, pending, px)
  redis.call('SET', key, 'F' .. version .. pending, 'PX', px)
end
