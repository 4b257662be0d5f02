"""The worker processes: lanes of readers and writers, in threads on psycopg or in tasks on asyncpg.

A lane is written once, as sync code. An asyncio lane runs it in a greenlet, as an `AsyncSession` runs its session.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlmodel import Session, create_engine

from soak import writes
from soak.ledger import LATE, Finding, Ledger, Writing, judge
from soak.rows import some_rows
from soak.tables import Item
from soak.tally import Tally
from soak.transports import delay_commits, transports
from sqlmodel_cache import InvalidationError, SQLModelCache

FENCE_TTL = 2.0  # seconds; longer than a COMMIT with every delay, and not longer than the gap between two faults
MAX_FINDINGS = 200  # that one lane sends in full; the rest is counted
LANES = 2  # of one worker


@dataclass(frozen=True)
class Job:
    """What a worker process shall be."""

    name: str
    writes: bool
    is_async: bool
    first_lane: int
    mode: str
    seed: int
    database_url: str
    redis_url: str


class Known(NamedTuple):
    """What was known of a row before a get of it began, at `at`, in seconds of CLOCK_MONOTONIC."""

    owed: int
    seen: int
    outside: int  # an outsider's, owed or not
    at: float


@dataclass
class Lane:
    """One thread's or task's work, turn by turn."""

    ledger: Ledger
    number: int
    writes: bool
    engine: Engine
    tally: Tally
    sent: int = 0
    latest: float = 0.0  # seconds that a read has come after an outsider's commit that it did not see

    def __post_init__(self) -> None:
        self.snapshots = self.engine.execution_options(isolation_level="REPEATABLE READ")

    def pause(self) -> float:
        """Return the seconds until the next turn: so few writes that there is something to hit."""
        return random.uniform(0, 0.05 if self.writes else 0.002)

    def turn(self) -> None:
        """Read or write once."""
        if not self.writes:
            self._read()
        elif random.random() < 0.75:
            self._write_in_session()
        else:
            self._write_on_connection()

    def _get(self, session: Session, pk: int, known: Known) -> None:
        """Get a row, and judge it by what was known before."""
        item = session.get(Item, pk)
        self.tally.counts["reads"] += 1
        if item is not None and item.version < known.outside:
            self._late(pk, item.version, known)
        finding = judge(self.ledger, self.number, pk, known.owed, known.seen, known.at, item)
        if finding is not None:
            self.tally.counts[finding.kind] += 1
            self.sent += 1
            if self.sent <= MAX_FINDINGS:
                self.tally.findings.append(finding)

    def _late(self, pk: int, version: int, known: Known) -> None:
        """Count a read that is older than an outsider's commit; send those that may be the latest."""
        self.tally.counts[LATE] += 1
        late = known.at - self.ledger.returned_at[known.outside]
        if late > self.latest:
            self.latest = late
            self.tally.findings.append(Finding(LATE, pk, version, known.outside, known.at))

    def _known(self, pk: int) -> Known:
        ledger = self.ledger
        return Known(ledger.committed(pk), ledger.seen(pk), ledger.committed_outside(pk), time.monotonic())

    def _read(self) -> None:
        pks = some_rows(random.randint(1, 5))
        if random.random() < 0.8:
            with Session(self.engine) as session:
                for pk in pks:
                    self._get(session, pk, self._known(pk))
        else:  # what it is owed begins with the transaction, and others may have seen more
            known = {pk: self._known(pk) for pk in pks}
            with Session(self.snapshots) as session:
                for pk in pks:
                    self._get(session, pk, known[pk]._replace(seen=0))

    def _write_in_session(self) -> None:
        account = self.ledger.transaction(self.number)
        with Session(self.engine) as session:
            try:
                if random.random() < 0.3:
                    [pk] = some_rows(1)
                    self._get(session, pk, self._known(pk))
                random.choice(writes.BY_SESSION)(session, account)
                if random.random() < 0.3:
                    writes.check_own_writes(session, account)
                if random.random() < 0.15:
                    account.undo()
                    session.rollback()
                    self.tally.counts["rolled back"] += 1
                    return
                session.flush()
                account.sent()
                session.commit()
            except InvalidationError:
                self._refused(account)
                return
        self._committed(account)

    def _write_on_connection(self) -> None:
        account = self.ledger.transaction(self.number)
        try:
            with self.engine.begin() as connection:
                random.choice(writes.BY_CONNECTION)(connection, account)
                account.sent()
        except InvalidationError:
            self._refused(account)
            return
        self._committed(account)

    def _committed(self, account: Writing) -> None:
        account.returned()
        self.tally.counts["writes"] += 1

    def _refused(self, account: Writing) -> None:
        account.undo()
        self.tally.counts["refused"] += 1


def work(job: Job, ledger: Ledger, pipe: Pipe) -> None:
    """Be a worker process, until the ledger says stop or a lane fails."""
    random.seed(job.seed)
    sync, async_ = transports(job.mode, job.redis_url)
    SQLModelCache.configure(sync, async_transport=async_, fence_ttl=FENCE_TTL, on_unreachable="refuse")
    tally = Tally(_stats)
    with tally.reporting(pipe):
        if job.is_async:
            asyncio.run(_run_tasks(job, ledger, tally))
        else:
            _run_threads(job, ledger, tally)


def _stats() -> Counter[str]:
    stats = SQLModelCache.stats()
    return Counter(hits=stats.hits, misses=stats.misses, bypasses=stats.bypasses)


def _run_threads(job: Job, ledger: Ledger, tally: Tally) -> None:
    engine = create_engine(make_url(job.database_url).set(drivername="postgresql+psycopg"))
    delay_commits(engine)

    def run(lane: Lane) -> None:
        while not ledger.stop.value:
            _guarded(lane, lane.turn)
            time.sleep(lane.pause())

    lanes = [Lane(ledger, job.first_lane + n, job.writes, engine, tally) for n in range(LANES)]
    threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()


async def _run_tasks(job: Job, ledger: Ledger, tally: Tally) -> None:
    engine: AsyncEngine = create_async_engine(make_url(job.database_url).set(drivername="postgresql+asyncpg"))
    delay_commits(engine.sync_engine)

    async def run(lane: Lane) -> None:
        while not ledger.stop.value:
            await greenlet_spawn(_guarded, lane, lane.turn)
            await asyncio.sleep(lane.pause())

    lanes = [Lane(ledger, job.first_lane + n, job.writes, engine.sync_engine, tally) for n in range(LANES)]
    await asyncio.gather(*map(run, lanes))
    await SQLModelCache.aclose()
    await engine.dispose()


def _guarded(lane: Lane, turn: Any) -> None:
    """Run a turn; an error that no rule of the soak foresees ends the soak."""
    try:
        turn()
    except Exception:
        lane.tally.errors.append(traceback.format_exc())
        lane.ledger.stop.value = 1
