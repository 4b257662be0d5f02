-- Give up an election: those who wait for the fill need not.
--   KEYS[1] row   ARGV[1] lease: the row's version
-- Replies: 1, whether or not there was something to give up
-- Atomic because one script runs at a time. The lease stands: the version is the same.

local version, _, _, election = fence(read(KEYS[1]))
if version == ARGV[1] and election then put(KEYS[1], version, '', LEASE_MS) end
return 1
