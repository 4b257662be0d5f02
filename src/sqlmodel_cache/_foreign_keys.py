"""What the database changes by itself: rows that foreign keys with actions rewrite, through any number of tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from sqlalchemy import ForeignKeyConstraint, Table
from sqlalchemy.exc import SQLAlchemyError

_REWRITES = ("CASCADE", "SET ")  # PostgreSQL also has SET NULL (column)

Change = Literal["delete", "update", "truncate"]


class Rewriter(NamedTuple):
    """A table whose change makes the database itself change another's rows; `table` is None outside the metadata."""

    name: str
    table: Table | None
    action: Change
    columns: frozenset[str]  # which are referred to, in lower case: an update of others rewrites nothing


def rewriters(table: Table) -> set[Rewriter]:
    """Return every change of a table that makes the database itself change rows of `table`, however far away.

    That is what foreign keys with ON DELETE or ON UPDATE actions do, and TRUNCATE ... CASCADE.
    """
    found: set[Rewriter] = set()
    waiting = [Rewriter(table.name, table, action, frozenset()) for action in get_args(Change)]
    while waiting:
        _, child, change, referred = waiting.pop()
        for constraint in () if child is None else child.foreign_key_constraints:
            parent, name, columns = _referred(constraint)
            changed = {column.name.lower() for column in constraint.columns}
            for action, effect in _actions(constraint):
                # What happens to the child's rows must itself go on to `table`, unless they are its rows.
                goes_on = effect == change and (effect != "update" or changed & referred)
                rewriter = Rewriter(name, parent, action, columns)
                if (child is table or goes_on) and rewriter not in found:
                    found.add(rewriter)
                    waiting.append(rewriter)
    return found


def _actions(constraint: ForeignKeyConstraint) -> Iterator[tuple[Change, Change]]:
    """Yield what is done to the parent's rows, and what the database then does to the child's."""
    on_delete, on_update = (constraint.ondelete or "").upper(), (constraint.onupdate or "").upper()
    if on_delete.startswith(_REWRITES):
        yield "delete", "delete" if on_delete == "CASCADE" else "update"
    if on_update.startswith(_REWRITES):
        yield "update", "update"
    yield "truncate", "truncate"


def _referred(constraint: ForeignKeyConstraint) -> tuple[Table | None, str, frozenset[str]]:
    """Return the parent, its name and the columns that are referred to; of a table outside the metadata, only names."""
    try:
        parent = constraint.referred_table
        return parent, parent.name, frozenset(element.column.name.lower() for element in constraint.elements)
    except SQLAlchemyError:
        targets = [element.target_fullname.lower().split(".") for element in constraint.elements]
        return None, targets[0][-2], frozenset(target[-1] for target in targets)


def replaces(table: Table) -> bool:
    """Return whether a conflict deletes the older row, as SQLite's tables may declare."""
    return any(
        name.startswith("sqlite_on_conflict") and str(value).upper() == "REPLACE"
        for item in (*table.constraints, *table.columns)
        for name, value in item.dialect_kwargs.items()
    )
