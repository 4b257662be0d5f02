"""The table of column types: each with its values, and whether the library says that it carries them."""

from __future__ import annotations

import datetime
import enum
import ipaddress
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import AnyUrl, SecretStr
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import Range
from sqlmodel import AutoString
from values import generate as g
from values import types as t

from sqlmodel_cache import CacheConfig

try:
    from sqlmodel import UTCDateTime
except ImportError:
    UTCDateTime = None  # type: ignore[assignment, misc]

BOTH = ("sqlite", "postgresql")
PG = ("postgresql",)


@dataclass(frozen=True)
class Case:
    """One column type.

    Attributes:
        values: what hypothesis generates for it.
        extra: values that must be among them.
        on: the databases that have it.
        cached: whether its rows are stored; False for none of them but those with NULL.
        null: whether a row with None is added, and cached.
    """

    name: str
    type: Any
    values: SearchStrategy[Any]
    extra: tuple[Any, ...] = ()
    on: tuple[str, ...] = BOTH
    cached: bool = True
    null: bool = True


def values_of(class_: type[enum.Enum]) -> list[str]:
    """Return what an enum by value stores."""
    return [str(member.value) for member in class_]


INF, NAN = float("inf"), float("nan")
MEGABYTE = "ä€😀\n" * 100_000
ips = st.ip_addresses(v=4) | st.ip_addresses(v=6)
nets = st.ip_addresses(v=4).map(lambda ip: ipaddress.ip_network((ip, 20), strict=False))


def ranges(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return ranges with every kind of bounds."""
    pairs = st.lists(values | st.none(), min_size=2, max_size=2).map(
        lambda two: two if None in two else sorted(two)  # type: ignore[type-var]
    )
    bounds = st.sampled_from(["[)", "()", "(]", "[]"])
    return st.builds(lambda two, b: Range(*two, bounds=b), pairs, bounds) | st.just(Range(empty=True))


def several(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return multiranges."""
    return st.lists(ranges(values), max_size=3).map(lambda many: [r for r in many if not r.empty])


small = st.integers(-(2**31) + 1, 2**31 - 2)
recent = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
recent_aware = recent.map(lambda at: at.replace(tzinfo=datetime.UTC))
recent_dates = st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1))
money = st.integers(-(10**9), 10**9).map(lambda n: Decimal(n) / 100)

