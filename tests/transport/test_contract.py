"""Every cell of the state table in `_protocol.py`, on every transport: reply, state after it, version after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from transport.backends import (
    ELSEWHERE,
    ENTRY,
    FAR,
    FENCE_TTL_MS,
    FINGERPRINT,
    NEIGHBOUR,
    OTHER_FINGERPRINT,
    PAST,
    PAYLOAD,
    ROW,
    TABLE,
    TTL_MS,
    Backend,
    Fence,
    Held,
    RedisBackend,
    Value,
    id_of,
    version_of,
)

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import (
    VARIANTS,
    Begin,
    Commit,
    End,
    Fenced,
    Fill,
    Filling,
    Granted,
    Hit,
    Keys,
    Lease,
    Load,
    Lookup,
    Resign,
)
from sqlmodel_cache._plan import Effect

OTHER, MINE, STRANGER = id_of("other"), id_of("mine"), id_of("stranger")
NOBODYS = Granted(version_of("mine"), version_of("mine"))
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
ELECT_MS = 50_000  # longer than any test takes
ELECT = Lease(ENTRY, FINGERPRINT, id_of("elect"), elect_ms=ELECT_MS)


def _fill(backend: Backend, fingerprint: bytes = FINGERPRINT) -> None:
    """Bring the row to VALUE."""
    granted = backend.execute(Lease(ENTRY, fingerprint, id_of("first")))
    assert backend.execute(Fill(ENTRY, granted, fingerprint, PAYLOAD, TTL_MS)) is True


def _begin(backend: Backend, keys: Keys = ROW, token: bytes = OTHER) -> None:
    backend.execute(Begin(keys, token, FENCE_TTL_MS))


def _value_of_another_release(backend: Backend) -> None:
    _fill(backend, OTHER_FINGERPRINT)


def _value_of_an_older_table(backend: Backend) -> None:
    _fill(backend)
    backend.execute(End(TABLE, OTHER, id_of("end")))


def _value_under_a_pending_table(backend: Backend) -> None:
    _fill(backend)
    version = backend.own_version(ENTRY.table)
    _begin(backend, TABLE)
    held = backend.peek(ENTRY.table)
    assert isinstance(held, Fence)
    backend.place(ENTRY.table, replace(held, version=version))  # as if BEGIN had kept the version


def _value_of_another_server(backend: Backend) -> None:
    _fill(backend)
    backend.forget_server(ENTRY.table)


def _value_under_no_table(backend: Backend) -> None:
    _fill(backend)
    backend.evict(ENTRY.table)


def _fence(backend: Backend) -> None:
    backend.execute(LEASE)


def _elected(backend: Backend) -> None:
    assert backend.execute(ELECT).elected


def _elected_too_long_ago(backend: Backend) -> None:
    _elected(backend)
    backend.lapse_election(ENTRY.row)


def _lapsed(backend: Backend) -> None:
    _fence(backend)
    _begin(backend)
    backend.lapse(ENTRY.row)


def _pending_of_two(backend: Backend) -> None:
    _fence(backend)
    _begin(backend)
    _begin(backend, token=STRANGER)


STATES: dict[str, Callable[[Backend], None]] = {
    "absent": lambda backend: None,
    "fence": _fence,
    "elected": _elected,
    "elected too long ago": _elected_too_long_ago,
    "pending": _begin,
    "two pending": _pending_of_two,
    "lapsed": _lapsed,
    "value": _fill,
    "another release's value": _value_of_another_release,
    "older table's value": _value_of_an_older_table,
    "pending table's value": _value_under_a_pending_table,
    "lost table's value": _value_under_no_table,
    "another server's value": _value_of_another_server,
}

STEPS: dict[str, Callable[[Backend], Effect[object]]] = {
    "lookup": lambda backend: Lookup(ENTRY, FINGERPRINT),
    "lease": lambda backend: LEASE,
    "replace": lambda backend: Lease(ENTRY, FINGERPRINT, id_of("lease"), replace=True),
    "elect": lambda backend: ELECT,
    "elect, replace": lambda backend: Lease(ENTRY, FINGERPRINT, id_of("lease"), True, ELECT_MS),
    "fill, own version": lambda backend: Fill(ENTRY, backend.granted(), FINGERPRINT, PAYLOAD, TTL_MS),
    "fill, another": lambda backend: Fill(ENTRY, NOBODYS, FINGERPRINT, PAYLOAD, TTL_MS),
    "renew, own version": lambda backend: Fill(ENTRY, backend.granted(), FINGERPRINT, PAYLOAD, TTL_MS, renew=True),
    "renew, another": lambda backend: Fill(ENTRY, NOBODYS, FINGERPRINT, PAYLOAD, TTL_MS, renew=True),
    "resign, own version": lambda backend: Resign(ENTRY, backend.granted()),
    "resign, another": lambda backend: Resign(ENTRY, NOBODYS),
    "begin": lambda backend: Begin(ROW, MINE, FENCE_TTL_MS),
    "end, owner": lambda backend: End(ROW, OTHER, id_of("end")),
    "end, nobody": lambda backend: End(ROW, MINE, id_of("end")),
}

# What is held after a step: kept (as before), new (another version), same (its version); then its tokens, and whether
# somebody is elected.
ALWAYS = {
    "lookup": "None kept",
    "fill, another": "False kept",
    "renew, another": "False kept",
    "resign, another": "None kept",
    "begin": "None new mine",
    "end, owner": "None new",
    "end, nobody": "None new",
}
VALID = ALWAYS | {
    "lookup": "hit kept",
    "lease": "hit kept",
    "replace": "granted kept",
    "elect": "hit kept",
    "elect, replace": "granted kept",
    "fill, own version": "True value",
    "renew, own version": "True only",
    "resign, own version": "None kept",
}
INVALID = ALWAYS | {
    "lease": "granted new",
    "replace": "granted new",
    "elect": "elected new elected",
    "elect, replace": "elected new elected",
    "fill, own version": "False kept",
    "renew, own version": "False kept",
    "resign, own version": "None kept",
}
LACKING = VALID | {"lookup": "None kept", "lease": "granted kept", "elect": "granted kept"}
FENCE = ALWAYS | {
    "lease": "granted same",
    "replace": "granted same",
    "elect": "elected same elected",
    "elect, replace": "elected same elected",
    "fill, own version": "True value",
    "renew, own version": "True only",
    "resign, own version": "None kept",
}
PENDING = ALWAYS | {
    "lease": "fenced kept",
    "replace": "fenced kept",
    "elect": "fenced kept",
    "elect, replace": "fenced kept",
    "fill, own version": "False kept",
    "renew, own version": "False kept",
    "resign, own version": "None kept",
}
TABLE_OF_CELLS: dict[str, dict[str, str]] = {
    "absent": INVALID,
    "fence": FENCE,
    "elected": FENCE
    | {
        "lease": "granted kept",
        "replace": "granted kept",
        "elect": "filling kept",
        "elect, replace": "filling kept",
        "resign, own version": "None same",
    },
    "elected too long ago": FENCE,
    "pending": PENDING | {"begin": "None new other mine", "end, owner": "None same", "end, nobody": "None new other"},
    "two pending": PENDING
    | {
        "begin": "None new other stranger mine",
        "end, owner": "None same stranger",
        "end, nobody": "None new other stranger",
    },
    "lapsed": FENCE,
    "value": VALID,
    "another release's value": LACKING,
    "older table's value": INVALID,
    "pending table's value": INVALID
    | {
        "lease": "fenced kept",
        "replace": "fenced kept",
        "elect": "fenced kept",
        "elect, replace": "fenced kept",
        "fill, own version": "True value",
        "renew, own version": "True only",
    },
    "lost table's value": INVALID,
    "another server's value": INVALID | {"fill, own version": "True value", "renew, own version": "True only"},
}
CELLS = [(state, step) for state, row in TABLE_OF_CELLS.items() for step in row]


def _word(reply: object) -> str:
    match reply:
        case bytes(payload) | Hit(payload):
            assert payload == PAYLOAD
            return "hit"
        case Granted(elected=elected):
            return "elected" if elected else "granted"
        case Filling(left_ms=left_ms):
            assert 0 < left_ms <= ELECT_MS
            return "filling"
        case Fenced():
            return "fenced"
    return str(reply)


def _change(before: Held, after: Held) -> str:
    if not isinstance(after, Fence):
        return "value" if after else "absent"
    age = "same" if isinstance(before, Fence) and before.version == after.version else "new"
    tokens = [token.decode().strip("\0") for token, _ in after.pending]
    return " ".join([age, *tokens, *["elected"] * (after.election is not None and after.election > PAST)])


def _version(held: Held) -> bytes:
    assert isinstance(held, Fence)
    return held.version


def _live(held: Held) -> Held:
    """Return what a key holds, without tokens whose deadline has passed, and an election that is over."""
    if not isinstance(held, Fence):
        return held
    election = held.election if held.election and held.election > PAST else None
    return Fence(held.version, tuple(each for each in held.pending if each[1] > PAST), election)


@pytest.mark.parametrize(("state", "step"), CELLS)
def test_cell_of_the_state_table(backend: Backend, state: str, step: str) -> None:
    """Each step in each state of a row gives the reply and the state that the table says."""
    STATES[state](backend)
    before = backend.peek(ENTRY.row)
    effect = STEPS[step](backend)
    reply = backend.execute(effect)
    after = backend.peek(ENTRY.row)

    word, _, change = TABLE_OF_CELLS[state][step].partition(" ")
    assert _word(reply) == word
    if change == "kept":
        assert _live(after) == _live(before)
    else:
        assert _change(before, after) == ("value" if change == "only" else change)
    if isinstance(reply, Granted | Filling):
        assert (reply.lease if isinstance(reply, Filling) else reply) == backend.granted()
        assert not isinstance(after, Fence) or not after.pending
    if change in ("value", "only"):
        others = before.payloads if state == "another release's value" and isinstance(before, Value) else ()
        others = () if change == "only" else others
        assert after == Value(
            backend.own_version(ENTRY.row), backend.own_version(ENTRY.table), ((FINGERPRINT, PAYLOAD), *others)
        )
    if isinstance(backend, RedisBackend):
        assert backend.all_expire()


@pytest.mark.parametrize("state", ["absent", "fence", "pending", "lapsed"])
@pytest.mark.parametrize("step", ["lease", "begin", "end, owner", "end, nobody"])
def test_cell_of_the_state_table_of_a_table(backend: Backend, state: str, step: str) -> None:
    """A table's key goes through the same states; a lease makes it, and is refused while it is pending."""
    if state != "absent":
        backend.execute(LEASE)
    if state in ("pending", "lapsed"):
        _begin(backend, TABLE)
    if state == "lapsed":
        backend.lapse(ENTRY.table)
    before = backend.peek(ENTRY.table)
    effects: dict[str, Effect[object]] = {
        "lease": LEASE,
        "begin": Begin(TABLE, MINE, FENCE_TTL_MS),
        "end, owner": End(TABLE, OTHER, id_of("end")),
        "end, nobody": End(TABLE, MINE, id_of("end")),
    }
    reply = backend.execute(effects[step])
    after = backend.peek(ENTRY.table)

    assert isinstance(after, Fence)
    tokens = {OTHER} if state == "pending" else set()
    if step == "lease":
        assert isinstance(reply, Fenced if state == "pending" else Granted)
        kept = state != "absent"
    elif step == "begin":
        tokens.add(MINE)
        kept = False
    else:
        kept = step == "end, owner" and state == "pending"
        tokens -= {OTHER} if step == "end, owner" else set()
    assert after.tokens == tokens
    assert (isinstance(before, Fence) and before.version == after.version) == kept
    if isinstance(backend, RedisBackend):
        assert backend.all_expire()


