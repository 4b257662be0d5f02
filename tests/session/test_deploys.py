"""Rolling deploys: releases of a model that differ in its columns, on one table and one cache.

Each release is a mapping of its own, in a registry of its own, as it would be in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import Store
from sqlalchemy import Engine, Enum, Float, ForeignKey, Integer, MetaData, Numeric, String, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sqlmodel_cache import CacheConfig, SQLModelCache

ROWS = range(1, 21)


def release(**columns: Any) -> Any:
    """Return a mapping of the table with these attributes besides its key and name."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    body = {
        "__tablename__": "d_item",
        "__cache_config__": CacheConfig(),
        "id": mapped_column(Integer, primary_key=True),
        "name": mapped_column(String),
        **columns,
    }
    return type("Item", (Base,), body)


@dataclass
class Deploy:
    """Two releases, what the table has beside key and name while both run, and what each makes of a row."""

    table: str
    old: Any
    new: Any
    values: Callable[[int], str]


DEPLOYS = {
    "column added": Deploy("extra VARCHAR", {}, {"extra": lambda: mapped_column(String)}, lambda n: f"'x{n}'"),
    "column removed": Deploy("extra VARCHAR", {"extra": lambda: mapped_column(String)}, {}, lambda n: f"'x{n}'"),
    "attribute renamed": Deploy(
        "extra VARCHAR",
        {"extra": lambda: mapped_column(String)},
        {"label": lambda: mapped_column("extra", String)},
        lambda n: f"'x{n}'",
    ),
    "column replaced by another of the attribute's name": Deploy(
        "old VARCHAR, young VARCHAR",
        {"title": lambda: mapped_column("old", String)},
        {"title": lambda: mapped_column("young", String)},
        lambda n: f"'old{n}', 'young{n}'",
    ),
    "float retyped to Decimal": Deploy(
        "amount NUMERIC(10, 2)",
        {"amount": lambda: mapped_column(Float)},
        {"amount": lambda: mapped_column(Numeric(10, 2))},
        lambda n: f"{n}.25",
    ),
    "another scale": Deploy(
        "amount NUMERIC(10, 4)",
        {"amount": lambda: mapped_column(Numeric(10, 2))},
        {"amount": lambda: mapped_column(Numeric(10, 4))},
        lambda n: f"{n}.25",
    ),
    "member added to an enum": Deploy(
        "state VARCHAR",
        {"state": lambda: mapped_column(Enum("on", native_enum=False))},
        {"state": lambda: mapped_column(Enum("on", "off", native_enum=False))},
        lambda n: "'on'",
    ),
    "attributes in another order": Deploy(
        "a VARCHAR, b VARCHAR",
        {"a": lambda: mapped_column(String), "b": lambda: mapped_column(String)},
        {"b": lambda: mapped_column(String), "a": lambda: mapped_column(String)},
        lambda n: f"'a{n}', 'b{n}'",
    ),
    "column deferred": Deploy(
        "extra VARCHAR",
        {"extra": lambda: mapped_column(String)},
        {"extra": lambda: mapped_column(String, deferred=True)},
        lambda n: f"'x{n}'",
    ),
}


def look(engine: Engine, model: Any, pk: int) -> dict[str, Any]:
    """Return what a get finds, with types."""
    with Session(engine) as session:
        found = session.get_one(model, pk)
        assert type(found) is model
        return {key: (type(value), value) for key, value in vars(found).items() if key != "_sa_instance_state"}


@pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
@pytest.mark.parametrize("name", DEPLOYS)
def test_two_releases_side_by_side(engine: Engine, store: Store, name: str) -> None:
    """No wrong value, no decode error; after one get each, each release hits; each hears of the other's commits."""
    deploy = DEPLOYS[name]
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS d_item"))
        connection.execute(text(f"CREATE TABLE d_item (id INTEGER PRIMARY KEY, name VARCHAR, {deploy.table})"))
        for n in ROWS:
            connection.execute(text(f"INSERT INTO d_item VALUES ({n}, 'n{n}', {deploy.values(n)})"))
    releases = [release(**{key: make() for key, make in columns.items()}) for columns in (deploy.old, deploy.new)]
    truth = {(model, pk): look(engine, model, pk) for model in releases for pk in ROWS}

    SQLModelCache.configure(store.transport)
    for round in range(3):
        before = SQLModelCache.stats()
        for (model, pk), row in truth.items():
            assert look(engine, model, pk) == row
        if round:
            assert SQLModelCache.stats().hits - before.hits == len(truth)
    assert SQLModelCache.stats().corrupt == 0
    assert SQLModelCache.stats().uncached == 0

    for writer in releases:
        with Session(engine) as session:
            session.get_one(writer, 1).name = f"written by {releases.index(writer)}"
            session.commit()
        for reader in releases:
            assert look(engine, reader, 1)["name"] == (str, f"written by {releases.index(writer)}")
            assert look(engine, reader, 1)["name"] == (str, f"written by {releases.index(writer)}")


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_many_releases_still_read_right(engine: Engine, cache: Store) -> None:
    """More releases than a row has room for replace each other's shapes, and none reads another's."""
    wide = [f"c{n}" for n in range(8)]
    with engine.begin() as connection:
        columns = ", ".join(f"{name} VARCHAR" for name in wide)
        connection.execute(text(f"CREATE TABLE d_item (id INTEGER PRIMARY KEY, name VARCHAR, {columns})"))
        connection.execute(text(f"INSERT INTO d_item VALUES (1, 'n', {', '.join(repr(name) for name in wide)})"))
    releases = [release(**{name: mapped_column(String)}) for name in wide]
    for _ in range(3):
        for model, name in zip(releases, wide, strict=True):
            assert look(engine, model, 1)[name] == (str, name)
            assert look(engine, model, 1)[name] == (str, name)
    assert SQLModelCache.stats().hits >= 3 * len(wide)
    assert SQLModelCache.stats().corrupt == 0


def family(identities: tuple[str, str], *, in_root: bool) -> tuple[Any, Any, Any]:
    """Return a release of a family: two subclasses, their identities, and in which of the tables the note stands."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    def note(wanted: bool) -> dict[str, Any]:
        return {"note": mapped_column(String)} if wanted else {}

    def mapping(identity: str, **more: Any) -> dict[str, Any]:
        return {"__module__": "app", "__mapper_args__": {"polymorphic_identity": identity, **more}}

    root = {
        "__tablename__": "d_root",
        "__cache_config__": CacheConfig(missing_ttl=60),
        "id": mapped_column(Integer, primary_key=True),
        "kind": mapped_column(String),
        **note(in_root),
        **mapping("root", polymorphic_on="kind"),
    }
    leaf = {
        "__tablename__": "d_leaf",
        "id": mapped_column(ForeignKey("d_root.id"), primary_key=True),
        **note(not in_root),
        **mapping(identities[0]),
    }
    root_class = type("Root", (Base,), root)
    leaf_class = type("Leaf", (root_class,), leaf)
    return root_class, leaf_class, type("Twig", (root_class,), mapping(identities[1]))


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_two_releases_of_a_family(engine: Engine, cache: Store) -> None:
    """Which class a row is, whether it is one of a class at all, and which table an attribute comes from."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE d_root (id INTEGER PRIMARY KEY, kind VARCHAR, note VARCHAR)"))
        connection.execute(text("CREATE TABLE d_leaf (id INTEGER PRIMARY KEY, note VARCHAR)"))
        connection.execute(text("INSERT INTO d_root VALUES (1, 'a', 'of the root')"))
        connection.execute(text("INSERT INTO d_leaf VALUES (1, 'of the leaf')"))
    old = family(("a", "b"), in_root=True)
    swapped = family(("b", "a"), in_root=True)
    moved = family(("a", "b"), in_root=False)
    for asked, found in ((old[0], old[1]), (old[2], None), (swapped[0], swapped[2]), (swapped[2], swapped[2])):
        for _ in range(2):
            with Session(engine) as session:
                row = session.get(asked, 1)
                assert (row and type(row)) is found
    for asked, note in ((old[1], "of the root"), (moved[1], "of the leaf")):
        for _ in range(2):
            with Session(engine) as session:
                assert session.get_one(asked, 1).note == note
    assert SQLModelCache.stats().corrupt == 0
    assert SQLModelCache.stats().hits == 6
