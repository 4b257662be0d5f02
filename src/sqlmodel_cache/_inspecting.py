"""What the cache holds of one row now, for people who ask. No get depends on it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from ._admission import table_name
from ._driver import Driver, new_id
from ._effects import ABSENT, Entry, Hit, Lease, Lookup, Peek, Peeked
from ._entities import Entities
from ._namespace import Naming
from ._shapes import Entity
from ._writeset import TableRef
from .errors import CodecError, ConfigurationError, TransportError
from .explanation import RowExplanation, in_order

_INVALID = {
    "pending": "a commit of its whole table is in flight",
    "written": "its whole table has been written since, or the cache has forgotten the table",
    "server": "it was stored on another server, before a restart, or before a failover",
}


class Inspector:
    """Explains rows."""

    def __init__(self, driver: Driver, entities: Entities, naming: Naming) -> None:
        self._driver = driver
        self._entities = entities
        self._naming = naming

    def row(self, model: Any, pk: Any, bind: Engine | Connection, session: Session | None) -> RowExplanation:
        """Return what the cache holds of a row.

        Raises:
            ConfigurationError: the model is not cached, the key is not one of its keys, or the database has no name.
        """
        self._entities.named(model, pk)
        entity = self._entities.get(model)
        if entity is None:
            raise ConfigurationError("model", model, f"it is not cached: {self._entities.refusal(model)}")
        named = entity.identify(pk)
        if named is None:
            raise ConfigurationError("pk", pk, "give the primary key as `session.get` takes it")
        try:
            namespace = self._naming.namespace(session, bind)
        except LookupError as why:
            raise ConfigurationError("bind", bind, str(why)) from why
        translate = bind.get_execution_options().get("schema_translate_map")
        ref = TableRef(namespace, table_name(entity, translate, bind))
        entry = self._naming.entries(ref, named[1])[0]
        name = f"{model.__module__}.{model.__qualname__} {named[0][1] if not self._naming.hides else '(hidden)'}"
        return self._explain(entity, name, entry, entity.rows(bind.dialect).fingerprint, bind)

    def _explain(
        self, entity: Entity, name: str, entry: Entry, fingerprint: bytes, bind: Engine | Connection
    ) -> RowExplanation:
        lookup = Lookup(entry, fingerprint)
        own = self._driver.as_stored(lookup).fingerprint.hex()
        try:
            held: Peeked = self._driver.execute(Peek(entry))
            payload: bytes | None = self._driver.execute(lookup)
            if payload is None and held.invalid is None and bytes.fromhex(own) in (held.payloads or {}):
                leased = self._driver.execute(Lease(entry, fingerprint, new_id()))  # as a get does next
                payload = leased.payload if isinstance(leased, Hit) else None
        except TransportError as why:
            return RowExplanation(name, entry.row, "unknown", reason=str(why), fingerprint=own)
        if held.payloads is None:
            reason = "nothing is stored"
            if held.pending is not None:
                reason = "it has been written or asked for, and not been stored since"
            if held.pending:
                reason = "a commit of it is in flight, or has not told how it ended"
            state: Any = "nothing" if held.pending is None else "fence"
            return RowExplanation(name, entry.row, state, reason=reason, fingerprint=own)
        usable, state, values, why_not = False, "value", None, _INVALID.get(held.invalid or "")
        if why_not is None and payload is None:
            why_not = "it is stored in other shapes only: another release, driver or class, or another encryption key"
        if payload == ABSENT:
            state = "absent"
            if entity.missing_ttl_ms is None and why_not is None:
                why_not = "this model does not use stored absences"
        elif payload is not None:
            try:
                shape, found = entity.rows(bind.dialect).decode(payload)
                values = {name: found[name] for name in in_order(shape.mapper, found)}
            except CodecError as error:
                why_not = f"it does not decode: {error}"
        if why_not is None and self._driver.debts.any and entry in self._driver.debts:
            why_not = "this process has changed it, and the cache has not been told yet"
        usable = why_not is None
        return RowExplanation(
            name,
            entry.row,
            state,
            usable=usable,
            reason=why_not,
            values=values,
            ttl=self._driver.ttl(entry.row),
            size=sum(map(len, held.payloads.values())),
            fingerprints=tuple(sorted(each.hex() for each in held.payloads)),
            fingerprint=own,
        )