def test_table_write_makes_every_row_of_its_shard_a_miss(backend: Backend) -> None:
    """BEGIN on a table invalidates values of its shard and no others; END does not bring them back."""
    for entry in (ENTRY, NEIGHBOUR, ELSEWHERE):
        granted = backend.execute(Lease(entry, FINGERPRINT, id_of(entry.row[-4:])))
        assert backend.execute(Fill(entry, granted, FINGERPRINT, PAYLOAD, TTL_MS))
    _begin(backend, TABLE)
    looked_up = [backend.execute(Lookup(entry, FINGERPRINT)) for entry in (ENTRY, NEIGHBOUR, ELSEWHERE)]
    assert looked_up == [None, None, PAYLOAD]
    assert backend.execute(Lease(NEIGHBOUR, FINGERPRINT, id_of("n"))) == Fenced()
    backend.execute(End(TABLE, OTHER, id_of("end")))
    assert backend.execute(Lookup(ENTRY, FINGERPRINT)) is None
    assert isinstance(backend.execute(Lease(NEIGHBOUR, FINGERPRINT, id_of("n"))), Granted)


def test_table_write_refuses_no_fill_but_makes_it_invalid(backend: Backend) -> None:
    """A lease from before a table's BEGIN still fills, under the version that it was given: nobody can hit that."""
    granted = backend.execute(LEASE)
    _begin(backend, TABLE)
    backend.execute(End(TABLE, OTHER, id_of("end")))
    assert backend.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert backend.execute(Lookup(ENTRY, FINGERPRINT)) is None


