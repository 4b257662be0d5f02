"""What only Redis can do to the transport: foreign keys, garbage, lost scripts, other dialects; and every key's TTL."""

from __future__ import annotations

import struct

import pytest
from transport.backends import (
    ELSEWHERE,
    ENTRY,
    FENCE_TTL_MS,
    FINGERPRINT,
    NEIGHBOUR,
    PAYLOAD,
    ROW,
    TABLE,
    TTL_MS,
    Fence,
    RedisBackend,
    Value,
    id_of,
    version_of,
)

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import (
    Begin,
    End,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Keys,
    Lease,
    Lookup,
    Resign,
    Together,
)
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport import _commands as transport

SECOND, HOUR = 1_000, 3_600_000
DAY = 24 * HOUR
TOKEN = id_of("token")
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
ELECT = Lease(ENTRY, FINGERPRINT, id_of("elect"), elect_ms=50_000)
LOOKUP = Lookup(ENTRY, FINGERPRINT)
BEGIN = Begin(ROW, TOKEN, FENCE_TTL_MS)
END = End(ROW, TOKEN, id_of("end"))
BOTH = Keys(ROW.rows, TABLE.tables)

FENCE = b"F" + version_of("version")
VALUE = Value(version_of("version"), version_of("table"), ((FINGERPRINT, PAYLOAD),)).raw()
GARBAGE = {
    "empty": b"",
    "text": b"hello",
    "binary": bytes(range(256)),
    "not UTF-8": b"\xff\xfe\xfa",
    "a fence cut short": FENCE[:-1],
    "a token cut short": FENCE + TOKEN,
    "a deadline cut short": FENCE + TOKEN + b"\x42" * 7,
    "a value cut short": VALUE[:20],
    "an election cut short": FENCE + b"\x42" * 7,
    "an election beside a token": FENCE + TOKEN + b"\x42" * 16,
    "an election for ever": FENCE + struct.pack(">d", float("inf")),
    "an election that is no number": FENCE + struct.pack(">d", float("nan")),
    "a fence of the past": FENCE + b"\0" * 4,
    "a value without versions": b"V\x03",
    "a value without payloads": VALUE[:26],
    "a payload cut short": VALUE[:-1],
    "a payload that is too long to be true": VALUE[:34] + b"\xff\xff\xff\xff" + PAYLOAD,
    "a format of the past": b"V\x02" + VALUE[2:],
    "a format to come": b"V\x04" + VALUE[2:],
    "a deadline that is no number": FENCE + TOKEN + struct.pack(">d", float("nan")),
    "only a letter": b"F",
}


def _fill(backend: RedisBackend) -> Granted:
    granted: Granted = backend.execute(LEASE)
    assert backend.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    return granted


def _make(backend: RedisBackend, key: str, kind: str) -> None:
    """Put a key of another Redis type in the place of ours."""
    client = backend.client
    client.delete(key)
    match kind:
        case "list":
            client.rpush(key, "a")
        case "hash":
            client.hset(key, "a", "b")
        case "set":
            client.sadd(key, "a")
        case "zset":
            client.zadd(key, {"a": 1})
        case "stream":
            client.xadd(key, {"a": "b"})
        case "integer":
            client.incr(key)


@pytest.mark.parametrize("which", ["row", "table"])
@pytest.mark.parametrize("kind", ["list", "hash", "set", "zset", "stream", "integer"])
def test_key_of_another_type_is_a_miss_and_is_replaced(redis_backend: RedisBackend, kind: str, which: str) -> None:
    """A list, a hash, ... in the place of a row or a table is no error: it reads as absent, and is overwritten."""
    _fill(redis_backend)
    key = getattr(ENTRY, which)
    _make(redis_backend, key, kind)
    assert redis_backend.execute(LOOKUP) is None
    assert redis_backend.execute(Fill(ENTRY, Granted(TOKEN, TOKEN), FINGERPRINT, PAYLOAD, TTL_MS)) is False or (
        which == "table"
    )
    _fill(redis_backend)
    assert redis_backend.execute(LOOKUP) == PAYLOAD
    for effect in (Begin(BOTH, TOKEN, FENCE_TTL_MS), End(BOTH, TOKEN, id_of("end"))):
        _make(redis_backend, key, kind)
        redis_backend.execute(effect)
        assert isinstance(redis_backend.peek(key), Fence)


