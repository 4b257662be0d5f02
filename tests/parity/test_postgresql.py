"""What only a server can show: schemas, locks, versions and defaults of its own, transactions that have failed."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from parity.looks import content
from parity.runner import Scenario, World, agree, run
from sqlalchemy import (
    ARRAY,
    DateTime,
    Engine,
    FetchedValue,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    String,
    create_engine,
    delete,
    func,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlmodel_cache import CacheConfig, MemoryTransport, SQLModelCache


class Base(DeclarativeBase):
    """Keeps the tables out of the other tests'."""

    metadata = MetaData()
    __cache_config__ = CacheConfig()


class PRow(Base):
    """What the server fills in."""

    __tablename__ = "p_row"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    token: Mapped[uuid.UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True), server_default=text("'2026-01-31 12:00+01'"))
    tags: Mapped[Any] = mapped_column(ARRAY(String), server_default=text("'{a,NULL}'"))
    amount: Mapped[Any] = mapped_column(Numeric(5, 2), server_default=text("1.50"))
    data: Mapped[Any] = mapped_column(JSONB, server_default=text("""'{"a": [1, null]}'"""))


class PVersion(Base):
    """The system column xmin as version."""

    __tablename__ = "p_version"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    xmin: Mapped[int] = mapped_column(
        "xmin", system=True, server_default=FetchedValue(), server_onupdate=FetchedValue()
    )
    __mapper_args__ = {"version_id_col": xmin, "version_id_generator": False}  # noqa: RUF012


