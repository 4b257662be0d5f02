"""What Prometheus scrapes, and whether every query of the Grafana dashboard finds it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from models import Hero, add_hero, get_hero
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache.contrib.prometheus import register
from sqlmodel_cache.metrics import BOUNDS

DASHBOARD: dict[str, Any] = json.loads(files("sqlmodel_cache.contrib").joinpath("grafana.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"sqlmodel_cache_\w+")


@pytest.fixture
def heroes(tmp_path: Path) -> Iterator[Engine]:
    """A database, and one miss, two hits and a bypass."""
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    pk = add_hero(engine)
    for _ in range(3):
        get_hero(engine, pk)
    with Session(engine) as session:
        session.get(Hero, pk, execution_options={"cache": False})
    yield engine
    engine.dispose()


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what a scrape gives, as the text that Prometheus reads says it."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """Return one sample."""
    return samples(registry).get((name, tuple(sorted(labels.items()))))


def test_counts_are_exposed(heroes: Engine) -> None:
    """By model, outcome and reason; histograms as Prometheus has them, each bucket with all that is shorter."""
    registry = CollectorRegistry()
    register(registry)
    model = "models:Hero"
    gets = "sqlmodel_cache_gets_total"
    assert value(registry, gets, model=model, outcome="hit", reason="") == 2
    assert value(registry, gets, model=model, outcome="near_hit", reason="") == 0
    assert value(registry, gets, model=model, outcome="miss", reason="absent") == 1
    assert value(registry, gets, model=model, outcome="bypass", reason="disabled") == 1
    assert value(registry, "sqlmodel_cache_fills_total", model=model) == 1
    seconds = "sqlmodel_cache_get_seconds"
    buckets = [
        count
        for (name, labels), count in samples(registry).items()
        if name == f"{seconds}_bucket" and dict(labels)["outcome"] == "hit"
    ]
    assert len(buckets) == len(BOUNDS)
    assert sorted(buckets) == buckets
    assert value(registry, f"{seconds}_bucket", model=model, outcome="hit", le="+Inf") == 2
    assert value(registry, f"{seconds}_count", model=model, outcome="hit") == 2
    assert value(registry, "sqlmodel_cache_breaker_open") == 0
    assert value(registry, "sqlmodel_cache_owed") == 0


def test_nothing_configured_is_nothing_counted() -> None:
    """A scrape before `configure()` is no error."""
    registry = CollectorRegistry()
    collector = register(registry)
    assert value(registry, "sqlmodel_cache_outages_total") == 0
    registry.unregister(collector)
    assert samples(registry) == {}


def labels_of(query: str) -> set[str]:
    """Return the labels that a query compares, groups by or multiplies by."""
    compared = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", query))
    grouped = {name.strip() for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")}
    return (compared | grouped) - {"instance"}


@pytest.mark.parametrize("query", QUERIES)
def test_dashboard_asks_for_what_there_is(heroes: Engine, query: str) -> None:
    """Each name in a query is exposed, with each label that the query uses."""
    registry = CollectorRegistry()
    register(registry)
    exposed: dict[str, set[str]] = {}
    for name, labels in samples(registry):
        exposed.setdefault(name, set()).update(dict(labels))
    names = NAME.findall(query)
    assert names
    for name in names:
        assert name in exposed
        assert labels_of(query) <= exposed[name]


def test_dashboard_shows_all_that_is_exposed(heroes: Engine) -> None:
    """No metric is forgotten: a query asks for each, histograms by their buckets."""
    registry = CollectorRegistry()
    register(registry)
    asked = {name for query in QUERIES for name in NAME.findall(query)}
    left = {name for name, _ in samples(registry)} - asked
    assert left == {"sqlmodel_cache_get_seconds_count", "sqlmodel_cache_get_seconds_sum"}


def test_dashboard_loads() -> None:
    """What Grafana needs: a title, a place for each panel, an id of its own, and the variables that queries use."""
    assert DASHBOARD["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["gridPos"].keys() == {"x", "y", "w", "h"} for panel in DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == variables
