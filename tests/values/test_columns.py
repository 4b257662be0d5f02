"""A hit's value is that of a SELECT, of the same type at every depth, or the row is not stored."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import ENGINES
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from values.columns import CASES, TABLES, Table
from values.compare import facts

from sqlmodel_cache import MemoryTransport, SQLModelCache

EVERYWHERE = [(case.name, driver) for driver in ENGINES for case in CASES if driver.partition("+")[0] in case.on]


def in_database(engine: Engine, table: Table) -> dict[int, Any]:
    """Return the facts of every value as a SELECT loads it, without the library."""
    SQLModelCache.reset()
    with Session(engine) as session:
        return {row.id: facts(row.value) for row in session.scalars(select(table.model))}


def got(engine: Engine, table: Table, pks: list[int]) -> dict[int, Any]:
    """Return the facts of every value as `get` gives it."""
    found = {}
    for pk in pks:
        with Session(engine) as session:  # one transaction may not fill what it has seen for long
            found[pk] = facts(session.get_one(table.model, pk).value)
    return found


@pytest.mark.parametrize(("name", "driver"), EVERYWHERE)
def test_value_of_a_hit_is_that_of_a_select(engine: Engine, driver: str, name: str) -> None:
    """Truth, miss and hit tell the same of every value; what is not stored is said by the table of types."""
    table = TABLES[name]
    truth = in_database(engine, table)
    SQLModelCache.configure(MemoryTransport())
    pks = list(truth)
    assert pks == table.rows[driver.partition("+")[0]]
    assert got(engine, table, pks) == truth
    stored = len(pks) if table.case.cached else int(table.case.null)
    assert SQLModelCache.stats().fills == stored
    assert got(engine, table, pks) == truth
    assert SQLModelCache.stats().hits == stored


def test_nothing_is_left_out() -> None:
    """At least forty types are carried on each database."""
    for database in ("sqlite", "postgresql"):
        assert len([case for case in CASES if case.cached and database in case.on]) >= 40
