"""Where a hit happens: what stands around `Session.get`, and the library's own reads of many rows and by unique keys.

`Admission` decides what is safe to ask, the protocol's plans ask it. Here a hit becomes an object, and what the
database gave on a miss becomes a payload.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from sqlalchemy.orm import Session

from . import _protocol, _renewal, _sqlalchemy
from ._admission import ALWAYS, Admission, Lane
from ._driver import Driver, new_id
from ._effects import ABSENT, Entry, Granted, Load, Loaded, Lookup, NearPayload
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
from .metrics import Counters

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
    path: Any = None  # where its load begins, if not with the class


class Samples(Protocol):
    """Takes hits that shall be verified when they have been answered."""

    def draws(self) -> bool: ...
    def offer(self, session: Session, lane: Lane, key: _sqlalchemy.IdentityKey) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class Reader:
    """Answers reads."""

    def __init__(
        self, settings: Settings, driver: Driver, entities: Entities, naming: Naming, counters: Counters
    ) -> None:
        self._enabled = settings.enabled
        self._wait_ms = settings.fill_wait_ms
        self._hides = naming.hides
        self._max_bytes = settings.max_payload_bytes
        self.driver = driver
        self._entities = entities
        self._counters = counters
        self._counts = counters.counts
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
        named = entity.identify(ident)
        if named is None:
            return self._bypass(load)
        key, pk = named
        identities = session.identity_map
        held = identities.get(key)
        if held is not None:  # the session's own business: the same object, or a refresh
            return held if not options and _sqlalchemy.is_current(held, entity.mapper) else load()
        lane = self.admission.lane(session, entity, options)
        if lane is None or (not lane.idle and key in identities):
            return self._bypass(load)
        lookup = self.admission.row(lane, pk)
        if lookup is None:
            return self._bypass(load)
        payload: bytes | None = None
        found: Found | None = None
        reached = False
        began = time.monotonic()
        try:
            payload = self.driver.execute(lookup)
            reached = True
            if payload is not None and entity.renewal is None:
                found = lane.rows.decode(payload)
        except (TransportError, CodecError):
            pass  # of a payload that is no row, the plan makes more
        if found is not None:
            return self._hit(session, lane, key, payload, found, path)
        request = Request(session, lane, key, pk, self.reading(lane), path)
        return self._miss(request, lookup, load, payload, reached, time.monotonic() - began)

    async def aget(
        self, session: Session, class_: Any, ident: Any, load: Callable[[], Any], whole: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Return what `whole()`, the `get` of an `AsyncSession` in a greenlet, would return; a hit needs none.

        Where anything but the cache may have to be waited for, and where anybody may have something to say, it is
        `whole` that does. `load` is the session's own `get`.
        """
        entity = self._entities.get(class_) if self._enabled else None
        named = None if entity is None else entity.identify(ident)
        if entity is None or named is None:
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
        reached = False
        began = time.monotonic()
        try:
            payload = await look_up
            reached = True
            if payload is not None and entity.renewal is None:
                found = lane.rows.decode(payload)
        except (TransportError, CodecError):
            pass
        if found is not None and found[0].make.is_quiet(session):
            return self._hit(session, lane, key, payload, found)
        request = Request(session, lane, key, pk, self.reading(lane))
        spent = time.monotonic() - began
        return await _sqlalchemy.in_new_greenlet(self._miss, request, lookup, load, payload, reached, spent)

    def close(self) -> None:
        """Stop listening to load events."""
        self.probe.close()

    # one row

    def _hit(
        self,
        session: Session,
        lane: Lane,
        key: _sqlalchemy.IdentityKey,
        payload: bytes | None,
        found: Found,
        path: Any = None,
    ) -> Any:
        self._counts["hits"] += 1
        if type(payload) is NearPayload:
            self._counts["near_hits"] += 1
        instance = found[0].make.attach(session, key, found[1], path)
        if self.sampler is not None and self.sampler.draws():
            self.sampler.offer(session, lane, key)
        return instance

    def _miss(
        self,
        request: Request,
        lookup: Lookup,
        load: Callable[[], Any],
        payload: bytes | None,
        reached: bool,
        spent: float,
    ) -> Any:
        """Return the row after a look-up that was no plain hit, or did not `reach` the cache, in some seconds."""
        plan = _protocol.unreachable()
        if reached:
            plan = _protocol.looked_up(lookup.entry, request.reading, payload, new_id=new_id)
        return self._run(request, plan, load, spent)

    def _bypass(self, load: Callable[[], Any]) -> Any:
        self.bypassed(1)
        return load()

    def _run(self, request: Request, plan: Plan[Answer[Found, Any]], load: Callable[[], Any], spent: float) -> Any:
        """Return the row that a plan finds, after a look-up that took some seconds."""
        passenger = Passenger(self._flights)
        ask = self.driver.reading(spent)

        def execute(effect: Effect[Any]) -> Any:
            if isinstance(effect, Load):
                return self._load(request, load) if effect.encode else Loaded(load(), None)
            if type(effect) in Passenger.EFFECTS:
                return passenger.execute(effect)
            return ask(effect)

        try:
            answer = run(plan, execute)
        finally:
            passenger.land()
        return self.finish(request.session, request.key, answer, request.path)

    def _load(self, request: Request, load: Callable[[], Any]) -> Loaded[Any]:
        """Run the session's own get, and encode what it loaded unless the cache must not have it."""
        lane = request.lane
        entity = lane.entity
        taken: list[bytes] = []
        take = self.taking(entity, lane.rows, request.pk, taken.append)
        began = time.perf_counter()
        instance = self.probe.load(
            request.session, entity.mappers, {request.key: take}, load, lambda found: [] if found is None else [found]
        )
        took = time.perf_counter() - began
        payload = taken[-1] if taken and instance is not None and _is_asked_for(request, instance) else None
        if instance is None and entity.missing_ttl_ms is not None:
            payload = ABSENT
        if payload is not None and not self.admission.may_be_told(request.session, lane, [request.pk])[0]:
            payload = None
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

    def finish(
        self, session: Session, key: _sqlalchemy.IdentityKey, answer: Answer[Found, Any], path: Any = None
    ) -> Any:
        """Return the row of an answer, as an instance of the session; count it."""
        if answer.decoded is None:
            return self.counted(answer)
        self._count(answer)
        shape, values = answer.decoded
        return shape.make.attach(session, key, values, path)

    def counted(self, answer: Answer[Found, Any]) -> Any:
        """Return the row of an answer that the session has made itself; count it."""
        self._count(answer)
        return answer.row

    def bypassed(self, rows: int) -> None:
        """Count rows that are read from the database by rule."""
        self._counters.add("bypasses", rows)

    def _warn(self, entity: Entity, pk: str, why: CodecError) -> None:
        class_ = entity.class_
        known = self.not_stored.setdefault(class_, {})
        if (why.attribute or "") not in known:
            known[why.attribute or ""] = str(why)
            log.warning("%s %s is not cached: %s", class_.__qualname__, "(a row)" if self._hides else pk, why)

    def _count(self, answer: Answer[Found, Any]) -> None:
        add = self._counters.add
        if answer.corrupt:
            add("corrupt")
        if answer.source in (Source.HIT, Source.ABSENT):
            add("hits")
            if answer.near:
                add("near_hits")
        else:
            add("misses")
            add(_COUNTER[answer.source])


_COUNTER = {
    Source.FILLED: "fills",
    Source.REFUSED: "refused",
    Source.FENCED: "fenced",
    Source.UNCACHED: "uncached",
    Source.SHARED: "shared",
    Source.UNREACHABLE: "errors",
}


def _is_asked_for(request: Request, instance: object) -> bool:
    """Return whether an instance is of the row that was asked for: a collation or a cast may find another."""
    found = _sqlalchemy.identity_of(instance)
    return found is not None and found == request.key and request.lane.entity.table.pk_text(found[1]) == request.pk


def _jittered(ttl_ms: int) -> int:
    return ttl_ms and max(1, round(ttl_ms * (1 - JITTER * os.urandom(1)[0] / 255)))
