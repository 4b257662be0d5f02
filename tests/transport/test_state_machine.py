"""Generated sequences of effects, executed by Redis and by the in-process transport side by side.

The in-process transport is the model: replies must be equal, and so must what every key holds, up to the names of
versions. Deadlines are far away, and lapse where the machine lets them: they are rewritten on both sides.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from protocol import mutants
from transport.backends import (
    ELSEWHERE,
    ENTRY,
    FENCE_TTL_MS,
    FINGERPRINT,
    NEIGHBOUR,
    OTHER_FINGERPRINT,
    PAST,
    TTL_MS,
    Fence,
    Held,
    MemoryBackend,
    RedisBackend,
    Value,
)

from sqlmodel_cache import MemoryTransport, RedisSyncTransport
from sqlmodel_cache._effects import (
    Begin,
    End,
    Entry,
    Fill,
    Filling,
    Granted,
    Keys,
    Lease,
    LeaseReply,
    Lookup,
    Resign,
    Together,
)
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport.memory import _Fence

LONG = os.environ.get("SQLMODEL_CACHE_LONG") == "1"

ELECT_MS = 3_600_000  # longer than any test takes

ENTRIES = (ENTRY, NEIGHBOUR, ELSEWHERE)
KEYS = tuple(dict.fromkeys(key for entry in ENTRIES for key in entry))

entries = st.sampled_from(ENTRIES)
FINGERPRINTS = (FINGERPRINT, OTHER_FINGERPRINT, *(f"release{n}".encode() for n in range(3, 6)))
fingerprints = st.sampled_from(FINGERPRINTS)
write_sets = st.sets(st.sampled_from(KEYS), min_size=1).map(
    lambda keys: Keys(
        tuple(key for key in KEYS if key in keys and not key.endswith("}")),
        tuple(key for key in KEYS if key in keys and key.endswith("}")),
    )
)
payloads = st.binary(max_size=8)


class Sides(RuleBasedStateMachine):
    """Redis on one side, its model on the other."""

    backend: RedisBackend
    model_transport: type[MemoryTransport] = MemoryTransport

    def __init__(self) -> None:
        super().__init__()
        self.backend.client.flushdb()
        self.model = MemoryBackend(self.model_transport)
        self.ids = 0
        self.names: dict[bytes, bytes] = {}  # the model's versions -> Redis's

    leases = Bundle("leases")
    tokens = Bundle("tokens")

    @rule(entry=entries, fingerprint=fingerprints)
    def look_up(self, entry: Entry, fingerprint: bytes) -> None:
        """A reader's first step."""
        self.both(Lookup(entry, fingerprint))

    @rule(target=leases, entry=entries, fingerprint=fingerprints, replace=st.booleans(), elects=st.booleans())
    def lease(self, entry: Entry, fingerprint: bytes, replace: bool, elects: bool) -> Any:
        """A reader's second; what is granted may be used at any later time, also twice, also by who is not elected."""
        reply = self.both(Lease(entry, fingerprint, self.new_id(), replace, ELECT_MS * elects))
        granted = reply.lease if isinstance(reply, Filling) else reply
        return (entry, fingerprint, granted) if isinstance(granted, Granted) else multiple()

    @rule(lease=leases, payload=payloads, renew=st.booleans())
    def fill(self, lease: tuple[Entry, bytes, Granted], payload: bytes, renew: bool) -> None:
        """A reader's last."""
        entry, fingerprint, granted = lease
        self.both(Fill(entry, granted, fingerprint, payload, TTL_MS, renew))

    @rule(lease=leases)
    def resign(self, lease: tuple[Entry, bytes, Granted]) -> None:
        """Or its last, where there is nothing to fill."""
        entry, _, granted = lease
        self.both(Resign(entry, granted))

    @rule(target=leases, entry=entries, fingerprint=fingerprints, payload=payloads)
    def lease_and_fill(self, entry: Entry, fingerprint: bytes, payload: bytes) -> Any:
        """What most readers do, without delay."""
        granted = self.both(Lease(entry, fingerprint, self.new_id()))
        if not isinstance(granted, Granted):
            return multiple()
        self.both(Fill(entry, granted, fingerprint, payload, TTL_MS))
        return entry, fingerprint, granted

    @rule()
    def look_everything_up(self) -> None:
        """Readers of every release and of every row, together."""
        self.both(Together(tuple(Lookup(entry, each) for entry in ENTRIES for each in FINGERPRINTS)))

    @rule(entry=entries)
    def lapse_election(self, entry: Entry) -> None:
        """The time of the one who is elected passes."""
        held = self.model.peek(entry.row)
        if isinstance(held, Fence) and held.election is not None:
            self.backend.lapse_election(entry.row)
            self.model.lapse_election(entry.row)

    @rule(target=tokens, keys=write_sets)
    def begin(self, keys: Keys) -> tuple[Keys, bytes]:
        """A writer's first step."""
        token = self.new_id()
        self.both(Begin(keys, token, FENCE_TTL_MS))
        return keys, token

    @rule(writer=tokens)
    def begin_again(self, writer: tuple[Keys, bytes]) -> None:
        """The same command, executed twice or late."""
        self.both(Begin(*writer, FENCE_TTL_MS))

    @rule(writer=consumes(tokens))
    def end(self, writer: tuple[Keys, bytes]) -> None:
        """A writer's last."""
        self.both(End(*writer, self.new_id()))

    @rule(writer=tokens, keys=write_sets)
    def end_of_others(self, writer: tuple[Keys, bytes], keys: Keys) -> None:
        """An END of keys that it may not hold, or not any more."""
        self.both(End(keys, writer[1], self.new_id()))

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key: str) -> None:
        """A key vanishes."""
        self.backend.evict(key)
        self.model.evict(key)

    @rule(key=st.sampled_from(KEYS))
    def forget_server(self, key: str) -> None:
        """The server is another by now: it was restarted, restored or promoted."""
        if self.model.peek(key) is not None and key.endswith("}"):
            self.backend.forget_server(key)
            self.model.forget_server(key)

    @rule(key=st.sampled_from(KEYS), writer=tokens)
    def lapse(self, key: str, writer: tuple[Keys, bytes]) -> None:
        """A deadline passes."""
        for side in (self.backend, self.model):
            held = side.peek(key)
            if isinstance(held, Fence) and writer[1] in held.tokens:
                side.lapse(key, (writer[1],))

    @invariant()
    def hold_the_same(self) -> None:
        """Every key is in the same state on both sides, and has a TTL in Redis."""
        for key in KEYS:
            assert self.backend.peek(key) is None or self.backend.client.pttl(key) > 0
            assert _live(self.backend.peek(key)) == _live(self.renamed(self.model.peek(key)))

    def new_id(self) -> bytes:
        """Return 16 bytes that were never used before."""
        self.ids += 1
        return self.ids.to_bytes(16, "big")

    def both(self, effect: Effect[Any]) -> Any:
        """Return the model's reply to an effect, once Redis has given the same."""
        expected = self.model.execute(effect)
        if isinstance(effect, Fill | Resign):
            found = self.backend.execute(replace(effect, lease=self.renamed_lease(effect.lease)))
        else:
            found = self.backend.execute(effect)
        for key in KEYS:
            self.learn(key)
        if isinstance(expected, Filling):
            assert isinstance(found, Filling)
            assert 0 < found.left_ms <= expected.left_ms
            assert found.lease == self.renamed_lease(expected.lease)
        else:
            assert found == (self.renamed_lease(expected) if isinstance(expected, Granted) else expected)
            assert getattr(found, "elected", None) == getattr(expected, "elected", None)
        return expected

    def learn(self, key: str) -> None:
        """Remember what Redis calls the version that a key holds."""
        ours, theirs = self.model.peek(key), self.backend.peek(key)
        if isinstance(ours, Fence) and isinstance(theirs, Fence) and ours.version not in self.names:
            assert theirs.version not in self.names.values()
            self.names[ours.version] = theirs.version

    def renamed_lease(self, granted: Granted) -> Granted:
        """Return a lease with Redis's names."""
        return Granted(self.names[granted.version], self.names[granted.table_version])

    def renamed(self, held: Held) -> Held:
        """Return what the model holds, with Redis's names."""
        if isinstance(held, Fence):
            return replace(held, version=self.names[held.version])
        if isinstance(held, Value):
            return Value(self.names[held.version], self.names[held.table_version], held.payloads)
        return None


