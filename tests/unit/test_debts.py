"""What is owed to the cache: kept until delivered."""

from __future__ import annotations

from sqlmodel_cache._debts import Debts
from sqlmodel_cache._effects import Entry, Keys

KEYS = Keys(("row",), ("table",))


def test_owed_rows_and_tables_are_known() -> None:
    """A row is owed when it or its table's shard is."""
    debts = Debts()
    assert not debts
    debts.owe(KEYS)
    assert debts
    assert Entry("row", "other") in debts
    assert Entry("other", "table") in debts
    assert Entry("other", "other") not in debts
    debts.settle(KEYS, debts.ticket())
    assert not debts


def test_settle_keeps_what_was_owed_since_the_ticket() -> None:
    """An invalidation that was sent before a commit says nothing about that commit."""
    debts = Debts()
    debts.owe(KEYS)
    ticket = debts.ticket()
    debts.owe(Keys(("row",), ()))
    debts.settle(KEYS, ticket)
    assert Entry("row", "-") in debts
    assert Entry("-", "table") not in debts
