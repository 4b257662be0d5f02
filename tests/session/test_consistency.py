"""What one transaction may see, store and leave behind: write sets, savepoints, rollbacks, snapshots.

The interleavings of the protocol itself are in `protocol/`, every way to write is in `writes/`. Here are the rules that
the session keeps for the protocol: I6, the own writes, and I7, the age of a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Log, Store, url_of
from models import Hero, add_hero, get_hero
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, StaticPool, String, Table, event, text, update
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import registry
from sqlmodel import Session, SQLModel, col, create_engine

from sqlmodel_cache import CacheConfig, InvalidationError, MemoryTransport, SQLModelCache, TransportError


def rename(session: Session, pk: int, name: str) -> None:
    """Change a hero and flush."""
    session.get_one(Hero, pk).name = name
    session.flush()


def test_flush_read_back_roll_back(engine: Engine, cache: Store) -> None:
    """An uncommitted value is seen by its own transaction, never stored, and gone after the rollback."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    before = cache.values()
    with Session(engine) as session:
        rename(session, pk, "Draft")
        session.expunge_all()
        assert session.get_one(Hero, pk).name == "Draft"
        assert cache.values() == before
        if engine.dialect.name != "sqlite":
            assert get_hero(engine, pk).name == "Rusty"
        session.rollback()
        assert session.get_one(Hero, pk).name == "Rusty"
    assert cache.values() == before
    assert get_hero(engine, pk).name == "Rusty"


def test_inserted_row_is_not_stored_before_its_commit(engine: Engine, cache: Store) -> None:
    """A row that only its own transaction can see is not stored when that transaction gets it."""
    with Session(engine) as session:
        session.add(Hero(id=5, name="New"))
        session.flush()
        session.expunge_all()
        assert session.get_one(Hero, 5).name == "New"
        session.rollback()
    assert cache.values() == {}
    with Session(engine) as session:
        assert session.get(Hero, 5) is None


def test_pending_changes_are_flushed_first(engine: Engine, cache: Store) -> None:
    """A get flushes what is pending, as a SELECT would, and sees it; without autoflush it does neither."""
    pk = add_hero(engine)
    other = add_hero(engine, "Other")
    get_hero(engine, pk)
    get_hero(engine, other)
    for autoflush in (True, False):
        with Session(engine, autoflush=autoflush) as session:
            session.get_one(Hero, pk).name = "Draft"
            assert session.get_one(Hero, other).name == "Other"
            assert bool(session.dirty) is not autoflush
            session.add(Hero(id=99, name="Pending"))
            found = session.get(Hero, 99)
            assert (found is not None) is autoflush


def test_savepoints_do_not_count(engine: Engine, cache: Store) -> None:
    """Neither the release of a savepoint nor a rollback to one invalidates or forgets a write.

    Except on SQLite, where the driver makes the release of an outermost savepoint a COMMIT.
    """
    pk = add_hero(engine)
    get_hero(engine, pk)
    before = {} if engine.dialect.name == "sqlite" else cache.values()
    with Session(engine) as session:
        with session.begin_nested():
            rename(session, pk, "Inner")
        assert cache.values() == before
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            rename(session, pk, "Undone")
            raise ZeroDivisionError
        session.expunge_all()
        assert session.get_one(Hero, pk).name == "Inner"
        assert cache.values() == before
        session.commit()
    assert cache.values() == {}
    assert get_hero(engine, pk).name == "Inner"


def test_close_without_commit_leaves_the_cache(engine: Engine, cache: Store, sql: Log) -> None:
    """A session that is closed without a commit has changed nothing, and its connection forgets what it wrote."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    before = cache.values()
    with Session(engine) as session:
        rename(session, pk, "Draft")
    assert cache.values() == before
    with Session(engine) as session:
        session.add(Hero(name="Somebody else"))
        session.commit()
    assert cache.values() == before


@pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)
def test_joined_session_commits_nothing(engine: Engine, cache: Store) -> None:
    """A session that joined a connection's transaction has committed when the connection has."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    before = cache.values()
    for ending in ("rollback", "commit"):
        with engine.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                rename(session, pk, "Joined")
                session.commit()
            assert cache.values() == before
            with Session(connection) as session:
                assert session.get_one(Hero, pk).name == "Joined"
            assert cache.values() == before
            getattr(outer, ending)()
        assert get_hero(engine, pk).name == ("Joined" if ending == "commit" else "Rusty")


def test_write_on_a_connection_invalidates(engine: Engine, cache: Store) -> None:
    """A commit of `engine.begin()` invalidates too, whatever way the row was written."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with engine.begin() as connection:
        connection.execute(text("UPDATE hero SET name = 'Core' WHERE id = :id"), {"id": pk})
    assert get_hero(engine, pk).name == "Core"


def test_merge_reads_the_database(engine: Engine, cache: Store, sql: Log) -> None:
    """The read inside merge() goes to the database."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    sql.take()
    with Session(engine) as session:
        merged = session.merge(Hero(id=pk, name="Merged"))
        assert sql.take() != []
        session.commit()
        assert merged.name == "Merged"
    assert get_hero(engine, pk).name == "Merged"


