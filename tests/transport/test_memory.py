"""What only the in-process transport does: its bound, its clock, its threads, and what a fork leaves of it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from transport.backends import FINGERPRINT, PAYLOAD, id_of

from sqlmodel_cache import ConfigurationError, MemoryTransport
from sqlmodel_cache import _protocol as protocol
from sqlmodel_cache._effects import (
    Begin,
    Commit,
    End,
    Entry,
    Fenced,
    Fill,
    Granted,
    Keys,
    Lease,
    Load,
    Loaded,
    Lookup,
    Outcome,
)
from sqlmodel_cache._plan import Effect, run
from sqlmodel_cache._protocol import Source

TABLE = "c:{db/hero:0}"
TOKEN = id_of("token")


@dataclass
class Clock:
    """A clock that the test moves."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def _entry(pk: int) -> Entry:
    return Entry(f"{TABLE}:{pk}", TABLE)


def _fill(transport: MemoryTransport, pk: int, ttl_ms: int = 300_000) -> bool:
    granted = transport.execute(Lease(_entry(pk), FINGERPRINT, id_of("lease")))
    if not isinstance(granted, Granted):
        return False
    stored: bool = transport.execute(Fill(_entry(pk), granted, FINGERPRINT, PAYLOAD, ttl_ms))
    return stored


def _begin(transport: MemoryTransport, pk: int, fence_ttl_ms: int = 60_000) -> None:
    transport.execute(Begin(Keys((_entry(pk).row,), ()), TOKEN, fence_ttl_ms))


def _hits(transport: MemoryTransport, pk: int) -> bool:
    return transport.execute(Lookup(_entry(pk), FINGERPRINT)) == PAYLOAD


@pytest.mark.parametrize("max_rows", [0, -1, True, 1.0, "10", None])
def test_bound_that_is_none_is_refused(max_rows: Any) -> None:
    """`max_rows` is a positive int, and a bool is none."""
    with pytest.raises(ConfigurationError, match="positive int") as raised:
        MemoryTransport(max_rows)
    assert raised.value.argument == "max_rows"
    assert raised.value.value is max_rows


def test_least_recently_used_row_is_evicted() -> None:
    """The bound holds, and the row that nobody has asked for longest goes first; a hit counts as use."""
    transport = MemoryTransport(3)
    for pk in (1, 2, 3):
        assert _fill(transport, pk)
    assert _hits(transport, 1)
    assert _fill(transport, 4)
    assert [pk for pk in (1, 2, 3, 4) if _hits(transport, pk)] == [1, 3, 4]
    assert len(transport) == 3


@pytest.mark.parametrize("max_rows", [1, 2, 7])
def test_bound_holds_for_fences_too(max_rows: int) -> None:
    """Leases and released fences count as rows: a scan of a big table does not grow the cache."""
    transport = MemoryTransport(max_rows)
    for pk in range(50):
        transport.execute(Lease(_entry(pk), FINGERPRINT, id_of("lease")))
        transport.execute(End(Keys((_entry(-pk).row,), ()), TOKEN, id_of("end")))
    assert len(transport._rows) == max_rows
    assert _fill(transport, 100)
    assert _hits(transport, 100)


def test_row_with_a_commit_in_flight_is_never_evicted() -> None:
    """Pending fences stay however many rows come; they leave as soon as they are released."""
    transport = MemoryTransport(2)
    for pk in (1, 2, 3):
        _begin(transport, pk)
    for pk in range(10, 30):
        _fill(transport, pk)
    for pk in (1, 2, 3):
        assert transport.execute(Lease(_entry(pk), FINGERPRINT, id_of("lease"))) == Fenced()
    for pk in (1, 2, 3):
        transport.execute(End(Keys((_entry(pk).row,), ()), TOKEN, id_of("end")))
    for pk in (10, 11, 12):
        assert _fill(transport, pk)
    assert len(transport) <= 3


def test_fence_whose_deadline_has_passed_is_evicted_like_any_row() -> None:
    """What a crashed writer left behind does not hold its room for ever."""
    clock = Clock()
    transport = MemoryTransport(2, clock=clock)
    for pk in range(20):
        _begin(transport, pk, fence_ttl_ms=1_000)
    assert len(transport._rows) == 20
    clock.now += 2
    for pk in range(100, 150):
        assert _fill(transport, pk)
    assert len(transport._rows) <= 20
    assert _hits(transport, 149)
    assert any(_hits(transport, pk) for pk in range(100, 149))


def test_value_lives_for_its_ttl() -> None:
    """A value is a hit until its ttl is over, by the clock that was given."""
    clock = Clock()
    transport = MemoryTransport(clock=clock)
    _fill(transport, 1, ttl_ms=5_000)
    key = _entry(1).row
    assert transport.keys() == [key]
    assert transport.ttl(key) == pytest.approx(5.0)
    clock.now += 4.999
    assert _hits(transport, 1)
    clock.now += 0.001
    assert not _hits(transport, 1)
    assert transport.keys() == []
    assert transport.ttl(key) is None
    assert len(transport) == 0
    assert _fill(transport, 1)


