"""`SQLModelCache.verify()`: what was written behind the library is found, and nothing else is taken for that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import PATIENCE, Store
from models import Badge, Gadget, Hero, Plain, add_hero, get_hero
from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session as AnySession
from sqlmodel import Session, SQLModel, create_engine
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.pool import StaticPool

from sqlmodel_cache import (
    ConfigurationError,
    Discrepancy,
    MemoryTransport,
    RedisSyncTransport,
    SQLModelCache,
    TransportError,
)
from sqlmodel_cache.transport.faults import FaultyTransport


def behind(engine: Engine, sql: str) -> None:
    """Send a statement, and commit it, where no hook sees it."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute(sql)
        raw.commit()
    finally:
        raw.close()


def test_rows_that_are_right_match(engine: Engine, cache: Store) -> None:
    """Those that are cached are compared, the others are not; so it is counted, and bounded."""
    pks = [add_hero(engine, f"hero {number}") for number in range(30)]
    for pk in pks[:20]:
        get_hero(engine, pk)
    found = SQLModelCache.verify(Hero, engine)
    assert (found.model, found.checked, found.cached, found.matched) == ("models.Hero", 30, 20, 20)
    assert (found.discrepancies, found.undecided, found.examples, found.ok) == (0, 0, (), True)
    assert (found.rate, round(found.bound, 3)) == (0.0, 0.139)
    stats = SQLModelCache.stats()
    assert (stats.verified, stats.discrepancies, stats.hits) == (20, 0, 0)
    assert len(cache.values()) == 20


def test_planted_row_is_found(engine: Engine, cache: Store) -> None:
    """What SQL behind the library has changed is named by key and column; what it has deleted is found, too."""
    pks = [add_hero(engine) for _ in range(4)]
    for pk in pks:
        get_hero(engine, pk)
    behind(engine, f"UPDATE hero SET name = 'Rusty-Man', age = 49 WHERE id = {pks[1]}")
    behind(engine, f"DELETE FROM hero WHERE id = {pks[2]}")
    found = SQLModelCache.verify(Hero, engine)
    assert (found.cached, found.matched, found.discrepancies) == (4, 2, 2)
    assert {(each.pk, each.columns, each.reason) for each in found.examples} == {
        ((pks[1],), ("name", "age"), "changed"),
        ((pks[2],), (), "deleted"),
    }
    ages = [each.age for each in found.examples]
    assert all(age is not None and 0 <= age <= 60 + PATIENCE for age in ages)
    assert (SQLModelCache.stats().verified, SQLModelCache.stats().discrepancies) == (4, 2)
    assert get_hero(engine, pks[1]).name == "Rusty"  # it changes nothing: to invalidate is the caller's decision
    SQLModelCache.invalidate(Hero, bind=engine)
    assert SQLModelCache.verify(Hero, engine).cached == 0


def test_absence_that_is_wrong_is_found(engine: Engine, cache: Store) -> None:
    """Where the cache says "no such row", too; and keys may be text, or of several columns."""
    with Session(engine) as session:
        assert session.get(Badge, "a") is None
        session.add(Gadget(owner="a:b", number=1, label="x"))
        session.commit()
    with Session(engine) as session:
        assert session.get(Gadget, ("a:b", 1)) is not None
    behind(engine, "INSERT INTO badge (code, label) VALUES ('a', 'x')")
    found = SQLModelCache.verify(Badge, engine)
    assert [(each.pk, each.reason) for each in found.examples] == [(("a",), "inserted")]
    assert SQLModelCache.verify(Gadget, engine).matched == 1


def psycopg_url(request: pytest.FixtureRequest) -> URL:
    """Return the PostgreSQL's URL with its driver: SQLAlchemy 2.0 and 2.1 have another default."""
    return make_url(request.getfixturevalue("postgres_url")).set(drivername="postgresql+psycopg")


