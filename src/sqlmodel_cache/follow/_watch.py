"""What no row of PostgreSQL's log tells: a look at the catalog now and then, compared with the last.

TRUNCATE of a partition, ALTER TABLE, DETACH and the like are not in the stream, but leave their mark in the catalog. A
table that has just been published is stale again and again until the transactions are gone that had written to it
before: their changes are never sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg

from . import _catalog
from ._catalog import Member, State
from ._changes import Batch, Stale
from ._source import Name

LOCK_MS = 1000  # that a table which others have locked is waited for, and with it all that the follower does


@contextmanager
def impatient(sql: psycopg.Connection[Any]) -> Iterator[None]:
    """Let a connection wait for no lock for longer than `LOCK_MS`.

    1 X: ALTER TABLE locks a published table   2 F: a look opens it, and would wait, and follow nothing meanwhile
    """
    sql.execute(f"SET lock_timeout = {LOCK_MS}".encode())
    try:
        yield
    finally:
        sql.execute("RESET lock_timeout")


class Watch:
    """What one follower has seen of the catalog since it leads. `name` is that of the publication."""

    def __init__(self, name: str, stale: Stale) -> None:
        self._name = name
        self._stale = stale
        self._digests: dict[Name, str] | None = None  # of the tables, when they were last invalidated
        self._settling: dict[Name, int] = {}  # tables that joined, and the transaction that must have ended

    @property
    def began(self) -> bool:
        """Whether there is anything to compare with."""
        return self._digests is not None

    def publish(self, sql: psycopg.Connection[Any], state: State) -> State:
        """Complete the publication, if this role may, and return the state then.

        1 X: VACUUM or CREATE INDEX CONCURRENTLY locks a table   2 F: would wait for that, and follow nothing meanwhile
        So a table that is locked joins later, and one that has been dropped since the look is not missed: PostgreSQL
        has it in some of a look's answers then, and not in others.
        """
        if state.publication is None or not state.publication.mine:
            return state
        sound = replace(state, members=tuple(each for each in state.members if each.logged and each.identified))
        statements = list(_catalog.publication_sql(sound, self._name))
        for statement in statements:
            with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable), sql.transaction():
                sql.execute(f"SET LOCAL lock_timeout = {LOCK_MS}".encode())
                sql.execute(statement.encode())
        return _catalog.look(sql, self._name, self._stale.tables()) if statements else state

    def compare(self, sql: psycopg.Connection[Any], state: State, history: str) -> Batch | None:
        """Return the tables that are other ones than they were, everything if nothing is remembered, or None."""
        digests = _catalog.digests(state.members)
        mine = state.publication is not None and state.publication.mine
        comment = state.publication.comment if state.publication is not None and mine else None
        ready = comment == _catalog.ready(digests, history)
        batch = Batch(position=digests)
        if self._digests is None:
            changed = set() if ready else set(digests)
            if not ready:
                batch.writes = self._stale.everything()
        else:
            old = self._digests
            changed = {name for name in digests.keys() | old.keys() if digests.get(name) != old.get(name)}
        oldest, newest = _transactions(sql)
        for name in changed | set(self._settling):  # once more, now that they have ended
            self._stale.table(batch.writes, *name)
        self._settling = {name: until for name, until in self._settling.items() if oldest < until}
        if oldest < newest:
            self._settling.update(dict.fromkeys(changed, newest))
        comment_is_due = mine and not self._settling and not ready
        if not batch.writes and not comment_is_due:
            self._digests = digests
            return None
        return batch

    def remember(self, sql: psycopg.Connection[Any], digests: dict[Name, str], history: str, pid: int) -> None:
        """Leave word for the next follower, if this one still leads: if the session `pid` has its lock.

        1 A: invalidates, is frozen   2 B: makes the slot anew, dies   3 A: "ready"   4 C: trusts what B has not done
        So the server writes it only while it holds A's lock for A.
        """
        self._digests = digests
        if not self._settling:
            state = _catalog.look(sql, self._name, ())
            if state.publication is not None and state.publication.mine:
                comment = _catalog.comment_sql(self._name, _catalog.ready(digests, history))
                sql.execute(_catalog.while_locked_sql(pid, comment).encode())


def _transactions(sql: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return the oldest transaction that runs, and the one that will be the next."""
    row: Any = sql.execute("SELECT pg_current_snapshot()::text").fetchone()
    oldest, newest, _ = row[0].split(":")
    return int(oldest), int(newest)


def parents(members: Sequence[Member]) -> dict[Name, set[Name]]:
    """Return, for each table as whose changes may be published, the cached ones that show its rows, but for itself."""
    found: dict[Name, set[Name]] = {}
    for member in members:
        for name in (member.name, *member.above):
            if name != member.root:
                found.setdefault(name, set()).add(member.root)
    return found
