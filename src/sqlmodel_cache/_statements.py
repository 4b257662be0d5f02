"""What a statement writes: which rows where its primary keys can be told, otherwise which tables.

Everything that executes on a connection passes here: flushes, bulk operations, Core, text. A compiled statement is
analysed once and then only asked for its parameters. Where a statement cannot be read, its tables count as written:
too much is invalidated, never too little. What text says is in `_sqltext.py`.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import ColumnClause, TypeDecorator
from sqlalchemy.engine import Compiled
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.exc import CompileError
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
from sqlalchemy.sql.selectable import CompoundSelect, Select, TableClause
from sqlalchemy.types import TypeEngine

from . import _sqlalchemy, _sqltext
from ._codec import plain_type
from ._entities import Entities, Interest
from ._shapes import CachedTable
from ._writeset import MAX_NAMED_ROWS

_UPSERT = re.compile(r"\bDO\s+UPDATE\b|\bON\s+DUPLICATE\b", re.IGNORECASE)
_UPSERT_BY = re.compile(r"\bON CONFLICT \(([^()]*)\) DO UPDATE SET (.*)", re.DOTALL)
_REPLACE = re.compile(r"\bOR\s+REPLACE\b|^\s*REPLACE\b", re.IGNORECASE)
_ROW_OF_VALUES = re.compile(r".*_m(\d+)$")

# Databases on which, unless a column says otherwise, text is equal only to the same text. Elsewhere `= 'bob'` may
# change the row 'Bob', and the whole table counts as written.
_EXACT_TEXT = frozenset({"postgresql", "sqlite", "oracle"})
_PLAIN_TEXT = re.compile(r"(?:N?VARCHAR2?|TEXT|N?CLOB)(?:\(\d+(?: CHAR)?\))?", re.IGNORECASE)
_NO_EXPRESSION = (TypeEngine.bind_expression, TypeDecorator.bind_expression)

Kind = Literal["insert", "change", "cascade"]


@dataclass(frozen=True, slots=True)
class Write:
    """One effect of a statement. `schema` is where the statement says the table is, `pks` the rows, if known.

    A `cascade` happens to a table that the statement does not name. In text, `literal`, schemas are not translated.
    `returned` says where the primary key stands in each row of RETURNING, a place per column.
    """

    schema: str | None
    table: CachedTable
    kind: Kind
    pks: tuple[str, ...] | None = None
    literal: bool = False
    returned: tuple[int, ...] = ()

    def of_rows(self, rows: Sequence[Sequence[Any]]) -> Write:
        """Return the effect when these rows were returned."""
        texts = [self.table.pk_text([row[place] for place in self.returned]) for row in rows]
        known = tuple(text for text in texts if text is not None)
        return replace(self, pks=known if len(known) == len(texts) else None, returned=())


@dataclass(frozen=True, slots=True)
class _Target:
    """One effect of a compiled statement, and where its parameters carry the primary keys.

    `where` names the parameters of the key in the WHERE clause, `assigned` those in VALUES or SET, a name per column.
    """

    effect: Write
    where: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()

    def write(self, parameters: Sequence[Mapping[str, Any]]) -> Write:
        """Return the effect for one execution."""
        if not (self.where or self.assigned) or not parameters:
            return self.effect
        if len(parameters) > MAX_NAMED_ROWS:
            names_rows = self.write(parameters[:1]).pks is not None
            return replace(self.effect, kind="change") if names_rows and self.effect.kind == "insert" else self.effect
        rows: set[str] = set()
        for values in parameters:
            for pk in self._after(values) if not self.where else self._before_and_after(values):
                text = self.effect.table.pk_text(pk)
                if text is None:  # not in the parameters, or of another type
                    return self.effect
                rows.add(text)
        return replace(self.effect, pks=tuple(rows))

    def _after(self, values: Mapping[str, Any]) -> Iterator[list[Any]]:
        names = self.assigned
        if names[0] in values or f"{names[0]}_m0" not in values:
            yield [values.get(name) for name in names]
        else:  # VALUES with several rows
            for row in {found[1] for name in values if (found := _ROW_OF_VALUES.match(name))}:
                yield [values.get(f"{name}_m{row}") for name in names]

    def _before_and_after(self, values: Mapping[str, Any]) -> Iterator[list[Any]]:
        before = [values.get(name) for name in self.where]
        if self.where[0] not in values and len(before) == 1:  # an IN, which SQLAlchemy has expanded by now
            names = (f"{self.where[0]}_{count}" for count in itertools.count(1))
            many = [values[name] for name in itertools.takewhile(values.__contains__, names)]
            yield from ([value] for value in many or [None])
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

    def only_reads(self, context: DefaultExecutionContext) -> bool:
        """Return whether an execution is an ordinary SELECT, as nearly all are: nothing is asked of it."""
        compiled: Any = context.compiled
        return compiled is not None and isinstance(compiled.statement, Select) and not compiled.ctes

    def writes_of(self, context: DefaultExecutionContext, sql: str) -> list[Write]:
        """Return what an execution writes to tables that matter; an empty list for nearly all."""
        compiled = context.compiled
        if compiled is None or context.isddl:
            return list(self._of_text(sql))
        if self._generation != self._entities.generation:
            self._targets = weakref.WeakKeyDictionary()
            self._generation = self._entities.generation
        targets = self._targets.get(compiled)
        if targets is None:
            targets = self._targets[compiled] = tuple(self._analyse(compiled))
        if not targets:
            return []
        parameters = context.compiled_parameters if hasattr(context, "compiled_parameters") else []
        return [target.write(parameters) for target in targets]

    def _analyse(self, compiled: Compiled) -> Iterator[_Target]:
        statement: Any = compiled.statement
        if isinstance(statement, Insert | Update | Delete):
            yield from self._of_dml(compiled, statement)
        elif not isinstance(statement, Select | CompoundSelect):
            yield from map(_Target, self._of_text(getattr(compiled, "string", None) or str(statement)))
        for cte in getattr(compiled, "ctes", None) or ():
            for element in visitors.iterate(cte.element):
                if isinstance(element, Insert | Update | Delete):
                    yield from (_Target(target.effect) for target in self._of_dml(compiled, element))
                elif isinstance(element, TextClause):
                    yield from map(_Target, self._of_text(element.text))

    def _of_dml(self, compiled: Compiled, statement: Insert | Update | Delete) -> Iterator[_Target]:
        assigned = {} if isinstance(statement, Delete) else _sqlalchemy.assigned(statement)
        tables = _tables_in(statement.table)
        for column in assigned:  # some databases update several tables at once
            tables |= _tables_in(getattr(column, "table", None))
        for schema, name in tables:
            interest = self._entities.interest(name)
            if interest is None:
                continue
            replaces = not isinstance(statement, Delete) and _replaces(compiled, interest)
            for cached in interest.cached:
                if replaces:
                    yield _Target(Write(schema, cached, "change"))
                else:
                    yield _of_table(compiled, statement, schema, cached, assigned)
            upserts = isinstance(statement, Insert) and _UPSERT.search(_string(compiled)) is not None
            touched = {*(interest.on_delete if replaces or isinstance(statement, Delete) else ())}
            if replaces or upserts or isinstance(statement, Update):
                columns = None if replaces or upserts else _columns_set(compiled, statement, assigned)
                touched |= {
                    child for child, referred in interest.on_update.items() if columns is None or referred & columns
                }
            yield from (_Target(Write(schema, child, "cascade")) for child in touched)

    def _of_text(self, sql: str) -> Iterator[Write]:
        verbs = _sqltext.verbs(sql)
        if not verbs:
            return
        mentioned = self._entities.mentioned_in(sql)
        if _sqltext.changes_schema(sql):
            schemas = (None, *re.findall(r"\w+", sql))
            mentioned |= {(schema, name) for schema in schemas for name in self._entities.interests()}
        for schema, name in mentioned:
            interest = self._entities.interest(name)
            if interest is None:
                continue
            kind: Kind = "insert" if verbs == {"insert"} and not interest.replaces else "change"
            for cached in interest.cached:
                yield Write(schema, cached, kind, literal=True)
            touched = {*interest.on_delete, *interest.on_update} if kind == "change" else set()
            if _sqltext.empties_referrers(sql):
                touched |= interest.on_truncate
            yield from (Write(schema, child, "cascade", literal=True) for child in touched)


def _tables_in(element: Any) -> set[tuple[str | None, str]]:
    if element is None:
        return set()
    return {(part.schema, part.name) for part in visitors.iterate(element) if isinstance(part, TableClause)}


def _string(compiled: Compiled) -> str:
    return getattr(compiled, "string", None) or ""


def _replaces(compiled: Compiled, interest: Interest) -> bool:
    """Return whether a conflict deletes rows that the statement does not name."""
    on_sqlite = compiled.dialect.name == "sqlite"
    return (interest.replaces and on_sqlite) or _REPLACE.search(_string(compiled)) is not None


def _columns_set(compiled: Compiled, statement: Any, assigned: Mapping[Any, Any]) -> set[str] | None:
    """Return the names of the columns that an UPDATE may set, in lower case, or None for all."""
    keys = {*(getattr(column, "key", column) for column in assigned), *(getattr(compiled, "column_keys", None) or ())}
    if not keys:
        return None
    columns = getattr(statement.table, "columns", ())
    by_key = {column.key: column.name.lower() for column in columns}
    by_themselves = {
        column.name.lower()
        for column in columns
        if any(getattr(column, name, None) is not None for name in ("onupdate", "server_onupdate", "computed"))
    }
    return {by_key.get(key, str(key).lower()) for key in keys} | by_themselves


def _of_table(
    compiled: Compiled,
    statement: Insert | Update | Delete,
    schema: str | None,
    cached: CachedTable,
    assigned: Mapping[Any, Any],
) -> _Target:
    table = statement.table
    whole = _Target(Write(schema, cached, "change"))
    if not isinstance(table, TableClause) or table.name.lower() != cached.name.lower():
        return whole  # an alias, a join, or another table than the statement's own
    by_name = {column.name.lower(): column for column in table.columns}
    columns = [by_name.get(name.lower()) for name in cached.pk_columns]
    if not columns or any(column is None for column in columns):
        return _Target(Write(schema, cached, "insert")) if _only_inserts(compiled, statement) else whole
    given = {getattr(column, "key", column): value for column, value in assigned.items()}
    names = tuple(_parameter(compiled, column.key, given.get(column.key)) for column in columns if column is not None)
    exact = all(_exact(compiled, column, type_) for column, type_ in zip(columns, cached.pk_types, strict=True))
    if _only_inserts(compiled, statement):
        return _Target(Write(schema, cached, "insert"), (), names if exact else ())
    if not exact or "" in names:
        return whole  # other text may mean the same row, or the new primary key is computed by the database
    if isinstance(statement, Insert):
        return _Target(whole.effect, (), names) if _upserts_by_key(compiled, cached) else whole
    where = _where(compiled, statement, cached)
    if where:
        return _Target(whole.effect, where, names)
    if any(name in getattr(compiled, "binds", ()) for name in names):
        return whole  # the key itself may change
    return _Target(replace(whole.effect, returned=_returned(compiled, table, cached)))


def _returned(compiled: Compiled, table: TableClause, cached: CachedTable) -> tuple[int, ...]:
    """Return where the primary key stands in a row of RETURNING, or ()."""
    places: dict[str, int] = {}
    for place, column in enumerate(getattr(compiled, "effective_returning", None) or ()):
        if isinstance(column, ColumnClause) and getattr(column.table, "name", None) == table.name:
            places[column.name] = place
    found = tuple(places[name] for name in cached.pk_columns if name in places)
    return found if len(found) == len(cached.pk_columns) else ()


def _only_inserts(compiled: Compiled, statement: Insert | Update | Delete) -> bool:
    return isinstance(statement, Insert) and _UPSERT.search(_string(compiled)) is None


def _parameter(compiled: Compiled, key: str, value: object) -> str:
    """Return the name of the parameter that sets a column, or "" where an expression does."""
    if isinstance(value, BindParameter) and not _as_it_is(compiled, value.type):
        return ""
    if isinstance(value, BindParameter):  # the compiler may have copied it, and names a nameless one after the column
        name = getattr(compiled, "bind_names", {}).get(value, key if value.unique else value.key)
        return str(name) if name in getattr(compiled, "binds", ()) else ""
    return "" if isinstance(value, ClauseElement) else key


def _upserts_by_key(compiled: Compiled, cached: CachedTable) -> bool:
    """Return whether the only rows that an upsert changes have the primary keys that it would insert."""
    found = _UPSERT_BY.findall(_string(compiled))
    if len(found) != 1 or _string(compiled).count("ON CONFLICT") != 1:
        return False
    target, changes = found[0]
    if sorted(name.strip(' "') for name in target.split(",")) != sorted(cached.pk_columns):
        return False
    return not any(re.search(rf'(?<!\w)"?{re.escape(name)}"?\s*[=,)]', changes) for name in cached.pk_columns)


def _exact(compiled: Compiled, column: Any, wanted: type) -> bool:
    """Return whether `column = value` is true of no row but the one whose key has the text of `value`."""
    if not _as_it_is(compiled, column.type):
        return False
    if wanted is not str:
        return True
    # What the database calls the type: a variant, or what a decorator chooses for it. CHAR pads, CITEXT folds.
    try:
        declared = column.type.compile(dialect=compiled.dialect)
    except CompileError:
        return False
    if getattr(plain_type(column.type), "collation", None) is not None:  # Oracle does not declare it
        return False
    return compiled.dialect.name in _EXACT_TEXT and _PLAIN_TEXT.fullmatch(declared) is not None


def _as_it_is(compiled: Compiled, type_: TypeEngine[Any]) -> bool:
    """Return whether values of a type reach the database as they are given, unchanged by a decorator or by SQL."""
    chosen = type_.dialect_impl(compiled.dialect)
    if any(type(each).bind_expression not in _NO_EXPRESSION for each in (type_, chosen)):
        return False
    return not isinstance(plain_type(chosen), TypeDecorator)


def _where(compiled: Compiled, statement: Update | Delete, cached: CachedTable) -> tuple[str, ...]:
    """Return the parameters in `WHERE pk = :p AND ...` or `WHERE pk IN (:p)`, one per column, or ()."""
    table: Any = statement.table
    names: dict[str, str] = {}
    for column, bind in _equalities(statement.whereclause, many=len(cached.pk_columns) == 1):
        name = getattr(compiled, "bind_names", {}).get(bind)
        if name is None or not isinstance(column, ColumnClause) or not _as_it_is(compiled, bind.type):
            continue
        of: Any = table if column.table is None else column.table
        if (getattr(of, "name", None), getattr(of, "schema", None)) == (table.name, table.schema):
            names[column.name.lower()] = name
    wanted = [name.lower() for name in cached.pk_columns]
    return tuple(names[name] for name in wanted) if names.keys() >= set(wanted) else ()


def _equalities(clause: Any, *, many: bool) -> Iterator[tuple[Any, BindParameter[Any]]]:
    if isinstance(clause, Grouping):
        yield from _equalities(clause.element, many=many)
    elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _equalities(part, many=many)
    elif isinstance(clause, BinaryExpression) and isinstance(clause.right, BindParameter):
        if clause.operator is operators.eq or (many and clause.operator is operators.in_op):
            yield clause.left, clause.right
