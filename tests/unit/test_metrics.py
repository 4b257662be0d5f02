"""What stands behind `Stats`: histograms, mappings that do not change, and sums."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from typing import Any, get_args

import pytest

from sqlmodel_cache import ConfigurationError, Histogram, ModelStats, Stats
from sqlmodel_cache.metrics import BOUNDS, BypassReason, Counters, MissReason, ModelCounters, ReadOnly, RefusedReason


class Model:
    """What counts."""


def counted(*seconds: float) -> Histogram:
    """Return the histogram of hits that took so long."""
    counters = ModelCounters()
    for each in seconds:
        counters.hit(each, 0)
    return counters.stats().hit_seconds


def test_histogram_counts_up_to_a_bound() -> None:
    """A bucket has what took as long as its bound, and no longer; the last has all the rest."""
    found = counted(0.001, 0.0011, 1e9)
    assert found.bounds == BOUNDS
    assert sorted(BOUNDS) == list(BOUNDS)
    assert BOUNDS[-1] == math.inf
    assert {bound: count for bound, count in zip(found.bounds, found.counts, strict=True) if count} == {
        0.001: 1,
        0.0025: 1,
        math.inf: 1,
    }
    assert (found.count, found.sum) == (3, pytest.approx(1e9 + 0.0021))


def test_times_of_hits_and_of_misses_are_kept_apart() -> None:
    """Each with its own sum."""
    counters = ModelCounters()
    counters.hit(0.25, 0)
    counters.miss(2.0, "absent")
    counters.miss(1.0, "fenced")
    found = counters.stats()
    assert (found.hit_seconds.count, found.hit_seconds.sum) == (1, 0.25)
    assert (found.miss_seconds.count, found.miss_seconds.sum) == (2, 3.0)


def test_histogram_interpolates_quantiles() -> None:
    """Within a bucket, as Prometheus does; beyond the last finite bound, that bound."""
    found = Histogram((1.0, 2.0, math.inf), (2, 2, 0), 4.0)
    assert [found.quantile(q) for q in (0, 0.25, 0.5, 0.75, 1)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert Histogram((1.0, 2.0, math.inf), (1, 0, 1), 9.0).quantile(0.99) == 2.0
    assert Histogram().quantile(0.5) == 0.0
    with pytest.raises(ConfigurationError, match="q"):
        found.quantile(50)


def test_histograms_add_up() -> None:
    """Two together have what both have."""
    assert counted(0.1) + counted(0.2, 4) == counted(0.1, 0.2, 4)


CHANGES: list[Callable[[Any], object]] = [
    lambda mapping: mapping.__setitem__("a", 2),
    lambda mapping: mapping.__delitem__("a"),
    lambda mapping: mapping.update(a=2),
    lambda mapping: mapping.setdefault("b", 2),
    lambda mapping: mapping.pop("a"),
    lambda mapping: mapping.popitem(),
    lambda mapping: mapping.clear(),
    lambda mapping: mapping.__ior__({"a": 2}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_mappings_do_not_change(change: Callable[[Any], object]) -> None:
    """Stats are of one moment."""
    mapping = ReadOnly({"a": 1})
    with pytest.raises(TypeError, match="read-only"):
        change(mapping)
    assert mapping == {"a": 1}


def test_stats_travel() -> None:
    """They can be copied, pickled, and made a dict of, which JSON takes."""
    counters = Counters()
    counters.model(Model).hit(0.001, 10)
    stats = counters.stats(owed=0, outages=0, unreachable=False)
    assert copy.deepcopy(stats) == pickle.loads(pickle.dumps(stats)) == stats
    plain = json.loads(json.dumps(dataclasses.asdict(stats)))
    assert plain["models"][f"{__name__}:Model"]["miss_reasons"]["absent"] == 0


def test_every_reason_is_there_from_the_start() -> None:
    """With a count of 0, so that nobody has to ask whether it has occurred."""
    for stats in (ModelStats(), ModelCounters().stats()):
        assert tuple(stats.miss_reasons) == get_args(MissReason)
        assert tuple(stats.bypass_reasons) == get_args(BypassReason)
        assert tuple(stats.refused_reasons) == get_args(RefusedReason)
    assert ModelCounters().stats() == ModelStats()


def test_totals_are_sums() -> None:
    """Of the models, and of what belongs to none."""
    counters = Counters()
    for class_ in (Model, Counters, Model):
        counters.model(class_).hit(0.001, 10)
        counters.model(class_).invalidated += 1
    counters.errors += 1
    counters.invalidated += 1
    counters.model(Model).miss(0.1, "breaker")
    stats = counters.stats(owed=1, outages=2, unreachable=True)
    assert list(stats.models) == ["sqlmodel_cache.metrics:Counters", f"{__name__}:Model"]
    assert (stats.hits, stats.misses, stats.invalidated, stats.errors) == (3, 1, 4, 2)
    assert (stats.owed, stats.outages, stats.unreachable) == (1, 2, True)
    assert Counters().stats(owed=0, outages=0, unreachable=False) == Stats()
