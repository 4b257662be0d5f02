"""Redis content is untrusted input: whatever a reply holds, a read ends in a row of the right types or in a miss.

Hypothesis chooses seeds; a seed stands for a batch of replies. `SQLMODEL_CACHE_LONG=1` makes more than a million.
"""

from __future__ import annotations

import datetime
import math
import os
import random
import resource
import signal
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Badge, Gadget, Hero, Sample, Team
from parity import zoo_excluded
from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.dialects.sqlite import pysqlite
from sqlmodel import Session, SQLModel, create_engine
from values.columns import CASES
from values.generate import generated

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache._carriers import carrier_of
from sqlmodel_cache._codec import Codec, Column
from sqlmodel_cache._effects import ABSENT, Entry, Fenced, Fill, Filling, Granted, Hit, Lease, Lookup, Together
from sqlmodel_cache._entities import Entities
from sqlmodel_cache._sealing import Gate
from sqlmodel_cache._unique import unique_key
from sqlmodel_cache._values import _KINDS, _PLAIN, see
from sqlmodel_cache.errors import CodecError, TransportError
from sqlmodel_cache.transport import _commands
from sqlmodel_cache.transport._commands import FORMAT, HEAD, VERSION

LONG = os.environ.get("SQLMODEL_CACHE_LONG") == "1"
BATCH = 250
BATCHES = 4_200 if LONG else 20
HANGS = 60.0  # seconds after which a read is interrupted that will not end

DIALECTS: dict[str, list[Any]] = {"sqlite": [pysqlite.dialect()], "postgresql": [psycopg.dialect(), asyncpg.dialect()]}
ENTRY = Entry("sqlmodelcache:{db/t:5}:1", "sqlmodelcache:{db/t:5}")
PRINT = b"01234567"
TABLE = b"t" * VERSION
SERVER = b"s" * 16
SHARD_KEY = b"T" + SERVER + TABLE


# what is read


@dataclass(frozen=True)
class Target:
    """Something that decodes payloads, payloads that it decodes, and what to expect of what it made."""

    name: str
    decode: Callable[[bytes], Any]
    valid: list[bytes]
    check: Callable[[Any], None]


def _column_targets() -> Iterator[Target]:
    for case in CASES:
        if not case.cached:
            continue
        for name in case.on:
            for dialect in DIALECTS[name]:
                codec = Codec([Column("value", "value", case.type)], dialect, ["value"])
                valid = []
                kinds = {type(None)}
                for value in generated(case.values, 4):
                    try:
                        valid.append(codec.encode({"value": value}))
                        kinds.add(type(value))
                    except CodecError:
                        continue
                if valid:
                    yield Target(
                        f"{case.name} {dialect.driver}", codec.decode, valid, _check_of(case.type, dialect, kinds)
                    )


def _check_of(type_: Any, dialect: Any, kinds: set[Any]) -> Callable[[Any], None]:
    carrier = carrier_of(type_, dialect)
    # What a decorator makes of what it bound is its own affair, and the driver's types are those that travel.
    is_open = carrier.way.startswith("bound") or (carrier.wire is Any and not carrier.load)
    allowed = _TRAVELS if is_open else kinds | set(carrier.kinds)

    def check(row: Any) -> None:
        [value] = row.values()
        if not carrier.way.startswith("bound"):
            assert type(value) in allowed, (type_, type(value))
        if carrier.kinds and type(value) is list:
            assert {type(item) for item in value if type(item) is not list} <= {*carrier.kinds, type(None)}
        use(value)

    return check


_TRAVELS = {*_PLAIN, int, list, dict, datetime.datetime, *(kind.type for kind in _KINDS)}


def use(value: Any) -> None:
    """Do with a value what applications do, none of which may take long."""
    if isinstance(value, Decimal) and value.is_finite():
        f"{value:f}"
        value + 1 > 10**40  # noqa: B015
        if value.adjusted() < 10_000:  # quadratic in Python: seconds for the largest that a database holds
            int(value)
    elif isinstance(value, float | datetime.datetime | datetime.date | uuid.UUID | str | bytes):
        assert isinstance(repr(value), str)
    elif isinstance(value, list | dict | tuple):
        len(value)


