"""The transport that injects faults: to the caller, by operation, by count, by predicate, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sqlmodel_cache import ConfigurationError, MemoryTransport, RedisSyncTransport, TransportError
from sqlmodel_cache._effects import Begin, End, Entry, Fill, Granted, Hit, Keys, Lease, Lookup, Resign, Together
from sqlmodel_cache.transport.faults import FaultyTransport, Operation

ENTRY, OTHER = Entry("p:{n/hero:1}:1", "p:{n/hero:1}"), Entry("p:{n/hero:1}:2", "p:{n/hero:1}")
PRINT = b"12345678"


def id(number: int) -> bytes:
    """Return an effect's id."""
    return number.to_bytes(16, "big")


def store(transport: Any, entry: Entry = ENTRY) -> None:
    """Put a value there."""
    lease = transport.execute(Lease(entry, PRINT, id(hash(entry) % 1000)))
    assert transport.execute(Fill(entry, lease, PRINT, b"row", 60_000))


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Callable[[FaultyTransport, Any], Any]:
    """How a transport is asked: by a `Session`, or by an `AsyncSession`."""
    if request.param == "sync":
        return lambda transport, effect: transport.execute(effect)
    return lambda transport, effect: asyncio.run(transport.aexecute(effect))


Face = Callable[[FaultyTransport, Any], Any]


def test_without_faults_it_is_what_stands_behind_it(face: Face) -> None:
    """Every reply passes, and what was asked is remembered with its outcome."""
    memory = MemoryTransport()
    faulty = FaultyTransport(memory)
    lease = face(faulty, Lease(ENTRY, PRINT, id(1)))
    assert face(faulty, Lookup(ENTRY, PRINT)) is None
    assert face(faulty, Fill(ENTRY, lease, PRINT, b"row", 60_000))
    assert not face(faulty, Fill(ENTRY, Granted(b"x", b"y"), PRINT, b"row", 60_000))
    assert face(faulty, Lookup(ENTRY, PRINT)) == memory.execute(Lookup(ENTRY, PRINT)) == b"row"
    assert face(faulty, Lease(ENTRY, PRINT, id(2))) == Hit(b"row")
    assert face(faulty, Begin(Keys((ENTRY.row,), ()), id(3), 60_000)) is None
    face(faulty, Lease(ENTRY, PRINT, id(4)))
    assert face(faulty, End(Keys((ENTRY.row,), (ENTRY.table,)), id(3), id(5))) is None
    told = [(each.name, each.outcome) for each in faulty.operations]
    assert told == [
        ("lease", "granted"),
        ("lookup", "miss"),
        ("fill", "stored"),
        ("fill", "refused"),
        ("lookup", "hit"),
        ("lease", "hit"),
        ("begin", "done"),
        ("lease", "fenced"),
        ("end", "done"),
    ]
    assert faulty.operations[-1].keys == (ENTRY.row, ENTRY.table)


def test_operations_have_the_keys_that_they_are_about(face: Face) -> None:
    """A reader's the row, so that a predicate can choose by it."""
    faulty = FaultyTransport()
    lease = face(faulty, Lease(ENTRY, PRINT, id(1), False, 1_000))
    face(faulty, Resign(ENTRY, lease))
    face(faulty, Lookup(ENTRY, PRINT))
    face(faulty, Fill(ENTRY, lease, PRINT, b"row", 60_000))
    told = [(each.name, each.keys) for each in faulty.operations]
    assert told == [(name, (ENTRY.row,)) for name in ("lease", "resign", "lookup", "fill")]
    faulty.fail(when=lambda operation: operation.keys == (OTHER.row,))
    assert face(faulty, Lease(ENTRY, PRINT, id(2)))
    with pytest.raises(TransportError):
        face(faulty, Lease(OTHER, PRINT, id(3)))


class Gone:
    """A server to which nothing can be sent."""

    blocking = True

    def __init__(self) -> None:
        self.closed: list[str] = []

    def execute(self, effect: Any) -> Any:
        """Fail as a whole."""
        raise TransportError("gone")

    async def aexecute(self, effect: Any) -> Any:
        """Fail as a whole."""
        raise TransportError("gone")

    def close(self) -> None:
        """Take note of it."""
        self.closed.append("sync")

    async def aclose(self) -> None:
        """Take note of it."""
        self.closed.append("async")


def test_effects_that_travel_together_to_nobody_fail_each(face: Face) -> None:
    """What was injected for one of them holds nevertheless, and all of them are remembered."""
    faulty = FaultyTransport(Gone(), Gone())
    faulty.miss(when=lambda operation: operation.keys == (OTHER.row,))
    found, injected = face(faulty, Together((Lookup(ENTRY, PRINT), Lookup(OTHER, PRINT))))
    assert (type(found), injected) == (TransportError, None)
    assert [each.outcome for each in faulty.operations] == ["failed", "miss"]


def test_closing_closes_what_stands_behind() -> None:
    """Of each kind."""
    sync, asynchronous = Gone(), Gone()
    faulty = FaultyTransport(sync, asynchronous)
    faulty.close()
    asyncio.run(faulty.aclose())
    assert (sync.closed, asynchronous.closed) == (["sync"], ["async"])


