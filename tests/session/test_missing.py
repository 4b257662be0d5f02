"""Negative caching, `CacheConfig(missing_ttl=...)`: "no such row" is cached, and never said after the row's commit."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Log, Store
from models import Badge
from sqlalchemy import Engine, event, insert, text
from sqlmodel import Session

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache


def badge(engine: Engine, pk: str) -> Badge | None:
    """Return a badge as a new session gets it."""
    with Session(engine) as session:
        return session.get(Badge, pk)


def test_absence_is_cached_with_its_ttl(engine: Engine, cache: Store, sql: Log) -> None:
    """The second get of a missing row sends nothing; the entry lives for `missing_ttl`."""
    assert badge(engine, "a") is None
    sql.take()
    assert badge(engine, "a") is None
    assert sql.take() == []
    [key] = cache.values()
    assert 0 < cache.ttl(key) <= 30
    assert SQLModelCache.stats().hits == 1


@pytest.mark.parametrize("way", ["flush", "core", "bulk", "text", "engine", "rename"])
def test_insert_ends_the_absence(engine: Engine, cache: Store, way: str) -> None:
    """After the commit of an insert nobody is told that the row is missing; before it everybody is."""
    with Session(engine) as session:
        session.add(Badge(code="old", label="x"))
        session.commit()
    assert badge(engine, "a") is None
    with Session(engine) as session:
        if way == "flush":
            session.add(Badge(code="a", label="x"))
        elif way == "core":
            session.execute(insert(Badge).values(code="a", label="x"))
        elif way == "bulk":
            session.bulk_insert_mappings(Badge, [{"code": "a", "label": "x"}])  # type: ignore[arg-type]
        elif way == "text":
            session.connection().execute(text("INSERT INTO badge (code, label) VALUES ('a', 'x')"))
        elif way == "engine":
            session.connection().exec_driver_sql("INSERT INTO badge SELECT 'a', 'x'")
        else:
            session.get_one(Badge, "old").code = "a"
        session.flush()
        session.expunge_all()
        assert session.get(Badge, "a") is not None
        if engine.dialect.name != "sqlite":
            assert badge(engine, "a") is None
        session.commit()
    assert badge(engine, "a") is not None


def test_insert_that_is_rolled_back_keeps_the_absence(engine: Engine, cache: Store, sql: Log) -> None:
    """A rolled back insert has changed nothing."""
    assert badge(engine, "a") is None
    with Session(engine) as session:
        session.add(Badge(code="a", label="x"))
        session.flush()
        session.rollback()
    sql.take()
    assert badge(engine, "a") is None
    assert sql.take() == []


def test_delete_makes_an_absence(engine: Engine, cache: Store) -> None:
    """After the commit of a delete the row is missing, and comes back with the next insert."""
    for _ in range(2):
        with Session(engine) as session:
            session.add(Badge(code="a", label="x"))
            session.commit()
        assert badge(engine, "a") is not None
        with Session(engine) as session:
            session.delete(session.get_one(Badge, "a"))
            session.commit()
        assert badge(engine, "a") is None
        assert badge(engine, "a") is None


def test_race_between_the_select_and_the_insert(engine: Engine, cache: Store) -> None:
    """A reader that saw no row before the insert's commit does not store that afterwards."""
    fired = []

    def insert_now(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT badge") and not fired:
            fired.append(statement)
            with Session(engine) as writer:
                writer.add(Badge(code="a", label="x"))
                writer.commit()

    event.listen(engine, "after_cursor_execute", insert_now)
    badge(engine, "a")
    event.remove(engine, "after_cursor_execute", insert_now)
    assert fired
    assert badge(engine, "a") is not None


@pytest.mark.parametrize("ttl", [0, -1, True, "60"], ids=repr)
def test_wrong_missing_ttl(ttl: Any) -> None:
    """missing_ttl is checked like every duration."""
    with pytest.raises(ConfigurationError, match="missing_ttl"):
        CacheConfig(missing_ttl=ttl)
