"""Where a hit happens: what stands around `Session.get`, and the library's own reads of many rows and by unique keys.

`Admission` decides what is safe to ask, the protocol's plans ask it. Here a hit becomes an object, and what the
database gave on a miss becomes a payload.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from sqlalchemy.orm import Session

from . import _protocol, _renewal, _sqlalchemy
from ._admission import ALWAYS, Admission, Lane
from ._driver import Driver, NotAsked, new_id
from ._effects import ABSENT, Entry, Fill, Granted, Hit, Load, Loaded, NearPayload, Together
from ._entities import Entities
from ._flights import Flights, Passenger
from ._namespace import Naming
from ._plan import Effect, Plan, run
from ._protocol import Answer, Reading, Source
from ._shapes import Entity, Found, Rows
from ._unique import UniqueKey
from ._versions import Versions
from .config import Settings
from .errors import CodecError, TransportError
from .metrics import BypassReason, MissReason, ModelCounters, RefusedReason

log = logging.getLogger("sqlmodel_cache")

JITTER = 0.1  # at most this part of a ttl is taken off, so that rows cached together do not expire together


@dataclass(slots=True, eq=False)
class Request:
    """One row that may be answered from the cache."""

    session: Session
    lane: Lane
    key: _sqlalchemy.IdentityKey
    pk: str
    reading: Reading[Found]
    path: Any  # where its load begins, if not with the class
    began: float  # seconds of perf_counter()
    not_stored: RefusedReason = "snapshot"  # why its row has no payload, where one was wanted


class Counting:
    """Executes the effects of one read that go to the cache, and takes note of what its rows are counted by."""

    def __init__(self, counters: ModelCounters, ask: Callable[[Effect[Any]], Any]) -> None:
        self.counters = counters
        self._ask = ask
        self.asked = True  # until the cache is not asked because it has not answered lately
        self.renews = False  # whether a row that is read was found valid before

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the cache's reply."""
        try:
            reply = self._ask(effect)
        except NotAsked:
            self.asked = False
            raise
        if isinstance(effect, Together):
            for each, its in zip(effect.effects, reply, strict=True):
                self._take(each, its)
        else:
            self._take(effect, reply)
        return reply

    def _take(self, effect: Effect[Any], reply: Any) -> None:
        if isinstance(effect, Fill):
            self.counters.bytes_written += len(effect.payload) if reply is True else 0
        elif isinstance(reply, Hit):
            self.counters.bytes_read += len(reply.payload)
        elif isinstance(reply, bytes):
            self.counters.bytes_read += len(reply)

    def count(self, answer: Answer[Any, Any], seconds: float, not_stored: RefusedReason) -> None:
        """Count an answer, which took some seconds; `not_stored` is why its row had no payload, if it had none."""
        counters = self.counters
        counters.corrupt += answer.corrupt
        if answer.source in _HITS:
            counters.hit(seconds)
            counters.near_hits += answer.near
            return
        counters.miss(seconds, self._reason(answer))
        match answer.source:
            case Source.FILLED:
                counters.fills += 1
            case Source.SHARED:
                counters.shared += 1
            case Source.REFUSED:
                counters.not_stored["late"] += 1
            case Source.UNCACHED:
                counters.not_stored[not_stored] += 1

    def _reason(self, answer: Answer[Any, Any]) -> MissReason:
        if answer.source is Source.FENCED:
            return "fenced"
        if answer.source is Source.UNREACHABLE:
            return "error" if self.asked else "breaker"
        if answer.corrupt:
            return "corrupt"
        return "renewal" if self.renews else "absent"


_HITS = (Source.HIT, Source.ABSENT)


