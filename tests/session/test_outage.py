"""Reads and commits through a proxy that misbehaves: what they may cost, and what the server is asked meanwhile.

No test looks at a clock. What is counted: the effects that reach the transport, and what the server says that it was
asked.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from models import Hero, add_hero, get_hero
from proxy import Mood, Proxy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from servers import RedisServer
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession
from waiting import until

from sqlmodel_cache import InvalidationError, RedisAsyncTransport, RedisSyncTransport, SQLModelCache
from sqlmodel_cache._effects import Fill, Lease, Lookup, Together
from sqlmodel_cache._recovery import FAILURES
from sqlmodel_cache.errors import TransportError

SQLITE = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
ASYNC = pytest.mark.parametrize("engine", ["sqlite+aiosqlite"], indirect=True)
SYNC = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
MOODS = pytest.mark.parametrize("mood", ["refuse", "drop", "silent", "slow", "cut"])
SHORT = 0.1  # seconds that transports wait where nobody answers in time
PATIENCE = 30  # and where somebody does, however busy the machine is


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis that only the tests of this module ask."""
    own = RedisServer()
    yield own
    own.stop()


@pytest.fixture
def direct(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of it that goes past the proxy; the server is empty, and its statistics begin."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def proxy(server: RedisServer, direct: redis.Redis) -> Iterator[Proxy]:
    """A proxy to it, whose replies are later than anybody waits when it is slow."""
    own = Proxy(server.port)
    own.late = 2 * SHORT
    yield own
    SQLModelCache.reset()
    own.close()


class Asked:
    """What was sent to a transport, by kind of effect."""

    def __init__(self) -> None:
        self.effects: Counter[type] = Counter()


class CountingSync(RedisSyncTransport):
    """Counts the effects of readers and writers: not those of the library's own thread."""

    asked: Asked

    def execute(self, effect: Any) -> Any:
        """Count, and ask."""
        self.asked.effects[type(effect)] += 1
        return super().execute(effect)


class CountingAsync(RedisAsyncTransport):
    """The same."""

    asked: Asked

    async def aexecute(self, effect: Any) -> Any:
        """Count, and ask."""
        self.asked.effects[type(effect)] += 1
        return await super().aexecute(effect)


def configure(proxy: Proxy, patience: float = PATIENCE, **options: Any) -> Asked:
    """Configure both kinds of sessions to use the proxy; return what they ask. The library's thread has its own."""
    asked = Asked()
    sync_side = CountingSync(redis.Redis(port=proxy.port), timeout=patience, commit_timeout=patience)
    async_side = CountingAsync(redis.asyncio.Redis(port=proxy.port), timeout=patience, commit_timeout=patience)
    async_side._free.clear()  # so that the transport closes its connections
    sync_side.asked = async_side.asked = asked
    SQLModelCache.configure(sync_side, async_transport=async_side, **options)
    return asked


def without_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody try whether the cache answers again."""
    driver = SQLModelCache._cache.driver  # type: ignore[union-attr]
    monkeypatch.setattr(driver._keeper, "wake", lambda: None)


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often the server has executed what the library sends."""
    found: Any = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in found.items()}
    return {name: calls.get(name, 0) for name in ("mget", "evalsha", "eval")}


