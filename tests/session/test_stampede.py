"""Many readers of a cold row: one SELECT, nobody waits for what will not come, and nobody gets an older row for it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import Log, Store
from models import Hero, add_hero, get_hero
from patient import PATIENCE
from session.members import Recording
from sqlalchemy import Engine, event, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlmodel import Session, col, create_engine

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, SQLModelCache, _flights, _sqlalchemy
from sqlmodel_cache._effects import Granted, Lease, Resign

SYNC = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
ASYNC = pytest.mark.parametrize("engine", ["sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)
POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)

LONG = 600  # seconds: who waits so long has not been told


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the test has."""
    with ThreadPoolExecutor(25) as pool:
        yield pool


def name_of(engine: Engine, pk: int) -> str | None:
    """Return the name of a hero as a new session gets it."""
    with Session(engine) as session:
        hero = session.get(Hero, pk)
        return None if hero is None else hero.name


def rename(engine: Engine, pk: int) -> None:
    """Change a hero's name and commit."""
    with engine.begin() as connection:
        connection.execute(update(Hero).where(col(Hero.id) == pk).values(name="New"))


def selects(sql: Log) -> int:
    """Return how many SELECTs of heroes were sent since the last call."""
    return len([statement for statement in sql.take() if "FROM hero" in statement])


class Gate:
    """Somebody stops here, until he is let through."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Stop, the first to come; others go through."""
        if not self._reached.is_set():
            self._reached.set()
            assert self._opened.wait(PATIENCE)

    def reached(self) -> None:
        """Return when somebody has stopped."""
        assert self._reached.wait(PATIENCE)

    def open(self) -> None:
        """Let through."""
        self._opened.set()


@contextmanager
def stopping(engine: Engine, when: str) -> Iterator[Gate]:
    """Yield a gate at which the first SELECT of a hero stops, before or after it was executed."""
    gate = Gate()

    def executed(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM hero" in statement:
            gate.stop()

    event.listen(engine, f"{when}_cursor_execute", executed)
    try:
        yield gate
    finally:
        gate.open()
        event.remove(engine, f"{when}_cursor_execute", executed)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return what returns when so many threads have begun to wait: for a flight ("wait"), or to poll ("pause")."""
    arrived = {"wait": threading.Semaphore(0), "pause": threading.Semaphore(0)}
    wait, pause = _flights._Thread.wait, _flights._Thread.pause

    def waits(waiter: Any, seconds: float) -> None:
        arrived["wait"].release()
        wait(waiter, seconds)

    def pauses(seconds: float) -> None:
        arrived["pause"].release()
        pause(seconds)

    monkeypatch.setattr(_flights._Thread, "wait", waits)
    monkeypatch.setattr(_flights._Thread, "pause", staticmethod(pauses))

    def until(how: str, count: int) -> None:
        for _ in range(count):
            assert arrived[how].acquire(timeout=PATIENCE)

    return until


# several processes


def readers(mode: str, engine: Engine, redis_url: str, *arguments: object) -> list[str]:
    """Return the command that starts readers."""
    url = engine.url.render_as_string(hide_password=False)
    script = str(Path(__file__).with_name("readers.py"))
    return [sys.executable, script, mode, url, redis_url, *map(str, arguments)]


@POSTGRESQL
def test_stampede_of_processes_sends_one_select(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Eight processes of 25 threads get one cold row at the same moment: all get it, by one SELECT, at most two."""
    pk = add_hero(engine)
    command = readers("together", engine, redis_url, pk, 8, 25)
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["names"] == ["Rusty"] * 200
    assert 1 <= found["selects"] <= 2


@POSTGRESQL
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_elected_process_that_dies_does_not_hold_up_the_others(
    engine: Engine, redis_url: str, redis_client: redis.Redis, threads: ThreadPoolExecutor, how: str
) -> None:
    """Killed, or stopped, between lease and fill: the others read the database within `fill_wait`.

    Stopped and continued after a commit, it does not store what it has read.
    """
    pk = add_hero(engine)
    SQLModelCache.configure(
        RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE), fill_wait=(fill_wait := 0.5)
    )
    command = readers("stalls", engine, redis_url, pk)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "selecting\n"
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        began = time.monotonic()
        found = list(threads.map(lambda _: name_of(engine, pk), range(5)))
        took = time.monotonic() - began
        assert found == ["Rusty"] * 5
        assert fill_wait * 0.9 < took < PATIENCE
        began = time.monotonic()
        assert name_of(engine, pk) == "Rusty"
        hits = SQLModelCache.stats().hits
        assert name_of(engine, pk) == "Rusty"
        assert SQLModelCache.stats().hits == hits + 1
        rename(engine, pk)
        assert name_of(engine, pk) == "New"
        if how == "stop":
            process.send_signal(signal.SIGCONT)
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "New\n"
    for _ in range(2):
        assert name_of(engine, pk) == "New"


