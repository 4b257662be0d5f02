"""Relationships of every loading strategy."""

from __future__ import annotations

from typing import Any

from parity.case import Case
from sqlalchemy import Column, ForeignKey, MetaData, Table
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    attribute_keyed_dict,
    backref,
    mapped_column,
    relationship,
)

from sqlmodel_cache import CacheConfig


class Base(DeclarativeBase):
    """Keeps the tables of the zoo out of the other tests'."""

    metadata = MetaData()
    __cache_config__ = CacheConfig()
    id: Mapped[int] = mapped_column(primary_key=True)


def _key(table: str, **options: Any) -> Any:
    return mapped_column(ForeignKey(f"{table}.id", **options))


class RParent(Base):
    """Everything lazy."""

    __tablename__ = "r_parent"
    name: Mapped[str]
    children: Mapped[list[RChild]] = relationship(back_populates="parent", order_by="RChild.id")
    named: Mapped[dict[str, RChild]] = relationship(
        collection_class=attribute_keyed_dict("name"), viewonly=True, order_by="RChild.id"
    )
    chosen: Mapped[set[RChild]] = relationship(viewonly=True)
    child_names: AssociationProxy[list[str]] = association_proxy("children", "name")


class RChild(Base):
    """A many-to-one, a scalar and a list with cascades."""

    __tablename__ = "r_child"
    name: Mapped[str]
    parent_id: Mapped[int | None] = _key("r_parent")
    parent: Mapped[RParent | None] = relationship(back_populates="children")
    toys: Mapped[list[RToy]] = relationship(back_populates="child", cascade="all, delete-orphan")
    parent_name: AssociationProxy[str] = association_proxy("parent", "name")


class RToy(Base):
    """A child that is deleted with its parent."""

    __tablename__ = "r_toy"
    name: Mapped[str]
    child_id: Mapped[int] = _key("r_child")
    child: Mapped[RChild] = relationship(back_populates="toys")


class RNode(Base):
    """A tree."""

    __tablename__ = "r_node"
    name: Mapped[str]
    parent_id: Mapped[int | None] = _key("r_node")
    children: Mapped[list[RNode]] = relationship(backref=backref("parent", remote_side="RNode.id"))


_tagged = Table(
    "r_tagged",
    Base.metadata,
    Column("a", ForeignKey("r_tagger.id"), primary_key=True),
    Column("b", ForeignKey("r_tag.id"), primary_key=True),
)


class RTagger(Base):
    """Many to many."""

    __tablename__ = "r_tagger"
    name: Mapped[str]
    tags: Mapped[list[RTag]] = relationship(secondary=_tagged, backref="taggers")


class RTag(Base):
    """The other side."""

    __tablename__ = "r_tag"
    name: Mapped[str]


class RDynamic(Base):
    """A collection that is a query."""

    __tablename__ = "r_dynamic"
    name: Mapped[str]
    children: DynamicMapped[RDynamicChild] = relationship()


class RDynamicChild(Base):
    """Its element."""

    __tablename__ = "r_dynamic_child"
    parent_id: Mapped[int | None] = _key("r_dynamic")


class RWriteOnly(Base):
    """A collection that is only written."""

    __tablename__ = "r_write_only"
    name: Mapped[str]
    children: WriteOnlyMapped[RWriteOnlyChild] = relationship(passive_deletes=True)


class RWriteOnlyChild(Base):
    """Its element."""

    __tablename__ = "r_write_only_child"
    parent_id: Mapped[int | None] = _key("r_write_only", ondelete="CASCADE")


def _lazy(name: str, lazy: Any) -> tuple[type, type]:
    """Return a parent and a child whose relationships are loaded that way, in both directions."""
    low = name.lower()
    parent = type(
        f"RP{name}",
        (Base,),
        {
            "__tablename__": f"r_p_{low}",
            "__module__": __name__,
            "__annotations__": {"name": Mapped[str]},
            "children": relationship(f"RC{name}", lazy=lazy, back_populates="parent"),
        },
    )
    child = type(
        f"RC{name}",
        (Base,),
        {
            "__tablename__": f"r_c_{low}",
            "__module__": __name__,
            "__annotations__": {"name": Mapped[str], "parent_id": Mapped[int | None]},
            "parent_id": _key(f"r_p_{low}"),
            "parent": relationship(f"RP{name}", lazy=lazy, back_populates="children"),
        },
    )
    globals()[parent.__name__], globals()[child.__name__] = parent, child  # pickle finds them
    return parent, child


STRATEGIES: dict[str, tuple[Any, str]] = {
    "Joined": ("joined", "refused"),
    "Selectin": ("selectin", "refused"),
    "Subquery": ("subquery", "refused"),
    "Immediate": ("immediate", "refused"),
    "Raise": ("raise", "hit"),
    "RaiseOnSql": ("raise_on_sql", "hit"),
    "Select": ("select", "hit"),
    "True": (True, "hit"),
    "None": (None, "refused"),
}
_BUILT = {name: _lazy(name, lazy) for name, (lazy, _) in STRATEGIES.items() if name != "None"}


def _family(parent: Any, child: Any) -> list[Any]:
    return [parent(id=1, name="p", children=[child(id=1, name="c"), child(id=2, name="d")])]


def _people() -> list[Any]:
    toys = [RToy(id=1, name="t"), RToy(id=2, name="u")]
    return [RParent(id=1, name="p", children=[RChild(id=1, name="c", toys=toys), RChild(id=2, name="d")])]


CASES = [
    Case(RParent, 1, _people, ("name", "q")),
    Case(RChild, 1, list, ("parent_id", None)),
    Case(RToy, 1, list, ("name", "q")),
    Case(RNode, 1, lambda: [RNode(id=1, name="p", children=[RNode(id=2, name="c")])], ("name", "q")),
    Case(
        RTagger, 1, lambda: [RTagger(id=1, name="p", tags=[RTag(id=1, name="t"), RTag(id=2, name="u")])], ("name", "q")
    ),
    Case(RDynamic, 1, lambda: [RDynamic(id=1, name="p", children=[RDynamicChild(id=1)])], ("name", "q")),
    Case(RWriteOnly, 1, lambda: [RWriteOnly(id=1, name="p", children=[RWriteOnlyChild(id=1)])], ("name", "q")),
    *(
        Case(_BUILT[name][0], 1, lambda built=built: _family(*built), ("name", "q"), STRATEGIES[name][1])
        for name, built in _BUILT.items()
    ),
    *(Case(_BUILT[name][1], 1, list, ("name", "q"), STRATEGIES[name][1]) for name, built in _BUILT.items()),
]
