"""Has a share of the hits verified, once they are answered: in a thread, or, of asyncio engines, by who asked.

It must not be noticed. A hit is dropped, not queued, where there are some already; where its engine has no idle
connection to lend; and where sessions share one connection, because a SELECT on that is in their transaction. Nothing
that fails here reaches anybody. The thread lives while there is work, so that there is none to end after a fork.

A thread has no use for an asyncio engine's connections, and a task of ours would have to end before the application's
loop does, with a connection in its hands. So the get that is drawn waits for its own verification, which ends with it:
one at a time, and not for long.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
PATIENCE = 1.0  # seconds that a get of an asyncio engine, or `settle`, waits for the row that is being looked at


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
        self._awaited = False  # whether a get waits for its verification
        self._rests_until = -math.inf  # seconds of time.monotonic(): so long no get waits

    def draws(self) -> bool:
        """Return whether this hit is one of the share."""
        return random.random() < self._share  # noqa: S311

    def offer(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> None:
        """Have a hit verified, unless that would be in somebody's way. Never raises, but what cancels its caller.

        It waits for nothing, but where the engine is an asyncio one: there it is called in a greenlet.
        """
        try:
            sample = self._sample(session, lane, key)
            if sample is None:
                return
            if sample.engine.dialect.is_async:
                # 1 A: locks the table, or the SQLite file   2 A: get, a hit   3 V: SELECT, waits for A, which awaits V
                if not lane.transactions:
                    _sqlalchemy.wait_for(self._verify(sample))
                return
            with self._lock:
                if len(self._waiting) < WAITING:
                    self._waiting.append(sample)
                    self._wake()
        except Exception:
            log.debug("a hit could not be offered for verification", exc_info=True)

    def _sample(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> Sample | None:
        if self._closed:
            return None
        if self._pid != os.getpid():
            self._begin()
        text = lane.entity.table.pk_text(key[1])
        engine = session.get_bind(lane.entity.mapper)
        if text is None or not isinstance(engine, Engine) or not _lends(engine):
            return None
        return Sample(lane.entity, engine, lane.ref, key[1], text)

    async def _verify(self, sample: Sample) -> None:
        """Verify a hit in the task that has asked for it, if none does so now, and the last has not taken too long."""
        with self._lock:
            if self._awaited or time.monotonic() < self._rests_until:
                return
            self._awaited = True
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        limit = asyncio.timeout(PATIENCE)
        try:
            with suppress(TimeoutError):
                async with limit:
                    await _sqlalchemy.in_new_greenlet(self._check, sample)
        finally:
            self._awaited = False
            if limit.expired():
                self._rests_until = time.monotonic() + QUIET
        # 1 cancelled   2 the SELECT's connection is given up, and a listener raises   3 `_check` has caught just that
        if task is not None and task.cancelling() > cancelled:
            raise asyncio.CancelledError

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
    if isinstance(pool, QueuePool):
        return pool.checkedout() < max(pool.size(), 1)
    return not shares_transactions(pool)
