"""One set of tables per database for the whole folder; each test finds their rows as they are in `tables.ROWS`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINES
from sqlalchemy import Engine, create_engine, event, insert, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema
from writes.tables import OTHER_SCHEMA, ROWS, TABLES, table_of

PG_OPTIONS = {"synchronous_commit": "off", "lock_timeout": "5s"}


class Workshop:
    """A database with the tables of the corpus."""

    def __init__(self, name: str, folder: Path, postgres_url: str) -> None:
        self.name = name
        self._folder = folder
        self._postgres_url = postgres_url
        self.spoiled = True  # the tables must be made anew
        self.engine = self.connect(name)

    def connect(self, driver: str) -> Engine:
        """Return an engine for a driver; the sync face of an async one."""
        if self.name == "sqlite":
            url: Any = make_url(f"{driver}:///{self._folder}/main.db")
            arguments = {}
        else:
            url = make_url(self._postgres_url).set(drivername=driver)
            if driver == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
                arguments = {"options": " ".join(f"-c {name}={value}" for name, value in PG_OPTIONS.items())}
            else:
                arguments = {"server_settings": PG_OPTIONS}
        if "+a" in driver:
            engine = create_async_engine(url, connect_args=arguments).sync_engine
        else:
            engine = create_engine(url, connect_args=arguments)
        if self.name == "sqlite":
            event.listen(engine, "connect", self._prepare)
        return engine

    def _prepare(self, connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"ATTACH DATABASE '{self._folder}/other.db' AS {OTHER_SCHEMA}")
        for pragma in ("journal_mode=WAL", f"{OTHER_SCHEMA}.journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def restore(self) -> None:
        """Put every row back."""
        if self.spoiled:
            self._make()
        raw = self.engine.raw_connection()
        try:
            if self.name == "sqlite":
                raw.driver_connection.executescript(f"BEGIN;{self._script};COMMIT")
            else:
                raw.cursor().execute(self._script)
                raw.commit()
        finally:
            raw.close()

    @functools.cached_property
    def _script(self) -> str:
        statements = [f"DELETE FROM {self._quoted(table_of(model))}" for model in reversed(ROWS)]
        for model, rows in ROWS.items():
            names = [column.name for column in table_of(model).columns]
            add = insert(table_of(model)).values([dict(zip(names, row, strict=True)) for row in rows])
            statements.append(str(add.compile(self.engine, compile_kwargs={"literal_binds": True})))
        return ";".join(statements)

    def _quoted(self, table: Any) -> str:
        return self.engine.dialect.identifier_preparer.format_table(table)

    def _make(self) -> None:
        with self.engine.begin() as connection:
            TABLES.metadata.drop_all(connection)
            if self.name == "postgresql":
                connection.execute(DropSchema(OTHER_SCHEMA, if_exists=True, cascade=True))
                connection.execute(CreateSchema(OTHER_SCHEMA))
            TABLES.metadata.create_all(connection)
            if self.name == "postgresql":
                connection.exec_driver_sql(
                    "SELECT setval(oid::regclass, 1000) FROM pg_class "
                    "WHERE relkind = 'S' AND starts_with(relname, 'w_')"
                )
        self.spoiled = False

    def close(self) -> None:
        """Leave no tables behind."""
        with self.engine.begin() as connection:
            TABLES.metadata.drop_all(connection)
            if self.name == "postgresql":
                connection.execute(DropSchema(OTHER_SCHEMA, if_exists=True, cascade=True))
        self.engine.dispose()


@pytest.fixture(scope="session")
def workshops(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[dict[str, Workshop]]:
    """Both databases."""
    made = {name: Workshop(name, tmp_path_factory.mktemp(name), postgres_url) for name in ("sqlite", "postgresql")}
    yield made
    for workshop in made.values():
        workshop.close()


@pytest.fixture
def workshop(request: pytest.FixtureRequest, workshops: dict[str, Workshop]) -> Workshop:
    """The database of the test's engine."""
    return workshops[request.getfixturevalue("engine").dialect.name]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, workshops: dict[str, Workshop]) -> Engine:
    """An engine on each database and driver, with the rows of the corpus."""
    driver: str = request.param
    workshop = workshops[driver.partition("+")[0]]
    workshop.restore()
    return workshop.engine if driver == workshop.name else workshop.connect(driver)
