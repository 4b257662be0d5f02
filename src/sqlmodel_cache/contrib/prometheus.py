"""What Prometheus is told: the counts of `SQLModelCache.stats()`, read when somebody scrapes. No get pays for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..configure import SQLModelCache
from ..metrics import Histogram, ModelStats, Stats


class CacheCollector(Collector):
    """Collects what this process has counted. Counts begin anew with `configure()`, as they do with a process."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this moment."""
        stats = SQLModelCache.stats()
        return [*_of_models(stats.models), *_of_the_process(stats)]


def register(registry: CollectorRegistry = REGISTRY) -> CacheCollector:
    """Collect with a registry, and return the collector, which the registry can `unregister()`."""
    collector = CacheCollector()
    registry.register(collector)
    return collector


def _of_models(models: Mapping[str, ModelStats]) -> Iterator[Metric]:
    gets = CounterMetricFamily(
        "sqlmodel_cache_gets", "Gets of cached models, by how they ended.", labels=["model", "outcome", "reason"]
    )
    not_stored = CounterMetricFamily(
        "sqlmodel_cache_not_stored", "Rows read after a miss and not stored.", labels=["model", "reason"]
    )
    plain = {
        "fills": CounterMetricFamily("sqlmodel_cache_fills", "Rows stored.", labels=["model"]),
        "shared": CounterMetricFamily(
            "sqlmodel_cache_shared", "Misses that were told what another get was about to read.", labels=["model"]
        ),
        "corrupt": CounterMetricFamily("sqlmodel_cache_corrupt", "Payloads that did not decode.", labels=["model"]),
        "invalidated": CounterMetricFamily(
            "sqlmodel_cache_invalidated", "Rows and table shards fenced or invalidated.", labels=["model"]
        ),
        "verified": CounterMetricFamily(
            "sqlmodel_cache_verified", "Cached rows that were compared with the database.", labels=["model"]
        ),
        "discrepancies": CounterMetricFamily(
            "sqlmodel_cache_discrepancies", "Those of them that were not what the database held.", labels=["model"]
        ),
        "bytes_read": CounterMetricFamily(
            "sqlmodel_cache_read_bytes", "Bytes of payloads that were found.", labels=["model"]
        ),
        "bytes_written": CounterMetricFamily(
            "sqlmodel_cache_written_bytes", "Bytes of payloads that were stored.", labels=["model"]
        ),
    }
    seconds = HistogramMetricFamily("sqlmodel_cache_get_seconds", "How long gets took.", labels=["model", "outcome"])
    for model, stats in models.items():
        gets.add_metric([model, "hit", ""], stats.hits - stats.near_hits)
        gets.add_metric([model, "near_hit", ""], stats.near_hits)
        for reason, count in stats.miss_reasons.items():
            gets.add_metric([model, "miss", reason], count)
        for reason, count in stats.bypass_reasons.items():
            gets.add_metric([model, "bypass", reason], count)
        for reason, count in stats.refused_reasons.items():
            not_stored.add_metric([model, reason], count)
        for name, family in plain.items():
            family.add_metric([model], getattr(stats, name))
        for outcome, histogram in (("hit", stats.hit_seconds), ("miss", stats.miss_seconds)):
            seconds.add_metric([model, outcome], _buckets(histogram), histogram.sum)
    yield from (gets, not_stored, *plain.values(), seconds)


def _of_the_process(stats: Stats) -> Iterator[Metric]:
    owed = "Rows and table shards whose invalidation the cache has not been told."
    yield GaugeMetricFamily("sqlmodel_cache_owed", owed, stats.owed)
    yield GaugeMetricFamily(
        "sqlmodel_cache_breaker_open", "Whether the cache is not asked now.", int(stats.unreachable)
    )
    yield CounterMetricFamily("sqlmodel_cache_outages", "How often the cache stopped being asked.", stats.outages)
    yield CounterMetricFamily(
        "sqlmodel_cache_errors", "Misses and invalidations that the transport failed.", stats.errors
    )


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus has them, each with all that is shorter."""
    found, count = [], 0
    for bound, own in zip(histogram.bounds, histogram.counts, strict=True):
        count += own
        found.append(("+Inf" if bound == math.inf else repr(bound), float(count)))
    return found