# threads of one process


@SYNC
def test_threads_share_one_select(
    engine: Engine, threads: ThreadPoolExecutor, sql: Log, waiting: Callable[[str, int], None]
) -> None:
    """24 threads join before the SELECT is sent; each makes an object of its own of what the first has loaded."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=LONG)
    pk = add_hero(engine)
    sql.take()
    gate = Gate()
    transport.after["Lease"] = gate.stop
    found = [threads.submit(get_hero, engine, pk) for _ in range(25)]
    gate.reached()
    waiting("wait", 24)
    gate.open()
    assert {each.result().name for each in found} == {"Rusty"}
    assert len({id(each.result()) for each in found}) == 25
    assert selects(sql) == 1
    stats = SQLModelCache.stats()
    assert (stats.misses, stats.shared, stats.fills, stats.hits) == (25, 24, 1, 0)


@SYNC
def test_threads_that_come_later_poll_for_the_value(
    engine: Engine, store: Store, threads: ThreadPoolExecutor, sql: Log, waiting: Callable[[str, int], None]
) -> None:
    """They may not join a SELECT that was sent; one of them polls, and all find the value."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    pk = add_hero(engine)
    sql.take()
    with stopping(engine, "before") as gate:
        first = threads.submit(name_of, engine, pk)
        gate.reached()
        later = [threads.submit(name_of, engine, pk) for _ in range(10)]
        waiting("pause", 1)
        gate.open()
        assert [each.result() for each in [first, *later]] == ["Rusty"] * 11
    assert selects(sql) == 1


@POSTGRESQL
def test_reader_that_begins_after_a_commit_gets_the_new_row(
    engine: Engine, store: Store, threads: ThreadPoolExecutor, waiting: Callable[[str, int], None]
) -> None:
    """A leader holds the old row in its hands when the commit returns: whoever begins then is told nothing of it."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    pk = add_hero(engine)
    with stopping(engine, "after") as gate:
        leader = threads.submit(name_of, engine, pk)
        gate.reached()
        rename(engine, pk)
        assert name_of(engine, pk) == "New"
        assert list(threads.map(lambda _: name_of(engine, pk), range(5))) == ["New"] * 5
        gate.open()
        assert leader.result() == "Rusty"
    for _ in range(2):
        assert name_of(engine, pk) == "New"


@pytest.fixture
def snapshots(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine whose transactions keep a snapshot because the database says so, as MySQL's do."""
    original = _sqlalchemy.isolation_level
    monkeypatch.setattr(_sqlalchemy, "isolation_level", lambda bind, options=None: (original(bind, options)[0], False))
    level = r"-c default_transaction_isolation=repeatable\ read"
    made = create_engine(engine.url, connect_args={"options": level})
    yield made
    made.dispose()


