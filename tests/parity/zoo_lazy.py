"""Many-to-one relationships whose targets may be answered from the cache: how objects refer, and to what."""

from __future__ import annotations

from typing import Any

from parity.case import Case
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, MetaData, Table, event
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, foreign, mapped_column, relationship, remote

from sqlmodel_cache import CacheConfig

CALLS: list[str] = []  # what load listeners have seen


class Base(AsyncAttrs, DeclarativeBase):
    """Keeps the tables of the zoo out of the other tests'."""

    metadata = MetaData()
    id: Mapped[int] = mapped_column(primary_key=True)


class Cached:
    """What the lazy loads of all relationships to a class may be answered from."""

    __cache_config__ = CacheConfig(many_to_one=True)


class LCity(Cached, Base):
    """Of which a team has a lazy load of its own."""

    __tablename__ = "l_city"
    name: Mapped[str]
    badge: Mapped[LBadge | None] = relationship(back_populates="city")


class LTeam(Cached, Base):
    """The usual target."""

    __tablename__ = "l_team"
    code: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    motto: Mapped[str] = mapped_column(deferred=True, default="go")
    city_id: Mapped[int | None] = mapped_column(ForeignKey("l_city.id"))
    city: Mapped[LCity | None] = relationship(info={"cache": False})
    heroes: Mapped[list[LHero]] = relationship(back_populates="team", foreign_keys="LHero.team_id", order_by="LHero.id")


class LBadge(Cached, Base):
    """Shares its primary key with a city: both sides are look-ups by primary key."""

    __tablename__ = "l_badge"
    id: Mapped[int] = mapped_column(ForeignKey("l_city.id"), primary_key=True)
    text: Mapped[str]
    city: Mapped[LCity] = relationship(back_populates="badge")


class LListened(Cached, Base):
    """Its load listener changes it."""

    __tablename__ = "l_listened"
    name: Mapped[str]


@event.listens_for(LListened, "load")
def _loaded(target: LListened, context: object) -> None:
    CALLS.append(f"load {target.name}")
    target.name += "!"


class LPair(Cached, Base):
    """A composite primary key."""

    __tablename__ = "l_pair"
    id: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class LAnimal(Cached, Base):
    """A family in joined tables."""

    __tablename__ = "l_animal"
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class LDog(LAnimal):
    """A part of the family with a table of its own."""

    __tablename__ = "l_dog"
    id: Mapped[int] = mapped_column(ForeignKey("l_animal.id"), primary_key=True)
    tricks: Mapped[str] = mapped_column(default="sit")
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class LCat(LAnimal):
    """A part of the family in its table."""

    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class LMissed(Base):
    """Absence is cached."""

    __tablename__ = "l_missed"
    __cache_config__ = CacheConfig(many_to_one=True, missing_ttl=60)
    name: Mapped[str]


class LRenewed(Base):
    """Its hits are found by the protocol's plan, which asks whether to renew them."""

    __tablename__ = "l_renewed"
    __cache_config__ = CacheConfig(many_to_one=True, refresh_ahead=1.0)
    name: Mapped[str]


class LPlain(Base):
    """Cached, but not for relationships, unless one asks for it."""

    __tablename__ = "l_plain"
    __cache_config__ = CacheConfig()
    name: Mapped[str]


class LNode(Cached, Base):
    """A tree."""

    __tablename__ = "l_node"
    name: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("l_node.id"))
    parent: Mapped[LNode | None] = relationship(remote_side="LNode.id")


_members = Table(
    "l_member",
    Base.metadata,
    Column("hero_id", ForeignKey("l_hero.id"), primary_key=True),
    Column("team_id", ForeignKey("l_team.id"), primary_key=True),
)


def _to(target: str, **options: Any) -> Any:
    return mapped_column(ForeignKey(f"{target}.id"), **options)


