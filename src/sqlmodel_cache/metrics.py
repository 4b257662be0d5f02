"""What the cache counts, each counter defined once."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of this process since `configure()`. A get of a cached model is exactly one hit, miss or bypass.

    So is a lazy load of a relationship that opted in, but for those of an attribute's history, or of a larger load.
    """

    hits: int = 0  # gets answered from the cache
    near_hits: int = 0  # those of the hits that were answered from this process's near cache
    misses: int = 0  # gets that looked in the cache and then read the database
    bypasses: int = 0  # gets that went to the database by rule, without looking
    fills: int = 0  # rows stored
    refused: int = 0  # fills that came too late: a commit or another fill was first
    fenced: int = 0  # misses that found a commit in flight
    shared: int = 0  # misses that were told what another get was about to read
    uncached: int = 0  # misses whose row must not be stored: missing, own writes, old snapshot, values
    corrupt: int = 0  # payloads that did not decode; each was replaced
    errors: int = 0  # misses and invalidations that the transport failed
    invalidated: int = 0  # rows and table shards fenced by commits, or invalidated by hand
    verified: int = 0  # cached rows that were compared with the database, by `verify()` or `configure(verify=...)`
    discrepancies: int = 0  # those of them that were not what the database held
    owed: int = 0  # rows and table shards whose invalidation the cache has not been told, now
    outages: int = 0  # how often the cache stopped being asked, because it did not answer
    unreachable: bool = False  # whether it is not asked now


class Counters:
    """The counters behind `Stats`."""

    def __init__(self) -> None:
        # Threads may race on an increment and lose one; a lock here would cost every hit more than a count is worth.
        self.counts = dict.fromkeys(_COUNTED, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Count; `name` is a field of `Stats`."""
        self.counts[name] += count

    def snapshot(self, **now: int | bool) -> Stats:
        """Return the counts so far, and what is the case now."""
        return Stats(**self.counts, **now)  # type: ignore[arg-type]


_COUNTED = tuple(field.name for field in fields(Stats) if field.name not in ("owed", "outages", "unreachable"))