CASES = [
    Case("integer", sa.Integer(), g.int32, (2**31 - 1, -(2**31), 0)),
    Case("bigint", sa.BigInteger(), g.int64, (2**63 - 1, -(2**63))),
    Case("smallint", sa.SmallInteger(), st.integers(-(2**15), 2**15 - 1)),
    Case("boolean", sa.Boolean(), st.booleans()),
    Case("float", sa.Float(), g.floats, (INF, -INF, NAN, -0.0, 5e-324)),
    Case("double", sa.Double(), g.floats, (INF, -0.0)),
    Case("real", sa.REAL(), st.floats(width=32), (0.1,)),
    Case("float-as-decimal", sa.Float(asdecimal=True), g.decimals(3, 12)),
    Case("numeric", sa.Numeric(20, 6), g.decimals(6, 14), (Decimal("1.500000"), Decimal("-0"))),
    Case("numeric-without-scale", sa.Numeric(), st.decimals(allow_nan=False), (Decimal("NaN"), Decimal("1.50")), on=PG),
    Case("numeric-as-float", sa.Numeric(12, 3, asdecimal=False), g.decimals(3, 12)),
    Case("string", sa.String(), g.text, (MEGABYTE, "", "\x7f")),
    Case("string-of-length", sa.String(30), g.text),
    Case("autostring", AutoString(), g.text),
    Case("text", sa.Text(), g.text, (MEGABYTE,)),
    Case("unicode", sa.Unicode(), g.text),
    Case("unicode-text", sa.UnicodeText(), g.text),
    Case("char", sa.CHAR(12), g.words, ("", "x ")),
    Case("bytes", sa.LargeBinary(), st.binary(), (bytes(range(256)), b"", bytes(1_000_000))),
    Case("varbinary", sa.VARBINARY(300), st.binary(max_size=300), on=("sqlite",)),
    Case("date", sa.Date(), g.dates, (datetime.date.min, datetime.date.max)),
    Case("time", sa.Time(), g.times),
    Case("time-with-zone", sa.Time(timezone=True), g.zoned_times, on=PG),
    Case("datetime", sa.DateTime(), g.naive, (datetime.datetime.min, datetime.datetime.max)),
    Case("datetime-with-zone", sa.DateTime(timezone=True), g.aware, on=PG),
    Case("datetime-with-zone-lost", sa.DateTime(timezone=True), g.naive, on=("sqlite",)),
    Case("timestamp-of-precision", pg.TIMESTAMP(timezone=True, precision=3), g.aware, on=PG),
    Case("interval", sa.Interval(), g.spans, on=PG),
    Case("interval-as-datetime", sa.Interval(), st.timedeltas(datetime.timedelta(0)).filter(lambda s: s.days < 10**6),
         on=("sqlite",)),
    Case("interval-of-postgresql", pg.INTERVAL(), g.spans, on=PG),
    Case("uuid", sa.Uuid(), st.uuids(), (uuid.UUID(int=0),)),
    Case("uuid-as-text", sa.Uuid(as_uuid=False), st.uuids().map(str)),
    Case("uuid-in-char", sa.Uuid(native_uuid=False), st.uuids()),
    Case("uuid-upper", sa.UUID(), st.uuids()),
    Case("enum-by-name", sa.Enum(t.Color, name="v_color"), st.sampled_from(t.Color)),
    Case("enum-by-value", sa.Enum(t.Mood, name="v_mood", values_callable=values_of), st.sampled_from(t.Mood)),
    Case("int-enum", sa.Enum(t.Rank, name="v_rank"), st.sampled_from(t.Rank)),
    Case("str-enum", sa.Enum(t.Mood, name="v_mood2"), st.sampled_from(t.Mood)),
    Case("odd-enum", sa.Enum(t.Odd, name="v_odd"), st.sampled_from(t.Odd)),
    Case("flag-by-name", sa.Enum(t.Right, name="v_right"), st.sampled_from([t.Right.READ, t.Right.WRITE])),
    Case("enum-of-text", sa.Enum("a", "b", name="v_text"), st.sampled_from(["a", "b"])),
    Case("enum-not-native", sa.Enum(t.Color, native_enum=False, length=9), st.sampled_from(t.Color)),
    Case("json", sa.JSON(), g.documents, (sa.JSON.NULL, [NAN], 2**64 - 1), on=("sqlite",)),
    Case("json-of-postgresql", sa.JSON(), g.documents, (sa.JSON.NULL, 2**63, 2**64), on=PG),
    Case("json-none-as-null", sa.JSON(none_as_null=True), g.documents),
    Case("json-vast", sa.JSON(), g.vast_documents),
    # decorators
    Case("pydantic-model", t.ProfileType(), st.builds(t.Profile, name=g.text, amount=g.decimals(2, 8), rank=st.just(
        t.Rank.HIGH), addresses=st.lists(st.builds(t.Address, street=g.text, number=g.int32), max_size=2))),
    Case("sealed", t.Sealed(), g.text),
    Case("cents", t.Cents(), st.integers(-(10**8), 10**8).map(lambda n: Decimal(n) / 100)),
    Case("decorated-decorator", t.Doubled(), st.integers(-(10**8), 10**8).map(lambda n: Decimal(n) / 50)),
    Case("never-null", t.NeverNull(), st.lists(g.int32 | g.text, max_size=4)),
    Case("bind-only", t.Lower(), g.words),
    Case("result-only", t.Shouted(), g.words),
    Case("popping", t.Popping(), st.dictionaries(g.words, g.int32, max_size=3)),
    Case("by-dialect", t.ByDialect(), g.documents.filter(lambda v: v is not None)),
    Case("path", t.path_type(), g.words.map(t.PurePosixPath)),
    Case("any-url", t.url_type(), g.words.map(lambda w: AnyUrl(f"https://{w}.example/{w}?q=1"))),
    Case("secret-str", t.secret_type(), g.text.map(SecretStr)),
    Case("flag", t.right_type(), st.sampled_from([t.Right(0), *t.Right])),
    Case("tuple", t.tuple_type(), st.lists(g.int32 | g.text, max_size=4).map(tuple)),
    Case("frozenset", t.set_type(), st.frozensets(g.int32, max_size=4)),
    Case("dataclass", t.point_type(), st.builds(t.Point, g.finite, g.finite)),
    Case("object", t.slotted_type(), g.text.map(t.Slotted)),
    Case("complex", t.complex_type(), st.complex_numbers(allow_nan=False, allow_infinity=False)),
    Case("user-defined", t.Hexed(), st.binary(max_size=20)),
    # variants
    Case("variant-json", sa.JSON().with_variant(pg.JSONB(), "postgresql"), g.documents),
    Case("variant-of-another-type", sa.String(30).with_variant(sa.Integer(), "sqlite"), g.int32, on=("sqlite",)),
    Case("variant-to-a-decorator", sa.Integer().with_variant(t.Cents(), "postgresql"), money.map(
        lambda m: m % 1000), on=PG),
    # PostgreSQL
    Case("jsonb", pg.JSONB(), g.documents, (sa.JSON.NULL, 10**30, [10**30, 1.5]), on=PG),
    Case("array-of-integer", pg.ARRAY(sa.Integer), st.lists(g.int32 | st.none(), max_size=5), on=PG),
    Case("array-nested", sa.ARRAY(sa.BigInteger), st.lists(st.lists(g.int64, min_size=2, max_size=2), max_size=3),
         on=PG),
    Case("array-of-two-dimensions", pg.ARRAY(sa.Text, dimensions=2),
         st.lists(st.lists(g.text, min_size=2, max_size=2), max_size=3), on=PG),
    Case("array-of-text", sa.ARRAY(sa.String), st.lists(g.text | st.none(), max_size=5), on=PG),
    Case("array-of-float", sa.ARRAY(sa.Float), st.lists(g.floats, max_size=5), ([NAN, -0.0, INF],), on=PG),
    Case("array-of-bool", sa.ARRAY(sa.Boolean), st.lists(st.booleans() | st.none(), max_size=5), on=PG),
    Case("array-of-bytes", sa.ARRAY(sa.LargeBinary), st.lists(st.binary(max_size=9), max_size=5), on=PG),
    Case("array-of-numeric", sa.ARRAY(sa.Numeric(12, 3)), st.lists(g.decimals(3, 12), max_size=5), on=PG),
    Case("array-of-uuid", sa.ARRAY(sa.Uuid), st.lists(st.uuids() | st.none(), max_size=4), on=PG),
    Case("array-of-date", sa.ARRAY(sa.Date), st.lists(g.dates, max_size=4), on=PG),
    Case("array-of-datetime", sa.ARRAY(sa.DateTime), st.lists(g.naive | st.none(), max_size=4), on=PG),
    Case("array-of-aware", sa.ARRAY(sa.DateTime(timezone=True)), st.lists(g.aware, max_size=4), on=PG),
    Case("array-of-interval", sa.ARRAY(pg.INTERVAL), st.lists(g.spans, max_size=4), on=PG),
    Case("array-of-enum", sa.ARRAY(sa.Enum(t.Mood, name="v_mood3")), st.lists(st.sampled_from(t.Mood) | st.none(),
         max_size=4), on=PG),
    Case("array-as-tuple", pg.ARRAY(sa.Integer, as_tuple=True), st.lists(g.int32, max_size=4), on=PG),
    Case("array-of-enum-as-tuple", pg.ARRAY(sa.Enum(t.Color, name="v_color2"), as_tuple=True),
         st.lists(st.sampled_from(t.Color), max_size=4), on=PG),
    Case("array-of-decorated", pg.ARRAY(t.Cents(), dimensions=1), st.lists(money.map(lambda m: m % 99), max_size=4),
         on=PG),
    Case("inet", pg.INET(), ips.map(str), ("10.0.0.7/8", "::1/64"), on=PG),
    Case("cidr", pg.CIDR(), nets.map(str), ("2001:db8::/32",), on=PG),
    Case("macaddr", pg.MACADDR(), st.just("08:00:2b:01:02:03"), on=PG),
    Case("macaddr8", pg.MACADDR8(), st.just("08:00:2b:ff:fe:01:02:03"), on=PG),
    Case("int4range", pg.INT4RANGE(), ranges(small), on=PG),
    Case("int8range", pg.INT8RANGE(), ranges(small), on=PG),
    Case("numrange", pg.NUMRANGE(), ranges(g.decimals(2, 9)), on=PG),
    Case("daterange", pg.DATERANGE(), ranges(recent_dates), on=PG),
    Case("tsrange", pg.TSRANGE(), ranges(recent), on=PG),
    Case("tstzrange", pg.TSTZRANGE(), ranges(recent_aware), on=PG),
    Case("int4multirange", pg.INT4MULTIRANGE(), several(small), on=PG),
    Case("nummultirange", pg.NUMMULTIRANGE(), several(g.decimals(2, 9)), on=PG),
    Case("datemultirange", pg.DATEMULTIRANGE(), several(recent_dates), on=PG),
    Case("tsmultirange", pg.TSMULTIRANGE(), several(recent), on=PG),
    Case("tstzmultirange", pg.TSTZMULTIRANGE(), several(recent_aware), on=PG),
    Case("array-of-ranges", sa.ARRAY(pg.INT4RANGE), st.lists(ranges(small), max_size=3), on=PG),
    Case("oid", pg.OID(), st.integers(0, 2**32 - 1), on=PG),
    Case("money", pg.MONEY(), st.integers(0, 10**6).map(lambda n: f"${n}.25"), on=PG),
    Case("tsvector", pg.TSVECTOR(), g.words, on=PG),
    Case("domain", pg.DOMAIN("v_positive", sa.Integer()), st.integers(1, 2**31 - 1), on=PG),
    Case("regclass", pg.REGCLASS(), st.sampled_from(["pg_class", "pg_type"]), on=PG),
    Case("jsonpath", pg.JSONPATH(), g.words.map(lambda w: f"$.{w}"), on=PG, null=False),
    # not cacheable
    Case("pickled-in-a-variant", sa.Text().with_variant(sa.PickleType(), "sqlite"), g.documents.filter(
        lambda v: v is not None), on=("sqlite",), cached=False),
    Case("old-style-decorator", t.OldStyle(), g.words, cached=False),
    Case("growing", t.Growing(), g.words, cached=False),
    Case("liar", t.Liar(), st.text("abc", min_size=2, max_size=5), cached=False),
    Case("raising", t.Raising(), g.words, cached=False, null=False),
    Case("masked", t.WriteOnly(), g.words, cached=False),
    Case("opaque", t.Opaque(), g.words, cached=False, null=False),
    Case("datetime-in-text", sa.Integer(), st.text("abc", min_size=1), on=("sqlite",), cached=False),
]  # fmt: skip
if UTCDateTime is not None:
    CASES.append(Case("utc-datetime", UTCDateTime(), g.aware))


class Base(sa.orm.DeclarativeBase):
    """Not SQLModel's: their tables are no concern of other tests."""


class PostgresBase(sa.orm.DeclarativeBase):
    """Apart from the others: its types say something to any database that their metadata meets."""


@dataclass
class Table:
    """A case with its model, and the rows that were written."""

    case: Case
    model: Any
    rows: dict[str, list[int]] = field(default_factory=dict)


def _model(case: Case) -> Any:
    name = "values_" + case.name.replace("-", "_")
    return type(
        name,
        (PostgresBase if case.on == PG else Base,),
        {
            "__tablename__": name,
            "__module__": __name__,
            "__cache_config__": CacheConfig(),
            "id": sa.Column(sa.Integer, primary_key=True),
            "value": sa.Column(case.type),
        },
    )


TABLES = {case.name: Table(case, _model(case)) for case in CASES}
