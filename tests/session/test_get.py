"""A get in the common case: what is sent, what is stored, what comes back."""

from __future__ import annotations

from conftest import Log, Store
from models import Hero
from sqlalchemy import Engine
from sqlmodel import Session

from sqlmodel_cache import SQLModelCache


def add_hero(engine: Engine, name: str = "Rusty") -> int:
    """Insert a hero and return its id."""
    with Session(engine) as session:
        hero = Hero(name=name, age=48)
        session.add(hero)
        session.commit()
        assert hero.id is not None
        return hero.id


def test_first_get_fills_and_second_sends_nothing(engine: Engine, cache: Store, sql: Log) -> None:
    """The second get in another session issues no SQL and takes no connection."""
    pk = add_hero(engine)
    sql.take()
    with Session(engine) as session:
        first = session.get(Hero, pk)
    assert len(sql.take()) == 1
    assert len(cache.values()) == 1
    checkouts = sql.checkouts

    with Session(engine) as session:
        second = session.get(Hero, pk)

    assert sql.take() == []
    assert sql.checkouts == checkouts
    assert first == second
    assert second is not None
    assert (second.id, second.name, second.age) == (pk, "Rusty", 48)
    assert SQLModelCache.stats().hits == 1


def test_commit_invalidates(engine: Engine, cache: Store, sql: Log) -> None:
    """A get that begins after a commit reads the new row from the database."""
    pk = add_hero(engine)
    for _ in range(2):
        with Session(engine) as session:
            session.get(Hero, pk)
    with Session(engine) as session:
        hero = session.get(Hero, pk)
        assert hero is not None
        hero.name = "Rusty-Man"
        session.commit()
    assert cache.values() == {}
    sql.take()
    with Session(engine) as session:
        found = session.get(Hero, pk)
        assert found is not None
        assert found.name == "Rusty-Man"
    assert len(sql.take()) == 1
