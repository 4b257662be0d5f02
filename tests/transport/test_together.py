"""Several effects in one round trip: each as if it were alone, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
from transport.backends import (
    ELSEWHERE,
    ENTRY,
    FENCE_TTL_MS,
    FINGERPRINT,
    NEIGHBOUR,
    PAYLOAD,
    ROW,
    TTL_MS,
    Backend,
    RedisBackend,
    Sent,
    id_of,
    version_of,
)

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import (
    Begin,
    End,
    Entry,
    Fenced,
    Fill,
    Granted,
    Hit,
    Keys,
    Lease,
    Load,
    Lookup,
    Resign,
    Together,
)
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport import _commands
from sqlmodel_cache.transport.redis import _is_commit

ENTRIES = (ENTRY, NEIGHBOUR, ELSEWHERE)
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
NOBODYS = Granted(version_of("nobody's"), version_of("nobody's"))


def _look_ups(*entries: Entry) -> tuple[Effect[Any], ...]:
    return tuple(Lookup(entry, FINGERPRINT) for entry in entries)


def _leases(*entries: Entry) -> tuple[Effect[Any], ...]:
    return tuple(Lease(entry, FINGERPRINT, id_of(entry.row[-6:])) for entry in entries)


def _fills(entries: tuple[Entry, ...], leases: tuple[Any, ...]) -> tuple[Effect[Any], ...]:
    return tuple(
        Fill(entry, lease, FINGERPRINT, entry.row.encode(), TTL_MS)
        for entry, lease in zip(entries, leases, strict=True)
    )


def _count(redis_backend: RedisBackend, act: Callable[[], object]) -> dict[str, int]:
    """Return how many of which commands the server executes."""
    redis_backend.client.config_resetstat()
    act()
    found = redis_backend.client.info("commandstats")
    names = ("mget", "eval", "evalsha")
    return {name: found[f"cmdstat_{name}"]["calls"] for name in names if f"cmdstat_{name}" in found}


def test_replies_are_in_order_and_as_if_alone(backend: Backend) -> None:
    """Reads of many rows, cold and warm, and one after the other: each has the reply that it would have alone."""
    assert backend.execute(Together(())) == ()
    assert backend.execute(Together(_look_ups(*ENTRIES))) == (None, None, None)
    leases = backend.execute(Together(_leases(*ENTRIES)))
    assert all(isinstance(lease, Granted) for lease in leases)
    assert backend.execute(Together(_fills(ENTRIES[:2], leases[:2]))) == (True, True)
    rows = [entry.row.encode() for entry in ENTRIES]
    assert backend.execute(Together(_look_ups(*ENTRIES, *ENTRIES[::-1]))) == (*rows[:2], None, None, *rows[1::-1])
    mixed = (
        Lookup(NEIGHBOUR, FINGERPRINT),
        Fill(ELSEWHERE, NOBODYS, FINGERPRINT, PAYLOAD, TTL_MS),
        Lease(ENTRY, FINGERPRINT, id_of("mixed")),
        Lookup(ENTRY, b"another!"),
        Fill(ELSEWHERE, leases[2], FINGERPRINT, rows[2], TTL_MS),
        Resign(ELSEWHERE, leases[2]),
    )
    assert backend.execute(Together(mixed)) == (rows[1], False, Hit(rows[0]), None, True, None)
    assert backend.execute(Together(_look_ups(ELSEWHERE))) == (rows[2],)


def test_commits_of_many_slots_go_together(backend: Backend) -> None:
    """BEGIN and END of several write sets, each of several slots, find their own replies."""
    keys = Keys((ENTRY.row, ELSEWHERE.row), (ELSEWHERE.table,))
    begins = (Begin(keys, id_of("one"), FENCE_TTL_MS), Begin(ROW, id_of("two"), FENCE_TTL_MS))
    assert backend.execute(Together(begins)) == (None, None)
    assert backend.execute(Together(_leases(ENTRY, ELSEWHERE))) == (Fenced(), Fenced())
    ends = (End(keys, id_of("one"), id_of("end")), *_look_ups(NEIGHBOUR))
    assert backend.execute(Together(ends)) == (None, None)
    fenced, granted = backend.execute(Together(_leases(ENTRY, ELSEWHERE)))
    assert fenced == Fenced()
    assert isinstance(granted, Granted)
    assert backend.execute(Together((End(ROW, id_of("two"), id_of("end")),))) == (None,)
    assert isinstance(backend.execute(LEASE), Granted)


@pytest.mark.parametrize("unknown", [Load(), Effect(), Together(_look_ups(ENTRY))], ids=["Load", "Effect", "Together"])
def test_effect_that_is_not_known_fails_alone(backend: Backend, unknown: Effect[Any]) -> None:
    """What no transport knows, another `Together` included, is its own error; the others have their replies."""
    first, failed, last = backend.execute(Together((LEASE, unknown, *_look_ups(ENTRY))))
    assert isinstance(first, Granted)
    assert isinstance(failed, TransportError)
    assert type(unknown).__name__ in str(failed)
    assert last is None


def test_effect_that_the_server_refuses_fails_alone(redis_backend: RedisBackend) -> None:
    """A server that is out of memory refuses the writes among the effects; the reads have their replies."""
    client = redis_backend.client
    lease = redis_backend.execute(LEASE)
    redis_backend.execute(Fill(ENTRY, lease, FINGERPRINT, PAYLOAD, TTL_MS))
    before = {**client.config_get("maxmemory"), **client.config_get("maxmemory-policy")}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    many = Keys((NEIGHBOUR.row, ELSEWHERE.row), ())
    effects = (*_look_ups(ENTRY), *_leases(ELSEWHERE), Begin(many, id_of("token"), FENCE_TTL_MS), *_look_ups(NEIGHBOUR))
    try:
        found, leased, begun, missed = redis_backend.execute(Together(effects))
    finally:
        for name, value in before.items():
            client.config_set(name, value)
    assert (found, missed) == (PAYLOAD, None)
    for error, name in ((leased, "Lease"), (begun, "Begin")):
        assert isinstance(error, TransportError)
        assert str(error).startswith(name)
        assert isinstance(error.__cause__, redis.ResponseError)


def test_command_that_the_server_refuses_is_no_lost_connection(redis_backend: RedisBackend) -> None:
    """Where the server refuses the one command that all share, each effect fails by itself, and `Together` does not."""
    client = redis_backend.client
    client.execute_command("ACL", "SETUSER", "default", "-mget", "-evalsha")
    try:
        for effects in (_look_ups(*ENTRIES), _leases(ENTRY)):
            failed = redis_backend.execute(Together(effects))
            assert [type(error) for error in failed] == [TransportError] * len(effects)
            assert all(isinstance(error.__cause__, redis.ResponseError) for error in failed)
            assert len(set(map(id, failed))) == len(effects)
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert redis_backend.execute(Together(_look_ups(*ENTRIES))) == (None, None, None)


def test_time_of_a_commit_is_given_where_a_commit_is_among_them() -> None:
    """A `Together` with a BEGIN or an END has the budget of a commit, and one of readers that of a read."""
    begin, end = Begin(ROW, id_of("token"), FENCE_TTL_MS), End(ROW, id_of("token"), id_of("end"))
    assert not _is_commit(Together((*_look_ups(ENTRY), *_leases(ENTRY))))
    assert _is_commit(Together((*_look_ups(ENTRY), begin)))
    assert _is_commit(Together((end,)))


def test_look_ups_share_one_mget_with_each_key_once(redis_backend: RedisBackend) -> None:
    """However many look-ups there are, they are one MGET, and a key that several need is asked for once."""
    effects = _look_ups(*ENTRIES, *ENTRIES)
    assert _count(redis_backend, lambda: redis_backend.execute(Together(effects))) == {"mget": 1}
    [command] = _commands.pack(effects).commands
    keys = (ENTRY.row, ENTRY.table, NEIGHBOUR.row, ELSEWHERE.row, ELSEWHERE.table)
    assert _commands.words(command) == ("MGET", *map(str.encode, keys))


def test_together_is_one_round_trip(redis_backend: RedisBackend, sent: Sent) -> None:
    """Look-ups alone, scripts alone, and both are written to the connection at once; nothing is not written."""
    leases = redis_backend.execute(Together(_leases(*ENTRIES)))
    redis_backend.execute(Together(_fills(ENTRIES, leases)))
    for effects in (
        _look_ups(*ENTRIES),
        _leases(*ENTRIES),
        (*_look_ups(*ENTRIES), *_leases(*ENTRIES), *_fills(ENTRIES, leases)),
    ):
        assert sent.by(lambda effects=effects: redis_backend.execute(Together(effects))) == 1  # type: ignore[misc]
    assert sent.by(lambda: redis_backend.execute(Together(()))) == 0


def test_scripts_are_sent_whole_once_each(redis_backend: RedisBackend, sent: Sent) -> None:
    """After SCRIPT FLUSH a script's source travels once, however many commands need it, in one more round trip."""
    entries = tuple(Entry(f"c:{{db/hero:{n}}}:1", f"c:{{db/hero:{n}}}") for n in range(8))
    leases = redis_backend.execute(Together(_leases(*entries)))
    redis_backend.client.script_flush()
    mixed = (*_look_ups(*entries), *_leases(*entries), *_fills(entries, leases))
    assert _count(redis_backend, lambda: redis_backend.execute(Together(mixed))) == {
        "mget": 1,
        "eval": 2,
        "evalsha": 16 + 14,
    }
    redis_backend.client.script_flush()
    keys = Keys(tuple(entry.row for entry in entries), ())
    begin = Begin(keys, id_of("token"), FENCE_TTL_MS)
    assert _count(redis_backend, lambda: redis_backend.execute(begin)) == {"eval": 1, "evalsha": 8 + 7}
    redis_backend.client.script_flush()
    sent.by(lambda: None)
    assert sent.by(lambda: redis_backend.execute(replace(begin, id=id_of("other")))) == 2


