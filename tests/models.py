"""The models that the tests share."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal

from sqlalchemy import JSON, Column, DateTime, Engine, ForeignKey
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig


class Color(enum.Enum):
    """Stored by name."""

    RED = "r"
    BLUE = "b"


class Team(SQLModel, table=True):
    """A parent; deleting it deletes its heroes in the database."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str


class Hero(SQLModel, table=True):
    """The usual model."""

    __cache_config__ = CacheConfig(ttl=600)
    id: int | None = Field(default=None, primary_key=True)
    name: str
    age: int | None = None
    team_id: int | None = Field(default=None, sa_column=Column(ForeignKey("team.id", ondelete="CASCADE")))


class Gadget(SQLModel, table=True):
    """A composite primary key with text in it."""

    __cache_config__ = CacheConfig()
    owner: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    label: str = ""


class Sample(SQLModel, table=True):
    """One column of each everyday type."""

    __cache_config__ = CacheConfig()
    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    amount: Decimal = Field(max_digits=12, decimal_places=2)
    day: datetime.date
    at: datetime.datetime
    naive: datetime.datetime = Field(sa_type=DateTime)
    spent: datetime.timedelta
    color: Color
    ratio: float
    raw: bytes
    active: bool
    tags: dict[str, object] = Field(sa_column=Column(JSON))


class Badge(SQLModel, table=True):
    """A model whose absence is cached."""

    __cache_config__ = CacheConfig(missing_ttl=30)
    code: str = Field(primary_key=True)
    label: str


class Plain(SQLModel, table=True):
    """Not cached."""

    id: int | None = Field(default=None, primary_key=True)
    name: str


def add_hero(engine: Engine, name: str = "Rusty") -> int:
    """Insert a hero of 48 years and return its id."""
    with Session(engine) as session:
        hero = Hero(name=name, age=48)
        session.add(hero)
        session.commit()
        assert hero.id is not None
        return hero.id


def get_hero(engine: Engine, pk: int) -> Hero:
    """Return a hero as a new session gets it."""
    with Session(engine) as session:
        return session.get_one(Hero, pk)