def test_get_during_flush_goes_to_the_database(engine: Engine, cache: Store) -> None:
    """A get from inside a flush is the database's business."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    found = []

    def before_flush(session: Session, *_: object) -> None:
        found.append(session.get_one(Hero, pk).name)

    with Session(engine) as session:
        event.listen(session, "before_flush", before_flush)
        session.add(Hero(name="x"))
        session.flush()
    assert found == ["Rusty"]
    assert SQLModelCache.stats().hits == 0


def test_static_pool_shares_a_transaction() -> None:
    """Sessions that share one DBAPI connection see each other's uncommitted rows; those are not stored."""
    transport = MemoryTransport()
    SQLModelCache.configure(transport)
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    SQLModel.metadata.create_all(engine)
    pk = add_hero(engine)
    with Session(engine) as writer, Session(engine) as reader:
        writer.add(Hero(id=50, name="Draft"))
        writer.flush()
        assert reader.get_one(Hero, 50).name == "Draft"
        assert transport.keys() == []
    get_hero(engine, pk)
    with Session(engine) as writer, Session(engine) as reader:
        rename(writer, pk, "Draft")
        assert reader.get_one(Hero, pk).name == "Draft"
    assert get_hero(engine, pk).name == "Rusty"
    engine.dispose()


@contextmanager
def as_engine(driver: str, tmp_path: Path, request: pytest.FixtureRequest, level: str | None) -> Iterator[Engine]:
    """Yield a second engine on the database of `engine`, at an isolation level."""
    options = {} if level is None else {"isolation_level": level}
    made = create_engine(url_of(driver, tmp_path, request), **options)
    yield made
    made.dispose()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("asked_by", ["engine", "connection", "statement"])
