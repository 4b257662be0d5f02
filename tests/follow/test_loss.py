"""No change is lost: not by a stop, an outage, a slot that is gone, nor by what happens at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from follow.conftest import PATIENCE, Following, catch_up, eventually, following, remembered
from follow.cut import Cut, Held
from models import add_hero, get_hero
from sqlalchemy import Engine

from sqlmodel_cache import FollowerError, SQLModelCache
from sqlmodel_cache.follow import _stream


def hits(database: Engine, pk: int) -> bool:
    """Return whether a get is a hit."""
    before = SQLModelCache.stats().hits
    get_hero(database, pk)
    return SQLModelCache.stats().hits > before


def warm(database: Engine, pk: int) -> None:
    """Cache a row."""
    get_hero(database, pk)
    assert hits(database, pk)


def confirmed(outside: psycopg.Connection[Any]) -> int:
    """Return the position that the follower has confirmed."""
    query = "SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots"
    row = outside.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def written(outside: psycopg.Connection[Any]) -> int:
    """Return the database's position."""
    row = outside.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


def test_nothing_is_confirmed_before_the_cache_has_acknowledged(
    database: Engine, outside: psycopg.Connection[Any]
) -> None:
    """A change that waits for the cache comes again, to a follower that begins later."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        warm(database, pk)
        cache.cut = True
        before = written(outside)
        outside.execute("UPDATE hero SET name = 'new'")
        eventually(lambda: running.stats.failures > 0)
        assert hits(database, pk)
        # Signs of life go on, and the server's own position, which it sends with them, is not taken for done.
        outside.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 100000))")
        failures = running.stats.failures
        eventually(lambda: running.stats.failures > failures + 1)
        assert confirmed(outside) <= before
    assert confirmed(outside) <= before
    cache.cut = False
    with following(database, setup=False) as running:
        catch_up(outside)
        assert running.stats.tables == 0  # it went on where the other stopped, and did not begin anew
        assert get_hero(database, pk).name == "new"


def test_outage_is_waited_for(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """When the cache is back, what it has missed is invalidated, by the same follower."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        warm(database, pk)
        cache.cut = True
        outside.execute("UPDATE hero SET name = 'new'")
        eventually(lambda: running.stats.failures > 1)
        assert running.leads()
        cache.cut = False
        catch_up(outside)
        assert get_hero(database, pk).name == "new"
        assert running.stats.restarts == 0


