"""Every write of the corpus leaves no stale row, shows nobody what is not committed, and a rollback undoes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import redis
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from writes.conftest import Workshop
from writes.corpus import ENTRIES
from writes.entry import Entry
from writes.reads import Rows, got, in_database, warm

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

SYNC = ("sqlite", "postgresql")

IN_A_TRANSACTION = [entry for entry in ENTRIES if entry.via in ("session", "connection")]
ONE_OF_EACH_FAMILY = {entry.family: entry for entry in ENTRIES}.values()

# The same statement on a session and on a connection: with the asyncio drivers, and for the rollback, one is enough.
_EACH_STATEMENT = {(entry.family, entry.name): entry for entry in reversed(IN_A_TRANSACTION)}.values()
EVERYWHERE = [(entry, driver) for entry in IN_A_TRANSACTION for driver in entry.on if driver in SYNC]
EVERYWHERE += [(entry, driver) for entry in _EACH_STATEMENT for driver in entry.on if driver not in SYNC]
_ITSELF = [entry for entry in ENTRIES if entry.via in ("autocommit", "immediate")]
AT_ONCE = [(entry, driver) for entry in _ITSELF for driver in entry.on if driver in SYNC]
AT_ONCE += [
    (entry, driver) for entry in {e.family: e for e in _ITSELF}.values() for driver in entry.on if driver not in SYNC
]
_SAID_BEFORE = ("core-update", "core-delete", "driver-sql", "cascade-text")  # in other words by another family
ROLLED_BACK = [
    (entry, driver)
    for entry in _EACH_STATEMENT
    for driver in entry.on
    if driver in SYNC and entry.family not in _SAID_BEFORE
]


def runs(pairs: Iterable[tuple[Entry, str]]) -> pytest.MarkDecorator:
    """Run a test for entries on drivers."""
    params = [pytest.param(entry, driver, id=f"{entry}-{driver}") for entry, driver in pairs]
    return pytest.mark.parametrize(("entry", "engine"), params, indirect=["engine"])


@contextmanager
def connection_of(entry: Entry, engine: Engine) -> Iterator[Connection]:
    """Run an entry, and yield the connection whose transaction holds what it wrote."""
    if entry.via == "session":
        with Session(engine) as session:
            entry.run(session)
            session.flush()
            yield session.connection()
    elif entry.via == "autocommit":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            entry.run(connection)
            yield connection
    else:
        with engine.connect() as connection:
            entry.run(connection)
            yield connection


def check_commit(entry: Entry, engine: Engine) -> None:
    """Run an entry against a warm cache, and commit."""
    before = warm(engine, entry.models)
    with connection_of(entry, engine) as connection:
        own = in_database(connection, entry.models)
        keys = list(before | ({} if entry.ddl else own))
        assert got(connection, keys) == {key: own[key] for key in keys if key in own}
        assert got(engine, keys) == before
        transaction = connection.get_transaction()
        assert transaction is not None
        transaction.commit()
    check_now(entry, engine, before)


def check_now(entry: Entry, engine: Engine, before: Rows) -> None:
    """Check that every get finds what the database has, and that the entry did what it says."""
    after = in_database(engine, entry.models)
    keys = before | after
    for _ in range(2):
        assert got(engine, keys) == after
    assert {key for key in keys if before.get(key) != after.get(key)} == set(entry.changes)


@pytest.fixture(autouse=True)
def _spoil(entry: Entry, workshop: Workshop) -> None:
    workshop.spoiled = workshop.spoiled or entry.ddl


@runs(EVERYWHERE)
def test_commit_leaves_no_stale_row(entry: Entry, engine: Engine) -> None:
    """Until the commit the writer sees its own rows and others the old ones; afterwards everybody the new ones."""
    SQLModelCache.configure()
    check_commit(entry, engine)


@runs(ROLLED_BACK)
def test_rollback_leaves_no_wrong_row(entry: Entry, engine: Engine) -> None:
    """After a rollback everybody sees the old rows, also those that the writer has read in between."""
    SQLModelCache.configure()
    before = warm(engine, entry.models)
    with connection_of(entry, engine) as connection:
        own = in_database(connection, entry.models)
        assert got(connection, own) == own
        transaction = connection.get_transaction()
        assert transaction is not None
        transaction.rollback()
    assert in_database(engine, entry.models) == before
    assert got(engine, before | own) == before


@runs(AT_ONCE)
def test_statement_that_commits_itself_leaves_no_stale_row(entry: Entry, engine: Engine) -> None:
    """When a statement is its own transaction, nobody sees the old rows after it, whatever else is rolled back."""
    SQLModelCache.configure()
    before = warm(engine, entry.models)
    with connection_of(entry, engine) as connection:
        check_now(entry, engine, before)
        connection.rollback()
    check_now(entry, engine, before)


@runs((entry, driver) for entry in ONE_OF_EACH_FAMILY for driver in entry.on)
def test_redis_holds_no_stale_row(entry: Entry, engine: Engine, redis_client: redis.Redis) -> None:
    """One write of each family, with the rows in Redis."""
    SQLModelCache.configure(RedisSyncTransport(redis_client))
    if entry.via in ("session", "connection"):
        check_commit(entry, engine)
    else:
        before = warm(engine, entry.models)
        with connection_of(entry, engine):
            check_now(entry, engine, before)
