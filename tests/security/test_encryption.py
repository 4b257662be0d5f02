"""`configure(encryption_key=...)`: who can read Redis reads nothing, who can write to it makes misses."""

from __future__ import annotations

import base64
import os
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import Log, Store
from models import Badge, Gadget, Hero, add_hero, get_hero
from security.between import Between
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import ConfigurationError, SQLModelCache, _sealing
from sqlmodel_cache._effects import ABSENT, Entry, Fill, Granted, Hit, Lease, Lookup, Together
from sqlmodel_cache._sealing import OVERHEAD, PER_SALT, UNREADABLE, Gate

KEY, OTHER = b"k" * 32, b"o" * 32
ROW = Entry("sqlmodelcache:{db/hero:5}:1", "sqlmodelcache:{db/hero:5}")
PRINT = b"01234567"


def fill(payload: bytes = b"payload", entry: Entry = ROW, fingerprint: bytes = PRINT, ttl_ms: int = 60_000) -> Fill:
    """Return what stores a payload."""
    return Fill(entry, Granted(b"v", b"t"), fingerprint, payload, ttl_ms)


def sealed(gate: Gate, effect: Fill | None = None) -> bytes:
    """Return what a transport gets to store."""
    put: Any = gate.put(effect or fill())
    stored: bytes = put.payload
    return stored


def opened(gate: Gate, payload: bytes, entry: Entry = ROW, fingerprint: bytes = PRINT) -> Any:
    """Return what a plan gets to see of a payload, by either way."""
    [looked_up, leased] = gate.take(
        Together((Lookup(entry, fingerprint), Lease(entry, fingerprint, b"id"))), (payload, Hit(payload))
    )
    assert looked_up == leased.payload
    return looked_up


@pytest.mark.parametrize("size", [16, 24, 32])
@pytest.mark.parametrize("payload", [b"", b"x", ABSENT, b"x" * 5000])
def test_what_is_sealed_opens(size: int, payload: bytes) -> None:
    """With keys of each size, and in the same process or in another; each time with other bytes."""
    key = secrets.token_bytes(size)
    stored = sealed(Gate(9999, [key]), fill(payload))
    assert opened(Gate(9999, [key]), stored) == payload
    assert len(stored) == len(payload) + OVERHEAD
    assert payload == b"" or payload not in stored[-len(payload) - 16 :] or len(payload) == 1
    gate = Gate(9999, [key])
    assert len({sealed(gate, fill(payload)) for _ in range(100)}) == 100


def test_every_bit_is_authentic() -> None:
    """A payload of which any bit is changed, or any part cut off, does not open."""
    gate = Gate(9999, [KEY])
    stored = sealed(gate)
    for at in range(len(stored)):
        for bit in range(8):
            changed = bytearray(stored)
            changed[at] ^= 1 << bit
            assert opened(gate, bytes(changed)) == UNREADABLE
        assert opened(gate, stored[:at]) == UNREADABLE
    assert opened(gate, stored + b"\0") == UNREADABLE
    assert opened(gate, stored) == b"payload"


@pytest.mark.parametrize(
    "row",
    ["sqlmodelcache:{db/hero:5}:2", "sqlmodelcache:{tenant/hero:5}:1", "sqlmodelcache:{db/villain:5}:1", "other:1"],
)
def test_a_payload_cannot_be_moved_to_another_row(row: str) -> None:
    """Nor to another tenant, table or prefix: the row's key is associated with it."""
    gate = Gate(9999, [KEY])
    assert opened(gate, sealed(gate), Entry(row, ROW.table)) == UNREADABLE


def test_a_payload_cannot_be_moved_to_another_shape() -> None:
    """The fingerprint is associated with it: neither a hint nor another class's row can be had from it."""
    gate = Gate(9999, [KEY])
    assert opened(gate, sealed(gate), fingerprint=b"76543210") == UNREADABLE


def test_an_old_payload_cannot_be_played_back_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens until its TTL has passed, and a little longer, because clocks differ."""
    gate = Gate(9999, [KEY])
    stored = sealed(gate, fill(ttl_ms=10_000))
    now = time.time()
    monkeypatch.setattr(_sealing.time, "time", lambda: now + 10 + _sealing.LEEWAY - 1)
    assert opened(gate, stored) == b"payload"
    monkeypatch.setattr(_sealing.time, "time", lambda: now + 10 + _sealing.LEEWAY + 3)
    assert opened(gate, stored) == UNREADABLE


def test_rotation_goes_in_three_steps() -> None:
    """[old], [old, new], [new, old], [new]: neighbours read each other's payloads, so no step is a cold cache."""
    steps: list[Sequence[bytes]] = [[KEY], [KEY, OTHER], [OTHER, KEY], [OTHER]]
    gates = [Gate(9999, step) for step in steps]
    for at, one in enumerate(gates[:-1]):
        for writer, reader in ((one, gates[at + 1]), (gates[at + 1], one)):
            assert opened(reader, sealed(writer)) == b"payload"
    assert opened(gates[3], sealed(gates[0])) == UNREADABLE
    assert opened(gates[0], sealed(gates[3])) == UNREADABLE


