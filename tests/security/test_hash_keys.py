"""`configure(hash_keys=True)`: neither keys nor logs show a primary key, and no step of the way there is stale."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import Store
from models import Badge, Gadget, Hero, Team, add_hero, get_hero
from sqlalchemy import Engine, delete, update
from sqlmodel import Field, Session, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache

KEY, OTHER = b"k" * 32, b"o" * 32


class Signed(SQLModel, table=True):
    """A key that is text, and another unique one."""

    __cache_config__ = CacheConfig(unique=[("email",)])
    name: str = Field(primary_key=True)
    email: str = Field(unique=True)


@pytest.fixture
def sqlite(tmp_path: Path) -> Engine:
    """A database; what these tests are about is the same on all."""
    made = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(made)
    return made


def all_keys(store: Store) -> list[str]:
    """Return every key in the cache: those of rows, of fences and of tables."""
    if store.client is None:
        return [*store.transport._rows, *store.transport._tables]
    return [key.decode() for key in store.client.keys("*")]


@pytest.mark.parametrize("key", [None, KEY])
def test_keys_show_no_primary_key(engine: Engine, store: Store, key: Any) -> None:
    """Those of rows, of "no such row", of unique keys and of fences; gets are hits, and commits invalidate."""
    SQLModelCache.configure(store.transport, hash_keys=True, encryption_key=key)
    with Session(engine) as session:
        session.add(Gadget(owner="sesame", number=1))
        session.add(Signed(name="sesame", email="sesame@b.c"))
        session.commit()
    for number in (1, 2):
        for _ in range(2):
            with Session(engine) as session:
                assert session.get_one(Gadget, ("sesame", 1)).label == ("" if number == 1 else "2")
            with Session(engine) as session:
                assert session.get(Badge, "sesame") is None
            with Session(engine) as session:
                assert SQLModelCache.get_by(session, Signed, email="sesame@b.c") is not None
            with Session(engine) as session:
                assert session.get(Signed, "sesame") is not None
        with Session(engine) as session:
            session.get_one(Gadget, ("sesame", 1)).label = "2"
            session.get_one(Signed, "sesame").email = "sesame@b.c"
            session.commit()
    assert SQLModelCache.stats().hits >= 5
    assert SQLModelCache.stats().corrupt == 0
    keys = all_keys(store)
    assert len([key for key in keys if "}:" in key]) >= 4
    assert [key for key in keys if "sesame" in key] == []


def test_unique_keys_show_no_values_without_hash_keys(sqlite: Engine, store: Store) -> None:
    """They are no primary keys: their values never stand in a key."""
    SQLModelCache.configure(store.transport)
    with Session(sqlite) as session:
        session.add(Signed(name="n", email="sesame@b.c"))
        session.commit()
    for _ in range(2):
        with Session(sqlite) as session:
            assert SQLModelCache.get_by(session, Signed, email="sesame@b.c") is not None
    assert [key for key in all_keys(store) if "sesame" in key] == []
    assert any("/email=" in key for key in all_keys(store))


def rows_in(store: Store, settings: dict[str, Any], engine: Engine, pk: int) -> set[str]:
    """Return the keys that a get of a hero makes under some settings."""
    store.clear()
    SQLModelCache.configure(store.transport, **settings)
    get_hero(engine, pk)
    return {key.rpartition(":")[2] for key in all_keys(store) if "}:" in key}


def test_a_hash_depends_on_the_row_and_on_the_secret(sqlite: Engine, store: Store) -> None:
    """Two tables, two namespaces and two keys have other hashes; the same, the same."""
    pk = add_hero(sqlite)
    with Session(sqlite) as session:
        session.add(Team(id=pk, name="t"))
        session.commit()
    hashes = []
    for key, namespace in itertools.product((None, KEY, OTHER), ("one", "two")):
        settings = {"hash_keys": True, "encryption_key": key, "namespace": namespace}
        first = rows_in(store, settings, sqlite, pk)
        assert first == rows_in(store, settings, sqlite, pk)
        with Session(sqlite) as session:
            session.get(Team, pk)
        hashes += sorted({key.rpartition(":")[2] for key in all_keys(store) if "}:" in key})
    assert len(set(hashes)) == len(hashes) == 12
    assert all(len(each) == 32 for each in hashes)


def test_what_is_not_cached_is_logged_without_its_key(sqlite: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The model and the reason; without hash_keys the primary key, too."""
    caplog.set_level(logging.DEBUG)
    for hash_keys, shown in ((False, True), (True, False)):
        caplog.clear()
        SQLModelCache.configure(hash_keys=hash_keys, max_payload_bytes=5)
        with Session(sqlite) as session:
            session.add(Badge(code=f"sesame{shown}", label="x"))
            session.commit()
            session.get(Badge, f"sesame{shown}", populate_existing=True)
        with Session(sqlite) as session:
            session.get(Badge, f"sesame{shown}")
        assert "Badge" in caplog.text
        assert ("sesame" in caplog.text) == shown


# while some processes hash and others do not

PLAIN: dict[str, Any] = {}
ROLLOUT = {"hash_keys": "rollout"}
HASHED = {"hash_keys": True}


