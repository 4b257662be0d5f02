"""One load for many readers of a process, without a cache or a database: threads, tasks, and those who never land."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.util.concurrency import greenlet_spawn

from sqlmodel_cache import _flights
from sqlmodel_cache._effects import Depart, Entry, Join, Land, Landed, Leads, Wait
from sqlmodel_cache._flights import Flights, Passenger

ENTRY = Entry("c:{t}:1", "c:{t}")
OTHER = Entry("c:{t}:2", "c:{t}")
LONG_MS = 30_000  # nobody waits that long: somebody lands, or the test fails
JOIN = Join(ENTRY, b"release1", LONG_MS)


@pytest.fixture
def flights() -> Flights:
    """No flights."""
    return Flights()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the test has."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Arrivals:
    """Knows how many wait for a flight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._arrived = threading.Semaphore(0)
        original = _flights._Thread.wait

        def wait(waiter: Any, seconds: float) -> None:
            self._arrived.release()
            original(waiter, seconds)

        monkeypatch.setattr(_flights._Thread, "wait", wait)

    def expect(self, count: int) -> None:
        """Return when so many more are about to wait."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=LONG_MS / 1000)


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Arrivals:
    """Those who wait."""
    return Arrivals(monkeypatch)


def joins(threads: ThreadPoolExecutor, flights: Flights, join: Join = JOIN) -> Future[Any]:
    """Return what a thread is told that joins."""
    return threads.submit(lambda: Passenger(flights).execute(join))


def lead(flights: Flights, join: Join = JOIN) -> Passenger:
    """Return the passenger who leads a flight."""
    leader = Passenger(flights)
    assert leader.execute(join) == Leads()
    return leader


def test_all_who_join_are_told(flights: Flights, threads: ThreadPoolExecutor, arrivals: Arrivals) -> None:
    """One leads; the others wait, and get the payload that it lands with."""
    leader = lead(flights)
    told = [joins(threads, flights) for _ in range(5)]
    arrivals.expect(5)
    leader.execute(Depart())
    leader.execute(Land(b"row"))
    assert [each.result() for each in told] == [Landed(b"row")] * 5
    assert flights._open == {}


def test_nobody_joins_after_departure(flights: Flights, threads: ThreadPoolExecutor) -> None:
    """Who comes after the SELECT was sent leads the next flight [I8], and the first does not close it."""
    leader = lead(flights)
    leader.execute(Depart())
    second = Passenger(flights)
    assert threads.submit(lambda: second.execute(JOIN)).result() == Leads()
    leader.execute(Depart())
    leader.execute(Land(b"old"))
    assert len(flights._open) == 1
    second.land(b"new")
    assert flights._open == {}


@pytest.mark.parametrize("join", [Join(OTHER, b"release1", LONG_MS), Join(ENTRY, b"release2", LONG_MS)], ids=repr)
def test_flights_of_other_rows_and_shapes_are_others(flights: Flights, join: Join) -> None:
    """A payload under another fingerprint could not be read."""
    lead(flights)
    lead(flights, join)
    assert len(flights._open) == 2


def test_who_waits_too_long_is_told_nothing(flights: Flights, threads: ThreadPoolExecutor) -> None:
    """After `wait_ms` it goes on by itself, and the flight goes on without it."""
    leader = lead(flights)
    assert joins(threads, flights, Join(ENTRY, b"release1", 1)).result() == Landed(None)
    leader.land(b"row")


def test_landing_without_departure_closes(flights: Flights, threads: ThreadPoolExecutor, arrivals: Arrivals) -> None:
    """A leader that found a value lands at once: nobody may join what has landed."""
    leader = lead(flights)
    told = joins(threads, flights)
    arrivals.expect(1)
    leader.execute(Land(None))
    assert told.result() == Landed(None)
    lead(flights)


def test_leader_that_ends_badly_lands(flights: Flights, threads: ThreadPoolExecutor, arrivals: Arrivals) -> None:
    """Whoever runs the plan lands for it; what was said before stands, and saying it again changes nothing."""
    leader = lead(flights)
    told = joins(threads, flights)
    arrivals.expect(1)
    leader.land()
    assert told.result() == Landed(None)
    leader.land(b"late")
    leader.execute(Depart())
    leader.execute(Land(b"later"))
    assert flights._open == {}


def test_passenger_who_leads_nothing_may_land(flights: Flights) -> None:
    """A plan without a flight ends in the same way."""
    alone = Passenger(flights)
    alone.execute(Depart())
    alone.land()


def test_thread_does_not_wait_for_itself(flights: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader inside its own flight, as in a load listener or a finalizer, would wait for nothing."""
    monkeypatch.setattr(_flights._Thread, "wait", None)
    leader = lead(flights)
    assert Passenger(flights).execute(JOIN) == Landed(None)
    assert leader.execute(Land(b"row")) is None


def test_thread_leads_flights_of_several_rows(flights: Flights) -> None:
    """A listener's get of another row, inside the load of a first."""
    outer = lead(flights)
    outer.execute(Depart())
    inner = lead(flights, Join(OTHER, b"release1", LONG_MS))
    inner.land(b"other")
    outer.land(b"row")
    assert flights._open == {}


