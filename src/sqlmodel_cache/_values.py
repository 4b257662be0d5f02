"""Values that say themselves what they are: any nesting of them to msgpack and back, and what counts as the same.

msgspec decodes untyped msgpack to None, bool, int, float, str, bytes, list, dict and aware datetimes in UTC without
help. What else may be nested in a column's value travels as an extension, whose number stands for one exact type.
"""

from __future__ import annotations

import datetime
import enum
import fractions
import ipaddress
import math
import pathlib
import re
import struct
import types
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import msgspec
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.ranges import MultiRange

Convert = Callable[[Any], Any]

encode = msgspec.msgpack.Encoder(decimal_format="string", uuid_format="bytes").encode

EPOCH = datetime.datetime(1970, 1, 1)
EPOCH_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def dump_naive(value: datetime.datetime) -> datetime.datetime:
    """Return the instant that a naive datetime would be in UTC: msgpack's timestamps are shorter than text."""
    return EPOCH_UTC + (value - EPOCH)


def load_naive(value: datetime.datetime) -> datetime.datetime:
    """Return the naive datetime again; both are aware of the same UTC, so this does not ask for its offset."""
    return EPOCH + (value - EPOCH_UTC)


def dump_zoned(value: datetime.datetime) -> tuple[datetime.datetime, str | int | None]:
    """Return an instant and its zone: the reader's own rules make the wall clock of it, as in the reader's SELECT."""
    zone = value.tzinfo
    if zone is None:
        return dump_naive(value), None
    # Arithmetic in the value's own zone would be of wall clocks, so first to UTC.
    instant = value.astimezone(datetime.UTC)
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        return instant, zone.key
    if type(zone) is datetime.timezone:
        return instant, zone.utcoffset(None) // datetime.timedelta(microseconds=1)
    raise TypeError(f"a {type(zone).__name__} without a name")


def load_zoned(wire: tuple[datetime.datetime, str | int | None]) -> datetime.datetime:
    """Return the instant in its zone."""
    instant, zone = wire
    if type(zone) is str:
        return instant.astimezone(zoneinfo.ZoneInfo(zone))
    if zone is None:
        return load_naive(instant)
    return instant.astimezone(datetime.timezone(datetime.timedelta(microseconds=int(zone))))


ZONED_WIRE = tuple[datetime.datetime, str | int | None]


# extensions


@dataclass(frozen=True, slots=True)
class Kind:
    """An exact type that is not msgpack's own: what msgspec reads in its extension, and conversions around that."""

    type: type
    wire: Any
    dump: Convert | None = None
    load: Convert | None = None


def _int(wire: bytes) -> int:
    return int.from_bytes(wire, "big", signed=True)


def _items(value: dict[Any, Any]) -> list[Any]:
    return [part for pair in value.items() for part in pair]


