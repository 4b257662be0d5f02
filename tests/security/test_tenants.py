"""A namespace callable that does not know the tenant: the database answers, and never another tenant's row."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import Hero, Team, add_hero
from security.between import Between
from sqlalchemy import Engine, text
from sqlmodel import Field, Session, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, ConfigurationError, InvalidationError, SQLModelCache


class Tenant(SQLModel, table=True):
    """What every tenant has, and a unique key."""

    __cache_config__ = CacheConfig(unique=[("email",)], missing_ttl=60)
    id: int = Field(primary_key=True)
    email: str = Field(unique=True)
    name: str


@pytest.fixture
def sqlite(tmp_path: Path) -> Engine:
    """A database; what these tests are about is the same on all."""
    made = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(made)
    with Session(made) as session:
        session.add(Tenant(id=1, email="a@b.c", name="old"))
        session.commit()
    return made


def behind(engine: Engine, name: str) -> None:
    """Change the row so that no hook sees it: whoever is told the old name was told by the cache."""
    with sqlite3.connect(str(engine.url.database)) as connection:
        connection.execute("UPDATE tenant SET name = ?", [name])
    connection.close()


def _raise(error: BaseException) -> Any:
    raise error


def tenant_of(session: Any) -> Any:
    """Return what the session was given for a tenant, or call that."""
    given = session.info["tenant"]
    return given() if callable(given) else given


UNKNOWN: dict[str, Any] = {
    "none": None,
    "empty": "",
    "blank": " \t",
    "number": 5,
    "bytes": b"a",
    "list": ["a"],
    "true": True,
    "raises": lambda: _raise(RuntimeError("secret")),
    "key error": lambda: _raise(KeyError("secret")),
    "lookup error": lambda: _raise(LookupError("secret")),
    "configuration error": lambda: _raise(ConfigurationError("x", "secret", "y")),
    "attribute error": lambda: _raise(AttributeError("secret")),
}

READS: dict[str, Callable[[Session], str]] = {
    "get": lambda session: session.get_one(Tenant, 1).name,
    "get_many": lambda session: ",".join(row.name for row in SQLModelCache.get_many(session, Tenant, [1, 9]) if row),
    "get_by": lambda session: getattr(SQLModelCache.get_by(session, Tenant, email="a@b.c"), "name", ""),
    "refresh": lambda session: _refreshed(session).name,
}


def _refreshed(session: Session) -> Tenant:
    found = session.get_one(Tenant, 1)
    session.expire(found)
    return found


def read(engine: Engine, tenant: Any, way: str) -> str:
    """Return a row's name, as a new session of a tenant reads it."""
    with Session(engine, info={"tenant": tenant}) as session:
        return READS[way](session)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_who_has_no_name_reads_the_database(sqlite: Engine, unknown: str) -> None:
    """By a get, many, by a unique key, and what is loaded later: nothing is asked of the cache, and nothing told."""
    between = Between()
    SQLModelCache.configure(between, namespace=tenant_of)
    for way in READS:
        behind(sqlite, "old")
        for _ in range(2):
            assert read(sqlite, "a", way) == "old"
        behind(sqlite, "new")
        before = len(between.fills), SQLModelCache.stats()
        assert read(sqlite, UNKNOWN[unknown], way) == "new"
        after = len(between.fills), SQLModelCache.stats()
        assert after[0] == before[0]
        assert (after[1].hits, after[1].misses) == (before[1].hits, before[1].misses)
        assert after[1].bypasses > before[1].bypasses
        assert read(sqlite, "b", way) == "new"


def test_each_tenant_has_rows_of_its_own(sqlite: Engine) -> None:
    """Whatever their names are: an escaped name is no other's."""
    SQLModelCache.configure(namespace=tenant_of)
    tenants = ["a", "A", "a ", "a/tenant:5}:1", "a%2F", "ä", "a\0", "a:b", "None", "é", "e\u0301"]
    for number, tenant in enumerate(tenants):
        behind(sqlite, f"name {number}")
        assert read(sqlite, tenant, "get") == f"name {number}"
    behind(sqlite, "new")
    assert [read(sqlite, tenant, "get") for tenant in tenants] == [f"name {number}" for number in range(len(tenants))]


