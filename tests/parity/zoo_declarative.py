"""SQLAlchemy's own declarative, dataclass and imperative mappings, and what their attributes may be."""

from __future__ import annotations

import dataclasses
import decimal
from typing import Any

from parity.case import Case
from sqlalchemy import (
    JSON,
    Column,
    Computed,
    FetchedValue,
    Integer,
    MetaData,
    PickleType,
    String,
    Table,
    TypeDecorator,
    event,
    func,
    select,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableComposite, MutableDict, MutableList, MutableSet
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    composite,
    declared_attr,
    deferred,
    mapped_column,
    query_expression,
    reconstructor,
    registry,
    synonym,
    validates,
)

from sqlmodel_cache import CacheConfig

CALLS: list[str] = []  # what the models' own methods were called for


class Base(DeclarativeBase):
    """Keeps the tables of the zoo out of the other tests'; all its classes are cached."""

    metadata = MetaData()
    __cache_config__ = CacheConfig()


class Stamped:
    """A mixin with columns."""

    note: Mapped[str | None] = mapped_column(default=None)

    @declared_attr
    def stamp(cls) -> Mapped[str | None]:  # noqa: N805
        """A column for each class."""
        return mapped_column(String(30), default="s")


class Abstract(Base):
    """An abstract base."""

    __abstract__ = True
    id: Mapped[int] = mapped_column(primary_key=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class DPlain(Stamped, Abstract):
    """Columns from a mixin and an abstract base."""

    __tablename__ = "d_plain"
    name: Mapped[str]


class DDeferred(Abstract):
    """Deferred columns of all kinds."""

    __tablename__ = "d_deferred"
    name: Mapped[str]
    one: Mapped[str] = mapped_column(deferred=True)
    two: Mapped[str] = deferred(mapped_column(String))
    group_a: Mapped[str] = mapped_column(deferred=True, deferred_group="g")
    group_b: Mapped[str] = mapped_column(deferred=True, deferred_group="g")
    raising: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)


class DDeferredExpression(Abstract):
    """A deferred SQL expression is not part of the row."""

    __tablename__ = "d_deferred_expression"
    name: Mapped[str]


DDeferredExpression.loud = column_property(DDeferredExpression.name + "!", deferred=True)


class DDeferredMutable(Abstract):
    """A deferred column whose value is tracked."""

    __tablename__ = "d_deferred_mutable"
    name: Mapped[str]
    data: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON), deferred=True)


class DExpression(Abstract):
    """An SQL expression."""

    __tablename__ = "d_expression"
    name: Mapped[str]


DExpression.loud = column_property(DExpression.name + "!")
DExpression.number = column_property(select(func.count()).scalar_subquery())


class DQueryExpression(Abstract):
    """An expression that a query may give."""

    __tablename__ = "d_query_expression"
    name: Mapped[str]
    extra: Mapped[str | None] = query_expression()


class DReconstructed(Abstract):
    """A reconstructor that sets something beside the columns."""

    __tablename__ = "d_reconstructed"
    name: Mapped[str]

    def __init__(self, **values: Any) -> None:
        CALLS.append("init")
        super().__init__(**values)

    @reconstructor
    def loaded(self) -> None:
        """Set something."""
        CALLS.append("reconstructed")
        self.beside = [self.name]


class DVersion(Abstract):
    """A version counter."""

    __tablename__ = "d_version"
    name: Mapped[str]
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class DServer(Abstract):
    """What the server computes."""

    __tablename__ = "d_server"
    name: Mapped[str]
    by_default: Mapped[str] = mapped_column(server_default=text("'d'"))
    doubled: Mapped[int] = mapped_column(Computed("id * 2"))
    fetched: Mapped[int | None] = mapped_column(server_default=FetchedValue(), server_onupdate=FetchedValue())
    updated: Mapped[int] = mapped_column(default=1, onupdate=lambda: 2)
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012


