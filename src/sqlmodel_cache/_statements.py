"""What a statement writes: which rows where its primary keys can be told, otherwise which tables.

Everything that executes on a connection passes here: flushes, bulk operations, Core, text. A compiled statement is
analysed once and then only asked for its parameters. Where a statement cannot be read, its tables count as written:
too much is invalidated, never too little.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, Table
from sqlalchemy.engine import Compiled
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    Grouping,
    TextClause,
)
from sqlalchemy.sql.selectable import CompoundSelect, Select

from . import _sqlalchemy
from ._entities import CachedTable, Entities, Interest

_WRITES = re.compile(
    r"\b(insert|update|delete|replace|merge|truncate|copy|load|create|alter|drop|rename|call|do|exec|execute|refresh)\b",
    re.IGNORECASE,
)
_UPSERT = re.compile(r"\bDO\s+UPDATE\b|\bON\s+DUPLICATE\b|\bREPLACE\b", re.IGNORECASE)
_ENDS_TRANSACTION = re.compile(r"(^|;)\s*(commit|end|prepare\s+transaction)\b", re.IGNORECASE)
_ISOLATES = re.compile(r"\bisolation\b|\bsnapshot\b|\bread_uncommitted\b", re.IGNORECASE)

# Databases on which, unless a column says otherwise, text is equal only to the same text. Elsewhere `= 'bob'` may change
# the row 'Bob', and the whole table counts as written.
_EXACT_TEXT = frozenset({"postgresql", "sqlite", "oracle"})

Kind = Literal["insert", "change"]


@dataclass(frozen=True, slots=True)
class Write:
    """One effect of a statement. `schema` is where the statement says the table is, `pks` the rows, if known."""

    schema: str | None
    table: CachedTable
    kind: Kind
    pks: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class _Target:
    """One effect of a compiled statement, and where its parameters carry the primary keys.

    `where` names the parameters of the key in the WHERE clause, `assigned` those in VALUES or SET, a name per column.
    """

    schema: str | None
    table: CachedTable
    kind: Kind
    where: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()

    def write(self, parameters: list[dict[str, Any]]) -> Write:
        """Return the effect for one execution."""
        rows: set[str] | None = set()
        if not parameters or not (self.where or self.assigned):
            rows = None
        for values in parameters:
            if rows is None:
                break
            for pk in self._primary_keys(values):
                text = None if pk is None else self.table.pk_text(pk)
                if text is None:
                    rows = None
                    break
                rows.add(text)
        return Write(self.schema, self.table, self.kind, None if rows is None else tuple(rows))

    def _primary_keys(self, values: dict[str, Any]) -> Iterator[Sequence[Any] | None]:
        """Yield the keys before and after, and None for one that is not in the parameters."""
        if not self.where:
            yield [values[name] for name in self.assigned] if values.keys() >= set(self.assigned) else None
            return
        before = [values.get(name) for name in self.where]
        if len(before) == 1 and isinstance(before[0], list | tuple | set):
            yield from ([value] for value in before[0])
        else:
            yield before
        if any(name in values for name in self.assigned):
            yield [values.get(name, was) for name, was in zip(self.assigned, before, strict=True)]


class Statements:
    """Reads statements for the tables that `entities` knows."""

    def __init__(self, entities: Entities) -> None:
        self._entities = entities
        self._generation = -1
        # Compiled statements live in SQLAlchemy's own cache; an entry goes when its statement does.
        self._targets: weakref.WeakKeyDictionary[Compiled, tuple[_Target, ...]] = weakref.WeakKeyDictionary()

    def writes_of(self, context: DefaultExecutionContext, sql: str) -> list[Write]:
        """Return what an execution writes to tables that matter; an empty list for nearly all."""
        compiled = context.compiled
        if compiled is None:
            return list(self._of_text(sql))
        if self._generation != self._entities.generation:
            self._targets = weakref.WeakKeyDictionary()
            self._generation = self._entities.generation
        targets = self._targets.get(compiled)
        if targets is None:
            targets = self._targets[compiled] = self._analyse(compiled)
        if not targets:
            return []
        parameters = context.compiled_parameters if hasattr(context, "compiled_parameters") else []
        return [target.write(parameters) for target in targets]

    def _analyse(self, compiled: Compiled) -> tuple[_Target, ...]:
        statement = compiled.statement
        if isinstance(statement, Select | CompoundSelect):
            if not getattr(compiled, "ctes", None):
                return ()
            return tuple(self._nested(compiled, statement))
        if isinstance(statement, Insert | Update | Delete):
            return (*self._of_dml(compiled, statement), *self._nested(compiled, statement))
        text = getattr(compiled, "string", None) or str(statement)
        return tuple(_Target(write.schema, write.table, write.kind) for write in self._of_text(text))

    def _nested(self, compiled: Compiled, statement: Any) -> Iterator[_Target]:
        """DML inside a CTE; its rows are not told apart."""
        if not getattr(compiled, "ctes", None):
            return
        for element in visitors.iterate(statement):
            if isinstance(element, Insert | Update | Delete) and element is not statement:
                for target in self._of_dml(compiled, element):
                    yield _Target(target.schema, target.table, target.kind)

    def _of_dml(self, compiled: Compiled, statement: Insert | Update | Delete) -> Iterator[_Target]:
        names = _tables_in(statement.table)
        assigned = {} if isinstance(statement, Delete) else _sqlalchemy.assigned(statement)
        for column in assigned:  # some databases update several tables at once
            names |= _tables_in(getattr(column, "table", None))
        for schema, name in names:
            interest = self._entities.interest(name)
            if interest is None:
                continue
            for cached in _same_table(interest, schema):
                yield _of_table(compiled, statement, schema, cached, assigned)
            yield from _cascades(interest, delete=isinstance(statement, Delete), update=isinstance(statement, Update))

    def _of_text(self, sql: str) -> Iterator[Write]:
        if not _WRITES.search(sql):
            return
        for schema, name in self._entities.mentioned_in(sql):
            interest = self._entities.interest(name)
            if interest is None:
                continue
            for cached in _same_table(interest, schema):
                yield Write(schema, cached, "change", None)
            for target in _cascades(interest, delete=True, update=True):
                yield target.write([])


def _same_table(interest: Interest, schema: str | None) -> list[CachedTable]:
    """Return the cached tables that a name may mean: no schema may be any, and any may be the default one."""
    return [cached for cached in interest.cached if schema is None or cached.schema in (None, schema)]


def _cascades(interest: Interest, *, delete: bool, update: bool) -> Iterator[_Target]:
    for cached in {*(interest.on_delete if delete else ()), *(interest.on_update if update else ())}:
        yield _Target(cached.schema, cached, "change")


def _tables_in(element: Any) -> set[tuple[str | None, str]]:
    if element is None:
        return set()
    return {(part.schema, part.name) for part in visitors.iterate(element) if isinstance(part, Table)}


def _of_table(
    compiled: Compiled,
    statement: Insert | Update | Delete,
    schema: str | None,
    cached: CachedTable,
    assigned: Mapping[Any, Any],
) -> _Target:
    table = statement.table
    if not isinstance(table, Table) or table.name.lower() != cached.name.lower():
        return _Target(schema, cached, "change")  # an alias, a join, or another table than the statement's own
    keys = {column.name.lower(): column.key for column in table.columns}
    names = tuple(keys.get(column.lower(), column) for column in cached.pk_columns)
    if isinstance(statement, Insert):
        upsert = _UPSERT.search(getattr(compiled, "string", None) or "REPLACE")
        return _Target(schema, cached, "change") if upsert else _Target(schema, cached, "insert", (), names)
    where = _where(compiled, statement, cached)
    expressions = {getattr(column, "name", column) for column, value in assigned.items() if _is_expression(value)}
    if expressions & set(cached.pk_columns):
        where = ()  # the new primary key is computed by the database
    return _Target(schema, cached, "change", where, names if where else ())


def _is_expression(value: object) -> bool:
    return isinstance(value, ClauseElement) and not isinstance(value, BindParameter)


def _where(compiled: Compiled, statement: Update | Delete, cached: CachedTable) -> tuple[str, ...]:
    """Return the parameters in `WHERE pk = :p AND ...` or `WHERE pk IN (:p)`, one per column, or ()."""
    if str in cached.pk_types and compiled.dialect.name not in _EXACT_TEXT:
        return ()
    names: dict[str, str] = {}
    for column, bind in _equalities(statement.whereclause, many=len(cached.pk_columns) == 1):
        of_table = getattr(getattr(column, "table", None), "name", None) == cached.name
        name = getattr(compiled, "bind_names", {}).get(bind)
        if of_table and name is not None:
            names[column.name] = name
    return tuple(names[column] for column in cached.pk_columns) if names.keys() >= set(cached.pk_columns) else ()


def _equalities(clause: ColumnElement[Any] | None, *, many: bool) -> Iterator[tuple[Any, BindParameter[Any]]]:
    if isinstance(clause, Grouping):
        yield from _equalities(clause.element, many=many)
    elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _equalities(part, many=many)
    elif isinstance(clause, BinaryExpression) and isinstance(clause.right, BindParameter):
        if clause.operator is operators.eq or (many and clause.operator is operators.in_op):
            yield clause.left, clause.right


def is_text(context: DefaultExecutionContext) -> bool:
    """Return whether a statement came as text: `text()`, `exec_driver_sql()`."""
    return context.compiled is None or isinstance(context.compiled.statement, TextClause)


@lru_cache(maxsize=1024)
def ends_transaction(sql: str) -> bool:
    """Return whether a statement in text commits by itself."""
    return _ENDS_TRANSACTION.search(sql) is not None


@lru_cache(maxsize=1024)
def isolates(sql: str) -> bool:
    """Return whether a statement in text sets an isolation level or a snapshot."""
    return _ISOLATES.search(sql) is not None
