"""Schema, publication and server change while a follower runs, or while none does: nothing is lost over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from follow.conftest import PATIENCE, Following, catch_up, eventually, following, remembered
from follow.tables import City, Event, OldEvent
from follow.test_loss import hits, warm
from follow.test_stream import DAY, ID, OLD_DAY, hit
from models import Team, add_hero, get_hero
from sqlalchemy import Engine
from sqlmodel import Session

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache.follow import _connect
from sqlmodel_cache.follow._connect import connect_replication
from sqlmodel_cache.follow._source import SourceError
from sqlmodel_cache.follow._stream import Stream

NAME = "sqlmodel_cache_postgres"
ALL = "publish = 'insert, update, delete, truncate'"


@pytest.mark.parametrize(
    "statements",
    [
        f"ALTER PUBLICATION {NAME} SET (publish = 'insert'); UPDATE hero SET name = 'new'; "
        f"ALTER PUBLICATION {NAME} SET ({ALL})",
        f"ALTER PUBLICATION {NAME} DROP TABLE hero; UPDATE hero SET name = 'new'; "
        f"ALTER PUBLICATION {NAME} ADD TABLE hero",
        "ALTER TABLE hero RENAME TO elsewhere; UPDATE elsewhere SET name = 'new'; ALTER TABLE elsewhere RENAME TO hero",
    ],
)
def test_what_is_taken_back_at_once_was_there(
    database: Engine, outside: psycopg.Connection[Any], statements: str
) -> None:
    """Between two looks at the catalog a table has left, was changed, and came back as it was."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database):
        catch_up(outside)
        warm(database, pk)
        outside.execute(f"BEGIN; {statements}; COMMIT".encode())
        eventually(lambda: get_hero(database, pk).name == "new")


@pytest.mark.parametrize("clause", ["SET (publish = 'insert')", "SET TABLE hero WHERE (id < 0)"])
def test_publication_that_leaves_something_out_is_completed(
    database: Engine, outside: psycopg.Connection[Any], clause: str
) -> None:
    """Somebody takes kinds of changes, or rows, out of it: the follower that owns it puts them back."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        outside.execute(f"ALTER PUBLICATION {NAME} {clause}".encode())
        eventually(lambda: running.follower.source.setup_sql() == [])
        eventually(lambda: hits(database, pk))
        outside.execute("UPDATE hero SET name = 'new'")
        catch_up(outside)
        assert get_hero(database, pk).name == "new"


def test_publication_that_is_gone_and_comes_back_is_followed_again(
    database: Engine, outside: psycopg.Connection[Any]
) -> None:
    """What was written without it can never be decoded: a new slot, and everything is stale."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        outside.execute(f"DROP PUBLICATION {NAME}")
        outside.execute("UPDATE hero SET name = 'new'")
        eventually(lambda: any(what == "there is no publication" for what, _ in running.stats.problems))
        eventually(lambda: hits(database, pk))
        outside.execute("UPDATE hero SET name = 'newer'")
        outside.execute(f"CREATE PUBLICATION {NAME} FOR ALL TABLES WITH ({ALL}, publish_via_partition_root)")
        eventually(lambda: get_hero(database, pk).name == "newer")
        outside.execute("UPDATE hero SET name = 'newest'")
        eventually(lambda: get_hero(database, pk).name == "newest")


