"""No change in the binary log is lost: not by a stop, an outage, a log that is gone, nor by what happens meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import servers
from follow.conftest import PATIENCE, Following, eventually
from follow.cut import Cut, Held
from follow.maria import Place, following, place_on
from follow.test_stream import hit
from models import Hero, Team, add_hero, get_hero

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache.follow import _binlog, _binlog_server
from sqlmodel_cache.follow._changes import Stale


def change_in_vain(place: Place, running: Following, cache: Cut, pk: int) -> Any:
    """Change a cached hero when the cache does not answer any more, and return what was confirmed until then."""
    place.warm(Hero, pk)
    cache.cut = True
    before = place.mark()
    place.write("UPDATE hero SET name = 'new'")
    eventually(lambda: running.stats.failures > 0)
    return before


def test_nothing_is_confirmed_before_the_cache_has_acknowledged(place: Place) -> None:
    """A follower that is stopped while the cache does not answer leaves what it has read to the next."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(place.engine)
    with following(place) as running:
        before = change_in_vain(place, running, cache, pk)
        assert place.name_of(pk) == "Rusty"
    assert place.mark() == before
    cache.cut = False
    with following(place, setup=False) as running:
        assert running.stats.tables == 0  # it went on where the other stopped, and did not begin anew
        eventually(lambda: running.stats.rows > 0)
        assert place.name_of(pk) == "new"


def test_outage_is_waited_for(place: Place) -> None:
    """When the cache is back, what it has missed is invalidated, by the same follower, which has kept its lock."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(place.engine)
    with following(place) as running:
        place.warm(Hero, pk)
        cache.cut = True
        place.write("UPDATE hero SET name = 'new'")
        eventually(lambda: running.stats.failures > 1)
        cache.cut = False
        place.catch_up()
        assert place.name_of(pk) == "new"
        assert running.stats.restarts == 0
        eventually(lambda: running.stats.transactions > 0)
        assert running.stats.transactions == 1  # the follower's own do not count


def test_fill_does_not_overtake_a_change_of_others(place: Place) -> None:
    """A reader that has read the old row before the change fills after the invalidation: refused."""
    cache = Held()
    SQLModelCache.configure(cache)
    pk = add_hero(place.engine)
    with following(place):
        reader = threading.Thread(target=get_hero, args=(place.engine, pk))
        reader.start()
        assert cache.arrived.wait(PATIENCE)
        place.write("UPDATE hero SET name = 'new'")
        place.catch_up()
        cache.let_go.set()
        reader.join(PATIENCE)
        assert SQLModelCache.stats().refused == 1
        assert place.name_of(pk) == "new"


@pytest.mark.parametrize("waits", [True, False])
def test_change_is_invalidated_when_readers_can_see_it(
    place: Place, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has a commit before readers do. A follower that did not wait for that would leave the old row behind.

    With semi-synchronous replication, the server waits for a replica between the two: here, for one that never comes.
    """
    if not waits:
        monkeypatch.setattr(_binlog_server, "await_visible", lambda *_: None)
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    with following(place) as running:
        place.warm(Hero, pk)
        for setting in ("timeout = 600000", "wait_point = AFTER_SYNC", "wait_no_slave = ON", "enabled = ON"):
            place.write(f"SET GLOBAL rpl_semi_sync_master_{setting}", of_root=True)
        writer = threading.Thread(target=place.write, args=("UPDATE hero SET name = 'new'",))
        try:
            writer.start()
            stuck = "SELECT 1 FROM information_schema.processlist WHERE info LIKE 'UPDATE %sqlmodel_cache_follow%'"
            eventually(lambda: place.ask(stuck, of_root=True))  # it comes after the writer's in the log, and waits, too
            assert place.name_of(pk) == "Rusty"
            assert hit(place.engine, Hero, pk)[0]
        finally:
            place.write("SET GLOBAL rpl_semi_sync_master_enabled = OFF", of_root=True)
            writer.join(PATIENCE)
        place.catch_up()
        assert running.stats.restarts == 0
        assert place.name_of(pk) == ("new" if waits else "Rusty")


def test_changes_while_nobody_follows_are_caught_up_with(place: Place) -> None:
    """Also across files of the log."""
    SQLModelCache.configure()
    pks = [add_hero(place.engine) for _ in range(3)]
    with following(place):
        pass
    for pk in pks:
        place.warm(Hero, pk)
        place.write(f"UPDATE hero SET name = 'new' WHERE id = {pk}")
        place.write("FLUSH BINARY LOGS", of_root=True)
    with following(place, setup=False) as running:
        assert [place.name_of(pk) for pk in pks] == ["new"] * 3
        assert (running.stats.tables, running.stats.started_over) == (0, 0)


def test_own_writes_are_not_followed(place: Place) -> None:
    """When nobody else writes, the log does not grow: what a follower notes is nothing to note."""
    SQLModelCache.configure()
    looks = 0
    with following(place) as running:
        place.catch_up()
        watch = running.follower.source.watch

        def count() -> Any:
            nonlocal looks
            looks += 1
            return watch()

        running.follower.source.watch = count  # type: ignore[method-assign]
        eventually(lambda: looks > 3)
        quiet = place.end()
        eventually(lambda: looks > 12)  # each of which is longer than the time between two notes
        assert place.end() == quiet
        assert running.stats.transactions == 0


def purge(place: Place) -> None:
    """Let the server forget the file that the follower was in."""
    place.write("FLUSH BINARY LOGS", of_root=True)
    gone = f"PURGE BINARY LOGS TO '{place.end()[0]}'"
    first = place.mark()[0]
    # What the last follower was sent is in use for a moment more.
    eventually(lambda: place.write(gone, of_root=True) or first not in dict(place.ask("SHOW BINARY LOGS")))


