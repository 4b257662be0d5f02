"""The cache of a scenario as a value: a `MemoryTransport` that can be put into any state, and asked what comes next.

The state of one row's two keys is a pair of tuples. Versions get canonical names after each step: R and T for the
ones that the keys hold now, "-" for every other. That is exact, because a version is never used again: a dead lease
stays dead, whatever its bytes were.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, TypeAlias

from protocol.programs import ENTRY, FINGERPRINT, Process, decode, payload_of, reader

from sqlmodel_cache import MemoryTransport, _protocol
from sqlmodel_cache._effects import ABSENT, Fenced, Fill, Filling, Granted, Hit, Lease, Load, Loaded, Lookup
from sqlmodel_cache._plan import Effect, run
from sqlmodel_cache._protocol import Reading, Source
from sqlmodel_cache.errors import CodecError
from sqlmodel_cache.transport.memory import _Fence, _Value

Cell: TypeAlias = tuple[Any, ...] | None
"""None, or one of

("F", version, ((token, deadline), ...), election, whether it is the table's and names the server of now)
("V", version, table version, ((fingerprint, payload), ...))
"""

NOW = 1_000.0  # seconds; the clock stands still, and deadlines lapse by being set to zero
LATER = NOW + 3_600.0
DEAD, LIVE_ROW, LIVE_TABLE = b"-", b"R", b"T"
REPEATED = b"again"  # a mutant's versions that begin so come back: they keep their bytes


class Cells(NamedTuple):
    """What the cache holds."""

    row: Cell
    table: Cell


EMPTY = Cells(None, None)


@dataclass(frozen=True, slots=True)
class Elected(Granted):
    """A lease whose holder is elected. `Granted.elected` does not count in comparisons; here it makes a difference."""


@dataclass(frozen=True)
class Names:
    """How the versions of one step are renamed."""

    row: bytes | None  # what the row's fence or value holds, as the transport made it
    table: bytes | None

    def of_lease(self, granted: Granted) -> Granted:
        """Return a lease with canonical names."""
        kind = Elected if granted.elected else Granted
        return kind(self.of_row(granted.version), self.of_table(granted.table_version), granted.elected)

    def of_row(self, version: bytes) -> bytes:
        """Return the canonical name of a row's version."""
        if version.startswith(REPEATED):
            return version
        return LIVE_ROW if version == self.row else DEAD

    def of_table(self, version: bytes) -> bytes:
        """Return the canonical name of a table's version."""
        return LIVE_TABLE if version == self.table else DEAD

    def of_reply(self, reply: Any) -> Any:
        """Return a reply with canonical names."""
        if isinstance(reply, Filling):
            return Filling(self.of_lease(reply.lease), reply.left_ms)
        if type(reply) is tuple:
            return tuple(map(self.of_reply, reply))
        return self.of_lease(reply) if isinstance(reply, Granted) else reply


class AllNames(Names):
    """No version is renamed."""

    def of_row(self, version: bytes) -> bytes:
        """Return the version."""
        return version

    of_table = of_row


ALL_NAMES = AllNames(LIVE_ROW, LIVE_TABLE)


class Shelf:
    """Executes effects on a transport that is set to given cells. Answers are remembered."""

    def __init__(self, transport: type[MemoryTransport], *, exact: bool = False) -> None:
        self._now = NOW
        self._exact = exact  # whether versions keep their bytes, since what is forgotten may come back
        self._transport = transport(clock=lambda: self._now)
        self._done: dict[tuple[Cells, Effect[Any]], tuple[Cells, Any, Names]] = {}
        self._quiet: dict[tuple[Cells, int], bool] = {}

    def execute(self, cells: Cells, effect: Effect[Any]) -> tuple[Cells, Any, Names]:
        """Return the cells after an effect, its reply, and the names of both."""
        known = self._done.get((cells, effect))
        if known is None:
            self._put(cells)
            reply = self._transport.execute(effect)
            after, names = canonical(self._take()) if not self._exact else (self._take(), ALL_NAMES)
            known = self._done[cells, effect] = after, names.of_reply(reply), names
        return known

    def hit(self, cells: Cells, fingerprint: bytes, current: int) -> int | None:
        """Return the version that a fresh reader hits now, by its lookup or by its lease, or None for a miss.

        A hit that is not the current version comes first.
        """
        found = self.execute(cells, Lookup(ENTRY, fingerprint))[1]
        leased = self.execute(cells, Lease(ENTRY, fingerprint, b"fresh".ljust(16)))[1]
        hits: list[int] = []
        for payload in (found, leased.payload if isinstance(leased, Hit) else None):
            with suppress(CodecError):
                hits += [] if payload is None else [decode(payload)]
        return min(hits, key=lambda hit: hit == current, default=None)

    def recovers(self, cells: Cells, current: int) -> bool:
        """Return whether two quiet reads end in a hit, once all deadlines have passed."""
        if (cells, current) not in self._quiet:
            self._put(cells)
            self._now = LATER

            def execute(effect: Effect[Any]) -> Any:
                return Loaded(current, payload_of(current)) if type(effect) is Load else self._transport.execute(effect)

            ids = iter((b"quiet1".ljust(16), b"quiet2".ljust(16), b"quiet3".ljust(16)))
            for _ in range(2):
                reading = Reading(FINGERPRINT, decode, ttl_ms=1)
                plan = _protocol.read(ENTRY, reading, new_id=lambda: next(ids))
                answer = run(plan, execute)
            self._now = NOW
            found = 0 if answer.source is Source.ABSENT else answer.decoded
            self._quiet[cells, current] = answer.source in (Source.HIT, Source.ABSENT) and found == current
        return self._quiet[cells, current]

    def filled(self, payload: bytes) -> Cells:
        """Return the cells after one read through the real plan that stored `payload`."""
        cells = EMPTY

        def execute(effect: Effect[Any]) -> Any:
            nonlocal cells
            if type(effect) is Load:
                return Loaded(0, payload)
            cells, reply, _ = self.execute(cells, effect)
            return reply

        run(reader()(Process("R0")), execute)
        return cells

    def _put(self, cells: Cells) -> None:
        transport = self._transport
        transport._rows.clear()
        transport._tables.clear()
        transport._count = 0
        if cells.row is not None:
            transport._rows[ENTRY.row] = _load(cells.row, transport)
        if cells.table is not None:
            fence = _load(cells.table, transport)
            assert isinstance(fence, _Fence)
            transport._tables[ENTRY.table] = fence

    def _take(self) -> Cells:
        transport = self._transport
        server = transport._server
        return Cells(_save(transport._rows.get(ENTRY.row), server), _save(transport._tables.get(ENTRY.table), server))


def canonical(cells: Cells) -> tuple[Cells, Names]:
    """Return cells with canonical names, and the renaming."""
    row, table = cells
    names = Names(None if row is None else row[1], None if table is None else table[1])
    if row is not None:
        row = (row[0], names.of_row(row[1]), *row[2:])
        if row[0] == "V":
            row = (*row[:2], names.of_table(row[2]), *row[3:])
    if table is not None:
        table = (table[0], LIVE_TABLE, *table[2:])
    return Cells(row, table), names


def pending(cell: Cell) -> tuple[bytes, ...]:
    """Return the tokens of a cell whose deadline has not passed."""
    if cell is None or cell[0] != "F":
        return ()
    return tuple(token for token, deadline in cell[2] if deadline > NOW * 1000)


def lapsed(cell: Cell, token: bytes) -> Cell:
    """Return the cell after the deadline of a token has passed; it is still written there."""
    assert cell is not None
    return (*cell[:2], tuple((held, 0.0 if held == token else deadline) for held, deadline in cell[2]), *cell[3:])


def elected(cell: Cell) -> bool:
    """Return whether somebody is elected to fill, and has time left."""
    return cell is not None and cell[0] == "F" and cell[3] > NOW * 1000


def too_late(cell: Cell) -> Cell:
    """Return the cell after the time of the elected one has passed."""
    assert cell is not None
    return (*cell[:3], 0.0, *cell[4:])


def elsewhere(cells: Cells) -> Cells:
    """Return the cells as another server has them: its name is not the one that the table's key holds."""
    return Cells(cells.row, None if cells.table is None else (*cells.table[:4], False))


def show(cells: Cells) -> str:
    """Return the cells in a few words."""
    return f"R={_show(cells.row)} T={_show(cells.table)}"


def word(effect: Effect[Any], reply: Any) -> str:
    """Return a reply in a word or two."""
    match effect, reply:
        case _, Hit(payload):
            return f"hit, {_text(payload)}"
        case _, Granted():
            return "granted and elected" if reply.elected else "granted"
        case _, Filling():
            return "granted, another is elected"
        case _, Fenced():
            return "fenced"
        case Lookup(), None:
            return "miss"
        case Lookup(), bytes(payload):
            return f"hit, {_text(payload)}"
        case Fill(), bool(stored):
            return f"{_text(effect.payload)} {'accepted' if stored else 'refused'}"
    return "done"


def _text(payload: bytes) -> str:
    if payload == ABSENT:
        return "no such row"
    return f"v{payload.decode()}" if payload[:1] != b"-" else "an uncommitted value"


def _show(cell: Cell) -> str:
    if cell is None:
        return "absent"
    if cell[0] == "V":
        return f"VALUE({', '.join(_text(payload) for _, payload in cell[3])})"
    tokens = [token.decode().strip(".") for token in pending(cell)]
    return f"FENCE{{{', '.join(tokens + ['elected'] * elected(cell))}}}"


def _save(held: _Fence | _Value | None, server: object) -> Cell:
    if held is None:
        return None
    if isinstance(held, _Value):
        return ("V", held.version, held.table_version, tuple(held.payloads.items()))
    return ("F", held.version, tuple(sorted(held.pending.items())), held.election, held.server is server)


def _load(cell: tuple[Any, ...], transport: MemoryTransport) -> _Fence | _Value:
    if cell[0] == "V":
        return _Value(cell[1], cell[2], dict(cell[3]), inf)
    return _Fence(cell[1], dict(cell[2]), election=cell[3], server=transport._server if cell[4] else None)
