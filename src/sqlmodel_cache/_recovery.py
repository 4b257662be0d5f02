"""What happens while the cache does not answer: nobody asks it but one thread, until it does.

    closed   --FAILURES errors in a row-->   open   --an answer, and all that is owed delivered-->   closed

The thread lives while the breaker is open or something is owed. Its attempts become rarer, but never rarer than
LAST_PAUSE: that, and the time of one attempt, is how long a cache that answers again goes unasked. A deadline passes
for the caller's patience, not for the protocol's: a breaker that is wrong costs misses.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
from collections.abc import Callable

from ._debts import Debts
from ._effects import Keys
from .errors import TransportError

log = logging.getLogger("sqlmodel_cache")

FAILURES = 5
FIRST_PAUSE = 0.1  # seconds between two attempts; doubled each time
LAST_PAUSE = 2.0
BATCH = 1_000  # keys that are delivered in one round trip
LAST_CHANCE = 1.0  # seconds that the end of the process waits for what is owed


class Breaker:
    """Whether the cache is asked. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fields
        self.is_open = False
        self.opened = 0  # how often
        self._failures = 0  # in a row

    def answered(self) -> None:
        """Take note of an answer. Every hit does: so it only looks."""
        if self._failures:
            self._failures = 0

    def failed(self) -> bool:
        """Take note of an error; return whether it was one too many."""
        with self._lock:
            self._failures += 1
            if self.is_open or self._failures < FAILURES:
                return False
            self.is_open = True
            self.opened += 1
        log.warning("the cache has failed %d times in a row and is not asked until it answers again", FAILURES)
        return True

    def close(self) -> None:
        """Ask the cache again."""
        with self._lock:
            was_open, self.is_open, self._failures = self.is_open, False, 0
        if was_open:
            log.warning("the cache answers again")


class Keeper:
    """Tries until the cache answers and nothing is owed, in a thread of its own.

    Args:
        ask: raises TransportError unless the cache answers.
        deliver: invalidates keys that are owed; raises TransportError if it could not.
    """

    def __init__(
        self, breaker: Breaker, debts: Debts, *, ask: Callable[[], object], deliver: Callable[[Keys], object]
    ) -> None:
        self._breaker = breaker
        self._debts = debts
        self._ask = ask
        self._deliver = deliver
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the thread
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def wake(self) -> None:
        """Begin, if it has not begun."""
        if self._pid != os.getpid():  # the thread has stayed in the parent
            self._forget()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="sqlmodel-cache-keeper", daemon=True
                )
                self._thread.start()
                atexit.register(self.close, LAST_CHANCE)

    def _run(self, stop: threading.Event) -> None:
        pause = FIRST_PAUSE
        while not stop.wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311  many processes try
            pause = FIRST_PAUSE if self.attempt() else min(2 * pause, LAST_PAUSE)
            # 1 K: nothing is owed   2 W: owes, finds a thread   3 K: ends   4: nobody delivers it. So under the lock:
            with self._lock:
                if not (self._debts or self._breaker.is_open):
                    self._thread = None
                    break
        atexit.unregister(self.close)

    def attempt(self) -> bool:
        """Return whether the cache has answered and nothing is owed. What is owed goes first."""
        try:
            while self._debts:
                self._deliver(self._debts.some(BATCH))
            self._ask()
        except TransportError:
            return False
        self._breaker.close()
        return True

    def close(self, patience: float = 0.0) -> bool:
        """End the thread; with patience, try once more if something is owed. Return whether nothing is.

        `patience` is how many seconds an attempt under way may take to end. The one that follows takes as long as the
        transport's own time-outs.
        """
        with self._lock:
            thread, stop = self._thread, self._stop
            self._thread, self._stop = None, threading.Event()
        stop.set()
        if thread is not None and thread is not threading.current_thread() and self._pid == os.getpid():
            thread.join(patience)
        return not self._debts or (patience > 0 and self.attempt())
