"""Compares cached rows with the database, in sessions of its own: what `SQLModelCache.verify()` does.

The protocol's part, and why no write turns into a false alarm, is in `_verify.py`. Here is the session's: each SELECT
is in a transaction that has just begun, on a connection of its own, so that its snapshot is taken after the look-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from . import _sqlalchemy, _verify
from ._admission import STATEMENT_SNAPSHOTS, Lane
from ._driver import new_id
from ._effects import ABSENT, Entry, Lease, Loaded, LoadMany, Together
from ._plan import Effect, run
from ._reading import Reader
from ._sampling import sample_keys
from ._shapes import Entity
from ._values import same
from ._verify import Compared, Verdict
from ._writeset import TableRef, shared_transaction, shares_transactions
from .errors import ConfigurationError
from .verification import Discrepancy, Verification

BATCH = 200  # rows that share a round trip and a SELECT
EXAMPLES = 10

Difference: TypeAlias = tuple[str, tuple[str, ...]]
"""A reason, and the attributes that differ."""

Seen: TypeAlias = tuple[type, Mapping[str, Any]]
"""What the database has: a class, and the values that a SELECT gave to its instance."""


class Verifier:
    """Compares rows with a reader's means."""

    def __init__(self, reader: Reader, *, hides: bool, default_ttl_ms: int) -> None:
        self._reader = reader
        self._hides = hides
        self._default_ttl_ms = default_ttl_ms

    def verify(self, entity: Entity, bind: Engine, size: int, info: Mapping[Any, Any]) -> Verification:
        """Return what comes of about `size` rows of a class. `info` is of the sessions that are made for it.

        Raises:
            ConfigurationError: rows of this engine are not read from the cache, or it lends no connection of its own.
            TransportError: the cache does not answer.
        """
        engine = _with_snapshots_of_statements(bind)
        with Session(engine, info=dict(info)) as session:
            if _is_shared_now(engine):
                raise ConfigurationError(
                    "bind", bind, "its sessions share one connection, on which a transaction is open: end it first"
                )
            lane = self._reader.admission.lane(session, entity, {})
            if isinstance(lane, str):
                raise ConfigurationError("bind", bind, f"its sessions' gets are not answered from the cache: {lane}")
            keys = sample_keys(session, entity.mapper, size)
        self._meet(lane)
        tally = _Tally(entity)
        for start in range(0, len(keys), BATCH):
            self._verify(lane, engine, info, keys[start : start + BATCH], tally)
        found = tally.verification(len(keys))
        entity.counters.verified += found.matched + found.discrepancies
        entity.counters.discrepancies += found.discrepancies
        return found

    def check(self, entity: Entity, engine: Engine, pk: tuple[Any, ...], ref: TableRef) -> Compared[Difference]:
        """Return what comes of one row, by the look that proves a discrepancy.

        Undecided where a session that asks for nothing would not look at `ref` for it, but at another tenant's table.
        """
        with Session(engine) as session:
            lane = self._reader.admission.lane(session, entity, {})
        named = entity.identify(pk)
        if isinstance(lane, str) or lane.ref != ref or named is None:
            return _verify.UNDECIDED
        load = partial(self._load, lane, engine, {}, [pk])
        compare = partial(differ, lane)
        plan = _verify.look(lane.entry(named[1]), 0, lane.rows.fingerprint, compare, new_id=new_id)
        return run(plan, self._executing(load))

    def _meet(self, lane: Lane) -> None:
        # A connection to Redis takes nothing for valid until a lease has told it the server's name, and a cluster has
        # several servers. So a row that there is not is leased in each shard; its fence goes after a minute.
        leases = [Lease(Entry(f"{table}:-", table), lane.rows.fingerprint, new_id()) for table in lane.shards]
        for reply in self._reader.driver.execute(Together(tuple(leases))):
            if isinstance(reply, Exception):
                raise reply

    def _verify(
        self, lane: Lane, engine: Engine, info: Mapping[Any, Any], keys: Sequence[tuple[Any, ...]], tally: _Tally
    ) -> None:
        pks, entries = [], []
        for pk in keys:
            named = lane.entity.identify(pk)
            if named is None:  # it has no text, so it is never cached
                continue
            lookup = self._reader.admission.row(lane, named[1])
            if isinstance(lookup, str):  # this process owes its invalidation
                tally.undecided += 1
                continue
            pks.append(pk)
            entries.append(lookup.entry)
        if not pks:
            return
        load = partial(self._load, lane, engine, info, pks)
        plan = _verify.verify(entries, lane.rows.fingerprint, partial(differ, lane), new_id=new_id)
        for pk, entry, found in zip(pks, entries, run(plan, self._executing(load)), strict=True):
            age = None
            if found.verdict is Verdict.DIFFERS and len(tally.examples) < EXAMPLES:
                age = self._age(lane, entry)
            tally.count(found, None if self._hides else pk, age)

    def _executing(self, load: Any) -> Any:
        ask = self._reader.driver.execute

        def execute(effect: Effect[Any]) -> Any:
            return load(effect.places) if isinstance(effect, LoadMany) else ask(effect)

        return execute

    def _load(
        self, lane: Lane, engine: Engine, info: Mapping[Any, Any], pks: Sequence[tuple[Any, ...]], places: Sequence[int]
    ) -> list[Loaded[Any]]:
        """Return for each place what the database has, None for no such row, or `UNSEEN`."""
        named = [lane.entity.identify(pks[place]) for place in places]
        keys = [(each[0], each[1]) for each in named if each is not None]
        seen: dict[Any, Seen] = {}
        takes = {key: partial(_take, seen, key) for key, _ in keys}
        with Session(engine, info=dict(info)) as session:
            if _is_shared_now(engine):
                return [Loaded(_verify.UNSEEN, None)] * len(places)
            found = self._reader.probe.load(
                session,
                lane.entity.mappers,
                takes,
                lambda: _sqlalchemy.select_many(session, lane.entity.mapper, [key[1] for key, _ in keys], {}),
                lambda rows: rows,
            )
            told = self._reader.admission.may_be_told(session, lane, [text for _, text in keys])
            there = {_sqlalchemy.identity_of(row) for row in found}
        # A collation, or a cast, finds rows of other names: then a key that was not found may be one that was.
        strange = len(there - {key for key, _ in keys}) > 0
        rows: list[Loaded[Any]] = []
        for (key, _), may in zip(keys, told, strict=True):
            row: Any = seen.get(key)
            if not may or (row is None and (key in there or strange)):
                row = _verify.UNSEEN
            rows.append(Loaded(row, None))
        return rows

    def _age(self, lane: Lane, entry: Entry) -> float | None:
        left = self._reader.driver.ttl(entry.row)
        ttl = (lane.entity.ttl_ms or self._default_ttl_ms) / 1000
        return ttl - left if left is not None and left <= ttl else None