def test_a_salt_is_for_a_bounded_number_of_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then, and in a child process, another takes its place; what was sealed before opens still."""
    gate = Gate(9999, [KEY])
    seal: Any = gate._seal
    before = sealed(gate)
    seal._left = 0
    after = sealed(gate)
    assert before[5:13] != after[5:13]
    assert seal._left == PER_SALT - 1 < 2**31
    monkeypatch.setattr(_sealing.os, "getpid", lambda: -1)
    assert sealed(gate)[5:13] not in (before[5:13], after[5:13])
    assert opened(gate, before) == opened(gate, after) == b"payload"


def test_salts_that_anybody_writes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ciphers are kept for a bounded number of them."""
    monkeypatch.setattr(_sealing, "MAX_CIPHERS", 10)
    gate = Gate(9999, [KEY])
    stored = sealed(gate)
    for _ in range(50):
        assert opened(gate, stored[:5] + os.urandom(8) + stored[13:]) == UNREADABLE
    seal: Any = gate._seal
    assert len(seal._ciphers) <= 10
    assert opened(gate, stored) == b"payload"


# in the cache


def test_redis_holds_no_value(engine: Engine, store: Store) -> None:
    """Rows and hints are hits, and nothing of what Redis holds shows a value; keys show the primary key."""
    if store.client is None:
        store.transport = Between(store.transport)
    SQLModelCache.configure(store.transport, encryption_key=KEY)
    pk = add_hero(engine, "A secret name")
    for _ in range(2):
        assert get_hero(engine, pk).name == "A secret name"
    assert SQLModelCache.stats().hits == 1
    if store.client is None:
        [held] = [fill.payload for fill in store.transport.fills]
    else:
        [(key, held)] = store.values().items()
        assert key.endswith(f":{pk}")
    assert b"secret" not in held
    assert b"secret" in plain_payload(engine, pk)


def plain_payload(engine: Engine, pk: int) -> bytes:
    """Return what is stored of a hero without a key."""
    between = Between()
    SQLModelCache.configure(between)
    get_hero(engine, pk)
    [held] = between.fills
    return held.payload


@pytest.fixture
def sqlite(tmp_path: Any) -> Engine:
    """A database; what these tests are about is the same on all."""
    made = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(made)
    return made


def test_absence_is_sealed_too(sqlite: Engine) -> None:
    """It is a hit, does not show by its content, and cannot be forged: the bare word for it is a broken payload."""
    between = Between()
    SQLModelCache.configure(between, encryption_key=KEY)
    with Session(sqlite) as session:
        session.add(Badge(code="here", label="x"))
        session.commit()
    for _ in range(2):
        for code in ("gone", "here"):
            with Session(sqlite) as session:
                assert (session.get(Badge, code) is None) == (code == "gone")
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.fills, stats.corrupt) == (2, 2, 0)
    absent, _ = sorted((fill.payload for fill in between.fills), key=len)
    assert ABSENT not in (absent, absent[-17:-16])
    forged = iter([ABSENT, absent])
    for _ in range(2):
        answer = next(forged)
        between.change = lambda effect, payload, answer=answer: answer
        with Session(sqlite) as session:
            assert session.get(Badge, "here") is not None
    assert SQLModelCache.stats().corrupt == 2


def test_a_payload_that_does_not_open_is_replaced(sqlite: Engine) -> None:
    """It is a counted miss; the next get is a hit again."""
    between = Between()
    SQLModelCache.configure(between, encryption_key=KEY)
    pk = add_hero(sqlite)
    get_hero(sqlite, pk)
    between.change = lambda effect, payload: payload[:-1] + bytes([payload[-1] ^ 1])
    assert get_hero(sqlite, pk).name == "Rusty"
    between.change = lambda effect, payload: payload
    assert get_hero(sqlite, pk).name == "Rusty"
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.corrupt, stats.fills) == (1, 1, 2)


@pytest.mark.parametrize("other", [None, OTHER, [OTHER, KEY]])
def test_processes_with_and_without_keys_side_by_side(sqlite: Engine, store: Store, other: Any) -> None:
    """No error, no wrong row. Without a key neither takes the other's payloads for broken, and both hit their own."""
    pk = add_hero(sqlite)
    for name in ("one", "two"):
        for key in (KEY, other, KEY, other):
            SQLModelCache.configure(store.transport, encryption_key=key)
            assert get_hero(sqlite, pk).name in ("Rusty", "one")
            stats = SQLModelCache.stats()
            assert stats.corrupt == 0 or other == OTHER
        if other is None:
            assert stats.hits == 1
        with Session(sqlite) as session:
            session.get_one(Hero, pk).name = name
            session.commit()
        for key in (KEY, other):
            SQLModelCache.configure(store.transport, encryption_key=key)
            assert get_hero(sqlite, pk).name == name