def test_one_effect_reaches_rows_and_tables_of_many_slots(backend: Backend) -> None:
    """BEGIN and END of a transaction's whole write set touch each of its keys, in however many slots they are."""
    keys = Keys((ENTRY.row, NEIGHBOUR.row, ELSEWHERE.row), (ENTRY.table, *(f"c:{{db/team:{i}}}" for i in range(16))))
    assert backend.execute(Begin(keys, MINE, FENCE_TTL_MS)) is None
    every = [backend.peek(key) for key in (*keys.rows, *keys.tables)]
    assert all(isinstance(held, Fence) and held.tokens == {MINE} for held in every)
    assert backend.execute(End(keys, MINE, id_of("end"))) is None
    after = [backend.peek(key) for key in (*keys.rows, *keys.tables)]
    assert all(isinstance(held, Fence) and not held.tokens for held in after)
    assert [_version(held) for held in every] == [_version(held) for held in after]


def _fill_as(backend: Backend, release: int, ttl_ms: int = TTL_MS) -> None:
    fingerprint, payload = f"release{release}".encode(), f"row of {release}".encode()
    granted = backend.execute(Lease(ENTRY, fingerprint, id_of(str(release))))
    assert backend.execute(Fill(ENTRY, granted, fingerprint, payload, ttl_ms)) is True