def _live(held: Held) -> object:
    """Return what can be told of a key from outside: tokens that live, without their deadlines; whether one elected."""
    if isinstance(held, Fence):
        tokens = {token for token, deadline in held.pending if deadline > FENCE_TTL_MS}
        return held.version, tokens, held.server, held.election is not None and held.election > PAST
    return held


def _run(machine: type[Sides], max_examples: int, steps: int, **options: Any) -> None:
    profile = settings(max_examples=max_examples, stateful_step_count=steps, deadline=None, database=None, **options)
    run_state_machine_as_test(machine, settings=profile)  # type: ignore[no-untyped-call]


def test_redis_answers_as_the_model_does(redis_backend: RedisBackend) -> None:
    """No sequence of effects, evictions and lapses makes Redis and the in-process transport differ."""

    class Machine(Sides):
        backend = redis_backend

    if LONG:
        _run(Machine, 1_000, 50)
    else:
        _run(Machine, 40, 25, derandomize=True)
    assert redis_backend.all_expire()


class ElectsEverybody(MemoryTransport):
    """A lease elects although somebody is elected."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        held = self._rows.get(effect.entry.row)
        if isinstance(held, _Fence):
            held.election = 0.0
        return super()._lease(effect, now)

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class ElectsForWhoDoesNotAsk(MemoryTransport):
    """Every lease elects."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        return super()._lease(replace(effect, elect_ms=ELECT_MS), now)

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class RenewsBesideOthers(MemoryTransport):
    """A renewal keeps the payloads of others."""

    def _fill(self, effect: Fill, now: float) -> bool:
        return super()._fill(replace(effect, renew=False), now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


@pytest.mark.parametrize(
    "mutant",
    [
        mutants.BeginKeepsTheVersion,
        mutants.BeginForgetsOthers,
        mutants.LeaseWhileRowPending,
        mutants.LeaseWhileTablePending,
        mutants.FillUnderAnyVersion,
        mutants.FillOnAbsent,
        mutants.LookupIgnoresTheTable,
        mutants.EndOpensAll,
        mutants.EndDeletes,
        mutants.EndIgnoresALostToken,
        ElectsEverybody,
        ElectsForWhoDoesNotAsk,
        RenewsBesideOthers,
    ],
)
def test_machine_sees_a_transport_that_differs(redis_client: redis.Redis, mutant: type[MemoryTransport]) -> None:
    """A model with one rule of the protocol removed is told from Redis: the machine reaches what matters."""

    class Machine(Sides):
        backend = RedisBackend(RedisSyncTransport(redis_client, timeout=10), redis_client)
        model_transport = mutant

    with pytest.raises((AssertionError, KeyError, ExceptionGroup)):
        _run(Machine, 2_000, 30, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