def test_get_many_and_get_by_are_sealed(sqlite: Engine) -> None:
    """What several rows, and hints, carry is what a get carries."""
    between = Between()
    SQLModelCache.configure(between, encryption_key=KEY)
    with Session(sqlite) as session:
        for number in range(3):
            session.add(Gadget(owner="me", number=number, label="A secret label"))
        session.commit()
    for _ in range(2):
        with Session(sqlite) as session:
            found = SQLModelCache.get_many(session, Gadget, [("me", number) for number in range(4)])
            assert [row.label for row in found if row] == ["A secret label"] * 3
    assert SQLModelCache.stats().hits == 3
    assert len(between.fills) == 3
    assert all(b"secret" not in fill.payload for fill in between.fills)


# configuration


@pytest.mark.parametrize("key", [KEY, base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode()])
def test_a_key_is_bytes_or_their_base64_text(key: Any) -> None:
    """Of either alphabet, with its padding: a passphrase may look like one without."""
    SQLModelCache.configure(encryption_key=key)
    SQLModelCache.configure(encryption_key=[b"0" * 16, key])
    settings = SQLModelCache.get_config()
    assert settings is not None
    assert settings.encryption_keys == (b"0" * 16, KEY)


SECRET = "not-a-key-but-a-secret"


@pytest.mark.parametrize(
    "key", [SECRET, SECRET.encode(), b"", "", [], [KEY, SECRET], [KEY, KEY], 5, [5], {KEY: 1}, "ключ" * 8]
)
def test_what_is_no_key_is_said_without_showing_it(key: Any) -> None:
    """The error says what a key is, and nothing of what was given."""
    with pytest.raises(ConfigurationError, match="encryption_key") as refused:
        SQLModelCache.configure(encryption_key=key)
    shown = f"{refused.value} {refused.value.value} {refused.value.args}"
    assert SECRET not in shown
    assert "kkkk" not in shown


def test_settings_do_not_show_their_keys() -> None:
    """Neither `repr` nor `str`."""
    SQLModelCache.configure(encryption_key=KEY)
    assert "kkkk" not in repr(SQLModelCache.get_config())


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; the previous configuration stays."""
    SQLModelCache.configure(default_ttl=5)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sqlmodel-cache\[encryption\]'"):
        SQLModelCache.configure(encryption_key=KEY)
    SQLModelCache.configure(default_ttl=6)
    settings = SQLModelCache.get_config()
    assert settings is not None
    assert settings.default_ttl == 6


# size


def test_a_row_that_is_too_large_is_not_stored(sqlite: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """It is read from the database, and said why, without the row."""
    between = Between()
    SQLModelCache.configure(between, max_payload_bytes=1000)
    small, large = add_hero(sqlite, "x" * 900), add_hero(sqlite, "y" * 1000)
    for _ in range(2):
        for pk in (small, large):
            get_hero(sqlite, pk)
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.uncached, len(between.fills)) == (1, 2, 1)
    assert "max_payload_bytes=1000" in caplog.text
    assert "yyy" not in caplog.text


@pytest.mark.parametrize("key", [None, KEY])
def test_a_payload_that_is_too_large_is_not_decoded(sqlite: Engine, key: Any) -> None:
    """Whoever wrote it: it is a counted miss, and replaced."""
    between = Between()
    between.blocking = True
    SQLModelCache.configure(between, max_payload_bytes=1000, encryption_key=key)
    pk = add_hero(sqlite)
    get_hero(sqlite, pk)
    between.change = lambda effect, payload: payload + bytes(1000 + OVERHEAD + 1 - len(payload))
    get_hero(sqlite, pk)
    between.change = lambda effect, payload: payload
    get_hero(sqlite, pk)
    stats = SQLModelCache.stats()
    assert (stats.hits, stats.corrupt) == (1, 1)


def test_only_payloads_up_to_the_limit_pass() -> None:
    """The limit is one of the row's own bytes, with a key, too."""
    for gate in (Gate(100), Gate(100, [KEY])):
        for size, wanted in ((100, 100), (101, 0)):
            stored = sealed(gate, fill(b"x" * size))
            assert len(opened(gate, stored)) == wanted


@pytest.mark.parametrize("wrong", [0, -1, True, "1000", 1e6, None], ids=repr)
def test_wrong_max_payload_bytes(wrong: Any) -> None:
    """It is a positive int."""
    with pytest.raises(ConfigurationError, match="max_payload_bytes"):
        SQLModelCache.configure(max_payload_bytes=wrong)


def test_reads_of_what_only_uses_the_database_are_its_own(engine: Engine, store: Store, sql: Log) -> None:
    """On every database and driver, a get with a key is what it is without."""
    SQLModelCache.configure(store.transport, encryption_key=[KEY, OTHER])
    pk = add_hero(engine)
    get_hero(engine, pk)
    sql.take()
    checkouts = sql.checkouts
    assert get_hero(engine, pk).age == 48
    assert (sql.take(), sql.checkouts) == ([], checkouts)
