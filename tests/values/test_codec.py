"""The codec by itself: hostile bytes, what counts as the same, what a fingerprint knows, what a refusal says."""

from __future__ import annotations

import datetime
import enum
import functools
import io
import ipaddress
import json
import subprocess
import sys
import tracemalloc
import types
import uuid
import zoneinfo
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.types import TypeDecorator, TypeEngine
from values import types as t
from values.columns import CASES, Case
from values.generate import generated

from sqlmodel_cache._codec import Codec, Column
from sqlmodel_cache._values import encode, same
from sqlmodel_cache.errors import CodecError

DIALECTS: dict[str, Dialect] = {"sqlite": pysqlite.dialect(), "postgresql": psycopg.dialect()}
ASYNCPG: Dialect = asyncpg.dialect()
HOSTILE = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def codec(type_: Any, dialect: Dialect = DIALECTS["postgresql"]) -> Codec:
    """Return the codec of one column."""
    return Codec([Column("value", "value", type_)], dialect, ["value"])


def codecs() -> list[Codec]:
    """Return the codec of every case."""
    return [codec(case.type, DIALECTS[name]) for case in CASES for name in case.on]


EVERY = codecs()


def attempt(one: Codec, payload: bytes) -> None:
    """Decode; nothing but `CodecError` may come of it."""
    try:
        row = one.decode(payload)
    except CodecError:
        return
    assert list(row) == ["value"]


# hostile bytes


@HOSTILE
@given(st.binary(max_size=60))
def test_decode_of_any_bytes_is_a_row_or_a_codec_error(payload: bytes) -> None:
    """No other error, whatever the column."""
    for one in EVERY:
        attempt(one, payload)
        attempt(one, b"\x91" + payload)


@HOSTILE
@given(st.integers(0, 127), st.binary(max_size=40))
def test_decode_of_any_extension_is_a_row_or_a_codec_error(number: int, inside: bytes) -> None:
    """Every number, those that stand for nothing too, with anything inside."""
    for size in (len(inside), 255):
        payload = b"\x91\xc7" + bytes([size, number]) + inside
        for type_ in (sa.JSON(), pg.ARRAY(sa.Uuid), pg.INET(), t.ProfileType(), t.tuple_type()):
            attempt(codec_of(type_), payload)


_MADE: dict[str, Codec] = {}


def codec_of(type_: Any) -> Codec:
    """Return a codec that is made once for a type."""
    return _MADE.setdefault(repr(type_), codec(type_))


def encodable(case: Case) -> list[tuple[Codec, bytes]]:
    """Return payloads of a case's values, where the values are what a database gives, too."""
    one = codec(case.type, DIALECTS[case.on[0]])
    payloads = []
    for value in generated(case.values, 3):
        try:
            payloads.append((one, one.encode({"value": value})))
        except CodecError:
            continue
    return payloads


VALID = [pair for case in CASES if case.cached for pair in encodable(case)]


@HOSTILE
@given(st.data())
def test_decode_of_a_broken_payload_is_a_row_or_a_codec_error(data: st.DataObject) -> None:
    """A byte changed, the end cut off, or something behind it."""
    for one, payload in VALID:
        at = data.draw(st.integers(0, len(payload) - 1))
        byte = data.draw(st.integers(0, 255))
        attempt(one, payload[:at] + bytes([byte]) + payload[at + 1 :])
        attempt(one, payload[:at])
        with pytest.raises(CodecError):
            one.decode(payload + bytes([byte]))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91\xdd\xff\xff\xff\xff",
        b"\x91" + b"\xdd\x0f\xff\xff\xff" * 300,
        b"\x91\xdf\xff\xff\xff\xff",
        b"\x91\xc6\xff\xff\xff\xff",
        b"\x91\xc9\xff\xff\xff\xff\x07",
        b"\x91" * 100_000,
        b"\x91" + b"\x81\xa1a" * 100_000,
    ],
)
def test_decode_takes_no_memory_for_what_is_not_there(payload: bytes) -> None:
    """A length is only believed when the bytes are there; depth ends in an error."""
    tracemalloc.start()
    try:
        for type_ in (sa.JSON(), pg.ARRAY(sa.Integer), sa.LargeBinary(), t.ProfileType()):
            with pytest.raises(CodecError):
                codec(type_).decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 + 10 * len(payload)
    finally:
        tracemalloc.stop()