class DServerLazy(Abstract):
    """The same, fetched when it is asked for."""

    __tablename__ = "d_server_lazy"
    name: Mapped[str]
    by_default: Mapped[str] = mapped_column(server_default=text("'d'"))
    doubled: Mapped[int] = mapped_column(Computed("id * 2"))
    by_sql: Mapped[int] = mapped_column(default=text("40 + 2"), onupdate=text("40 + 3"))
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012


class DNames(Base):
    """Attributes, keys and columns of different names, and synonyms, for the primary key, too."""

    __tablename__ = "d_names"
    ident = Column("the id", Integer, primary_key=True)
    first: Mapped[str] = mapped_column("second")
    second: Mapped[str] = mapped_column("first")
    keyed = Column("named", String, key="keyed_otherwise")
    nickname = synonym("first")
    key = synonym("ident")


class DHybrid(Abstract):
    """Hybrid attributes, and a validator that a load must not call."""

    __tablename__ = "d_hybrid"
    name: Mapped[str]
    _age: Mapped[int] = mapped_column("age")

    @hybrid_property
    def age(self) -> int:
        """The age."""
        return self._age

    @age.setter
    def age(self, value: int) -> None:
        CALLS.append("set")
        self._age = value

    @validates("name")
    def check(self, key: str, value: str) -> str:
        """Say that it was called."""
        CALLS.append(f"validated {key}")
        return value.strip()


@dataclasses.dataclass
class Point:
    """A composite value."""

    x: int | None
    y: int | None


class Moving(MutableComposite):
    """A composite value that changes in place."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def __setattr__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        self.changed()

    def __getstate__(self) -> tuple[int, int]:
        return self.x, self.y

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.__dict__.update(x=state[0], y=state[1])

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moving) and (other.x, other.y) == (self.x, self.y)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Moving({self.x}, {self.y})"


class DComposite(Abstract):
    """Composite attributes."""

    __tablename__ = "d_composite"
    start: Mapped[Point] = composite(Point, mapped_column("x1", Integer), mapped_column("y1", Integer))
    empty: Mapped[Point | None] = composite(
        Point, mapped_column("x3", Integer, nullable=True), mapped_column("y3", Integer, nullable=True)
    )
    moving: Mapped[Moving] = composite(Moving, mapped_column("x2", Integer), mapped_column("y2", Integer))


@dataclasses.dataclass(frozen=True)
class Version:
    """A composite primary key as one value."""

    id: int
    number: int


class DCompositeKey(Base):
    """A primary key that is one composite attribute."""

    __tablename__ = "d_composite_key"
    version: Mapped[Version] = composite(
        Version, mapped_column("id", Integer, primary_key=True), mapped_column("nr", Integer, primary_key=True)
    )
    name: Mapped[str]


class DMutable(Abstract):
    """Values that change in place."""

    __tablename__ = "d_mutable"
    data: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON))
    items: Mapped[Any] = mapped_column(MutableList.as_mutable(JSON))
    nil: Mapped[Any | None] = mapped_column(MutableDict.as_mutable(JSON(none_as_null=True)))


class Words(TypeDecorator[Any]):
    """A set of words in a text: a Python value that the codec does not know."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else " ".join(sorted(value))

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else set(value.split())


class DWords(Abstract):
    """A value that no codec carries, in a mutable set: read from the database every time."""

    __tablename__ = "d_words"
    words: Mapped[Any] = mapped_column(MutableSet.as_mutable(Words()))


class DPickled(Abstract):
    """A pickled value."""

    __tablename__ = "d_pickled"
    value: Mapped[Any] = mapped_column(PickleType)


class DOdd(Abstract):
    """Own `__eq__`, `__hash__`, `__bool__`, `__len__`, `__getattr__`, `__setattr__` and `__new__`."""

    __tablename__ = "d_odd"
    name: Mapped[str]

    def __new__(cls, *args: Any, **values: Any) -> DOdd:  # noqa: PYI034
        CALLS.append("new")
        return super().__new__(cls)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("virtual_"):
            return name
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        CALLS.append(f"set {name}" if name != "_sa_instance_state" else "state")
        super().__setattr__(name, value)


