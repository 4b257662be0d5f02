"""Every cell of the state table in `_protocol.py`, on every transport: reply, state after it, version after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transport.backends import (
    ELSEWHERE,
    ENTRY,
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
)

from sqlmodel_cache import TransportError
from sqlmodel_cache._effects import VARIANTS, Begin, Commit, End, Fenced, Fill, Granted, Hit, Keys, Lease, Load, Lookup
from sqlmodel_cache._plan import Effect

OTHER, MINE, STRANGER = id_of("other"), id_of("mine"), id_of("stranger")
LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))


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
    backend.place(ENTRY.table, Fence(version, held.pending))  # as if BEGIN had kept the version


def _value_under_no_table(backend: Backend) -> None:
    _fill(backend)
    backend.evict(ENTRY.table)


def _fence(backend: Backend) -> None:
    backend.execute(LEASE)


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
    "pending": _begin,
    "two pending": _pending_of_two,
    "lapsed": _lapsed,
    "value": _fill,
    "another release's value": _value_of_another_release,
    "older table's value": _value_of_an_older_table,
    "pending table's value": _value_under_a_pending_table,
    "lost table's value": _value_under_no_table,
}

STEPS: dict[str, Callable[[Backend], Effect[object]]] = {
    "lookup": lambda backend: Lookup(ENTRY, FINGERPRINT),
    "lease": lambda backend: LEASE,
    "replace": lambda backend: Lease(ENTRY, FINGERPRINT, id_of("lease"), replace=True),
    "fill, own version": lambda backend: Fill(ENTRY, backend.granted(), FINGERPRINT, PAYLOAD, TTL_MS),
    "fill, another": lambda backend: Fill(ENTRY, Granted(MINE, MINE), FINGERPRINT, PAYLOAD, TTL_MS),
    "begin": lambda backend: Begin(ROW, MINE, FENCE_TTL_MS),
    "end, owner": lambda backend: End(ROW, OTHER, id_of("end")),
    "end, nobody": lambda backend: End(ROW, MINE, id_of("end")),
}

# What is held after a step: kept (as before), new (another version), same (its version); then its tokens.
VALID = {
    "lookup": "hit kept",
    "lease": "hit kept",
    "replace": "granted kept",
    "fill, own version": "True value",
    "fill, another": "False kept",
    "begin": "None new mine",
    "end, owner": "None new",
    "end, nobody": "None new",
}
INVALID = VALID | {
    "lookup": "None kept",
    "lease": "granted new",
    "replace": "granted new",
    "fill, own version": "False kept",
}
LACKING = VALID | {"lookup": "None kept", "lease": "granted kept", "fill, own version": "True value"}
TABLE_OF_CELLS: dict[str, dict[str, str]] = {
    "absent": INVALID,
    "fence": {
        "lookup": "None kept",
        "lease": "granted same",
        "replace": "granted same",
        "fill, own version": "True value",
        "fill, another": "False kept",
        "begin": "None new mine",
        "end, owner": "None new",
        "end, nobody": "None new",
    },
    "pending": {
        "lookup": "None kept",
        "lease": "fenced kept",
        "replace": "fenced kept",
        "fill, own version": "False kept",
        "fill, another": "False kept",
        "begin": "None new other mine",
        "end, owner": "None same",
        "end, nobody": "None new other",
    },
    "two pending": {
        "lookup": "None kept",
        "lease": "fenced kept",
        "replace": "fenced kept",
        "fill, own version": "False kept",
        "fill, another": "False kept",
        "begin": "None new other stranger mine",
        "end, owner": "None same stranger",
        "end, nobody": "None new other stranger",
    },
    "lapsed": {
        "lookup": "None kept",
        "lease": "granted same",
        "replace": "granted same",
        "fill, own version": "True value",
        "fill, another": "False kept",
        "begin": "None new mine",
        "end, owner": "None new",
        "end, nobody": "None new",
    },
    "value": VALID,
    "another release's value": LACKING,
    "older table's value": INVALID,
    "pending table's value": INVALID
    | {"lease": "fenced kept", "replace": "fenced kept", "fill, own version": "True value"},
    "lost table's value": INVALID,
}
CELLS = [(state, step) for state, row in TABLE_OF_CELLS.items() for step in row]


def _word(reply: object) -> str:
    match reply:
        case bytes(payload) | Hit(payload):
            assert payload == PAYLOAD
            return "hit"
        case Granted():
            return "granted"
        case Fenced():
            return "fenced"
    return str(reply)


def _change(before: Held, after: Held) -> str:
    if not isinstance(after, Fence):
        return "value" if after else "absent"
    age = "same" if isinstance(before, Fence) and before.version == after.version else "new"
    return " ".join([age, *(token.decode().strip("\0") for token, _ in after.pending)])


def _version(held: Held) -> bytes:
    assert isinstance(held, Fence)
    return held.version


def _live(held: Held) -> Held:
    """Return what a key holds, without tokens whose deadline has passed."""
    if not isinstance(held, Fence):
        return held
    return Fence(held.version, tuple((token, deadline) for token, deadline in held.pending if deadline > PAST))


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
        assert _change(before, after) == change
    if isinstance(reply, Granted):
        assert reply == backend.granted()
        assert not isinstance(after, Fence) or not after.pending
    if change == "value":
        others = before.payloads if state == "another release's value" and isinstance(before, Value) else ()
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
