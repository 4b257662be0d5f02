"""Cases that an adversarial review found: each of them was once a wrong row, a lost update or a refused read."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import Log, Store, url_of
from models import Hero, add_hero, get_hero
from patient import PATIENCE
from sqlalchemy import Engine, Integer, TypeDecorator, event, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import MemoryTransport, RedisSyncTransport, SQLModelCache
from sqlmodel_cache._codec import Codec, Column
from sqlmodel_cache._effects import Begin, Keys
from sqlmodel_cache.transport import memory

POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)


@pytest.fixture
def tenants(engine: Engine) -> Iterator[list[str]]:
    """Two schemas with a hero each, named like the schema."""
    names = ["tenant_a", "tenant_b"]
    with engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
            connection.exec_driver_sql(f"CREATE TABLE {name}.hero (LIKE public.hero)")
            connection.exec_driver_sql(f"INSERT INTO {name}.hero (id, name) VALUES (1, '{name}')")
    yield names
    with engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


@POSTGRESQL
def test_schema_of_the_held_connection(engine: Engine, cache: Store, tenants: list[str]) -> None:
    """A schema_translate_map that a session gives to its connection is the one whose rows it gets."""
    for _ in range(2):
        for tenant in tenants:
            with Session(engine) as session:
                session.connection(execution_options={"schema_translate_map": {None: tenant}})
                assert session.get_one(Hero, 1).name == tenant
    assert SQLModelCache.stats().hits == 2


@POSTGRESQL
@pytest.mark.parametrize(
    "setting",
    [
        "SET transaction_isolation = 'repeatable read'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET default_transaction_isolation = 'repeatable read'",
    ],
)
def test_isolation_in_text_does_not_fill(engine: Engine, cache: Store, setting: str) -> None:
    """A snapshot that a statement has asked for, for this transaction or for all later ones, is not stored when old."""
    pk = add_hero(engine)
    with Session(engine) as reader:
        reader.connection().exec_driver_sql(setting)
        if "transaction_isolation = " not in setting or "default" in setting:
            reader.commit()
        reader.execute(text("SELECT 1 FROM hero"))
        with engine.begin() as writer:
            writer.execute(text("UPDATE hero SET name = 'New'"))
        assert reader.get_one(Hero, pk).name == "Rusty"
    assert get_hero(engine, pk).name == "New"


@POSTGRESQL
def test_isolation_that_sqlalchemy_does_not_know(
    engine: Engine, cache: Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A connect listener may set a level after the dialect has looked: the server is asked before a late fill."""
    pk = add_hero(engine)
    sneaky = create_engine(url_of("postgresql", tmp_path, request))

    @event.listens_for(sneaky, "connect")
    def connected(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.execute("SET default_transaction_isolation = 'repeatable read'")
        dbapi_connection.commit()

    with Session(sneaky) as reader:
        reader.execute(text("SELECT 1 FROM hero"))
        with engine.begin() as writer:
            writer.execute(text("UPDATE hero SET name = 'New'"))
        assert reader.get_one(Hero, pk).name == "Rusty"
    sneaky.dispose()
    assert get_hero(engine, pk).name == "New"


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "connect string"])
def test_conflict_is_found(
    engine: Engine, cache: Store, request: pytest.FixtureRequest, tmp_path: Path, how: str
) -> None:
    """In a level that somebody asked for, a write after a read that another commit has overtaken is refused."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    options: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
    if how == "connect string":
        options = {"connect_args": {"options": "-c default_transaction_isolation=repeatable\\ read"}}
    strict = create_engine(url_of("postgresql", tmp_path, request), **options)
    with Session(strict) as session:
        session.get(Hero, pk)
    get_hero(engine, pk)
    with Session(strict) as session:
        hero = session.get_one(Hero, pk)
        with engine.begin() as other:
            other.execute(text("UPDATE hero SET age = 49"))
        hero.age = (hero.age or 0) + 1
        with pytest.raises(OperationalError, match="could not serialize"):
            session.commit()
    strict.dispose()


def test_commit_listener_that_writes(engine: Engine, cache: Store) -> None:
    """What a listener to the engine's commit writes is invalidated by that commit, too."""
    pk = add_hero(engine)
    for cached_write in (False, True):
        get_hero(engine, pk)

        def write(connection: Any, name: str = f"Listener {cached_write}") -> None:
            connection.execute(text("UPDATE hero SET name = :name WHERE id = :id"), {"name": name, "id": pk})

        with Session(engine) as session:
            session.connection()
            if cached_write:
                session.add(Hero(name="Another"))
                session.flush()
            event.listen(engine, "commit", write)
            session.commit()
            event.remove(engine, "commit", write)
        assert get_hero(engine, pk).name == f"Listener {cached_write}"


