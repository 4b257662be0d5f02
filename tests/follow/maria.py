"""A database on MariaDB, somebody who writes to it without the library, and followers of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import servers
from follow.conftest import Following, eventually
from follow.test_stream import hit
from models import Badge, Gadget, Hero, Team, get_hero
from sqlalchemy import Engine
from sqlmodel import Field, SQLModel, create_engine

from sqlmodel_cache import CacheConfig, SQLModelCache


class Card(SQLModel, table=True):
    """A key that MySQL keeps as 32 letters, and MariaDB, if its dialect is asked for by name, as 16 bytes."""

    __tablename__ = "follow_card"
    __cache_config__ = CacheConfig()
    id: uuid.UUID = Field(primary_key=True)
    note: str


class Shout(SQLModel, table=True):
    """A text for a key, whose collation takes upper and lower case for the same."""

    __tablename__ = "follow_shout"
    __cache_config__ = CacheConfig()
    word: str = Field(primary_key=True)
    note: str


MODELS: list[Any] = [Team, Hero, Gadget, Badge, Card, Shout]


class Place:
    """One database of a server.

    Attributes:
        engine: the library's.
        outside: a connection that the library knows nothing of.
    """

    def __init__(self, server: servers.MariaServer) -> None:
        self.server = server
        self.engine: Engine = create_engine(server.url)
        self.connect()
        self.forget()
        SQLModel.metadata.create_all(self.engine, tables=[model.__table__ for model in MODELS])
        self.write("CREATE TABLE tick (id int PRIMARY KEY, n int); INSERT INTO tick VALUES (1, 0)")

    def connect(self) -> None:
        """Connect, for the first time or after the server was away."""
        self.outside = self.server.connect()
        self.root = self.server.connect("root", "", "app")
        self.engine.dispose()

    def forget(self) -> None:
        """Drop every table, and every database but this one."""
        self.write("SET foreign_key_checks = 0")
        for (name,) in self.ask("SELECT table_name FROM information_schema.tables WHERE table_schema = 'app'"):
            self.write(f"DROP TABLE IF EXISTS `{name}`; DROP VIEW IF EXISTS `{name}`")
        self.write("SET foreign_key_checks = 1")
        for (name,) in self.ask("SHOW DATABASES LIKE 'other%'", of_root=True):
            self.write(f"DROP DATABASE {name}", of_root=True)

    def renew(self, rows: str) -> None:
        """Put rows in the place of all others, and wait until that is known."""
        for model in reversed(MODELS):
            self.write(f"DELETE FROM {model.__table__.name}")
        self.write(rows)
        self.catch_up()

    def write(self, sql: str, *, of_root: bool = False) -> None:
        """Execute statements, each in a transaction of its own unless they say otherwise."""
        with (self.root if of_root else self.outside).cursor() as cursor:
            for statement in sql.split("; "):
                cursor.execute(statement)

    def ask(self, sql: str, *, of_root: bool = False) -> list[tuple[Any, ...]]:
        """Return what a statement answers."""
        with (self.root if of_root else self.outside).cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def mark(self) -> tuple[Any, ...]:
        """Return how far the follower says that it has come."""
        [found] = self.ask("SELECT coalesce(file, ''), coalesce(position, 0) FROM sqlmodel_cache_follow")
        return found

    def end(self) -> tuple[Any, ...]:
        """Return where the log ends."""
        return self.ask("SHOW MASTER STATUS")[0][:2]

    def catch_up(self) -> None:
        """Wait until everything that has committed so far is invalidated and confirmed."""
        end = self.end()
        self.write("UPDATE tick SET n = n + 1")  # something that is not the follower's own goes by
        eventually(lambda: self.mark() >= end)

    def close(self) -> None:
        """Leave nothing behind."""
        self.forget()
        self.engine.dispose()
        for connection in (self.outside, self.root):
            connection.close()

    def warm(self, model: type, pk: Any) -> None:
        """Cache a row."""
        hit(self.engine, model, pk)
        assert hit(self.engine, model, pk)[0]

    def name_of(self, pk: int) -> str:
        """Return a hero's name, as the library reads it."""
        return get_hero(self.engine, pk).name


@contextmanager
def place_on(server: servers.MariaServer) -> Iterator[Place]:
    """Yield the database of a server, with empty tables and nothing set up."""
    place = Place(server)
    try:
        yield place
    finally:
        place.close()


@contextmanager
def following(place: Place, *, setup: bool = True, calm: bool = True, **options: Any) -> Iterator[Following]:
    """Yield a follower that leads, and has nothing left to do if it shall be `calm`."""
    made = SQLModelCache.follower(place.engine, **options)
    if setup:
        made.source.setup()
    running = Following(made)
    try:
        eventually(running.leads)
        if calm:
            place.catch_up()
            if setup:
                eventually(lambda: running.stats.tables > 0)  # the first has to begin with everything
        yield running
    finally:
        running.stop()
