"""Mutable values and composites: a hit's object tracks changes as a loaded one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import Store, url_of
from sqlalchemy import JSON, Column, Engine, Integer, PickleType, String, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.ext.mutable import MutableComposite, MutableDict, MutableList, MutableSet
from sqlalchemy.orm import DeclarativeBase, Session, composite
from sqlmodel import Field, SQLModel
from values.types import Of

from sqlmodel_cache import CacheConfig, SQLModelCache


class MutableBase(DeclarativeBase):
    """Tables of this module."""


@dataclasses.dataclass
class Place(MutableComposite):
    """Two columns that are one value."""

    x: int
    y: int

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self.changed()


@dataclasses.dataclass(frozen=True)
class Span:
    """Two columns that are one value, and do not change."""

    low: int
    high: int


class Bag(MutableBase):
    """Everything that changes in place."""

    __tablename__ = "values_bag"
    __cache_config__ = CacheConfig()
    id = Column(Integer, primary_key=True)
    named = Column(MutableDict.as_mutable(JSON()))
    listed = Column(MutableList.as_mutable(JSON()))
    unique = Column(MutableSet.as_mutable(Of(JSON(), sorted, set)))
    x = Column(Integer)
    y = Column(Integer)
    place = composite(Place, x, y)
    low = Column(Integer)
    high = Column(Integer)
    span = composite(Span, low, high)


class Pickled(MutableBase):
    """Never cached."""

    __tablename__ = "values_pickled"
    __cache_config__ = CacheConfig()
    id = Column(Integer, primary_key=True)
    value = Column(MutableDict.as_mutable(PickleType()))


class Notes(SQLModel, table=True):
    """The same on a SQLModel."""

    __tablename__ = "values_notes"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    named: dict[str, Any] = Field(sa_column=Column(MutableDict.as_mutable(JSON)))
    text: str = Field(sa_type=String)


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An engine of each kind on the tables of this module, with a row each."""
    name = request.param
    setup = create_engine(url_of(name.partition("+")[0], tmp_path, request))
    tables: list[Any] = [Bag.__table__, Pickled.__table__, SQLModel.metadata.tables["values_notes"]]
    for table in tables:
        table.drop(setup, checkfirst=True)
        table.create(setup)
    with Session(setup) as session:
        session.add(Bag(id=1, named={"a": 1}, listed=[1], unique={1}, place=Place(1, 2), span=Span(3, 4)))
        session.add(Pickled(id=1, value={"a": 1}))
        session.add(Notes(id=1, named={"a": {"b": 1}}, text="t"))
        session.commit()
    setup.dispose()
    engine = create_async_engine if "+a" in name else create_engine
    made: Any = engine(url_of(name, tmp_path, request))
    yield made.sync_engine if "+a" in name else made
    if "+a" not in name:
        made.dispose()


def change(bag: Any, attribute: str) -> None:
    """Change one of a bag's values in place."""
    changes: dict[str, Any] = {
        "named": lambda: bag.named.update(b=2),
        "listed": lambda: bag.listed.append(2),
        "unique": lambda: bag.unique.add(2),
        "place": lambda: setattr(bag.place, "x", 9),
    }
    changes[attribute]()


def kinds(bag: Any) -> dict[str, tuple[type, Any]]:
    """Return the types and contents of a bag's values."""
    names = ("named", "listed", "unique", "place", "span")
    return {name: (type(getattr(bag, name)), getattr(bag, name)) for name in names}


@pytest.mark.parametrize("engine", ["sqlite", "postgresql", "sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)
@pytest.mark.parametrize("attribute", ["named", "listed", "unique", "place"])
def test_change_in_place_is_flushed(engine: Engine, store: Store, attribute: str) -> None:
    """The values of a hit have a SELECT's types; a change of one marks its object, is written, and invalidates."""
    with Session(engine) as session:
        loaded = session.scalars(select(Bag)).one()
        truth = kinds(loaded)
        assert truth["named"][0] is MutableDict
    SQLModelCache.configure(store.transport)
    for _ in range(2):
        with Session(engine) as session:
            bag = session.get_one(Bag, 1)
            assert kinds(bag) == truth
            assert bag not in session.dirty
    assert SQLModelCache.stats().hits == 1
    with Session(engine) as session:
        bag = session.get_one(Bag, 1)
        change(bag, attribute)
        assert bag in session.dirty
        session.commit()
    assert SQLModelCache.stats().hits == 2
    with Session(engine) as session:
        after = kinds(session.get_one(Bag, 1))
    assert after[attribute] != truth[attribute]
    assert {name: value for name, value in after.items() if name != attribute} == {
        name: value for name, value in truth.items() if name != attribute
    }


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_change_on_a_sqlmodel_is_flushed(engine: Engine, store: Store) -> None:
    """The same with a SQLModel."""
    SQLModelCache.configure(store.transport)
    for expected in ({"a": {"b": 1}}, {"a": {"b": 1}, "0": 0}, {"a": {"b": 1}, "0": 0, "1": 1}):
        with Session(engine) as session:
            assert session.get_one(Notes, 1).named == expected
        with Session(engine) as session:
            notes = session.get_one(Notes, 1)
            assert type(notes.named) is MutableDict
            notes.named[str(len(expected) - 1)] = len(expected) - 1
            session.commit()
    assert SQLModelCache.stats().hits == 3


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_two_hits_share_nothing_that_changes(engine: Engine, store: Store) -> None:
    """A change of one object's value is not seen in another's."""
    SQLModelCache.configure(store.transport)
    with Session(engine) as session:
        session.get(Bag, 1)
    with Session(engine) as first, Session(engine) as second:
        mine, theirs = first.get_one(Bag, 1), second.get_one(Bag, 1)
        mine.listed.append(7)
        mine.named["x"] = 7
        mine.place.x = 7
        assert (theirs.listed, theirs.named, theirs.place) == ([1], {"a": 1}, Place(1, 2))


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_pickles_are_never_cached(engine: Engine, store: Store) -> None:
    """Not even looked up."""
    SQLModelCache.configure(store.transport)
    for _ in range(2):
        with Session(engine) as session:
            assert session.get_one(Pickled, 1).value == {"a": 1}
    assert SQLModelCache.stats().bypasses == 0
    assert SQLModelCache.stats().hits == 0
    assert store.values() == {}