def test_setup_without_a_publication_makes_the_slot_anew(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """One that is older than the publication would end with an error at every attempt."""
    SQLModelCache.configure()
    source = SQLModelCache.follower(database).source
    source.setup()
    outside.execute(f"DROP PUBLICATION {NAME}")
    verbs = [statement.split("(")[0].split(' "')[0] for statement in source.setup_sql()]
    assert verbs == [
        "CREATE PUBLICATION",
        "COMMENT ON PUBLICATION",
        "SELECT pg_drop_replication_slot",
        "SELECT pg_create_logical_replication_slot",
    ]


def test_promoted_server_is_not_trusted(
    database: Engine, outside: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lack the last commits of its predecessor, which the cache has seen: on another timeline all is stale."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database):
        pass
    with following(database, setup=False) as running:
        catch_up(outside)
        warm(database, pk)
        assert running.stats.tables == 0
    monkeypatch.setattr(Stream, "_identify", lambda self: "the same server, timeline 2")
    with following(database, setup=False, calm=False) as running:
        eventually(lambda: running.stats.tables > 0)
        assert not hits(database, pk)
        assert running.stats.started_over == 0


@contextmanager
def setting(outside: psycopg.Connection[Any], name: str, value: str) -> Iterator[None]:
    """Change a setting of the server for a while."""
    outside.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    outside.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        outside.execute(f"ALTER SYSTEM RESET {name}".encode())
        outside.execute("SELECT pg_reload_conf()")


def test_commits_do_not_wait_for_the_follower(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """As a synchronous standby it would wait for commits that wait for it. It leaves, and says why."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        warm(database, pk)
        with psycopg.connect(logical_url, autocommit=True) as writer:
            with setting(outside, "synchronous_standby_names", "*"):
                eventually(lambda: outside.execute("SHOW synchronous_standby_names").fetchone() == ("*",))
                thread = threading.Thread(target=writer.execute, args=("UPDATE hero SET name = 'new'",))
                thread.start()
                eventually(lambda: any(what.startswith("commits would wait") for what, _ in running.stats.problems))
            thread.join(PATIENCE)
            assert not thread.is_alive()
        eventually(running.leads)
        catch_up(outside)
        assert get_hero(database, pk).name == "new"
        assert running.stats.started_over == 0


def test_table_that_is_locked_does_not_hold_up_the_others(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """VACUUM and CREATE INDEX CONCURRENTLY keep it from the publication for as long as they take."""
    SQLModelCache.configure()
    pk = add_hero(database)
    outside.execute("INSERT INTO team VALUES (7, 'old')")
    SQLModelCache.follower(database).source.setup()
    outside.execute(f"ALTER PUBLICATION {NAME} DROP TABLE hero")
    with psycopg.connect(logical_url) as holder:
        holder.execute("LOCK TABLE hero IN SHARE UPDATE EXCLUSIVE MODE")
        with following(database, setup=False) as running:
            catch_up(outside)
            with Session(database) as session:
                session.get(Team, 7)
            outside.execute("UPDATE team SET name = 'new' WHERE id = 7")
            catch_up(outside)
            assert hit(database, Team, 7)[1]["name"] == "new"
            warm(database, pk)
            outside.execute("UPDATE hero SET name = 'new'")
            holder.rollback()
            eventually(lambda: get_hero(database, pk).name == "new")
            assert running.stats.restarts == 0


def test_published_table_that_is_locked_does_not_hold_up_the_others(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """A look at the catalog opens it, and ALTER TABLE may keep it locked for as long as it takes."""
    SQLModelCache.configure()
    pk = add_hero(database)
    waiting = (
        "SELECT count(*) > 0 FROM pg_stat_activity "
        "WHERE application_name = 'sqlmodel-cache follow' AND wait_event_type = 'Lock'"
    )
    with following(database) as running:
        catch_up(outside)
        warm(database, pk)
        with psycopg.connect(logical_url) as holder:
            holder.execute("LOCK TABLE gadget IN ACCESS EXCLUSIVE MODE")
            eventually(lambda: outside.execute(waiting).fetchone() == (True,))
            outside.execute("UPDATE hero SET name = 'new'")
            catch_up(outside)
            assert get_hero(database, pk).name == "new"
        assert running.stats.restarts == 0


def test_follower_that_could_not_look_yet_reads_nothing(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """It does not know which tables show whose rows: what it read would be confirmed, and invalidated in part."""
    SQLModelCache.configure()
    source = SQLModelCache.follower(database).source
    source.setup()
    try:
        eventually(source.lead)
        with psycopg.connect(logical_url) as holder:
            holder.execute("LOCK TABLE gadget IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(SourceError, match="lock timeout"):
                source.watch()
    finally:
        source.close()


def test_table_that_is_dropped_between_two_looks_is_not_missed(
    database: Engine, outside: psycopg.Connection[Any]
) -> None:
    """The first look finds it, to be published; by the time that this is done it is gone: the follower goes on."""
    SQLModelCache.configure()
    source: Any = SQLModelCache.follower(database).source
    source.setup()
    outside.execute(f"ALTER PUBLICATION {NAME} DROP TABLE follow_full".encode())
    state = source._look(outside)
    assert [member.name.table for member in state.unpublished] == ["follow_full"]
    outside.execute("DROP TABLE follow_full")
    assert source._watch.publish(outside, state) == source._look(outside)


def test_table_that_is_dropped_during_a_look_costs_another_look(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """PostgreSQL opens every published table for it, and fails when one is gone by then."""
    SQLModelCache.configure()
    source: Any = SQLModelCache.follower(database).source
    source.setup()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    with psycopg.connect(logical_url, autocommit=True) as follower, ThreadPoolExecutor(1) as thread:
        with psycopg.connect(logical_url) as dropper:
            dropper.execute("DROP TABLE follow_full")
            look = thread.submit(source._look, follower)
            eventually(lambda: outside.execute(waiting, (follower.info.backend_pid,)).fetchone() == (1,))
        assert "follow_full" not in {member.name.table for member in look.result(PATIENCE).members}


def test_follower_that_is_frozen_before_it_replicates_does_not_lead(database: Engine) -> None:
    """It has the lock, and nobody would hear that it says nothing: its idle session is ended."""
    SQLModelCache.configure()
    frozen: Any = SQLModelCache.follower(database).source
    frozen.setup()
    frozen._replication = connect_replication(frozen._where)
    waiting = Following(SQLModelCache.follower(database))
    try:
        assert frozen._locked()
        eventually(waiting.leads)
    finally:
        waiting.stop()
        frozen.close()


def test_follower_without_the_lock_changes_nothing(
    database: Engine, outside: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has it may be about to make the slot, which waits for all that write: nobody else makes one meanwhile."""
    SQLModelCache.configure()
    monkeypatch.setattr(_connect, "_IDLE_MS", 1000 * PATIENCE)
    holder: Any = SQLModelCache.follower(database).source
    other = SQLModelCache.follower(database).source
    other.setup()
    outside.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    slots = "SELECT count(*) FROM pg_replication_slots"
    try:
        holder._replication = connect_replication(holder._where)
        assert holder._locked()
        assert other.lead() is False
        assert outside.execute(slots).fetchone() == (0,)
        holder.close()
        eventually(other.lead)
        assert outside.execute(slots).fetchone() == (1,)
    finally:
        holder.close()
        other.close()


def test_table_that_inherits_later_is_published(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """PostgreSQL publishes a table with those that inherit from it then, and leaves out those that come later."""
    SQLModelCache.configure()
    with following(database):
        catch_up(outside)
        before = remembered(database)
        outside.execute("CREATE TABLE follow_later (PRIMARY KEY (id)) INHERITS (follow_city)")
        outside.execute("INSERT INTO follow_later VALUES (7, 'old')")
        eventually(lambda: remembered(database) != before)  # it has seen the table, and all that wrote before has ended
        eventually(lambda: hit(database, City, 7)[0])
        outside.execute("UPDATE follow_later SET note = 'new'")
        catch_up(outside)
        assert hit(database, City, 7)[1]["note"] == "new"


def test_model_of_a_partition_is_followed(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """A partition that has a model of its own is told of what is published as its table's."""
    SQLModelCache.configure()
    outside.execute(f"INSERT INTO follow_event VALUES ('{DAY}', '{ID}', 'x'), ('{OLD_DAY}', '{ID}', 'y')")
    with following(database):
        for number, table in enumerate(("follow_event", "follow_event_old")):
            catch_up(outside)
            for model, day in ((Event, DAY), (Event, OLD_DAY), (OldEvent, OLD_DAY)) * 2:
                hit(database, model, (day, ID))
            assert hit(database, OldEvent, (OLD_DAY, ID))[0]
            outside.execute(f"UPDATE {table} SET note = '{number}' WHERE day = '{OLD_DAY}'".encode())
            catch_up(outside)
            assert hit(database, OldEvent, (OLD_DAY, ID))[1]["note"] == str(number)
            assert hit(database, Event, (OLD_DAY, ID))[1]["note"] == str(number)
            assert hit(database, Event, (DAY, ID))[0]


def test_model_of_a_partition_needs_no_other(
    database: Engine, outside: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the partitioned table has no model, the partition is published by its own name."""
    SQLModelCache.configure()
    outside.execute(f"INSERT INTO follow_event VALUES ('{OLD_DAY}', '{ID}', 'y')")
    source: Any = SQLModelCache.follower(database).source
    names = [name for name in source._stale.tables() if name != "follow_event"]
    monkeypatch.setattr(type(source._stale), "tables", lambda self: names)
    with following(database):
        catch_up(outside)
        for _ in range(2):
            hit(database, OldEvent, (OLD_DAY, ID))
        outside.execute("UPDATE follow_event SET note = 'new'")
        catch_up(outside)
        assert hit(database, OldEvent, (OLD_DAY, ID))[1]["note"] == "new"


@pytest.mark.parametrize(
    ("kind", "statements"),
    [
        ("view", "CREATE VIEW follow_full AS SELECT 1 AS id, 'x'::text AS note"),
        ("materialized view", "CREATE MATERIALIZED VIEW follow_full AS SELECT 1 AS id, 'x'::text AS note"),
        (
            "foreign table",
            "CREATE FOREIGN DATA WRAPPER follow; CREATE SERVER follow FOREIGN DATA WRAPPER follow; "
            "CREATE FOREIGN TABLE follow_full (id int, note text) SERVER follow",
        ),
    ],
)
def test_view_in_a_tables_place_is_reported(
    database: Engine, outside: psycopg.Connection[Any], kind: str, statements: str
) -> None:
    """What it shows changes in other tables: the model is named, the others are followed.

    A view beside a table of that name, in another schema, need not be what the model shows.
    """
    SQLModelCache.configure()
    outside.execute(f"DROP TABLE follow_full; {statements}".encode())
    outside.execute("CREATE SCHEMA reports CREATE VIEW follow_city AS SELECT 1 AS id, 'x'::text AS note")
    try:
        with following(database) as running:
            eventually(lambda: running.stats.problems)
            ((what, _),) = running.stats.problems
            assert what == f'"public"."follow_full" is a {kind}: what it shows changes elsewhere'
    finally:
        outside.execute("DROP SCHEMA reports CASCADE; DROP FOREIGN DATA WRAPPER IF EXISTS follow CASCADE")
        outside.execute(f"DROP {kind} IF EXISTS follow_full".encode())
