"""Row to bytes and back: msgspec's msgpack, typed by the model's columns, checked at every fill.

A codec is made once for each mapped class. Each column names the Python type that its SQL type loads, and msgspec
decodes to exactly that type; a few types are carried as plain values by a pair of functions. What does not come back
as the same type and an equal value is refused by `encode`, so an unknown type costs a miss and never a wrong value.
Nothing here pickles, imports or evaluates what it reads.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import importlib
import inspect
import math
import re
import uuid
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Dialect
from sqlalchemy import types as sqltypes
from sqlalchemy.types import TypeEngine

from .errors import CodecError

LAYOUT = 1  # part of every fingerprint: change it when the payload of an unchanged model changes

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Carrier:
    """How one column travels: the type that msgspec decodes to, and conversions where that is not the column's."""

    wire: Any
    dump: Convert | None = None
    load: Convert | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """What the codec must know of a loaded attribute."""

    key: str
    name: str
    type: TypeEngine[Any]


class Codec:
    """Encodes the rows of one mapped class, as one driver loads them.

    Args:
        columns: the loaded attributes, in the order of the payload.
        dialect: a few drivers load types of their own. The payload is the same for all.
        order: the attributes in the order in which SQLAlchemy sets them in this process.

    Attributes:
        fingerprint: 8 bytes that differ when the columns, their names, their order or their types do.
    """

    def __init__(self, columns: Sequence[Column], dialect: Dialect, order: Sequence[str]) -> None:
        driver = dialect.driver
        carriers = [carrier_of(column.type, driver) for column in columns]
        # Drivers give aware datetimes in zones of different classes.
        zones = driver if any(carrier is _AWARE for carrier in carriers) else ""
        self.fingerprint = _fingerprint(columns, zones)
        self._keys = tuple(column.key for column in columns)
        self._slots = [(key, self._keys.index(key)) for key in order]
        self._dumps = [(at, c.dump) for at, c in enumerate(carriers) if c.dump is not None]
        self._loads = [(at, c.load) for at, c in enumerate(carriers) if c.load is not None]
        self._encode = msgspec.msgpack.Encoder(decimal_format="string", uuid_format="bytes").encode
        wires = tuple(c.wire if c.wire is Any else c.wire | None for c in carriers)
        self._decode: Callable[[bytes], tuple[Any, ...]] = msgspec.msgpack.Decoder(tuple[wires]).decode  # type: ignore[valid-type]

    def decode(self, payload: bytes) -> dict[str, Any]:
        """Return the row as attribute names and values.

        Raises:
            CodecError: the bytes are not a row of this class.
        """
        try:
            values: Any = self._decode(payload)
            if self._loads:
                values = list(values)
                for at, load in self._loads:
                    if values[at] is not None:
                        values[at] = load(values[at])
        except Exception as error:  # hostile bytes may raise anything; none of it is the reader's trouble
            raise CodecError(f"{type(error).__name__}: {error}") from error
        return {key: values[at] for key, at in self._slots}

    def encode(self, row: Mapping[str, Any]) -> bytes:
        """Return the payload of a row.

        Raises:
            CodecError: a value would not come back as it is; the message names the attribute.
        """
        try:
            values = [row[key] for key in self._keys]
            wire = list(values)
            for at, dump in self._dumps:
                if wire[at] is not None:
                    wire[at] = dump(wire[at])
            payload = self._encode(wire)
        except Exception as error:  # whatever a value's own methods raise, the row is merely not cached
            raise CodecError(f"{type(error).__name__}: {error}") from error
        back = self.decode(payload)
        for key, value in zip(self._keys, values, strict=True):
            if not same(value, back[key]):
                raise CodecError(f"attribute {key!r}: a {type(value).__name__} does not survive the round trip")
        return payload


def same(a: object, b: object) -> bool:
    """Return whether two values cannot be told apart: the same type at every depth, equal, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float) and isinstance(b, float):
        return math.copysign(1, a) == math.copysign(1, b) if a == b else a != a and b != b
    if isinstance(a, Decimal) and isinstance(b, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(k, m) and same(a[k], b[m]) for k, m in zip(a, b, strict=True))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, datetime.datetime | datetime.time) and isinstance(b, datetime.datetime | datetime.time):
        return a == b and a.fold == b.fold and same(a.tzinfo, b.tzinfo)
    return a == b


def plain_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that decides on the Python values: below decorators that leave results as they are.

    SQLModel declares every `str` through such a decorator.
    """
    while isinstance(type_, sqltypes.TypeDecorator) and all(
        getattr(type(type_), method) is getattr(sqltypes.TypeDecorator, method)
        for method in ("process_result_value", "result_processor", "process_bind_param", "bind_processor")
    ):
        type_ = type_.impl_instance
    return type_


