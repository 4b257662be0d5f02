"""One soak from the start of its servers to its verdict."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import servers
from sqlalchemy import Engine, make_url, text
from sqlmodel import Session, create_engine

from soak import tables
from soak.faults import Faults
from soak.followers import Followers, Watch
from soak.ledger import BACKWARDS, LATE, MISSING, PHANTOM, SENT, STALE, TORN, Finding, Ledger
from soak.outsiders import Outsider, write_outside
from soak.rows import ROWS
from soak.tables import Item
from soak.tally import Report
from soak.transports import transports
from soak.workers import FENCE_TTL, LANES, Job, work
from sqlmodel_cache import RedisSyncTransport, SQLModelCache

OUTSIDERS = ["psql", "application"]
KINDS = [("reader", False), ("reader", True), ("writer", False), ("writer", True)]  # and whether asyncio
START_SECONDS = 120  # until the first commit, on a machine that is busy with other things
FOLLOWED = ["followed", "outbox", "idle"]
PATIENCE = 10  # seconds that a read of the comparison may take: a row that is not cached shall not be a busy machine's
ENOUGH_SECONDS = 10  # after which a naive cache need not be caught with worse than it has been


@dataclass
class Result:
    """What a soak has found."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    moments: list[tuple[str, float, float]] = field(default_factory=list)  # of the faults, in the order of time
    findings: list[Finding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    permanently_stale: dict[int, str] = field(default_factory=dict)  # by primary key
    never_hit: list[int] = field(default_factory=list)  # rows that two quiet reads left uncached
    longest_staleness_ms: float = 0.0
    lags: list[float] = field(default_factory=list)  # seconds; of the follower, one after the other
    latest_ms: float = 0.0  # after an outsider's commit, of a read that did not see it

    @property
    def stale(self) -> int:
        """Reads of a row, or of none, as it was before a commit that had returned or that others had seen."""
        return self.counts[STALE] + self.counts[MISSING] + self.counts[BACKWARDS]

    @property
    def phantom(self) -> int:
        """Reads of rows that were never committed, or not yet."""
        return self.counts[PHANTOM] + self.counts[TORN]

    @property
    def wrong(self) -> bool:
        """Whether the promise was broken."""
        return bool(self.stale or self.phantom or self.permanently_stale)

    @property
    def exit_code(self) -> int:
        """0: the promise was kept. 1: it was broken. 2: the run proves nothing."""
        if self.wrong:
            return 1
        idle = not (self.counts["reads"] and self.counts["hits"] and self.counts["writes"])
        return 2 if self.errors or self.never_hit or idle else 0


class Crew:
    """The worker processes."""

    def __init__(self, jobs: list[Job | Outsider], ledger: Ledger, result: Result) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._ledger = ledger
        self._result = result
        self._crew: list[tuple[Job | Outsider, BaseProcess, Pipe]] = [self._start(job) for job in jobs]
        self._open: list[Pipe] = [pipe for _, _, pipe in self._crew]

    def _start(self, job: Job | Outsider) -> tuple[Job | Outsider, BaseProcess, Pipe]:
        ours, theirs = self._context.Pipe(duplex=False)
        target: Any = work if isinstance(job, Job) else write_outside
        process = self._context.Process(target=target, args=(job, self._ledger, theirs), name=job.name, daemon=True)
        process.start()
        theirs.close()
        return job, process, ours

    def kill_a_writer(self, chance: random.Random) -> None:
        """Kill one without warning, whatever it is doing, and let another take its place and its lanes."""
        at = chance.choice([n for n, (job, _, _) in enumerate(self._crew) if job.writes])
        job, process, _ = self._crew[at]
        process.kill()
        process.join()
        self._crew[at] = self._start(replace(job, seed=chance.getrandbits(32)))
        self._open.append(self._crew[at][2])

    def listen(self, seconds: float) -> None:
        """Take the reports that come within that time."""
        ready: list[Any] = wait(self._open, seconds)
        for pipe in ready:
            try:
                report: Report = pipe.recv()
            except (EOFError, OSError):
                self._open.remove(pipe)
                continue
            self._result.counts += report[0]
            self._result.findings += report[1]
            self._result.errors += [error for error in report[2] if error not in self._result.errors]

    def dismiss(self) -> None:
        """Let all finish what they are doing."""
        self._ledger.stop.value = 1
        deadline = time.monotonic() + 60
        while self._open and time.monotonic() < deadline:
            self.listen(0.2)
        for job, process, _ in self._crew:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode != 0:
                self._result.errors.append(f"{job.name} ended with {process.exitcode}")
            process.kill()


TOPOLOGIES: dict[str, Callable[[], Any]] = {
    "single": servers.RedisServer,
    "cluster": servers.RedisCluster,
    "sentinel": servers.RedisSentinel,
}


def soak(
    mode: str, seconds: float, seed: int, others: str = "none", bound: float = 15.0, topology: str = "single"
) -> Result:
    """Return what a soak of that many seconds finds. Where it must find something, it ends when it has.

    Args:
        mode: "strong" or "naive".
        seconds: how long to read and write.
        seed: of delays, faults and choices.
        others: "none"; "followed" for outsiders who write and followers, "outbox" for followers of an outbox,
            "unfollowed" for outsiders only, "idle" for followers only.
        topology: of Redis: "single", "cluster" or "sentinel".
        bound: seconds that a follower may lag; without one, those after which outsiders' commits are owed.
    """
    result = Result()
    outbox = others == "outbox"
    with _database(others) as url:
        database_url = make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        engine = create_engine(database_url)
        server = TOPOLOGIES[topology]()
        followers = Followers(url, server.url, outbox=outbox) if others in FOLLOWED else None
        try:
            tables.create(engine)
            if followers is not None:
                followers.start()
            jobs = _jobs(mode, seed, url, server.url, outside=others not in ("none", "idle"))
            ledger = Ledger(multiprocessing.get_context("spawn"), LANES * len(KINDS), LANES * len(OUTSIDERS))
            crew = Crew(jobs, ledger, result)
            followed = followers is not None
            watch = None if others == "none" else Watch(ledger, url, bound, followed=followed, outbox=outbox)
            at_once = mode == "naive" or others == "unfollowed"
            try:
                if watch is not None:
                    watch.start()
                _run(crew, Faults(crew, server, ledger, seed, followers), ledger, result, seconds, at_once=at_once)
            finally:
                crew.dismiss()
                if watch is not None:
                    watch.finish()
                    result.lags, result.errors = watch.lags, result.errors + watch.errors
                if followers is not None and (result.errors or result.wrong):
                    result.errors.append(followers.said())
            _compare(engine, mode, server.url, result)
            _measure(engine, ledger, result)
        finally:
            if followers is not None:
                followers.stop()
            server.stop()
            tables.drop(engine)
            engine.dispose()
    return result


@contextmanager
def _database(others: str) -> Iterator[str]:
    if others not in FOLLOWED:
        with servers.postgres_url() as url:
            yield url
        return
    server = servers.PostgresServer(*([] if others == "outbox" else ["wal_level = logical"]))
    try:
        yield server.url
    finally:
        server.stop()


def _jobs(mode: str, seed: int, url: str, redis_url: str, *, outside: bool) -> list[Job | Outsider]:
    jobs: list[Job | Outsider] = []
    for kind, is_async in KINDS:
        n = len(jobs)
        name = f"{'async' if is_async else 'sync'} {kind}"
        jobs.append(Job(name, kind == "writer", is_async, LANES * n, mode, seed + n, url, redis_url))
    for kind in OUTSIDERS if outside else ():
        n = len(jobs)
        jobs.append(Outsider(kind, LANES * n, LANES, seed + n, url))
    return jobs


def _run(crew: Crew, faults: Faults, ledger: Ledger, result: Result, seconds: float, *, at_once: bool) -> None:
    began = time.monotonic()
    while not result.counts["writes"] and not ledger.stop.value:
        crew.listen(0.1)  # the processes start
        if time.monotonic() - began > START_SECONDS:
            result.errors.append(f"no writer has committed anything in {START_SECONDS} s")
            return
    began = time.monotonic()
    while not ledger.stop.value:
        crew.listen(0.1)
        passed = time.monotonic() - began
        if passed > seconds and (faults.all_injected or at_once):
            break
        if at_once and (result.counts[STALE] or (result.wrong and passed > ENOUGH_SECONDS)):
            break
        faults.inject()
    result.seconds = time.monotonic() - began
    result.faults, result.moments = faults.counts, faults.moments


def _compare(engine: Engine, mode: str, redis_url: str, result: Result) -> None:
    """Compare every row with the database, now, and when the fences of killed writers have lapsed."""
    transport: RedisSyncTransport = transports(mode, redis_url)[0]
    SQLModelCache.configure(transport, fence_ttl=FENCE_TTL, timeout=PATIENCE, commit_timeout=PATIENCE)
    for pause in (0.0, FENCE_TTL + 0.5, 0.0):
        time.sleep(pause)
        for pk in range(ROWS):
            hits = SQLModelCache.stats().hits
            with Session(engine) as session:
                item = session.get(Item, pk)
                got = None if item is None else (item.bucket, item.version, item.note)
                query = text("SELECT bucket, version, note FROM soak_item WHERE id = :pk")
                row = session.connection().execute(query, {"pk": pk}).one_or_none()
            truth = None if row is None else tuple(row)
            if got != truth:
                result.permanently_stale[pk] = f"row {pk} is {truth}, and get() returns {got}"
            elif pause == 0.0 and truth is not None and SQLModelCache.stats().hits == hits:
                result.never_hit.append(pk)
        if pause:
            result.never_hit.clear()
    SQLModelCache.reset()


def _measure(engine: Engine, ledger: Ledger, result: Result) -> None:
    """Read from the journal what was committed: phantoms that nobody could know of, and how stale a read was."""
    journal: dict[int, list[int]] = {}
    with engine.connect() as connection:
        for version, pk in connection.execute(text("SELECT version, item FROM soak_journal ORDER BY version")):
            journal.setdefault(pk, []).append(version)
    committed = {version for versions in journal.values() for version in versions}
    for lane in range(ledger.lanes):
        for pk in range(ROWS):
            for seen in ledger.seen_by(lane, pk):
                if seen and ledger.state[seen] == SENT and seen not in committed:
                    result.counts[PHANTOM] += 1
                    result.findings.append(Finding(PHANTOM, pk, seen, 0, 0.0))
    for finding in result.findings:
        later = [v for v in journal.get(finding.pk, ()) if v > (finding.version or 0) and ledger.returned_at[v]]
        if not later:
            continue
        staleness_ms = (finding.at - ledger.returned_at[later[0]]) * 1000
        if finding.kind == STALE:
            result.longest_staleness_ms = max(result.longest_staleness_ms, staleness_ms)
        elif finding.kind == LATE:
            result.latest_ms = max(result.latest_ms, staleness_ms)
