"""The tables that the corpus writes: each way in which a row can be keyed, and each way in which it can be rewritten.

They have a registry of their own, so that no other test creates them. `w_base` and `w_idle` are not cached.
"""

import datetime
import uuid
from typing import Any

from sqlalchemy import Column, ForeignKey, Integer, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlmodel import Field, Relationship, SQLModel

from sqlmodel_cache import CacheConfig

OTHER_SCHEMA = "w_other"

TABLES = registry()


class Base(SQLModel, registry=TABLES):
    """The root of the corpus's models."""


def reference(column: str, **actions: str) -> Any:
    """Return a nullable foreign key column with database-side actions."""
    return Field(default=None, sa_column=Column(ForeignKey(column, **actions)))


class Team(Base, table=True):
    """A parent."""

    __tablename__ = "w_team"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""
    heroes: list["Hero"] = Relationship(back_populates="team", sa_relationship_kwargs={"cascade": "all, delete-orphan"})


class HeroTag(Base, table=True):
    """The secondary table between heroes and tags."""

    __tablename__ = "w_hero_tag"
    hero_id: int = Field(sa_column=Column(ForeignKey("w_hero.id", ondelete="CASCADE"), primary_key=True))
    tag_id: int = Field(sa_column=Column(ForeignKey("w_tag.id", ondelete="CASCADE"), primary_key=True))


class Hero(Base, table=True):
    """A child that follows its parent in everything."""

    __tablename__ = "w_hero"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""
    age: int = 0
    team_id: int | None = reference("w_team.id", ondelete="CASCADE", onupdate="CASCADE")
    team: Team | None = Relationship(back_populates="heroes")
    tags: list["Tag"] = Relationship(back_populates="heroes", link_model=HeroTag)


class Tag(Base, table=True):
    """Unique by a column that is not its primary key."""

    __tablename__ = "w_tag"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    code: str = Field(unique=True)
    label: str = ""
    heroes: list["Hero"] = Relationship(back_populates="tags", link_model=HeroTag)


class BaseCamp(Base, table=True):
    """An uncached table in the middle of a chain of cascades."""

    __tablename__ = "w_base"
    id: int | None = Field(default=None, primary_key=True)
    team_id: int | None = reference("w_team.id", ondelete="CASCADE", onupdate="CASCADE")


class Robot(Base, table=True):
    """A grandchild of teams, through an uncached table."""

    __tablename__ = "w_robot"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""
    base_id: int | None = reference("w_base.id", ondelete="CASCADE", onupdate="CASCADE")


class Part(Base, table=True):
    """Loses its parent, three tables below teams."""

    __tablename__ = "w_part"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    robot_id: int | None = reference("w_robot.id", ondelete="SET NULL", onupdate="SET NULL")


class Post(Base, table=True):
    """Falls back to the default parent."""

    __tablename__ = "w_post"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    team_id: int | None = Field(
        default=None,
        sa_column=Column(ForeignKey("w_team.id", ondelete="SET DEFAULT", onupdate="CASCADE"), server_default="3"),
    )


class Node(Base, table=True):
    """A tree."""

    __tablename__ = "w_node"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    parent_id: int | None = reference("w_node.id", ondelete="CASCADE")


class Gadget(Base, table=True):
    """A composite primary key with text in it."""

    __tablename__ = "w_gadget"
    __cache_config__ = CacheConfig()
    owner: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    name: str = ""


class Code(Base, table=True):
    """A primary key of text."""

    __tablename__ = "w_code"
    __cache_config__ = CacheConfig()
    id: str = Field(primary_key=True)
    name: str = ""


class Token(Base, table=True):
    """A primary key that is a UUID."""

    __tablename__ = "w_token"
    __cache_config__ = CacheConfig()
    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    name: str = ""


class Day(Base, table=True):
    """A primary key that is a date."""

    __tablename__ = "w_day"
    __cache_config__ = CacheConfig()
    id: datetime.date = Field(primary_key=True)
    name: str = ""


class Label(Base, table=True):
    """Attributes and columns of different names."""

    __tablename__ = "w_label"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, sa_column=Column("label_id", Integer, primary_key=True))
    name: str = Field(default="", sa_column=Column("label_text", String, nullable=False))


class Mixed(Base, table=True):
    """Names that must be quoted."""

    __tablename__ = "wMixed Case"
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, sa_column=Column("The Id", Integer, primary_key=True))
    name: str = Field(default="", sa_column=Column("The Name", String, nullable=False))


class Far(Base, table=True):
    """In another schema."""

    __tablename__ = "w_far"
    __table_args__ = {"schema": OTHER_SCHEMA}
    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""


class LegacyBase(DeclarativeBase):
    """Plain SQLAlchemy."""

    registry = registry(metadata=TABLES.metadata)


class Legacy(LegacyBase):
    """A declarative class that is not SQLModel's."""

    __tablename__ = "w_legacy"
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Idle(Base, table=True):
    """Matters to nobody."""

    __tablename__ = "w_idle"
    id: int | None = Field(default=None, primary_key=True)
    name: str = ""


UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
DAYS = [datetime.date(2024, 1, 1), datetime.date(2024, 2, 29)]

ROWS: dict[Any, list[tuple[Any, ...]]] = {
    Team: [(1, "red"), (2, "blue"), (3, "none")],
    Tag: [(1, "c1", "first"), (2, "c2", "second"), (3, "c3", "third")],
    Hero: [(1, "Ann", 30, 1), (2, "Bob", 40, 1), (3, "Cid", 50, 2)],
    HeroTag: [(1, 1), (2, 1), (1, 2)],
    BaseCamp: [(1, 1), (2, 2)],
    Robot: [(1, "r1", 1), (2, "r2", 2)],
    Part: [(1, 1), (2, 2)],
    Post: [(1, 1), (2, 2)],
    Node: [(1, None), (2, 1), (3, 2)],
    Gadget: [("a", 1, "x"), ("a", 2, "y"), ("b", 1, "z")],
    Code: [("one", "x"), ("two", "y")],
    Token: [(UUIDS[0], "x"), (UUIDS[1], "y")],
    Day: [(DAYS[0], "x"), (DAYS[1], "y")],
    Label: [(1, "x"), (2, "y")],
    Mixed: [(1, "x"), (2, "y")],
    Far: [(1, "x"), (2, "y")],
    Legacy: [(1, "x"), (2, "y")],
    Idle: [(1, "x"), (2, "y")],
}


def table_of(model: Any) -> Table:
    """Return a model's table."""
    table: Table = model.__table__
    return table
