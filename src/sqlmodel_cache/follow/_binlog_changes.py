"""Changes in a MySQL or MariaDB log to the rows and tables that they make stale. Pure: no I/O, no clock.

As in `_changes`, whatever cannot be told for certain is the whole table's, or everything: too much is invalidated,
never too little.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._shapes import CachedTable
from .._writeset import TableRef, WriteSet
from ._binlog_server import Catalog
from ._changes import Batch, Stale
from ._source import Name

Image = Mapping[str, Any]


class Row(NamedTuple):
    """A row before and after a change, by the columns' names in lower case, without what was not sent.

    A column that is missing after an UPDATE has not changed.
    """

    before: Image | None
    after: Image | None


@dataclass(frozen=True, slots=True)
class _Target:
    cached: CachedTable
    refs: tuple[TableRef, ...]
    columns: tuple[str, ...]  # of the primary key, in lower case

    def add(self, writes: WriteSet, row: Row) -> None:
        pks = self._pks(row)
        for ref in self.refs:
            writes.change(ref, pks)

    def _pks(self, row: Row) -> set[str] | None:
        """Return the keys of a row, none if it is of no interest, or None for the whole table."""
        was = None if row.before is None else self._pk(row.before)
        now = None if row.after is None else self._pk({**(row.before or {}), **row.after})
        if row.before is None:
            return self._appeared(now) if self.cached.absences else set()
        if was is None or (row.after is not None and now is None):
            return None
        if now is None or now == was:
            return {was}
        appeared = self._appeared(now) if self.cached.absences else {now}
        return None if appeared is None else {was, *appeared}

    def _appeared(self, pk: str | None) -> set[str] | None:
        """Return what was absent and is not: a text is found by others, too, that its collation takes for the same."""
        return None if pk is None or str in self.cached.pk_types else {pk}

    def _pk(self, image: Image) -> str | None:
        if not self.columns or not all(column in image for column in self.columns):
            return None
        pairs = zip(self.cached.pk_types, self.columns, strict=True)
        return self.cached.pk_text(
            [_uuid(image[column]) if type_ is uuid.UUID else image[column] for type_, column in pairs]
        )


def _uuid(value: Any) -> Any:
    """Return a UUID from its text, or from MariaDB's bytes, which lack the zeros at the end."""
    try:
        return uuid.UUID(value) if isinstance(value, str) else uuid.UUID(bytes=value.ljust(16, b"\0"))
    except (AttributeError, TypeError, ValueError):
        return value