def test_temporary_table_hides_the_cached_one(engine: Engine, cache: Store) -> None:
    """Rows of a temporary table of the same name are its connection's own."""
    pk = add_hero(engine)
    with Session(engine) as session:
        session.connection().exec_driver_sql("CREATE TEMPORARY TABLE hero AS SELECT * FROM hero")
        session.connection().exec_driver_sql("UPDATE hero SET name = 'Temporary'")
        session.get(Hero, pk)
        session.commit()
        session.expunge_all()
        session.get(Hero, pk)
        session.connection().exec_driver_sql("DROP TABLE hero")
        session.commit()
    assert get_hero(engine, pk).name == "Rusty"


@POSTGRESQL
def test_sync_and_async_roles_without_rights_share_rows(
    engine: Engine, cache: Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Where the cluster's identity may not be asked for, drivers and connect options still make no difference."""
    pk = add_hero(engine)
    function = "FUNCTION pg_catalog.pg_control_system()"
    role = "CREATE ROLE humble LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO humble"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"REVOKE EXECUTE ON {function} FROM PUBLIC; {role}")
    url = url_of("postgresql", tmp_path, request).set(username="humble")
    engines = [create_engine(url), create_engine(url.update_query_dict({"application_name": "other"}))]
    try:
        for name, writing in zip(("One", "Two"), engines, strict=True):
            for reading in engines:
                get_hero(reading, pk)
            with Session(writing) as session:
                session.get_one(Hero, pk).name = name
                session.commit()
            assert [get_hero(reading, pk).name for reading in engines] == [name, name]
    finally:
        for each in engines:
            each.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"GRANT EXECUTE ON {function} TO PUBLIC; DROP OWNED BY humble; DROP ROLE humble")


class Scaled(TypeDecorator[int]):
    """An integer, scaled."""

    impl = Integer
    cache_ok = True

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Scale."""
        return None if value is None else value * self.scale


def test_fingerprint_knows_a_decorators_arguments() -> None:
    """Two types that differ in an argument do not read each other's values; two equal ones do."""
    prints = [Codec([Column("x", "x", Scaled(scale))], sqlite.dialect(), ["x"]).fingerprint for scale in (10, 1000, 10)]
    assert prints[0] != prints[1]
    assert prints[0] == prints[2]


class Mood(enum.StrEnum):
    """Members are text."""

    GOOD = "g"


class Moody(SQLModel, table=True):
    """A StrEnum column."""

    __cache_config__ = Hero.__cache_config__
    id: int | None = Field(default=None, primary_key=True)
    mood: Mood


def test_str_enum_is_cached(engine: Engine, cache: Store) -> None:
    """A member of a StrEnum comes back as a member."""
    with Session(engine) as session:
        session.add(Moody(id=1, mood=Mood.GOOD))
        session.commit()
    for _ in range(2):
        with Session(engine) as session:
            assert type(session.get_one(Moody, 1).mood) is Mood
    assert SQLModelCache.stats().hits == 1


def test_session_that_must_be_rolled_back_refuses(engine: Engine, cache: Store) -> None:
    """After a failed flush a get raises what it raises without a cache, until the rollback."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        session.add(Hero(id=pk, name="Twice"))
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(PendingRollbackError):
            session.get(Hero, pk)
        session.rollback()
        assert session.get_one(Hero, pk).name == "Rusty"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_two_tasks_on_one_session_get_one_object(
    engine: Engine, redis_client: redis.Redis, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two gets that overlap on one AsyncSession give one object of the identity."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    pk = add_hero(engine)
    get_hero(engine, pk)

    async def overlap() -> None:
        async_engine = create_async_engine(url_of("sqlite+aiosqlite", tmp_path, request))
        async with AsyncSession(async_engine) as session:
            one, two = await asyncio.gather(session.get(Hero, pk), session.get(Hero, pk))
            assert one is two
            assert one is not None
        await async_engine.dispose()
        await SQLModelCache.aclose()

    asyncio.run(overlap())


def test_huge_key_is_the_databases_business(engine: Engine, cache: Store, sql: Log) -> None:
    """An int beyond any column does what it does without a cache."""
    outcomes = []
    for configured in (True, False):
        if not configured:
            SQLModelCache.reset()
        with Session(engine) as session, pytest.raises(Exception, match=r".") as error:
            session.get(Hero, 10**30)
        outcomes.append(type(error.value))
    assert outcomes[0] is outcomes[1]


def test_many_pending_fences_do_not_stall_the_memory_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of more rows than the transport holds passes over a few candidates for each row, not over all."""
    looked_at = []
    original = memory._Fence.is_pending

    def is_pending(fence: memory._Fence, now: float) -> bool:
        looked_at.append(fence)
        return original(fence, now)

    transport = MemoryTransport(max_rows=10)
    rows = tuple(f"row {number}" for number in range(1000))
    transport.execute(Begin(Keys(rows, ()), b"t" * 16, 60_000))
    monkeypatch.setattr(memory._Fence, "is_pending", is_pending)
    transport.execute(Begin(Keys(("one more",), ()), b"u" * 16, 60_000))
    assert len(transport._rows) == 1001
    assert len(looked_at) <= memory.EVICTION_CANDIDATES