def test_deadline_lapses_by_the_clock() -> None:
    """A fence that nobody ended is refused until its deadline, and granted after it."""
    clock = Clock()
    transport = MemoryTransport(clock=clock)
    lease = Lease(_entry(1), FINGERPRINT, id_of("lease"))
    transport.execute(Begin(Keys((_entry(1).row,), (TABLE,)), TOKEN, 1_000))
    clock.now += 0.999
    assert transport.execute(lease) == Fenced()
    clock.now += 0.001
    assert isinstance(transport.execute(lease), Granted)


def test_lease_lapses_by_the_clock() -> None:
    """A lease that is not used for a minute is gone: its fill is refused."""
    clock = Clock()
    transport = MemoryTransport(clock=clock)
    granted = transport.execute(Lease(_entry(1), FINGERPRINT, id_of("lease")))
    clock.now += 60
    assert transport.execute(Fill(_entry(1), granted, FINGERPRINT, PAYLOAD, 1_000)) is False


def test_evict_and_clear_forget() -> None:
    """`evict` forgets one key and says whether it was there; `clear` forgets all, fences too."""
    transport = MemoryTransport()
    _fill(transport, 1)
    _fill(transport, 2)
    assert transport.evict(_entry(1).row) is True
    assert transport.evict(_entry(1).row) is False
    assert not _hits(transport, 1)
    assert _hits(transport, 2)
    assert transport.evict(TABLE) is True
    assert not _hits(transport, 2)
    _begin(transport, 3)
    transport.clear()
    assert len(transport) == 0
    assert isinstance(transport.execute(Lease(_entry(3), FINGERPRINT, id_of("lease"))), Granted)
    transport.close()
    assert isinstance(transport.execute(Lease(_entry(3), FINGERPRINT, id_of("lease"))), Granted)


@dataclass
class Database:
    """Rows as numbers, and the newest number whose commit() has returned."""

    rows: list[int]
    returned: list[int]
    locks: list[threading.Lock] = field(default_factory=list)


class NoDebts:
    """An in-process cache is always reachable."""

    def owe(self, keys: Keys) -> None:
        """Never called."""
        raise AssertionError(keys)

    def ticket(self) -> int:
        """Return the only number."""
        return 0

    def settle(self, keys: Keys, ticket: int) -> None:
        """Nothing was owed."""


def test_threads_see_no_stale_row() -> None:
    """Threads that read and commit through the real plans, switched as often as possible, never hit an old row."""
    rows, threads, rounds = 3, 6, 300
    transport = MemoryTransport(2)  # fewer than rows: evictions too
    database = Database([0] * rows, [0] * rows, [threading.Lock() for _ in range(rows)])
    ids = (number.to_bytes(16, "big") for number in itertools.count())
    id_lock = threading.Lock()
    wrong: list[str] = []
    hits = itertools.count()
    start = threading.Barrier(threads)

    def new_id() -> bytes:
        with id_lock:
            return next(ids)

    def read(pk: int) -> None:
        def execute(effect: Effect[Any]) -> Any:
            if type(effect) is Load:
                return Loaded(database.rows[pk], str(database.rows[pk]).encode())
            return transport.execute(effect)

        oldest = database.returned[pk]
        answer = run(protocol.read(_entry(pk), protocol.Reading(FINGERPRINT, int, 60_000), new_id=new_id), execute)
        found = answer.decoded if answer.source is Source.HIT else answer.row
        if answer.source is Source.HIT:
            next(hits)
        if found is None or found < oldest:
            wrong.append(f"row {pk}: {found} after {oldest} by {answer.source}")

    def write(pk: int) -> None:
        def execute(effect: Effect[Any]) -> Any:
            if type(effect) is Commit:
                database.rows[pk] += 1
                return Outcome.COMMITTED
            return transport.execute(effect)

        with database.locks[pk]:
            keys = Keys((_entry(pk).row,), ()) if pk else Keys((), (TABLE,))
            run(protocol.commit(keys, NoDebts(), refuse=True, fence_ttl_ms=60_000, new_id=new_id), execute)
            database.returned[pk] = database.rows[pk]

    def work(seed: int) -> None:
        choose = random.Random(seed)
        start.wait()
        try:
            for _ in range(rounds):
                pk = choose.randrange(rows)
                act: Callable[[int], None] = write if choose.random() < 0.2 else read
                act(pk)
        except Exception as error:
            wrong.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert next(hits) > 0
    assert len(transport._rows) <= rows
    assert sum(database.rows) > 0


FORK = """
import os
from sqlmodel_cache import MemoryTransport
from sqlmodel_cache._effects import *

entry, table = Entry("c:{t}:1", "c:{t}"), Keys((), ("c:{t}",))
transport, other = MemoryTransport(), MemoryTransport()

def fill():
    granted = transport.execute(Lease(entry, b"release1", b"l" * 16))
    return transport.execute(Fill(entry, granted, b"release1", b"row", 60_000))

assert fill()
transport._lock.acquire()  # as another thread of the parent may hold it while this one forks
child = os.fork()
if child == 0:
    empty = len(transport) == 0 and transport.execute(Lookup(entry, b"release1")) is None and fill()
    os._exit(0 if empty and len(transport) == 1 else 1)
transport._lock.release()
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert transport.execute(Lookup(entry, b"release1")) == b"row"
print("forked")
"""


def test_forked_child_starts_empty() -> None:
    """A child would not see its parent's invalidations, nor who holds the lock: it starts without either."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("forked\n", "", 0)
