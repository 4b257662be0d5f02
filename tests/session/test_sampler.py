"""`configure(verify=...)`: a share of the hits is verified afterwards, where nobody notices.

Hits of asyncio engines are in `test_sampler_asyncio.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import Badge, Hero, add_hero, get_hero
from session.test_verify import behind
from sqlalchemy import Engine, event, insert
from sqlmodel import Field, Session, SQLModel, create_engine
from sqlmodel.pool import StaticPool
from waiting import until

from sqlmodel_cache import CacheConfig, ConfigurationError, MemoryTransport, SQLModelCache
from sqlmodel_cache._sampler import WAITING

THREAD = "sqlmodel-cache-verifier"


class SampledRate(SQLModel, table=True):
    """A row that is renewed before it expires."""

    __cache_config__ = CacheConfig(refresh_ahead=1.0)
    id: int = Field(primary_key=True)
    value: str


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database whose pool has connections to spare, with a hero in it."""
    engine = create_engine(f"sqlite:///{tmp_path}/sampled.db")
    SQLModel.metadata.create_all(engine)
    add_hero(engine)
    yield engine
    SQLModelCache.reset()
    engine.dispose()


def verified() -> int:
    """Return how many rows were compared."""
    return SQLModelCache.stats().verified


def test_hits_are_verified(engine: Engine) -> None:
    """Each, with a share of one; the thread ends when there is nothing to do."""
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1)
    assert verified() == 0
    get_hero(engine, 1)
    until(lambda: verified() == 1)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == THREAD])
    assert SQLModelCache.stats().discrepancies == 0


def test_share_is_of_the_hits(engine: Engine) -> None:
    """None by default: then nothing is drawn, and there is no thread."""
    SQLModelCache.configure()
    for _ in range(20):
        get_hero(engine, 1)
    assert verified() == 0
    SQLModelCache.configure(verify=0.5)
    draws = [SQLModelCache._cache.reader.sampler.draws() for _ in range(2_000)]  # type: ignore[union-attr]
    assert 800 < sum(draws) < 1_200


def test_stale_hit_is_logged_counted_and_invalidated(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The caller has had the stale row; the next one has not. There is one warning for a table in a minute."""
    add_hero(engine, "Deadpond")
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1), get_hero(engine, 2)
    behind(engine, "UPDATE hero SET name = 'Rusty-Man'")
    with caplog.at_level(logging.WARNING, "sqlmodel_cache"):
        assert get_hero(engine, 1).name == "Rusty"
        until(lambda: SQLModelCache.stats().invalidated == 1)
        assert get_hero(engine, 1).name == "Rusty-Man"
        assert get_hero(engine, 2).name == "Deadpond"
        until(lambda: SQLModelCache.stats().discrepancies == 2)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("Hero 1 is not in the cache as it is in the database (changed: name), and is invalidated")


def test_hits_that_take_more_than_a_look_up_are_verified(engine: Engine) -> None:
    """Of a row that is renewed before it expires, and of one that the cache says there is not."""
    with Session(engine) as session:
        session.add(SampledRate(id=1, value="old"))
        session.commit()
    SQLModelCache.configure(verify=1.0)

    def read() -> tuple[str, bool]:
        with Session(engine) as session:
            value = session.get_one(SampledRate, 1).value
        with Session(engine) as session:
            return value, session.get(Badge, "a") is None

    assert read() == ("old", True)
    behind(engine, "UPDATE sampledrate SET value = 'new'")
    behind(engine, "INSERT INTO badge (code, label) VALUES ('a', 'x')")
    assert read() == ("old", True)
    until(lambda: SQLModelCache.stats().discrepancies == 2)
    until(lambda: read() == ("new", False))


def test_log_names_no_hidden_key(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """With `hash_keys`, the model only."""
    SQLModelCache.configure(verify=1.0, hash_keys=True)
    get_hero(engine, 1)
    behind(engine, "UPDATE hero SET name = 'Rusty-Man'")
    with caplog.at_level(logging.WARNING, "sqlmodel_cache"):
        get_hero(engine, 1)
        until(lambda: SQLModelCache.stats().invalidated == 1)
    assert "Hero (a row) is not in the cache" in caplog.text


def test_caller_waits_for_nothing(engine: Engine) -> None:
    """While the database does not answer, hits are answered, and what is more than a few of them is dropped."""
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1)
    blocked, asked = threading.Event(), threading.Event()

    @event.listens_for(engine, "before_cursor_execute")
    def _wait(*_: object) -> None:
        if threading.current_thread().name == THREAD:
            asked.set()
            blocked.wait(30)

    for _ in range(3 * WAITING):
        get_hero(engine, 1)
    assert asked.wait(30)
    assert SQLModelCache.stats().hits == 3 * WAITING
    blocked.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == THREAD])
    assert 1 <= verified() <= WAITING + 1


def test_busy_pool_is_left_alone(tmp_path: Path) -> None:
    """The last connection of a pool is the application's."""
    engine = create_engine(f"sqlite:///{tmp_path}/busy.db", pool_size=1)
    SQLModel.metadata.create_all(engine)
    add_hero(engine)
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1)
    with engine.connect():
        get_hero(engine, 1)
        assert not [thread for thread in threading.enumerate() if thread.name == THREAD]
    get_hero(engine, 1)
    until(lambda: verified() == 1)
    SQLModelCache.reset()
    engine.dispose()