def _hits(backend: Backend, releases: range) -> list[int]:
    found = {n: backend.execute(Lookup(ENTRY, f"release{n}".encode())) for n in releases}
    assert all(payload in (None, f"row of {n}".encode()) for n, payload in found.items())
    return [n for n, payload in found.items() if payload is not None]


def test_releases_share_a_row_and_its_invalidation(backend: Backend) -> None:
    """A row has a payload for each of the last few fingerprints; one BEGIN makes all of them a miss."""
    for release in range(1, VARIANTS + 1):
        _fill_as(backend, release)
    assert _hits(backend, range(1, 9)) == list(range(1, VARIANTS + 1))
    _fill_as(backend, 9)
    assert _hits(backend, range(1, 10)) == [*range(2, VARIANTS + 1), 9]
    granted = backend.execute(Lease(ENTRY, b"release7", id_of("late")))
    _begin(backend)
    backend.execute(End(ROW, OTHER, id_of("end")))
    assert _hits(backend, range(1, 10)) == []
    assert backend.execute(Fill(ENTRY, granted, b"release7", b"row of 7", TTL_MS)) is False
    _fill_as(backend, 8)
    assert _hits(backend, range(1, 10)) == [8]


def test_fill_beside_another_does_not_prolong_it(backend: Backend) -> None:
    """Two payloads of a row expire together: when the first of them was to."""
    _fill_as(backend, 1, ttl_ms=10_000)
    _fill_as(backend, 2, ttl_ms=60_000)
    assert backend.ttl(ENTRY.row) <= 10
    _fill_as(backend, 3, ttl_ms=5_000)
    assert backend.ttl(ENTRY.row) <= 5


def test_write_set_of_no_keys_is_told_to_nobody(backend: Backend) -> None:
    """BEGIN and END of nothing do nothing."""
    nothing = Keys((), ())
    assert backend.execute(Begin(nothing, MINE, FENCE_TTL_MS)) is None
    assert backend.execute(End(nothing, MINE, id_of("end"))) is None


def test_versions_differ_although_ids_repeat(backend: Backend) -> None:
    """A command that is sent twice with one id makes two versions: a client library may repeat it."""
    seen = set()
    for _ in range(50):
        _begin(backend, token=MINE)
        seen.add(backend.own_version(ENTRY.row))
    assert len(seen) == 50
    held = backend.peek(ENTRY.row)
    assert isinstance(held, Fence)
    assert held.tokens == {MINE}
    assert len(held.pending) == 1


@pytest.mark.parametrize("effect", [Load(), Commit(), Effect()])
def test_unknown_effect_is_a_transport_error(backend: Backend, effect: Effect[object]) -> None:
    """An effect that is not the cache's is refused, in the transport's own words."""
    with pytest.raises(TransportError, match=type(effect).__name__):
        backend.execute(effect)