@SQLITE
@MOODS
def test_reads_ask_five_times_and_then_no_more(
    engine: Engine, proxy: Proxy, direct: redis.Redis, mood: Mood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each get asks once until the breaker opens, one time-out at the most; after that the server sees nothing."""
    asked = configure(proxy, SHORT if mood in ("silent", "slow") else PATIENCE)
    pk = add_hero(engine)
    without_keeper(monkeypatch)
    proxy.be(mood)
    for _ in range(FAILURES):
        assert get_hero(engine, pk).name == "Rusty"
    assert asked.effects == {Lookup: FAILURES}
    assert SQLModelCache.stats().unreachable
    proxy.be("pass")
    before, connections = commands(direct), proxy.connections
    for _ in range(20):
        assert get_hero(engine, pk).name == "Rusty"
    assert asked.effects == {Lookup: FAILURES}
    assert commands(direct) == before
    assert proxy.connections == connections


@SQLITE
def test_slow_replies_that_are_in_time_are_replies(engine: Engine, proxy: Proxy) -> None:
    """A cache that is slow, but not too slow, opens nothing: hits and fills go on."""
    asked = configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.late = 0.001
    proxy.be("slow")
    for _ in range(2 * FAILURES):
        assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().hits == 2 * FAILURES
    assert SQLModelCache.stats().outages == 0
    assert asked.effects == {Lookup: 2 * FAILURES + 1, Lease: 1, Fill: 1}


@SYNC
def test_read_that_has_spent_its_time_asks_no_more(
    engine: Engine, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look-up counts: when it was as late as a reply may be, the row is read, and not stored."""
    transport = CountingSync(redis_client, timeout=30)
    transport.asked = Asked()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    now = [0.0]
    monkeypatch.setattr("sqlmodel_cache._reading.perf_counter", lambda: now[0])
    monkeypatch.setattr("sqlmodel_cache._driver.time.monotonic", lambda: now[0])
    executed = transport.execute
    late: list[type] = []

    def execute(effect: Any) -> Any:
        now[0] += 31 if type(effect) in late else 0
        return executed(effect)

    monkeypatch.setattr(transport, "execute", execute)
    for kind, sent in ((Lookup, {Lookup: 1}), (Lease, {Lookup: 1, Lease: 1})):
        late[:] = [kind]
        transport.asked.effects.clear()
        assert get_hero(engine, pk).name == "Rusty"
        assert transport.asked.effects == sent
    late[:] = [Together]
    with Session(engine) as session:
        transport.asked.effects.clear()
        assert SQLModelCache.get_many(session, Hero, [pk])[0] is not None
    assert transport.asked.effects == {Together: 1}


@ASYNC
@pytest.mark.parametrize("mood", ["silent", "slow"])
async def test_event_loop_is_not_blocked(engine: Engine, proxy: Proxy, mood: Mood) -> None:
    """While a get waits for a cache that does not answer, other tasks go on; so they do while a commit waits."""
    configure(proxy, SHORT)
    async with AsyncEngine(engine).connect() as connection:
        pk = await connection.run_sync(lambda _: add_hero(engine))
    steps = 0
    done = asyncio.Event()

    async def other() -> None:
        nonlocal steps
        while not done.is_set():
            steps += 1
            await asyncio.sleep(0)

    proxy.be(mood)
    task = asyncio.create_task(other())
    async with AsyncSession(AsyncEngine(engine)) as session:
        before = steps
        hero = await session.get_one(Hero, pk)
        during_get, before = steps - before, steps
        hero.name = "New"
        await session.commit()
        during_commit = steps - before
    done.set()
    await task
    assert during_get > 100
    assert during_commit > 100
    assert SQLModelCache.stats().errors > 0
    assert SQLModelCache.stats().owed == 1


@SYNC
def test_debts_are_delivered_in_order_and_before_any_read(engine: Engine, proxy: Proxy, direct: redis.Redis) -> None:
    """The server hears of every commit, oldest first, before it is asked for a row again."""
    configure(proxy)
    pks = [add_hero(engine) for _ in range(4)]
    for pk in pks:
        get_hero(engine, pk)
    proxy.be("refuse")
    for pk in reversed(pks):
        rename(engine, pk, "New")
    assert SQLModelCache.stats().owed == 4
    with direct.monitor() as monitor:
        proxy.be("pass")
        until(lambda: SQLModelCache.stats().owed == 0 and not SQLModelCache.stats().unreachable)
        assert [get_hero(engine, pk).name for pk in pks] == ["New"] * 4
        direct.echo("the end")
        heard = []
        for line in monitor.listen():
            if "the end" in line["command"]:
                break
            heard.append(line["command"])
    told = [line for line in heard if line.startswith("EVALSHA") and "}:" in line]
    first = [next(at for at, line in enumerate(told) if line.split(" ")[3].endswith(f"}}:{pk}")) for pk in pks]
    assert first == sorted(first, reverse=True)
    reads = [at for at, line in enumerate(heard) if line.startswith("MGET")]
    assert heard.index(told[max(first)]) < min(reads)


def rename(engine: Engine, pk: int, name: str) -> None:
    """Commit a change of a hero."""
    with Session(engine) as session:
        session.get_one(Hero, pk).name = name
        session.commit()


@SYNC
def test_configuring_again_during_an_outage_owes_the_same(engine: Engine, proxy: Proxy) -> None:
    """A second `configure()` forgets nothing: this process does not hit what it has not invalidated."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be("refuse")
    rename(engine, pk, "New")
    configure(proxy)
    assert SQLModelCache.stats().owed == 1
    assert get_hero(engine, pk).name == "New"
    proxy.be("pass")
    until(lambda: SQLModelCache.stats().owed == 0)
    assert get_hero(engine, pk).name == "New"


@SYNC
def test_closed_during_an_outage_it_recovers_when_it_is_used(engine: Engine, proxy: Proxy) -> None:
    """`close()` ends the thread; a process that goes on reading finds out that the cache answers."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be("refuse")
    rename(engine, pk, "New")
    assert SQLModelCache.close() is False
    proxy.be("pass")
    other = add_hero(engine)
    until(lambda: bool(get_hero(engine, other)) and SQLModelCache.stats().owed == 0)
    until(lambda: not SQLModelCache.stats().unreachable)
    assert get_hero(engine, pk).name == "New"


@SYNC
def test_user_who_may_touch_the_prefix_only(engine: Engine, proxy: Proxy, direct: redis.Redis) -> None:
    """Whether the cache answers is asked with a key of the prefix: an ACL need not allow any other."""
    direct.acl_setuser("shop", enabled=True, nopass=True, keys=["shop:*"], commands=["+@all"])
    client = redis.Redis(port=proxy.port, username="shop", password="-")
    SQLModelCache.configure(RedisSyncTransport(client, timeout=PATIENCE), key_prefix="shop")
    pk = add_hero(engine)
    proxy.be("refuse")
    for _ in range(FAILURES):
        get_hero(engine, pk)
    proxy.be("pass")
    until(lambda: not SQLModelCache.stats().unreachable)


@SYNC
def test_server_that_refuses_writes_is_not_asked(engine: Engine, proxy: Proxy, direct: redis.Redis) -> None:
    """A server that answers readers only stays unasked, rather than being asked and given up in turns."""
    configure(proxy, on_unreachable="refuse")
    pk = add_hero(engine)
    get_hero(engine, pk)
    direct.replicaof("127.0.0.1", "1")
    try:
        for _ in range(2):  # three attempts each
            with pytest.raises(InvalidationError):
                SQLModelCache.invalidate(Hero, pk)
        driver = SQLModelCache._cache.driver  # type: ignore[union-attr]
        assert SQLModelCache.stats().unreachable
        assert not driver._keeper.attempt()
        assert SQLModelCache.stats().unreachable
        assert SQLModelCache.stats().outages == 1
    finally:
        direct.replicaof("NO", "ONE")
    until(lambda: not SQLModelCache.stats().unreachable)


class OneLoop:
    """An async transport of somebody's own, whose client lives in one event loop and is closed once."""

    def __init__(self, port: int) -> None:
        self._client = redis.asyncio.Redis(port=port, retry=Retry(NoBackoff(), 0))
        self._transport = RedisAsyncTransport(self._client, timeout=PATIENCE, commit_timeout=PATIENCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.strangers = 0
        self.closed = 0
        self.late = 0

    async def aexecute(self, effect: Any) -> Any:
        """Ask, in the first loop only."""
        here = asyncio.get_running_loop()
        self._loop = self._loop or here
        self.late += self.closed
        if here is not self._loop:
            self.strangers += 1
            raise TransportError("another loop's client")
        return await self._transport.aexecute(effect)

    async def aclose(self) -> None:
        """Close."""
        self.closed += 1
        await self._transport.aclose()
        await self._client.aclose()


@ASYNC
async def test_transport_of_one_event_loop_recovers_there(engine: Engine, proxy: Proxy) -> None:
    """Where there is no sync transport, the library's thread asks through the application's own event loop."""
    transport = OneLoop(proxy.port)
    SQLModelCache.configure(async_transport=transport)
    async_engine = AsyncEngine(engine)
    async with async_engine.connect() as connection:
        pk = await connection.run_sync(lambda _: add_hero(engine))
    proxy.be("refuse")
    async with AsyncSession(async_engine) as session:
        (await session.get_one(Hero, pk)).name = "New"
        await session.commit()
    assert SQLModelCache.stats().owed == 1
    proxy.be("pass")
    await asyncio.to_thread(until, lambda: SQLModelCache.stats().owed == 0)
    await asyncio.to_thread(until, lambda: not SQLModelCache.stats().unreachable)
    assert transport.strangers == transport.closed == 0
    proxy.be("refuse")
    async with AsyncSession(async_engine) as session:
        (await session.get_one(Hero, pk)).name = "Newer"
        await session.commit()
    proxy.be("pass")
    assert await SQLModelCache.aclose(timeout=30) is True
    assert transport.closed == 1
    assert transport.late == 0  # what was owed was delivered before


WRITER = """
import sys, redis
sys.path.insert(0, sys.argv[1])
from models import Hero
from sqlmodel import Session, create_engine
from sqlmodel_cache import RedisSyncTransport, SQLModelCache
client = redis.Redis(port=int(sys.argv[3]))
SQLModelCache.configure(RedisSyncTransport(client, timeout=30), namespace="n")
with Session(create_engine(sys.argv[2])) as session:
    session.get_one(Hero, int(sys.argv[4]), execution_options={"cache": False}).name = "New"
    print("ready", flush=True)
    input()
    session.commit()
print(SQLModelCache.stats().owed, flush=True)
input()
"""


@SYNC
def test_process_that_dies_owing(engine: Engine, proxy: Proxy, direct: redis.Redis) -> None:
    """After kill -9 nobody knows what was owed: others hit the old row until its TTL, by the server's clock."""
    SQLModelCache.configure(RedisSyncTransport(direct, timeout=30), namespace="n")
    pk = add_hero(engine)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", WRITER, tests, str(engine.url), str(proxy.port), str(pk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with Session(engine) as session:
            session.get_one(Hero, pk, execution_options={"cache_ttl": 60})
        [key] = direct.keys("*}:*")
        proxy.be("refuse")
        print("commit", file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "1\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    proxy.be("pass")
    assert get_hero(engine, pk).name == "Rusty"  # the exception in docs/guarantees.md
    left: Any = direct.pttl(key)
    assert 0 < left <= 60_000
    direct.pexpire(key, 1)
    until(lambda: direct.exists(key) == 0)
    assert get_hero(engine, pk).name == "New"
