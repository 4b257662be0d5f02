"""What the tests ask of a cache and a database: what a get finds, what is true, and what was said in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session
from writes.entry import Row
from writes.tables import table_of

from sqlmodel_cache import MemoryTransport, SQLModelCache, TransportError

Rows = dict[Row, tuple[Any, ...]]


class Recorder(MemoryTransport):
    """A memory transport that keeps every effect that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.effects: list[Any] = []
        self.deaf_to: type | None = None  # a kind of effect that it does not answer

    def execute(self, effect: Any) -> Any:
        """Keep the effect, and answer it."""
        self.effects.append(effect)
        if self.deaf_to is not None and isinstance(effect, self.deaf_to):
            raise TransportError(f"{type(effect).__name__} is not heard")
        return super().execute(effect)

    def take(self) -> list[Any]:
        """Return the effects since the last call."""
        taken, self.effects = self.effects, []
        return taken


def in_database(bind: Engine | Connection, models: Iterable[Any]) -> Rows:
    """Return the rows that the database has now."""
    found: Rows = {}
    with Session(bind, join_transaction_mode="rollback_only") as session:
        for model in models:
            attributes = model.__mapper__.column_attrs
            for row in session.connection().execute(select(table_of(model))):
                values = tuple(row._mapping[prop.columns[0]] for prop in attributes)
                pk = tuple(row._mapping[column] for column in model.__mapper__.primary_key)
                found[model, pk[0] if len(pk) == 1 else pk] = values
    return found


def got(bind: Engine | Connection, keys: Iterable[Row]) -> Rows:
    """Return what `get()` in new sessions finds. One for each, for on SQLite only the first SELECT of one may fill."""
    found: Rows = {}
    for model, pk in keys:
        with Session(bind, join_transaction_mode="rollback_only") as session:
            instance = session.get(model, pk)
            if instance is not None:
                found[model, pk] = tuple(getattr(instance, prop.key) for prop in model.__mapper__.column_attrs)
    return found


def missed(engine: Engine, keys: Iterable[Row]) -> list[Row]:
    """Return the rows that a get does not find in the cache; and they are in it afterwards."""
    absent = []
    for key in keys:
        hits = SQLModelCache.stats().hits
        got(engine, [key])
        if SQLModelCache.stats().hits == hits:
            absent.append(key)
    return absent


def warm(engine: Engine, models: Iterable[Any]) -> Rows:
    """Return the rows after all of them have been cached."""
    before = in_database(engine, models)
    assert got(engine, before) == before
    assert missed(engine, before) == []
    return before