@pytest.mark.parametrize("which", ["row", "table"])
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_miss_and_is_replaced(redis_backend: RedisBackend, name: str, which: str) -> None:
    """Bytes that are neither fence nor value, or are cut short, are never served, and a lease replaces them."""
    _fill(redis_backend)
    redis_backend.client.set(getattr(ENTRY, which), GARBAGE[name], px=HOUR)
    assert redis_backend.execute(LOOKUP) is None
    _fill(redis_backend)
    assert redis_backend.execute(LOOKUP) == PAYLOAD


@pytest.mark.parametrize("length", range(len(VALUE)))
def test_value_cut_short_is_a_miss(redis_backend: RedisBackend, length: int) -> None:
    """A value that lost its tail is a miss at every length."""
    _fill(redis_backend)
    whole = redis_backend.client.get(ENTRY.row)
    redis_backend.client.set(ENTRY.row, whole[:length], px=HOUR)
    assert redis_backend.execute(LOOKUP) is None
    assert isinstance(redis_backend.execute(LEASE), Granted)


def test_value_that_another_wrote_is_served_to_nobody_else(redis_backend: RedisBackend) -> None:
    """A value moved in under another fingerprint or another table's version is a miss for us, and is replaced."""
    granted = _fill(redis_backend)
    for value in (
        Value(granted.version, granted.table_version, ((b"release2", b"theirs"),)),
        Value(granted.version, version_of("another"), ((FINGERPRINT, b"theirs"),)),
    ):
        redis_backend.place(ENTRY.row, value)
        assert redis_backend.execute(LOOKUP) is None
        _fill(redis_backend)
        assert redis_backend.execute(LOOKUP) == PAYLOAD


def test_deadline_written_in_the_documented_layout_is_understood(redis_backend: RedisBackend) -> None:
    """A fence is "F", a version, and tokens with big-endian deadlines in ms of the server's clock."""
    seconds, _ = redis_backend.client.time()
    redis_backend.execute(LEASE)
    for deadline, lives in ((seconds * 1_000 + HOUR, True), (seconds * 1_000 - 1, False), (0, False)):
        redis_backend.place(ENTRY.row, Fence(version_of("version"), ((TOKEN, float(deadline)),)))
        assert isinstance(redis_backend.execute(LEASE), Fenced) == lives
    assert redis_backend.peek(ENTRY.row) == Fence(version_of("version"))


def test_deadline_is_the_servers_now_and_the_fence_ttl(redis_backend: RedisBackend) -> None:
    """BEGIN counts its deadline from the server's clock."""
    seconds, _ = redis_backend.client.time()
    redis_backend.execute(BEGIN)
    held = redis_backend.peek(ENTRY.row)
    assert isinstance(held, Fence)
    ((token, deadline),) = held.pending
    assert token == TOKEN
    assert 0 <= deadline - FENCE_TTL_MS - seconds * SECOND < 60 * SECOND


def test_keys_have_the_ttl_of_their_state(redis_backend: RedisBackend) -> None:
    """A value lives as it was told, a lease a minute, a fence a day or twice its deadline, a table a month."""
    pttl = redis_backend.client.pttl

    def lives(key: str, ttl_ms: int) -> bool:
        return ttl_ms - 30 * SECOND < pttl(key) <= ttl_ms

    granted = redis_backend.execute(LEASE)
    assert lives(ENTRY.row, 60 * SECOND)
    assert lives(ENTRY.table, 30 * DAY)
    redis_backend.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS))
    assert lives(ENTRY.row, TTL_MS)
    redis_backend.execute(Begin(BOTH, TOKEN, FENCE_TTL_MS))
    assert lives(ENTRY.row, DAY)
    assert lives(ENTRY.table, DAY)
    redis_backend.execute(Begin(BOTH, id_of("long"), 20 * HOUR))
    assert lives(ENTRY.row, 40 * HOUR)
    redis_backend.execute(End(BOTH, id_of("long"), id_of("end")))
    assert lives(ENTRY.row, DAY)
    redis_backend.execute(End(BOTH, TOKEN, id_of("end")))
    assert lives(ENTRY.row, 60 * SECOND)
    assert lives(ENTRY.table, 30 * DAY)


