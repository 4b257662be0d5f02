"""A cache that does not answer: how long it is asked, who finds out that it answers again, and what is then first."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from models import Hero, add_hero, get_hero
from proxy import Mood, Proxy
from servers import RedisServer
from sqlalchemy import Engine, event
from sqlmodel import Session
from waiting import until

from sqlmodel_cache import InvalidationError, RedisSyncTransport, SQLModelCache, _debts, _recovery
from sqlmodel_cache._debts import Debts
from sqlmodel_cache._effects import Entry, Keys
from sqlmodel_cache._recovery import CALM, FAILURES, FIRST_PAUSE, Breaker, Keeper
from sqlmodel_cache.errors import TransportError

SQLITE = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
KEEPER = "sqlmodel-cache-keeper"


def rename(engine: Engine, pk: int, name: str) -> None:
    """Commit a change of a hero."""
    with Session(engine) as session:
        session.get_one(Hero, pk).name = name
        session.commit()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    own = RedisServer()
    yield own
    own.stop()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A proxy to it, which the library talks to."""
    own = Proxy(server.port)
    yield own
    SQLModelCache.reset()
    own.close()


def configure(proxy: Proxy, **options: object) -> None:
    """Configure the library to use a proxy, and not for long."""
    client = redis.Redis(port=proxy.port)
    transport = RedisSyncTransport(client, timeout=0.2, commit_timeout=0.2)
    SQLModelCache.configure(transport, **options)  # type: ignore[arg-type]


def open_breaker(engine: Engine, pk: int) -> None:
    """Read until the cache is not asked any more."""
    for _ in range(FAILURES):
        assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().unreachable


@SQLITE
@pytest.mark.parametrize("mood", ["refuse", "drop", "silent", "cut"])
def test_breaker_opens_and_closes(engine: Engine, proxy: Proxy, mood: Mood) -> None:
    """After a few errors in a row nobody asks; when it answers again it is asked again, without a caller's help."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be(mood)
    open_breaker(engine, pk)
    asked = SQLModelCache.stats().errors
    assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().errors == asked + 1
    proxy.be("pass")
    until(lambda: not SQLModelCache.stats().unreachable)
    get_hero(engine, pk)
    hits = SQLModelCache.stats().hits
    assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().hits == hits + 1
    assert SQLModelCache.stats().outages == 1
    until(lambda: KEEPER not in {thread.name for thread in threading.enumerate()})


@SQLITE
def test_what_is_owed_goes_first(engine: Engine, proxy: Proxy) -> None:
    """A commit in an outage goes on; until the cache has been told this process reads its rows from the database."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    assert get_hero(engine, pk).name == "Rusty"
    proxy.be("silent")
    rename(engine, pk, "New")
    assert SQLModelCache.stats().owed > 0
    assert get_hero(engine, pk).name == "New"
    proxy.be("pass")
    assert get_hero(engine, pk).name == "New"  # whether or not it has been delivered by now
    until(lambda: SQLModelCache.stats().owed == 0)
    assert not SQLModelCache.stats().unreachable
    assert get_hero(engine, pk).name == "New"


