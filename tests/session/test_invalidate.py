"""invalidate(), invalidate_all() and their async twins: for writers that no hook can see."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Log, Store
from models import Gadget, Hero, Plain, Team, add_hero, get_hero
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import AsyncSession as PlainAsyncSession
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import ConfigurationError, InvalidationError, MemoryTransport, SQLModelCache, TransportError


@pytest.fixture
def unseen(tmp_path: Path) -> Iterator[tuple[Engine, sqlite3.Connection]]:
    """A database, and a connection to it that no hook sees."""
    engine = create_engine(f"sqlite:///{tmp_path}/unseen.db")
    SQLModel.metadata.create_all(engine)
    raw = sqlite3.connect(tmp_path / "unseen.db", isolation_level=None)
    yield engine, raw
    raw.close()
    engine.dispose()


def rename(raw: sqlite3.Connection, name: str) -> None:
    """Change all heroes behind the library's back."""
    raw.execute("UPDATE hero SET name = ?", (name,))


def test_row_and_table(unseen: tuple[Engine, sqlite3.Connection], store: Store) -> None:
    """A row's invalidation is its own, a table's is every row's, and all tables' is everything."""
    engine, raw = unseen
    SQLModelCache.configure(store.transport)
    first, second = add_hero(engine), add_hero(engine)
    for change, names in (
        (lambda: SQLModelCache.invalidate(Hero, first), ("a", "Rusty")),
        (lambda: SQLModelCache.invalidate(Hero, (second,)), ("a", "b")),
        (lambda: SQLModelCache.invalidate(Hero), ("c", "c")),
        (lambda: SQLModelCache.invalidate_all(), ("d", "d")),
        (lambda: SQLModelCache.invalidate(Hero, first, bind=engine), ("e", "d")),
    ):
        get_hero(engine, first)
        get_hero(engine, second)
        rename(raw, max(names) if names != ("a", "Rusty") else "a")
        rename(raw, names[0] if names[0] != "a" or names[1] == "Rusty" else names[1])
        change()
        assert (get_hero(engine, first).name, get_hero(engine, second).name) == names


def test_a_default_schema_by_its_name(unseen: tuple[Engine, sqlite3.Connection], store: Store) -> None:
    """A `schema_translate_map` that spells out the default schema names the same rows as none."""
    plain, raw = unseen
    engine = plain.execution_options(schema_translate_map={None: "main"})
    SQLModelCache.configure(store.transport)
    pk = add_hero(engine)
    for name, given in (("a", pk), ("b", None)):
        get_hero(engine, pk)
        rename(raw, name)
        SQLModelCache.invalidate(Hero, given, bind=engine)
        assert (get_hero(engine, pk).name, get_hero(plain, pk).name) == (name, name)


def test_in_a_transaction_it_joins_the_write_set(engine: Engine, cache: Store) -> None:
    """Given a session or a connection in a transaction, the row is invalidated by its commit, and by nothing else."""
    pk = add_hero(engine)
    for commits in (False, True):
        get_hero(engine, pk)
        before = cache.values()
        with Session(engine) as session:
            session.connection()
            SQLModelCache.invalidate(Hero, pk, bind=session)
            assert cache.values() == before
            session.get(Hero, pk)
            assert SQLModelCache.stats().bypasses > 0
            session.commit() if commits else session.rollback()
        assert cache.values() == ({} if commits else before)
    get_hero(engine, pk)
    with engine.begin() as connection:
        SQLModelCache.invalidate(Hero, bind=connection)
    hits = SQLModelCache.stats().hits
    get_hero(engine, pk)
    assert SQLModelCache.stats().hits == hits


@pytest.mark.parametrize("engine", ["sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)
async def test_async_twins(engine: Engine, cache: Store, sql: Log) -> None:
    """The twins do the same in an event loop, with async sessions, connections and engines."""
    async_engine = AsyncEngine(engine)
    async with PlainAsyncSession(async_engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        await session.commit()
    binds: list[Any] = [None, async_engine, PlainAsyncSession(async_engine)]
    for bind in binds:
        async with PlainAsyncSession(async_engine) as session:
            await session.get(Hero, 1)
        assert len(cache.values()) == 1
        await SQLModelCache.ainvalidate(Hero, 1, bind=bind)
        assert cache.values() == {}
    async with PlainAsyncSession(async_engine) as session:
        await session.get(Hero, 1)
    await SQLModelCache.ainvalidate_all()
    sql.take()
    async with PlainAsyncSession(async_engine) as session:
        await session.get(Hero, 1)
    assert len(sql.take()) == 1


@pytest.mark.parametrize(
    ("model", "pk", "argument"),
    [
        (Plain, None, "model"),
        (SQLModel, None, "model"),
        ("Hero", None, "model"),
        (None, None, "model"),
        (Hero, "1", "pk"),
        (Hero, True, "pk"),
        (Hero, 1.0, "pk"),
        (Hero, (1, 2), "pk"),
        (Gadget, "a", "pk"),
        (Gadget, ("a", "b"), "pk"),
    ],
    ids=repr,
)
def test_wrong_arguments(model: Any, pk: Any, argument: str) -> None:
    """A model that is not cached and a key of another type are named, with what to give."""
    SQLModelCache.configure(namespace="x")
    with pytest.raises(ConfigurationError, match=argument) as error:
        SQLModelCache.invalidate(model, pk)
    assert error.value.argument == argument


def test_no_database_is_known() -> None:
    """Without a bind, and before this process has used a database, there is nothing to invalidate: say so."""
    SQLModelCache.configure()
    with pytest.raises(ConfigurationError, match="bind"):
        SQLModelCache.invalidate(Team, 1)
    with pytest.raises(ConfigurationError, match="bind"):
        SQLModelCache.invalidate_all(bind=5)  # type: ignore[arg-type]


def test_unconfigured_does_nothing() -> None:
    """Without a cache nothing can be stale."""
    SQLModelCache.invalidate(Hero, 1)
    SQLModelCache.invalidate_all()
    assert SQLModelCache.get_config() is None


def test_cache_that_does_not_answer(unseen: tuple[Engine, sqlite3.Connection]) -> None:
    """In serve mode the rows are owed and read from the database; in refuse mode the caller is told."""

    class Down(MemoryTransport):
        down = False

        def execute(self, effect: Any) -> Any:
            if self.down:
                raise TransportError("down")
            return super().execute(effect)

    engine, raw = unseen
    for mode in ("serve", "refuse"):
        transport = Down()
        SQLModelCache.configure(transport, on_unreachable=mode)  # type: ignore[arg-type]
        pk = add_hero(engine)
        get_hero(engine, pk)
        transport.down = True
        rename(raw, "unseen")
        if mode == "refuse":
            with pytest.raises(InvalidationError):
                SQLModelCache.invalidate(Hero, pk)
        else:
            SQLModelCache.invalidate(Hero, pk)
            transport.down = False
            assert get_hero(engine, pk).name == "unseen"
