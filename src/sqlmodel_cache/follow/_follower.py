"""The loop: read what has committed, invalidate it, and only then let the database forget it.

1 F: reads changes   2 F: invalidates   3 F: confirms to the database   Killed before 3, the changes come again, to
whoever leads next. An invalidation that comes twice costs a miss; one that never comes would cost the promise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from .. import _protocol
from .._debts import Debts
from .._driver import Driver, new_id
from .._effects import Keys
from .._namespace import Naming
from .._plan import Effect, run
from ..errors import FollowerError, InvalidationError
from ._changes import Batch
from ._source import Interrupted, Problem, Source, SourceError, Wake

log = logging.getLogger("sqlmodel_cache")

READ_SECONDS = 0.5  # after which a follower without changes looks up
ELECTION_SECONDS = 0.5  # between two attempts to lead
RETRY_SECONDS = 1.0  # after trouble with the database
FIRST_WAIT, LAST_WAIT = 0.05, 0.5  # seconds between two attempts to invalidate
REPORT_SECONDS = 1.0
MAX_KEYS = 5000  # of one round trip; more take several, each within the transport's time-out


@dataclass(frozen=True, slots=True)
class FollowStats:
    """What a follower has counted since it began, and how it stands.

    Attributes:
        leading: whether it is the one that follows; others wait.
        transactions: committed transactions whose changes have been invalidated and confirmed.
        changes: rows and TRUNCATEs in them, as the database tells them.
        rows: row keys invalidated. `tables`: keys of table shards.
        failures: invalidations that the cache did not acknowledge and that were repeated.
        restarts: times that the database was in trouble and the follower began again.
        started_over: times that the slot was made anew, and everything was invalidated.
        lag: seconds from the latest commit to its invalidation, by two clocks, the database's and this machine's.
        kept_bytes: what the database keeps for the follower.
        alarm: whether that is more than `alarm_bytes`.
        problems: what keeps some tables from being followed, with remedies.
    """

    leading: bool = False
    transactions: int = 0
    changes: int = 0
    rows: int = 0
    tables: int = 0
    failures: int = 0
    restarts: int = 0
    started_over: int = 0
    lag: float = 0.0
    kept_bytes: int = 0
    alarm: bool = False
    problems: tuple[Problem, ...] = ()


Report = Callable[[FollowStats], object]


class Follower:
    """Invalidates what other programs have changed, for as long as `run` runs.

    Args:
        source: where the changes come from.
        driver: of the cache that is told.
        naming: its keys.
        wake: ends the source's waiting.
        namespaces: the first parts of the keys that it invalidates, for whoever wants to see them.
        alarm_bytes: when the database keeps more for the follower, it is logged as a warning, once each time.
        report: called about once a second, and at the end.
    """

    def __init__(
        self,
        source: Source,
        driver: Driver,
        naming: Naming,
        wake: Wake,
        *,
        namespaces: Sequence[str] = (),
        alarm_bytes: int = 1 << 30,
        report: Report | None = None,
    ) -> None:
        self.source = source
        self.namespaces = tuple(namespaces)
        self._driver = driver
        self._naming = naming
        self._wake = wake
        self._alarm_bytes = alarm_bytes
        self._report: Report = report or (lambda stats: None)
        self._reported = 0.0  # seconds of time.monotonic()
        self._debts = Debts()  # stays empty: what cannot be delivered is not confirmed
        self.stats = FollowStats()

    def run(self) -> None:
        """Follow until `stop` is called, whatever the database and the cache do.

        Raises:
            FollowerError: the database cannot be followed as it is, when that is so at the beginning.
        """
        checked = False
        try:
            while True:
                try:
                    if not checked:
                        self.source.check()
                        checked = True
                    self._follow()
                except (SourceError, FollowerError) as trouble:
                    if isinstance(trouble, FollowerError) and not checked:
                        raise
                    self._restart(trouble)
        except Interrupted:
            return
        finally:
            self.source.close()
            self._count(leading=False)
            self._report(self.stats)

    def stop(self) -> None:
        """End `run`, from any thread. What was not confirmed comes again to the next follower."""
        self._wake.set()
        self.source.interrupt()

    async def arun(self) -> None:
        """`run` in a thread of its own; to cancel it is to stop it."""
        pool = ThreadPoolExecutor(1, "sqlmodel-cache-follow")
        running = asyncio.get_running_loop().run_in_executor(pool, self.run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.stop)
            await asyncio.wait([running])
            raise
        finally:
            pool.shutdown(wait=False)

    def _follow(self) -> None:
        while not self.source.lead():
            self._look_up()
            self._wake.wait(ELECTION_SECONDS)
        self._count(leading=True)
        log.info("this follower leads")
        while True:
            for take in (self.source.watch, lambda: self.source.read(READ_SECONDS)):
                batch = take()
                if batch is not None:
                    self._invalidate(batch)
            self._look_up()

    def _invalidate(self, batch: Batch) -> None:
        keys = self._naming.keys(batch.writes)
        for part in _parts(keys):
            self._deliver(part)
        self.source.confirm(batch)
        self._count(
            transactions=self.stats.transactions + batch.transactions,
            changes=self.stats.changes + batch.changes,
            rows=self.stats.rows + len(keys.rows),
            tables=self.stats.tables + len(keys.tables),
        )
        if batch.committed_at is not None:
            self._count(lag=max(0.0, time.time() - batch.committed_at))

    def _deliver(self, keys: Keys) -> None:
        """Invalidate until the cache has acknowledged it."""
        wait = FIRST_WAIT
        while True:
            try:
                run(_protocol.invalidate(keys, self._debts, refuse=True, new_id=new_id), self._execute)
            except InvalidationError as error:
                self._count(failures=self.stats.failures + 1)
                log.warning("changes of others wait for the cache: %s", error.__cause__)
                self._look_up()
                self._wake.wait(wait)
                wait = min(2 * wait, LAST_WAIT)
            else:
                return

    def _execute(self, effect: Effect[Any]) -> Any:
        self.source.alive()
        return self._driver.execute(effect)

    def _restart(self, trouble: Exception) -> None:
        log.warning("the database is not followed: %s", trouble)
        self.source.close()
        problems = self.stats.problems
        if isinstance(trouble, FollowerError):
            problems = tuple(Problem(*pair) for pair in trouble.problems)
        self._count(leading=False, restarts=self.stats.restarts + 1, problems=problems)
        self._report(self.stats)
        self._wake.wait(RETRY_SECONDS)

    def _look_up(self) -> None:
        """Read the source's health, raise the alarm, report."""
        if time.monotonic() < self._reported + REPORT_SECONDS:
            return
        self._reported = time.monotonic()
        health = self.source.health()
        alarm = health.kept_bytes > self._alarm_bytes
        if alarm and not self.stats.alarm:
            log.warning("the database keeps %d bytes for the follower", health.kept_bytes)
        for problem in health.problems:
            if problem not in self.stats.problems:
                log.warning("not followed: %s: %s", *problem)
        self._count(
            kept_bytes=health.kept_bytes, problems=health.problems, started_over=health.started_over, alarm=alarm
        )
        self._report(self.stats)

    def _count(self, **counts: Any) -> None:
        self.stats = replace(self.stats, **counts)


def _parts(keys: Keys) -> Iterator[Keys]:
    """Yield the keys, `MAX_KEYS` at a time."""
    for at in range(0, len(keys.rows), MAX_KEYS):
        yield Keys(keys.rows[at : at + MAX_KEYS], ())
    for at in range(0, len(keys.tables), MAX_KEYS):
        yield Keys((), keys.tables[at : at + MAX_KEYS])