@SQLITE
def test_commits_do_not_wait_for_a_cache_that_is_not_asked(engine: Engine, proxy: Proxy) -> None:
    """With the breaker open a commit is owed at once: the server sees no connection of it."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be("refuse")
    open_breaker(engine, pk)
    outages = SQLModelCache.stats().outages
    rename(engine, pk, "New")
    assert SQLModelCache.stats().owed == 1
    assert SQLModelCache.stats().outages == outages
    assert get_hero(engine, pk).name == "New"


@SQLITE
def test_fence_that_was_set_is_released_though_the_cache_was_given_up(
    engine: Engine, proxy: Proxy, server: RedisServer
) -> None:
    """The cache may have come back empty, and others may have filled the old row: it is told before commit() ends."""
    configure(proxy, on_unreachable="refuse")
    pk = add_hero(engine)
    get_hero(engine, pk)
    cache = SQLModelCache._cache
    assert cache is not None

    def lose(connection: object) -> None:
        with redis.Redis(port=server.port) as client:
            client.flushall()
        cache.driver.breaker.open()

    event.listen(engine, "commit", lose)
    rename(engine, pk, "New")
    assert not cache.driver.debts
    with redis.Redis(port=server.port) as client:
        [key] = client.keys(f"*}}:{pk}")
        assert client.get(key)[:1] == b"F"


@SQLITE
def test_refused_commits_stay_refused_while_nobody_asks(engine: Engine, proxy: Proxy) -> None:
    """In refuse mode no commit passes an open breaker, and nothing is owed."""
    configure(proxy, on_unreachable="refuse")
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be("drop")
    open_breaker(engine, pk)
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "New"
        with pytest.raises(InvalidationError, match="rolled back"):
            session.commit()
    assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().owed == 0
    proxy.be("pass")
    until(lambda: not SQLModelCache.stats().unreachable)
    rename(engine, pk, "New")
    assert get_hero(engine, pk).name == "New"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_changes_are_logged_once(engine: Engine, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """One line when the cache is not asked any more, one when it is again."""
    caplog.set_level(logging.INFO, "sqlmodel_cache")
    configure(proxy)
    pk = add_hero(engine)
    proxy.be("refuse")
    open_breaker(engine, pk)
    for _ in range(10):
        get_hero(engine, pk)
    proxy.be("pass")
    until(lambda: not SQLModelCache.stats().unreachable)
    assert [record.message for record in caplog.records] == [
        f"the cache has failed {FAILURES} times in a row and is not asked until it answers again",
        "the cache answers again",
    ]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_close_delivers_what_is_owed(engine: Engine, server: RedisServer, proxy: Proxy) -> None:
    """`close()` tries once more, says whether it has succeeded, and leaves no thread behind."""
    configure(proxy)
    pk = add_hero(engine)
    get_hero(engine, pk)
    proxy.be("refuse")
    rename(engine, pk, "New")
    assert SQLModelCache.close() is False
    assert KEEPER not in {thread.name for thread in threading.enumerate()}
    proxy.be("pass")
    assert SQLModelCache.close() is True
    assert SQLModelCache.stats().owed == 0
    assert get_hero(engine, pk).name == "New"
    assert SQLModelCache.get_config() is not None


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_reset_ends_the_thread(engine: Engine, proxy: Proxy) -> None:
    """`reset()` waits for no server."""
    configure(proxy)
    pk = add_hero(engine)
    proxy.be("silent")
    open_breaker(engine, pk)
    SQLModelCache.reset()
    until(lambda: KEEPER not in {thread.name for thread in threading.enumerate()})


def test_success_forgets_failures() -> None:
    """Only errors in a row count."""
    breaker = Breaker()
    for _ in range(3):
        assert [breaker.failed() for _ in range(FAILURES - 1)] == [False] * (FAILURES - 1)
        breaker.answered()
    assert not breaker.is_open
    assert [breaker.failed() for _ in range(FAILURES + 1)] == [False] * (FAILURES - 1) + [True, False]
    assert breaker.is_open
    breaker.close()
    assert not breaker.is_open
    assert breaker.opened == 1


def test_breaker_stays_open_until_all_is_delivered() -> None:
    """An answer is not enough while something is owed."""
    breaker, debts = Breaker(), Debts()
    debts.owe(Keys(("c:{t:0}:1",), ()))
    for _ in range(FAILURES):
        breaker.failed()
    fails = [True]

    def deliver(keys: Keys) -> None:
        if fails[0]:
            raise TransportError("no")
        debts.settle(keys, debts.ticket())

    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=deliver)
    assert not keeper.attempt()
    assert breaker.is_open
    fails[0] = False
    assert keeper.attempt()
    assert not breaker.is_open


def settling(debts: Debts) -> Callable[[Keys], None]:
    """Return what delivers debts to nobody."""
    return lambda keys: debts.settle(keys, debts.ticket())


ONE = Keys(("c:{t:0}:1",), ())


def test_child_owes_what_its_parent_owed() -> None:
    """A child has no thread, and its parent's locks may be held for good; the first who is refused begins another."""
    breaker, debts = Breaker(), Debts()
    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=settling(debts))
    debts.owe(ONE)
    locks = keeper._lock, breaker._lock, debts._lock
    for lock in locks:
        lock.acquire()
    pid = os.fork()
    if pid == 0:
        refused = breaker.is_open
        keeper.wake()
        until(lambda: not debts and not breaker.is_open)
        os._exit(0 if refused else 1)
    assert os.waitpid(pid, 0)[1] == 0
    for lock in locks:
        lock.release()
    assert not breaker.is_open