def carrier_of(type_: TypeEngine[Any], driver: str) -> Carrier:
    """Return how values of a SQL type travel; an unknown type travels as it is, if it can."""
    type_ = plain_type(type_)
    if isinstance(type_, sqltypes.Interval):  # a decorator of SQLAlchemy's own
        return Carrier(datetime.timedelta)
    if isinstance(type_, sqltypes.TypeDecorator):
        return _AS_IT_IS
    if isinstance(type_, sqltypes.Enum):
        return _enum(type_.enum_class) if type_.enum_class else Carrier(str)
    if isinstance(type_, sqltypes.Numeric):
        return Carrier(Decimal if type_.asdecimal else float)
    if isinstance(type_, sqltypes.Uuid):
        return _uuid(driver) if type_.as_uuid else Carrier(str)
    if isinstance(type_, sqltypes.DateTime):
        return _AWARE if type_.timezone else Carrier(datetime.datetime)
    for known, carrier in _CARRIERS:
        if isinstance(type_, known):
            return carrier
    return _AS_IT_IS


def _uuid(driver: str) -> Carrier:
    if driver != "asyncpg":
        return Carrier(uuid.UUID)
    faster: Any = importlib.import_module("asyncpg.pgproto.pgproto").UUID  # a subclass of uuid.UUID
    return Carrier(uuid.UUID, lambda value: uuid.UUID(int=value.int), lambda value: faster(value.bytes))


def _enum(enum_class: type[enum.Enum]) -> Carrier:
    # By name: values may be of any type, and several members may share one.
    return Carrier(str, lambda member: member.name, lambda name: enum_class[name])


def _dump_aware(value: datetime.datetime) -> tuple[str, str, int]:
    zone = value.tzinfo
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        return value.replace(tzinfo=None).isoformat(), zone.key, value.fold
    return value.isoformat(), "", 0


def _load_aware(wire: tuple[str, str, int]) -> datetime.datetime:
    text, zone, fold = wire
    value = datetime.datetime.fromisoformat(text)
    return value.replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold) if zone else value


_AS_IT_IS = Carrier(Any)
_AWARE = Carrier(tuple[str, str, int], _dump_aware, _load_aware)
_CARRIERS: tuple[tuple[type[TypeEngine[Any]], Carrier], ...] = (
    (sqltypes.Integer, Carrier(int)),
    (sqltypes.Boolean, Carrier(bool)),
    (sqltypes.String, Carrier(str)),
    (sqltypes.LargeBinary, Carrier(bytes)),
    (sqltypes.BINARY, Carrier(bytes)),
    (sqltypes.VARBINARY, Carrier(bytes)),
    (sqltypes.Date, Carrier(datetime.date)),
    (sqltypes.Time, Carrier(datetime.time)),
)


def _fingerprint(columns: Sequence[Column], zones: str) -> bytes:
    described = [str(LAYOUT), zones, *(f"{c.key}\0{c.name}\0{_described(c.type)}" for c in columns)]
    # A repr may hold an object's address, which differs between processes that must agree.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", "\1".join(described))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _described(type_: TypeEngine[Any]) -> str:
    """Return the class of a type and its arguments; a decorator's own, too, by the names in its `__init__`."""
    text = f"{type(type_).__module__}.{type(type_).__qualname__}\0{type_!r}"
    if isinstance(type_, sqltypes.TypeDecorator):
        names = {name for owner in type(type_).__mro__ for name in _parameters(owner)}
        given = {name: getattr(type_, name) for name in sorted(names) if name in vars(type_)}
        text += f"\0{given!r}"
    return text


def _parameters(owner: type) -> list[str]:
    initialiser = vars(owner).get("__init__")
    return [] if initialiser is None or owner is object else list(inspect.signature(initialiser).parameters)
