"""A PostgreSQL and a MariaDB that can be followed, and followers in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import servers
from follow.tables import forget, make
from sqlalchemy import Engine, make_url
from sqlmodel import create_engine
from waiting import until

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache.follow import Follower, _binlog, _follower, _outbox, _stream

PATIENCE = 30.0  # seconds: what is not about time must not depend on how busy the machine is


@pytest.fixture(scope="session")
def logical_url() -> Iterator[str]:
    """A real PostgreSQL with `wal_level = logical`."""
    server = servers.PostgresServer("wal_level = logical", "max_replication_slots = 20")
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def place(maria: servers.MariaServer) -> Iterator[Any]:
    """A database on it, a `maria.Place`, with empty tables and nothing set up."""
    from follow.maria import place_on  # which imports from here

    with place_on(maria) as made:
        yield made


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers of this process look, try and report ten times as often: a test waits for what they see."""
    monkeypatch.setattr(_stream, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(_binlog, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(_binlog, "ADVANCE_SECONDS", 0.1)
    monkeypatch.setattr(_outbox, "ALIVE_SECONDS", 0.1)
    for name in ("READ_SECONDS", "ELECTION_SECONDS", "RETRY_SECONDS", "REPORT_SECONDS"):
        monkeypatch.setattr(_follower, name, 0.1)


@pytest.fixture
def database(logical_url: str) -> Iterator[Engine]:
    """An engine on it, with empty tables and nothing set up."""
    engine = create_engine(make_url(logical_url).set(drivername="postgresql+psycopg"))
    forget(engine)
    make(engine)
    yield engine
    forget(engine)
    engine.dispose()


@pytest.fixture
def outside(database: Engine, logical_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that the library knows nothing of, in autocommit."""
    with psycopg.connect(logical_url, autocommit=True) as connection:
        yield connection


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Wait until something outside this thread has happened; return after how many seconds."""
    began = time.monotonic()
    until(condition, seconds)
    return time.monotonic() - began


class Following:
    """A follower that runs in a thread of its own."""

    def __init__(self, made: Follower) -> None:
        self.follower = made
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.follower.run()
        except BaseException as error:
            self.errors.append(error)

    @property
    def stats(self) -> Any:
        """What it has counted."""
        return self.follower.stats

    def leads(self) -> bool:
        """Whether it is the one."""
        assert not self.errors, self.errors
        return self.follower.stats.leading

    def stop(self) -> None:
        """Stop it, and wait for it."""
        self.follower.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@contextmanager
def following(database: Engine, *, setup: bool = True, calm: bool = True, **options: Any) -> Iterator[Following]:
    """Yield a follower that leads, and has nothing left to do if it shall be `calm`."""
    made = SQLModelCache.follower(database, **options)
    if setup:
        made.source.setup()
    running = Following(made)
    try:
        eventually(running.leads)
        if calm:
            eventually(lambda: remembered(database).startswith("sqlmodel-cache: ready"))
        yield running
    finally:
        running.stop()


def remembered(database: Engine) -> str:
    """Return the publication's comment."""
    with database.connect() as connection:
        query = "SELECT coalesce(max(obj_description(oid, 'pg_publication')), '') FROM pg_publication"
        return str(connection.exec_driver_sql(query).scalar())


def catch_up(outside: psycopg.Connection[Any]) -> None:
    """Wait until everything that has committed so far is invalidated and confirmed."""
    row = outside.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    query = "SELECT bool_and(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots"

    def confirmed() -> bool:
        found = outside.execute(query, row).fetchone()
        return found is not None and found[0] is True

    # The position may be that of a record that is not flushed yet, and that nothing would flush.
    outside.execute("SELECT pg_logical_emit_message(true, 'test', '')")
    eventually(confirmed)
