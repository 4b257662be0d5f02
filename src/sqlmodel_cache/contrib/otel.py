"""What OpenTelemetry is told: counts, read whenever a reader collects; how long each get took, and its span, if wanted.

Counts cost a get nothing. A histogram does: OpenTelemetry has no instrument that observes one, whose buckets somebody
else has counted, so each duration must be recorded when it is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
from opentelemetry.trace import SpanKind, TracerProvider, get_tracer_provider

from .. import tracing
from ..configure import SQLModelCache
from ..metrics import BOUNDS, ModelStats

NAME = "sqlmodel_cache"

_COUNTERS: dict[str, tuple[str, str, str]] = {
    "fills": ("sqlmodel_cache.fills", "{row}", "Rows stored."),
    "shared": ("sqlmodel_cache.shared", "{get}", "Misses that were told what another get was about to read."),
    "corrupt": ("sqlmodel_cache.corrupt", "{payload}", "Payloads that did not decode."),
    "invalidated": ("sqlmodel_cache.invalidated", "{key}", "Rows and table shards fenced or invalidated."),
    "verified": ("sqlmodel_cache.verified", "{row}", "Cached rows that were compared with the database."),
    "discrepancies": ("sqlmodel_cache.discrepancies", "{row}", "Those of them that were not what it held."),
    "bytes_read": ("sqlmodel_cache.read", "By", "Payloads that were found."),
    "bytes_written": ("sqlmodel_cache.written", "By", "Payloads that were stored."),
}


def instrument_metrics(provider: MeterProvider | None = None) -> None:
    """Observe what this process has counted, with a provider's meter; the global provider's if none is given.

    Call it once for a provider: a meter's instruments cannot be taken off.
    """
    meter = (provider or get_meter_provider()).get_meter(NAME)
    observe = meter.create_observable_counter
    observe("sqlmodel_cache.gets", [_callback(_gets)], "{get}", "Gets of cached models, by how they ended.")
    observe("sqlmodel_cache.not_stored", [_callback(_not_stored)], "{row}", "Rows read after a miss and not stored.")
    for field, (name, unit, description) in _COUNTERS.items():
        observe(name, [_callback(_field(field))], unit, description)
    observe("sqlmodel_cache.get.time", [_callback(_seconds)], "s", "How long gets took in all.")
    observe("sqlmodel_cache.errors", [_total("errors")], "{error}", "Misses and invalidations that failed.")
    observe("sqlmodel_cache.outages", [_total("outages")], "{outage}", "How often the cache stopped being asked.")
    gauge = meter.create_observable_gauge
    gauge("sqlmodel_cache.owed", [_total("owed")], "{key}", "Invalidations that the cache has not been told.")
    gauge("sqlmodel_cache.breaker_open", [_total("unreachable")], "1", "1 while the cache is not asked.")


def record_durations(provider: MeterProvider | None = None) -> Callable[[], None]:
    """Record how long each get of a cached model takes, in a histogram; return what ends that.

    Its buckets are those of `SQLModelCache.stats()`, where the provider has no view that says otherwise. Each get pays
    for it: OpenTelemetry's SDK takes about as long to record it as a hit from this process's memory takes in all.
    `instrument_metrics` gives the sums and the counts for nothing.
    """
    meter = (provider or get_meter_provider()).get_meter(NAME)
    histogram = meter.create_histogram(
        "sqlmodel_cache.get.duration",
        "s",
        "How long gets took.",
        explicit_bucket_boundaries_advisory=[bound for bound in BOUNDS if bound != math.inf],
    )

    def watch(get: tracing.TracedGet) -> None:
        histogram.record(get.seconds, {"model": get.model, "outcome": get.outcome})

    tracing.watch(watch)
    return lambda: tracing.unwatch(watch)


def trace_gets(provider: TracerProvider | None = None) -> Callable[[], None]:
    """Make a span of each get of a cached model; return what ends that.

    A span is made when its get has ended, so spans of the SELECT of a miss are its siblings, not its children.
    """
    tracer = (provider or get_tracer_provider()).get_tracer(NAME)

    def watch(get: tracing.TracedGet) -> None:
        ended = time.time_ns()
        attributes = {"sqlmodel_cache.model": get.model, "sqlmodel_cache.outcome": get.outcome}
        if get.pk is not None:
            attributes["sqlmodel_cache.pk"] = get.pk
        if get.reason is not None:
            attributes["sqlmodel_cache.reason"] = get.reason
        span = tracer.start_span(
            f"get {get.model.rpartition(':')[2]}",
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            start_time=ended - round(get.seconds * 1e9),
        )
        span.end(ended)

    tracing.watch(watch)
    return lambda: tracing.unwatch(watch)


Values = Iterator[tuple[float, dict[str, str]]]


def _callback(values: Callable[[ModelStats], Values]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for model, stats in SQLModelCache.stats().models.items():
            for value, attributes in values(stats):
                yield Observation(value, {"model": model, **attributes})

    return observe


def _gets(stats: ModelStats) -> Values:
    yield stats.hits - stats.near_hits, {"outcome": "hit"}
    yield stats.near_hits, {"outcome": "near_hit"}
    for reason, count in stats.miss_reasons.items():
        yield count, {"outcome": "miss", "reason": reason}
    for reason, count in stats.bypass_reasons.items():
        yield count, {"outcome": "bypass", "reason": reason}


def _not_stored(stats: ModelStats) -> Values:
    for reason, count in stats.refused_reasons.items():
        yield count, {"reason": reason}


def _seconds(stats: ModelStats) -> Values:
    yield stats.hit_seconds.sum, {"outcome": "hit"}
    yield stats.miss_seconds.sum, {"outcome": "miss"}


def _field(name: str) -> Callable[[ModelStats], Values]:
    def values(stats: ModelStats) -> Values:
        yield getattr(stats, name), {}

    return values


def _total(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Any]:
        yield Observation(int(getattr(SQLModelCache.stats(), name)))

    return observe