class LHero(Base):
    """Refers to each of them, in every way."""

    __tablename__ = "l_hero"
    __table_args__ = (ForeignKeyConstraint(["pair_id", "pair_part"], ["l_pair.id", "l_pair.part"]),)
    kind: Mapped[str] = mapped_column(default="hero")
    name: Mapped[str]
    team_id: Mapped[int | None] = _to("l_team")
    other_id: Mapped[int | None] = _to("l_team")
    listened_id: Mapped[int | None] = _to("l_listened")
    pair_id: Mapped[int | None]
    pair_part: Mapped[str | None]
    animal_id: Mapped[int | None] = _to("l_animal")
    missed_id: Mapped[int | None]
    plain_id: Mapped[int | None] = _to("l_plain")
    renewed_id: Mapped[int | None] = _to("l_renewed")
    team_code: Mapped[str | None] = mapped_column(ForeignKey("l_team.code"))

    team: Mapped[LTeam | None] = relationship(back_populates="heroes", foreign_keys=team_id)
    listened: Mapped[LListened | None] = relationship()
    pair: Mapped[LPair | None] = relationship()
    animal: Mapped[LAnimal | None] = relationship()
    dog: Mapped[LDog | None] = relationship(
        primaryjoin=lambda: foreign(LHero.animal_id) == remote(LDog.id), viewonly=True
    )
    missed: Mapped[LMissed | None] = relationship(
        primaryjoin=lambda: foreign(LHero.missed_id) == LMissed.id, viewonly=True
    )
    renewed: Mapped[LRenewed | None] = relationship()
    plain: Mapped[LPlain | None] = relationship(overlaps="asked")
    asked: Mapped[LPlain | None] = relationship(info={"cache": True}, overlaps="plain")

    viewed: Mapped[LTeam | None] = relationship(foreign_keys=team_id, viewonly=True)
    watched: Mapped[LTeam | None] = relationship(foreign_keys=other_id, active_history=True)
    refused: Mapped[LTeam | None] = relationship(foreign_keys=team_id, viewonly=True, info={"cache": False})
    raising: Mapped[LTeam | None] = relationship(foreign_keys=team_id, viewonly=True, lazy="raise")
    raising_on_sql: Mapped[LTeam | None] = relationship(foreign_keys=team_id, viewonly=True, lazy="raise_on_sql")
    coded: Mapped[LTeam | None] = relationship(foreign_keys=team_code, viewonly=True)
    narrowed: Mapped[LTeam | None] = relationship(
        primaryjoin="and_(LHero.team_id == LTeam.id, LTeam.name == 'a')", foreign_keys=team_id, viewonly=True
    )
    through: Mapped[LTeam | None] = relationship(secondary=_members, uselist=False, viewonly=True)
    team_name: AssociationProxy[str | None] = association_proxy("team", "name")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "hero"}  # noqa: RUF012


class LSidekick(LHero):
    """Inherits its relationships: its loads begin at the subclass."""

    __mapper_args__ = {"polymorphic_identity": "sidekick"}  # noqa: RUF012


class LEager(Base):
    """Loads with itself, and afterwards lazily, what it refers to."""

    __tablename__ = "l_eager"
    team_id: Mapped[int] = _to("l_team")
    joined: Mapped[LTeam] = relationship(viewonly=True, lazy="joined")
    selectin: Mapped[LTeam] = relationship(viewonly=True, lazy="selectin")
    immediate: Mapped[LTeam] = relationship(viewonly=True, lazy="immediate")


class LOwner(Base):
    """Deletes what it refers to."""

    __tablename__ = "l_owner"
    team_id: Mapped[int] = _to("l_team")
    team: Mapped[LTeam] = relationship(cascade="all, delete-orphan", single_parent=True)


class LEarly(Base):
    """Loads before it is saved."""

    __tablename__ = "l_early"
    team_id: Mapped[int | None] = _to("l_team")
    team: Mapped[LTeam | None] = relationship(load_on_pending=True)


def rows() -> list[Any]:
    """Return what is in the database."""
    return [
        LCity(id=1, name="c"),
        LTeam(id=1, code="A", name="a", city_id=1),
        LTeam(id=2, code="B", name="b"),
        LBadge(id=1, text="x"),
        LListened(id=1, name="l"),
        LPair(id=1, part="x", name="p"),
        LDog(id=1, name="d"),
        LCat(id=2, name="m"),
        LAnimal(id=3, name="n"),
        LPlain(id=1, name="p"),
        LRenewed(id=1, name="r"),
        LNode(id=1, name="1"),
        LNode(id=2, name="2", parent_id=1),
        LNode(id=3, name="3", parent_id=2),
        LHero(
            id=1, name="h", team_id=1, other_id=2, listened_id=1, pair_id=1, pair_part="x", animal_id=1, missed_id=9,
            plain_id=1, renewed_id=1, team_code="A",
        ),
        LSidekick(id=2, name="s", team_id=1, animal_id=2, pair_id=1),
        LHero(id=3, name="o", team_id=7, animal_id=3),
        LOwner(id=1, team_id=1),
        LEager(id=1, team_id=1),
    ]  # fmt: skip


# A relationship of the hero with each kind of target, and the target.
LINKS: dict[str, Case] = {
    "team": Case(LTeam, 1, list, ("name", "q")),
    "viewed": Case(LTeam, 1, list, ("name", "q"), name="viewed"),
    "listened": Case(LListened, 1, list, ("name", "q")),
    "pair": Case(LPair, (1, "x"), list, ("name", "q")),
    "animal": Case(LAnimal, 1, list, ("name", "q")),
    "dog": Case(LDog, 1, list, ("name", "q")),
    "renewed": Case(LRenewed, 1, list, ("name", "q")),
    "asked": Case(LPlain, 1, list, ("name", "q")),
}