def test_miss_is_a_miss_to_the_lease_too(face: Face) -> None:
    """The get that was made to miss reads the database, and may fill; the value is where it was."""
    faulty = FaultyTransport()
    store(faulty)
    faulty.miss(times=1)
    assert face(faulty, Lookup(ENTRY, PRINT)) is None
    assert isinstance(face(faulty, Lease(ENTRY, PRINT, id(9))), Granted)
    assert face(faulty, Lease(ENTRY, PRINT, id(10))) == Hit(b"row")
    assert face(faulty, Lookup(ENTRY, PRINT)) == b"row"


def test_fail_by_name_count_and_predicate(face: Face) -> None:
    """Only what is named, only so often, only where the predicate says so, and only until it is healed."""
    faulty = FaultyTransport()
    store(faulty)
    store(faulty, OTHER)
    fault = faulty.fail("lookup", times=2, when=lambda operation: operation.keys == (OTHER.row,))
    assert face(faulty, Lookup(ENTRY, PRINT)) == b"row"
    for _ in range(2):
        with pytest.raises(TransportError, match="Lookup: a fault that was injected"):
            face(faulty, Lookup(OTHER, PRINT))
    assert face(faulty, Lookup(OTHER, PRINT)) == b"row"
    assert fault.injected == 2
    with faulty.fail(), pytest.raises(TransportError):
        face(faulty, Begin(Keys((ENTRY.row,), ()), id(1), 60_000))
    assert face(faulty, Lookup(ENTRY, PRINT)) == b"row"  # the command was lost, and so was the fault
    faulty.fail()
    faulty.heal()
    assert face(faulty, Lookup(ENTRY, PRINT)) == b"row"


def test_reply_lost_takes_effect(face: Face) -> None:
    """A fence whose reply was lost is a fence."""
    faulty = FaultyTransport()
    store(faulty)
    faulty.fail("begin", reply_lost=True)
    with pytest.raises(TransportError):
        face(faulty, Begin(Keys((ENTRY.row,), ()), id(1), 60_000))
    assert face(faulty, Lookup(ENTRY, PRINT)) is None


def test_effects_that_travel_together_fail_one_by_one(face: Face) -> None:
    """As in a pipeline: the others have their replies."""
    faulty = FaultyTransport()
    store(faulty)
    store(faulty, OTHER)
    faulty.fail("lookup", when=lambda operation: operation.keys == (OTHER.row,))
    faulty.miss(times=1)
    effect = Together((Lookup(ENTRY, PRINT), Lookup(OTHER, PRINT), Lease(ENTRY, PRINT, id(1))))
    missed, failed, hit = face(faulty, effect)
    assert (missed, type(failed), hit) == (None, TransportError, Hit(b"row"))
    assert [each.outcome for each in faulty.operations[-3:]] == ["miss", "failed", "hit"]


def test_delay_waits_in_the_way_of_its_caller(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread sleeps; an event loop does not stand still."""
    slept: list[tuple[str, float]] = []

    async def asleep(seconds: float) -> None:
        slept.append(("async", seconds))

    monkeypatch.setattr("sqlmodel_cache.transport.faults.time.sleep", lambda seconds: slept.append(("sync", seconds)))
    monkeypatch.setattr("sqlmodel_cache.transport.faults.asyncio.sleep", asleep)
    faulty = FaultyTransport()
    store(faulty)
    with faulty.delay(2.5, "lookup"):
        assert face(faulty, Lookup(ENTRY, PRINT)) == b"row"
        face(faulty, Lease(ENTRY, PRINT, id(1)))
    assert [seconds for _, seconds in slept] == [2.5]


def test_faults_of_a_real_server(redis_client: redis.Redis) -> None:
    """Redis behind it, for both kinds of sessions; its own errors pass, too."""
    faulty = FaultyTransport(RedisSyncTransport(redis_client, timeout=30, commit_timeout=30))
    store(faulty)
    assert faulty.execute(Lookup(ENTRY, PRINT)) == b"row"
    with faulty.fail("lookup", times=1), pytest.raises(TransportError, match="injected"):
        faulty.execute(Lookup(ENTRY, PRINT))
    faulty.close()

    async def drive() -> None:
        assert await faulty.aexecute(Lease(ENTRY, PRINT, id(1))) == Hit(b"row")
        assert await faulty.aexecute(Lookup(ENTRY, PRINT)) == b"row"
        with faulty.fail("lookup", times=1), pytest.raises(TransportError, match="injected"):
            await faulty.aexecute(Lookup(ENTRY, PRINT))
        await faulty.aclose()

    asyncio.run(drive())
    dead = FaultyTransport(RedisSyncTransport(redis.Redis(port=1), timeout=30))
    with pytest.raises(TransportError, match="Lookup"):
        dead.execute(Lookup(ENTRY, PRINT))
    assert dead.operations[-1] == Operation("lookup", (ENTRY.row,), "failed")
    assert dead.timeout_ms == 30_000


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        (lambda faulty: faulty.fail("get"), "operations='get': give some of lookup, lease"),
        (lambda faulty: faulty.fail(times=0), "times=0"),
        (lambda faulty: faulty.miss(when="hero"), "when='hero'"),
        (lambda faulty: faulty.delay(0), "seconds=0"),
        (lambda faulty: FaultyTransport(redis.Redis()), "give a transport"),  # type: ignore[arg-type]
    ],
)
def test_bad_faults_are_refused(inject: Callable[[FaultyTransport], object], said: str) -> None:
    """And nothing is injected."""
    faulty = FaultyTransport()
    with pytest.raises(ConfigurationError, match=said):
        inject(faulty)
    store(faulty)
