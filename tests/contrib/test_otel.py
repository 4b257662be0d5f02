"""What OpenTelemetry's own readers and exporters get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import Hero, add_hero, get_hero
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import SQLModelCache, tracing
from sqlmodel_cache.contrib.otel import instrument_metrics, record_durations, trace_gets
from sqlmodel_cache.metrics import BOUNDS


@pytest.fixture
def heroes(tmp_path: Path) -> Iterator[Engine]:
    """A database with a hero, and a cache."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    add_hero(engine)
    yield engine
    engine.dispose()


def observed(reader: InMemoryMetricReader) -> dict[tuple[Any, ...], float]:
    """Return what a reader collects: name and attributes to value."""
    data: Any = reader.get_metrics_data()
    return {
        (metric.name, *sorted(point.attributes.items())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_counts_are_observed(heroes: Engine) -> None:
    """As they are when somebody collects."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument_metrics(provider)
    for _ in range(3):
        get_hero(heroes, 1)
    found = observed(reader)
    model = ("model", "models:Hero")
    assert found["sqlmodel_cache.gets", model, ("outcome", "hit")] == 2
    assert found["sqlmodel_cache.gets", model, ("outcome", "miss"), ("reason", "absent")] == 1
    assert found["sqlmodel_cache.gets", model, ("outcome", "bypass"), ("reason", "option")] == 0
    assert found["sqlmodel_cache.not_stored", model, ("reason", "late")] == 0
    assert found["sqlmodel_cache.fills", model] == 1
    assert found["sqlmodel_cache.read", model] > 0
    assert found["sqlmodel_cache.verified", model] == found["sqlmodel_cache.discrepancies", model] == 0
    assert found["sqlmodel_cache.get.time", model, ("outcome", "hit")] > 0
    assert found["sqlmodel_cache.owed",] == found["sqlmodel_cache.breaker_open",] == 0
    assert found["sqlmodel_cache.errors",] == found["sqlmodel_cache.outages",] == 0
    get_hero(heroes, 1)
    assert observed(reader)["sqlmodel_cache.gets", model, ("outcome", "hit")] == 3
    provider.shutdown()


def test_durations_are_a_histogram(heroes: Engine) -> None:
    """With this library's buckets, whose shortest are of microseconds; its sum and count are those of `stats()`."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = record_durations(provider)
    try:
        for _ in range(3):
            get_hero(heroes, 1)
        with Session(heroes) as session:
            session.get(Hero, "x")
    finally:
        stop()
    get_hero(heroes, 1)
    assert not tracing.active
    data: Any = reader.get_metrics_data()
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("sqlmodel_cache.get.duration", "s")
    points = {point.attributes["outcome"]: point for point in metric.data.data_points}
    assert {outcome: point.count for outcome, point in points.items()} == {"miss": 1, "hit": 2, "bypass": 1}
    assert {point.attributes["model"] for point in points.values()} == {"models:Hero"}
    seconds = SQLModelCache.stats().models["models:Hero"].miss_seconds
    assert points["miss"].explicit_bounds == BOUNDS[:-1]
    assert (points["miss"].bucket_counts, points["miss"].sum) == (seconds.counts, pytest.approx(seconds.sum))
    provider.shutdown()


def test_gets_are_spans(heroes: Engine) -> None:
    """Each has its outcome, its reason and its length, and the span around it as its parent."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = trace_gets(provider)
    try:
        with provider.get_tracer("test").start_as_current_span("request") as request:
            get_hero(heroes, 1)
            get_hero(heroes, 1)
            with Session(heroes) as session:
                session.get(Hero, "x")
    finally:
        stop()
    get_hero(heroes, 1)
    assert not tracing.active
    spans = [span for span in exporter.get_finished_spans() if span.name == "get Hero"]
    told = [dict(span.attributes or {}) for span in spans]
    assert told == [
        {
            "sqlmodel_cache.model": "models:Hero",
            "sqlmodel_cache.pk": "1",
            "sqlmodel_cache.outcome": "miss",
            "sqlmodel_cache.reason": "absent",
        },
        {"sqlmodel_cache.model": "models:Hero", "sqlmodel_cache.pk": "1", "sqlmodel_cache.outcome": "hit"},
        {"sqlmodel_cache.model": "models:Hero", "sqlmodel_cache.outcome": "bypass", "sqlmodel_cache.reason": "key"},
    ]
    for span in spans:
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.end_time is not None
        assert span.start_time is not None
        assert span.end_time > span.start_time
