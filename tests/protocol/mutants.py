"""The protocol with one guard removed, each in the smallest way: transports and plans that the explorer must catch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from protocol.programs import NOTHING, Process, reader
from protocol.world import REPEATED

from sqlmodel_cache import MemoryTransport, TransportError, _protocol
from sqlmodel_cache._effects import (
    Begin,
    Commit,
    Depart,
    End,
    Entry,
    Fill,
    Granted,
    Hit,
    Keys,
    Land,
    Lease,
    LeaseReply,
    Load,
    LoadMany,
    Lookup,
    Outcome,
    Together,
)
from sqlmodel_cache._plan import Plan, perform
from sqlmodel_cache._protocol import Answer, Reading, Source
from sqlmodel_cache._verify import UNCACHED, Compared, Verdict
from sqlmodel_cache.transport.memory import _Fence, _Value

# transports


class BeginKeepsTheVersion(MemoryTransport):
    """BEGIN on a fence adds its token, and leaves the version that leases name."""

    def _begin(self, effect: Begin, now: float) -> None:
        fences = {**self._rows, **self._tables}
        kept = {key: held.version for key, held in fences.items() if isinstance(held, _Fence)}
        super()._begin(effect, now)
        for key, held in {**self._rows, **self._tables}.items():
            if isinstance(held, _Fence):
                held.version = kept.get(key, held.version)

    _handlers = MemoryTransport._handlers | {Begin: _begin}


class BeginForgetsOthers(MemoryTransport):
    """BEGIN leaves no token but its own."""

    def _begin(self, effect: Begin, now: float) -> None:
        for held in (*self._rows.values(), *self._tables.values()):
            if isinstance(held, _Fence):
                held.pending.clear()
        super()._begin(effect, now)

    _handlers = MemoryTransport._handlers | {Begin: _begin}


class NoDeadline(MemoryTransport):
    """A token stays until its owner removes it."""

    def _begin(self, effect: Begin, now: float) -> None:
        super()._begin(replace(effect, fence_ttl_ms=inf), now)  # type: ignore[arg-type]

    _handlers = MemoryTransport._handlers | {Begin: _begin}


class LeaseWhileRowPending(MemoryTransport):
    """A lease is granted while a commit is in flight; only the fill looks at the tokens."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        return _without_tokens(self._rows.get(effect.entry.row), lambda: MemoryTransport._lease(self, effect, now))

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class LeaseWhileTablePending(MemoryTransport):
    """The same, for a commit that writes the table."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        held = self._tables.get(effect.entry.table)
        return _without_tokens(held, lambda: MemoryTransport._lease(self, effect, now))

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class LeasesRepeat(MemoryTransport):
    """A lease on an absent row has the version that the one before it had."""

    def _fresh(self, id: bytes) -> bytes:
        return REPEATED.ljust(16) if id.startswith(b"R") else super()._fresh(id)


class FillUnderAnyVersion(MemoryTransport):
    """A fill needs a fence, not its own."""

    def _fill(self, effect: Fill, now: float) -> bool:
        held = self._rows.get(effect.entry.row)
        version = held.version if isinstance(held, _Fence) else effect.lease.version
        return super()._fill(replace(effect, lease=Granted(version, effect.lease.table_version)), now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


class FillBesideAnyVersion(MemoryTransport):
    """A fill joins the payloads of a value that was filled under another lease."""

    def _fill(self, effect: Fill, now: float) -> bool:
        held = self._rows.get(effect.entry.row)
        version = held.version if isinstance(held, _Value) else effect.lease.version
        return super()._fill(replace(effect, lease=Granted(version, effect.lease.table_version)), now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


class FillBesideAnyTableVersion(MemoryTransport):
    """A fill joins the payloads of a value that was filled under another version of the table."""

    def _fill(self, effect: Fill, now: float) -> bool:
        held = self._rows.get(effect.entry.row)
        table = held.table_version if isinstance(held, _Value) else effect.lease.table_version
        return super()._fill(replace(effect, lease=Granted(effect.lease.version, table)), now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


class LeaseOnAnInvalidValue(MemoryTransport):
    """A lease on a value names its version, although its table has changed since."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        held = self._rows.get(effect.entry.row)
        reply = super()._lease(effect, now)
        if isinstance(held, _Value) and isinstance(reply, Granted):
            self._rows[effect.entry.row] = held
            return Granted(held.version, reply.table_version)
        return reply

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class FillOnAbsent(MemoryTransport):
    """A fill takes absence for permission."""

    def _fill(self, effect: Fill, now: float) -> bool:
        self._rows.setdefault(effect.entry.row, _Fence(effect.lease.version))
        return super()._fill(effect, now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


class FillWithTheTableOfNow(MemoryTransport):
    """A fill stores the table's version as it is by then, not as it was leased."""

    def _fill(self, effect: Fill, now: float) -> bool:
        table = self._tables.get(effect.entry.table, _Fence(b""))
        return super()._fill(replace(effect, lease=Granted(effect.lease.version, table.version)), now)

    _handlers = MemoryTransport._handlers | {Fill: _fill}


class LookupIgnoresTheTable(MemoryTransport):
    """A value is a hit, whatever has happened to its table."""

    def _lookup(self, effect: Lookup) -> bytes | None:
        held = self._rows.get(effect.entry.row)
        return held.payloads.get(effect.fingerprint) if isinstance(held, _Value) else None


class LookupIgnoresTheServer(MemoryTransport):
    """A value is a hit on whatever server it has come to."""

    def _lookup(self, effect: Lookup) -> bytes | None:
        held = self._tables.get(effect.entry.table)
        return _as_named_here(self, held, lambda: MemoryTransport._lookup(self, effect))


class LeaseIgnoresTheServer(MemoryTransport):
    """A lease leaves the table's version as it came from another server."""

    def _lease(self, effect: Lease, now: float) -> LeaseReply:
        held = self._tables.get(effect.entry.table)
        return _as_named_here(self, held, lambda: MemoryTransport._lease(self, effect, now))

    _handlers = MemoryTransport._handlers | {Lease: _lease}


class EndOpensAll(MemoryTransport):
    """END removes every token: one flag for all writers."""

    def _end(self, effect: End, now: float) -> None:
        super()._end(effect, now)
        for held in (*self._rows.values(), *self._tables.values()):
            if isinstance(held, _Fence):
                held.pending.clear()

    _handlers = MemoryTransport._handlers | {End: _end}


class EndDeletes(MemoryTransport):
    """END deletes its keys."""

    def _end(self, effect: End, now: float) -> None:
        for key in (*effect.keys.rows, *effect.keys.tables):
            self._rows.pop(key, None)
            self._tables.pop(key, None)

    _handlers = MemoryTransport._handlers | {End: _end}


class EndIgnoresALostToken(MemoryTransport):
    """END does nothing where it does not find its token."""

    def _end(self, effect: End, now: float) -> None:
        held = {**self._rows, **self._tables}
        keys = {key for key, fence in held.items() if isinstance(fence, _Fence) and effect.token in fence.pending}
        rows, tables = ((key for key in kind if key in keys) for kind in effect.keys)
        super()._end(replace(effect, keys=Keys(tuple(rows), tuple(tables))), now)

    _handlers = MemoryTransport._handlers | {End: _end}


def _as_named_here(transport: MemoryTransport, held: _Fence | None, act: Callable[[], Any]) -> Any:
    """Return what `act` returns while a table's version passes for one of this server's."""
    if held is None:
        return act()
    server, held.server = held.server, transport._server
    try:
        return act()
    finally:
        held.server = server


def _without_tokens(held: object, act: Callable[[], Any]) -> Any:
    """Return what `act` returns while a fence's tokens are hidden from it."""
    if not isinstance(held, _Fence):
        return act()
    tokens, held.pending = held.pending, {}
    try:
        return act()
    finally:
        held.pending = tokens


# plans


def never_tells(keys: Keys, debts: Any, **_: Any) -> Plan[Outcome]:
    """A commit without BEGIN and END."""
    return (yield from perform(Commit()))


def fences_what_was_flushed_before(keys: Keys, debts: Any, **settings: Any) -> Plan[Outcome]:
    """A commit whose BEGIN was sent before the last flush, which wrote the row: the row is not in it."""
    return (yield from _protocol.commit(NOTHING, debts, **settings))


def begins_after_commit(keys: Keys, debts: Any, *, new_id: Any, **settings: Any) -> Plan[Outcome]:
    """A commit that tells the cache afterwards only, as "delete after commit" does."""
    outcome = yield from perform(Commit())
    token = yield from _protocol.begin(keys, debts, new_id=new_id, **settings)
    yield from _protocol.end(keys, token, outcome, debts, new_id=new_id)
    return outcome


def never_ends(keys: Keys, debts: Any, **settings: Any) -> Plan[Outcome]:
    """A commit that returns without END."""
    yield from _protocol.begin(keys, debts, **settings)
    return (yield from perform(Commit()))


def ends_once(keys: Keys, debts: Any, *, new_id: Any, **settings: Any) -> Plan[Outcome]:
    """A commit that sends END, and does not care whether it has arrived."""
    token = yield from _protocol.begin(keys, debts, new_id=new_id, **settings)
    outcome = yield from perform(Commit())
    if token is not None and outcome is not Outcome.UNKNOWN:
        with contextlib.suppress(TransportError):
            yield from perform(End(keys, token, new_id()))
    return outcome


def ends_on_unknown_outcome(keys: Keys, debts: Any, *, new_id: Any, **settings: Any) -> Plan[Outcome]:
    """A commit that takes a lost connection for a rollback."""
    token = yield from _protocol.begin(keys, debts, new_id=new_id, **settings)
    outcome = yield from perform(Commit())
    known = Outcome.FAILED if outcome is Outcome.UNKNOWN else outcome
    yield from _protocol.end(keys, token, known, debts, new_id=new_id)
    return outcome


def selects_before_lease(entry: Entry, reading: Reading[Any], *, new_id: Any) -> Plan[Any]:
    """A read that asks for its lease when it has its row."""
    yield from perform(Lookup(entry, reading.fingerprint))
    loaded = yield from perform(Load())
    found = yield from perform(Lease(entry, reading.fingerprint, new_id()))
    if isinstance(found, Granted) and loaded.payload is not None:
        yield from perform(Fill(entry, found, reading.fingerprint, loaded.payload, reading.ttl_ms))
    return Answer(Source.FILLED, None, loaded.row)


def _changed(read: Callable[..., Plan[Any]], change: Callable[[Any, Any], Any]) -> Callable[..., Plan[Any]]:
    """Return a plan whose effects are changed on the way, given the reply before; None is not performed at all."""

    def mutant(*arguments: Any, **options: Any) -> Plan[Any]:
        plan = read(*arguments, **options)
        try:
            effect, reply = next(plan), None
            while True:
                changed = change(effect, reply)
                try:
                    reply = None if changed is None else (yield changed)
                except TransportError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(reply)
        except StopIteration as done:
            return done.value

    return mutant


# A load that others may join until it has landed.
never_departs = _changed(_protocol.read, lambda effect, reply: None if isinstance(effect, Depart) else effect)

# A reader that tells others what its lease has found.
lands_what_its_lease_found = _changed(
    _protocol.read,
    lambda effect, reply: Land(reply.payload) if isinstance(effect, Land) and isinstance(reply, Hit) else effect,
)


def renews_under_no_lease(entry: Entry, reading: Reading[Any], *, new_id: Any) -> Plan[Any]:
    """A renewal that reads the row first, and then asks for the lease to store it under."""
    yield from perform(Lookup(entry, reading.fingerprint))
    loaded = yield from perform(Load())
    found = yield from perform(Lease(entry, reading.fingerprint, new_id(), replace=True))
    if isinstance(found, Granted) and loaded.payload is not None:
        yield from perform(Fill(entry, found, reading.fingerprint, loaded.payload, reading.ttl_ms, renew=True))
    return Answer(Source.FILLED, None, loaded.row)


def selects_many_before_lease(entries: Sequence[Entry], reading: Reading[Any], *, new_id: Any) -> Plan[Any]:
    """A read of many rows that asks for its leases when it has them."""
    (loaded,) = yield from perform(LoadMany((0,), (True,)))
    (found,) = yield from perform(Together((Lease(entries[0], reading.fingerprint, new_id()),)))
    if isinstance(found, Granted) and loaded.payload is not None:
        fill = Fill(entries[0], found, reading.fingerprint, loaded.payload, reading.ttl_ms)
        yield from perform(Together((fill,)))
    return [Answer(Source.FILLED, None, loaded.row)]


def own_read_through_cache(process: Process) -> Plan[Any]:
    """A transaction's read of a row that it wrote, through the cache."""
    return (yield from reader()(process))


# verifiers


def looks_once(entry: Entry, at: int, fingerprint: bytes, compare: Any, *, new_id: Any) -> Plan[Any]:
    """A look at a suspect that does not ask for the versions again."""
    before = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    payload = yield from perform(Lookup(entry, fingerprint))
    loaded = yield from perform(LoadMany((at,), (False,)))
    if payload is None or not isinstance(before, Granted):
        return UNCACHED
    return Compared(Verdict.DIFFERS, compare(payload, loaded[0].row))


def asks_before_the_select(entry: Entry, at: int, fingerprint: bytes, compare: Any, *, new_id: Any) -> Plan[Any]:
    """A look whose second lease comes before its SELECT."""
    before = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    payload = yield from perform(Lookup(entry, fingerprint))
    after = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    loaded = yield from perform(LoadMany((at,), (False,)))
    if payload is None or not isinstance(before, Granted) or after != before:
        return UNCACHED
    return Compared(Verdict.DIFFERS, compare(payload, loaded[0].row))


def looks_up_before_the_lease(entry: Entry, at: int, fingerprint: bytes, compare: Any, *, new_id: Any) -> Plan[Any]:
    """A look whose payload may be of a value under other versions than its leases name."""
    payload = yield from perform(Lookup(entry, fingerprint))
    before = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    loaded = yield from perform(LoadMany((at,), (False,)))
    after = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    if payload is None or not isinstance(before, Granted) or after != before:
        return UNCACHED
    return Compared(Verdict.DIFFERS, compare(payload, loaded[0].row))


def selects_before_the_lease(entry: Entry, at: int, fingerprint: bytes, compare: Any, *, new_id: Any) -> Plan[Any]:
    """A look whose row may be of before its leases' versions."""
    loaded = yield from perform(LoadMany((at,), (False,)))
    before = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    payload = yield from perform(Lookup(entry, fingerprint))
    after = yield from perform(Lease(entry, fingerprint, new_id(), replace=True))
    if payload is None or not isinstance(before, Granted) or after != before:
        return UNCACHED
    return Compared(Verdict.DIFFERS, compare(payload, loaded[0].row))
