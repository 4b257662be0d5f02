"""The version memory: fills late in a transaction that reads one snapshot."""

from __future__ import annotations

import pytest
from conftest import Log, Store
from models import Hero, add_hero
from sqlalchemy import Engine, text
from sqlmodel import Session

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache._effects import Granted
from sqlmodel_cache._versions import MAX_ROWS, Versions

pytestmark = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)


def get_late(engine: Engine, pk: int) -> str:
    """Return a hero's name as a session gets it that has begun before."""
    with Session(engine) as session:
        session.connection()
        return session.get_one(Hero, pk).name


def test_second_transaction_fills(engine: Engine, cache: Store) -> None:
    """A version that was known before the transaction began still stands for its snapshot."""
    pk = add_hero(engine)
    assert get_late(engine, pk) == "Rusty"
    assert cache.values() == {}
    assert get_late(engine, pk) == "Rusty"
    assert len(cache.values()) == 1
    assert get_late(engine, pk) == "Rusty"
    assert SQLModelCache.stats().hits == 1


def test_commit_in_between_refuses(engine: Engine, cache: Store) -> None:
    """A commit after the transaction began makes a version that the transaction has not known."""
    pk = add_hero(engine)
    get_late(engine, pk)
    with Session(engine) as session:
        session.connection()
        with Session(engine) as writer:
            writer.connection().execute(text("UPDATE hero SET name = 'New' WHERE id = :id"), {"id": pk})
            writer.commit()
        session.get_one(Hero, pk)
        assert cache.values() == {}
    with Session(engine) as writer:
        writer.get_one(Hero, pk).name = "Newer"
        writer.commit()
    with Session(engine) as session:
        session.connection()
        assert session.get_one(Hero, pk).name == "Newer"
        assert cache.values() == {}
    assert get_late(engine, pk) == "Newer"
    assert get_late(engine, pk) == "Newer"
    assert SQLModelCache.stats().fills == 2  # the writer's own get was the other


def test_versions_are_bounded(engine: Engine, sql: Log) -> None:
    """The memory keeps the first sight of the versions that stand, forgets others, and never grows without bound."""
    versions = Versions()
    first = versions.since("a", Granted(b"1", b"t"))
    assert versions.since("a", Granted(b"1", b"t")) == first
    assert versions.since("a", Granted(b"1", b"u")) > first
    assert versions.since("a", Granted(b"1", b"t")) > first
    for number in range(MAX_ROWS + 5):
        versions.since(str(number), Granted(b"1", b"t"))
    assert len(versions._seen) == MAX_ROWS