def test_concurrent_commits_are_no_discrepancies(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """While rows are renamed and read all the time, none is ever reported."""
    engine = create_engine(psycopg_url(request))
    SQLModel.metadata.drop_all(engine)
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    pks = [add_hero(engine) for _ in range(8)]
    done = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        number = 0
        try:
            while not done.is_set():
                number += 1
                with Session(engine) as session:
                    session.get_one(Hero, pks[number % 8]).name = f"hero {number}"
                    session.commit()
        except BaseException as error:
            failed.append(error)

    def read() -> None:
        while not done.is_set():
            for pk in pks:
                get_hero(engine, pk)

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        cached = 0
        while cached < 150:
            found = SQLModelCache.verify(Hero, engine)
            cached += found.cached
            assert found.discrepancies == 0, found
    finally:
        done.set()
        for thread in threads:
            thread.join()
        engine.dispose()
    assert failed == []


def test_callers_transaction_is_left_alone(engine: Engine, cache: Store) -> None:
    """A session may be given: its own writes are no discrepancy, and are still to be committed afterwards."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "Rusty-Man"
        session.flush()
        assert SQLModelCache.verify(Hero, session).matched == 1
        session.rollback()
        assert session.get_one(Hero, pk).name == "Rusty"


def test_shared_connection_with_an_open_transaction_is_refused(cache_of_static_pool: Engine) -> None:
    """A SELECT of its own would see, and its end would undo, what a session on a static pool has not committed."""
    engine = cache_of_static_pool
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "Rusty-Man"
        session.flush()
        with pytest.raises(ConfigurationError, match="a transaction is open: end it first"):
            SQLModelCache.verify(Hero, session)
        session.commit()
    assert get_hero(engine, pk).name == "Rusty-Man"
    assert SQLModelCache.verify(Hero, engine).matched == 1


@pytest.fixture
def cache_of_static_pool() -> Iterator[Engine]:
    """A configured cache, and a database in memory with one connection for all."""
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    yield engine
    engine.dispose()


def test_engine_that_asks_for_snapshots_is_read_as_of_now(request: pytest.FixtureRequest) -> None:
    """Its own gets take no hits, but those of other engines do: their rows are compared in READ COMMITTED."""
    url = psycopg_url(request)
    engine, strict = create_engine(url), create_engine(url, isolation_level="REPEATABLE READ")
    SQLModel.metadata.drop_all(engine)
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure()
    pk = add_hero(engine)
    get_hero(engine, pk)
    behind(engine, "UPDATE hero SET name = 'Rusty-Man'")
    assert SQLModelCache.verify(Hero, strict).discrepancies == 1
    engine.dispose()
    strict.dispose()


def test_process_that_has_just_started_sees_what_is_cached(redis_client: redis.Redis, tmp_path: Path) -> None:
    """A connection that was opened a moment ago is told its server's name before it looks up."""
    engine = create_engine(f"sqlite:///{tmp_path}/new.db")
    SQLModel.metadata.create_all(engine)
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    get_hero(engine, add_hero(engine))
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    assert SQLModelCache.verify(Hero, engine).matched == 1
    engine.dispose()


def test_hidden_keys_stay_hidden(engine: Engine) -> None:
    """With `hash_keys` a discrepancy names columns, and no key."""
    SQLModelCache.configure(hash_keys=True)
    get_hero(engine, add_hero(engine))
    behind(engine, "UPDATE hero SET name = 'Rusty-Man'")
    found = SQLModelCache.verify(Hero, engine)
    assert [(each.pk, each.columns) for each in found.examples] == [(None, ("name",))]
    assert "a row" in str(found)


def test_cache_that_does_not_answer_is_an_error_at_once(engine: Engine) -> None:
    """And later, where it fails for a while, the rows of that while are undecided."""
    faulty = FaultyTransport(MemoryTransport())
    SQLModelCache.configure(faulty)
    get_hero(engine, add_hero(engine))
    with faulty.fail("lease"), pytest.raises(TransportError):
        SQLModelCache.verify(Hero, engine)
    with faulty.fail("lookup"):
        found = SQLModelCache.verify(Hero, engine)
    assert (found.checked, found.undecided, found.matched, found.bound) == (1, 1, 0, 1.0)
    with faulty.fail("begin", "end"):
        with Session(engine) as session:
            session.get_one(Hero, 1).name = "Rusty-Man"
            session.commit()  # this process owes the row, and does not take it from the cache
        found = SQLModelCache.verify(Hero, engine)
        assert (found.undecided, found.discrepancies) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sample": 0}, "sample=0"),
        ({"sample": True}, "sample=True"),
        ({"model": Plain}, "it is not cached: it has no __cache_config__"),
        ({"bind": None}, "give an engine, or a session on it"),
        ({"bind": "sqlite://"}, "give a session, a connection or an engine"),
    ],
)
def test_bad_arguments_are_refused(cache_of_static_pool: Engine, arguments: dict[str, Any], said: str) -> None:
    """With what to give instead."""
    given: dict[str, Any] = {"model": Hero, "bind": cache_of_static_pool, **arguments}
    with pytest.raises(ConfigurationError, match=said):
        SQLModelCache.verify(given.pop("model"), given.pop("bind"), **given)
    SQLModelCache.reset()
    with pytest.raises(ConfigurationError, match="configure"):
        SQLModelCache.verify(Hero, cache_of_static_pool)


def test_sessions_that_no_get_is_answered_for_are_refused(cache_of_static_pool: Engine) -> None:
    """A listener that may narrow every SELECT, for one: then nobody could say what is right."""

    def narrow(state: Any) -> None: ...

    event.listen(AnySession, "do_orm_execute", narrow)
    try:
        with pytest.raises(ConfigurationError, match="its sessions' gets are not answered from the cache: listener"):
            SQLModelCache.verify(Hero, cache_of_static_pool)
    finally:
        event.remove(AnySession, "do_orm_execute", narrow)


async def test_averify(tmp_path: Path) -> None:
    """The same for an async engine and its sessions."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.db")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    SQLModelCache.configure()
    async with AsyncSession(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        await session.commit()
    async with AsyncSession(engine) as session:
        await session.get(Hero, 1)
        assert (await SQLModelCache.averify(Hero, session)).matched == 1
    assert (await SQLModelCache.averify(Hero, engine, sample=5)).matched == 1
    await engine.dispose()


def test_examples_are_shown(cache_of_static_pool: Engine) -> None:
    """Printed and as JSON, the first ten of them."""
    for _ in range(12):
        get_hero(cache_of_static_pool, add_hero(cache_of_static_pool))
    behind(cache_of_static_pool, "UPDATE hero SET age = 49")
    found = SQLModelCache.verify(Hero, cache_of_static_pool)
    assert (found.discrepancies, len(found.examples)) == (12, 10)
    assert found.bound == 1.0
    lines = str(found).splitlines()
    assert lines[0] == "models.Hero: 12 of 12 cached rows differ from the database; at most 100.000% do (95 %)"
    assert len(lines) == 12
    assert "changed: age; stored" in lines[2]
    shown = found.as_dict()
    assert (shown["discrepancies"], shown["confidence"], len(shown["examples"])) == (12, 0.95, 10)
    assert isinstance(found.examples[0], Discrepancy)
