"""Invalidations that could not be delivered, for `on_unreachable="serve"`.

A commit that the cache could not be told of goes on. Its keys are owed: until they have been delivered this process
reads them from the database, and it tries again before it asks the cache anything else.
"""

from __future__ import annotations

import threading
import time

from ._effects import Entry, Keys

FIRST_RETRY = 1.0  # seconds until the first attempt; every one that fails doubles the wait
LAST_RETRY = 30.0  # seconds


class Debts:
    """The keys that are owed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fields; never held during I/O
        self._owed: dict[str, bool] = {}  # key -> whether it is a row's
        self._wait = FIRST_RETRY
        self._next_attempt = 0.0  # seconds of time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._owed)

    def __contains__(self, entry: Entry) -> bool:
        return entry.row in self._owed or entry.table in self._owed

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        with self._lock:
            if not self._owed:
                self._wait = FIRST_RETRY
                self._next_attempt = time.monotonic() + FIRST_RETRY
            self._owed.update(dict.fromkeys(keys.rows, True) | dict.fromkeys(keys.tables, False))

    def settle(self, keys: Keys) -> None:
        """Forget keys that have been invalidated."""
        with self._lock:
            for key in (*keys.rows, *keys.tables):
                self._owed.pop(key, None)

    def due(self) -> Keys | None:
        """Return all keys if it is time to try again, and put the next attempt off."""
        with self._lock:
            now = time.monotonic()
            if not self._owed or now < self._next_attempt:
                return None
            self._wait = min(2 * self._wait, LAST_RETRY)
            self._next_attempt = now + self._wait
            rows = tuple(key for key, is_row in self._owed.items() if is_row)
            tables = tuple(key for key, is_row in self._owed.items() if not is_row)
            return Keys(rows, tables)
