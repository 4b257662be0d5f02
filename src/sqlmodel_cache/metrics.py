"""What the cache counts, each counter defined once.

`Stats` and what is in it are what users see; `Counters` is what stands behind it. A count is kept with the model that
it is of, so a total is the sum over the models, and what belongs to none.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, get_args

from .errors import ConfigurationError

V = TypeVar("V")

MissReason: TypeAlias = Literal[
    "fenced",  # a commit of the row, or of its table, is in flight
    "error",  # the cache did not answer, or not in time
    "breaker",  # the cache was not asked, because it has not answered lately
    "corrupt",  # a payload that does not decode; it is replaced
    "renewal",  # a row that was about to expire, and was read before it does: CacheConfig(refresh_ahead=...)
    "absent",  # nothing to use: never stored, expired, evicted, invalidated, or stored by a release with other columns
]
"""Why a get that looked in the cache read the database; of several reasons the first in this list."""

BypassReason: TypeAlias = Literal[
    "disabled",  # execution_options={"cache": False}, of the call, its session or its engine
    "option",  # the call or its session asks for more than the row as it is committed: locks, loader options, ...
    "key",  # what was asked for is not a key of the columns' own types
    "own_writes",  # the transaction may have written the row, and nobody else sees that
    "isolation",  # the transaction is owed a snapshot, or a statement in it has failed
    "owed",  # this process has changed the row, and the cache has not been told yet
    "session",  # the session is flushing, merging, committing or sharded, or its flush has just given it the row
    "listener",  # the session has a do_orm_execute listener, which may narrow what a SELECT finds
    "database",  # no database, no connection, or no name for it: the session's own get says what that means
    "rollout",  # configure(hash_keys="rollout") reads nothing
]
"""Why a get went to the database without looking in the cache."""

RefusedReason: TypeAlias = Literal[
    "late",  # a commit or another fill was first
    "snapshot",  # it was read in a snapshot that may be older than what the cache knows
    "own_writes",  # the transaction that read it may have written it; or it reads from a replica
    "missing",  # there is no such row, and CacheConfig(missing_ttl=...) does not cache that
    "value",  # it would not come back as it is: a value, a size or a class that is not cached; the log says which
    "other",  # the database gave another row than the key names: a collation, a cast
]
"""Why a row that was read after a miss was not stored."""

Outcome: TypeAlias = Literal["hit", "near_hit", "miss", "bypass"]
"""How a get ended."""

BOUNDS: tuple[float, ...] = (
    *(5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, math.inf),
)
"""Upper bounds of the buckets that seconds are counted in: a hit takes microseconds, a database may take seconds."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long something took, counted in buckets."""

    bounds: tuple[float, ...] = BOUNDS  # the longest that each bucket counts, in seconds; the last is infinite
    counts: tuple[int, ...] = (0,) * len(BOUNDS)  # of each bucket alone
    sum: float = 0.0  # seconds in all

    @property
    def count(self) -> int:
        """How many have been counted."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Return the seconds that a part `q` of all did not exceed, interpolated in a bucket; 0 when there are none.

        Of what is beyond the last finite bound, that bound is returned.

        Raises:
            ConfigurationError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise ConfigurationError("q", q, "give a number from 0 to 1")
        rank = q * self.count
        below, lower = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count and below + count >= rank:
                return lower if bound == math.inf else lower + (bound - lower) * (rank - below) / count
            below, lower = below + count, bound
        return 0.0

    def __add__(self, other: Histogram) -> Histogram:
        """Return both together; their bounds are equal."""
        counts = tuple(map(sum, zip(self.counts, other.counts, strict=True)))
        return Histogram(self.bounds, counts, self.sum + other.sum)


class ReadOnly(dict[str, V]):
    """A dict that does not change, and that `dataclasses.asdict` and `json` know as one."""

    def _refuse(self: Any, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("it is read-only")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def _zeros(reasons: Any) -> Mapping[str, int]:
    return ReadOnly((reason, 0) for reason in get_args(reasons))


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Counts of one model in this process since `configure()`. A mapping has every reason, if with a count of 0."""

    hits: int = 0  # gets answered from the cache
    near_hits: int = 0  # those of the hits that were answered from this process's near cache
    misses: int = 0  # gets that looked in the cache and then read the database
    miss_reasons: Mapping[str, int] = field(default_factory=partial(_zeros, MissReason))  # the misses
    bypasses: int = 0  # gets that went to the database by rule, without looking
    bypass_reasons: Mapping[str, int] = field(default_factory=partial(_zeros, BypassReason))  # the bypasses
    fills: int = 0  # rows stored
    refused: int = 0  # fills that came too late: a commit or another fill was first
    refused_reasons: Mapping[str, int] = field(default_factory=partial(_zeros, RefusedReason))  # refused and uncached
    fenced: int = 0  # misses that found a commit in flight
    shared: int = 0  # misses that were told what another get was about to read
    uncached: int = 0  # misses whose row must not be stored: missing, own writes, old snapshot, values
    corrupt: int = 0  # payloads that did not decode; each was replaced
    invalidated: int = 0  # rows and table shards fenced by commits, or invalidated by hand
    errors: int = 0  # misses that the transport failed
    verified: int = 0  # cached rows that were compared with the database, by `verify()` or `configure(verify=...)`
    discrepancies: int = 0  # those of them that were not what the database held
    bytes_read: int = 0  # of payloads that were found, before encryption
    bytes_written: int = 0  # of payloads that were stored, before encryption
    hit_seconds: Histogram = field(default_factory=Histogram)  # that hits took; get_many's rows each the same part
    miss_seconds: Histogram = field(default_factory=Histogram)  # that misses took, with what the database took of it


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of this process since `configure()`. A get of a cached model is exactly one hit, miss or bypass.

    So is a lazy load of a relationship that opted in, but for those of an attribute's history, or of a larger load.
    A get of what its session holds already is none of them, nor is a miss whose SELECT raises an error.
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
    models: Mapping[str, ModelStats] = field(default_factory=ReadOnly)  # by model, "app.models:Hero"


