"""Cases that a second adversarial review found: each was once another database's row, or an error that was nobody's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Store
from models import Hero, add_hero, get_hero
from session.members import Recording
from sqlalchemy import Column, Engine, Integer, Table, event, select, text
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import registry
from sqlalchemy.util import immutabledict
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, SQLModelCache
from sqlmodel_cache._effects import Granted
from sqlmodel_cache._namespace import Databases
from sqlmodel_cache._versions import Versions

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


class Absent:
    """Caches that there is no such row."""

    __cache_config__ = CacheConfig(missing_ttl=30)


class Present:
    """Does not, and is of the same table."""

    __cache_config__ = CacheConfig()


@pytest.fixture
def one_table() -> Iterator[None]:
    """A table that both classes map."""
    mappings = registry()
    table = Table("shared", mappings.metadata, Column("id", Integer, primary_key=True))
    for class_ in (Absent, Present):
        mappings.map_imperatively(class_, table)
    yield
    mappings.dispose()


def shared(engine: Engine, model: type) -> object:
    """Return row 1 as a new session gets it."""
    with Session(engine) as session:
        return session.get(model, 1)


@SQLITE
def test_absence_is_told_to_those_who_cache_absences(engine: Engine, cache: Store, one_table: None) -> None:
    """Two classes of one table: the one reads the database, and neither takes the other's payload for broken."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE shared (id INTEGER PRIMARY KEY)"))
    for _ in range(2):
        assert [shared(engine, model) for model in (Absent, Present)] == [None, None]
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.misses, stats.corrupt) == (1, 3, 0)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO shared VALUES (1)"))
    for _ in range(2):
        assert [type(shared(engine, model)) for model in (Absent, Present)] == [Absent, Present]
    assert SQLModelCache.stats().hits == 3


@SQLITE
def test_class_that_is_disposed_of(engine: Engine, cache: Store) -> None:
    """A get of a class that was cached, and is mapped no more, raises what it raises without a cache."""
    mappings = registry()
    table = Table("gone", mappings.metadata, Column("id", Integer, primary_key=True))

    class Gone:
        """Is mapped for a while."""

        __cache_config__ = CacheConfig()

    for _ in range(2):
        mappings.map_imperatively(Gone, table)
        mappings.metadata.create_all(engine)
        with Session(engine) as session:
            session.merge(Gone())
            session.commit()
        for _ in range(2):
            with Session(engine) as session:
                assert type(session.get(Gone, 1)) is Gone
        mappings.dispose()
        with Session(engine) as session, pytest.raises(NoInspectionAvailable):
            session.get(Gone, 1)
    assert SQLModelCache.stats().hits == 3  # mapped again, it finds what it has stored before


def test_child_process_remembers_no_versions() -> None:
    """A thread that the child does not have may hold the memory's lock."""
    versions, lease = Versions(), Granted(b"row version", b"table version")
    since = versions.since("row", lease)
    with versions._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os._exit(0 if versions.since("row", lease) > since else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert versions.since("row", lease) == since


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_strict_engine_on_the_pool_of_another(engine: Engine, cache: Store) -> None:
    """Whoever asked for REPEATABLE READ takes no hits, though sessions of the other engine on the pool do."""
    pk = add_hero(engine)
    strict = create_engine(engine.url, pool=engine.pool, isolation_level="REPEATABLE READ")
    hits = []
    for each in (engine, engine, strict, engine):
        before = SQLModelCache.stats().hits
        with Session(each) as session:
            session.get(Hero, pk)
        hits.append(SQLModelCache.stats().hits - before)
    assert hits == [0, 1, 0, 1]


def test_database_in_memory_that_has_a_path() -> None:
    """SQLite's memdb is this process's: another's of the same name is another database."""
    made = [create_engine(f"sqlite:///file:/second_review?vfs=memdb&uri=true&timeout={number}") for number in (1, 2)]
    databases = Databases()
    mine, mine_too = (databases.ask(engine) for engine in made)
    assert mine == mine_too
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, databases.ask(made[0]).name.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100).decode() != mine.name
    for end in (read, write):
        os.close(end)
    for engine in made:
        engine.dispose()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("get", "step"),
    [
        (lambda session, pk: session.get(Hero, pk), "Lease"),
        (lambda session, pk: SQLModelCache.get_many(session, Hero, [pk])[0], "1 Lease"),
        (lambda session, pk: SQLModelCache.get_many(session, Hero, [99, pk])[1], "2 Lease"),
    ],
    ids=["get", "get_many", "get_many and a missing one"],
)
def test_row_that_another_session_of_the_connection_writes_meanwhile(
    engine: Engine, get: Callable[[Session, int], Any], step: str
) -> None:
    """Two sessions on one connection: what the one reads of the other's writes is not stored."""
    transport = Recording()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    with engine.connect() as connection, connection.begin():
        with Session(connection, join_transaction_mode="rollback_only") as one, Session(connection) as two:
            transport.after[step] = lambda: one.connection().exec_driver_sql("UPDATE hero SET name = 'Dirty'")
            assert get(two, pk).name == "Dirty"
        connection.rollback()
    assert transport.after == {}
    assert transport.memory.keys() == []
    assert get_hero(engine, pk).name == "Rusty"


@SQLITE
@pytest.mark.parametrize("asked", [True, False])
def test_session_whose_options_say_whether_it_flushes(engine: Engine, cache: Store, asked: bool) -> None:
    """A get flushes what is pending only if a SELECT would."""
    pk = add_hero(engine)
    with Session(engine) as session:
        # New in SQLAlchemy 2.1; in 2.0 a call says so.
        options: dict[str, Any] = {"autoflush": asked}
        of_call = {} if hasattr(session, "execution_options") else {"execution_options": options}
        if not of_call:
            session.execution_options = immutabledict(options)
        pending = Hero(name="Pending")
        session.add(pending)
        assert session.get(Hero, pk, **of_call) is not None
        assert (pending in session.new) is not asked
