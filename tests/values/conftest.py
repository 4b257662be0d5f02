"""One database of each kind with the rows of every case, written once; each test reads them with its own engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINES
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from values.columns import TABLES, Base, PostgresBase
from values.generate import generated

VALUES = 8


class Database:
    """A database, and how to connect to it."""

    def __init__(self, name: str, url: Any) -> None:
        self.name = name
        self._url = make_url(url)
        engine = self.connect(name)
        mine = [table for table in TABLES.values() if name in table.case.on]
        tables = [table.model.__table__ for table in mine]
        for base in (Base, PostgresBase):
            if base is Base or name == "postgresql":
                of_base = [table for table in tables if table.metadata is base.metadata]
                base.metadata.drop_all(engine, tables=of_base)
                base.metadata.create_all(engine, tables=of_base)
        with Session(engine) as session:
            for table in mine:
                case = table.case
                values = [*case.extra, *([None] if case.null else []), *generated(case.values, VALUES)]
                rows = [table.model(id=at, value=value) for at, value in enumerate(values, start=1)]
                session.add_all(rows)
                table.rows[name] = list(range(1, len(rows) + 1))
                session.flush()
            session.commit()
        engine.dispose()

    def connect(self, driver: str) -> Engine:
        """Return an engine for a driver; the sync face of an async one."""
        url = self._url.set(drivername="postgresql+psycopg" if driver == "postgresql" else driver)
        return create_async_engine(url).sync_engine if "+a" in driver else create_engine(url)


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """A file."""
    folder: Path = tmp_path_factory.mktemp("values")
    return Database("sqlite", f"sqlite:///{folder}/main.db")


@pytest.fixture(scope="session")
def postgresql_database(postgres_url: str) -> Database:
    """The server of the whole run."""
    return Database("postgresql", postgres_url)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    """The database of the test's driver."""
    found: Database = request.getfixturevalue(request.getfixturevalue("driver").partition("+")[0] + "_database")
    return found


@pytest.fixture(params=ENGINES)
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver."""
    name: str = request.param
    return name


@pytest.fixture
def engine(database: Database, driver: str) -> Iterator[Engine]:
    """An engine on the rows of every case."""
    engine = database.connect(driver)
    yield engine
    if not engine.dialect.is_async:
        engine.dispose()