class PHere(Base):
    """One name in two schemas: the default one."""

    __tablename__ = "p_twice"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class PThere(Base):
    """And another."""

    __tablename__ = "p_twice"
    __table_args__ = {"schema": "p_other"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class PChild(Base):
    """Keeps a row from being deleted."""

    __tablename__ = "p_child"
    id: Mapped[int] = mapped_column(primary_key=True)
    row_id: Mapped[int] = mapped_column(ForeignKey("p_row.id"))
    row: Mapped[PRow] = relationship()


@pytest.fixture(scope="module", params=["psycopg", "asyncpg"])
def url(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Any]:
    """A URL of the server, with the tables made."""
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    drop = "DROP SCHEMA IF EXISTS p_other CASCADE"
    with engine.begin() as connection:
        connection.exec_driver_sql(drop)
        connection.exec_driver_sql("CREATE SCHEMA p_other")
        Base.metadata.drop_all(connection)
        tables = [t for t in Base.metadata.sorted_tables if t.name != "p_version"]
        Base.metadata.create_all(connection, tables=tables)
        connection.exec_driver_sql("DROP TABLE IF EXISTS p_version")
        connection.exec_driver_sql("CREATE TABLE p_version (id int PRIMARY KEY, name text)")
    yield url.set(drivername=f"postgresql+{request.param}")
    with engine.begin() as connection:
        connection.exec_driver_sql(drop)
        Base.metadata.drop_all(connection)
    engine.dispose()


SEED = """
TRUNCATE p_child, p_row, p_version, p_twice, p_other.p_twice;
INSERT INTO p_row (id, name, token) OVERRIDING SYSTEM VALUE VALUES
    (1, 'one', '00000000-0000-0000-0000-000000000001'), (2, 'two', '00000000-0000-0000-0000-000000000002');
INSERT INTO p_child VALUES (1, 1);
INSERT INTO p_version VALUES (1, 'v');
INSERT INTO p_twice VALUES (1, 'here');
INSERT INTO p_other.p_twice VALUES (1, 'there');
"""

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register a scenario."""
    SCENARIOS[function.__name__] = function  # type: ignore[attr-defined]
    return function


@scenario
def values(world: World) -> None:
    """What the server made, and types of the driver's own."""
    world.warm(PRow, 1)
    with Session(world.engine) as session:
        obj = world.get(session, PRow, 1)
        world.look("got", obj)
        obj.tags = [*obj.tags, "3"]
        obj.data = {"b": obj.data}
        session.commit()
        world.look("committed", session.get(PRow, 1))
    for key in ("1", 1.0, True, 2**31, 2**63 - 1, 2**63, None):
        with Session(world.engine) as session:
            world.attempt(repr(key), lambda s=session, k=key: s.get(PRow, k))
            with world.quiet():
                world.attempt("and then", lambda s=session: s.get(PRow, 2).name)


@scenario
def failed_statements(world: World) -> None:
    """A transaction in which a statement has failed refuses a get, until it is rolled back, to a savepoint at least."""
    for broken in (
        lambda s: s.execute(text("SELECT 1 / 0")),
        lambda s: s.execute(delete(PRow).where(PRow.id == 1)),
        lambda s: s.connection().exec_driver_sql("SELECT nonsense"),
        lambda s: s.get(PRow, "x"),
    ):
        world.warm(PRow, 1, 2)
        with Session(world.engine) as session:
            world.attempt("broken", lambda s=session, b=broken: b(s) and None)
            world.attempt("refused", lambda s=session: s.get(PRow, 2))
            world.see("content", content(session))
            session.rollback()
            found = world.get(session, PRow, 2)
            world.look("rolled back", found)
        with Session(world.engine) as session:
            session.execute(select(1))
            nested = session.begin_nested()
            world.attempt("broken", lambda s=session, b=broken: b(s) and None)
            world.attempt("refused", lambda s=session: s.get(PRow, 2))
            nested.rollback()
            with world.quiet():
                world.look("rolled back", session.get(PRow, 2))


@scenario
def failed_flush(world: World) -> None:
    """The same after a flush, which SQLAlchemy rolls back itself."""
    world.warm(PRow, 1, 2)
    with Session(world.engine) as session:
        session.add(PChild(id=1, row_id=1))
        world.attempt("flush", session.flush)
        world.attempt("refused", lambda: session.get(PRow, 2))
        session.rollback()
        found = world.get(session, PRow, 2)
        world.look("rolled back", found)


@scenario
def system_versions(world: World) -> None:
    """Xmin changes with every UPDATE, seen by the ORM or not. psycopg has it as text, which is not cached."""
    kind = "hit" if world.engine.dialect.driver == "asyncpg" else "miss"
    world.warm(PVersion, 1)
    with Session(world.engine) as session:
        obj = world.get(session, PVersion, 1, kind)
        world.see("unloaded", sorted(obj._sa_instance_state.unloaded))
        world.see("type", type(obj.xmin).__name__)
        with world.quiet():
            obj.name = "changed"
            session.commit()
        world.see("name", obj.name)
    world.warm(PVersion, 1)
    with Session(world.engine) as session:
        obj = world.get(session, PVersion, 1, kind)
        with world.quiet():
            with world.engine.begin() as other:
                other.execute(text("UPDATE p_version SET name = 'other'"))
            obj.name = "mine"
            world.attempt("stale", lambda: _shortly(session.commit))
            session.rollback()
            world.see("name", obj.name)


def _shortly(function: Any) -> Any:
    try:
        return function()
    except Exception as error:
        raise type(error)(str(error)[:60]) from None


@scenario
def schemas(world: World) -> None:
    """One table name in two schemas, by class, by map, by search_path of the connection."""
    world.warm(PHere, 1)
    world.warm(PThere, 1)
    with Session(world.engine) as session:
        here, there = world.get(session, PHere, 1), world.get(session, PThere, 1)
        world.look("here", here)
        world.look("there", there)
        here.name = "here, changed"
        session.commit()
    with world.quiet(), Session(world.engine) as session:
        world.look("there", session.get(PThere, 1))
        world.look("here", session.get(PHere, 1))
    for map_ in ({None: "p_other"}, {None: "p_other", "p_other": "public"}, {None: None, "p_other": "public"}):
        for _ in range(2):
            with world.quiet():
                with Session(world.engine.execution_options(schema_translate_map=map_)) as session:
                    world.look("here", session.get(PHere, 1))
                    world.look("there", session.get(PThere, 1))
                with Session(world.engine) as session:
                    options = {"schema_translate_map": map_}
                    world.look("by call", session.get(PHere, 1, execution_options=options))
    with Session(world.engine.execution_options(schema_translate_map={None: "p_other"})) as session:
        session.execute(update(PHere).values(name="there, through the map"))
        session.commit()
    with world.quiet(), Session(world.engine) as session:
        world.look("here", session.get(PHere, 1))
        world.look("there", session.get(PThere, 1))


@scenario
def locks(world: World) -> None:
    """A get for update locks the row for others, whatever is cached."""
    world.warm(PRow, 1)
    with Session(world.engine) as session, Session(world.engine) as other:
        obj = session.get(PRow, 1, with_for_update={"of": PRow})
        world.attempt("nowait", lambda: _shortly(lambda: other.get(PRow, 1, with_for_update={"nowait": True})))
        other.rollback()
        world.attempt("skipped", lambda: other.get(PRow, 1, with_for_update={"skip_locked": True}))
        world.attempt("shared", lambda: other.get(PRow, 2, with_for_update={"read": True, "key_share": True}))
        obj.name = "locked"
        session.flush()
        reader = Session(world.engine)
        with world.quiet():
            world.look("reader", reader.get(PRow, 1))
        reader.close()
        session.commit()
        other.rollback()
        with world.quiet():
            world.look("after", other.get(PRow, 1))


@scenario
def read_only(world: World) -> None:
    """A read-only transaction reads."""
    world.warm(PRow, 1)
    with Session(world.engine.execution_options(postgresql_readonly=True)) as session:
        with world.quiet():
            obj = session.get(PRow, 1)
        world.look("got", obj)
        obj.name = "refused"
        world.attempt("flush", lambda: _shortly(session.flush))
        world.attempt("got", lambda: _shortly(lambda: session.get(PRow, 2)))
        session.rollback()


@scenario
def upserts(world: World) -> None:
    """INSERT ... ON CONFLICT and UPDATE ... RETURNING are seen by the next get."""
    from sqlalchemy.dialects.postgresql import insert

    world.warm(PHere, 1)
    with Session(world.engine) as session:
        statement = insert(PHere).values(id=1, name="upserted")
        session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"name": "upserted"}))
        world.look("own", session.get(PHere, 1))
        session.commit()
        session.expunge_all()
        world.look("committed", session.get(PHere, 1))
        world.see("returned", session.scalars(update(PHere).values(name=func.upper(PHere.name)).returning(PHere)).one())
        session.rollback()
        with world.quiet():
            world.look("rolled back", session.get(PHere, 1))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(url: Any, name: str) -> None:
    """Each of the scenarios above, on both drivers."""
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.util.concurrency import greenlet_spawn

    setup = create_engine(url.set(drivername="postgresql+psycopg"))
    journals = []
    for cached in (False, True):
        SQLModelCache.reset()
        with setup.begin() as connection:
            for statement in filter(str.strip, SEED.split(";")):
                connection.exec_driver_sql(statement)
        if cached:
            SQLModelCache.configure(MemoryTransport())
        if url.drivername.endswith("asyncpg"):

            async def play(cached: bool = cached) -> list[Any]:
                engine = create_async_engine(url)
                try:
                    return await greenlet_spawn(run, SCENARIOS[name], engine.sync_engine, cached=cached)
                finally:
                    await engine.dispose()
                    await SQLModelCache.aclose()

            journals.append(asyncio.run(play()))
        else:
            engine: Engine = create_engine(url)
            journals.append(run(SCENARIOS[name], engine, cached=cached))
    SQLModelCache.reset()
    setup.dispose()
    agree(*journals)
