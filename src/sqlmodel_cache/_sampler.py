"""Has a share of the hits verified, in a thread, once they are answered.

It must not be noticed. A hit is dropped, not queued, where there are some already; where its engine has no idle
connection to lend; and where sessions share one connection, because a SELECT on that is in their transaction. So are
those of asyncio engines: a thread has no use for their connections, and a task that is cancelled in the middle of a
SELECT may keep its loop from ending. Nothing that fails here reaches anybody. The thread lives while there is work, so
that there is none to end after a fork.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from . import _sqlalchemy
from ._admission import Lane
from ._shapes import Entity
from ._verifier import Difference, Verifier
from ._verify import Verdict
from ._writeset import TableRef, shares_transactions

log = logging.getLogger("sqlmodel_cache")

WAITING = 16  # hits that wait for the thread; more are dropped
QUIET = 60.0  # seconds between two warnings of one table
PATIENCE = 1.0  # seconds that `settle` waits for the row that is being looked at


@dataclass(frozen=True, slots=True)
class Sample:
    """A hit to verify."""

    entity: Entity
    engine: Engine
    ref: TableRef
    pk: tuple[Any, ...]
    text: str


class Sampler:
    """Verifies hits.

    Args:
        share: of the hits.
        invalidate: called for a row that was found to be wrong.
        hides: whether primary keys stay out of the log.
    """

    def __init__(
        self,
        share: float,
        verifier: Verifier,
        invalidate: Callable[[TableRef, str], None],
        *,
        hides: bool,
    ) -> None:
        self._share = share
        self._verifier = verifier
        self._invalidate = invalidate
        self._hides = hides
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        """Begin a process: its parent's thread is not in it, and may have left the lock held."""
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards what follows
        self._waiting: deque[Sample] = deque()
        self._thread: threading.Thread | None = None
        self._warned: dict[TableRef, float] = {}  # when, in seconds of time.monotonic()

    def draws(self) -> bool:
        """Return whether this hit is one of the share."""
        return random.random() < self._share  # noqa: S311

    def offer(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> None:
        """Have a hit verified, unless that would be in somebody's way. Never raises, and never waits."""
        try:
            self._offer(session, lane, key)
        except Exception:
            log.debug("a hit could not be offered for verification", exc_info=True)

    def _offer(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> None:
        if self._closed:
            return
        text = lane.entity.table.pk_text(key[1])
        engine = session.get_bind(lane.entity.mapper)
        if text is None or not isinstance(engine, Engine) or not _lends(engine):
            return
        sample = Sample(lane.entity, engine, lane.ref, key[1], text)
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if len(self._waiting) < WAITING:
                self._waiting.append(sample)
                self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="sqlmodel-cache-verifier", daemon=True)
            with suppress(RuntimeError):  # no more threads: the next hit tries again
                thread.start()
                self._thread = thread

    def _work(self) -> None:
        while True:
            # 1 T: nothing waits   2 a hit is offered, finds a thread   3 T: ends   4 nobody looks. So under the lock:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                sample = self._waiting.popleft()
            self._check(sample)

    def _check(self, sample: Sample) -> None:
        try:
            found = self._verifier.check(sample.entity, sample.engine, sample.pk, sample.ref)
            if self._closed:
                return
            if found.verdict in (Verdict.MATCHED, Verdict.DIFFERS):
                sample.entity.counters.verified += 1
            if found.difference is not None:
                sample.entity.counters.discrepancies += 1
                self._warn(sample, found.difference)
                self._invalidate(sample.ref, sample.text)
        except Exception:
            log.debug("a hit could not be verified", exc_info=True)

    def _warn(self, sample: Sample, difference: Difference) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._warned.get(sample.ref, -QUIET) < QUIET:
                return
            self._warned[sample.ref] = now
        reason, columns = difference
        log.warning(
            "%s %s is not in the cache as it is in the database (%s%s), and is invalidated: something writes it that "
            "the library does not hear of. SQLModelCache.verify() tells how many rows there are",
            sample.entity.class_.__qualname__,
            "(a row)" if self._hides else sample.text,
            reason,
            f": {', '.join(columns)}" if columns else "",
        )

    def settle(self, patience: float = PATIENCE) -> None:
        """Drop what waits, and let the thread come to its end, for so many seconds at most."""
        with self._lock:
            self._waiting.clear()
            thread = self._thread
        if thread is not None and patience:
            thread.join(patience)

    def close(self) -> None:
        """Verify nothing any more. It waits for nobody; what is being looked at is not counted."""
        self._closed = True
        self.settle(0)


def _lends(engine: Engine) -> bool:
    """Return whether an engine has a connection to spare, on which a SELECT is in nobody's transaction."""
    pool = engine.pool
    if engine.dialect.is_async:
        return False
    if isinstance(pool, QueuePool):
        return pool.checkedout() < max(pool.size(), 1)
    return not shares_transactions(pool)