def model_name(class_: type) -> str:
    """Return what a model is counted under: "app.models:Hero"."""
    return f"{class_.__module__}:{class_.__qualname__}"


class ModelCounters:
    """The counters behind a `ModelStats`, where each event is counted once; the other counts are their sums.

    Threads may race on an increment and lose one; a lock here would cost every hit more than a count is worth.
    """

    __slots__ = (
        "_hits",
        "_hits_took",
        "_misses",
        "_misses_took",
        "bypasses",
        "bytes_read",
        "bytes_written",
        "corrupt",
        "discrepancies",
        "fills",
        "invalidated",
        "miss_reasons",
        "near_hits",
        "not_stored",
        "shared",
        "verified",
    )

    def __init__(self) -> None:
        self._hits = [0] * len(BOUNDS)
        self._misses = [0] * len(BOUNDS)
        self._hits_took = self._misses_took = 0.0  # seconds
        self.miss_reasons: dict[MissReason, int] = dict.fromkeys(get_args(MissReason), 0)
        self.bypasses: dict[BypassReason, int] = dict.fromkeys(get_args(BypassReason), 0)
        self.not_stored: dict[RefusedReason, int] = dict.fromkeys(get_args(RefusedReason), 0)
        self.near_hits = self.fills = self.shared = self.corrupt = self.invalidated = 0
        self.bytes_read = self.bytes_written = self.verified = self.discrepancies = 0

    def hit(self, seconds: float, size: int) -> None:
        """Count a hit of a payload of so many bytes."""
        self._hits[bisect_left(BOUNDS, seconds)] += 1
        self._hits_took += seconds
        self.bytes_read += size

    def miss(self, seconds: float, reason: MissReason) -> None:
        """Count a miss."""
        self._misses[bisect_left(BOUNDS, seconds)] += 1
        self._misses_took += seconds
        self.miss_reasons[reason] += 1

    def stats(self) -> ModelStats:
        """Return the counts so far."""
        hits = Histogram(BOUNDS, tuple(self._hits), self._hits_took)
        misses = Histogram(BOUNDS, tuple(self._misses), self._misses_took)
        reasons, bypasses, not_stored = dict(self.miss_reasons), dict(self.bypasses), dict(self.not_stored)
        return ModelStats(
            hits=hits.count,
            near_hits=self.near_hits,
            misses=sum(reasons.values()),
            miss_reasons=ReadOnly[int](reasons.items()),
            bypasses=sum(bypasses.values()),
            bypass_reasons=ReadOnly[int](bypasses.items()),
            fills=self.fills,
            refused=not_stored["late"],
            refused_reasons=ReadOnly[int](not_stored.items()),
            fenced=reasons["fenced"],
            shared=self.shared,
            uncached=sum(not_stored.values()) - not_stored["late"],
            corrupt=self.corrupt,
            invalidated=self.invalidated,
            errors=reasons["error"] + reasons["breaker"],
            verified=self.verified,
            discrepancies=self.discrepancies,
            bytes_read=self.bytes_read,
            bytes_written=self.bytes_written,
            hit_seconds=hits,
            miss_seconds=misses,
        )


class Counters:
    """The counters behind `Stats`."""

    def __init__(self) -> None:
        self._models: dict[str, ModelCounters] = {}  # only ever added to
        self.errors = 0  # of invalidations, which may be of several models
        self.invalidated = 0  # of tables that are no model's by now

    def model(self, class_: type) -> ModelCounters:
        """Return the counters of a model; classes of one name share them."""
        return self._models.setdefault(model_name(class_), ModelCounters())

    def stats(self, *, owed: int, outages: int, unreachable: bool) -> Stats:
        """Return the counts so far, and how things are now."""
        models = ReadOnly({name: counters.stats() for name, counters in sorted(self._models.copy().items())})
        totals = {name: sum(getattr(stats, name) for stats in models.values()) for name in _TOTALS}
        totals["errors"] += self.errors
        totals["invalidated"] += self.invalidated
        return Stats(**totals, owed=owed, outages=outages, unreachable=unreachable, models=models)


_TOTALS = {field.name for field in fields(Stats)} & {field.name for field in fields(ModelStats)}
