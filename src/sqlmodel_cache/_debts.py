"""Invalidations that could not be delivered, for `on_unreachable="serve"`.

A commit that the cache could not be told of goes on. Its keys are owed: until they have been delivered this process
reads them from the database, and somebody keeps trying (`_recovery.py`). What is remembered is bounded: of too many
rows the tables are owed instead, and of too many tables everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from . import _keys
from ._effects import Entry, Keys

MAX_ROWS = 10_000
MAX_TABLES = 10_000  # shards of tables


class Debts:
    """The keys that are owed. Thread-safe.

    Args:
        longest_ttl_ms: when everything is owed, nothing that is stale is left in the cache after that.
        owing: called when something is owed, for whoever delivers it.
    """

    def __init__(
        self, *, longest_ttl_ms: Callable[[], int] = lambda: 0, owing: Callable[[], object] = lambda: None
    ) -> None:
        self.forked()
        self.owed: dict[str, tuple[bool, int]] = {}  # key -> whether it is a row's, and when it was last owed
        self.any = False  # whether a row may be owed; read without the lock, by every get
        self._rows = 0  # how many of them are rows
        self._count = 0  # of all that was ever owed
        self._everything_until = 0.0  # seconds of time.monotonic()
        self.longest_ttl_ms = longest_ttl_ms
        self.owing = owing

    def forked(self) -> None:
        """Begin a process: the lock may be held for good by a thread that has stayed in the parent."""
        self._lock = threading.Lock()  # guards the fields; never held during I/O

    def __bool__(self) -> bool:
        return bool(self.owed)

    def __contains__(self, entry: Entry) -> bool:
        if entry.row in self.owed or entry.table in self.owed:
            return True
        if self._everything_until and time.monotonic() >= self._everything_until:
            with self._lock:
                # 1 R: its time has passed   2 W: everything is owed, again   3 R: forgets it. So it looks once more:
                if time.monotonic() >= self._everything_until:
                    self._everything_until = 0.0
                    self.any = bool(self.owed)
        return self._everything_until > 0

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        with self._lock:
            self._count += 1
            self._remember(keys.rows, is_row=True)
            self._remember(keys.tables, is_row=False)
            if self._rows > MAX_ROWS:
                self._owe_tables()
            if len(self.owed) - self._rows > MAX_TABLES:
                self._owe_everything()
            self.any = True
        self.owing()

    def _remember(self, keys: tuple[str, ...], *, is_row: bool) -> None:
        for key in keys:
            self._rows += is_row and key not in self.owed
            self.owed[key] = is_row, self._count

    def _owe_tables(self) -> None:
        """Owe the tables of all rows in their place."""
        rows = tuple(key for key, (is_row, _) in self.owed.items() if is_row)
        for key in rows:
            del self.owed[key]
        self._rows = 0
        self._remember(tuple({_keys.table_of(key) for key in rows}), is_row=False)

    def _owe_everything(self) -> None:
        """Forget the tables that are too many; until their rows have expired, every row is owed in their place."""
        tables = [key for key, (is_row, _) in self.owed.items() if not is_row]
        for key in tables[MAX_TABLES:]:
            del self.owed[key]
        self._everything_until = time.monotonic() + self.longest_ttl_ms() / 1000

    def ticket(self) -> int:
        """Return a number for `settle`, before the invalidation is sent."""
        return self._count

    def settle(self, keys: Keys, ticket: int) -> None:
        """Forget keys that have been invalidated, except what was owed since the ticket."""
        with self._lock:
            for key in (*keys.rows, *keys.tables):
                if key in self.owed and self.owed[key][1] <= ticket:
                    self._rows -= self.owed.pop(key)[0]
            self.any = bool(self.owed) or self._everything_until > 0

    def some(self, most: int) -> Keys:
        """Return keys to deliver next, at most so many."""
        with self._lock:
            keys = list(self.owed.items())[:most]
            rows = tuple(key for key, (is_row, _) in keys if is_row)
            return Keys(rows, tuple(key for key, (is_row, _) in keys if not is_row))
