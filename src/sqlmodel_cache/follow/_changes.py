"""Changes of committed transactions to the rows and tables that they make stale. Pure: no I/O, no clock.

Whatever cannot be told for certain - a key that the replica identity does not carry, a value that is not of the
column's Python type - is the whole table's: too much is invalidated, never too little.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import _keys
from .._entities import Entities
from .._shapes import CachedTable
from .._writeset import TableRef, WriteSet
from ._pgoutput import Begin, Change, Commit, DecodeError, Gap, Message, Relation, Truncate

# From the text that PostgreSQL, or a trigger, gives to a value of a type that may be a key. ValueError: it is none.
_FROM_TEXT: Mapping[type, Callable[[str], Any]] = {
    int: int,
    str: str,
    uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
}


@dataclass(slots=True)
class Batch:
    """What complete transactions have made stale.

    Attributes:
        xids: the transactions, as far as a reader might not see them yet.
        position: where the source goes on when all of it has been invalidated.
    """

    writes: WriteSet = field(default_factory=WriteSet)
    xids: set[int] = field(default_factory=set)
    transactions: int = 0
    changes: int = 0
    committed_at: float | None = None  # seconds of Unix time: of the latest, by the database's clock
    position: Any = None


class Stale:
    """Names what a change of a table makes stale, in every namespace that readers use."""

    def __init__(self, entities: Entities, namespaces: Sequence[str]) -> None:
        self._entities = entities
        self.namespaces = tuple(namespaces)
        self._parents: Mapping[tuple[str, str], set[tuple[str, str]]] = {}
        self.generation = 0  # changes with what a relation stands for

    def tables(self) -> list[str]:
        """Return the names of all cached tables."""
        return sorted({cached.name for cached in self._entities.all_tables()})

    def cached_tables(self) -> list[CachedTable]:
        """Return all cached tables."""
        return sorted(self._entities.all_tables(), key=lambda cached: (cached.name, cached.pk_columns))

    def descend(self, parents: Mapping[Any, set[Any]]) -> None:
        """Take in which tables show the rows of others, that inherit from them, each by its schema and name."""
        if parents != self._parents:
            self._parents = parents
            self.generation += 1

    def shown_by(self, schema: str, name: str) -> list[tuple[str, str]]:
        """Return the tables that show a table's rows, itself first."""
        return [(schema, name), *sorted(self._parents.get((schema, name), ()))]

    def cached(self, table: str) -> list[CachedTable]:
        """Return what is cached of tables of this name."""
        interest = self._entities.interest(table)
        return [] if interest is None else [each for each in interest.cached if each.name == table]

    def refs(self, schema: str | None, cached: CachedTable, *, bare: bool = True) -> list[TableRef]:
        """Return the names in keys that readers may use for a table.

        A `schema_translate_map` may have given a model any schema, or taken it away; without one, a table is found by
        its `bare` name where the connection looks first.
        """
        names = {_keys.table_name(each, cached.family) for each in ((schema, None) if bare else (schema,))}
        return [TableRef(namespace, name) for namespace in self.namespaces for name in sorted(names)]

    def table(self, writes: WriteSet, schema: str | None, name: str) -> None:
        """Add a whole table."""
        for cached in self.cached(name):
            for ref in self.refs(schema, cached):
                writes.change(ref, None)

    def everything(self) -> WriteSet:
        """Return all rows of all cached tables, in the schemas that their models name."""
        writes = WriteSet()
        for cached in self._entities.all_tables():
            for ref in self.refs(cached.schema, cached):
                writes.change(ref, None)
        return writes


@dataclass(frozen=True, slots=True)
class Target:
    """One cached table that a change of a relation touches, and where the relation's rows carry its primary key."""

    cached: CachedTable
    refs: tuple[TableRef, ...]
    places: tuple[int, ...] | None  # None: the relation's rows do not carry it
    identified: bool  # whether an UPDATE tells the old key when it changes, and a DELETE tells it at all

    def add(self, writes: WriteSet, change: Change) -> None:
        """Add the row of a change, or the table."""
        if change.kind == b"I" and not self.cached.absences:
            return  # nobody can have cached a row that did not exist
        pks = self._pks(change) if change.kind == b"I" or self.identified else None
        for ref in self.refs:
            writes.change(ref, pks)

    def _pks(self, change: Change) -> list[str] | None:
        rows = change.rows()
        old, new = rows.old, rows.new
        if old is not None and new is not None and len(old) == len(new):
            new = tuple(was if value is Gap.UNCHANGED else value for was, value in zip(old, new, strict=True))
        found = [self._pk(row) for row in (old, new) if row is not None]
        known = [text for text in found if text is not None]
        return known if len(known) == len(found) else None

    def _pk(self, row: Sequence[Any]) -> str | None:
        if self.places is None or max(self.places) >= len(row):
            return None
        return pk_text(self.cached, [row[place] for place in self.places])


