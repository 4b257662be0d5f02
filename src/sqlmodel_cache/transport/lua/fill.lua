-- Store a payload of a row under its lease.
--   KEYS[1] row
--   ARGV[1] lease: the row's version   ARGV[2] and its table's   ARGV[3] fingerprint   ARGV[4] payload   ARGV[5] ttl in ms
--   ARGV[6] how many payloads a row may have   ARGV[7] '1' to keep neither other payloads nor the ttl of a value
-- Replies: 1 stored   0 refused: neither a fence nor a value of these versions, or a commit in flight
-- Atomic because one script runs at a time: no fence can come between the check and the SET.

local raw = read(KEYS[1])
local ttl = tonumber(ARGV[5])
local version, pending = fence(raw)
local kept = ''
if version then
  if version ~= ARGV[1] or pending ~= '' then return 0 end
else
  local under, payloads
  version, under, payloads = value(raw)
  if version ~= ARGV[1] or under ~= ARGV[2] then return 0 end
  if ARGV[7] ~= '1' then
    local room = tonumber(ARGV[6]) - 1
    for _, each in ipairs(payloads) do
      if room > 0 and each.fingerprint ~= ARGV[3] then
        kept, room = kept .. each.stored, room - 1
      end
    end
    ttl = math.min(ttl, redis.call('PTTL', KEYS[1]))
  end
end
local mine = ARGV[3] .. struct.pack('>I4', #ARGV[4]) .. ARGV[4]
redis.call('SET', KEYS[1], 'V\3' .. ARGV[1] .. ARGV[2] .. mine .. kept, 'PX', math.max(1, ttl))
return 1
