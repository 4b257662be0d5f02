"""Misses, errors and delays on demand, for an application's tests: a transport in front of another one.

It changes what the caller sees and never what the cache holds, but for a command that it does not pass on, as if it
had been lost on the way.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from .._effects import (
    Begin,
    End,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Lease,
    Lookup,
    Resign,
    Together,
    Wait,
)
from .._plan import Effect, Plan, arun, perform, run
from ..config import Duration, milliseconds
from ..errors import ConfigurationError, TransportError
from . import AsyncTransport, SyncTransport
from .memory import MemoryTransport
from .redis import RedisAsyncTransport, RedisSyncTransport

__all__ = ["Fault", "FaultyTransport", "Operation"]

_NAMES: dict[type, str] = {
    Lookup: "lookup",
    Lease: "lease",
    Fill: "fill",
    Resign: "resign",
    Begin: "begin",
    End: "end",
}
_READS = ("lookup", "lease", "fill", "resign")
_KEPT = 1_000  # operations that are remembered


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that the cache was asked.

    Attributes:
        name: "lookup", "lease", "fill" and "resign" are a reader's, "begin" and "end" are around a commit.
        keys: the keys of rows, and of tables' shards where whole tables are written.
        outcome: "hit", "miss", "granted", "fenced", "stored", "refused", "done" or "failed"; "" before it is known.
    """

    name: str
    keys: tuple[str, ...]
    outcome: str = ""


When: TypeAlias = Callable[[Operation], bool]


class Fault:
    """A fault that has been injected. It ends with `remove()`, or with the `with` block of which it is the subject."""

    def __init__(
        self, faulty: FaultyTransport, kind: str, names: tuple[str, ...], times: int | None, when: When | None
    ):
        self.injected = 0  # how often, so far
        self.kind = kind
        self.wait_ms = 0
        self._faulty = faulty
        self._names = names
        self._times = math.inf if times is None else times
        self._when = when

    def remove(self) -> None:
        """Inject it no more."""
        self._faulty.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def strikes(self, operation: Operation) -> bool:
        """Return whether it applies to an operation, which is counted."""
        if operation.name not in self._names or self.injected >= self._times:
            return False
        if self._when is not None and not self._when(operation):
            return False
        self.injected += 1
        return True


