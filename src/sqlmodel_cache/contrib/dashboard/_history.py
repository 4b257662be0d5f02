"""What happened lately, in equal steps of time: the differences between one look at the counters and the next.

Bounded, however long the process runs and however many models it has. Knows neither the cache nor the page.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        none = ModelStats()
        read = {name: _since(each, last.models.get(name, none)) for name, each in stats.models.items()}
        busy = sorted((name for name in read if read[name].reads), key=lambda name: -read[name].reads)
        reads = {name: _told(read[name]) for name in busy[:MODELS]}
        every = [read[name] for name in busy]
        reads[""] = _told(
            _Read(
                stats.hits - last.hits,
                stats.misses - last.misses,
                [sum(counts) for counts in zip(*(each.hit_times for each in every), strict=True)],
                [sum(counts) for counts in zip(*(each.miss_times for each in every), strict=True)],
            )
        )
        self._count += 1
        self._points.append(Point(self._count, now, now - since, reads))

    def since(self, number: int) -> list[Point]:
        """Return the points after one with this number, the oldest first."""
        return [point for point in self._points if point.number > number]


class _Read(NamedTuple):
    """What was read of a model, with its times as counts of the histogram's buckets; no counts are none."""

    hits: int
    misses: int
    hit_times: Sequence[int]
    miss_times: Sequence[int]

    @property
    def reads(self) -> int:
        """How many there were."""
        return self.hits + self.misses


def _since(now: ModelStats, last: ModelStats) -> _Read:
    if now.hits < last.hits or now.misses < last.misses:
        last = ModelStats()
    times = ((now.hit_seconds.counts, last.hit_seconds.counts), (now.miss_seconds.counts, last.miss_seconds.counts))
    return _Read(now.hits - last.hits, now.misses - last.misses, *(tuple(map(int.__sub__, *pair)) for pair in times))


def _told(read: _Read) -> Reads:
    return (read.hits, read.misses, *_quantiles(read.hit_times), *_quantiles(read.miss_times))


def _quantiles(times: Sequence[int]) -> tuple[float, float]:
    """Return the median and the 99th percentile in ms, 0 when nothing was counted."""
    if not any(times):
        return 0.0, 0.0
    # Threads may race on a count, so that one of them may seem to have gone back.
    seconds = Histogram(counts=tuple(max(0, count) for count in times))
    return round(seconds.quantile(0.5) * 1000, 4), round(seconds.quantile(0.99) * 1000, 4)