def pk_text(cached: CachedTable, texts: Sequence[Any]) -> str | None:
    """Return the text in keys of a primary key whose parts the database has written as text; None if it is none."""
    if not all(isinstance(text, str) for text in texts):  # NULL, or a value that was not sent
        return None
    try:
        parts = [_FROM_TEXT[type_](text) for type_, text in zip(cached.pk_types, texts, strict=True)]
    except ValueError:  # infinity, another type
        return None
    return cached.pk_text(parts)


class Changes:
    """Gathers messages of the stream into batches of complete transactions."""

    def __init__(self, stale: Stale) -> None:
        self._stale = stale
        self._relations: dict[int, Relation] = {}
        self._targets: dict[int, tuple[Target, ...]] = {}  # of the relations, in the generation below
        self._generation = stale.generation
        self._batch = Batch()
        self._whole: set[int] = set()  # relations whose further rows add nothing to the batch
        self.within = False  # a transaction: between its BEGIN and its COMMIT

    @property
    def rows(self) -> int:
        """How many changes are waiting."""
        return self._batch.changes

    @property
    def empty(self) -> bool:
        """Whether nothing is waiting to be invalidated."""
        return not self._batch.transactions and not self.within

    def add(self, message: Message) -> None:
        """Take the next message of the stream.

        Raises:
            DecodeError: it does not follow from those before it.
        """
        self._renew()
        match message:
            case Change(_, relation):
                self._batch.changes += 1
                if relation not in self._whole:
                    self._change(relation, message)
            case Begin(xid, committed_at):
                self.within = True
                self._batch.xids.add(xid)
                self._batch.committed_at = committed_at
            case Commit(end):
                self.within = False
                self._batch.transactions += 1
                self._batch.position = end
            case Relation():
                self._relations[message.id] = message
                self._targets.pop(message.id, None)
                self._whole.discard(message.id)
            case Truncate(relations):
                self._batch.changes += 1
                for relation in relations:
                    for target in self._known(relation):
                        for ref in target.refs:
                            self._batch.writes.change(ref, None)

    def take(self) -> Batch:
        """Return what complete transactions have changed since the last call; not to be called within one."""
        batch, self._batch = self._batch, Batch()
        self._whole.clear()
        return batch

    def _change(self, relation: int, change: Change) -> None:
        targets, writes = self._known(relation), self._batch.writes
        for target in targets:
            target.add(writes, change)
        if all(ref in writes.tables for target in targets for ref in target.refs):
            self._whole.add(relation)

    def _renew(self) -> None:
        """Forget what relations stood for: another look at the catalog may have changed that."""
        if self._generation != self._stale.generation:
            self._generation = self._stale.generation
            self._targets.clear()
            self._whole.clear()

    def _known(self, relation: int) -> tuple[Target, ...]:
        targets = self._targets.get(relation)
        if targets is None:
            if relation not in self._relations:
                raise DecodeError(f"rows of relation {relation}, which was not described")
            targets = self._targets[relation] = tuple(self._of(self._relations[relation]))
        return targets

    def _of(self, relation: Relation) -> Iterable[Target]:
        place = {column.name: at for at, column in enumerate(relation.columns)}
        identifying = {column.name for column in relation.columns if column.identifies}
        for schema, name in self._stale.shown_by(relation.schema, relation.name):
            for cached in self._stale.cached(name):
                known = bool(cached.pk_columns) and all(column in place for column in cached.pk_columns)
                yield Target(
                    cached,
                    tuple(self._stale.refs(schema, cached)),
                    tuple(place[column] for column in cached.pk_columns) if known else None,
                    # With another replica identity, an UPDATE that changes the key tells only the new one.
                    known and identifying.issuperset(cached.pk_columns),
                )
