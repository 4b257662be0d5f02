"""What happened lately, in equal steps of time: the differences between one look at the counters and the next.

Bounded, however long the process runs and however many models it has. Knows neither the cache nor the page.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...metrics import Histogram, ModelStats, Stats

STEP = 5.0  # seconds between two points
POINTS = 720  # one hour
MODELS = 32  # of one point: those with the most reads

Reads = tuple[int, int, float, float, float, float]
"""Hits, misses, and in ms: median and 99th percentile of the hits, then of the misses."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was read between two looks; `reads` has all models together under ""."""

    number: int
    at: float  # seconds since the epoch
    seconds: float
    reads: Mapping[str, Reads]


class History:
    """The points of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._count = 0
        self._last = Stats()
        self._looked: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether the last look is a step ago."""
        return self._looked is None or not 0 <= self._clock() - self._looked < 0.9 * STEP

    def look(self, stats: Stats) -> None:
        """Add a point: what was counted since the last look. The first look only remembers."""
        now = self._clock()
        last, since = self._last, self._looked
        self._last, self._looked = stats, now
        if since is None or now <= since:
            return
        if stats.hits < last.hits or stats.misses < last.misses:  # configured anew: it counts from zero
            last = Stats()
        differences = {name: _since(each, last.models.get(name, ModelStats())) for name, each in stats.models.items()}
        busy = sorted(
            (name for name, each in differences.items() if each[0] or each[1]),
            key=lambda name: -sum(differences[name][:2]),
        )
        reads = {name: _reads(*differences[name]) for name in busy[:MODELS]}
        hits, misses = stats.hits - last.hits, stats.misses - last.misses
        reads[""] = _reads(
            hits,
            misses,
            sum((differences[name][2] for name in busy), Histogram()),
            sum((differences[name][3] for name in busy), Histogram()),
        )
        self._count += 1
        self._points.append(Point(self._count, now, now - since, reads))

    def since(self, number: int) -> list[Point]:
        """Return the points after one with this number, the oldest first."""
        return [point for point in self._points if point.number > number]


def _since(now: ModelStats, last: ModelStats) -> tuple[int, int, Histogram, Histogram]:
    if now.hits < last.hits or now.misses < last.misses:
        last = ModelStats()
    return (
        now.hits - last.hits,
        now.misses - last.misses,
        _less(now.hit_seconds, last.hit_seconds),
        _less(now.miss_seconds, last.miss_seconds),
    )


def _less(now: Histogram, last: Histogram) -> Histogram:
    counts = tuple(max(0, a - b) for a, b in zip(now.counts, last.counts, strict=True))
    return Histogram(now.bounds, counts, max(0.0, now.sum - last.sum))


def _reads(hits: int, misses: int, hit_seconds: Histogram, miss_seconds: Histogram) -> Reads:
    times: list[Any] = [round(each.quantile(q) * 1000, 4) for each in (hit_seconds, miss_seconds) for q in (0.5, 0.99)]
    return (hits, misses, *times)