class DHistory(Abstract):
    """Columns whose old value is loaded before they are changed, and a wide numeric one."""

    __tablename__ = "d_history"
    name: Mapped[str] = mapped_column(active_history=True)
    amount: Mapped[decimal.Decimal | None] = mapped_column(default=decimal.Decimal("1.50"))


class DPartial(Base):
    """A class of some of a table's columns, keyed by another column than the table is."""

    __table__ = Table(
        "d_partial",
        Base.metadata,
        Column("id", Integer, primary_key=True),
        Column("code", String, unique=True, nullable=False),
        Column("name", String),
        Column("left_out", String, server_default="l"),
    )
    __mapper_args__ = {"primary_key": [__table__.c.code], "exclude_properties": ["left_out"]}  # noqa: RUF012


class DTwin(Base):
    """The same table, with all of its columns and its own key."""

    __table__ = DPartial.__table__


class DRefreshed(Abstract):
    """Always refreshed."""

    __tablename__ = "d_refreshed"
    name: Mapped[str]
    __mapper_args__ = {"always_refresh": True}  # noqa: RUF012


class DListened(Abstract):
    """Load events on the class, one of which does not propagate, one of which is raw."""

    __tablename__ = "d_listened"
    name: Mapped[str]


@event.listens_for(DListened, "load")
def _loaded(target: Any, context: Any) -> None:
    CALLS.append(f"load {target.name}")
    target.beside = target.name


@event.listens_for(DListened, "load", raw=True, propagate=True)
def _loaded_raw(state: Any, context: Any) -> None:
    CALLS.append(f"raw load {sorted(state.unloaded)} {state.key[1]} {state.persistent}")


class DataBase(MappedAsDataclass, DeclarativeBase):
    """Dataclasses."""

    metadata = Base.metadata
    __cache_config__ = CacheConfig()


class DDataclass(DataBase):
    """A mapped dataclass: defaults and factories belong to `__init__`, which a load does not call."""

    __tablename__ = "d_dataclass"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    hidden: Mapped[str] = mapped_column(default="h", repr=False, compare=False)
    late: Mapped[str | None] = mapped_column(init=False, default=None)
    made: Mapped[str] = mapped_column(default_factory=lambda: "made", kw_only=True)
    beside: dataclasses.InitVar[str | None] = None


class Imperative:
    """A class that knows of no database."""

    __cache_config__ = CacheConfig()

    def __init__(self, id: int, name: str) -> None:
        CALLS.append("init")
        self.id = id
        self.name = name
        self.unmapped = "set by __init__"


class ImperativeFrozen:
    """Attributes cannot be set from outside once it is made."""

    __cache_config__ = CacheConfig()


@dataclasses.dataclass
class ImperativeDataclass:
    """A plain dataclass."""

    __cache_config__ = CacheConfig()
    id: int
    title: str
    tags: list[str] = dataclasses.field(default_factory=list, repr=False)


_imperative = registry(metadata=Base.metadata)
_imperative.map_imperatively(
    Imperative,
    Table("d_imperative", Base.metadata, Column("id", Integer, primary_key=True), Column("name", String)),
)
_dataclass_table = Table(
    "d_imperative_dataclass",
    Base.metadata,
    Column("row_id", Integer, primary_key=True),
    Column("row_title", String),
    Column("row_long", String, server_default="long"),
)
_imperative.map_imperatively(
    ImperativeDataclass,
    _dataclass_table,
    properties={
        "id": _dataclass_table.c.row_id,
        "title": _dataclass_table.c.row_title,
        "long": deferred(_dataclass_table.c.row_long),
    },
    column_prefix="_",
)
_prefixed = Table("d_prefixed", Base.metadata, Column("id", Integer, primary_key=True), Column("name", String))
_imperative.map_imperatively(ImperativeFrozen, _prefixed, column_prefix="_")


