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
        # Also read without the lock, by every get, for whether it is empty.
        self.owed: dict[str, tuple[bool, int]] = {}  # key -> whether it is a row's, and when it was last owed
        self._count = 0  # of all that was ever owed
        self._wait = FIRST_RETRY
        self._next_attempt = 0.0  # seconds of time.monotonic()

    def __bool__(self) -> bool:
        return bool(self.owed)

    def __contains__(self, entry: Entry) -> bool:
        return entry.row in self.owed or entry.table in self.owed

    def owe(self, keys: Keys) -> None:
        """Remember keys."""
        with self._lock:
            if not self.owed:
                self._wait = FIRST_RETRY
                self._next_attempt = time.monotonic() + FIRST_RETRY
            self._count += 1
            self.owed.update(dict.fromkeys(keys.rows, (True, self._count)))
            self.owed.update(dict.fromkeys(keys.tables, (False, self._count)))

    def ticket(self) -> int:
        """Return a number for `settle`, before the invalidation is sent."""
        return self._count

    def settle(self, keys: Keys, ticket: int) -> None:
        """Forget keys that have been invalidated, except what was owed since the ticket."""
        with self._lock:
            for key in (*keys.rows, *keys.tables):
                if key in self.owed and self.owed[key][1] <= ticket:
                    del self.owed[key]

    def due(self) -> Keys | None:
        """Return all keys if it is time to try again, and put the next attempt off."""
        with self._lock:
            now = time.monotonic()
            if not self.owed or now < self._next_attempt:
                return None
            self._wait = min(2 * self._wait, LAST_RETRY)
            self._next_attempt = now + self._wait
            rows = tuple(key for key, (is_row, _) in self.owed.items() if is_row)
            tables = tuple(key for key, (is_row, _) in self.owed.items() if not is_row)
            return Keys(rows, tables)
