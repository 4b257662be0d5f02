"""PostgreSQL servers with a part to play: a replica in recovery, and one that allows two-phase commits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from models import Hero, add_hero, get_hero
from servers import PostgresServer
from sqlalchemy import Engine, make_url, text
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import MemoryTransport, SQLModelCache


def engine_of(server: PostgresServer) -> Engine:
    """Return an engine."""
    return create_engine(make_url(server.url).set(drivername="postgresql+psycopg"))


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    """A primary with two-phase commits."""
    server = PostgresServer("max_prepared_transactions = 5")
    yield server
    server.stop()


@pytest.fixture
def engine(primary: PostgresServer) -> Iterator[Engine]:
    """An engine on the primary, with empty tables."""
    made = engine_of(primary)
    SQLModel.metadata.drop_all(made)
    SQLModel.metadata.create_all(made)
    yield made
    made.dispose()


def test_replica_hits_but_does_not_fill(engine: Engine, primary: PostgresServer) -> None:
    """A server in recovery may lag behind the lease: what it shows is not stored; what the primary stored is shown."""
    pk = add_hero(engine)
    server = PostgresServer(standby_of=primary)
    replica = engine_of(server)
    try:
        transport = MemoryTransport()
        SQLModelCache.configure(transport)
        assert get_hero(replica, pk).name == "Rusty"
        assert transport.keys() == []
        get_hero(engine, pk)
        assert len(transport.keys()) == 1
        assert get_hero(replica, pk).name == "Rusty"
        assert SQLModelCache.stats().hits == 1
        with engine.begin() as connection:
            lsn = connection.execute(text("UPDATE hero SET name = 'New' RETURNING pg_current_wal_lsn()")).scalar()
        assert lsn is not None
        get_hero(replica, pk)
        assert SQLModelCache.stats().hits == 1
        assert SQLModelCache.stats().fills == 1
    finally:
        replica.dispose()
        server.stop()


def test_two_phase_commit_invalidates(engine: Engine) -> None:
    """The second phase is the COMMIT: prepared rows are still the old ones for everybody."""
    transport = MemoryTransport()
    SQLModelCache.configure(transport)
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine, twophase=True) as session:
        session.get_one(Hero, pk).name = "Prepared"
        session.prepare()
        assert get_hero(engine, pk).name == "Rusty"
        hits = SQLModelCache.stats().hits
        session.commit()
    assert hits == 2
    assert transport.keys() == []
    assert get_hero(engine, pk).name == "Prepared"
    with Session(engine, twophase=True) as session:
        session.get_one(Hero, pk).name = "Undone"
        session.prepare()
        session.rollback()
    assert get_hero(engine, pk).name == "Prepared"
    assert SQLModelCache.stats().hits > hits
