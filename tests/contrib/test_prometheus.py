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

from sqlmodel_cache import ModelStats, SQLModelCache, Stats
from sqlmodel_cache.contrib.prometheus import register
from sqlmodel_cache.metrics import BOUNDS, ReadOnly

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
    assert value(registry, f"{seconds}_count", model=model, outcome="miss") == 1
    assert value(registry, "sqlmodel_cache_breaker_open") == 0
    assert value(registry, "sqlmodel_cache_owed") == 0


def test_every_count_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name, each with a number of its own; a near hit is not counted as another hit, too."""
    names = ("near_hits", "fills", "shared", "corrupt", "invalidated", "verified", "discrepancies")
    numbers = dict(zip(names, range(2, 9), strict=True))
    one = ModelStats(hits=100, **numbers, bytes_read=21, bytes_written=22)
    stats = Stats(hits=100, owed=11, outages=12, errors=13, unreachable=True, models=ReadOnly({"a:B": one}))
    monkeypatch.setattr(SQLModelCache, "stats", lambda: stats)
    registry = CollectorRegistry()
    register(registry)
    name = "sqlmodel_cache"
    assert value(registry, f"{name}_gets_total", model="a:B", outcome="hit", reason="") == 98
    assert value(registry, f"{name}_gets_total", model="a:B", outcome="near_hit", reason="") == 2
    for field in names[1:]:
        assert value(registry, f"{name}_{field}_total", model="a:B") == numbers[field]
    assert value(registry, f"{name}_read_bytes_total", model="a:B") == 21
    assert value(registry, f"{name}_written_bytes_total", model="a:B") == 22
    assert value(registry, f"{name}_owed") == 11
    assert value(registry, f"{name}_outages_total") == 12
    assert value(registry, f"{name}_errors_total") == 13
    assert value(registry, f"{name}_breaker_open") == 1


def test_labels_are_bounded(heroes: Engine) -> None:
    """By models and by the reasons that there are: no key, and no text of an error."""
    registry = CollectorRegistry()
    register(registry)
    before = len(samples(registry))
    for pk in range(2, 6):
        with Session(heroes) as session:
            session.get(Hero, pk)
            session.get(Hero, str(pk))
    assert len(samples(registry)) == before


def test_nothing_configured_is_nothing_counted() -> None:
    """A scrape before `configure()` is no error."""
    registry = CollectorRegistry()
    collector = register(registry)
    assert value(registry, "sqlmodel_cache_outages_total") == 0
    registry.unregister(collector)
    assert samples(registry) == {}


SELECTOR = re.compile(r"(sqlmodel_cache_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)(=~|!=|=)\"([^\"]*)\"")


def matches(labels: dict[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    """Return whether a series has labels that a selector asks for; `$model` is all of them."""
    for name, how, wanted in matchers:
        if name not in labels:
            return False
        value = labels[name]
        found = value == wanted if how in ("=", "!=") else re.fullmatch(wanted.replace("$model", ".*"), value)
        if bool(found) is (how == "!="):
            return False
    return True


@pytest.mark.parametrize("query", QUERIES)
def test_dashboard_asks_for_what_there_is(heroes: Engine, query: str) -> None:
    """Each selector in a query finds a series, which has each label that the query groups by."""
    registry = CollectorRegistry()
    register(registry)
    series = [(name, dict(labels)) for name, labels in samples(registry)]
    selectors = SELECTOR.findall(query)
    assert selectors
    grouped = {name.strip() for group in re.findall(r"by \(([^)]*)\)", query) for name in group.split(",")}
    for name, matchers in selectors:
        found = [labels for each, labels in series if each == name and matches(labels, MATCHER.findall(matchers))]
        assert found, name
        assert all(grouped - {"instance"} <= labels.keys() for labels in found)


def test_dashboard_names_lines_by_labels_that_they_have() -> None:
    """A legend's label is one that its query groups by."""
    for target in (target for panel in DASHBOARD["panels"] for target in panel["targets"]):
        groups = re.findall(r"by \(([^)]*)\)", target["expr"])
        grouped = {name.strip() for group in groups for name in group.split(",")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == grouped - {"le"}


def test_dashboard_shows_all_that_is_exposed(heroes: Engine) -> None:
    """No metric is forgotten: a query asks for each, histograms by their buckets."""
    registry = CollectorRegistry()
    register(registry)
    asked = {name for query in QUERIES for name in NAME.findall(query)}
    left = {name for name, _ in samples(registry)} - asked
    assert left == {"sqlmodel_cache_get_seconds_count", "sqlmodel_cache_get_seconds_sum"}


def test_dashboard_loads() -> None:
    """What Grafana needs: a title, a uid, a place for each panel, ids of their own, and the variables of queries."""
    assert DASHBOARD["title"]
    assert 8 <= len(DASHBOARD["uid"]) <= 40
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        rows, columns = range(place["y"], place["y"] + place["h"]), range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in rows}
        assert columns.stop <= 24
        assert not cells & taken
        taken |= cells
    for panel in DASHBOARD["panels"]:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["gridPos"].keys() == {"x", "y", "w", "h"} for panel in DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used == variables
