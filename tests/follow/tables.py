"""Tables that only a follower has to tell apart: partitions, inheritance of both kinds, odd replica identities."""

from __future__ import annotations

import datetime
import uuid

from sqlalchemy import Engine, ForeignKey, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import SQLModel

from sqlmodel_cache import CacheConfig


class Base(DeclarativeBase):
    """Made by SQL of its own, below."""


class Event(Base):
    """Partitioned by its day."""

    __tablename__ = "follow_event"
    __cache_config__ = CacheConfig()
    day: Mapped[datetime.date] = mapped_column(primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    note: Mapped[str]


class OldEvent(Base):
    """One of its partitions, by its own name."""

    __tablename__ = "follow_event_old"
    __cache_config__ = CacheConfig()
    day: Mapped[datetime.date] = mapped_column(primary_key=True)
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    note: Mapped[str]


class City(Base):
    """Whose rows include those of a table that inherits from it in the database."""

    __tablename__ = "follow_city"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


class Full(Base):
    """With REPLICA IDENTITY FULL."""

    __tablename__ = "follow_full"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


class Indexed(Base):
    """Whose replica identity is not its primary key."""

    __tablename__ = "follow_indexed"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


class Person(Base):
    """Joined inheritance: the base."""

    __tablename__ = "follow_person"
    __cache_config__ = CacheConfig()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    note: Mapped[str]


class Engineer(Person):
    """Joined inheritance: a subclass, in a table of its own."""

    __tablename__ = "follow_engineer"
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(ForeignKey("follow_person.id"), primary_key=True)
    skill: Mapped[str]


TABLES = """
CREATE TABLE follow_event (day date, id uuid, note text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE follow_event_old PARTITION OF follow_event FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE follow_event_new PARTITION OF follow_event FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
CREATE TABLE follow_city (id int PRIMARY KEY, note text);
CREATE TABLE follow_capital (PRIMARY KEY (id), country text) INHERITS (follow_city);
CREATE TABLE follow_full (id int PRIMARY KEY, note text);
ALTER TABLE follow_full REPLICA IDENTITY FULL;
CREATE TABLE follow_indexed (id int PRIMARY KEY, note text NOT NULL UNIQUE);
ALTER TABLE follow_indexed REPLICA IDENTITY USING INDEX follow_indexed_note_key;
CREATE TABLE follow_person (id int PRIMARY KEY, kind text NOT NULL, note text NOT NULL);
CREATE TABLE follow_engineer (id int PRIMARY KEY REFERENCES follow_person, skill text NOT NULL);
"""

NAMES = ["event", "event_old", "event_new", "city", "capital", "full", "indexed", "engineer", "person"]


def make(engine: Engine) -> None:
    """Create every table."""
    SQLModel.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(TABLES))


def forget(engine: Engine) -> None:
    """Drop every table, slot and publication."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for slot, pid in connection.exec_driver_sql("SELECT slot_name, active_pid FROM pg_replication_slots").all():
            if pid is not None:
                connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 10000)")
            connection.exec_driver_sql(f"SELECT pg_drop_replication_slot('{slot}')")
        names = connection.exec_driver_sql("SELECT quote_ident(pubname) FROM pg_publication").scalars().all()
        for name in names:
            connection.exec_driver_sql(f"DROP PUBLICATION {name}")
        tables = ", ".join(f"follow_{name}" for name in NAMES)
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {tables} CASCADE")
    SQLModel.metadata.drop_all(engine)