@POSTGRESQL
def test_reader_with_an_old_snapshot_leads_nobody(
    engine: Engine, snapshots: Engine, threads: ThreadPoolExecutor
) -> None:
    """Its SELECT is sent after others began, and shows what was before a commit that had returned by then."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=LONG)
    pk = add_hero(engine)
    with Session(snapshots) as session:  # this process has seen the row's version: what follows may be stored
        session.execute(text("SELECT 1"))
        session.get(Hero, pk)
    with Session(snapshots) as old:
        old.execute(text("SELECT 1 FROM hero"))
        gate = Gate()
        transport.after["Lease"] = gate.stop
        leader: Future[Any] = threads.submit(old.get_one, Hero, pk)
        gate.reached()
        rename(engine, pk)
        later = threads.submit(name_of, engine, pk)
        assert later.result(PATIENCE) == "New"
        gate.open()
        assert leader.result().name == "Rusty"
    assert name_of(engine, pk) == "New"


@SYNC
def test_select_that_raises_is_its_own_readers_alone(
    engine: Engine, threads: ThreadPoolExecutor, waiting: Callable[[str, int], None]
) -> None:
    """Those who joined are told at once, and read the database themselves."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=LONG)
    pk = add_hero(engine)
    failures = [ZeroDivisionError("from the driver")]

    @event.listens_for(engine, "before_cursor_execute")
    def _fail(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if failures:
            raise failures.pop()

    gate = Gate()
    transport.after["Lease"] = gate.stop
    leader = threads.submit(name_of, engine, pk)
    gate.reached()
    joined = [threads.submit(name_of, engine, pk) for _ in range(3)]
    waiting("wait", 3)
    gate.open()
    with pytest.raises(ZeroDivisionError):
        leader.result()
    assert [each.result() for each in joined] == ["Rusty"] * 3


@SYNC
def test_select_that_raises_makes_nobody_wait(engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was elected gives that up: the next get, in whatever process, does not wait for its fill."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    monkeypatch.setattr(_flights._Thread, "pause", None)
    pk = add_hero(engine)
    failures = [ZeroDivisionError("from the driver")]

    @event.listens_for(engine, "before_cursor_execute")
    def _fail(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if failures and "FROM hero" in statement:
            raise failures.pop()

    with pytest.raises(ZeroDivisionError):
        name_of(engine, pk)
    assert name_of(engine, pk) == "Rusty"


# an election that ends without a fill


class Elsewhere:
    """Another process, elected to fill a row."""

    def __init__(self, engine: Engine, pk: int, transport: Recording) -> None:
        name_of(engine, pk)  # a lease with the row's keys
        self._transport = transport.memory
        [asked] = [effect for effect in transport.effects if isinstance(effect, Lease)]
        transport.memory.clear()
        self.lease = Lease(asked.entry, asked.fingerprint, b"elsewhere", elect_ms=LONG * 1000)
        granted = self._transport.execute(self.lease)
        assert isinstance(granted, Granted)
        assert granted.elected
        self._granted = granted

    def resign(self) -> None:
        """Have nothing to fill."""
        self._transport.execute(Resign(self.lease.entry, self._granted))


@SYNC
@pytest.mark.parametrize("after_polls", [0, 3])
def test_missing_row_makes_nobody_wait(
    engine: Engine, threads: ThreadPoolExecutor, waiting: Callable[[str, int], None], after_polls: int
) -> None:
    """Who was elected says that there is nothing to fill: those who come then do not wait, and who waits is told."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=LONG)
    elsewhere = Elsewhere(engine, 99, transport)
    if not after_polls:
        elsewhere.resign()
        assert name_of(engine, 99) is None
        return
    reader = threads.submit(name_of, engine, 99)
    waiting("pause", after_polls)
    elsewhere.resign()
    assert reader.result(PATIENCE) is None
    assert name_of(engine, 99) is None


@SYNC
@pytest.mark.parametrize("whole_table", [False, True])
def test_commit_ends_the_waiting(
    engine: Engine, threads: ThreadPoolExecutor, waiting: Callable[[str, int], None], whole_table: bool
) -> None:
    """The fill that somebody waits for would be refused now, or not be valid: the database answers."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=LONG)
    pk = add_hero(engine)
    Elsewhere(engine, pk, transport)
    reader = threads.submit(name_of, engine, pk)
    waiting("pause", 1)
    if whole_table:
        with engine.begin() as connection:
            connection.execute(text("UPDATE hero SET name = 'New'"))
    else:
        rename(engine, pk)
    assert reader.result(PATIENCE) == "New"


@SYNC
def test_missing_row_is_resigned_by_its_reader(engine: Engine, store: Store) -> None:
    """Two gets of a missing row in a row: the second finds no election that it would have to wait for."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    for _ in range(2):
        assert name_of(engine, 99) is None


@SYNC
def test_fill_wait_none_never_waits(
    engine: Engine, threads: ThreadPoolExecutor, sql: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for threads, nor for other processes; and nobody is asked to wait for it."""
    transport = Recording()
    SQLModelCache.configure(transport, fill_wait=None)
    pk = add_hero(engine)
    Elsewhere(engine, pk, transport)
    monkeypatch.setattr(_flights.Passenger, "execute", None)
    sql.take()
    with stopping(engine, "before") as gate:
        first = threads.submit(name_of, engine, pk)
        gate.reached()
        assert name_of(engine, pk) == "Rusty"
        gate.open()
        assert first.result() == "Rusty"
    assert selects(sql) == 2
    assert {effect.elect_ms for effect in transport.effects if isinstance(effect, Lease)} == {0}


# tasks of one loop


async def prepared(engine: Engine) -> int:
    """Add a hero through an async engine's sync face."""
    async with AsyncEngine(engine).connect() as connection:
        return await connection.run_sync(lambda _: add_hero(engine))


async def name_in_task(engine: Engine, pk: int) -> str:
    """Return a hero's name as a new AsyncSession gets it."""
    async with AsyncSession(AsyncEngine(engine)) as session:
        return (await session.get_one(Hero, pk)).name


@ASYNC
async def test_tasks_share_one_select(engine: Engine, store: Store, sql: Log) -> None:
    """A hundred tasks get one cold row."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    pk = await prepared(engine)
    sql.take()
    assert await asyncio.gather(*(name_in_task(engine, pk) for _ in range(100))) == ["Rusty"] * 100
    assert selects(sql) == 1
    stats = SQLModelCache.stats()
    assert stats.hits + stats.misses == 100
    assert stats.fills == 1


@ASYNC
async def test_task_that_leads_and_is_cancelled_holds_up_nobody(
    engine: Engine, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while others wait for it: they go on at once, however long they would have waited."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE), fill_wait=LONG)
    pk = await prepared(engine)
    leased, waits = asyncio.Event(), asyncio.Semaphore(0)
    original, wait = RedisAsyncTransport.aexecute, _flights._Task._wait

    async def aexecute(transport: RedisAsyncTransport, effect: Any) -> Any:
        reply = await original(transport, effect)
        if isinstance(effect, Lease) and not leased.is_set():
            leased.set()
            await asyncio.Event().wait()
        return reply

    async def waiting(waiter: Any, seconds: float) -> None:
        waits.release()
        await wait(waiter, seconds)

    monkeypatch.setattr(RedisAsyncTransport, "aexecute", aexecute)
    monkeypatch.setattr(_flights._Task, "_wait", waiting)
    leader = asyncio.create_task(name_in_task(engine, pk))
    async with asyncio.timeout(PATIENCE):
        await leased.wait()
        joined = [asyncio.create_task(name_in_task(engine, pk)) for _ in range(3)]
        for _ in joined:
            await waits.acquire()
        leader.cancel()
        assert await asyncio.gather(*joined) == ["Rusty"] * 3
    with pytest.raises(asyncio.CancelledError):
        await leader


@ASYNC
async def test_task_that_is_cancelled_in_its_select_makes_nobody_wait(
    engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up its election, though it does not wait for that: the next get does not wait for its fill."""
    SQLModelCache.configure(store.transport, fill_wait=LONG)
    pk = await prepared(engine)
    selecting = asyncio.Event()
    original = _sqlalchemy.LoadProbe.load

    def load(probe: Any, *arguments: Any) -> Any:
        if not selecting.is_set():
            selecting.set()
            _sqlalchemy.wait_for(asyncio.Event().wait())
        return original(probe, *arguments)

    monkeypatch.setattr(_sqlalchemy.LoadProbe, "load", load)
    monkeypatch.setattr(_flights._Task, "pause", None)
    elected = asyncio.create_task(name_in_task(engine, pk))
    async with asyncio.timeout(PATIENCE):
        await selecting.wait()
        elected.cancel()
        with pytest.raises(asyncio.CancelledError):
            await elected
        assert await name_in_task(engine, pk) == "Rusty"
