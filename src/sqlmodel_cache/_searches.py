"""Reads of several rows in few round trips, and of a row by a unique key: the protocol's steps, side by side.

Each row is read as `_protocol.read` reads it, under the same invariants; there are no rules here but that of the hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ._effects import (
    Entry,
    Fenced,
    Granted,
    Hit,
    Lease,
    Loaded,
    LoadMany,
    Locate,
    Located,
    Lookup,
    Together,
)
from ._plan import Effect, Plan, perform
from ._protocol import Answer, NewId, Reading, Source, filling
from .errors import CodecError, TransportError

R = TypeVar("R")
Place = TypeVar("Place")
Decoded = TypeVar("Decoded")


def read_many(
    entries: Sequence[Entry], reading: Reading[Decoded], *, new_id: NewId
) -> Plan[list[Answer[Decoded, Any]]]:
    """Return the rows at several entries, in this order, in at most three round trips and one SELECT.

    It does for each row what `read` does, without waiting for other readers. What the cache does not answer for a
    row is that row's trouble only.
    """
    many = _Many(entries, reading)
    yield from many.look_up()
    yield from many.lease(new_id)
    yield from many.load()
    yield from many.fill()
    return [answer for answer in many.answers if answer is not None]


class _Many(Generic[Decoded]):
    """A `read_many` under way; a row whose place in `answers` is None is still open."""

    def __init__(self, entries: Sequence[Entry], reading: Reading[Decoded]) -> None:
        self.entries = entries
        self.reading = reading
        self.answers: list[Answer[Decoded, Any] | None] = [None] * len(entries)
        self.corrupt: set[int] = set()
        self.unreachable: set[int] = set()
        self.leases: dict[int, Granted] = {}
        self.loaded: dict[int, Loaded[Any]] = {}

    def _open(self) -> list[int]:
        return [at for at, answer in enumerate(self.answers) if answer is None]

    def look_up(self) -> Plan[None]:
        places = self._open()
        replies = yield from self._ask(
            [Lookup(self.entries[at], self.reading.fingerprint, self.reading.near) for at in places]
        )
        for at, reply in zip(places, replies, strict=True):
            if isinstance(reply, TransportError):
                self.unreachable.add(at)
            elif reply is not None:
                self._hit(at, reply)

    def lease(self, new_id: NewId) -> Plan[None]:
        places = [at for at in self._open() if at not in self.unreachable]
        replies = yield from self._ask(
            [Lease(self.entries[at], self.reading.fingerprint, new_id(), replace=at in self.corrupt) for at in places]
        )
        for at, reply in zip(places, replies, strict=True):
            if isinstance(reply, TransportError):
                self.unreachable.add(at)
            elif isinstance(reply, Hit):
                self._hit(at, reply.payload)
            elif isinstance(reply, Granted):
                self.leases[at] = reply

    def _hit(self, at: int, payload: bytes) -> None:
        try:
            self.answers[at] = self.reading.hit(payload)
        except CodecError:
            self.corrupt.add(at)

    def load(self) -> Plan[None]:
        places = tuple(self._open())
        if places:
            encode = tuple(at in self.leases and self.reading.fresh(self.entries[at], self.leases[at]) for at in places)
            loaded: Sequence[Loaded[Any]] = yield from perform(LoadMany(places, encode))
            self.loaded = dict(zip(places, loaded, strict=True))

    def fill(self) -> Plan[None]:
        stored = {at: loaded.payload for at, loaded in self.loaded.items() if at in self.leases and loaded.payload}
        replies = yield from self._ask(
            [filling(self.entries[at], self.reading, self.leases[at], payload) for at, payload in stored.items()]
        )
        filled = dict(zip(stored, replies, strict=True))
        for at, loaded in self.loaded.items():
            self.answers[at] = Answer(self._source(at, filled.get(at)), None, loaded.row, at in self.corrupt)

    def _source(self, at: int, filled: object) -> Source:
        if at in self.unreachable or isinstance(filled, TransportError):
            return Source.UNREACHABLE
        if at not in self.leases:
            return Source.FENCED
        if filled is None:
            return Source.UNCACHED
        return Source.FILLED if filled else Source.REFUSED

    def _ask(self, effects: Sequence[Effect[R]]) -> Plan[tuple[R | TransportError, ...]]:
        if not effects:
            return ()
        try:
            return (yield from perform(Together(tuple(effects))))
        except TransportError as error:
            return (error,) * len(effects)


@dataclass(frozen=True, slots=True)
class Finding(Generic[Place, Decoded]):
    """How a reader wants a row that it names by a unique key.

    Attributes:
        entry: of the unique key. It holds the primary key of the row that had it when it was stored.
        hint: how that is wanted.
        row: tells where the row with a primary key is and how it is wanted, or None where it may not be asked for.
        matches: whether a row has the unique key.
    """

    entry: Entry
    hint: Reading[Place]
    row: Callable[[Place], tuple[Entry, Reading[Decoded]] | None]
    matches: Callable[[Decoded], bool]


def find(finding: Finding[Place, Decoded], *, new_id: NewId) -> Plan[Answer[Decoded, Any]]:
    """Return the row that has a unique key, from the cache or from the database, and fill the cache with what is new.

    1 R: the key's entry says row 5   2 W: row 5 gives the key away, COMMIT, end   3 R: row 5, which has not got it
    Row 5 is looked up after its entry, as any row, and must have the key at that moment: then it is the answer, since
    no two rows have it. So the entry is a hint, and whoever changes the key of a row fences the row alone.
    """
    search = _Search(finding, new_id)
    plan: Plan[Answer[Decoded, Any]] = search.unreachable()
    with suppress(TransportError):
        answer = yield from search.look_up()
        if answer is not None:
            return answer
        yield from search.lease()
        plan = search.load_and_fill()
    return (yield from plan)


class _Search(Generic[Place, Decoded]):
    """A `find` under way."""

    def __init__(self, finding: Finding[Place, Decoded], new_id: NewId) -> None:
        self.finding = finding
        self.new_id = new_id
        self.hinted = False
        self.row: tuple[Entry, Reading[Decoded]] | None = None  # where the hint says that the row is
        self.corrupt = False
        self.lost = False  # a lease was not answered
        self.fenced: set[Entry] = set()  # whose lease was refused
        self.leases: dict[Entry, Granted] = {}

    def look_up(self) -> Plan[Answer[Decoded, Any] | None]:
        """Return the row if the hint leads to it."""
        entry, hint = self.finding.entry, self.finding.hint
        payload = yield from perform(Lookup(entry, hint.fingerprint, hint.near))
        if payload is None:
            return None
        self.hinted = True
        with suppress(CodecError):
            self.row = self.finding.row(hint.decode(payload))
        if self.row is None:
            return None
        entry, reading = self.row
        payload = yield from perform(Lookup(entry, reading.fingerprint, reading.near))
        if payload is None:
            return None
        try:
            answer = reading.hit(payload)
        except CodecError:
            self.corrupt = True
            return None
        return answer if answer.decoded is not None and self.finding.matches(answer.decoded) else None

    def lease(self) -> Plan[None]:
        """Ask for leases on the hint and, where it named one, on the row."""
        entry, hint = self.finding.entry, self.finding.hint
        wanted = [Lease(entry, hint.fingerprint, self.new_id(), replace=self.hinted)]
        if self.row is not None:
            wanted.append(Lease(self.row[0], self.row[1].fingerprint, self.new_id(), replace=self.corrupt))
        replies = yield from perform(Together(tuple(wanted)))
        self.leases = {
            lease.entry: reply for lease, reply in zip(wanted, replies, strict=True) if isinstance(reply, Granted)
        }
        self.lost = any(isinstance(reply, TransportError) for reply in replies)
        self.fenced = {lease.entry for lease, reply in zip(wanted, replies, strict=True) if isinstance(reply, Fenced)}

    def load_and_fill(self) -> Plan[Answer[Decoded, Any]]:
        located: Located[Any] = yield from perform(Locate(encode=bool(self.leases)))
        fills = [
            filling(entry, reading, self.leases[entry], payload)
            for entry, reading, payload in self._new(located)
            if entry in self.leases and reading.fresh(entry, self.leases[entry])
        ]
        replies: tuple[bool | TransportError, ...] = ()
        if fills:
            try:
                replies = yield from perform(Together(tuple(fills)))
            except TransportError as error:
                replies = (error,)
        return Answer(self._source(replies), None, located.loaded.row, self.corrupt)

    def _source(self, filled: tuple[bool | TransportError, ...]) -> Source:
        if self.row is not None and self.row[0] in self.fenced:
            return Source.FENCED
        if True in filled:
            return Source.FILLED
        if self.lost or any(isinstance(reply, TransportError) for reply in filled):
            return Source.UNREACHABLE
        if self.fenced and not self.leases:
            return Source.FENCED
        # 1 R1: look-up of the key, a miss   2 R2: the same, lease, fill   3 R1: lease, a hit: R2 was first
        return Source.UNCACHED if self.leases and not filled else Source.REFUSED

    def _new(self, located: Located[Any]) -> Iterator[tuple[Entry, Reading[Any], bytes]]:
        if located.hint is not None:
            yield self.finding.entry, self.finding.hint, located.hint
        if self.row is not None and located.entry == self.row[0] and located.loaded.payload is not None:
            yield *self.row, located.loaded.payload

    def unreachable(self) -> Plan[Answer[Decoded, Any]]:
        located: Located[Any] = yield from perform(Locate(encode=False))
        return Answer(Source.UNREACHABLE, None, located.loaded.row, self.corrupt)