def _frozen() -> list[Any]:
    frozen: Any = ImperativeFrozen()
    frozen._id, frozen._name = 1, "f"
    return [frozen]


CASES = [
    Case(DPlain, 1, lambda: [DPlain(id=1, name="n", note="x")], ("name", "o")),
    Case(
        DDeferred,
        1,
        lambda: [DDeferred(id=1, name="n", one="1", two="2", group_a="a", group_b="b", raising="r")],
        ("name", "o"),
    ),
    Case(DDeferred, 1, list, ("one", "o"), name="DDeferred, the deferred column"),
    Case(DDeferredExpression, 1, lambda: [DDeferredExpression(id=1, name="n")], ("name", "o")),
    Case(DDeferredMutable, 1, lambda: [DDeferredMutable(id=1, name="n", data={"a": 1})], ("name", "o")),
    Case(DExpression, 1, lambda: [DExpression(id=1, name="n")], ("name", "o"), "refused"),
    Case(DQueryExpression, 1, lambda: [DQueryExpression(id=1, name="n")], ("name", "o"), "refused"),
    Case(DReconstructed, 1, lambda: [DReconstructed(id=1, name="n")], ("name", "o")),
    Case(DVersion, 1, lambda: [DVersion(id=1, name="n")], ("name", "o")),
    Case(DServer, 1, lambda: [DServer(id=1, name="n")], ("name", "o")),
    Case(DServerLazy, 1, lambda: [DServerLazy(id=1, name="n")], ("name", "o")),
    Case(DNames, 1, lambda: [DNames(ident=1, first="f", second="s", keyed="k")], ("first", "o")),
    Case(DNames, {"key": 1}, list, ("nickname", "o"), "bypass", name="DNames by a synonym"),
    Case(DHybrid, 1, lambda: [DHybrid(id=1, name=" n ", age=4)], ("age", 6)),
    Case(
        DComposite,
        1,
        lambda: [DComposite(id=1, start=Point(1, 2), empty=None, moving=Moving(3, 4))],
        ("start", Point(5, 6)),
    ),
    Case(DCompositeKey, (1, 2), lambda: [DCompositeKey(version=Version(1, 2), name="n")], ("name", "o")),
    Case(DCompositeKey, Version(1, 2), list, ("name", "o"), "bypass", name="DCompositeKey as a value"),
    Case(DMutable, 1, lambda: [DMutable(id=1, data={"a": 1}, items=[1, 2])], ("data", {"b": 2})),
    Case(DWords, 1, lambda: [DWords(id=1, words={"a", "b"})], ("words", {"c"}), "miss"),
    Case(DPickled, 1, lambda: [DPickled(id=1, value=[1, "x"])], ("value", 5), "refused"),
    Case(DOdd, 1, lambda: [DOdd(id=1, name="n")], ("name", "o")),
    Case(DHistory, 1, lambda: [DHistory(id=1, name="n")], ("name", "o")),
    Case(DTwin, 1, lambda: [DTwin(id=1, code="c", name="n")], ("name", "o")),
    Case(DPartial, "c", list, ("name", "o")),
    Case(DRefreshed, 1, lambda: [DRefreshed(id=1, name="n")], ("name", "o"), "refused"),
    Case(DListened, 1, lambda: [DListened(id=1, name="n")], ("name", "o")),
    Case(DDataclass, 1, lambda: [DDataclass(id=1, name="n", made="m")], ("name", "o")),
    Case(Imperative, 1, lambda: [Imperative(1, "n")], ("name", "o")),
    Case(ImperativeDataclass, 1, lambda: [ImperativeDataclass(1, "n")], ("title", "o")),
    Case(ImperativeFrozen, 1, _frozen, ("_name", "o")),
]