def _class_targets() -> Iterator[Target]:
    models = [Hero, Team, Gadget, Sample, Badge, zoo_excluded.Vault, zoo_excluded.Person, zoo_excluded.Member]
    entities = Entities()
    for model in models:
        entity = entities.get(model)
        assert entity is not None
        rows = entity.rows(pysqlite.dialect())
        valid = [b"", bytes(8), bytes(12), ABSENT]
        for tag, (_, shape, _) in [(each[0], each) for each in rows._by_class.values()]:
            valid.append(tag + b"\x90" + bytes(12))
            nulls = tag + bytes([0x90 + min(15, len(shape.columns))]) + b"\xc0" * len(shape.columns)
            valid += [nulls, struct.pack(">dI", 2e9, 5) + nulls]

        def check(found: Any, rows: Any = rows) -> None:
            shape, values = found
            assert set(values) == set(shape.attributes)

        yield Target(model.__name__, rows.decode, valid, check)
    entity = entities.get(zoo_excluded.Member)
    assert entity is not None
    key = unique_key(entity, ("email",))

    def check_pk(pk: Any) -> None:
        assert [type(part) for part in pk] == [int]

    yield Target("hint", key.pk, [key.hint((5,))], check_pk)


TARGETS = [*_column_targets(), *_class_targets()]


# what somebody has written


def _length(kind: str, n: int) -> bytes:
    code = {"array": b"\xdd", "map": b"\xdf", "str": b"\xdb", "bin": b"\xc6", "ext": b"\xc9"}[kind]
    return code + n.to_bytes(4, "big")


def ext(number: int, inside: bytes) -> bytes:
    """Return an extension."""
    return _length("ext", len(inside)) + bytes([number & 255]) + inside


enc = msgspec.msgpack.Encoder().encode
NOW = datetime.datetime.now(datetime.UTC)
NAMES = [
    "../../../etc/passwd", "/etc/passwd", "os", "this", "antigravity", "zone.tab", "..", ".", "", "a" * 50_000, "\0",
    "Europe/../../x", "Europe//Berlin", "tzdata.zi", "posixrules", "localtime", "leapseconds", "right/UTC", "UTC\n",
    "Europe/Berlin", "__init__", "zoneinfo/__init__", "\ud7ff", "C:/x", "CON", "x.y/z", "a.b.c/d",
]  # fmt: skip
DECIMALS = ["1E+999999999999999999", "1E-999999999999999999", "9" * 5000, "NaN", "-sNaN123", "Infinity", "1e999999",
            "0E-999999", "1_000", " 1", "", "1E+131073", "-1E+131071"]  # fmt: skip


def bombs(r: random.Random) -> bytes:
    """Return one value that is meant to hurt."""
    n = r.choice([1, 5, 50, 2**16, 2**31, 2**32 - 1])
    deep = r.choice([10, 200, 5_000, 60_000])
    collide = r.choice([10, 70, 300, 3_000])
    p = 2**61 - 1
    uuids = [ext(2, enc((i * p).to_bytes(16, "big"))) for i in range(1, collide)]
    pairs = [ext(0, (i * p).to_bytes(24, "big")) for i in range(1, collide)]
    many = r.choice([uuids, pairs])
    return r.choice(
        [
            lambda: _length(r.choice(["array", "map", "str", "bin"]), n),
            lambda: _length("ext", n) + bytes([r.randrange(256)]),
            lambda: (b"\xdd\x00\x0f\xff\xff") * min(deep, 5_000),
            lambda: b"\x91" * deep,
            lambda: b"\x81\xa1a" * deep,
            lambda: b"\x81" * deep,
            lambda: _nested_ext(r.choice([7, 8, 9, 10, 17, 18]), min(deep, 300)),
            lambda: ext(0, os.urandom(r.choice([0, 1, 8, 9, 5_000, 100_000]))),
            lambda: ext(1, enc(r.choice(DECIMALS))),
            lambda: enc(r.choice(DECIMALS)),
            lambda: enc([NOW, r.choice(NAMES)]),
            lambda: ext(6, enc([NOW, r.choice(NAMES)])),
            lambda: enc([NOW, r.choice([0, 10**18, -(10**18), 86_400_000_000, 1, 1.5, True])]),
            lambda: ext(
                r.randrange(256), enc(r.choice(["0101", "2", "", "10.0.0.0/33", "::1%eth0", "24:00:00", 5, None]))
            ),
            lambda: ext(19, enc("01" * r.choice([1, 50_000]))),
            lambda: ext(17, enc([1, 0, r.choice(["[]", "x", "", "[)"]), False])),
            lambda: ext(18, enc([ext(17, b"")])),
            lambda: ext(r.choice([8, 9]), _length("array", len(many)) + b"".join(many)),
            lambda: ext(10, _length("array", 2 * len(many)) + b"".join(item + b"\xc0" for item in many)),
            lambda: _length("map", len(many)) + b"".join(item + b"\xc0" for item in many),
            lambda: b"\xd7\xff" + os.urandom(8),
            lambda: b"\xc7\x0c\xff" + os.urandom(12),
            lambda: os.urandom(r.randrange(60)),
            lambda: b"\xcf" + b"\xff" * 8,
            lambda: b"\xcb" + os.urandom(8),
            lambda: b"\xc1",
        ]
    )()


