"""What is owed to the cache: kept until delivered, tried less and less often."""

from __future__ import annotations

import pytest

from sqlmodel_cache._debts import FIRST_RETRY, LAST_RETRY, Debts
from sqlmodel_cache._effects import Entry, Keys

KEYS = Keys(("row",), ("table",))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by the test."""
    time = [100.0]
    monkeypatch.setattr("sqlmodel_cache._debts.time.monotonic", lambda: time[0])
    return time


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


def test_attempts_become_rare(now: list[float]) -> None:
    """The wait doubles from one second to half a minute, and starts anew with a new debt."""
    debts = Debts()
    debts.owe(KEYS)
    assert debts.due() is None
    waits = []
    started = now[0]
    while len(waits) < 8:
        now[0] += 0.5
        if debts.due() is not None:
            waits.append(now[0] - started)
            started = now[0]
    assert waits == [FIRST_RETRY, 2, 4, 8, 16, LAST_RETRY, LAST_RETRY, LAST_RETRY]
    debts.settle(KEYS, debts.ticket())
    debts.owe(KEYS)
    now[0] += FIRST_RETRY
    assert debts.due() == KEYS