def test_election_is_written_behind_the_version(redis_backend: RedisBackend) -> None:
    """A fence whose filler is elected is "F", a version, and when the election ends; its ttl is that of any lease."""
    seconds, _ = redis_backend.client.time()
    granted = redis_backend.execute(ELECT)
    raw = redis_backend.client.get(ENTRY.row)
    assert raw[:13] == b"F" + granted.version
    (election,) = struct.unpack(">d", raw[13:])
    assert 0 <= election - ELECT.elect_ms - seconds * SECOND < 60 * SECOND
    assert 30 * SECOND < redis_backend.client.pttl(ENTRY.row) <= 60 * SECOND
    redis_backend.client.pexpire(ENTRY.row, 5 * SECOND)
    redis_backend.execute(Resign(ENTRY, granted))
    assert redis_backend.client.get(ENTRY.row) == raw[:13]
    assert 30 * SECOND < redis_backend.client.pttl(ENTRY.row) <= 60 * SECOND


def test_lua_replies(redis_backend: RedisBackend) -> None:
    """Each script gives the replies that its header names."""
    client = redis_backend.client

    def run(effect: Effect[object]) -> list[object]:
        lines = [transport.words(command, whole=True) for command in transport.encode(effect)]
        return [client.execute_command(*line) for line in lines]

    [[word, name, version, table]] = run(LEASE)  # type: ignore[misc]
    assert name == client.info("replication")["master_replid"][:16].encode()
    assert (word, len(version), len(table)) == (b"granted", 12, 12)
    lease = Granted(version, table)
    assert run(ELECT) == [[b"elected", name, version, table]]
    [[word, *same, left_ms]] = run(ELECT)  # type: ignore[misc]
    assert (word, same) == (b"filling", [name, version, table])
    assert 0 < left_ms <= ELECT.elect_ms
    assert run(Resign(ENTRY, lease)) == [1]
    assert run(Resign(ENTRY, lease)) == [1]
    assert run(Fill(ENTRY, lease, FINGERPRINT, PAYLOAD, TTL_MS)) == [1]
    assert run(LEASE) == [[b"hit", name, PAYLOAD]]
    assert run(BEGIN) == [1]
    assert run(LEASE) == [[b"fenced", name]]
    assert run(Fill(ENTRY, lease, FINGERPRINT, PAYLOAD, TTL_MS)) == [0]
    assert run(END) == [1]


def test_lease_keeps_the_table_alive(redis_backend: RedisBackend) -> None:
    """A table's version is renewed by the leases on its rows: a busy table does not lose it."""
    redis_backend.execute(LEASE)
    redis_backend.client.pexpire(ENTRY.table, 5 * SECOND)
    redis_backend.execute(Lease(NEIGHBOUR, FINGERPRINT, id_of("other lease")))
    assert redis_backend.client.pttl(ENTRY.table) > DAY


def test_scripts_that_the_server_forgot_are_sent_again(redis_backend: RedisBackend) -> None:
    """After SCRIPT FLUSH, or on another replica, effects are answered as ever; in a pipeline over many slots too."""
    many = Keys((ENTRY.row, NEIGHBOUR.row, ELSEWHERE.row), (ENTRY.table, ELSEWHERE.table))

    def execute(effect: object) -> object:
        redis_backend.client.script_flush()
        return redis_backend.execute(effect)  # type: ignore[arg-type]

    granted = execute(LEASE)
    assert isinstance(granted, Granted)
    assert execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert execute(LOOKUP) == PAYLOAD
    assert execute(LEASE) == Hit(PAYLOAD)
    assert execute(Begin(many, TOKEN, FENCE_TTL_MS)) is None
    assert isinstance(execute(LEASE), Fenced)
    assert execute(End(many, TOKEN, id_of("end"))) is None
    assert isinstance(execute(LEASE), Granted)