def _nested_ext(number: int, deep: int) -> bytes:
    inside = b"\x90"
    for _ in range(deep):
        inside = b"\x91" + ext(number, inside)
    return inside


def payload(r: random.Random, target: Target) -> bytes:
    """Return a payload: a valid one, a broken one, or one with something in it that is meant to hurt."""
    base = r.choice(target.valid)
    match r.randrange(8):
        case 0:
            return b"\x91" + bombs(r)
        case 1:
            return base[: r.randrange(3) + 1] + bombs(r) + base[-r.randrange(1, 9) :]
        case 2:
            return base[: r.randrange(len(base) + 1)]
        case 3:
            return r.choice(r.choice(TARGETS).valid)
        case 4:
            return os.urandom(r.randrange(40))
        case 5:
            return base
        case _:
            changed = bytearray(base or b"\0")
            for _ in range(r.randrange(1, 4)):
                at = r.randrange(len(changed))
                changed[at : at + r.randrange(3)] = bytes([r.choice([r.randrange(256), 0xC0, 0xC9, 0xD9, 0xDD, 0xDF])])
                changed = changed or bytearray(b"\0")
            return bytes(changed)


NO_VALUES: list[Any] = [5, True, 1.5, "text", [b"V"], {b"V": b"V"}, {b"V"}, RuntimeError("an error")]
"""What a client makes of what no MGET replies with."""


def stored(r: random.Random, body: bytes) -> Any:
    """Return a raw value of Redis with a payload in it, mostly whole."""
    value = FORMAT + b"v" * VERSION + TABLE + PRINT + len(body).to_bytes(4, "big") + body
    match r.randrange(30):
        case 0:
            return value[: r.randrange(len(value))]
        case 1:
            at = r.randrange(HEAD + 12)
            return value[:at] + os.urandom(1) + value[at + 1 :]
        case 2:
            return value[: HEAD + 8] + b"\xff\xff\xff\xff" + body
        case 3:
            return r.choice([None, b"", b"F", b"V", FORMAT, body, *NO_VALUES])
    return value


def replies(r: random.Random, body: bytes) -> tuple[Any, Any]:
    """Return an effect and the raw reply to it."""
    value = stored(r, body)
    if r.randrange(2):
        table: Any = SHARD_KEY if r.randrange(20) else r.choice([None, b"T", b"", os.urandom(29), *NO_VALUES])
        return Lookup(ENTRY, PRINT), [value, table] if r.randrange(30) else r.choice([value, None, [value], []])
    word = r.choice([b"hit"] * 9 + [b"granted", b"elected", b"filling", b"fenced", b"x"])
    reply = [word, SERVER, body if word == b"hit" else value, *[r.choice([TABLE, 5, None])] * r.randrange(3)]
    return Lease(ENTRY, PRINT, b"id"), reply[:3] if word == b"hit" else reply