def test_two_threads_that_load_each_others_row_go_on(
    flights: Flights, threads: ThreadPoolExecutor, arrivals: Arrivals
) -> None:
    """Each loads one row and joins the other's in a listener: a flight that has departed is never waited for."""
    departed = threading.Barrier(2)

    def load(mine: Entry, other: Entry) -> Any:
        leader = lead(flights, Join(mine, b"release1", LONG_MS))
        leader.execute(Depart())
        departed.wait(LONG_MS / 1000)
        nested = Passenger(flights)
        told = nested.execute(Join(other, b"release1", LONG_MS))
        nested.land(b"nested")
        leader.land(b"row")
        return told

    told = [threads.submit(load, ENTRY, OTHER), threads.submit(load, OTHER, ENTRY)]
    assert [each.result() for each in told] == [Leads(), Leads()]


def test_waiting_lets_time_pass(flights: Flights, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds."""
    paused: list[float] = []
    monkeypatch.setattr(_flights.time, "sleep", paused.append)
    assert Passenger(flights).execute(Wait(20)) is None
    assert paused == [0.02]


def test_child_process_has_no_flights(flights: Flights) -> None:
    """Who leads them has stayed in the parent: a child that joined would wait for nobody."""
    leader = lead(flights)

    def join() -> bool:
        return Passenger(flights).execute(JOIN) == Leads()

    def land() -> bool:  # the fork was in the middle of a load
        leader.land()
        return join()

    for does in (join, land):
        with flights._lock:  # a thread that the child does not have holds it
            pid = os.fork()
            if pid == 0:
                signal.alarm(LONG_MS // 1000)
                os._exit(0 if does() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# tasks


async def in_task(function: Callable[[], Any]) -> Any:
    """Return what a function returns that runs as a session's code does: in a greenlet of this task."""
    return await greenlet_spawn(function)


async def arrived(count: int) -> None:
    """Return when so many tasks wait, or have ended: all that can run have run until they do."""
    for _ in range(count * 10):
        await asyncio.sleep(0)


async def test_all_tasks_that_join_are_told(flights: Flights) -> None:
    """They wait in the event loop, which goes on."""
    leader = Passenger(flights)
    assert await in_task(lambda: leader.execute(JOIN)) == Leads()
    told = [asyncio.create_task(in_task(lambda: Passenger(flights).execute(JOIN))) for _ in range(5)]
    await arrived(5)
    assert not any(task.done() for task in told)
    leader.land(b"row")
    assert await asyncio.gather(*told) == [Landed(b"row")] * 5


async def test_task_that_waits_too_long_is_told_nothing(flights: Flights) -> None:
    """After `wait_ms` it goes on by itself."""
    leader = Passenger(flights)
    await in_task(lambda: leader.execute(JOIN))
    late = asyncio.create_task(in_task(lambda: Passenger(flights).execute(Join(ENTRY, b"release1", 1))))
    assert await late == Landed(None)
    leader.land(b"row")


async def test_cancelled_task_leaves_the_others(flights: Flights) -> None:
    """One who waits is cancelled; the flight and the rest go on."""
    leader = Passenger(flights)
    await in_task(lambda: leader.execute(JOIN))
    told = [asyncio.create_task(in_task(lambda: Passenger(flights).execute(JOIN))) for _ in range(2)]
    await arrived(2)
    told[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await told[0]
    leader.land(b"row")
    assert await told[1] == Landed(b"row")


async def test_task_does_not_wait_for_itself(flights: Flights) -> None:
    """As a thread does not."""

    def both() -> Any:
        leader = Passenger(flights)
        leader.execute(JOIN)
        told = Passenger(flights).execute(JOIN)
        leader.land()
        return told

    assert await in_task(both) == Landed(None)


async def test_tasks_and_threads_do_not_wait_for_each_other(flights: Flights, threads: ThreadPoolExecutor) -> None:
    """A thread in `Event.wait` would stop the loop in which its leader runs; and each loop has flights of its own."""
    in_loop, in_thread, elsewhere = Passenger(flights), Passenger(flights), Passenger(flights)
    assert await in_task(lambda: in_loop.execute(JOIN)) == Leads()
    assert in_thread.execute(JOIN) == Leads()
    other_loop = threads.submit(lambda: asyncio.run(in_task(lambda: elsewhere.execute(JOIN))))
    assert other_loop.result() == Leads()
    for passenger in (in_loop, in_thread, elsewhere):
        passenger.land()
    assert flights._open == {}


async def test_pause_of_a_task_is_the_loops(flights: Flights) -> None:
    """Other tasks run while one waits."""
    order: list[str] = []

    async def waits() -> None:
        await in_task(lambda: Passenger(flights).execute(Wait(1)))
        order.append("waited")

    waiting = asyncio.create_task(waits())
    await asyncio.sleep(0)
    order.append("ran")
    await waiting
    assert order == ["ran", "waited"]