def test_decode_of_nested_extensions_ends() -> None:
    """A tuple in a tuple in a tuple: deep ones raise, and shallow ones are what they were."""
    value: Any = ()
    for _ in range(20):
        value = (value,)
    one = codec(pg.INET())
    assert one.decode(one.encode({"value": value})) == {"value": value}
    inside = b"\x90"
    for _ in range(20_000):
        inside = b"\x91\xc9" + len(inside).to_bytes(4, "big") + b"\x07" + inside
        if len(inside) > 150_000:
            break
    with pytest.raises(CodecError):
        one.decode(inside)


def test_decode_imports_no_module_that_bytes_name() -> None:
    """A zone's name, the only name in a payload, loads nothing from outside of the zones' folders."""
    one = codec(sa.DateTime(timezone=True))
    before = set(sys.modules)
    now = datetime.datetime.now(datetime.UTC)
    for name in ("this", "antigravity", "../../../etc/passwd", "/etc/passwd", "os/path", "", "a" * 10_000, "\0"):
        with pytest.raises(CodecError):
            one.decode(encode([[now, name]]))
    assert {name for name in set(sys.modules) - before if not name.startswith("tzdata")} == set()


# what is the same


class Bare:
    """Identity is its equality, and it has nothing else."""


class Hidden(io.BytesIO):
    """Keeps its state in C."""