class Reader:
    """Answers reads."""

    def __init__(self, settings: Settings, driver: Driver, entities: Entities, naming: Naming) -> None:
        self._enabled = settings.enabled
        self._wait_ms = settings.fill_wait_ms
        self._hides = naming.hides
        self._max_bytes = settings.max_payload_bytes
        self.driver = driver
        self._entities = entities
        self.admission = Admission(settings, driver, naming)
        self._flights = Flights()
        self.probe = _sqlalchemy.LoadProbe()
        self._versions = Versions()
        self.not_stored: dict[type, dict[str, str]] = {}  # class -> attribute -> why

    def get(
        self,
        session: Session,
        class_: Any,
        ident: Any,
        options: dict[str, Any],
        load: Callable[[], Any],
        path: Any = None,
    ) -> Any:
        """Return what `load()`, the session's own `get`, would return, from the cache if that is safe.

        `path` is where the load begins, if not with the class.
        """
        entity = self._entities.get(class_) if self._enabled else None
        if entity is None:
            return load()
        began = perf_counter()
        named = entity.identify(ident)
        if named is None:
            return self._bypass(entity, "key", load)
        key, pk = named
        identities = session.identity_map
        held = identities.get(key)
        if held is not None:  # the session's own business: the same object, or a refresh
            return held if not options and _sqlalchemy.is_current(held, entity.mapper) else load()
        lane = self.admission.lane(session, entity, options)
        if isinstance(lane, str):
            return self._bypass(entity, lane, load)
        if not lane.idle and key in identities:
            return self._bypass(entity, "session", load)
        lookup = self.admission.row(lane, pk)
        if isinstance(lookup, str):
            return self._bypass(entity, lookup, load)
        counters = entity.counters
        payload: bytes | None = None
        found: Found | None = None
        failed: type[TransportError] | None = None  # not the error itself, whose traceback has this very frame
        asked = perf_counter()
        try:
            payload = self.driver.execute(lookup)
            if payload is not None:
                counters.bytes_read += len(payload)
                if entity.renewal is None:
                    found = lane.rows.decode(payload)
        except TransportError as error:
            failed = type(error)
        except CodecError:
            pass  # of a payload that is no row, the plan makes more
        if found is not None:
            instance = found[0].make.attach(session, key, found[1], path)
            counters.hit(perf_counter() - began)
            if type(payload) is NearPayload:
                counters.near_hits += 1
            return instance
        counting = Counting(counters, self.driver.reading(perf_counter() - asked))
        request = Request(session, lane, key, pk, self.reading(lane), path, began)
        if failed is None:
            counting.renews = payload is not None
            plan = _protocol.looked_up(lookup.entry, request.reading, payload, new_id=new_id)
        else:
            counting.asked = failed is not NotAsked
            plan = _protocol.unreachable()
        return self._run(request, counting, plan, load)

    def close(self) -> None:
        """Stop listening to load events."""
        self.probe.close()

    # one row

    def _bypass(self, entity: Entity, reason: BypassReason, load: Callable[[], Any]) -> Any:
        self.bypassed(entity, reason)
        return load()

    def _run(
        self, request: Request, counting: Counting, plan: Plan[Answer[Found, Any]], load: Callable[[], Any]
    ) -> Any:
        """Return the row that a plan finds."""
        passenger = Passenger(self._flights)

        def execute(effect: Effect[Any]) -> Any:
            if isinstance(effect, Load):
                return self._load(request, load) if effect.encode else Loaded(load(), None)
            if type(effect) in Passenger.EFFECTS:
                return passenger.execute(effect)
            return counting.execute(effect)

        try:
            answer = run(plan, execute)
        finally:
            passenger.land()
        row = self.row(request.session, request.key, answer, request.path)
        counting.count(answer, perf_counter() - request.began, request.not_stored)
        return row

    def _load(self, request: Request, load: Callable[[], Any]) -> Loaded[Any]:
        """Run the session's own get, and encode what it loaded unless the cache must not have it."""
        lane = request.lane
        entity = lane.entity
        taken: list[bytes] = []
        take = self.taking(entity, lane.rows, request.pk, taken.append)
        began = perf_counter()
        instance = self.probe.load(
            request.session, entity.mappers, {request.key: take}, load, lambda found: [] if found is None else [found]
        )
        took = perf_counter() - began
        payload = taken[-1] if taken else None
        request.not_stored = "value"
        if instance is None:
            payload = None if entity.missing_ttl_ms is None else ABSENT
            request.not_stored = "missing"
        elif not _is_asked_for(request, instance):
            payload = None
            request.not_stored = "other"
        if payload is not None and not self.admission.may_be_told(request.session, lane, [request.pk])[0]:
            payload = None
            request.not_stored = "own_writes"
        return self.loaded(lane, request.reading, instance, payload, took)

    # what other reads have in common with it

    def entity(self, class_: Any) -> Entity | None:
        """Return the cached class, or None where reads of it have nothing to do with the cache."""
        return self._entities.get(class_) if self._enabled else None

    def reading(self, lane: Lane) -> Reading[Found]:
        """Return how rows of a lane are wanted."""
        rows, renewal = lane.rows, lane.entity.renewal
        return Reading(
            rows.fingerprint,
            rows.decode,
            ttl_ms=_jittered(lane.ttl_ms),
            absent_ttl_ms=_jittered(lane.entity.missing_ttl_ms or 0),
            # 1 A: snapshot, lease  2 W: begin, COMMIT, end  3 R begins, joins A  4 A: SELECT: the old row, against I8
            wait_ms=self._wait_ms if lane.snapshot == ALWAYS else 0,
            fresh=partial(self._fresh, lane),
            due=None if renewal is None else partial(_renewal.due, beta=renewal),
            near=lane.entity.near,
        )

    def hint(self, lane: Lane, key: UniqueKey) -> Reading[tuple[Any, ...]]:
        """Return how hints from a unique key are wanted."""
        fresh = partial(self._fresh, lane)
        return Reading(key.fingerprint, key.pk, ttl_ms=_jittered(lane.ttl_ms), fresh=fresh, near=lane.entity.near)

    def _fresh(self, lane: Lane, entry: Entry, lease: Granted) -> bool:
        return lane.snapshot == ALWAYS or self._versions.since(entry.row, lease) < lane.snapshot

    def taking(self, entity: Entity, rows: Rows, pk: str, take: Callable[[bytes], object]) -> _sqlalchemy.Take:
        """Return what gives `take` the payload of an instance that a SELECT has made, if it can be stored."""

        def encode(class_: type, attributes: dict[str, Any], expired: set[str]) -> None:
            if class_ in entity.refused:
                return
            try:
                payload = rows.encode(class_, attributes, expired)
                if len(payload) + _renewal.STAMP > self._max_bytes:
                    raise CodecError(f"its {len(payload)} bytes are more than max_payload_bytes={self._max_bytes}")
                take(payload)
            except CodecError as why:
                self._warn(entity, pk, why)

        return encode

    def loaded(self, lane: Lane, reading: Reading[Found], row: Any, payload: bytes | None, took: float) -> Loaded[Any]:
        """Return a row whose load took some seconds, with the payload to store, if there is one."""
        if payload is not None and payload != ABSENT and lane.entity.renewal is not None:
            payload = _renewal.stamp(payload, ttl_ms=reading.ttl_ms, took=took)
        return Loaded(row, payload)

    def row(self, session: Session, key: _sqlalchemy.IdentityKey, answer: Answer[Found, Any], path: Any = None) -> Any:
        """Return the row of an answer, as an instance of the session."""
        if answer.decoded is None:
            return answer.row
        shape, values = answer.decoded
        return shape.make.attach(session, key, values, path)

    def bypassed(self, entity: Entity, reason: BypassReason) -> None:
        """Count a row that is read from the database by rule."""
        entity.counters.bypasses[reason] += 1

    def _warn(self, entity: Entity, pk: str, why: CodecError) -> None:
        class_ = entity.class_
        known = self.not_stored.setdefault(class_, {})
        if (why.attribute or "") not in known:
            known[why.attribute or ""] = str(why)
            log.warning("%s %s is not cached: %s", class_.__qualname__, "(a row)" if self._hides else pk, why)


def _is_asked_for(request: Request, instance: object) -> bool:
    """Return whether an instance is of the row that was asked for: a collation or a cast may find another."""
    found = _sqlalchemy.identity_of(instance)
    return found is not None and found == request.key and request.lane.entity.table.pk_text(found[1]) == request.pk


def _jittered(ttl_ms: int) -> int:
    return ttl_ms and max(1, round(ttl_ms * (1 - JITTER * os.urandom(1)[0] / 255)))