def renew(place: Place) -> None:
    """Begin the log anew, under the same name, and as far as the mark; not within the second when it was begun."""
    eventually(lambda: place.ask("SELECT unix_timestamp() > began FROM sqlmodel_cache_follow") == [(1,)])
    place.write("RESET MASTER", of_root=True)
    file, position = place.mark()
    while place.end()[1] <= position:
        place.write("INSERT INTO team (name) VALUES ('x')")
    assert place.end()[0] == file
    place.write(f"UPDATE sqlmodel_cache_follow SET position = {place.end()[1]}")  # where an event begins, as it may be


@pytest.mark.parametrize("lose", [purge, renew])
def test_log_that_does_not_go_on_is_everything(place: Place, lose: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What lay between is not known, so nothing is trusted, and it is said."""
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    place.write("RESET MASTER", of_root=True)
    with following(place):
        place.write("INSERT INTO team (name) VALUES ('x')")
        place.catch_up()
    place.warm(Hero, pk)
    place.write("UPDATE hero SET name = 'new'")
    lose(place)
    with following(place, setup=False) as running:
        assert place.name_of(pk) == "new"
        eventually(lambda: running.stats.started_over == 1)
    assert "everything is invalidated" in caplog.text


@pytest.mark.parametrize(("column", "started_over"), [("tables", 0), ("server", 1)])
def test_other_models_or_another_server_are_everything(place: Place, column: str, started_over: int) -> None:
    """Whoever led before has passed over what it did not know; another server's log has other positions."""
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    with following(place):
        pass
    place.warm(Hero, pk)
    place.write(f"UPDATE sqlmodel_cache_follow SET {column} = 'other'; UPDATE hero SET name = 'new'")
    with following(place, setup=False) as running:
        eventually(lambda: running.stats.tables > 0)
        eventually(lambda: running.stats.started_over == started_over)
        assert place.name_of(pk) == "new"


def test_server_that_has_crashed_is_everything(maria_data: Path) -> None:
    """It may have lost commits that the cache has seen. The follower goes on by itself when the server is back."""
    server = servers.MariaServer(copy_of=maria_data)
    try:
        with place_on(server) as place:
            SQLModelCache.configure()
            pk = add_hero(place.engine)
            with following(place) as running:
                place.warm(Hero, pk)
                tables = running.stats.tables
                server.crash()
                server.start()
                place.connect()
                place.write("INSERT INTO team VALUES (1, 'x')")
                place.catch_up()
                assert not hit(place.engine, Hero, pk)[0]
                eventually(lambda: running.stats.tables > tables)
                place.warm(Team, 1)
                place.write("UPDATE team SET name = 'new'")
                place.catch_up()
                assert not hit(place.engine, Team, 1)[0]
    finally:
        server.stop()


def test_another_takes_over(place: Place) -> None:
    """One of two leads; when it ends, the other goes on where it was, within five seconds."""
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    with following(place) as first:
        second = Following(SQLModelCache.follower(place.engine))
        try:
            place.warm(Hero, pk)
            assert not second.leads()
            first.stop()
            assert eventually(second.leads) < 5
            assert hit(place.engine, Hero, pk)[0]
            place.write("UPDATE hero SET name = 'new'")
            place.catch_up()
            assert place.name_of(pk) == "new"
        finally:
            second.stop()


def test_follower_whose_session_is_gone_confirms_nothing(place: Place) -> None:
    """It has lost its lock. It begins again, and what it had read comes again."""
    cache = Cut()
    SQLModelCache.configure(cache)
    pk = add_hero(place.engine)
    with following(place) as running:
        before = change_in_vain(place, running, cache, pk)
        query = "SELECT id FROM information_schema.processlist WHERE user = 'app' AND command <> 'Binlog Dump'"
        mine = {place.outside.thread_id()}
        for (id,) in place.ask(query, of_root=True):
            if id not in mine:
                place.write(f"KILL {id}", of_root=True)
        eventually(lambda: running.stats.restarts > 0)
        assert place.mark() == before
        cache.cut = False
        place.engine.dispose()
        place.catch_up()
        assert place.name_of(pk) == "new"


def test_model_that_is_defined_later_is_followed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on, and what was written before is not trusted."""
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    tables, cached_tables = Stale.tables, Stale.cached_tables
    with monkeypatch.context() as earlier:
        earlier.setattr(Stale, "tables", lambda self: [name for name in tables(self) if name != "hero"])
        earlier.setattr(Stale, "cached_tables", lambda self: [c for c in cached_tables(self) if c.name != "hero"])
        with following(place) as running:
            began = running.stats.tables
            place.warm(Hero, pk)
            place.write("UPDATE hero SET name = 'new'")
            place.catch_up()
            assert place.name_of(pk) == "Rusty"
            earlier.undo()
            eventually(lambda: running.stats.tables > began)
            assert place.name_of(pk) == "new"
            place.write("UPDATE hero SET name = 'newer'")
            place.catch_up()
            assert place.name_of(pk) == "newer"


def test_transaction_ends_with_the_log(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever event says so: where the log has no more for now, no transaction is half told."""
    SQLModelCache.configure()
    pk = add_hero(place.engine)
    with following(place):
        place.warm(Hero, pk)
        monkeypatch.setattr(_binlog, "XidEvent", type("Unknown", (), {}))
        place.write("UPDATE hero SET name = 'new'")
        place.catch_up()
        assert place.name_of(pk) == "new"