class Numbered(int):
    """Equal to every number."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def cycle() -> list[Any]:
    """Return a list that contains itself."""
    made: list[Any] = [1]
    made.append(made)
    return made


UTC, ALSO_UTC = datetime.UTC, zoneinfo.ZoneInfo("UTC")
AT = datetime.datetime(2024, 10, 27, 2, 30)
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    ([1], [True]),
    ([1], (1,)),
    ({"a": 1}, {"a": 1.0}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1}, {True}),
    (Decimal("1.0"), Decimal("1.00")),
    (AT.replace(tzinfo=UTC), AT.replace(tzinfo=ALSO_UTC)),
    (AT.replace(tzinfo=BERLIN), AT.replace(tzinfo=BERLIN, fold=1)),
    (AT.replace(tzinfo=UTC), AT.replace(tzinfo=datetime.timezone(datetime.timedelta(0), "X"))),
    (t.LiarValue("a", "b"), t.LiarValue("a", "c")),
    (t.Slotted("a"), t.Slotted("b")),
    (t.Point(1, 2), t.Point(1, 2.0)),
    (t.Profile(name="a"), t.Profile(name="a", addresses=[])),
    (object(), object()),
    (Bare(), Bare()),
    (Hidden(b"a"), Hidden(b"a")),
    (Numbered(1), Numbered(2)),
    (ipaddress.ip_address("::1"), ipaddress.ip_interface("::1")),
    (pg.Range(1, 5), pg.Range(1, 4, bounds="[]")),
    (uuid.UUID(int=1), uuid.UUID(int=2)),
    (cycle(), [1, [1]]),
]
ALIKE: list[tuple[Any, Any]] = [
    (float("nan"), float("nan")),
    (Decimal("NaN"), Decimal("NaN")),
    ([float("nan")], [float("nan")]),
    (t.Slotted("a"), t.Slotted("a")),
    (t.Profile(name="a"), t.Profile(name="a")),
    (PurePosixPath("/a"), PurePosixPath("/a")),
    (AT.replace(tzinfo=BERLIN), AT.replace(tzinfo=zoneinfo.ZoneInfo.no_cache("Europe/Berlin"))),
    (cycle(), cycle()),
    (Numbered(1), Numbered(1)),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_same_tells_apart(a: Any, b: Any) -> None:
    """What a program could tell apart is not the same, whatever `==` says, and at every depth."""
    assert not same(a, b)
    assert not same([{"x": a}], [{"x": b}])


@pytest.mark.parametrize(("a", "b"), ALIKE)
def test_same_sees_no_difference_where_there_is_none(a: Any, b: Any) -> None:
    """Two loads of one row are the same."""
    assert same(a, b)
    assert same({"x": (a,)}, {"x": (b,)})


# values that do not travel


def test_refusal_names_the_attribute() -> None:
    """In the message and as an attribute, wherever the value fails."""
    columns = [Column("id", "id", sa.Integer()), Column("it", "it", sa.JSON()), Column("n", "n", sa.Integer())]
    one = Codec(columns, DIALECTS["sqlite"], ["n", "it", "id"])
    for it in (object(), {"a": [Bare()]}, cycle(), "\ud800", {"x": t.Color.RED}):
        with pytest.raises(CodecError, match="attribute 'it'") as refused:
            one.encode({"id": 1, "it": it, "n": 1})
        assert refused.value.attribute == "it"
    for n in ("x", 2**70, True, 1.5):
        with pytest.raises(CodecError, match="attribute 'n'") as refused:
            one.encode({"id": 1, "it": 1, "n": n})
        assert refused.value.attribute == "n"
    with pytest.raises(CodecError) as refused:
        one.encode({"id": 1, "n": 1})
    assert refused.value.attribute == "it"


def test_a_decorator_never_changes_what_was_loaded() -> None:
    """It binds a copy."""
    value = {"kept": 1, "a": 2}

    class Both(t.Popping):
        """With a result of its own."""

        cache_ok = True

    one = codec(Both())
    one.encode({"value": value})
    assert list(value.items()) == [("kept", 1), ("a", 2)]


WHOLE = t.Profile.model_validate(t.Profile(name="x").model_dump())


def test_two_decodes_share_nothing_that_changes() -> None:
    """Each hit has a document of its own."""
    for type_, value in ((sa.JSON(), {"a": [1]}), (t.ProfileType(), WHOLE),
                         (pg.ARRAY(sa.Integer), [[1]]), (t.NeverNull(), [])):  # fmt: skip
        one = codec(type_)
        payload = one.encode({"value": value})
        assert one.decode(payload)["value"] is not one.decode(payload)["value"]


def test_a_row_is_small_and_in_the_order_of_its_attributes() -> None:
    """Eight everyday columns take less than eighty bytes, and come in the order that the process asks for."""
    row = {
        "id": 123_456,
        "name": "Rusty-Man",
        "city": "San Francisco",
        "at": datetime.datetime(2024, 5, 6, 12, 34, 56, 789_012),
        "ref": uuid.UUID(int=2**127),
        "amount": Decimal("1234.50"),
        "active": True,
        "ratio": 0.1,
    }
    sql = [sa.Integer(), sa.String(), sa.Text(), sa.DateTime(), sa.Uuid(), sa.Numeric(12, 2), sa.Boolean(), sa.Float()]
    columns = [Column(key, key, type_) for key, type_ in zip(row, sql, strict=True)]
    one = Codec(columns, DIALECTS["sqlite"], sorted(row))
    payload = one.encode(row)
    assert len(payload) < 80
    assert list(one.decode(payload).items()) == sorted(row.items())


# fingerprints


def print_of(type_: Any, dialect: Dialect = DIALECTS["postgresql"]) -> bytes:
    """Return the fingerprint of one column of a type."""
    return codec(type_, dialect).fingerprint


def decorator(result: str, model: Any = None, constant: int = 1) -> TypeEngine[Any]:
    """Return a decorator as a release of an application may have it: the same name, another body."""
    source = f"def process_result_value(self, value, dialect):\n    return {result}"
    scope: dict[str, Any] = {"model": model, "CONSTANT": constant, "helper": helper(constant), "__name__": "app"}
    scope["remembered"] = functools.lru_cache(helper(constant))
    scope["helpers"] = types.ModuleType("app.helpers")
    scope["helpers"].helper = helper(constant)
    exec(source, scope)  # the test's own text
    body = {"impl": sa.JSON, "cache_ok": True, "__module__": "app", **{k: v for k, v in scope.items() if "proc" in k}}
    made: TypeEngine[Any] = type("Decorator", (TypeDecorator,), body)()
    return made


def helper(constant: int) -> types.FunctionType:
    """Return a function that differs by a constant."""
    scope: dict[str, Any] = {"__name__": "app"}
    exec(f"def helper(value):\n    return value + {constant}", scope)
    found: types.FunctionType = scope["helper"]
    return found


def model(**fields: Any) -> Any:
    """Return a pydantic model of one name."""
    made = create_model("Document", **fields)
    made.__module__ = "app"
    return made


def two_names(first: str, second: str) -> sa.Enum:
    """Return an enum by value."""
    made = enum.Enum("Letter", {first: "a", second: "b"})  # type: ignore[misc]
    return sa.Enum(made, values_callable=lambda class_: [member.value for member in class_], name="letter")


def test_fingerprint_differs_where_the_way_does() -> None:
    """Types that look alike, and travel otherwise or load other values from the same bytes."""
    assert print_of(sa.DateTime(timezone=True)) != print_of(sa.DateTime(timezone=True), ASYNCPG)
    assert print_of(sa.Float()) != print_of(sa.Float(), ASYNCPG)
    assert print_of(pg.INET()) != print_of(pg.INET(), ASYNCPG)
    assert print_of(sa.Uuid()) == print_of(sa.Uuid(), ASYNCPG)
    assert print_of(sa.Uuid()) != print_of(sa.Uuid(as_uuid=False))
    assert print_of(sa.Numeric(5, 2)) != print_of(sa.Numeric(5, 2, asdecimal=False))
    plain = sa.JSON()
    assert print_of(plain) != print_of(sa.JSON().with_variant(sa.Text(), "postgresql"))
    assert print_of(two_names("X", "Y")) != print_of(two_names("Y", "X"))
    assert print_of(two_names("X", "Y")) == print_of(two_names("X", "Y"))
    assert print_of(pg.ARRAY(sa.Integer)) != print_of(pg.ARRAY(sa.Integer, as_tuple=True))


def test_fingerprint_knows_the_code_of_decorators() -> None:
    """Two releases, one of which changed a decorator, a function that it uses, a constant or a model's fields."""
    releases = [
        decorator("value"),
        decorator("value or {}"),
        decorator("helper(value)"),
        decorator("helper(value)", constant=2),
        decorator("helpers.helper(value)"),
        decorator("helpers.helper(value)", constant=2),
        decorator("remembered(value)"),
        decorator("remembered(value)", constant=2),
        decorator("(value, CONSTANT)"),
        decorator("(value, CONSTANT)", constant=2),
        decorator("model(**value)", model(a=(int, 1))),
        decorator("model(**value)", model(a=(int, 2))),
        decorator("model(**value)", model(a=(int, 1), b=(int, 1))),
        decorator("model(**value)", model(a=(model(x=(int, 1)), 1))),
        decorator("model(**value)", model(a=(model(x=(str, 1)), 1))),
    ]
    prints = [print_of(type_) for type_ in releases]
    assert len(set(prints)) == len(prints)
    assert print_of(decorator("model(**value)", model(a=(int, 1)))) == prints[10]
    one, other = decorator("value"), decorator("value or {}")
    assert print_of(pg.ARRAY(one)) != print_of(pg.ARRAY(other))
    assert print_of(sa.JSON().with_variant(one, "postgresql")) != print_of(sa.JSON().with_variant(other, "postgresql"))
    assert print_of(one) == print_of(one, ASYNCPG)


def test_fingerprints_are_equal_in_all_processes() -> None:
    """Whatever the seed of their hashes, and also after the types have been used."""
    script = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from values.test_codec import EVERY
print(json.dumps([one.fingerprint.hex() for one in EVERY]))
"""
    found = [one.fingerprint.hex() for one in codecs()]
    for seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", script, json.dumps(sys.path)],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        assert json.loads(output) == found
