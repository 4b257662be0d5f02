"""Readers of one row that miss at the same time: one of them loads it, and tells the others.

A flight is open until its SELECT is about to be sent; until then others may join (I8 of the protocol). It always lands,
at the latest when the plan of the one who leads it ends, however it ends. Who joins waits for a bounded time.

Threads and the tasks of an event loop do not wait for each other: each kind has flights of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from . import _sqlalchemy
from ._effects import Depart, Entry, Join, Land, Landed, Leads, Wait
from ._plan import Effect


class _Thread:
    """In the sync case, a `threading.Event`, and `time.sleep`."""

    def __init__(self) -> None:
        self.owner: object = threading.get_ident()
        self._landed = threading.Event()

    def land(self) -> None:
        self._landed.set()

    def wait(self, seconds: float) -> None:
        self._landed.wait(seconds)

    @staticmethod
    def pause(seconds: float) -> None:
        time.sleep(seconds)


class _Task:
    """In the async case, an `asyncio.Event`, and `asyncio.sleep`."""

    def __init__(self) -> None:
        self.owner: object = asyncio.current_task()
        self._landed = asyncio.Event()

    def land(self) -> None:
        self._landed.set()

    def wait(self, seconds: float) -> None:
        _sqlalchemy.wait_for(self._wait(seconds))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._landed.wait()
        except TimeoutError:
            pass

    @staticmethod
    def pause(seconds: float) -> None:
        _sqlalchemy.wait_for(asyncio.sleep(seconds))


@dataclass(slots=True, eq=False)
class Flight:
    """One load that others may wait for."""

    waiter: _Thread | _Task
    payload: bytes | None = None  # written once, by the one who leads it, before it lands


_Key: TypeAlias = tuple[Entry, bytes, object]


class Flights:
    """The open flights of this process. Thread-safe."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the map; never held while anybody waits
        self._open: dict[_Key, Flight] = {}

    def _forget_after_fork(self) -> None:
        if self._pid != os.getpid():  # who leads them, or holds the lock, has stayed in the parent
            self._forget()

    def join(self, key: _Key) -> tuple[Flight, bool]:
        """Return the open flight, or a new one, and whether it is new: then the caller leads it."""
        self._forget_after_fork()
        with self._lock:
            flight = self._open.get(key)
            if flight is not None:
                return flight, False
            waiter = _Thread() if key[2] is None else _Task()
            flight = self._open[key] = Flight(waiter)
            return flight, True

    def close(self, key: _Key, flight: Flight) -> None:
        """Let nobody join any more."""
        self._forget_after_fork()
        with self._lock:
            if self._open.get(key) is flight:
                del self._open[key]


class Passenger:
    """One reader's part in flights: performs `Join`, `Depart`, `Land` and `Wait` for its plan."""

    EFFECTS: ClassVar = frozenset({Join, Depart, Land, Wait})

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self._flight: Flight | None = None  # that it leads
        self._key: _Key | None = None

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        match effect:
            case Join(entry, fingerprint, wait_ms):
                return self._join(entry, fingerprint, wait_ms)
            case Depart():
                self._depart()
            case Land(payload):
                self.land(payload)
            case Wait(ms):
                (_Task if _sqlalchemy.in_greenlet() else _Thread).pause(ms / 1000)
        return None

    def _join(self, entry: Entry, fingerprint: bytes, wait_ms: int) -> Leads | Landed:
        loop = asyncio.get_running_loop() if _sqlalchemy.in_greenlet() else None
        key = (entry, fingerprint, loop)
        flight, leads = self._flights.join(key)
        if leads:
            self._key, self._flight = key, flight
            return Leads()
        me = threading.get_ident() if loop is None else asyncio.current_task()
        if flight.waiter.owner != me:  # a load listener may get the very row that is being loaded
            flight.waiter.wait(wait_ms / 1000)
        return Landed(flight.payload)

    def _depart(self) -> None:
        if self._flight is not None and self._key is not None:
            self._flights.close(self._key, self._flight)

    def land(self, payload: bytes | None = None) -> None:
        """Tell those who wait, if it leads a flight that has not landed; called again, it does nothing."""
        if self._flight is not None:
            self._depart()
            self._flight.payload = payload
            self._flight.waiter.land()
            self._flight = None
