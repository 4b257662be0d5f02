"""Cases that a second adversarial review found: each was once another database's row, or an error that was nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Store
from models import Hero, add_hero, get_hero
from sqlalchemy import Engine, event, select
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import SQLModelCache

SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[Engine]:
    """A database with a hero of the same key, and another name."""
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")
    SQLModel.metadata.create_all(engine)
    add_hero(engine, "Stranger")
    yield engine
    engine.dispose()


@SQLITE
@pytest.mark.parametrize(
    "get",
    [
        lambda session, pk: session.get(Hero, pk),
        lambda session, pk: SQLModelCache.get_many(session, Hero, [pk])[0],
    ],
    ids=["get", "get_many"],
)
def test_load_listener_that_loads_the_key_from_another_database(
    engine: Engine, cache: Store, other_database: Engine, get: Callable[[Session, int], Any]
) -> None:
    """What it finds there is not stored as the row of here."""
    pk = add_hero(engine)
    inside: list[None] = []

    @event.listens_for(Hero, "load")
    def look(*_: Any) -> None:
        if not inside:
            inside.append(None)
            with Session(other_database) as session:
                assert session.scalars(select(Hero)).one().name == "Stranger"

    try:
        with Session(engine) as session:
            assert get(session, pk).name == "Rusty"
        assert get_hero(engine, pk).name == "Rusty"
        assert SQLModelCache.stats().hits == 1
    finally:
        event.remove(Hero, "load", look)