class FaultyTransport:
    """Passes everything on to another transport, and injects faults: `configure(FaultyTransport())`.

    It serves both kinds of sessions, and counts as a server: what fails too often is not asked any more, as with Redis.

    Args:
        transport: what stands behind it; None for a `MemoryTransport`.
        async_transport: the same for `AsyncSession`, where it cannot be derived.

    A Redis transport behind it has the time-outs that its own constructor was told, not those of `configure()`.
    """

    blocking = True

    def __init__(
        self, transport: SyncTransport | AsyncTransport | None = None, async_transport: AsyncTransport | None = None
    ) -> None:
        given: Any = MemoryTransport() if transport is None and async_transport is None else transport
        if given is not None and not isinstance(given, SyncTransport | AsyncTransport):
            raise ConfigurationError("transport", given, "give a transport, or None for a MemoryTransport")
        self._sync: Any = given if isinstance(given, SyncTransport) else None
        self._async: Any = given if isinstance(given, AsyncTransport) and async_transport is None else async_transport
        if self._async is None and isinstance(given, RedisSyncTransport):
            self._async = given.twin()
        if self._sync is None and isinstance(self._async, RedisAsyncTransport):
            self._sync = self._async.twin()
        self._lock = threading.Lock()  # guards what follows
        self._faults: list[Fault] = []
        self._missed: set[str] = set()  # rows whose look-up was made a miss, until they are leased
        self._operations: deque[Operation] = deque(maxlen=_KEPT)

    # what is injected

    def miss(self, *, times: int | None = None, when: When | None = None) -> Fault:
        """Let look-ups find nothing, as if the row had expired: the get reads the database, and stores the row again.

        Args:
            times: how often; None for as long as the fault is there.
            when: which operations, by a predicate.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        return self._inject("miss", ("lookup",), times, when)

    def fail(
        self, *operations: str, times: int | None = None, when: When | None = None, reply_lost: bool = False
    ) -> Fault:
        """Let operations fail with a `TransportError`.

        Args:
            operations: names as in `Operation`; none for all.
            times: how often; None for as long as the fault is there.
            when: which operations, by a predicate.
            reply_lost: True passes the operation on first, so that it takes effect and only the caller hears of none.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        return self._inject("lose" if reply_lost else "fail", operations, times, when)

    def delay(self, seconds: Duration, *operations: str, times: int | None = None, when: When | None = None) -> Fault:
        """Let operations wait before they are passed on, for the whole time: it is Redis transports that time out.

        Args:
            seconds: how long.
            operations: names as in `Operation`; none for all.
            times: how often; None for as long as the fault is there.
            when: which operations, by a predicate.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        wait_ms = milliseconds("seconds", seconds)
        fault = self._inject("delay", operations, times, when)
        fault.wait_ms = wait_ms
        return fault

    def heal(self) -> None:
        """Inject nothing any more."""
        with self._lock:
            self._faults.clear()
            self._missed.clear()

    def remove(self, fault: Fault) -> None:
        """Inject this one no more."""
        with self._lock:
            self._faults = [each for each in self._faults if each is not fault]

    @property
    def operations(self) -> list[Operation]:
        """The last thousand things that it was asked, the latest last."""
        with self._lock:
            return list(self._operations)

    def _inject(self, kind: str, names: tuple[str, ...], times: int | None, when: When | None) -> Fault:
        known = tuple(_NAMES.values())
        for name in names:
            if name not in known:
                raise ConfigurationError("operations", name, f"give some of {', '.join(known)}, or none for all")
        if times is not None and (type(times) is not int or times < 1):
            raise ConfigurationError("times", times, "give a positive int, or None for always")
        if when is not None and not callable(when):
            raise ConfigurationError("when", when, "give a function of an Operation, or None for all")
        fault = Fault(self, kind, names or known, times, when)
        with self._lock:
            self._faults.append(fault)
        return fault

    # the transport

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply, or what was injected."""
        return run(self._pass_on(effect), self._perform)

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply, or what was injected."""
        return await arun(self._pass_on(effect), self._aperform)

    def close(self) -> None:
        """Close what stands behind it."""
        if self._sync is not None:
            self._sync.close()

    async def aclose(self) -> None:
        """Close what stands behind it."""
        if self._async is not None:
            await self._async.aclose()

    @property
    def timeout_ms(self) -> float:
        """How long one read may take, in milliseconds."""
        return float(getattr(self._sync or self._async, "timeout_ms", math.inf))

    def _perform(self, effect: Effect[Any]) -> Any:
        if isinstance(effect, Wait):
            time.sleep(effect.ms / 1000)
            return None
        if self._sync is None:
            raise TransportError(f"{type(effect).__name__}: no transport for a Session stands behind FaultyTransport")
        return self._sync.execute(effect)

    async def _aperform(self, effect: Effect[Any]) -> Any:
        if isinstance(effect, Wait):
            await asyncio.sleep(effect.ms / 1000)
            return None
        if self._async is not None:
            return await self._async.aexecute(effect)
        if self._sync is None or self._sync.blocking:
            raise TransportError(f"{type(effect).__name__}: give FaultyTransport(..., async_transport=...), too")
        return self._sync.execute(effect)

    def _pass_on(self, effect: Effect[Any]) -> Plan[Any]:
        effects = effect.effects if isinstance(effect, Together) else (effect,)
        struck = [self._struck(each) for each in effects]
        wait_ms = max((fault.wait_ms for faults in struck for fault in faults), default=0)
        if wait_ms:
            yield from perform(Wait(wait_ms))
        kinds = [{fault.kind for fault in faults} for faults in struck]
        replies: list[Any] = [_instead(each, kind) for each, kind in zip(effects, kinds, strict=True)]
        passed = [place for place, reply in enumerate(replies) if reply is _NOTHING]
        if passed and isinstance(effect, Together):
            found = yield from self._asked_together([effects[place] for place in passed])
            for place, reply in zip(passed, found, strict=True):
                replies[place] = reply
        elif passed:
            replies = [(yield from self._asked(effect))]
        for place, each in enumerate(effects):
            if "lose" in kinds[place]:
                replies[place] = _error(each)
            self._note(each, kinds[place], replies[place])
        if isinstance(effect, Together):
            return tuple(replies)
        if isinstance(replies[0], TransportError):
            raise replies[0]
        return replies[0]

    def _asked(self, effect: Effect[Any]) -> Plan[Any]:
        try:
            return (yield from perform(self._as_sent(effect)))
        except TransportError as error:
            return error

    def _asked_together(self, effects: list[Effect[Any]]) -> Plan[Any]:
        try:
            return (yield from perform(Together(tuple(map(self._as_sent, effects)))))
        except TransportError as error:
            return (error,) * len(effects)

    def _struck(self, effect: Effect[Any]) -> list[Fault]:
        operation = _operation(effect)
        with self._lock:
            return [fault for fault in self._faults if fault.strikes(operation)]

    def _as_sent(self, effect: Effect[Any]) -> Effect[Any]:
        # 1 look-up: a miss, injected   2 lease: would find the value, and the get would be a hit after all
        if isinstance(effect, Lease) and effect.entry.row in self._missed:
            with self._lock:
                self._missed.discard(effect.entry.row)
            return replace(effect, replace=True)
        return effect

    def _note(self, effect: Effect[Any], kinds: set[str], reply: Any) -> None:
        operation = replace(_operation(effect), outcome=_outcome(effect, reply))
        with self._lock:
            self._operations.append(operation)
            if isinstance(effect, Lookup) and "miss" in kinds:
                self._missed.add(effect.entry.row)


_NOTHING = object()  # no reply yet


def _instead(effect: Effect[Any], kinds: set[str]) -> Any:
    """Return the reply to what is not passed on."""
    if "fail" in kinds:
        return _error(effect)
    return None if "miss" in kinds else _NOTHING


def _error(effect: Effect[Any]) -> TransportError:
    return TransportError(f"{type(effect).__name__}: a fault that was injected")


def _operation(effect: Any) -> Operation:
    name = _NAMES.get(type(effect), type(effect).__name__)
    if name in _READS:
        return Operation(name, (effect.entry.row,))
    return Operation(name, (*effect.keys.rows, *effect.keys.tables) if hasattr(effect, "keys") else ())


_OUTCOMES: dict[type, str] = {Hit: "hit", Granted: "granted", Filling: "granted", Fenced: "fenced"}


def _outcome(effect: Effect[Any], reply: Any) -> str:
    if isinstance(reply, TransportError):
        return "failed"
    if isinstance(effect, Lookup):
        return "miss" if reply is None else "hit"
    if isinstance(effect, Fill):
        return "stored" if reply else "refused"
    return _OUTCOMES.get(type(reply), "done")