def test_one_thread_ends_while_another_begins() -> None:
    """A thread that has been told to stop touches nothing of the one that came after it, not even its last chance."""
    breaker, debts = Breaker(), Debts()
    asked, answer = threading.Semaphore(0), threading.Semaphore(0)

    def deliver(keys: Keys) -> None:
        asked.release()
        answer.acquire()
        raise TransportError("no")

    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=deliver)
    debts.owe(ONE)
    keeper.wake()
    asked.acquire()
    first = keeper._run
    assert first is not None
    keeper.close()
    assert breaker.is_open  # there is work, and no thread for it
    keeper.wake()
    second = keeper._run
    asked.acquire()
    debts.settle(ONE, debts.ticket())
    breaker.close()
    answer.release()  # the first, which finds nothing to do
    first.thread.join()
    assert keeper._run is second
    answer.release()
    assert second is not None
    second.thread.join()
    assert not breaker.is_open
    assert keeper._run is None


def test_last_chance_is_the_newest_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However threads end and begin, the end of the process knows of the one that runs, and of none when none does."""
    hooks: list[Any] = []
    monkeypatch.setattr(_recovery.atexit, "register", lambda hook, *_: hooks.append(hook))
    monkeypatch.setattr(_recovery.atexit, "unregister", lambda hook: hooks.remove(hook) if hook in hooks else None)
    breaker, debts = Breaker(), Debts()
    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=settling(debts))
    for _ in range(3):
        debts.owe(ONE)
        keeper.wake()
        ended = keeper._run
        keeper.close()
        keeper.wake()
        assert ended is not None
        ended.thread.join()
        assert len(hooks) == 1 or keeper._run is None
        until(lambda: keeper._run is None)
        assert hooks == []


def test_closing_is_bounded() -> None:
    """What takes longer than the patience goes on without the caller, and is then known to have been delivered."""
    breaker, debts = Breaker(), Debts()
    answer = threading.Event()

    def deliver(keys: Keys) -> None:
        answer.wait()
        debts.settle(keys, debts.ticket())

    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=deliver)
    debts.owe(ONE)
    assert keeper.close(0.01) is False  # no thread had begun: this is its only attempt
    assert breaker.is_open
    answer.set()
    until(lambda: not debts and not breaker.is_open)
    assert keeper.close(0.01) is True


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that owes does not fail for want of a thread: until there is one, nobody asks the cache."""
    breaker, debts = Breaker(), Debts()
    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=settling(debts))
    debts.owing = keeper.wake

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        debts.owe(ONE)
    assert breaker.is_open
    keeper.wake()
    until(lambda: not debts and not breaker.is_open)


def test_transport_that_breaks_its_word(caplog: pytest.LogCaptureFixture) -> None:
    """An error that no transport should raise is logged, once, and does not end what delivers."""
    breaker, debts = Breaker(), Debts()
    errors = [ValueError("odd"), ValueError("odd"), TransportError("no")]

    def deliver(keys: Keys) -> None:
        if errors:
            raise errors.pop(0)
        debts.settle(keys, debts.ticket())

    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=deliver)
    debts.owe(ONE)
    keeper.wake()
    until(lambda: not debts)
    assert [record.message for record in caplog.records] == ["the cache could not be asked whether it answers again"]
    keeper.close()


