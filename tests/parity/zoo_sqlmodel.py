"""SQLModel classes as people write them."""

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Any

from parity.case import Case
from pydantic import ConfigDict, EmailStr, PrivateAttr, computed_field, field_validator, model_validator  # noqa: F401
from sqlalchemy import JSON, Column, DateTime, Integer, LargeBinary, MetaData, String, text
from sqlalchemy import Enum as SqlEnum
from sqlalchemy import event as sa_event
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import column_property, reconstructor, registry
from sqlmodel import Field, Relationship, SQLModel

from sqlmodel_cache import CacheConfig

CALLS: list[str] = []  # what the models' own methods were called for


class Base(SQLModel, registry=registry(metadata=MetaData())):
    """Keeps the tables of the zoo out of the other tests'."""


class Fruit(enum.Enum):
    """Stored by name."""

    APPLE = "a"
    PEAR = "p"


class Level(enum.IntEnum):
    """Stored by name, too."""

    LOW = 1
    HIGH = 2


class ZTeam(Base, table=True):
    """A parent."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str
    heroes: list["ZHero"] = Relationship(back_populates="team")


class ZHero(Base, table=True):
    """The usual model."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    secret_name: str = "nobody"
    age: int | None = None
    team_id: int | None = Field(default=None, foreign_key="zteam.id")
    team: ZTeam | None = Relationship(back_populates="heroes")


class ZTypes(Base, table=True):
    """Many types."""

    __cache_config__ = CacheConfig()
    id: uuid.UUID = Field(default_factory=uuid.uuid4, primary_key=True)
    amount: Decimal = Field(max_digits=12, decimal_places=3)
    day: datetime.date
    moment: datetime.datetime = Field(sa_type=DateTime)
    aware: datetime.datetime
    clock: datetime.time
    spent: datetime.timedelta
    fruit: Fruit
    level: Level
    value: Fruit = Field(sa_column=Column(SqlEnum(Fruit, values_callable=lambda e: [m.value for m in e])))
    ratio: float
    raw: bytes = Field(sa_column=Column(LargeBinary))
    active: bool
    tags: dict[str, Any] = Field(sa_column=Column(JSON))
    nil: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    other: uuid.UUID | None = None


class ZPrivate(Base, table=True):
    """Private attributes, a validator, a computed field: none of it runs when a row is loaded."""

    __cache_config__ = CacheConfig()
    model_config = ConfigDict(validate_assignment=True)  # type: ignore[assignment]
    id: int | None = Field(default=None, primary_key=True)
    name: str
    _hidden: int = PrivateAttr(default=7)
    _cells: list[int] = PrivateAttr(default_factory=list)

    @field_validator("name")
    @classmethod
    def _check(cls, value: str) -> str:
        CALLS.append("validated")
        return value

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        """The name, aloud."""
        return self.name.upper()

    def model_post_init(self, context: Any, /) -> None:
        """Say that it was called."""
        CALLS.append("post init")


class ZExtra(Base, table=True):
    """Extra fields are allowed."""

    __cache_config__ = CacheConfig()
    model_config = ConfigDict(extra="allow")  # type: ignore[assignment]
    id: int | None = Field(default=None, primary_key=True)
    name: str


class ZInit(Base, table=True):
    """An `__init__`, a reconstructor, and a load event of its own."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str

    def __init__(self, **data: Any) -> None:
        CALLS.append("init")
        super().__init__(**data)

    @reconstructor
    def _reconstruct(self) -> None:
        CALLS.append(f"reconstructed {self.name}")


class ZPair(Base, table=True):
    """A composite primary key, declared in another order than it is sorted in."""

    __cache_config__ = CacheConfig()
    owner: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    day: datetime.date = Field(primary_key=True)
    label: str = ""


class ZText(Base, table=True):
    """A text key."""

    __cache_config__ = CacheConfig()
    code: str = Field(primary_key=True)
    label: str = ""


class ZDay(Base, table=True):
    """A date as key."""

    __cache_config__ = CacheConfig()
    day: datetime.date = Field(primary_key=True)
    label: str = ""


class ZStamp(Base, table=True):
    """A datetime as key goes to the database."""

    __cache_config__ = CacheConfig()
    moment: datetime.datetime = Field(primary_key=True, sa_type=DateTime)
    label: str = ""


class ZColumns(Base, table=True):
    """Columns of other names, server defaults, a default that a function computes."""

    __cache_config__ = CacheConfig()
    ident: int | None = Field(default=None, sa_column=Column("the_id", Integer, primary_key=True))
    label: str = Field(sa_column=Column("the label", String))
    stamped: str | None = Field(default=None, sa_column_kwargs={"server_default": text("'by the server'")})
    counted: int | None = Field(default=None, sa_column_kwargs={"onupdate": lambda: 5})


class ZMutable(Base, table=True):
    """Values that change in place."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    data: dict[str, Any] = Field(sa_column=Column(MutableDict.as_mutable(JSON)))
    items: list[Any] = Field(sa_column=Column(MutableList.as_mutable(JSON)))
    plain: dict[str, Any] = Field(sa_column=Column(JSON))