class LogChanges:
    """Gathers events of the log into batches of complete transactions.

    Args:
        stale: names what is stale.
        database: whose tables need no schema before their names.
        own: the follower's table, whose changes are nobody's concern.
    """

    def __init__(self, stale: Stale, database: str, own: Name) -> None:
        self._stale = stale
        self._database = database
        self._own = own
        self._batch = Batch()
        self._targets: dict[Name, tuple[_Target, ...]] = {}
        self._catalog = Catalog(frozenset(), {}, ())
        self.names: set[str] = set()  # of all tables whose rows matter
        self.within = False  # a transaction
        self.passed = False  # whether anything but the follower's own writes went by; for the reader to reset
        self._told = 0  # changes of the batch that belong to transactions which have ended
        self._wrote_own = False  # whether this transaction has written the follower's table

    @property
    def rows(self) -> int:
        """How many changes are waiting."""
        return self._batch.changes

    @property
    def empty(self) -> bool:
        """Whether nothing is waiting to be invalidated."""
        return not self._batch.changes

    def know(self, catalog: Catalog) -> None:
        """Take in what there is of tables by now."""
        self._catalog = catalog
        self._targets.clear()
        self.names.clear()
        self.names.update(self._stale.tables(), (name.table for name in catalog.rewrites), (self._own.table,))

    def everything(self, writes: WriteSet) -> None:
        """Add all cached tables, in all schemas."""
        for ref in self._stale.everything().tables:
            writes.change(ref, None)
        for name in self._catalog.tables:
            self._table(writes, name)

    def lost(self, at: float) -> None:
        """Take in that something was not understood: a transaction of its own, or a part of one."""
        self._batch.changes += 1
        self.everything(self._batch.writes)
        if not self.within:
            self.commit(at)

    def begin(self) -> None:
        """Begin a transaction."""
        self.within = True

    def commit(self, at: float) -> None:
        """End one that committed at this second of Unix time."""
        self.within = False
        self.passed = self.passed or not self._wrote_own
        self._wrote_own = False
        if self._batch.changes > self._told:
            self._told = self._batch.changes
            self._batch.transactions += 1
            self._batch.committed_at = at

    def change(self, schema: str, table: str, decode: Callable[[], Iterable[Row]]) -> None:
        """Take in changed rows of a table, which are only decoded where that tells something."""
        self.within = True
        name = Name(schema, table)
        if name == self._own:
            self._wrote_own = True
            return
        writes, targets, rewrites = self._batch.writes, self._known(name), self._catalog.rewrites.get(name, ())
        open_ones = [target for target in targets if not all(ref in writes.tables for ref in target.refs)]
        if not targets and not rewrites:
            return
        self._batch.changes += 1
        if not open_ones and not rewrites:
            return
        try:
            for number, row in enumerate(decode()):
                self._batch.changes += number > 0
                for target in open_ones:
                    target.add(writes, row)
                for rewrite in rewrites:
                    if _rewrites(rewrite.kind, rewrite.columns, row):
                        for child in rewrite.tables:
                            self._table(writes, child)
        except Exception:  # a value that nobody expected
            for each in (name, *(child for rewrite in rewrites for child in rewrite.tables)):
                self._table(writes, each)

    def query(self, sql: str, at: float) -> bool:
        """Take in a statement of the log; return whether tables may be other ones now."""
        words = sql.split(None, 3)
        first = words[0].upper() if words else ""
        if first in ("BEGIN", "START"):
            self.begin()
            return False
        if first in ("COMMIT", "ROLLBACK") and len(words) == 1:
            self.commit(at)
            return False
        if first in ("SAVEPOINT", "ROLLBACK", "RELEASE") or [word.upper() for word in words[:2]] == ["XA", "END"]:
            return False
        standalone = not self.within
        if _DEFINES.match(sql) is None:
            self.lost(at)
        else:
            self._define(sql)
            if standalone:
                self.commit(at)
        return standalone

    def _define(self, sql: str) -> None:
        for table in {cached.name for cached in self._stale.cached_tables() if _is_named(cached, sql)}:
            self._batch.changes += 1
            for name in self._catalog.tables | {Name(self._database, table)}:
                if name.table == table:
                    self._table(self._batch.writes, name)

    def take(self) -> Batch:
        """Return what complete transactions have changed since the last call; not to be called within one."""
        batch, self._batch, self._told = self._batch, Batch(), 0
        return batch

    def _table(self, writes: WriteSet, name: Name) -> None:
        for target in self._known(name):
            for ref in target.refs:
                writes.change(ref, None)

    def _known(self, name: Name) -> tuple[_Target, ...]:
        targets = self._targets.get(name)
        if targets is None:
            bare = name.schema == self._database
            targets = self._targets[name] = tuple(
                _Target(
                    cached,
                    tuple(self._stale.refs(name.schema, cached, bare=bare)),
                    tuple(column.lower() for column in cached.pk_columns),
                )
                for cached in self._stale.cached(name.table)
            )
        return targets


# What defines something, and changes no rows but those of the tables that it names.
_DEFINES = re.compile(
    r"\s*(?:(?:CREATE|ALTER|DROP|RENAME)\b(?!\s+(?:OR\s+REPLACE\s+)?(?:DATABASE|SCHEMA)\b)"
    r"|(?:TRUNCATE|GRANT|REVOKE|FLUSH|(?:ANALYZE|OPTIMIZE|REPAIR)(?:\s+\w+)?\s+TABLES?)\b)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_$]+")  # a name that stands in a statement as it is


def _is_named(cached: CachedTable, sql: str) -> bool:
    return not _PLAIN.fullmatch(cached.name) or cached.name.lower() in sql.lower()


def _rewrites(kind: str, columns: frozenset[str], row: Row) -> bool:
    """Return whether a change of a row is one with which the database rewrites others."""
    if row.before is None or (kind == "delete") != (row.after is None):
        return False
    before, after = row.before, {**row.before, **(row.after or {})}
    return kind == "delete" or any(before.get(column, _UNSENT) != after.get(column, _UNSENT) for column in columns)


_UNSENT = object()
