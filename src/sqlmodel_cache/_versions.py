"""The version memory: how long this process has known that a row's version stands.

In REPEATABLE READ and above a SELECT shows the transaction's snapshot, which may be older than the lease. It is not
older than the last BEGIN on the row if this process saw the lease's very versions, with nothing pending, before the
transaction began: BEGIN always changes a version, so none lies between.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict

from ._effects import Granted

MAX_ROWS = 10_000


class Versions:
    """The versions that leases named, and when this process first saw each.

    Thread-safe, and bounded: the oldest are forgotten, which costs fills only.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the map
        self._seen: OrderedDict[str, tuple[Granted, float]] = OrderedDict()  # row key -> versions, monotonic seconds

    def since(self, row: str, lease: Granted) -> float:
        """Return when this process first saw these versions, in seconds of `time.monotonic()`; remember them if new."""
        if self._pid != os.getpid():  # who holds the lock has stayed in the parent
            self._forget()
        with self._lock:
            known = self._seen.get(row)
            if known is not None and known[0] == lease:
                return known[1]
            now = time.monotonic()
            self._seen[row] = (lease, now)
            self._seen.move_to_end(row)
            if len(self._seen) > MAX_ROWS:
                self._seen.popitem(last=False)
            return now