class ZMixinBase(SQLModel):
    """Fields without a table."""

    created: datetime.datetime = Field(default_factory=lambda: datetime.datetime(2026, 1, 1), sa_type=DateTime)
    note: str | None = None


class ZMixed(ZMixinBase, Base, table=True):
    """Fields of a base class that is no table."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str


class ZAlias(Base, table=True):
    """Aliases, exclusion, a title: pydantic's matters."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(alias="fullName", title="N")
    hidden: str = Field(default="h", exclude=True)


class ZComputed(Base, table=True):
    """An SQL expression that is set afterwards."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str


ZComputed.loud = column_property(ZComputed.__table__.c.name + "!")  # type: ignore[attr-defined]


class ZVersion(Base, table=True):
    """A version counter."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str
    version: int | None = Field(default=None, nullable=False)


ZVersion.__mapper__.version_id_col = ZVersion.__table__.c.version  # type: ignore[attr-defined]


class ZListened(Base, table=True):
    """A load event that changes the object."""

    __cache_config__ = CacheConfig()
    id: int | None = Field(default=None, primary_key=True)
    name: str


@sa_event.listens_for(ZListened, "load")
def _loaded(target: Any, context: Any) -> None:
    CALLS.append(f"loaded {target.name}")
    target.name = "changed by a load event"


_DAY = datetime.date(2026, 1, 31)
_UUID = uuid.UUID(int=0xABC)


def _types() -> list[Any]:
    return [
        ZTypes(
            id=_UUID,
            amount=Decimal("12.300"),
            day=_DAY,
            moment=datetime.datetime(2026, 1, 31, 12, 30, 1, 77),
            aware=datetime.datetime(2026, 1, 31, 12, 30, 1, 77, tzinfo=datetime.UTC),
            clock=datetime.time(1, 2, 3, 4),
            spent=datetime.timedelta(days=-1, microseconds=3),
            fruit=Fruit.PEAR,
            level=Level.HIGH,
            value=Fruit.APPLE,
            ratio=-0.0,
            raw=bytes(range(256)),
            active=True,
            tags={"b": [1, 2.5, None], "a": {"ü": "\u2028"}},
        )
    ]


CASES = [
    Case(ZHero, 1, lambda: [ZTeam(id=1, name="t"), ZHero(id=1, name="h", team_id=1)], ("age", 5)),
    Case(ZTeam, 1, list, ("name", "u")),
    Case(ZTypes, _UUID, _types, ("amount", Decimal("7.100"))),
    Case(ZPrivate, 1, lambda: [ZPrivate(id=1, name="p")], ("name", "q")),
    Case(ZExtra, 1, lambda: [ZExtra(id=1, name="p")], ("name", "q")),
    Case(ZInit, 1, lambda: [ZInit(id=1, name="p")], ("name", "q")),
    Case(ZPair, ("a", 2, _DAY), lambda: [ZPair(owner="a", number=2, day=_DAY)], ("label", "l")),
    Case(ZText, "x/ü:'", lambda: [ZText(code="x/ü:'")], ("label", "l")),
    Case(ZDay, _DAY, lambda: [ZDay(day=_DAY)], ("label", "l")),
    Case(
        ZStamp,
        datetime.datetime(2026, 1, 1),
        lambda: [ZStamp(moment=datetime.datetime(2026, 1, 1))],
        ("label", "l"),
        "refused",
    ),
    Case(ZColumns, 1, lambda: [ZColumns(ident=1, label="l")], ("label", "m")),
    Case(ZMutable, 1, lambda: [ZMutable(id=1, data={"a": 1}, items=[1], plain={"a": 1})], ("data", {"b": 2})),
    Case(ZMixed, 1, lambda: [ZMixed(id=1, name="m")], ("name", "n")),
    Case(ZAlias, 1, lambda: [ZAlias(id=1, fullName="m", hidden="x")], ("name", "n")),
    Case(ZComputed, 1, lambda: [ZComputed(id=1, name="m")], ("name", "n"), "refused"),
    Case(ZVersion, 1, lambda: [ZVersion(id=1, name="m")], ("name", "n")),
    Case(ZListened, 1, lambda: [ZListened(id=1, name="m")], ("name", "n")),
]
