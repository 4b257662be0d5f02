"""The in-process transport, and the reference model of every effect: Redis must answer as this does."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, ClassVar

from .._effects import (
    VARIANTS,
    Begin,
    End,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Keys,
    Lease,
    LeaseReply,
    Lookup,
    Peek,
    Peeked,
    Resign,
    Together,
)
from .._plan import Effect
from ..errors import ConfigurationError, TransportError
from ._sampling import Held, Sample

LEASE_MS = 60_000
VERSION_BYTES = 12
EVICTION_CANDIDATES = 8


@dataclass(slots=True)
class _Fence:
    version: bytes
    pending: dict[bytes, float] = field(default_factory=dict)  # token -> deadline, ms
    expires: float = 0.0  # ms; 0 = never
    server: object = None  # of a table: in which life of the transport a lease was granted under the version
    election: float = 0.0  # until when somebody is asked to fill, ms; 0 = nobody is. Never beside pending tokens

    def is_pending(self, now: float) -> bool:
        self.prune(now)
        return bool(self.pending)

    def prune(self, now: float) -> None:
        if self.pending:
            self.pending = {token: deadline for token, deadline in self.pending.items() if deadline > now}


@dataclass(slots=True)
class _Value:
    version: bytes
    table_version: bytes
    payloads: dict[bytes, bytes]  # by fingerprint, the latest last
    expires: float


class MemoryTransport:
    """Cached rows in this process, for one process: other processes do not see its invalidations.

    Thread-safe and bounded. When `max_rows` is reached the least recently used row is evicted; a row with a commit in
    flight is not.

    Args:
        max_rows: how many rows are kept.
        clock: seconds as a float; replace it in tests to let time pass.

    Raises:
        ConfigurationError: `max_rows` is not a positive int.
    """

    blocking = False

    def __init__(self, max_rows: int = 10_000, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not isinstance(max_rows, int) or isinstance(max_rows, bool) or max_rows < 1:
            raise ConfigurationError("max_rows", max_rows, "give a positive int")
        self._max_rows = max_rows
        self._clock = clock
        self._fork_safe_state()
        _forget_after_fork(self)

    def _fork_safe_state(self) -> None:
        self._lock = threading.Lock()  # guards everything below; a look-up alone goes without
        self._rows: OrderedDict[str, _Fence | _Value] = OrderedDict()  # least recently used first
        self._tables: dict[str, _Fence] = {}
        self._count = 0
        self._server = object()  # another after everything was forgotten, as a server's name is when it starts

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; never waits on anything but a lock held for microseconds."""
        if type(effect) is Lookup:  # the one that every hit pays for
            return self._lookup(effect)
        handler = self._handlers.get(type(effect))
        if handler is not None:
            with self._lock:
                return handler(self, effect, self._clock() * 1000)
        if type(effect) is Together:
            return tuple(map(self._tried, effect.effects))
        raise TransportError(f"MemoryTransport does not know {type(effect).__name__}")

    def close(self) -> None:
        """Do nothing: there is nothing to release, and the rows may be wanted again."""

    def clear(self) -> None:
        """Forget every row and every fence, as a server restarted empty would."""
        with self._lock:
            self._rows.clear()
            self._tables.clear()
            self._server = object()

    def evict(self, key: str) -> bool:
        """Forget one key of a row or of a table's shard; return whether it was there."""
        with self._lock:
            return (self._rows.pop(key, None) or self._tables.pop(key, None)) is not None

    def keys(self) -> list[str]:
        """Return the keys of the rows that hold a value now."""
        with self._lock:
            now = self._clock() * 1000
            rows = list(self._rows.items())  # at once: a look-up moves its row, and takes no lock
            return [key for key, held in rows if type(held) is _Value and held.expires > now]

    def sample(self, most: int) -> Sample:
        """Return what is known of the most recently used keys of rows, at most so many."""
        with self._lock:
            now = self._clock()
            keys = list(islice(reversed(self._rows), most))  # in one step: look-ups move keys without the lock
            held = []
            for place, key in enumerate(keys):
                entry = self._rows.get(key)
                if type(entry) is _Value and entry.expires > now * 1000:
                    size = sum(map(len, entry.payloads.values()))
                    held.append(Held(key, size, entry.expires / 1000 - now, -float(place)))
            return Sample(held, len(keys) == len(self._rows), "order")

    def ttl(self, key: str) -> float | None:
        """Return the seconds that a row's value has left, or None if there is no value."""
        with self._lock:
            held = self._rows.get(key)
            left = held.expires / 1000 - self._clock() if type(held) is _Value else 0.0
            return left if left > 0 else None

    def __len__(self) -> int:
        return len(self.keys())

    def _lookup(self, effect: Lookup) -> bytes | None:
        # Without the lock, as if it were an MGET that is not atomic: the row is read before its table, and either order
        # is safe. A fence that comes in between is of a commit that has not returned.
        row, table = effect.entry
        held = self._rows.get(row)
        if type(held) is not _Value:
            return None
        fence = self._tables.get(table)
        if fence is None or fence.version != held.table_version or fence.pending:
            return None
        if fence.server is not self._server:
            return None
        if held.expires <= self._clock() * 1000:
            return None
        try:
            self._rows.move_to_end(row)
        except KeyError:  # evicted just now
            return None
        return held.payloads.get(effect.fingerprint)

    def _tried(self, effect: Effect[Any]) -> Any:
        try:
            if type(effect) is Together:
                raise TransportError("MemoryTransport does not know Together within Together")
            return self.execute(effect)
        except TransportError as error:
            return error

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        row, table = effect.entry
        shard = self._tables.get(table)
        if shard is None:
            shard = self._tables[table] = _Fence(self._fresh(effect.id), server=self._server)
        shard.prune(now)
        if shard.pending:
            return Fenced()
        if shard.server is not self._server:
            shard.version, shard.server = self._fresh(effect.id), self._server
        held = self._held(row, now)
        if type(held) is _Value and held.table_version == shard.version:
            payload = None if effect.replace else held.payloads.get(effect.fingerprint)
            return Granted(held.version, shard.version) if payload is None else Hit(payload)
        fence = held if isinstance(held, _Fence) else _Fence(self._fresh(effect.id))
        if fence.pending:
            return Fenced()
        fence.expires = now + LEASE_MS
        self._put(row, fence, now)
        lease = Granted(fence.version, shard.version)
        if effect.elect_ms <= 0:
            return lease
        left_ms = fence.election - now
        if left_ms > 0:
            return Filling(lease, math.ceil(min(left_ms, effect.elect_ms)))
        fence.election = now + effect.elect_ms
        return Granted(fence.version, shard.version, elected=True)

    def _fill(self, effect: Fill, now: float) -> bool:
        held = self._held(effect.entry.row, now)
        lease, expires = effect.lease, now + effect.ttl_ms
        payloads: dict[bytes, bytes] = {}
        if held is None or held.version != lease.version:
            return False
        if isinstance(held, _Fence):
            if held.pending:
                return False
        else:
            if held.table_version != lease.table_version:
                return False
            if not effect.renew:
                payloads, expires = held.payloads, min(held.expires, expires)
                payloads.pop(effect.fingerprint, None)
                if len(payloads) == VARIANTS:
                    del payloads[next(iter(payloads))]
        payloads[effect.fingerprint] = effect.payload
        self._put(effect.entry.row, _Value(lease.version, lease.table_version, payloads, expires), now)
        return True

    def _resign(self, effect: Resign, now: float) -> None:
        held = self._held(effect.entry.row, now)
        if isinstance(held, _Fence) and held.version == effect.lease.version and held.election:
            held.election, held.expires = 0.0, now + LEASE_MS

    def _peek(self, effect: Peek, now: float) -> Peeked:
        row, table = effect.entry
        held, shard = self._held(row, now), self._tables.get(table)
        if not isinstance(held, _Value):
            return Peeked(pending=None if held is None else len(held.pending))
        if shard is not None and shard.is_pending(now):
            return Peeked(held.payloads.copy(), invalid="pending")
        if shard is None or shard.version != held.table_version:
            return Peeked(held.payloads.copy(), invalid="written")
        return Peeked(held.payloads.copy(), invalid=None if shard.server is self._server else "server")

    def _begin(self, effect: Begin, now: float) -> None:
        for key, is_row in _each(effect.keys):
            held = self._held(key, now) if is_row else self._tables.get(key)
            fence = held if isinstance(held, _Fence) else _Fence(b"")
            fence.prune(now)
            fence.version = self._fresh(effect.id)
            fence.pending[effect.id] = now + effect.fence_ttl_ms
            fence.expires = fence.election = 0.0
            self._keep(key, fence, is_row, now)

    def _end(self, effect: End, now: float) -> None:
        for key, is_row in _each(effect.keys):
            held = self._held(key, now) if is_row else self._tables.get(key)
            fence = held if isinstance(held, _Fence) else _Fence(b"")
            fence.prune(now)
            owned = fence.pending.pop(effect.token, None) is not None
            if not owned:
                fence.version = self._fresh(effect.id)
            fence.election = 0.0
            if is_row and not fence.pending:
                fence.expires = now + LEASE_MS
            self._keep(key, fence, is_row, now)

    _handlers: ClassVar[dict[type, Callable[[Any, Any, float], Any]]] = {
        Lease: _lease,
        Fill: _fill,
        Resign: _resign,
        Peek: _peek,
        Begin: _begin,
        End: _end,
    }

    def _fresh(self, id: bytes) -> bytes:
        self._count += 1
        return blake2b(id + str(self._count).encode(), digest_size=VERSION_BYTES).digest()

    def _held(self, key: str, now: float) -> _Fence | _Value | None:
        held = self._rows.get(key)
        if held is not None and 0 < held.expires <= now:
            del self._rows[key]
            return None
        if type(held) is _Fence:
            held.prune(now)
        return held

    def _keep(self, key: str, fence: _Fence, is_row: bool, now: float) -> None:
        if is_row:
            self._put(key, fence, now)
        else:
            self._tables[key] = fence

    def _put(self, key: str, held: _Fence | _Value, now: float) -> None:
        self._rows[key] = held
        self._rows.move_to_end(key)
        # A fence with a commit in flight goes to the end of the queue: at most a few are passed over each time, and
        # the bound is exceeded rather than searched for.
        for _ in range(EVICTION_CANDIDATES):
            if len(self._rows) <= self._max_rows:
                return
            oldest, candidate = next(iter(self._rows.items()))
            if isinstance(candidate, _Value) or not candidate.is_pending(now):
                del self._rows[oldest]
            else:
                self._rows.move_to_end(oldest)


def _each(keys: Keys) -> list[tuple[str, bool]]:
    return [(key, True) for key in keys.rows] + [(key, False) for key in keys.tables]


_alive: weakref.WeakSet[MemoryTransport] = weakref.WeakSet()


def _forget_after_fork(transport: MemoryTransport) -> None:
    """A child starts empty: it would not see its parent's invalidations, nor the lock's owner."""
    if not _alive and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)
    _alive.add(transport)


def _forget_all() -> None:
    for transport in _alive:
        transport._fork_safe_state()
