"""Rows in this process's memory, in front of the transport: which are kept, and which may still be served.

A look-up that goes to the transport takes a ticket first. Its payload is stored only if nothing has been heard of the
row or of its table since; what is heard of later evicts it. Three voices are heard: this process's own BEGIN and END,
the cache's word on keys that anybody has written, and the silence of a connection that is lost. Nothing here knows
Redis or threads: `transport/tracking.py` is the ear.

N1  A payload is stored only if its look-up was sent after its ticket, and neither row nor table has moved since.
N2  A fence of this process is heard of when the reply to its BEGIN or END is in hand, or will never be.
N3  Nothing is served unless the connection has answered a PING that was sent less than `LATE` ago. What it had to
    tell before that has then been heard.
N4  Nothing is served whose look-up was sent `max_age` ago.

N1 and N2 are why this process is never stale after its own commits:

    1 R: ticket, look-up, old row   2 W: BEGIN's reply, R's ticket is dead, its row is evicted   3 W: COMMIT
    4 R: look-up: fenced, no hit    5 W: END's reply   6 R: look-up: whatever it hits was filled after the COMMIT

Others depend on what is heard, which takes as long as a message does, and is bounded by N3 and N4.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ._effects import Begin, End, Entry, Lookup, NearPayload, Together
from ._plan import Effect, Plan, perform

LATE = 1.0  # seconds from a PING until, without an answer, the connection counts as lost
MAX_MOVED = 5_000  # keys that are remembered as moved: a ticket lives for a few milliseconds


class Ticket(NamedTuple):
    """When a look-up was sent."""

    heard: int  # how much had been heard by then
    until: float  # seconds of the clock: when its payload is too old


class _Held:
    """A row's payload, and the ticket under which it was looked up. Never changed."""

    __slots__ = ("fingerprint", "heard", "payload", "until")

    def __init__(self, payload: NearPayload, fingerprint: bytes, ticket: Ticket) -> None:
        self.payload = payload
        self.fingerprint = fingerprint
        self.heard, self.until = ticket


