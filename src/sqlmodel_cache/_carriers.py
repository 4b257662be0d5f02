"""How the values of one SQL type travel: what msgspec reads, and conversions where that is not the column's own type.

A decorator's value travels as the value that it would bind, and a hit gives it to `process_result_value`, as a SELECT
does. So what a decorator encrypts is encrypted in the cache. Whether that is the same value, the codec looks at every
fill.
"""

from __future__ import annotations

import copy
import datetime
import enum
import importlib
import uuid
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import sqlalchemy
from sqlalchemy import Dialect
from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from ._values import ZONED_WIRE, Convert, Unfit, dump_naive, dump_zoned, load_decimal, load_naive, load_zoned, pack

try:
    from sqlmodel import UTCDateTime as _UTCDateTime
except ImportError:  # new in SQLModel 0.0.45
    _UTCDateTime = None  # type: ignore[assignment, misc]


@dataclass(frozen=True, slots=True)
class Carrier:
    """How one column travels.

    Attributes:
        way: a part of the fingerprint: other bytes, or other values from the same bytes, have another way.
        wire: the type that msgspec decodes to; None is always one, too.
        dump: makes what is encoded from a value.
        load: makes a value from what is decoded.
        nulls: `dump` and `load` see None, too.
        nested: `pack` alone carries such a value inside of another, as in an array.
        kinds: the exact types of its values, where they are known.
    """

    way: str
    wire: Any
    dump: Convert | None = None
    load: Convert | None = None
    nulls: bool = False
    nested: bool = True
    kinds: tuple[type, ...] = ()


def plain_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that decides on the Python values: below decorators that leave results as they are.

    SQLModel declares every `str` through such a decorator.
    """
    while isinstance(type_, TypeDecorator) and not any(
        _overrides(type_, name)
        for name in ("process_result_value", "result_processor", "process_bind_param", "bind_processor")
    ):
        type_ = type_.impl_instance
    return type_


def carrier_of(type_: TypeEngine[Any], dialect: Dialect) -> Carrier:
    """Return how values of a SQL type travel; an unknown type travels as it is, if it can."""
    if _UTCDateTime is not None and type(type_) is _UTCDateTime:
        return INSTANT  # what its methods do is known, and costs more than all the rest of a row
    chosen = type_.dialect_impl(dialect)  # a variant, or what a decorator's load_dialect_impl() says
    if isinstance(chosen, sqltypes.Interval | postgresql.INTERVAL):
        return Carrier("timedelta", datetime.timedelta, kinds=(datetime.timedelta,))
    if isinstance(chosen, TypeDecorator):
        return _decorated(chosen, dialect)
    if isinstance(type_, sqltypes.Double) and isinstance(chosen, sqltypes.Float):
        return _numeric(chosen, dialect)
    for known, carrier in _CARRIERS:
        if isinstance(chosen, known):
            return carrier
    make = next((make for known, make in _MAKERS if isinstance(chosen, known)), None)
    return as_it_is(dialect) if make is None else make(chosen, dialect)


def as_it_is(dialect: Dialect) -> Carrier:
    """Return how values travel whose types are the driver's choice, or that of this release of SQLAlchemy."""
    release = ".".join(sqlalchemy.__version__.split(".")[:2])
    return Carrier(f"any {_driver(dialect)} {release}", Any, pack)


def _driver(dialect: Dialect) -> str:
    """Return what decides on the types that are not SQLAlchemy's to decide; SQLite has but one."""
    return dialect.name if dialect.name == "sqlite" else f"{dialect.name} {dialect.driver}"


def refused(why: str) -> Carrier:
    """Return how values travel that must not: None does, anything else is an error."""

    def dump(value: Any) -> Any:
        raise Unfit(why)

    return Carrier("refused", type(None), dump, nested=False)


# decorators


def _overrides(type_: TypeDecorator[Any], name: str) -> bool:
    return getattr(type(type_), name) is not getattr(TypeDecorator, name)


def _decorated(type_: TypeDecorator[Any], dialect: Dialect) -> Carrier:
    if _overrides(type_, "bind_processor") or _overrides(type_, "result_processor"):
        return refused(f"{type(type_).__name__} overrides bind_processor or result_processor")
    impl = carrier_of(type_.impl_instance, dialect)
    if not _overrides(type_, "process_result_value"):
        return impl  # what is loaded is the impl's own value
    binds = _overrides(type_, "process_bind_param")

    def dump(value: Any) -> Any:
        # It may change what it is given, and this is the object that the application will see.
        wire = type_.process_bind_param(copy.deepcopy(value), dialect) if binds else value
        return wire if impl.dump is None or (wire is None and not impl.nulls) else impl.dump(wire)

    def load(wire: Any) -> Any:
        value = wire if impl.load is None or (wire is None and not impl.nulls) else impl.load(wire)
        return type_.process_result_value(value, dialect)

    def load_plain(wire: Any) -> Any:
        return type_.process_result_value(wire, dialect)

    loads = load_plain if impl.load is None else load
    return Carrier(f"bound {impl.way}", impl.wire, dump, loads, nulls=True, nested=False)


# types that are made of others, or of classes


def _enum(type_: sqltypes.Enum, dialect: Dialect) -> Carrier:
    enum_class: type[enum.Enum] | None = type_.enum_class
    if enum_class is None:
        return Carrier("str", str, kinds=(str,))
    # By name: values may be of any type, and several members may share one.
    members = dict(enum_class.__members__)
    way = f"enum {list(type_.enums)} {[(name, repr(member.value)) for name, member in members.items()]}"
    return Carrier(way, str, _name_of, members.__getitem__, nested=False)


def _name_of(member: enum.Enum) -> str:
    return member.name


