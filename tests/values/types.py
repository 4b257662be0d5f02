"""Types that applications write: decorators of every habit, and the classes of their values."""

from __future__ import annotations

import base64
import copy
import dataclasses
import enum
import json
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from pydantic import AnyUrl, BaseModel, SecretStr
from sqlalchemy import JSON, Dialect, Integer, LargeBinary, Numeric, String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType


class Color(enum.Enum):
    """Two names of one value."""

    RED = "r"
    BLUE = "b"
    ROUGE = "r"  # noqa: PIE796


class Rank(enum.IntEnum):
    """Members are numbers."""

    LOW = 1
    HIGH = 2**40


class Mood(enum.StrEnum):
    """Members are text."""

    GOOD = "gut"
    BAD = "schlecht"


class Right(enum.Flag):
    """Members are sets."""

    READ = 1
    WRITE = 2
    ALL = 3


class Odd(enum.Enum):
    """Values of any type."""

    NOTHING = None
    PAIR = (1, "x")
    LIST = [1]  # noqa: RUF012


class Address(BaseModel):
    """A nested part."""

    street: str
    number: int | None = None


class Profile(BaseModel):
    """A document in a JSON column."""

    name: str
    amount: Decimal = Decimal("1.50")
    addresses: list[Address] = []
    rank: Rank = Rank.LOW


@dataclasses.dataclass
class Point:
    """A value without a database type of its own."""

    x: float
    y: float


class Slotted:
    """A mutable object that keeps `__eq__` as it is: identity."""

    __slots__ = ("__dict__", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self.length = len(text)


class ProfileType(TypeDecorator[Profile]):
    """A pydantic model in JSON."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Profile | None, dialect: Dialect) -> Any:
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> Profile | None:
        return None if value is None else Profile.model_validate(value)


class Of(TypeDecorator[Any]):
    """A pair of functions around another type; the decorator writes NULL as NULL."""

    impl = String
    cache_ok = False

    def __init__(self, impl: Any, bind: Any, result: Any) -> None:
        super().__init__()
        self.impl = self.impl_instance = impl
        self.around = impl
        self.bind = bind
        self.result = result

    def copy(self, **kw: Any) -> Of:
        return Of(self.around, self.bind, self.result)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        found: TypeEngine[Any] = dialect.type_descriptor(self.around)
        return found

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        assert isinstance(dialect, Dialect)
        return None if value is None else self.bind(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        assert isinstance(dialect, Dialect)
        return None if value is None else self.result(value)


class Sealed(TypeDecorator[str]):
    """Text that nobody may read outside of the application."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else base64.b85encode(value.encode()[::-1])

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else base64.b85decode(value)[::-1].decode()


class Cents(TypeDecorator[Decimal]):
    """Money as an integer."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Doubled(TypeDecorator[Decimal]):
    """A decorator around a decorator."""

    impl = Cents
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else value / 2

    def process_result_value(self, value: Decimal | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else value * 2


class NeverNull(TypeDecorator[list[Any]]):
    """NULL is an empty list."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: list[Any] | None, dialect: Dialect) -> str | None:
        return json.dumps(value) if value else None

    def process_result_value(self, value: str | None, dialect: Dialect) -> list[Any]:
        return json.loads(value) if value else []


class Lower(TypeDecorator[str]):
    """Changes only what is written: what is loaded is what the database has."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.lower()


class Shouted(TypeDecorator[str]):
    """Changes only what is loaded."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.upper()


class Popping(TypeDecorator[dict[str, Any]]):
    """Changes the value that it is given to bind."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        kept = value.pop("kept", 0)
        return {"kept": kept, **value}

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value


class ByDialect(TypeDecorator[Any]):
    """JSON in one database, text in another, the same value in both."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        chosen: TypeEngine[Any] = dialect.type_descriptor(JSON() if dialect.name == "postgresql" else Text())
        return chosen

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else json.loads(value)


class Hexed(UserDefinedType[bytes]):
    """Has processors of its own."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "TEXT"

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: None if value is None else value.hex()

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return lambda value: None if value is None else bytes.fromhex(value)


# Not cacheable: what each of them makes of a value cannot be had again from it, or not surely.


class OldStyle(TypeDecorator[str]):
    """Overrides what comes before the processing."""

    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: None if value is None else value[::-1]

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return lambda value: None if value is None else value[::-1]


class Growing(TypeDecorator[str]):
    """Its two directions are no inverses."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value + "!"


class LiarValue:
    """Equal to everything."""

    def __init__(self, text: str, secret: str) -> None:
        self.text = text
        self.secret = secret

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Liar(TypeDecorator[LiarValue]):
    """Forgets a part of the value when it writes it back, and its values say that this is the same."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: LiarValue | str | None, dialect: Dialect) -> str | None:
        return value.text if isinstance(value, LiarValue) else value

    def process_result_value(self, value: str | None, dialect: Dialect) -> LiarValue | None:
        return None if value is None else LiarValue(value[:1], value[1:])


class RaisingValue:
    """Nothing can be asked of it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare")

    def __repr__(self) -> str:
        raise RuntimeError("do not print")

    __hash__ = None  # type: ignore[assignment]


class Raising(TypeDecorator[RaisingValue]):
    """Its values raise."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return value if isinstance(value, str) else "x"

    def process_result_value(self, value: str | None, dialect: Dialect) -> RaisingValue:
        return RaisingValue()


class WriteOnly(TypeDecorator[str]):
    """Reads what it refuses to write."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is not None and value.startswith("*"):
            raise ValueError("already masked")
        return value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else "*" + value


class Opaque(TypeDecorator[object]):
    """Its values are identities."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return value if isinstance(value, str) else "x"

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        return object()


def path_type() -> Of:
    """Paths as text."""
    return Of(String(), str, PurePosixPath)


def url_type() -> Of:
    """Pydantic's URLs as text."""
    return Of(String(), str, AnyUrl)


def secret_type() -> Of:
    """Pydantic's secrets as text."""
    return Of(String(), SecretStr.get_secret_value, SecretStr)


def right_type() -> Of:
    """Flags as integers."""
    return Of(Integer(), lambda right: right.value, Right)


def tuple_type() -> Of:
    """Tuples as JSON."""
    return Of(JSON(), list, tuple)


def set_type() -> Of:
    """Frozen sets as JSON."""
    return Of(JSON(), sorted, frozenset)


def point_type() -> Of:
    """A dataclass as JSON."""
    return Of(JSON(), dataclasses.asdict, lambda found: Point(**found))


def slotted_type() -> Of:
    """An object without `__eq__`."""
    return Of(String(), lambda value: value._text, Slotted)


def complex_type() -> Of:
    """Complex numbers as text."""
    return Of(String(), repr, complex)


def fixed_type() -> Of:
    """A decorator around a type with a processor of its own."""
    return Of(Numeric(12, 3), copy.copy, lambda found: found.as_tuple())
