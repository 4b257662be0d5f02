"""From committed changes to what is stale: rows where they are certain, otherwise tables; never too little."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest
from follow.test_pgoutput import say
from models import Badge, Hero
from sqlalchemy import inspect

from sqlmodel_cache._entities import Entities
from sqlmodel_cache._shapes import cached_table
from sqlmodel_cache._writeset import MAX_NAMED_ROWS, TableRef
from sqlmodel_cache.config import CacheConfig
from sqlmodel_cache.follow._changes import Changes, Stale, pk_text
from sqlmodel_cache.follow._pgoutput import (
    Begin,
    Change,
    Column,
    Commit,
    DecodeError,
    Gap,
    Message,
    Relation,
    Truncate,
)
from sqlmodel_cache.follow._source import Wake
from sqlmodel_cache.follow._stream import Stream, running_in

ID, NAME = Column("id", True), Column("name", False)
HERO = TableRef("ns", "hero")


def change(kind: str, old: tuple[object, ...] | None, new: tuple[object, ...] | None) -> Change:
    """Return a changed row of relation 1."""
    data = b"" if old is None else b"K" + say(old)
    return Change(kind.encode(), 1, data + (b"" if new is None else b"N" + say(new)))


def stale(*messages: Message, columns: Sequence[Column] = (ID, NAME), name: str = "hero") -> Changes:
    """Return what one transaction with these messages leaves behind."""
    changes = Changes(Stale(Entities(), ["ns"]))
    for message in (Begin(7, 0.0), Relation(1, "public", name, tuple(columns)), *messages, Commit(99)):
        changes.add(message)
    return changes


@pytest.mark.parametrize(
    ("changed", "rows"),
    [
        (change("U", None, ("1", "x")), {"1"}),
        (change("U", ("1", Gap.NULL), ("2", "x")), {"1", "2"}),
        (change("U", None, ("1", Gap.UNCHANGED)), {"1"}),
        (change("D", ("1", Gap.NULL), None), {"1"}),
        (change("I", None, ("1", "x")), None),
    ],
)
def test_row_is_named_by_its_old_and_its_new_key(changed: Change, rows: set[str] | None) -> None:
    """Both keys when it changes, a DELETE's old one; an INSERT changes nothing that anybody can have cached."""
    batch = stale(changed).take()
    wanted = {} if rows is None else {HERO: rows, TableRef("ns", "public.hero"): rows}
    assert (batch.writes.rows, batch.writes.tables) == (wanted, set())
    assert (batch.changes, batch.transactions, batch.xids, batch.position) == (1, 1, {7}, 99)


@pytest.mark.parametrize(
    ("changed", "columns"),
    [
        (change("U", None, ("x", "y")), (ID, NAME)),
        (change("U", None, (Gap.UNCHANGED, "y")), (ID, NAME)),
        (change("D", (Gap.NULL, "y"), None), (ID, NAME)),
        (change("U", None, ("1", "y")), (Column("id", False), Column("name", True))),
        (change("D", ("1", "y"), None), (Column("id", False), Column("name", True))),
        (change("U", None, ("1", "y")), (Column("renamed", True), NAME)),
        (change("U", None, ("1",)), (NAME, ID)),
    ],
)
def test_row_that_is_not_certain_is_the_tables(changed: Change, columns: Sequence[Column]) -> None:
    """A value of another type, one that was not sent, a replica identity without the key, an unknown column."""
    batch = stale(changed, columns=columns).take()
    assert (batch.writes.rows, HERO in batch.writes.tables) == ({}, True)


def test_key_of_text_that_was_not_sent_is_no_text() -> None:
    """A large key that is stored elsewhere and did not change is told only as the old one, or not at all."""
    code, badge = Column("code", True), TableRef("ns", "badge")
    unchanged = (Gap.UNCHANGED, "x")
    told = stale(change("U", ("a", Gap.NULL), unchanged), columns=(code, NAME), name="badge").take().writes
    assert (told.rows[badge], told.tables) == ({"a"}, set())
    untold = stale(change("U", None, unchanged), columns=(code, NAME), name="badge").take().writes
    assert (untold.rows, badge in untold.tables) == ({}, True)


def test_truncate_is_the_tables() -> None:
    """TRUNCATE empties whole tables, also ones that are not cached, which do not matter."""
    batch = stale(Relation(2, "public", "nobody", ()), Truncate((1, 2))).take()
    assert batch.writes.tables == {HERO, TableRef("ns", "public.hero")}


def test_insert_matters_where_absence_is_cached() -> None:
    """A model with `missing_ttl` may have cached that there is no such row."""
    batch = stale(change("I", None, ("new", "x")), columns=(Column("code", True), NAME), name="badge").take()
    assert batch.writes.rows[TableRef("ns", "badge")] == {"new"}
    assert Badge.__cache_config__.missing_ttl


