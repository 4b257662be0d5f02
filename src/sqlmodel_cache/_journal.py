"""What was invalidated lately and why, and which commits are in flight: for whoever looks on. Decides nothing.

All of it is bounded, and writing into it is a few operations on a dict and a deque, which need no lock.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from . import _keys
from ._effects import Keys

MAX_NOTES = 200
MAX_KEYS = 64  # of rows, and of shards, that a note remembers: it is to be read by a human
MAX_IN_FLIGHT = 1_000


@dataclass(frozen=True, slots=True)
class Touched:
    """One table of a note: the rows that are remembered, as in keys, or that all of it was invalidated."""

    table: str
    rows: tuple[str, ...]
    whole: bool


class Note(NamedTuple):
    """One invalidation, after it has been sent, or is owed."""

    number: int
    at: float  # seconds since the epoch
    why: str
    keys: Keys  # at most MAX_KEYS of each kind
    rows: int  # how many there were
    shards: int

    def touched(self) -> list[Touched]:
        """Return what was invalidated, by table."""
        rows: dict[str, list[str]] = {_table(key): [] for key in self.keys.tables}
        for key in self.keys.rows:
            rows.setdefault(_table(key), []).append(_pk(key))
        whole = {_table(key) for key in self.keys.tables}
        return [Touched(table, tuple(found), table in whole) for table, found in rows.items()]


class Journal:
    """Notes and commits of one configuration."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=MAX_NOTES)
        self._in_flight: dict[int, tuple[float, Keys]] = {}  # id of the keys -> since, in seconds of time.monotonic()
        self._count = 0

    def began(self, keys: Keys) -> None:
        """Take note of a commit that has fenced these very keys, or is about to."""
        if len(self._in_flight) < MAX_IN_FLIGHT:
            self._in_flight[id(keys)] = time.monotonic(), keys

    def ended(self, keys: Keys) -> None:
        """Take note of its end."""
        self._in_flight.pop(id(keys), None)

    def note(self, keys: Keys, why: str) -> None:
        """Take note of an invalidation."""
        self._count += 1
        few = Keys(keys.rows[:MAX_KEYS], keys.tables[:MAX_KEYS])
        self._notes.append(Note(self._count, time.time(), why, few, len(keys.rows), len(keys.tables)))

    def notes(self) -> list[Note]:
        """Return the last invalidations, the latest first."""
        return list(reversed(self._notes.copy()))

    def in_flight(self, longest: float) -> list[tuple[float, Keys]]:
        """Return the commits in flight and for how many seconds each has been.

        One that has been so for longer than `longest` seconds has been abandoned: its fences have lapsed.
        """
        now = time.monotonic()
        found = []
        for name, (since, keys) in list(self._in_flight.items()):
            if now - since > longest:
                self._in_flight.pop(name, None)
            else:
                found.append((now - since, keys))
        return sorted(found, key=lambda each: each[0], reverse=True)


def _table(key: str) -> str:
    """Return the table that a key names, with its schema, without its database."""
    return _keys.name_of(_keys.table_of(key))


def _pk(row: str) -> str:
    return row[row.index("}") + 2 :]