def test_one_of_many_is_elected(backend: Backend) -> None:
    """Of those who ask for a cold row one is elected; the others hold the very same lease, and may fill under it."""
    first, *others = [backend.execute(Lease(ENTRY, FINGERPRINT, id_of(f"{n}"), elect_ms=ELECT_MS)) for n in range(5)]
    assert first.elected
    for other in others:
        assert isinstance(other, Filling)
        assert other.lease == first
        assert not other.lease.elected
    assert backend.execute(Fill(ENTRY, others[-1].lease, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert backend.execute(Fill(ENTRY, first, FINGERPRINT, b"late", TTL_MS)) is True
    assert backend.execute(Lookup(ENTRY, FINGERPRINT)) == b"late"


def test_reader_who_asks_for_no_election_hears_of_none(backend: Backend) -> None:
    """`elect_ms=0` grants at once, elects nobody, and leaves the one who is elected alone."""
    assert not backend.execute(LEASE).elected
    first = backend.execute(ELECT)
    assert first.elected
    assert backend.execute(LEASE) == first
    assert not backend.execute(LEASE).elected
    assert isinstance(backend.execute(ELECT), Filling)


def test_elected_one_whose_time_has_passed_is_followed_by_another(backend: Backend) -> None:
    """A reader that died while it was elected holds others up for as long as it asked for, and no longer."""
    first = backend.execute(ELECT)
    backend.lapse_election(ENTRY.row)
    second = backend.execute(ELECT)
    assert second == first
    assert second.elected
    assert isinstance(backend.execute(ELECT), Filling)


def test_waiting_is_bounded_by_what_one_would_have_asked_for(backend: Backend) -> None:
    """A reader is never told to wait longer than its own `elect_ms`, whatever another had asked for."""
    backend.execute(ELECT)
    told = backend.execute(Lease(ENTRY, FINGERPRINT, id_of("brief"), elect_ms=20))
    assert isinstance(told, Filling)
    assert told.left_ms == 20
    held = backend.peek(ENTRY.row)
    assert isinstance(held, Fence)
    backend.place(ENTRY.row, Fence(held.version, election=FAR))  # the server's clock was set back
    told = backend.execute(ELECT)
    assert isinstance(told, Filling)
    assert told.left_ms == ELECT_MS


def test_resigning_lets_the_next_one_be_elected(backend: Backend) -> None:
    """Who has nothing to fill gives up the election and keeps the lease; what is not its own it leaves alone."""
    first = backend.execute(ELECT)
    assert backend.execute(Resign(ENTRY, NOBODYS)) is None
    assert backend.execute(Resign(NEIGHBOUR, first)) is None
    assert isinstance(backend.execute(ELECT), Filling)
    assert backend.execute(Resign(ENTRY, first)) is None
    second = backend.execute(ELECT)
    assert second.elected
    assert backend.execute(Fill(ENTRY, first, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert backend.execute(Resign(ENTRY, second)) is None
    assert backend.execute(Lookup(ENTRY, FINGERPRINT)) == PAYLOAD


@pytest.mark.parametrize("keys", [ROW, TABLE], ids=["row", "table"])
def test_commit_ends_an_election(backend: Backend, keys: Keys) -> None:
    """After BEGIN nobody is asked to wait for a fill that will be refused; after END somebody new is elected."""
    first = backend.execute(ELECT)
    _begin(backend, keys)
    assert backend.execute(ELECT) == Fenced()
    backend.execute(End(keys, OTHER, id_of("end")))
    if keys is ROW:
        assert backend.execute(Fill(ENTRY, first, FINGERPRINT, PAYLOAD, TTL_MS)) is False
        assert backend.execute(ELECT).elected
    else:  # the row's fence is as it was, and its lease names the table's new version
        told = backend.execute(ELECT)
        assert isinstance(told, Filling)
        assert told.lease.table_version != first.table_version


def test_renewed_value_has_one_payload_and_its_own_ttl(backend: Backend) -> None:
    """A renewal replaces what is there, whoever else's payload it was, and lives as long as it says."""
    _fill_as(backend, 1, ttl_ms=5_000)
    _fill_as(backend, 2, ttl_ms=5_000)
    granted = backend.execute(Lease(ENTRY, b"release1", id_of("again"), replace=True))
    assert backend.execute(Fill(ENTRY, granted, b"release1", b"row of 1", 60_000, renew=True)) is True
    assert _hits(backend, range(1, 4)) == [1]
    assert 30 < backend.ttl(ENTRY.row) <= 60
    assert backend.execute(Fill(ENTRY, granted, b"release1", b"row of 1", 10_000, renew=True)) is True
    assert backend.ttl(ENTRY.row) <= 10
    assert backend.execute(Fill(ENTRY, granted, b"release1", b"row of 1", 60_000)) is True
    assert backend.ttl(ENTRY.row) <= 10