class Near:
    """The rows that this process has looked up lately. Thread-safe, and bounded.

    A row is kept in one shape, the one that was looked up last. When there are too many rows, the one that was stored
    first goes: a hit changes nothing, so it takes no lock, and the oldest row is the first to be too old in any case.

    Args:
        max_rows: how many rows are kept.
        max_age: seconds for which a row is served.
        clock: seconds as a float; replace it in tests to let time pass.
    """

    kinds = frozenset({Lookup, Begin, End, Together})
    """The effects that `plan` takes."""

    def __init__(self, max_rows: int, max_age: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_rows = max_rows
        self._max_age = max_age
        self._clock = clock
        self.connect: Callable[[], object] = lambda: None  # called by look-ups for as long as nobody listens
        self.forget()

    def forget(self) -> None:
        """Be as new: nothing is held, and nobody listens. For a process that has been forked, too."""
        self._lock = threading.Lock()  # guards all writes to the fields below; `find` and `ticket` read without it
        self._rows: OrderedDict[str, _Held] = OrderedDict()  # by row key, the one that was stored first at the front
        self._count = 0  # of what was ever heard
        self._moved: dict[str, int] = {}  # row key -> the count when it was last heard of
        self._floor = 0  # the count under which any row may have moved
        self._moved_tables: dict[str, int] = {}  # table key -> the same
        self._table_floor = 0
        self._alive_until = float("-inf")  # N3, seconds of the clock

    def __len__(self) -> int:
        return len(self._rows)

    # what the driver performs

    def plan(self, effect: Any) -> Plan[Any]:
        """Return the plan that performs an effect of one of the `kinds` with this cache in front."""
        match effect:
            case Together(effects):
                return self._together(effects)
            case Begin() | End():
                return self._tell(effect)
        return self._look_up(effect)

    def _look_up(self, lookup: Lookup) -> Plan[bytes | None]:
        payload: bytes | None = self.find(lookup)
        if payload is None:
            ticket = self.ticket()
            payload = yield from perform(lookup)
            self.store(lookup, payload, ticket)
        return payload

    def _tell(self, effect: Begin | End) -> Plan[None]:
        # 1 W: BEGIN is heard of here  2 R: ticket, look-up, old row  3 W: BEGIN, COMMIT  4 R: hit: why not before it
        # 1 W: COMMIT   2 R2 reads the new row, from the database   3 R: hit, the old row   4 W: END: why not END alone
        try:
            yield from perform(effect)
        finally:  # a command whose reply is lost, or not waited for, may have arrived
            self.hear((*effect.keys.rows, *effect.keys.tables))

    def _together(self, effects: tuple[Effect[Any], ...]) -> Plan[tuple[Any, ...]]:
        replies: dict[int, Any] = {}
        asked: dict[int, Lookup] = {}
        told: list[str] = []
        for at, effect in enumerate(effects):
            if isinstance(effect, Begin | End):
                told += (*effect.keys.rows, *effect.keys.tables)
            elif isinstance(effect, Lookup) and effect.near:
                replies[at] = self.find(effect)
                if replies[at] is None:
                    asked[at] = effect
        left = [at for at in range(len(effects)) if replies.get(at) is None]
        if left:
            ticket = self.ticket() if asked else None
            try:
                replies |= zip(left, (yield from perform(Together(tuple(effects[at] for at in left)))), strict=True)
            finally:
                if told:
                    self.hear(told)
            for at, lookup in asked.items():
                self.store(lookup, replies[at], ticket)
        return tuple(replies[at] for at in range(len(effects)))

    # rows

    def find(self, lookup: Lookup) -> NearPayload | None:
        """Return the payload if it is held, and may still be served."""
        row, table = lookup.entry
        held = self._rows.get(row)
        if held is None or held.fingerprint != lookup.fingerprint:
            return None
        now = self._clock()
        if now >= held.until or now >= self._alive_until:
            return None
        moved = self._moved_tables.get(table)  # before the floor, which is raised before these are forgotten
        return None if held.heard < (self._table_floor if moved is None else moved) else held.payload

    def ticket(self) -> Ticket | None:
        """Return what a look-up is stored under, before it is sent; None if nobody listens."""
        # 1 R: asks whether somebody listens   2 lost   3 R: looks at the count   4 W: writes   5 opened   6 R: stores
        count = self._count  # so the count is read first: what is lost after that has moved everything
        now = self._clock()
        if now < self._alive_until:
            return Ticket(count, now + self._max_age)
        self.connect()
        return None

    def store(self, lookup: Lookup, payload: object, ticket: Ticket | None) -> None:
        """Hold a payload, unless it is none or empty, or something has been heard of its keys since the ticket (N1)."""
        if ticket is None or not payload or not isinstance(payload, bytes):
            return  # what could not be opened is asked for again: it is about to be replaced
        row = lookup.entry.row
        held = _Held(NearPayload(payload), lookup.fingerprint, ticket)
        with self._lock:
            # 1 R: look-up, old row   2 W: BEGIN, COMMIT, END   3 it is heard of here   4 R: the reply arrives
            if self._has_moved(lookup.entry, ticket.heard):
                return
            self._rows.pop(row, None)
            self._rows[row] = held
            if len(self._rows) > self._max_rows:
                self._rows.popitem(last=False)

    def _has_moved(self, entry: Entry, heard: int) -> bool:
        row = self._moved.get(entry.row, self._floor)
        return heard < max(row, self._moved_tables.get(entry.table, self._table_floor))

    # what is heard

    def hear(self, keys: Iterable[str]) -> None:
        """Take note that keys have been written: rows are evicted, and all rows of a table are no longer served."""
        with self._lock:
            self._count = count = self._count + 1
            for key in keys:
                if key.endswith("}"):  # a table's; what a row's key ends with has its braces escaped
                    self._moved_tables[key] = count
                else:
                    self._rows.pop(key, None)
                    self._moved[key] = count
            # Forgotten keys count as moved just now. It costs a few stores, or for tables the rows that are held.
            if len(self._moved) > MAX_MOVED:
                self._floor = count
                self._moved.clear()
            if len(self._moved_tables) > MAX_MOVED:
                self._table_floor = count
                self._moved_tables.clear()

    def empty(self) -> None:
        """Take note that anything may have been written."""
        with self._lock:
            self._count = self._floor = self._table_floor = self._count + 1
            self._rows.clear()
            self._moved.clear()
            self._moved_tables.clear()

    def alive(self, sent: float) -> None:
        """Take note that everything has been heard that was to be told until `sent`, in seconds of the clock."""
        self._alive_until = sent + LATE

    def lost(self) -> None:
        """Take note that nobody listens any more."""
        self._alive_until = float("-inf")
        self.empty()