class _Tally:
    """What has been counted so far."""

    def __init__(self, entity: Entity) -> None:
        self._model = f"{entity.class_.__module__}.{entity.class_.__qualname__}"
        self.counts = dict.fromkeys(Verdict, 0)
        self.undecided = 0  # that were not looked up
        self.examples: list[Discrepancy] = []

    def count(self, found: Compared[Difference], pk: tuple[Any, ...] | None, age: float | None) -> None:
        """Take note of one row."""
        self.counts[found.verdict] += 1
        if found.difference is not None and len(self.examples) < EXAMPLES:
            reason, columns = found.difference
            self.examples.append(Discrepancy(pk, columns, reason, age))

    def verification(self, checked: int) -> Verification:
        """Return it all."""
        matched, differ = self.counts[Verdict.MATCHED], self.counts[Verdict.DIFFERS]
        undecided = self.counts[Verdict.UNDECIDED] + self.undecided
        cached = matched + differ + self.counts[Verdict.UNDECIDED]
        return Verification(self._model, checked, cached, matched, differ, undecided, tuple(self.examples))


def differ(lane: Lane, payload: bytes, row: Seen | None) -> Difference | None:
    """Return how a payload and a row differ, or None.

    Raises:
        CodecError: no get would take the payload.
    """
    if payload == ABSENT and lane.entity.missing_ttl_ms is not None:
        return None if row is None else ("inserted", ())
    shape, values = lane.rows.decode(payload)
    if row is None:
        return "deleted", ()
    class_, held = row
    if class_ is not shape.mapper.class_:
        return "class", ()
    # In the order of the mapping: that in which a SELECT sets them is another in each process.
    names = [column.key for column in shape.columns]
    columns = tuple(name for name in names if name not in held or not same(held[name], values[name]))
    return ("changed", columns) if columns else None


def _take(seen: dict[Any, Seen], key: Any, class_: type, values: dict[str, Any], expired: set[str]) -> None:
    seen[key] = class_, dict(values)


def _with_snapshots_of_statements(engine: Engine) -> Engine:
    """Return the engine, whose transactions take a snapshot for each statement if somebody asked for another level."""
    level, asked = _sqlalchemy.isolation_level(engine)
    if asked and level not in STATEMENT_SNAPSHOTS and engine.dialect.name != "sqlite":
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine


def _is_shared_now(engine: Engine) -> bool:
    """Return whether a SELECT would be in somebody else's transaction, and its end the end of that."""
    shared = shared_transaction(engine.pool) if shares_transactions(engine.pool) else None
    return shared is not None and shared.began is not None
