"""What happens while the cache does not answer: nobody asks it but one thread, until it does.

    closed   --FAILURES errors in a row-->   open   --an answer, and all that is owed delivered-->   closed

The thread lives while the breaker is open or something is owed. Its attempts become rarer, but never rarer than
LAST_PAUSE: that, and the time of one attempt, is how long a cache that answers again goes unasked. A deadline passes
for the caller's patience, not for the protocol's: a breaker that is wrong costs misses.

Work is never left without a thread for good: where there can be none (after a fork, after `close()`, when the
interpreter has no more of them), the breaker is open, and the first who is refused begins another.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable

from ._debts import Debts
from ._effects import Keys
from .errors import TransportError

log = logging.getLogger("sqlmodel_cache")

FAILURES = 5
FIRST_PAUSE = 0.1  # seconds between two attempts; doubled each time
LAST_PAUSE = 2.0
CALM = 10.0  # seconds after which another outage is another one, and not the last one going on
BATCH = 1_000  # keys that are delivered in one round trip
LAST_CHANCE = 1.0  # seconds that the end of the process waits for what is owed


class Breaker:
    """Whether the cache is asked. Thread-safe."""

    def __init__(self) -> None:
        self.is_open = False
        self.opened = 0  # how often
        self._failures = 0  # in a row
        self._told = False  # whether the log knows that it is open
        self.forked()

    def forked(self) -> None:
        """Begin a process: the lock may be held for good by a thread that has stayed in the parent."""
        self._lock = threading.Lock()  # guards the fields

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
            self.is_open = self._told = True
            self.opened += 1
        log.warning("the cache has failed %d times in a row and is not asked until it answers again", FAILURES)
        return True

    def open(self) -> None:
        """Let nobody ask: there is work, and no thread for it. This is no outage."""
        with self._lock:
            self.is_open = True

    def close(self) -> None:
        """Ask the cache again."""
        with self._lock:
            told, self.is_open, self._told, self._failures = self._told, False, False, 0
        if told:
            log.warning("the cache answers again")


class _Run:
    """One life of the thread. Its fields are guarded by the keeper's lock until the thread is told to stop."""

    def __init__(self) -> None:
        self.thread: threading.Thread
        self.stop = threading.Event()
        self.once_more = False  # whether it tries once more when it is told to stop


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
        self._pause = FIRST_PAUSE  # seconds before the next attempt
        self._succeeded = -CALM  # when an attempt last did, in seconds of time.monotonic()
        self._surprise = ""  # the last error that no transport should raise
        self._lock = threading.Lock()  # guards what follows
        self._run: _Run | None = None
        _begin_anew_after_fork(self)

    def forked(self) -> None:
        """Begin a process: it owes what its parent did, and finds out for itself whether the cache answers."""
        self._lock = threading.Lock()
        self._run = None
        self._breaker.forked()
        self._debts.forked()
        if self._debts:
            self._breaker.open()

    def wake(self) -> None:
        """Begin, if it has not begun. Never raises: whoever owes has committed."""
        if self._run is None:  # so that who is refused takes no lock
            with self._lock:
                if self._run is None and not self._begin(_Run()):
                    self._breaker.open()

    def _begin(self, run: _Run) -> bool:
        run.thread = threading.Thread(target=self._keep, args=(run,), name="sqlmodel-cache-keeper", daemon=True)
        try:
            run.thread.start()
        except RuntimeError:  # there can be no more threads, or the interpreter is at its end
            return False
        self._run = run
        atexit.register(self.close, LAST_CHANCE)
        return True

    def _keep(self, run: _Run) -> None:
        # 1 outage  2 an answer: closed  3 errors again: a cache that answers now and then is not asked more for it
        if not (self._breaker.is_open and time.monotonic() - self._succeeded < CALM):
            self._pause = FIRST_PAUSE
        while not run.stop.wait(self._pause * random.uniform(0.8, 1.2)):  # noqa: S311  many processes try
            if not self.attempt():
                self._pause = min(2 * self._pause, LAST_PAUSE)
            # 1 K: nothing is owed   2 W: owes, finds a thread   3 K: ends   4: nobody delivers it. So under the lock:
            with self._lock:
                if self._run is not run:
                    break
                if not (self._debts or self._breaker.is_open):
                    self._run = None
                    # 1 K: ends   2 W: owes, begins another, registers it   3 K: unregisters it. So under the lock:
                    atexit.unregister(self.close)
                    return
        if run.once_more:
            self.attempt()

    def attempt(self) -> bool:
        """Return whether the cache has answered and nothing is owed. What is owed goes first."""
        try:
            while self._debts:
                self._deliver(self._debts.some(BATCH))
            self._ask()
        except TransportError:
            return False
        except Exception as error:  # a transport that breaks its word: nobody would deliver if this ended the thread
            if self._surprise != str(error):
                self._surprise = str(error)
                log.exception("the cache could not be asked whether it answers again")
            return False
        self._succeeded = time.monotonic()
        self._breaker.close()
        return True

    def close(self, patience: float = 0.0) -> bool:
        """End the thread; with patience, try once more if something is owed. Return whether nothing is.

        `patience` is how many seconds that may take in all. An attempt that takes longer goes on without the caller.
        """
        with self._lock:
            run, self._run = self._run, None
            if run is None and patience > 0 and self._debts and self._begin(_Run()):
                run, self._run = self._run, None
            atexit.unregister(self.close)
            if run is not None:
                run.once_more = patience > 0 and bool(self._debts)
                run.stop.set()
        if run is not None and run.thread is not threading.current_thread():
            run.thread.join(patience)
        if self._debts:
            self._breaker.open()
        return not self._debts


_alive: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _begin_anew_after_fork(keeper: Keeper) -> None:
    """A child has no thread of its parent's, and nobody in it owns a lock that was held."""
    if not _alive and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_all_begin_anew)
    _alive.add(keeper)


def _all_begin_anew() -> None:
    for keeper in _alive:
        keeper.forked()
