"""Timing: rounds of cases that take turns, and the medians of what the rounds say.

Only ratios within one run mean anything: the machine may be busy. So a case is compared with another that ran right
beside it, in the same round, and the median is taken of these ratios. Work that only computes is measured by the
thread's CPU time, which does not count others' work; where a server is waited for, by the wall's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Clock: TypeAlias = Literal["wall", "cpu"]


class Spent(NamedTuple):
    """Seconds, by the wall's clock and of this thread's CPU."""

    wall: float
    cpu: float


class Stopwatch:
    """Adds up the blocks that count: `with watch: ...`."""

    def __init__(self) -> None:
        self.spent = Spent(0.0, 0.0)
        self._began = self.spent

    def __enter__(self) -> None:
        self._began = Spent(time.perf_counter(), time.thread_time())

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        self.spent = Spent(self.spent.wall + wall - self._began.wall, self.spent.cpu + cpu - self._began.cpu)


@dataclass(frozen=True)
class Case:
    """Something to time: `run(n)` does it n times, and returns what counts of its time, or None for all of it.

    `before` makes ready for a round, and is not timed.
    """

    run: Callable[[int], Spent | None]
    before: Callable[[], object] = lambda: None


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and the quartiles: how far the rounds agree."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """What a race has found: for each case the seconds that one time took in each round."""

    rounds: Mapping[str, Sequence[Spent]]
    clock: Clock

    def us(self, name: str, clock: Clock | None = None) -> float:
        """Return the microseconds that one time of a case takes."""
        return statistics.median(self._seconds(name, clock)) * 1e6

    def ratio(self, name: str, other: str, clock: Clock | None = None) -> Ratio:
        """Return how many times longer a case takes than another."""
        pairs = zip(self._seconds(name, clock), self._seconds(other, clock), strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return Ratio(statistics.median(ratios), quartiles[0], quartiles[2])

    def _seconds(self, name: str, clock: Clock | None) -> list[float]:
        return [getattr(spent, clock or self.clock) for spent in self.rounds[name]]


def race(cases: Mapping[str, Case], *, rounds: int, seconds: float, clock: Clock) -> Race:
    """Let cases take turns, each for about `seconds` in every round, in an order that turns around each time."""
    counts = {name: _count(case, seconds) for name, case in cases.items()}
    times: dict[str, list[Spent]] = {name: [] for name in cases}
    names = list(cases)
    for _ in range(rounds):
        for name in names:
            times[name].append(_time(cases[name], counts[name]))
        names.reverse()
    return Race(times, clock)


def _count(case: Case, seconds: float) -> int:
    """Return how many times fill `seconds`; once, if that is none."""
    if not seconds:
        return 1
    case.before()
    count = 1
    while True:
        took = max(_run(case, count).wall, 1e-7)
        if took >= seconds / 4:
            return max(1, round(count * seconds / took))
        count = max(count + 1, min(count * 10, round(count * seconds / took)))


def _time(case: Case, count: int) -> Spent:
    case.before()
    case.run(max(1, count // 10))  # the interpreter specializes code anew when the library is switched on or off
    gc.collect()
    gc.freeze()  # what is collected meanwhile is the case's own garbage
    try:
        spent = _run(case, count)
    finally:
        gc.unfreeze()
    return Spent(spent.wall / count, spent.cpu / count)


def _run(case: Case, count: int) -> Spent:
    watch = Stopwatch()
    with watch:
        own = case.run(count)
    return watch.spent if own is None else own