def test_shared_connection_is_left_alone() -> None:
    """On a static pool a SELECT would be in the caller's transaction, and its end the end of that."""
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    add_hero(engine)
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1)
    with Session(engine) as session:
        session.add(Hero(name="not committed"))
        session.flush()
    get_hero(engine, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == THREAD]
    engine.dispose()


def test_hit_in_another_schema_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    """What a call's `schema_translate_map` names, a SELECT without it would not find."""

    @event.listens_for(engine, "connect")
    def _attach(connection: Any, _: object) -> None:
        connection.execute(f"ATTACH DATABASE '{tmp_path}/other.db' AS other")

    engine.dispose()
    elsewhere = {"schema_translate_map": {None: "other"}}
    with engine.connect().execution_options(**elsewhere) as connection:
        SQLModel.metadata.create_all(connection)
        connection.execute(insert(Hero), {"id": 1, "name": "Deadpond"})
        connection.commit()
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1)
    for _ in range(2):
        with Session(engine) as session:
            assert session.get_one(Hero, 1, execution_options=elsewhere).name == "Deadpond"
    assert SQLModelCache.stats().hits == 1
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == THREAD])
    assert verified() == 0


def test_reset_ends_it(engine: Engine) -> None:
    """What is being looked at when the library is reset is neither counted nor logged nor invalidated."""
    transport = MemoryTransport()
    SQLModelCache.configure(transport, verify=1.0)
    get_hero(engine, 1)
    behind(engine, "UPDATE hero SET name = 'Rusty-Man'")
    blocked, asked = threading.Event(), threading.Event()

    @event.listens_for(engine, "before_cursor_execute")
    def _wait(*_: object) -> None:
        if threading.current_thread().name == THREAD:
            asked.set()
            blocked.wait(30)

    get_hero(engine, 1)
    assert asked.wait(30)
    SQLModelCache.reset()
    blocked.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == THREAD])
    assert len(transport) == 1


def test_close_waits_for_the_row_that_is_looked_at(engine: Engine) -> None:
    """So that an application may dispose of its engine; afterwards hits are verified again."""
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1), get_hero(engine, 1)
    SQLModelCache.close()
    assert not [thread for thread in threading.enumerate() if thread.name == THREAD]
    before = verified()
    get_hero(engine, 1)
    until(lambda: verified() == before + 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_begins_anew(engine: Engine) -> None:
    """A child has neither its parent's thread nor a lock that nobody can release."""
    SQLModelCache.configure(verify=1.0)
    get_hero(engine, 1), get_hero(engine, 1)
    until(lambda: verified() == 1)
    sampler = SQLModelCache._cache.reader.sampler  # type: ignore[union-attr]
    assert sampler is not None
    with sampler._lock:  # type: ignore[attr-defined]  # as a thread of the parent may hold it
        child = os.fork()
        if child == 0:
            code = 1
            try:
                engine.dispose(close=False)
                get_hero(engine, 1), get_hero(engine, 1)
                until(lambda: verified() == 2)
                code = 0
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "0.1", None])
def test_share_is_checked(share: object) -> None:
    """A share is a number from 0 to 1."""
    with pytest.raises(ConfigurationError, match="verify="):
        SQLModelCache.configure(verify=share)  # type: ignore[arg-type]