def test_breaker_that_flaps_opens_for_longer() -> None:
    """A cache that fails again shortly after it has answered is asked no more often than one that never did."""
    breaker, debts = Breaker(), Debts()
    keeper = Keeper(breaker, debts, ask=lambda: None, deliver=settling(debts))
    pauses = []

    class Stop:
        def wait(self, seconds: float) -> bool:
            pauses.append(keeper._pause)
            return len(pauses) in (2, 4, 6)

    def outage(attempts_fail: int) -> None:
        for _ in range(FAILURES):
            breaker.failed()
        left = [TransportError("no")] * attempts_fail
        keeper._ask = lambda: left and raise_(left.pop())
        run = _recovery._Run()
        run.stop = Stop()  # type: ignore[assignment]
        keeper._run = run
        keeper._keep(run)

    outage(1)
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    keeper._ask = lambda: None
    assert keeper.attempt()
    outage(1)
    assert pauses[2:] == [2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    keeper._ask = lambda: None
    assert keeper.attempt()
    keeper._succeeded -= CALM
    outage(1)
    assert pauses[4:] == [FIRST_PAUSE, 2 * FIRST_PAUSE]


def raise_(error: Exception) -> None:
    """Raise an error where a statement cannot."""
    raise error


def test_of_too_many_rows_the_tables_are_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is bounded, and no row is forgotten for it."""
    monkeypatch.setattr(_debts, "MAX_ROWS", 3)
    debts = Debts()
    debts.owe(Keys(("c:{t:0}:1", "c:{t:1}:2", "c:{t:0}:3"), ()))
    assert len(debts.owed) == 3
    debts.owe(Keys(("c:{t:0}:4",), ()))
    assert set(debts.owed) == {"c:{t:0}", "c:{t:1}"}
    assert sorted(debts.some(10).tables) == ["c:{t:0}", "c:{t:1}"]
    assert debts.some(10).rows == ()
    assert Entry("c:{t:0}:9", "c:{t:0}") in debts
    debts.settle(debts.some(10), debts.ticket())
    assert not debts
    debts.owe(Keys(("c:{t:0}:1", "c:{t:0}:2", "c:{t:0}:3"), ()))
    assert len(debts.owed) == 3


def test_of_too_many_tables_everything_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every row is read from the database, for as long as anything that is cached now can live."""
    now = [100.0]
    monkeypatch.setattr(_debts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_debts, "MAX_TABLES", 2)
    debts = Debts(longest_ttl_ms=lambda: 60_000)
    debts.owe(Keys((), ("c:{t:0}", "c:{t:1}")))
    elsewhere = Entry("c:{u:0}:1", "c:{u:0}")
    assert elsewhere not in debts
    debts.owe(Keys((), ("c:{t:2}",)))
    assert elsewhere in debts
    assert len(debts.owed) == 2  # more is not remembered
    debts.settle(debts.some(10), debts.ticket())
    now[0] += 59
    assert debts.any
    assert elsewhere in debts
    now[0] += 2
    assert elsewhere not in debts
    assert not debts.any


def test_everything_that_is_owed_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that finds the time passed looks once more under the lock: a commit may have been faster."""
    monkeypatch.setattr(_debts, "MAX_TABLES", 0)
    debts = Debts(longest_ttl_ms=lambda: 60_000)
    times = [0.0]
    monkeypatch.setattr(_debts.time, "monotonic", lambda: times[-1])
    debts.owe(Keys((), ("c:{t:0}",)))

    class Late:
        """A lock that a reader gets only after a commit has had it."""

        def __enter__(self) -> None:
            debts._lock = threading.Lock()
            debts.owe(Keys((), ("c:{t:1}",)))

        def __exit__(self, *_: object) -> None:
            pass

    times.append(61.0)
    debts._lock = Late()  # type: ignore[assignment]
    assert Entry("c:{u:0}:1", "c:{u:0}") in debts