def _numeric(type_: sqltypes.Numeric[Any] | sqltypes.Float[Any], dialect: Dialect) -> Carrier:
    # SQLite gives whole numbers of a NUMERIC as int.
    if type_.asdecimal:
        return Carrier("decimal", Decimal, None, load_decimal, kinds=(Decimal,))
    return Carrier("float", float | int, kinds=(float, int))


def _float(type_: sqltypes.Float[Any], dialect: Dialect) -> Carrier:
    # A column of four bytes is read as 0.1 by one driver, and as 0.10000000149011612 by another.
    known = _numeric(type_, dialect)
    return replace(known, way=f"{known.way} {_driver(dialect)}")


def _uuid(type_: sqltypes.Uuid[Any], dialect: Dialect) -> Carrier:
    if not type_.as_uuid:
        return Carrier("str", str, kinds=(str,))
    if dialect.driver != "asyncpg" or not type_.native_uuid:
        return Carrier("uuid", uuid.UUID, kinds=(uuid.UUID,))
    faster: Any = importlib.import_module("asyncpg.pgproto.pgproto").UUID  # a subclass of uuid.UUID
    return Carrier("uuid", bytes, lambda value: value.bytes, faster, nested=False)


def _datetime(type_: sqltypes.DateTime, dialect: Dialect) -> Carrier:
    if not type_.timezone or dialect.name == "sqlite":
        return NAIVE
    if dialect.driver == "asyncpg":
        return INSTANT
    return Carrier(f"zoned {dialect.driver}", ZONED_WIRE, dump_zoned, load_zoned)


def _array(type_: sqltypes.ARRAY[Any], dialect: Dialect) -> Carrier:
    item = carrier_of(type_.item_type, dialect)
    whole = tuple if type_.as_tuple else list
    if item.nested:
        return Carrier(f"array {item.way}", Any, pack, lambda wire: _checked(wire, whole, item.kinds))
    if item.wire not in (str, bytes, int, float, bool):
        return refused("the items of this array may be arrays")
    dump, load = item.dump, item.load
    assert dump is not None  # noqa: S101  otherwise it would be nested
    return Carrier(
        f"array {item.way} {item.wire.__name__}",
        Any,
        lambda value: pack(_map(value, dump, item.nulls)),
        lambda wire: _map(_checked(wire, whole, (item.wire,)), load or _as_it_is, item.nulls),
    )


def _as_it_is(value: Any) -> Any:
    return value


def _checked(value: Any, whole: type, kinds: tuple[type, ...]) -> Any:
    """Return an array of any depth whose items have one of these types, or are None; of none, whatever they are."""
    kind: object = type(value)
    if kind is not whole:
        raise Unfit(f"not a {whole.__name__}")
    items: Any = value
    if kinds:
        for item in items:
            if type(item) is whole:
                _checked(item, whole, kinds)
            elif item is not None and type(item) not in kinds:
                raise Unfit(f"a {type(item).__name__} in an array")
    return value


def _map(value: Any, convert: Convert, nulls: bool) -> Any:
    if type(value) is list:
        return [_map(item, convert, nulls) for item in value]
    if type(value) is tuple:
        return tuple([_map(item, convert, nulls) for item in value])
    return convert(value) if nulls or value is not None else None


def _range(type_: TypeEngine[Any], dialect: Dialect) -> Carrier:
    zoned = postgresql.TSTZRANGE, postgresql.TSTZMULTIRANGE
    carrier = as_it_is(dialect) if isinstance(type_, zoned) else ANY
    return replace(carrier, load=_several if isinstance(type_, postgresql.ranges.AbstractMultiRange) else _one_range)


def _one_range(value: Any) -> Any:
    if type(value) is not postgresql.Range:
        raise Unfit("not a range")
    return value


def _several(value: Any) -> Any:
    kind: object = type(value)
    if kind is not postgresql.ranges.MultiRange:
        raise Unfit("not a multirange")
    for item in value:
        _one_range(item)
    return value


ANY = Carrier("any", Any, pack)
INSTANT = Carrier("instant", datetime.datetime)
NAIVE = Carrier("naive", datetime.datetime, dump_naive, load_naive)

_CARRIERS: tuple[tuple[type[TypeEngine[Any]], Carrier], ...] = (
    (sqltypes.Integer, Carrier("int", int, kinds=(int,))),
    (sqltypes.Boolean, Carrier("bool", bool, kinds=(bool,))),
    (sqltypes.LargeBinary, Carrier("bytes", bytes, kinds=(bytes,))),
    (sqltypes.BINARY, Carrier("bytes", bytes, kinds=(bytes,))),
    (sqltypes.VARBINARY, Carrier("bytes", bytes, kinds=(bytes,))),
    (sqltypes.Date, Carrier("date", datetime.date, kinds=(datetime.date,))),
    (sqltypes.JSON, ANY),
    (postgresql.HSTORE, ANY),
)
_TIME = Carrier("time", datetime.time)
_TIMETZ = Carrier("timetz", str, datetime.time.isoformat, datetime.time.fromisoformat)
_MAKERS: tuple[tuple[type[TypeEngine[Any]], Any], ...] = (
    (sqltypes.Enum, _enum),
    (sqltypes.String, lambda type_, dialect: Carrier("str", str, kinds=(str,))),
    (sqltypes.Float, _float),
    (sqltypes.Numeric, _numeric),
    (sqltypes.Uuid, _uuid),
    (sqltypes.DateTime, _datetime),
    (sqltypes.Time, lambda type_, dialect: _TIMETZ if type_.timezone else _TIME),
    (sqltypes.ARRAY, _array),
    (postgresql.ranges.AbstractRange, _range),
)
