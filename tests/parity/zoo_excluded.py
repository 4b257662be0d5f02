"""Models that keep attributes out of the cache."""

from __future__ import annotations

import datetime
from typing import Any

from parity.case import Case
from sqlalchemy import JSON, ForeignKey, PickleType, String, UniqueConstraint
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    composite,
    mapped_column,
    relationship,
)
from sqlmodel import Field, SQLModel

from sqlmodel_cache import CacheConfig


class Base(DeclarativeBase):
    """All of this zoo's tables."""


class Account(SQLModel, table=True):
    """A SQLModel with a secret."""

    metadata = Base.metadata
    __tablename__ = "x_account"
    __cache_config__ = CacheConfig(exclude={"password_hash"})
    id: int | None = Field(default=None, primary_key=True)
    password_hash: str
    name: str
    seen: datetime.datetime | None = None


class Owner(Base):
    """What others refer to."""

    __tablename__ = "x_owner"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    vaults: Mapped[list[Vault]] = relationship(back_populates="owner")


class Pair:
    """Two columns as one value."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b

    def __composite_values__(self) -> tuple[Any, Any]:
        return self.a, self.b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Pair({self.a!r}, {self.b!r})"


class Vault(Base):
    """Several secrets: a foreign key, a document that tells of its changes, a deferred one, part of a composite."""

    __tablename__ = "x_vault"
    __cache_config__ = CacheConfig(exclude=["owner_id", "content", "note", "left", "upper", "odd"])
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("its_name")
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("x_owner.id"))
    owner: Mapped[Owner | None] = relationship(back_populates="vaults")
    content: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON))
    note: Mapped[str | None] = mapped_column(deferred=True)
    left: Mapped[int | None]
    right: Mapped[int | None]
    pair: Mapped[Pair] = composite("left", "right")
    version: Mapped[int] = mapped_column()
    odd: Mapped[Any] = mapped_column(PickleType, nullable=True)
    upper = column_property(name.column + "!")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Person(Base):
    """A base class with a secret of its own."""

    __tablename__ = "x_person"
    __cache_config__ = CacheConfig(exclude={"secret"})
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column()
    secret: Mapped[str | None]
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "person"}  # noqa: RUF012


class Agent(Person):
    """A subclass that excludes more; it does not take back what its base excludes."""

    __tablename__ = "x_agent"
    __cache_config__ = CacheConfig(exclude={"code"})
    id: Mapped[int] = mapped_column(ForeignKey("x_person.id"), primary_key=True)
    code: Mapped[str | None]
    city: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "agent"}  # noqa: RUF012


class Member(Base):
    """A unique key beside a secret."""

    __tablename__ = "x_member"
    __table_args__ = (UniqueConstraint("email"),)
    __cache_config__ = CacheConfig(unique=[("email",)], exclude={"secret"}, refresh_ahead=0.001)
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String)
    secret: Mapped[str]


def _vaults() -> list[Any]:
    owner = Owner(id=1, name="o")
    return [
        owner,
        Vault(id=1, name="v", owner=owner, content={"a": 1}, note="n", left=1, right=2, odd={1}),
        Vault(id=2, name="w", content={}, left=None, right=None),
    ]


CASES = [
    Case(
        Account,
        1,
        lambda: [Account(id=1, name="a", password_hash="TOP", seen=datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))],
        ("name", "b"),
    ),
    Case(Account, 2, lambda: [Account(id=2, name="c", password_hash="TOP")], ("password_hash", "x"), name="unread"),
    Case(Vault, 1, _vaults, ("name", "x")),
    Case(Vault, 2, list, ("content", {"b": 2}), name="document"),
    Case(Person, 1, lambda: [Person(id=1, secret="TOP")], ("secret", "x")),
    Case(Person, 2, lambda: [Agent(id=2, secret="TOP", code="TOP")], ("secret", "x"), name="agent as person"),
    Case(Agent, 3, lambda: [Agent(id=3, secret="TOP", code="TOP", city="x")], ("code", "x")),
    Case(Member, 1, lambda: [Member(id=1, email="a@b.c", secret="TOP")], ("email", "d@e.f")),
]  # fmt: skip