def test_many_are_split_and_stay_in_order(redis_backend: RedisBackend) -> None:
    """An MGET has a bounded number of keys, and a pipeline of commands; the replies do not show it."""
    entries = tuple(Entry(f"c:{{db/hero:{n}}}:{n}", f"c:{{db/hero:{n}}}") for n in range(1_201))
    leases = redis_backend.execute(Together(_leases(*entries)))
    assert set(redis_backend.execute(Together(_fills(entries, leases)))) == {True}
    look_ups = _look_ups(*entries)
    rows = tuple(entry.row.encode() for entry in entries)
    assert redis_backend.execute(Together(look_ups)) == rows
    assert _count(redis_backend, lambda: redis_backend.execute(Together(look_ups))) == {"mget": 3}
    assert [len(command.keys) for command in _commands.pack(look_ups).commands] == [1_000, 1_000, 402]
    lines = [_commands.words(command) for command in _commands.pack(_leases(*entries)).commands]
    assert [len(portion) for portion in _commands.portions(lines)] == [1_000, 201]


@pytest.mark.parametrize("reply", [None, b"OK", [], [b"one"], [b"one"] * 5, redis.ResponseError("no")])
def test_reply_to_an_mget_that_makes_no_sense_fails_its_look_ups(reply: object) -> None:
    """Without the keys that it was asked for a reply is nobody's; the effects beside it are not concerned."""
    effects = (*_look_ups(ENTRY, ELSEWHERE), LEASE)
    parcel = _commands.pack(effects)
    *failed, leased = _commands.unpack(effects, parcel, [reply, [b"fenced", b""]])
    assert leased == Fenced()
    for error in failed:
        assert isinstance(error, TransportError)
        assert "Lookup" in str(error)
    assert failed[0] is not failed[1]
