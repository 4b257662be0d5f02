"""Where a hit happens: what stands around `Session.get`, and the library's own reads of many rows and by unique keys.

`Admission` decides what is safe to ask, the protocol's plans ask it. Here a hit becomes an object, and what the
database gave on a miss becomes a payload.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from sqlalchemy.orm import Session

from . import _protocol, _renewal, _sqlalchemy, tracing
from ._admission import ALWAYS, Admission, Lane
from ._counting import HITS, Counting
from ._driver import Driver, NotAsked, new_id
from ._effects import ABSENT, Entry, Granted, Lease, Load, Loaded, Lookup, NearPayload, Resign
from ._entities import Entities
from ._flights import Flights, Passenger
from ._namespace import Naming
from ._plan import Effect, Plan, run
from ._protocol import Answer, Reading
from ._shapes import Entity, Found, Rows
from ._unique import UniqueKey
from ._versions import Versions
from .config import Settings
from .errors import CodecError, TransportError
from .metrics import BypassReason, Outcome, RefusedReason, model_name

log = logging.getLogger("sqlmodel_cache")


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


class Samples(Protocol):
    """Takes hits that shall be verified when they have been answered."""

    def draws(self) -> bool: ...
    def offer(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> None: ...


class Reader:
    """Answers reads."""

    def __init__(self, settings: Settings, driver: Driver, entities: Entities, naming: Naming) -> None:
        self._enabled = settings.enabled
        self._wait_ms = settings.fill_wait_ms
        self.hides = naming.hides  # whether logs and errors are silent on primary keys
        self._max_bytes = settings.max_payload_bytes
        self.driver = driver
        self._entities = entities
        self.admission = Admission(settings, driver, naming)
        self._flights = Flights()
        self.probe = _sqlalchemy.LoadProbe()
        self._versions = Versions()
        self.not_stored: dict[type, dict[str, str]] = {}  # class -> attribute -> why
        self.sampler: Samples | None = None  # who has a share of the hits verified

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
            return self.bypass(entity, None, "key", load, began)
        key, pk = named
        identities = session.identity_map
        held = identities.get(key)
        if held is not None:  # the session's own business: the same object, or a refresh
            return held if not options and _sqlalchemy.is_current(held, entity.mapper) else load()
        lane = self.admission.lane(session, entity, options)
        if isinstance(lane, str):
            return self.bypass(entity, pk, lane, load, began)
        if not lane.idle and key in identities:
            return self.bypass(entity, pk, "session", load, began)
        lookup = self.admission.row(lane, pk)
        if isinstance(lookup, str):
            return self.bypass(entity, pk, lookup, load, began)
        payload: bytes | None = None
        found: Found | None = None
        failed: type[TransportError] | None = None  # not the error itself, whose traceback has this very frame
        asked = began if lane.idle else perf_counter()  # what the session had to flush is not the cache's time
        try:
            payload = self.driver.execute(lookup)
            if payload is not None and entity.renewal is None:
                found = lane.rows.decode(payload)
        except TransportError as error:
            failed = type(error)
        except CodecError:
            pass  # of a payload that is no row, the plan makes more
        if payload is not None and found is not None:
            instance = self._hit(session, lane, key, payload, found, began, path)
            if self.sampler is not None and self.sampler.draws():
                self.sampler.offer(session, lane, key)
            return instance
        if failed is NotAsked:  # during an outage every get comes here: it has no plan, and nothing to tell
            row = load()
            seconds = perf_counter() - began
            entity.counters.miss(seconds, "breaker")
            if tracing.active:
                self.traced(entity, pk, "miss", "breaker", seconds)
            return row
        request = Request(session, lane, key, pk, self.reading(lane), path, began)
        return self._miss(request, lookup, load, payload, failed, perf_counter() - asked)

    async def aget(
        self, session: Session, class_: Any, ident: Any, load: Callable[[], Any], whole: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Return what `whole()`, the `get` of an `AsyncSession` in a greenlet, would return; a hit needs none.

        Where anything but the cache may have to be waited for, and where anybody may have something to say, it is
        `whole` that does. `load` is the session's own `get`.
        """
        entity = self._entities.get(class_) if self._enabled else None
        if entity is None:
            return await whole()
        began = perf_counter()
        named = entity.identify(ident)
        if named is None:
            return await whole()
        key, pk = named
        held = session.identity_map.get(key)
        if held is not None:
            return held if _sqlalchemy.is_current(held, entity.mapper) else await whole()
        lane = self.admission.usual_lane(session, entity)
        if lane is None or not lane.awaits:
            return await whole()
        lookup = lane.lookup(pk)
        _sqlalchemy.autobegin(session)
        look_up = self.driver.looking_up(lookup)
        if look_up is None:
            return await whole()
        payload: bytes | None = None
        found: Found | None = None
        failed: type[TransportError] | None = None
        try:
            payload = await look_up
            if payload is not None and entity.renewal is None:
                found = lane.rows.decode(payload)
        except TransportError as error:
            failed = type(error)
        except CodecError:
            pass
        if payload is not None and found is not None and found[0].make.is_quiet(session):
            instance = self._hit(session, lane, key, payload, found, began)
            if self.sampler is not None and self.sampler.draws():
                await _sqlalchemy.in_new_greenlet(self.sampler.offer, session, lane, key)
            return instance
        request = Request(session, lane, key, pk, self.reading(lane), None, began)
        spent = perf_counter() - began
        return await _sqlalchemy.in_new_greenlet(self._miss, request, lookup, load, payload, failed, spent)

    def close(self) -> None:
        """Stop listening to load events."""
        self.probe.close()

    # one row

    def _hit(
        self,
        session: Session,
        lane: Lane,
        key: _sqlalchemy.IdentityKey,
        payload: bytes,
        found: Found,
        began: float,
        path: Any = None,
    ) -> Any:
        instance = found[0].make.attach(session, key, found[1], path)
        entity, seconds = lane.entity, perf_counter() - began
        entity.counters.hit(seconds, len(payload))
        is_near = type(payload) is NearPayload
        if is_near:
            entity.counters.near_hits += 1
        if tracing.active:
            self.traced(entity, entity.table.pk_text(key[1]), "near_hit" if is_near else "hit", None, seconds)
        return instance

    def _miss(
        self,
        request: Request,
        lookup: Lookup,
        load: Callable[[], Any],
        payload: bytes | None,
        failed: type[TransportError] | None,
        spent: float,
    ) -> Any:
        """Return the row after a look-up that was no plain hit, or has `failed`, in some seconds."""
        counting = Counting(request.lane.entity.counters, self.driver.reading(spent))
        if payload is not None:
            counting.renews = True
            counting.counters.bytes_read += len(payload)
        if failed is None:
            plan = _protocol.looked_up(lookup.entry, request.reading, payload, new_id=new_id)
        else:
            counting.asked = failed is not NotAsked
            plan = _protocol.unreachable()
        return self._run(request, counting, plan, load)

    def _run(
        self, request: Request, counting: Counting, plan: Plan[Answer[Found, Any]], load: Callable[[], Any]
    ) -> Any:
        """Return the row that a plan finds."""
        passenger = Passenger(self._flights)
        elected: Resign | None = None

        def execute(effect: Effect[Any]) -> Any:
            nonlocal elected
            if isinstance(effect, Load):
                read = self._load_if_connected if effect.spare else self._load
                return read(request, load) if effect.encode else Loaded(load(), None)
            if type(effect) in Passenger.EFFECTS:
                return passenger.execute(effect)
            reply = counting.execute(effect)
            if isinstance(effect, Lease) and isinstance(reply, Granted) and reply.elected:
                elected = Resign(effect.entry, reply)
            return reply

        try:
            answer = run(plan, execute)
        except asyncio.CancelledError:  # the plan is closed, and other processes wait for its fill
            if elected is not None:
                self.driver.post(elected)
            raise
        finally:
            passenger.land()
        row = self.row(request.session, request.key, answer, request.path)
        seconds = perf_counter() - request.began
        self.count(counting, request.lane.entity, request.pk, answer, seconds, request.not_stored)
        if self.sampler is not None and answer.source in HITS and self.sampler.draws():
            self.sampler.offer(request.session, request.lane, request.key)
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

    def _load_if_connected(self, request: Request, load: Callable[[], Any]) -> Loaded[Any] | None:
        """Run the session's own get; return None if it fails for want of a connection."""
        try:
            return self._load(request, load)
        except Exception as why:
            if _sqlalchemy.connections(request.session):  # its transaction may have failed, too
                raise
            log.warning("a row is not renewed: %s", type(why).__name__)
            return None

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
            ttl_ms=_renewal.jittered(lane.ttl_ms),
            absent_ttl_ms=_renewal.jittered(lane.entity.missing_ttl_ms or 0),
            # 1 A: snapshot, lease  2 W: begin, COMMIT, end  3 R begins, joins A  4 A: SELECT: the old row, against I8
            wait_ms=self._wait_ms if lane.snapshot == ALWAYS else 0,
            fresh=partial(self._fresh, lane),
            due=None if renewal is None else partial(_renewal.due, beta=renewal),
            near=lane.entity.near,
        )

    def hint(self, lane: Lane, key: UniqueKey) -> Reading[tuple[Any, ...]]:
        """Return how hints from a unique key are wanted."""
        fresh = partial(self._fresh, lane)
        return Reading(
            key.fingerprint, key.pk, ttl_ms=_renewal.jittered(lane.ttl_ms), fresh=fresh, near=lane.entity.near
        )

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

    def bypass(
        self, entity: Entity, pk: str | None, reason: BypassReason, load: Callable[[], Any], began: float
    ) -> Any:
        """Return what `load()` reads from the database by rule; count it."""
        entity.counters.bypasses[reason] += 1
        row = load()
        if tracing.active:
            self.traced(entity, pk, "bypass", reason, perf_counter() - began)
        return row

    def count(
        self,
        counting: Counting,
        entity: Entity,
        pk: str | None,
        answer: Answer[Found, Any],
        seconds: float,
        not_stored: RefusedReason,
    ) -> None:
        """Count an answer, and tell whoever traces."""
        outcome, reason = counting.count(answer, seconds, not_stored)
        if tracing.active:
            self.traced(entity, pk, outcome, reason, seconds)

    def traced(self, entity: Entity, pk: str | None, outcome: Outcome, reason: str | None, seconds: float) -> None:
        """Tell whoever traces of a get."""
        pk = None if self.hides else pk
        tracing.record(tracing.TracedGet(model_name(entity.class_), pk, outcome, reason, seconds))

    def _warn(self, entity: Entity, pk: str, why: CodecError) -> None:
        class_ = entity.class_
        known = self.not_stored.setdefault(class_, {})
        if (why.attribute or "") not in known:
            known[why.attribute or ""] = str(why)
            log.warning("%s %s is not cached: %s", class_.__qualname__, "(a row)" if self.hides else pk, why)


def _is_asked_for(request: Request, instance: object) -> bool:
    """Return whether an instance is of the row that was asked for: a collation or a cast may find another."""
    found = _sqlalchemy.identity_of(instance)
    return found is not None and found == request.key and request.lane.entity.table.pk_text(found[1]) == request.pk