@pytest.fixture(autouse=True)
def _interrupted() -> Iterator[None]:
    """A read that hangs is an error, and not a test that never ends."""

    def interrupt(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


GATES = [Gate(1_048_576), Gate(1_048_576, [b"k" * 32]), Gate(300)]


def read(r: random.Random, target: Target) -> None:
    """Read one reply to its end."""
    body = payload(r, target)
    gate = r.choice(GATES)
    effect, reply = replies(r, body)
    if gate is GATES[1] and r.randrange(3):
        put: Any = gate.put(Fill(ENTRY, Granted(b"v", b"t"), PRINT, body, 60_000))
        effect, reply = Lease(ENTRY, PRINT, b"id"), [b"hit", SERVER, put.payload]
    signal.setitimer(signal.ITIMER_REAL, HANGS)  # what hangs is interrupted, and told by its note
    try:
        try:
            found = gate.take(effect, _commands.decode(effect, [reply]))
        except TransportError:
            return
        if found is None or isinstance(found, Granted | Filling | Fenced):
            return
        data = found.payload if isinstance(found, Hit) else found
        assert type(data) is bytes
        if data == ABSENT:
            return
        try:
            row = target.decode(data)
        except CodecError as refusal:
            if len(str(refusal)) < 500:
                return
            raise
        target.check(row)
    except BaseException as error:
        error.add_note(f"{target.name}: {body[:2000].hex()}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Imports:
    """Sees what is imported."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, *_: Any) -> None:
        """Find nothing."""
        self.names.append(name)


@contextmanager
def nothing_happens() -> Iterator[Imports]:
    """Nothing is imported but zones, and no more memory is taken than a few large payloads are."""
    seen = Imports()
    sys.meta_path.insert(0, seen)  # type: ignore[arg-type]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield seen
    finally:
        sys.meta_path.remove(seen)  # type: ignore[arg-type]
    assert [name for name in seen.names if name.partition(".")[0] not in ("tzdata", "hypothesis")] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_replies_become_rows_or_misses() -> None:
    """No exception, no hang, no memory, no import; and what decodes has exactly its column's types."""
    for target in TARGETS:
        for body in target.valid[:2]:
            with_suppressed(target, body)
    count = 0

    @settings(max_examples=BATCHES, deadline=None, derandomize=not LONG, database=None)
    @given(st.integers(0, 2**64))
    def batch(seed: int) -> None:
        nonlocal count
        r = random.Random(seed)
        for _ in range(BATCH):
            read(r, r.choice(TARGETS))
            count += 1

    with nothing_happens():
        batch()
    assert count >= (1_000_000 if LONG else 4_000)
    print(f"{count} replies")


def with_suppressed(target: Target, body: bytes) -> None:
    """Decode once before: what a codec imports by itself, when it is first used, no payload has named."""
    try:
        target.decode(body)
    except CodecError:
        return


@pytest.mark.parametrize("what", NO_VALUES, ids=repr)
def test_what_is_no_value_is_a_miss(what: Any) -> None:
    """Whichever of the two keys a look-up's reply has it for, on its own or among others."""
    value = FORMAT + b"v" * VERSION + TABLE + PRINT + len(b"body").to_bytes(4, "big") + b"body"
    one, all_ = Lookup(ENTRY, PRINT), [Lookup(ENTRY, PRINT)] * 2
    for reply in ([value, what], [what, SHARD_KEY], [what, what]):
        assert _commands.decode(one, [reply]) is None
        assert _commands.unpack(all_, _commands.pack(all_), [reply]) == [None, None]
    assert _commands.decode(one, [[value, SHARD_KEY]]) == b"body"


# what is meant to hurt, one by one


def colliding(count: int) -> list[bytes]:
    """Return different keys with one hash."""
    return [ext(2, enc((i * (2**61 - 1)).to_bytes(16, "big"))) for i in range(1, count)]


JSON = Codec([Column("value", "value", sa.JSON())], pysqlite.dialect(), ["value"])


@pytest.mark.parametrize(
    "body",
    [
        _length("map", 39_999) + b"".join(key + b"\xc0" for key in colliding(40_000)),
        b"\x92\xc0" + _length("map", 39_999) + b"".join(key + b"\xc0" for key in colliding(40_000)),
        ext(7, b"\x91" + _length("map", 39_999) + b"".join(key + b"\xc0" for key in colliding(40_000))),
        ext(8, _length("array", 39_999) + b"".join(colliding(40_000))),
        ext(9, _length("array", 39_999) + b"".join(colliding(40_000))),
        ext(10, _length("array", 2 * 39_999) + b"".join(key + b"\xc0" for key in colliding(40_000))),
    ],
    ids=["map", "map in array", "map in tuple", "set", "frozenset", "dict"],
)
def test_keys_that_collide_are_refused_in_no_time(body: bytes) -> None:
    """A megabyte of them would take minutes to put into a dict."""
    with pytest.raises(CodecError, match=r"text, in a large dict|hashes collide"):
        JSON.decode(b"\x91" + body)


def test_large_documents_pass() -> None:
    """Thousands of text keys, bytes that look like the beginning of a map, and anything nested."""
    for value in (
        {str(i): i for i in range(5_000)},
        [{"ߞ" * 200: [b"\xdf\xff\xff\xff\xff" * 900, 2**63, -1, 1.5, None, True]}] * 20,
        {"a": [{str(i): {"b": [i] * 20} for i in range(300)}, (1, 2), {3: 4}, {5}, "x" * 70_000, b"y" * 300]},
        [[i] * 20 for i in range(3_000)] + ["\u07df" * 5_000],
        {f"{i}" * 40: {f"{j}": -j * 10**i for j in range(70)} for i in range(30)},
    ):
        assert JSON.decode(JSON.encode({"value": value})) == {"value": value}
    see(b"\xdf")
    see(b"\xdf\0\0\1\0")


@pytest.mark.parametrize("name", NAMES)
def test_a_zone_is_a_zone(name: str) -> None:
    """Its name leads nowhere but to the zones."""
    codec = Codec([Column("value", "value", sa.DateTime(timezone=True))], psycopg.dialect(), ["value"])
    with nothing_happens() as seen:
        try:
            found = codec.decode(enc([[NOW, name]]))["value"]
        except CodecError:
            found = None
    assert found is None or (type(found) is datetime.datetime and "." not in name)
    assert seen.names == [] or "." not in name  # a dot would make it the name of another module


@pytest.mark.parametrize("text", DECIMALS)
def test_a_decimal_can_be_written_out(text: str) -> None:
    """What decodes is no larger than a database's numbers are, nested ones included."""
    numeric = Codec([Column("value", "value", sa.Numeric(9, 2))], pysqlite.dialect(), ["value"])
    for codec, body in ((numeric, enc([text])), (JSON, b"\x91" + ext(1, enc(text)))):
        try:
            found = codec.decode(body)["value"]
        except CodecError:
            continue
        assert type(found) is Decimal
        assert not found.is_finite() or abs(found.adjusted()) <= 131_072
        use(found)


@pytest.mark.parametrize("value", ["ab", ["a"], [1, "a"], [[1], [[True]]], {"a": 1}, (1,), 5, [1.0]], ids=repr)
def test_an_array_has_items_of_its_type(value: Any) -> None:
    """At every depth; None may be among them."""
    codec = Codec([Column("value", "value", pg.ARRAY(sa.Integer))], psycopg.dialect(), ["value"])
    other = Codec([Column("value", "value", pg.INET())], psycopg.dialect(), ["value"])  # carries anything
    with pytest.raises(CodecError):
        codec.decode(other.encode({"value": value}))
    assert codec.decode(codec.encode({"value": [1, [2, None], []]})) == {"value": [1, [2, None], []]}


# in a session


class Hostile:
    """A transport whose replies somebody else has written."""

    blocking = True

    def __init__(self) -> None:
        self.r = random.Random(5)
        self.target = next(target for target in TARGETS if target.name == "Hero")
        self.valid: list[bytes] = []

    def execute(self, effect: Any) -> Any:
        """Return what the Redis transport makes of such a reply."""
        if isinstance(effect, Together):
            return tuple(map(self.execute, effect.effects))
        if isinstance(effect, Fill):
            self.valid.append(effect.payload)
            return True
        if not isinstance(effect, Lookup | Lease):
            return None
        target = Target("", self.target.decode, self.valid[-3:] or self.target.valid, self.target.check)
        body = payload(self.r, target)
        if isinstance(effect, Lookup):
            value = FORMAT + b"v" * VERSION + TABLE + effect.fingerprint + len(body).to_bytes(4, "big") + body
            return _commands.decode(effect, [[value, SHARD_KEY]])
        return _commands.decode(effect, [self.r.choice([[b"hit", SERVER, body], [b"granted", SERVER, TABLE, TABLE]])])

    def close(self) -> None:
        """Nothing to do."""


def test_a_session_is_told_a_hero_or_reads_it(tmp_path: Any) -> None:
    """Whatever Redis holds, a get returns a hero whose attributes have their types, and raises nothing."""
    engine: Engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Hero(id=1, name="Rusty", age=48))
        session.commit()
    SQLModelCache.configure(Hostile(), fill_wait=None)
    for _ in range(2_000 if LONG else 300):
        with Session(engine) as session:
            hero = session.get_one(Hero, 1)
            assert type(hero) is Hero
            assert type(hero.name) in (str, type(None))
            assert type(hero.age) in (int, type(None))
        with Session(engine) as session:
            [hero] = [row for row in SQLModelCache.get_many(session, Hero, [1]) if row]
            assert type(hero.name) in (str, type(None))
    stats = SQLModelCache.stats()
    assert stats.hits > 10
    assert stats.corrupt > 100
    assert math.isfinite(stats.errors)