def _dict(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _range(wire: tuple[Any, Any, Any, bool]) -> Any:
    lower, upper, bounds, empty = wire
    return postgresql.Range(lower, upper, bounds=bounds, empty=empty)


# The number of a kind is its place: add at the end.
_KINDS: tuple[Kind, ...] = (
    Kind(int, bytes, lambda n: n.to_bytes(n.bit_length() // 8 + 1, "big", signed=True), _int),
    Kind(Decimal, Decimal),
    Kind(uuid.UUID, uuid.UUID),
    Kind(datetime.date, datetime.date),
    Kind(datetime.time, str, datetime.time.isoformat, datetime.time.fromisoformat),
    Kind(datetime.timedelta, datetime.timedelta),
    Kind(datetime.datetime, ZONED_WIRE, dump_zoned, load_zoned),
    Kind(tuple, list[Any], list, tuple),
    Kind(set, list[Any], list, set),
    Kind(frozenset, list[Any], list, frozenset),
    Kind(dict, list[Any], _items, _dict),  # with keys that are not all str
    Kind(ipaddress.IPv4Address, str, str, ipaddress.IPv4Address),
    Kind(ipaddress.IPv6Address, str, str, ipaddress.IPv6Address),
    Kind(ipaddress.IPv4Network, str, str, ipaddress.IPv4Network),
    Kind(ipaddress.IPv6Network, str, str, ipaddress.IPv6Network),
    Kind(ipaddress.IPv4Interface, str, str, ipaddress.IPv4Interface),
    Kind(ipaddress.IPv6Interface, str, str, ipaddress.IPv6Interface),
    Kind(
        postgresql.Range,
        tuple[Any, Any, Literal["()", "[)", "(]", "[]"], bool],
        lambda r: [r.lower, r.upper, r.bounds, r.empty],
        _range,
    ),
    Kind(MultiRange, list[Any], list, MultiRange),
)
if hasattr(postgresql, "BitString"):  # new in SQLAlchemy 2.1
    _KINDS += (Kind(postgresql.BitString, str, str, postgresql.BitString),)


_NUMBERS = {kind.type: number for number, kind in enumerate(_KINDS)}
_PLAIN = frozenset({type(None), bool, float, str, bytes})


def pack(value: Any) -> Any:
    """Return a value that msgspec encodes, and decodes untyped, with `unpack`, to the same.

    Raises:
        TypeError: there is something in it of a type that does not travel.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int and -(2**63) <= value < 2**64:
        return value
    if kind is list:
        return [pack(item) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: pack(item) for key, item in value.items()}
    if kind is datetime.datetime and value.tzinfo is datetime.UTC:
        return value
    number = _NUMBERS.get(kind)
    if number is None:
        raise TypeError(f"a {kind.__module__}.{kind.__qualname__} does not travel")
    dump = _KINDS[number].dump
    wire = value if dump is None else dump(value)
    if type(wire) is list:
        wire = [pack(item) for item in wire]
    return msgspec.msgpack.Ext(number, encode(wire))


def unpack(number: int, data: memoryview) -> Any:
    """Return the value of an extension; msgspec calls it where no type is expected."""
    load = _KINDS[number].load
    value = _DECODERS[number](data)
    return value if load is None else load(value)


_DECODERS = [msgspec.msgpack.Decoder(kind.wire, ext_hook=unpack).decode for kind in _KINDS]


# what is the same

# Immutable, and `==` between two of one type says everything. Lazily computed attributes of theirs say nothing.
_HONEST: tuple[type, ...] = (
    int, str, bytes, complex, uuid.UUID, datetime.date, datetime.timedelta, fractions.Fraction, re.Pattern, range,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
    ipaddress.IPv4Interface, ipaddress.IPv6Interface,
)  # fmt: skip
_BUILT_IN = frozenset({float, Decimal, datetime.datetime, datetime.time, dict, list, tuple, set, frozenset})

_Seen = dict[tuple[int, int], tuple[Any, Any]]


def same(a: object, b: object) -> bool:
    """Return whether two values cannot be told apart: the same type at every depth, equal, NaN included.

    What an object's `__eq__` says is not enough: its attributes must be the same, too. Where it has no `__eq__`, they
    are all that there is to compare.
    """
    return _same(a, b, {})


def _same(a: Any, b: Any, seen: _Seen) -> bool:
    kind = type(a)
    if kind is not type(b):
        return False
    if a is b:
        return True
    if kind in _HONEST or isinstance(a, uuid.UUID):  # asyncpg's has no room for the slots of its base
        return bool(a == b)
    if (id(a), id(b)) in seen:
        return True  # compared before, or being compared further up
    seen[id(a), id(b)] = a, b
    if kind in _BUILT_IN:
        return _same_content(a, b, seen)
    if isinstance(a, enum.Enum | type | types.FunctionType | types.ModuleType):
        return False  # these are what they are
    state = list(_state(a))
    if not _same_content(a, b, seen) or not _all_same(state, list(_state(b)), seen):
        return False
    equals: Any = kind.__eq__
    if equals is object.__eq__:
        return bool(state) and not _hides(kind)
    return bool(a == b)


def _same_content(a: Any, b: Any, seen: _Seen) -> bool:
    """Compare what a built-in type, or a subclass of it, holds apart from attributes."""
    if isinstance(a, float):
        x, y = float.__float__(a), float.__float__(b)
        return math.copysign(1, x) == math.copysign(1, y) if x == y else x != x and y != y
    if isinstance(a, Decimal):
        return bool(a.as_tuple() == b.as_tuple())
    if isinstance(a, datetime.datetime | datetime.time):
        return a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and _same_zone(a.tzinfo, b.tzinfo)
    if isinstance(a, dict):
        return _all_same(dict.keys(a), dict.keys(b), seen) and _all_same(dict.values(a), dict.values(b), seen)
    if isinstance(a, list):
        return _all_same(list.copy(a), list.copy(b), seen)
    if isinstance(a, tuple):
        return _all_same(tuple.__getitem__(a, _ALL), tuple.__getitem__(b, _ALL), seen)
    if isinstance(a, set | frozenset):
        return {(type(x), x) for x in a} == {(type(x), x) for x in b} and all(type(x) in _HONEST for x in a)
    return all(base.__eq__(a, b) is True for base in _SCALARS if isinstance(a, base))


_ALL = slice(None)
_SCALARS: tuple[Any, ...] = (int, str, bytes)


def _all_same(a: Any, b: Any, seen: _Seen) -> bool:
    return len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))


def _state(value: object) -> Iterator[Any]:
    """Yield an object's attributes, those in `__slots__` too."""
    given = getattr(value, "__dict__", None)
    if given:
        yield dict(given)
    for name in _slots(type(value)):
        try:
            yield name, getattr(value, name)
        except AttributeError:
            continue


def _slots(kind: type) -> list[str]:
    members = [item for owner in kind.__mro__ for item in vars(owner).items()]
    return [name for name, member in members if isinstance(member, types.MemberDescriptorType)]


def _hides(kind: type) -> bool:
    """Return whether instances have room for more than their attributes: something that C code keeps in them."""
    pointers = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ > 0 or kind.__basicsize__ > object.__basicsize__ + pointers * struct.calcsize("P")


def _same_zone(a: datetime.tzinfo | None, b: datetime.tzinfo | None) -> bool:
    if a is b:
        return True
    if isinstance(a, zoneinfo.ZoneInfo) and isinstance(b, zoneinfo.ZoneInfo):
        return type(a) is type(b) and a.key is not None and a.key == b.key
    return type(a) is type(b) is datetime.timezone and repr(a) == repr(b)