def test_any_client_gives_the_same_bytes(any_client_backend: RedisBackend) -> None:
    """Neither the protocol's version nor the client's decoding changes a reply."""
    backend = any_client_backend
    assert backend.execute(LOOKUP) is None
    granted = _fill(backend)
    assert backend.execute(LOOKUP) == PAYLOAD
    assert backend.execute(LEASE) == Hit(PAYLOAD)
    left, gone = backend.told_ttl(ENTRY.row), backend.told_ttl(NEIGHBOUR.row)
    assert left is not None
    assert TTL_MS / 1000 - 60 < left <= TTL_MS / 1000
    assert gone is None
    assert granted == Granted(granted.version, backend.own_version(ENTRY.table))
    many = Keys((ENTRY.row, ELSEWHERE.row), (ENTRY.table, ELSEWHERE.table))
    backend.execute(Begin(many, TOKEN, FENCE_TTL_MS))
    assert backend.execute(LEASE) == Fenced()
    assert backend.execute(LOOKUP) is None
    backend.execute(End(many, TOKEN, id_of("end")))
    assert backend.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is False
    fresh = backend.execute(ELECT)
    assert fresh.elected
    told = backend.execute(ELECT)
    assert isinstance(told, Filling)
    assert told.lease == fresh
    assert backend.execute(Resign(ENTRY, fresh)) is None
    assert backend.execute(Together((LOOKUP, ELECT, Lookup(NEIGHBOUR, FINGERPRINT)))) == (None, fresh, None)
    assert backend.execute(Fill(ENTRY, fresh, FINGERPRINT, PAYLOAD, TTL_MS)) is True


@pytest.mark.parametrize(
    ("effect", "replies"),
    [
        (LOOKUP, []),
        (LOOKUP, [[b"one"]]),
        (LOOKUP, ["OK"]),
        (LEASE, [[b"perhaps"]]),
        (LEASE, [[b"granted", b"v"]]),
        (LEASE, [None]),
        (LEASE, [[b"elected", b"v"]]),
        (LEASE, [[b"filling", b"v", b"t"]]),
        (LEASE, [[b"filling", b"v", b"t", 0]]),
        (LEASE, [[b"filling", b"v", b"t", b"1"]]),
        (Resign(ENTRY, Granted(TOKEN, TOKEN)), [0]),
        (Fill(ENTRY, Granted(TOKEN, TOKEN), FINGERPRINT, PAYLOAD, TTL_MS), [2]),
        (Fill(ENTRY, Granted(TOKEN, TOKEN), FINGERPRINT, PAYLOAD, TTL_MS), [b"OK"]),
        (BEGIN, [0]),
        (BEGIN, [1, None]),
        (END, [b"QUEUED"]),
    ],
)
def test_reply_that_makes_no_sense_is_a_transport_error(effect: object, replies: list[object]) -> None:
    """A proxy's own words, or another script's, are never taken for an answer."""
    with pytest.raises(TransportError, match="unexpected reply"):
        transport.decode(effect, replies)  # type: ignore[arg-type]


def test_each_command_touches_one_slot() -> None:
    """Whatever a transaction writes, every command's keys share one hash tag; rows come before tables."""
    keys = Keys((ENTRY.row, ELSEWHERE.row, NEIGHBOUR.row), (ELSEWHERE.table, "c:{db/team:0}"))
    for effect in (Begin(keys, TOKEN, FENCE_TTL_MS), End(keys, TOKEN, id_of("end"))):
        commands = transport.encode(effect)
        assert [list(command.keys) for command in commands] == [
            [ENTRY.row, NEIGHBOUR.row],
            [ELSEWHERE.row, ELSEWHERE.table],
            ["c:{db/team:0}"],
        ]
    assert [command.args[2] for command in transport.encode(End(keys, TOKEN, id_of("end")))] == [2, 1, 0]


def test_error_of_one_slot_fails_the_whole_effect(redis_backend: RedisBackend) -> None:
    """A BEGIN that one of its slots refused is a TransportError: no COMMIT may follow it as if it were fenced."""
    client = redis_backend.client
    many = Keys((ENTRY.row, ELSEWHERE.row), ())
    before = {**client.config_get("maxmemory"), **client.config_get("maxmemory-policy")}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(TransportError, match="Begin"):
            redis_backend.execute(Begin(many, TOKEN, FENCE_TTL_MS))
    finally:
        for name, value in before.items():
            client.config_set(name, value)
    assert redis_backend.execute(Begin(many, TOKEN, FENCE_TTL_MS)) is None