@pytest.mark.parametrize(("count", "is_table"), [(MAX_NAMED_ROWS, False), (MAX_NAMED_ROWS + 1, True)])
def test_many_rows_of_a_table_are_the_table(count: int, is_table: bool) -> None:
    """A bulk transaction costs a fixed number of keys, and its further rows are not even looked at."""
    rows = [change("U", None, (str(pk), "x")) for pk in range(count)]
    batch = stale(*rows, *[Change(b"U", 1, b"not looked at")] * is_table).take()
    assert (HERO in batch.writes.tables) == is_table
    assert len(batch.writes.rows.get(HERO, ())) == (0 if is_table else count)


def test_relation_described_anew_has_its_new_columns() -> None:
    """ALTER TABLE moves a column: the place of the key is that of the latest description."""
    moved = Relation(1, "public", "hero", (NAME, ID))
    batch = stale(change("U", None, ("1", "x")), moved, change("U", None, ("x", "2"))).take()
    assert batch.writes.rows[HERO] == {"1", "2"}


def test_rows_of_a_relation_that_was_not_described_are_an_error() -> None:
    """They cannot be told: the follower must begin anew rather than pass over them."""
    with pytest.raises(DecodeError):
        stale(Change(b"U", 5, b""))


def test_rows_of_a_table_that_inherits_are_its_parents() -> None:
    """They are named like the parent's rows, from the moment on at which the catalog says so."""
    known = Stale(Entities(), ["ns"])
    changes = Changes(known)
    changes.add(Begin(1, 0.0))
    changes.add(Relation(1, "public", "legend", (ID, NAME)))
    changes.add(change("U", None, ("1", "x")))
    known.descend({("public", "legend"): {("public", "hero")}})
    changes.add(change("U", None, ("2", "x")))
    assert changes.take().writes.rows[HERO] == {"2"}


def test_every_namespace_is_told() -> None:
    """Where tenants have namespaces of their own, a change may be in any."""
    changes = Changes(Stale(Entities(), ["a", "b"]))
    for message in (Begin(1, 0.0), Relation(1, "s", "hero", (ID,)), change("U", None, ("1",)), Commit(2)):
        changes.add(message)
    assert {(ref.namespace, ref.table) for ref in changes.take().writes.rows} == {
        (namespace, table) for namespace in "ab" for table in ("hero", "s.hero")
    }


def test_batch_ends_with_a_transaction() -> None:
    """What was taken is gone, and within a transaction nothing is whole."""
    changes = stale(change("U", None, ("1", "x")))
    assert (changes.within, changes.empty, changes.rows) == (False, False, 1)
    changes.take()
    assert changes.empty
    changes.add(Begin(8, 0.0))
    assert (changes.within, changes.empty) == (True, False)


def test_servers_position_is_confirmed_only_when_nothing_waits() -> None:
    """A sign of life that arrives behind a change, before it is invalidated, must not confirm it."""
    said: list[bool] = []

    class Quiet(Stream):
        def _say(self, *, now: bool = False) -> None:
            said.append(now)

    stream = Quiet("", "name", Stale(Entities(), ["ns"]), Wake())
    life = b"k" + struct.pack(">QqB", 500, 0, 1)
    frame = b"w" + struct.pack(">QQq", 0, 0, 0)
    begin, commit = struct.pack(">cQqI", b"B", 300, 0, 7), struct.pack(">cBQQq", b"C", 0, 290, 300, 0)
    for message in (frame + begin, life, frame + commit, life):
        stream._take(message)
        assert stream._confirmed == 0
    stream._changes.take()
    stream._take(life)
    assert stream._confirmed == 500
    assert said == [True] * 3


def test_text_of_a_key_is_that_of_its_python_value() -> None:
    """`007` and `7` are one int; what is no int has no text."""
    cached = cached_table(inspect(Hero), CacheConfig())
    read: Callable[[object], str | None] = lambda text: pk_text(cached, [text])  # noqa: E731
    assert [read(text) for text in ("7", "-7", "", "7.0", Gap.NULL, str(2**63))] == ["7", "-7", *[None] * 4]


@pytest.mark.parametrize(
    ("snapshot", "running"),
    [
        ("10:10:", {10, 11}),
        ("8:12:8,10", {8, 10}),
        (f"{2**32 + 8}:{2**32 + 12}:{2**32 + 8},{2**32 + 10}", {8, 10}),
        (f"{2**32 - 5}:{2**32 + 9}:{2**32 - 5}", {2**32 - 5, 9, 10, 11}),
    ],
)
def test_transaction_is_running_until_a_snapshot_has_passed_it(snapshot: str, running: set[int]) -> None:
    """Ids in the list of a snapshot run, and ids not below its end; 32 bits of an id wrap around."""
    assert running_in(snapshot, {8, 9, 10, 11, 2**32 - 5}) & running == running
    assert not running_in(snapshot, {7, 2**32 - 6}) & {7, 2**32 - 6}
    finished = {8, 9, 10, 11} - running
    assert not running_in(snapshot, finished)
