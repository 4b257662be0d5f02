"""Timing: interleaved rounds of cases that race, and the medians of their rounds.

Only ratios within one run mean anything: the machine may be busy, so the cases take turns, and a round of one is
compared with rounds of the others right beside it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Something to time: `run(n)` does it n times; `before` makes ready for a round and is not timed."""

    run: Callable[[int], object]
    before: Callable[[], object] = lambda: None


def race(cases: Mapping[str, Case], *, rounds: int = 7, seconds: float = 0.15) -> dict[str, float]:
    """Return the microseconds of each case: the median of its rounds, each of about `seconds`."""
    counts = {name: _count(case, seconds) for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(_time(case, counts[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def _count(case: Case, seconds: float) -> int:
    count = 1
    while True:
        took = _time(case, count) * count / 1e6
        if took >= seconds / 4:
            return max(1, round(count * seconds / took))
        count = max(count + 1, min(count * 10, round(count * seconds / max(took, 1e-7))))


def _time(case: Case, count: int) -> float:
    case.before()
    gc.collect()
    began = time.perf_counter()
    case.run(count)
    return (time.perf_counter() - began) / count * 1e6