@pytest.mark.parametrize("late", [None, "b", lambda: _raise(RuntimeError("secret"))], ids=["none", "other", "raises"])
@pytest.mark.parametrize("way", READS)
def test_a_tenant_that_changes_while_it_reads_stores_nothing(sqlite: Engine, way: str, late: Any) -> None:
    """1 R: namespace a, lease   2 R's SELECT   3 R: another namespace, or none: nobody is told what it has loaded."""
    between = Between()
    answers: list[Any] = []

    def answer() -> Any:
        answers.append(1)
        return "a" if len(answers) == 1 else late() if callable(late) else late

    SQLModelCache.configure(between, namespace=tenant_of)
    assert "old" in read(sqlite, answer, way)
    assert len(answers) > 1
    assert between.fills == []


# writes


def write(engine: Engine, tenant: Any, name: str) -> None:
    """Change the row, as a session of a tenant."""
    with Session(engine, info={"tenant": tenant}) as session:
        session.connection().execute(text("UPDATE tenant SET name = :name WHERE id = 1"), {"name": name})
        session.commit()


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_writer_without_a_name_is_logged(sqlite: Engine, unknown: str, caplog: pytest.LogCaptureFixture) -> None:
    """It commits, and whoever has cached the row keeps it until its TTL; the log shows no value."""
    SQLModelCache.configure(namespace=tenant_of)
    assert read(sqlite, "a", "get") == "old"
    write(sqlite, UNKNOWN[unknown], "new")
    assert read(sqlite, UNKNOWN[unknown], "get") == "new"
    assert read(sqlite, "a", "get") == "old"
    assert "a write is not invalidated" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_writer_without_a_name_is_refused(sqlite: Engine, unknown: str) -> None:
    """In `refuse` mode, before COMMIT: the transaction is rolled back. So is what commits by itself."""
    SQLModelCache.configure(namespace=tenant_of, on_unreachable="refuse")
    assert read(sqlite, "a", "get") == "old"
    with pytest.raises(InvalidationError, match="namespace callable") as refused:
        write(sqlite, UNKNOWN[unknown], "new")
    assert "secret" not in str(refused.value)
    by_itself = sqlite.execution_options(isolation_level="AUTOCOMMIT")
    with Session(by_itself, info={"tenant": None}) as session, pytest.raises(InvalidationError):
        session.connection().execute(text("UPDATE tenant SET name = 'new'"))
    assert read(sqlite, "b", "get") == "old"


def test_a_writer_invalidates_its_own_tenant(sqlite: Engine) -> None:
    """And no other: their rows are others'."""
    SQLModelCache.configure(namespace=tenant_of)
    for tenant in ("a", "b"):
        assert read(sqlite, tenant, "get") == "old"
    write(sqlite, "a", "new")
    assert [read(sqlite, tenant, "get") for tenant in ("a", "b")] == ["new", "old"]


def test_sessions_that_share_a_connection_invalidate_for_both(sqlite: Engine) -> None:
    """One that has no name takes nothing from the other."""
    SQLModelCache.configure(namespace=tenant_of)
    assert read(sqlite, "a", "get") == "old"
    with (
        sqlite.connect() as connection,
        Session(connection, info={"tenant": "a"}) as one,
        Session(connection, info={"tenant": None}) as two,
    ):
        one.get(Tenant, 1)
        two.connection().execute(text("UPDATE tenant SET name = 'new'"))
        connection.commit()
    assert read(sqlite, "a", "get") == "new"


def test_invalidate_without_a_name_is_an_error(sqlite: Engine) -> None:
    """Of configuration: nothing was invalidated, and the caller knows."""
    SQLModelCache.configure(namespace=tenant_of)
    with pytest.raises(ConfigurationError, match="namespace callable"):
        SQLModelCache.invalidate(Tenant, 1, bind=sqlite)


def test_relationships_of_who_has_no_name(sqlite: Engine) -> None:
    """What is loaded when it is first read is the database's, too."""
    pk = add_hero(sqlite)
    with Session(sqlite) as session:
        session.add(Team(id=1, name="team"))
        session.get_one(Hero, pk).team_id = 1
        session.commit()
    SQLModelCache.configure(namespace=tenant_of)
    with Session(sqlite, info={"tenant": None}) as session:
        assert session.get_one(Hero, pk).team_id == 1
        session.expire_all()
        assert session.get_one(Hero, pk).name == "Rusty"
    assert SQLModelCache.stats().hits == SQLModelCache.stats().misses == 0


def test_logging_is_quiet_when_names_are_known(sqlite: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged for a tenant's own reads and writes."""
    caplog.set_level(logging.INFO)
    SQLModelCache.configure(namespace=tenant_of)
    write(sqlite, "a", "new")
    assert read(sqlite, "a", "get") == "new"
    assert caplog.records == []
