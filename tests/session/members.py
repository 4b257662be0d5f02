"""Models with unique keys, and a transport that tells what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Index,
    Integer,
    String,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlmodel_cache import CacheConfig, MemoryTransport
from sqlmodel_cache._effects import Together
from sqlmodel_cache._plan import Effect


class Base(DeclarativeBase):
    """Plain SQLAlchemy."""


class Member(Base):
    """Has unique keys of every usual kind."""

    __tablename__ = "m_member"
    __cache_config__ = CacheConfig(ttl=600, unique=[("email",), ("nick",), ("last", "first"), ("secret",)])
    __table_args__ = (UniqueConstraint("first_name", "last"), Index("m_nick", "nick", unique=True))
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    nick: Mapped[str | None]
    first: Mapped[str | None] = mapped_column("first_name")
    last: Mapped[int | None]
    secret: Mapped[str | None] = mapped_column(unique=True, deferred=True)
    name: Mapped[str] = mapped_column(default="")


class Token(Base):
    """Its attributes have the names of arguments."""

    __tablename__ = "m_token"
    __cache_config__ = CacheConfig(unique=[("session", "entity"), ("function",)])
    __table_args__ = (UniqueConstraint("session", "entity"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    session: Mapped[str]
    entity: Mapped[str]
    function: Mapped[str] = mapped_column(unique=True)


class Person(Base):
    """The base of joined inheritance."""

    __tablename__ = "m_person"
    __cache_config__ = CacheConfig(unique=[("email",)])
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    email: Mapped[str] = mapped_column(unique=True)
    person_code: Mapped[str | None] = mapped_column("code", unique=True)


class Engineer(Person):
    """Has a unique column in its own table, and one that only shares its name with one of the base."""

    __tablename__ = "m_engineer"
    __cache_config__ = CacheConfig(unique=[("email",), ("badge",), ("code",)])
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012
    engineer_id: Mapped[int] = mapped_column(ForeignKey("m_person.id"), primary_key=True)
    badge: Mapped[str] = mapped_column(unique=True)
    code: Mapped[str | None] = mapped_column("code")


class Manager(Person):
    """In its parent's table."""

    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Plain(Base):
    """Not cached."""

    __tablename__ = "m_plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Folded(Base):
    """The database takes keys for equal that Python does not, and the model does not say so."""

    __tablename__ = "m_folded"
    __cache_config__ = CacheConfig(missing_ttl=30, unique=[("email",)])
    code: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Wrong(Base):
    """Declares keys that are none."""

    __tablename__ = "m_wrong"
    __cache_config__ = CacheConfig(
        unique=[("plain",), ("partial",), ("lower",), ("both",), ("owner",), ("shown",), ("score",), ("typo",)]
    )
    __table_args__ = (UniqueConstraint("both", "plain"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    plain: Mapped[str]
    partial: Mapped[str]
    lower: Mapped[str]
    both: Mapped[str]
    score: Mapped[float] = mapped_column(unique=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("m_member.id"))
    owner: Mapped[Member] = relationship()

    @property
    def shown(self) -> str:
        """Return what no column has."""
        return self.plain


Index("m_partial", Wrong.partial, unique=True, sqlite_where=Wrong.plain != "", postgresql_where=Wrong.plain != "")
Index("m_lower", func.lower(Wrong.lower), unique=True)


class Late(DeclarativeBase):
    """For PostgreSQL alone."""


class Seat(Late):
    """Two rows may have one number until the commit."""

    __tablename__ = "m_seat"
    __cache_config__ = CacheConfig(unique=[("number",)])
    __table_args__ = (UniqueConstraint("number", deferrable=True, initially="DEFERRED"),)
    id = Column(Integer, primary_key=True)
    number = Column(Integer, nullable=False)
    name = Column(String, nullable=False)


def make_members(engine: Engine) -> None:
    """Make the tables empty, but for three members: a, b and c."""
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE IF NOT EXISTS"
                " m_folded (code TEXT COLLATE NOCASE PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE)"
            )
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    with Session(engine) as session:
        session.add_all(
            Member(id=number, email=letter, nick=f"n{letter}", first=letter, last=number, secret=f"s{letter}")
            for number, letter in enumerate("abc", start=1)
        )
        session.commit()


def truth(engine: Engine, model: Any, **key: object) -> object:
    """Return the primary key that the database has for a key, as a SELECT sees it on a connection of its own."""
    with engine.connect() as connection:
        return connection.execute(select(model.id).filter_by(**key)).scalar_one_or_none()


class Recording:
    """A memory transport that lists its effects, and lets a test act just before or after one of them."""

    blocking = False

    def __init__(self) -> None:
        self.memory = MemoryTransport()
        self.effects: list[Effect[Any]] = []
        self.before: dict[int, Callable[[], object]] = {}  # number of the effect, from 1 -> what to do first, once
        self.after: dict[str, Callable[[], object]] = {}  # name of the effect -> what to do then, once

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        self.effects.append(effect)
        self.before.pop(len(self.effects), _nothing)()
        reply = self.memory.execute(effect)
        self.after.pop(_name(effect), _nothing)()
        return reply

    def take(self) -> list[str]:
        """Return the names of the effects since the last call."""
        taken, self.effects = self.effects, []
        return [_name(effect) for effect in taken]

    def close(self) -> None:
        """Do nothing."""


def _nothing() -> None:
    pass


def _name(effect: Effect[Any]) -> str:
    if isinstance(effect, Together):
        return f"{len(effect.effects)} {type(effect.effects[0]).__name__}"
    return type(effect).__name__