def test_snapshot_that_was_asked_for(
    engine: Engine, cache: Store, request: pytest.FixtureRequest, tmp_path: Path, asked_by: str
) -> None:
    """A transaction that asked for REPEATABLE READ keeps its snapshot, and does not store what is in it."""
    pk = add_hero(engine)
    level = "REPEATABLE READ" if asked_by == "engine" else None
    with as_engine("postgresql", tmp_path, request, level) as reading, Session(reading) as reader:
        if asked_by == "connection":
            reader.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        if asked_by == "statement":
            reader.connection().exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute(text("SELECT 1 FROM hero"))
        with Session(engine) as writer:
            rename(writer, pk, "New")
            writer.commit()
        assert reader.get_one(Hero, pk).name == "Rusty"
        assert cache.values() == {}
        reader.expunge_all()
        assert get_hero(engine, pk).name == "New"
        assert len(cache.values()) == 1
        assert reader.get_one(Hero, pk).name == "Rusty"
    assert get_hero(engine, pk).name == "New"


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_serializable_reads_the_database(
    engine: Engine, cache: Store, sql: Log, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A SERIALIZABLE transaction's reads all reach the database, which must find its conflicts."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with as_engine("postgresql", tmp_path, request, "SERIALIZABLE") as strict, Session(strict) as reader:
        reader.get(Hero, pk)
        assert reader.in_transaction()
        assert strict.pool.checkedout() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_read_committed_fills_late_in_a_transaction(engine: Engine, cache: Store) -> None:
    """Each SELECT of READ COMMITTED has its own snapshot: it may fill, and hits show what others committed."""
    pk = add_hero(engine)
    with Session(engine) as reader:
        reader.execute(text("SELECT 1"))
        assert reader.get_one(Hero, pk).name == "Rusty"
        assert len(cache.values()) == 1
        with Session(engine) as writer:
            rename(writer, pk, "New")
            writer.commit()
        get_hero(engine, pk)
        before = SQLModelCache.stats().hits
        reader.expunge_all()
        assert reader.get_one(Hero, pk).name == "New"
    assert SQLModelCache.stats().hits == before + 1


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_old_snapshot_does_not_fill(engine: Engine, cache: Store) -> None:
    """Where a transaction reads one snapshot by default, it hits, but stores only what its first SELECT loads."""
    first, second = add_hero(engine), add_hero(engine, "Second")
    with Session(engine) as session:
        session.get(Hero, first)
        session.get(Hero, second)
    assert len(cache.values()) == 1
    get_hero(engine, second)
    with Session(engine) as session:
        session.execute(text("SELECT 1 FROM hero"))
        assert session.get_one(Hero, second).name == "Second"
    assert SQLModelCache.stats().hits == 1
    SQLModelCache.configure(cache.transport, snapshot_reads="database")
    with Session(engine) as session:
        session.execute(text("SELECT 1 FROM hero"))
        session.get_one(Hero, second)
    assert SQLModelCache.stats().hits == 0


class Broken(MemoryTransport):
    """A transport whose server goes away and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False

    def execute(self, effect):
        """Answer, or fail."""
        if self.down:
            raise TransportError("down")
        return super().execute(effect)


def test_refuse_rolls_back(engine: Engine) -> None:
    """In refuse mode a commit that cannot be fenced is refused and rolled back, and nothing is stale."""
    transport = Broken()
    SQLModelCache.configure(transport, on_unreachable="refuse")
    pk = add_hero(engine)
    get_hero(engine, pk)
    transport.down = True
    with Session(engine) as session:
        rename(session, pk, "Refused")
        with pytest.raises(InvalidationError) as error:
            session.commit()
        assert isinstance(error.value.__cause__, TransportError)
        session.rollback()
        assert session.get_one(Hero, pk).name == "Rusty"
    transport.down = False
    assert get_hero(engine, pk).name == "Rusty"


def test_refuse_of_a_statement_that_commits_by_itself(engine: Engine) -> None:
    """In AUTOCOMMIT it is the statement that is refused: it has not run, and the connection goes on without it."""
    transport = Broken()
    SQLModelCache.configure(transport, on_unreachable="refuse")
    pk, other = add_hero(engine), add_hero(engine, "Other")
    get_hero(engine, pk)
    get_hero(engine, other)

    def rename_by_statement(connection: Connection, which: int) -> None:
        connection.execute(update(Hero).where(col(Hero.id) == which).values(name="New"))

    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        transport.down = True
        with pytest.raises(InvalidationError):
            rename_by_statement(connection, pk)
        transport.down = False
        rename_by_statement(connection, other)
    hits = SQLModelCache.stats().hits
    assert get_hero(engine, pk).name == "Rusty"
    assert SQLModelCache.stats().hits == hits + 1
    assert get_hero(engine, other).name == "New"


def test_serve_reads_what_it_could_not_invalidate_from_the_database(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In serve mode the commit proceeds; its rows come from the database until the invalidation has landed."""
    transport = Broken()
    SQLModelCache.configure(transport)
    monkeypatch.setattr("sqlmodel_cache._recovery.FIRST_PAUSE", 3600)
    pk, other = add_hero(engine), add_hero(engine, "Other")
    get_hero(engine, pk)
    get_hero(engine, other)
    transport.down = True
    with Session(engine) as session:
        rename(session, pk, "Served")
        session.commit()
    assert get_hero(engine, pk).name == "Served"
    transport.down = False
    assert get_hero(engine, pk).name == "Served"
    assert get_hero(engine, other).name == "Other"
    assert SQLModelCache.stats().hits == 1
    assert SQLModelCache.close()
    assert get_hero(engine, pk).name == "Served"
    assert len(transport.keys()) == 1
    transport._clock = lambda: 1e9  # the fence of the retried invalidation lapses
    get_hero(engine, pk)
    assert get_hero(engine, pk).name == "Served"
    assert SQLModelCache.stats().hits == 2


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_unknown_outcome_keeps_the_fence(engine: Engine, cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody knows whether the COMMIT took effect, the row stays fenced until the deadline."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        rename(session, pk, "Perhaps")
        original = engine.dialect.do_commit

        def lost(connection: Connection) -> None:
            original(connection)  # type: ignore[arg-type]
            raise ConnectionResetError("lost")

        monkeypatch.setattr(engine.dialect, "do_commit", lost)
        with pytest.raises(ConnectionResetError):
            session.commit()
        monkeypatch.undo()
    for _ in range(2):
        assert get_hero(engine, pk).name == "Perhaps"
    assert cache.values() == {}
    assert SQLModelCache.stats().fenced == 2


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("wrote_before", [False, True])
def test_write_after_the_class_is_gone_is_seen(engine: Engine, cache: Store, wrote_before: bool) -> None:
    """A registry that is disposed of leaves cached rows behind; writes to their table still invalidate them."""
    table = Table("gone", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))
    table.create(engine)

    def mapped(own: registry) -> Any:
        class Gone:
            __cache_config__ = CacheConfig()

        own.map_imperatively(Gone, table)
        return Gone

    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": 1, "name": "old"})
    first = registry()
    model = mapped(first)
    if wrote_before:
        with engine.begin() as connection:
            connection.execute(table.update().values(name="older"))
    with PlainSession(engine) as session:
        session.get(model, 1)
    first.dispose()
    del model
    Table("unrelated", MetaData(), Column("id", Integer, primary_key=True))
    with engine.begin() as connection:
        connection.execute(table.delete())
        connection.execute(table.insert(), {"id": 1, "name": "new"})
    model = mapped(registry())
    with PlainSession(engine) as session:
        assert session.get(model, 1).name == "new"
