"""Values that say themselves what they are: any nesting of them to msgpack and back, and what counts as the same.

msgspec decodes untyped msgpack to None, bool, int, float, str, bytes, list, dict and aware datetimes in UTC without
help. What else may be nested in a column's value travels as an extension, whose number stands for one exact type.

Bytes that somebody else has written are refused where they would name what is no time zone, make a number that no
database holds, or take quadratic time: whoever knows how numbers and tuples are hashed can make all keys of a dict
collide.
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


class Unfit(TypeError):
    """Why a value does not travel, in words that do not show it."""


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
    raise Unfit(f"a {type(zone).__name__} without a name")


def load_zoned(wire: tuple[datetime.datetime, str | int | None]) -> datetime.datetime:
    """Return the instant in its zone."""
    instant, zone = wire
    if type(zone) is str:
        if _ZONE.fullmatch(zone) is None:  # it becomes the name of a file, or of a part of the package tzdata
            raise Unfit("not the name of a time zone")
        return instant.astimezone(zoneinfo.ZoneInfo(zone))
    if zone is None:
        return load_naive(instant)
    return instant.astimezone(datetime.timezone(datetime.timedelta(microseconds=int(zone))))


_ZONE = re.compile(r"[A-Za-z0-9_+\-]{1,40}(?:/[A-Za-z0-9_+\-]{1,40}){0,3}")

MAX_MAGNITUDE = 131_072  # digits: PostgreSQL's numbers have as many, and they can be written out


def load_decimal(value: Decimal) -> Decimal:
    """Return a number that a database may hold: `int()` of Decimal("1E+999999999") takes all memory."""
    if not -MAX_MAGNITUDE <= value.adjusted() <= MAX_MAGNITUDE:
        raise Unfit("a number beyond any column")
    return value


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
    return dict(zip(_spread(flat[::2]), flat[1::2], strict=True))


def _set(items: list[Any]) -> set[Any]:
    return set(_spread(items))


def _frozenset(items: list[Any]) -> frozenset[Any]:
    return frozenset(_spread(items))


MAX_ALIKE = 8  # different keys of one dict with the same hash: there are hardly ever two


def _spread(items: list[Any]) -> list[Any]:
    """Return the items if their hashes differ."""
    if len(items) - len(set(map(hash, items))) > MAX_ALIKE:
        raise Unfit("hashes collide")
    return items


def _range(wire: tuple[Any, Any, Any, bool]) -> Any:
    lower, upper, bounds, empty = wire
    return postgresql.Range(lower, upper, bounds=bounds, empty=empty)


# The number of a kind is its place: add at the end.
_KINDS: tuple[Kind, ...] = (
    Kind(int, bytes, lambda n: n.to_bytes(n.bit_length() // 8 + 1, "big", signed=True), _int),
    Kind(Decimal, Decimal, None, load_decimal),
    Kind(uuid.UUID, uuid.UUID),
    Kind(datetime.date, datetime.date),
    Kind(datetime.time, str, datetime.time.isoformat, datetime.time.fromisoformat),
    Kind(datetime.timedelta, datetime.timedelta),
    Kind(datetime.datetime, ZONED_WIRE, dump_zoned, load_zoned),
    Kind(tuple, list[Any], list, tuple),
    Kind(set, list[Any], list, _set),
    Kind(frozenset, list[Any], list, _frozenset),
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
        raise Unfit(f"a {kind.__module__}.{kind.__qualname__} does not travel")
    dump = _KINDS[number].dump
    wire = value if dump is None else dump(value)
    if type(wire) is list:
        wire = [pack(item) for item in wire]
    return msgspec.msgpack.Ext(number, encode(wire))


def unpack(number: int, data: memoryview) -> Any:
    """Return the value of an extension; msgspec calls it where no type is expected."""
    load = _KINDS[number].load
    if len(data) > UNSEEN:
        see(data)
    value = _DECODERS[number](data)
    return value if load is None else load(value)


_DECODERS = [msgspec.msgpack.Decoder(kind.wire, ext_hook=unpack).decode for kind in _KINDS]


# dicts whose keys collide

UNSEEN = 4_096  # bytes in which no dict has keys enough for trouble
_MANY = 64  # keys of a dict whose keys are looked at

_MAY_HAVE_MANY = re.compile(rb"\xde(?:[\x01-\xff].|\x00[\x40-\xff])|\xdf", re.DOTALL)


def see(data: bytes | memoryview) -> None:
    """Raise Unfit for msgpack with a large map whose keys are not all text; what is cut short passes.

    `pack` makes none, msgspec reads them. Text has a hash that nobody outside can foresee. Where nothing looks like the
    beginning of a large map, which is nearly always, that is all that is looked at.
    """
    if _MAY_HAVE_MANY.search(data) is None:
        return
    left, keyed = [1], [False]  # of each array or map that is open: how many items are left; whether it is a large map
    at, end = 0, len(data)
    while left:
        if left[-1] == 0:
            left.pop()
            keyed.pop()
            continue
        if at >= end or len(left) > _DEEP:
            return  # the decoder says so
        code = data[at]
        if keyed[-1] and left[-1] % 2 == 0 and not (0xA0 <= code <= 0xBF or 0xD9 <= code <= 0xDB):
            raise Unfit("a key that is no text, in a large dict")
        left[-1] -= 1
        if code < 0x80 or code >= 0xE0:
            at += 1
        elif code < 0xA0 or 0xDC <= code <= 0xDF:
            wide = 0 if code < 0xA0 else 2 if code in (0xDC, 0xDE) else 4
            count = code & 15 if wide == 0 else int.from_bytes(data[at + 1 : at + 1 + wide], "big")
            at += 1 + wide
            is_map = code < 0x90 or code >= 0xDE
            left.append(2 * count if is_map else count)
            keyed.append(is_map and count >= _MANY)
        elif code < 0xC0:
            at += 1 + (code & 31)
        else:
            wide, more = _SIZES[code]
            at += 1 + more + (int.from_bytes(data[at + 1 : at + 1 + wide], "big") + wide if wide else 0)


_DEEP = 10_000  # deeper than any decoder goes
# How many bytes of a length follow, and how many other bytes.
_SIZES = {
    0xC0: (0, 0), 0xC1: (0, 0), 0xC2: (0, 0), 0xC3: (0, 0), 0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xCA: (0, 4), 0xCB: (0, 8), 0xCC: (0, 1), 0xCD: (0, 2),
    0xCE: (0, 4), 0xCF: (0, 8), 0xD0: (0, 1), 0xD1: (0, 2), 0xD2: (0, 4), 0xD3: (0, 8), 0xD4: (0, 2),
    0xD5: (0, 3), 0xD6: (0, 5), 0xD7: (0, 9), 0xD8: (0, 17), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip


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
