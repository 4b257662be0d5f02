-- Store a row under its lease.
--   KEYS[1] row
--   ARGV[1] lease, the row version that was granted   ARGV[2] value   ARGV[3] ttl in ms
-- Replies: 1 stored   0 refused: no fence, another version, or a commit in flight
-- Atomic because one script runs at a time: no fence can come between the check and the SET.

local version, pending = fence(read(KEYS[1]))
if version ~= ARGV[1] or pending ~= '' then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