def test_fill_does_not_overtake_a_change_of_others(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """A reader that has read the old row before the change fills after the invalidation: refused."""
    cache = Held()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    with following(database):
        catch_up(outside)
        reader = threading.Thread(target=get_hero, args=(database, pk))
        reader.start()
        assert cache.arrived.wait(PATIENCE)
        outside.execute("UPDATE hero SET name = 'new'")
        catch_up(outside)
        cache.let_go.set()
        reader.join(PATIENCE)
        assert SQLModelCache.stats().refused == 1
        assert get_hero(database, pk).name == "new"


@pytest.fixture
def slow_commits(outside: psycopg.Connection[Any]) -> Iterator[None]:
    """Commits wait for a standby that never comes, where a session asks for `synchronous_commit = on`."""
    for setting in ("synchronous_commit = local", "synchronous_standby_names = 'nobody'"):
        outside.execute(f"ALTER SYSTEM SET {setting}".encode())
    outside.execute("SELECT pg_reload_conf()")
    query = "SELECT current_setting('synchronous_commit') = 'local'"
    eventually(lambda: outside.execute(query).fetchone() == (True,))
    yield
    for setting in ("synchronous_commit", "synchronous_standby_names"):
        outside.execute(f"ALTER SYSTEM RESET {setting}".encode())
    outside.execute("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("slow_commits")
@pytest.mark.parametrize("waits", [True, False])
def test_change_is_invalidated_when_readers_can_see_it(
    database: Engine,
    outside: psycopg.Connection[Any],
    logical_url: str,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log has a commit before readers do. A follower that did not wait for that would leave the old row behind."""
    seen = threading.Event()

    def running_in(snapshot: str, xids: set[int]) -> set[int]:
        running = original(snapshot, xids) if waits else set()
        if running:
            seen.set()
        return running

    original = _stream.running_in
    monkeypatch.setattr(_stream, "running_in", running_in)
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        changes = running.stats.changes
        warning: list[Any] = []
        with psycopg.connect(logical_url, autocommit=True) as writer:
            writer.add_notice_handler(warning.append)
            writer.execute("SET synchronous_commit = on")
            thread = threading.Thread(target=writer.execute, args=("UPDATE hero SET name = 'new'",))
            thread.start()
            eventually(lambda: seen.is_set() if waits else running.stats.changes > changes)
            assert get_hero(database, pk).name == "Rusty"
            assert hits(database, pk)
            outside.execute("SELECT pg_cancel_backend(%s)", (writer.info.backend_pid,))
            thread.join(PATIENCE)
        assert len(warning) == 1
        catch_up(outside)
        assert get_hero(database, pk).name == ("new" if waits else "Rusty")


def test_another_takes_over(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """Of two followers one leads; when it ends, the other does within five seconds, and has lost nothing."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as first:
        waiting = Following(SQLModelCache.follower(database))
        try:
            catch_up(outside)
            warm(database, pk)
            assert first.leads()
            assert not waiting.leads()
            first.stop()
            outside.execute("UPDATE hero SET name = 'new'")
            assert eventually(waiting.leads) < 5
            catch_up(outside)
            assert get_hero(database, pk).name == "new"
        finally:
            waiting.stop()


def test_server_that_ends_a_connection_is_found_again(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """Either of the two connections may break at any time; what was not confirmed comes again."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        for count, kind in enumerate(("walsender", "client backend"), 1):
            catch_up(outside)
            warm(database, pk)
            outside.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'sqlmodel-cache follow' AND backend_type = %s",
                (kind,),
            )
            outside.execute("UPDATE hero SET name = %s", (kind,))
            eventually(lambda: running.stats.restarts == count and running.leads())  # noqa: B023
            catch_up(outside)
            assert get_hero(database, pk).name == kind


def test_quiet_database_is_not_taken_for_a_dead_one(
    database: Engine, outside: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server answers signs of life though nothing changes; one that does not is left."""
    monkeypatch.setattr(_stream, "SILENCE_SECONDS", 1.2)
    SQLModelCache.configure()
    reports: list[Any] = []
    with following(database, report=reports.append) as running:
        eventually(lambda: len(reports) > 20)  # a tenth of a second each
        assert running.stats.restarts == 0
        monkeypatch.setattr(_stream.Stream, "_say", lambda self, now=False: None)
        eventually(lambda: running.stats.restarts > 0)


def test_slot_that_is_gone_is_made_anew_and_everything_invalidated(
    database: Engine, outside: psycopg.Connection[Any]
) -> None:
    """What changed while there was no slot is not known, so nothing that was cached before may be served."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database):
        pass
    warm(database, pk)
    eventually(lambda: outside.execute("SELECT active FROM pg_replication_slots").fetchone() == (False,))
    outside.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    outside.execute("UPDATE hero SET name = 'new'")
    with following(database, setup=False) as running:
        eventually(lambda: running.stats.started_over == 1)
        assert get_hero(database, pk).name == "new"


def test_slot_that_the_server_has_given_up_is_made_anew(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """`max_slot_wal_keep_size` protects the server from a follower that is gone; the next one knows what it means."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database):
        pass
    warm(database, pk)
    outside.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    outside.execute("SELECT pg_reload_conf()")
    try:
        outside.execute("UPDATE hero SET name = 'new'")

        def lost() -> bool:
            outside.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
            outside.execute("CHECKPOINT")
            return outside.execute("SELECT wal_status FROM pg_replication_slots").fetchone() == ("lost",)

        eventually(lost)
        with following(database, setup=False) as running:
            eventually(lambda: running.stats.started_over == 1)
            assert get_hero(database, pk).name == "new"
    finally:
        outside.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        outside.execute("SELECT pg_reload_conf()")


def test_slot_that_keeps_too_much_is_let_go(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """While the cache is away the database keeps its log, up to `max_slot_bytes`; afterwards everything is stale."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    reported: list[Any] = []
    options = {"max_slot_bytes": 1_000_000, "alarm_bytes": 500_000, "report": reported.append}
    with following(database, **options) as running:
        catch_up(outside)
        warm(database, pk)
        cache.cut = True
        outside.execute("UPDATE hero SET name = 'new'")
        outside.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 700000))")
        eventually(lambda: running.stats.alarm)
        assert 500_000 < running.stats.kept_bytes < 1_000_000
        outside.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 700000))")
        eventually(lambda: running.stats.started_over == 1)
        cache.cut = False
        catch_up(outside)
        eventually(lambda: remembered(database).startswith("sqlmodel-cache: ready"))
        assert get_hero(database, pk).name == "new"
        eventually(lambda: not running.stats.alarm)
    assert any(stats.alarm for stats in reported)
    assert reported[-1].leading is False


def test_follower_that_dies_before_it_has_invalidated_everything_leaves_a_mark(
    database: Engine, outside: psycopg.Connection[Any]
) -> None:
    """A new slot is not trusted before the cache has acknowledged that all is stale."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(database)
    with following(database):
        pass
    warm(database, pk)
    eventually(lambda: outside.execute("SELECT active FROM pg_replication_slots").fetchone() == (False,))
    outside.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    outside.execute("UPDATE hero SET name = 'new'")
    cache.cut = True
    with following(database, setup=False, calm=False) as running:
        eventually(lambda: running.stats.failures > 0)
    cache.cut = False
    assert get_hero(database, pk).name == "Rusty"  # it could not be told
    with following(database, setup=False) as running:
        assert running.stats.started_over == 0
        assert get_hero(database, pk).name == "new"


def test_follower_that_no_longer_leads_leaves_no_mark(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """One that was frozen until another has begun with a new slot must not say that nothing has been missed.

    1 A: invalidates, is frozen   2 B: slot made anew, dies   3 A: "ready"   4 C: would trust what B has not done
    """
    SQLModelCache.configure()
    source = SQLModelCache.follower(database).source
    source.setup()
    try:
        eventually(source.lead)
        batch = source.watch()
        assert batch is not None
        ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'walsender'"
        assert outside.execute(ended).fetchone() == (True,)
        before = remembered(database)
        source.confirm(batch)
        assert remembered(database) == before == "sqlmodel-cache: starting"
    finally:
        source.close()


def test_change_from_before_the_setup_is_invalidated(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """The first follower begins with everything: nobody has followed what was written until then."""
    SQLModelCache.configure()
    pk = add_hero(database)
    warm(database, pk)
    outside.execute("UPDATE hero SET name = 'new'")
    with following(database):
        assert get_hero(database, pk).name == "new"


def test_table_that_joins_is_stale_until_its_writers_have_ended(
    database: Engine, outside: psycopg.Connection[Any], logical_url: str
) -> None:
    """A transaction that wrote to a table before it was published is never sent."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running, psycopg.connect(logical_url) as writer:
        outside.execute("ALTER PUBLICATION sqlmodel_cache_postgres DROP TABLE hero")
        writer.execute("UPDATE hero SET name = 'new'")
        before = running.stats.tables
        eventually(lambda: running.stats.tables > before + 32)  # more than once
        warm(database, pk)
        writer.commit()
        eventually(lambda: get_hero(database, pk).name == "new")
        assert running.stats.restarts == 0
        outside.execute("UPDATE hero SET name = 'newer'")
        catch_up(outside)
        assert get_hero(database, pk).name == "newer"


def test_rows_that_cannot_be_read_begin_anew(
    database: Engine, outside: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is not understood would come again for ever: a new slot, and everything is stale."""
    SQLModelCache.configure()
    pk = add_hero(database)
    with following(database) as running:
        catch_up(outside)
        warm(database, pk)
        broken = threading.Event()

        def decode(data: bytes) -> Any:
            if data[:1] == b"U" and not broken.is_set():
                broken.set()
                return original(b"?")
            return original(data)

        original = _stream.decode
        monkeypatch.setattr(_stream, "decode", decode)
        outside.execute("UPDATE hero SET name = 'new'")
        eventually(lambda: running.stats.started_over == 1 and running.leads())
        eventually(lambda: remembered(database).startswith("sqlmodel-cache: ready"))
        assert broken.is_set()
        assert get_hero(database, pk).name == "new"


def test_follower_without_a_setup_says_what_to_do(database: Engine) -> None:
    """It does not begin, and names the command."""
    SQLModelCache.configure()
    made = SQLModelCache.follower(database)
    with pytest.raises(FollowerError, match="there is no publication: run the setup: sqlmodel-cache follow --setup"):
        made.run()


def test_bulk_transaction_invalidates_the_table(database: Engine, outside: psycopg.Connection[Any]) -> None:
    """More than 10,000 rows of one table cost as many keys as one statement of the library does."""
    SQLModelCache.configure()
    outside.execute("INSERT INTO team SELECT n, 'old' FROM generate_series(1, 20000) AS n")
    with following(database) as running:
        catch_up(outside)
        before = running.stats
        outside.execute("UPDATE team SET name = 'new'")
        catch_up(outside)
        assert running.stats.changes - before.changes == 20_000
        assert (running.stats.rows - before.rows, running.stats.tables - before.tables) == (0, 32)