def with_keys(settings: dict[str, Any], *keys: bytes) -> dict[str, Any]:
    """Return settings with these encryption keys."""
    return {**settings, "encryption_key": list(keys)}


NEIGHBOURS = [
    (PLAIN, ROLLOUT),
    (ROLLOUT, HASHED),
    (with_keys(PLAIN, KEY), with_keys(ROLLOUT, KEY)),
    (with_keys(ROLLOUT, KEY), with_keys(HASHED, KEY)),
    (HASHED, with_keys(ROLLOUT, KEY)),
    (PLAIN, with_keys(ROLLOUT, KEY)),
    (with_keys(HASHED, KEY), with_keys(HASHED, KEY, OTHER)),
    (with_keys(HASHED, KEY, OTHER), with_keys(HASHED, OTHER, KEY)),
    (with_keys(HASHED, OTHER, KEY), with_keys(HASHED, OTHER)),
    (with_keys(PLAIN, KEY), with_keys(PLAIN, OTHER)),
]


def is_stale(store: Store, engine: Engine, reader: dict[str, Any], writer: dict[str, Any], way: str) -> bool:
    """Return whether a reader is told the old row after the commit of a writer with other settings."""
    store.clear()
    pk = add_hero(engine)
    SQLModelCache.configure(store.transport, **reader)
    for _ in range(2):
        assert get_hero(engine, pk).name == "Rusty"
    SQLModelCache.configure(store.transport, **writer)
    with Session(engine) as session:
        if way == "flush":
            session.get_one(Hero, pk).name = "new"
        elif way == "core":
            session.execute(update(Hero).where(Hero.id == pk).values(name="new"))  # type: ignore[arg-type]
        elif way == "table":
            session.execute(update(Hero).values(name="new"))
        else:
            session.execute(delete(Hero).where(Hero.id == pk))  # type: ignore[arg-type]
            session.add(Hero(id=pk, name="new"))
        session.commit()
    SQLModelCache.configure(store.transport, **reader)
    return get_hero(engine, pk).name != "new"


@pytest.mark.parametrize("way", ["flush", "core", "table", "delete"])
def test_neighbours_in_a_rollout_are_never_stale(sqlite: Engine, store: Store, way: str) -> None:
    """Whoever of two neighbouring steps reads, and whoever writes: there, back, and through a rotation of keys."""
    for one, two in NEIGHBOURS:
        for reader, writer in itertools.product((one, two), repeat=2):
            assert not is_stale(store, sqlite, reader, writer, way), (reader, writer)


def test_what_is_no_neighbour_would_be_stale(sqlite: Engine, store: Store) -> None:
    """Why there are steps: without the one in between, each of these is. So the test above can tell."""
    for one, two in (
        (PLAIN, HASHED),
        (HASHED, with_keys(HASHED, KEY)),
        (with_keys(HASHED, KEY), with_keys(HASHED, OTHER)),
    ):
        assert is_stale(store, sqlite, one, two, "flush")
        assert is_stale(store, sqlite, two, one, "flush")
        assert not is_stale(store, sqlite, two, one, "table")


def test_rollout_reads_only_the_database(sqlite: Engine, store: Store) -> None:
    """It neither reads nor fills, as it knows neither what is fenced nor by whom it would be read."""
    pk = add_hero(sqlite)
    SQLModelCache.configure(store.transport, hash_keys="rollout")
    for _ in range(2):
        get_hero(sqlite, pk)
        with Session(sqlite) as session:
            assert SQLModelCache.get_many(session, Hero, [pk])[0] is not None
    assert SQLModelCache.stats().bypasses == 4
    assert all_keys(store) == []


@pytest.mark.parametrize("wrong", ["yes", None, 1, b"secret"], ids=repr)
def test_wrong_hash_keys(wrong: Any) -> None:
    """True, False or "rollout"."""
    with pytest.raises(ConfigurationError, match="hash_keys"):
        SQLModelCache.configure(hash_keys=wrong)


@pytest.mark.parametrize("hash_keys", [False, True])
def test_errors_repeat_no_primary_key(sqlite: Engine, hash_keys: bool) -> None:
    """Of a key that is none, is given twice, or cannot be hashed, the text says which types it has; `value` has it."""
    SQLModelCache.configure(hash_keys=hash_keys)
    with Session(sqlite) as session:
        for call in (
            lambda: SQLModelCache.invalidate(Hero, "sesame"),
            lambda: SQLModelCache.invalidate(Gadget, ("sesame", "sesame")),
            lambda: SQLModelCache.get_many(session, Badge, [("sesame", 1)]),
            lambda: SQLModelCache.get_many(session, Badge, ["sesame", "sesame"]),
            lambda: SQLModelCache.get_many(session, Badge, [{"wrong": "sesame"}]),
            lambda: SQLModelCache.get_many(session, Badge, [{"code": ["sesame"]}]),
        ):
            with pytest.raises(ConfigurationError) as error:
                call()
            assert ("sesame" in str(error.value)) is not hash_keys
            assert "sesame" in repr(error.value.value)
            assert error.value.__cause__ is None
    with pytest.raises(ConfigurationError, match=r"pk=<str, str>: give the primary key" if hash_keys else "sesame"):
        SQLModelCache.invalidate(Gadget, ("sesame", "sesame"))
