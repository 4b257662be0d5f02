"""A Redis that starts empty, comes back from an old snapshot, or is followed by a replica that has missed something.

In each test the old value is in the memory of the server that answers, under a version that it was valid for, and a
commit that has returned is not. No get may hit it.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import redis.asyncio
from models import Hero, add_hero, get_hero
from sqlalchemy import Engine, update
from sqlmodel import Session
from transport.backends import ELSEWHERE, ENTRY, FINGERPRINT, PAYLOAD, ROW, TTL_MS, id_of
from trouble.places import PATIENCE, Place, admin, cached, cut_off, follow, hits, is_there, promote, rename

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, SQLModelCache, TransportError
from sqlmodel_cache._effects import Begin, Fill, Granted, Hit, Keys, Lease, Lookup, Together
from sqlmodel_cache.transport import _clients

BOTH_DRIVERS = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
ONE_DRIVER = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)

LOOKUP, LEASE = Lookup(ENTRY, FINGERPRINT), Lease(ENTRY, FINGERPRINT, id_of("lease"))


@BOTH_DRIVERS
def test_server_that_restarts_empty_costs_misses(engine: Engine, place: Place) -> None:
    """Everything is read again once, and is cached again."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    server.stop()
    server.start()
    assert not hits(engine, pk, "Rusty")
    rename(engine, pk, "New")
    cached(engine, pk, "New")


@pytest.mark.parametrize("signs", [True, False])
async def test_server_restored_behind_a_connection_that_was_open(
    place: Place, monkeypatch: pytest.MonkeyPatch, signs: bool
) -> None:
    """An asyncio client that has been used before it is given: its connections are not believed more than others.

    One that cannot be made to sign its replies is never hit.
    """
    if not signs:
        monkeypatch.setattr(_clients, "begin_to_sign", lambda connection: None)
    server = place.server("one")
    place.leads_to("one")
    async with redis.asyncio.Redis(unix_socket_path=str(place.folder / "here")) as client:
        await client.ping()
        transport = RedisAsyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE)
        lease = await transport.aexecute(LEASE)
        assert await transport.aexecute(Fill(ENTRY, lease, FINGERPRINT, PAYLOAD, TTL_MS))
        assert await transport.aexecute(LOOKUP) == (PAYLOAD if signs else None)
        assert await transport.aexecute(LEASE) == Hit(PAYLOAD)
        await client.save()
        await transport.aexecute(Begin(ROW, id_of("token"), 60_000))
        server.stop()
        server.start()
        for _ in range(2):
            with suppress(TransportError):  # the connection is broken
                assert await transport.aexecute(LOOKUP) is None
                looked_up = await transport.aexecute(Together((LOOKUP, LOOKUP)))
                assert looked_up == (None, None)
        await transport.aclose()


@BOTH_DRIVERS
@pytest.mark.parametrize("whole_table", [False, True])
def test_server_restored_from_before_a_commit(engine: Engine, place: Place, whole_table: bool) -> None:
    """SAVE, a commit that returns, kill -9, a start from the file: the old value is there, and nobody hits it."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk, other = add_hero(engine), add_hero(engine, "Other")
    cached(engine, pk, "Rusty")
    cached(engine, other, "Other")
    with admin(server) as client:
        client.save()
        if whole_table:
            with Session(engine) as session:
                session.execute(update(Hero).where(Hero.name == "Rusty").values(name="New"))
                session.commit()
        else:
            rename(engine, pk, "New")
        server.stop()
        server.start()
        assert is_there(client, pk, "Rusty")
    assert not hits(engine, pk, "New")
    cached(engine, pk, "New")
    assert not hits(engine, other, "Other")
    cached(engine, other, "Other")


@ONE_DRIVER
def test_server_that_lost_nothing_is_read_again_all_the_same(engine: Engine, place: Place) -> None:
    """With an append-only file that is synced at every write a restart costs misses: it might not be complete."""
    server = place.server("one", "--appendonly", "yes", "--appendfsync", "always")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    rename(engine, pk, "New")
    cached(engine, pk, "New")
    server.stop()
    server.start()
    with admin(server) as client:
        assert is_there(client, pk, "New")
    assert not hits(engine, pk, "New")
    cached(engine, pk, "New")


@ONE_DRIVER
def test_append_only_file_that_lost_its_end(engine: Engine, place: Place) -> None:
    """A file without its last writes, as `appendfsync everysec` may leave it, is an old snapshot."""
    server = place.server("one", "--appendonly", "yes", "--appendfsync", "always")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    file = place.folder / "one" / "appendonly.aof"
    size = file.stat().st_size
    rename(engine, pk, "New")
    server.stop()
    with file.open("r+b") as opened:
        opened.truncate(size)
    server.start()
    with admin(server) as client:
        assert is_there(client, pk, "Rusty")
    assert not hits(engine, pk, "New")
    cached(engine, pk, "New")


@BOTH_DRIVERS
def test_promoted_replica_that_missed_a_commit(engine: Engine, place: Place) -> None:
    """A replica that heard of the value, and not of its invalidation, serves nothing from before."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    follow(replica, master)
    cut_off(replica)
    rename(engine, pk, "New")
    master.stop()
    promote(replica)
    place.leads_to("replica")
    with admin(replica) as client:
        assert is_there(client, pk, "Rusty")
    assert not hits(engine, pk, "New")
    cached(engine, pk, "New")


@ONE_DRIVER
def test_master_that_comes_back_as_a_master(engine: Engine, place: Place) -> None:
    """Two failovers, there and back, without a restart: what the first one lost is not valid again after the second."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    follow(replica, master)
    cut_off(replica)
    rename(engine, pk, "New")
    promote(replica)
    follow(master, replica)
    with admin(master) as client:
        client.client_kill_filter(_type="normal")  # as Sentinel does it
        assert is_there(client, pk, "Rusty")
        promote(master)
        assert not hits(engine, pk, "New")
    cached(engine, pk, "New")


def test_connections_to_a_master_that_was_demoted_by_hand(place: Place) -> None:
    """Where nobody closes the connections, the first lease or BEGIN on one of them ends what it believed."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    transport = place.transport()
    granted = transport.execute(LEASE)
    assert transport.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert transport.execute(LOOKUP) == PAYLOAD
    follow(replica, master)
    cut_off(replica)
    promote(replica)
    follow(master, replica)
    assert transport.execute(LOOKUP) == PAYLOAD  # as it says in docs/operations.md: close them
    with pytest.raises(TransportError, match="ReadOnly"):
        transport.execute(LEASE)
    assert transport.execute(LOOKUP) is None
    transport.close()


@BOTH_DRIVERS
def test_replica_is_never_hit(engine: Engine, place: Place) -> None:
    """A client that was given a replica reads the database, whatever the replica holds; its commits are owed."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    follow(replica, master)
    place.leads_to("replica")
    SQLModelCache.configure(place.transport())
    with admin(replica) as client:
        assert is_there(client, pk, "Rusty")
    assert not hits(engine, pk, "Rusty")
    assert not hits(engine, pk, "Rusty")
    rename(engine, pk, "New")
    assert not hits(engine, pk, "New")
    assert SQLModelCache.stats().errors > 0


@ONE_DRIVER
def test_writable_replica_is_never_hit(engine: Engine, place: Place) -> None:
    """A replica that takes writes, and forgets them at its next synchronisation, grants no lease."""
    master, replica = place.server("master"), place.server("replica", "--replica-read-only", "no")
    follow(replica, master)
    place.leads_to("replica")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    assert not hits(engine, pk, "Rusty")
    assert not hits(engine, pk, "Rusty")


@ONE_DRIVER
def test_reload_keeps_the_server_and_its_values(engine: Engine, place: Place) -> None:
    """DEBUG RELOAD loses nothing and is no start: hits go on."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    with admin(server) as client:
        client.execute_command("DEBUG", "RELOAD")
    assert hits(engine, pk, "Rusty")


@ONE_DRIVER
def test_first_read_of_a_connection_is_answered_by_its_lease(engine: Engine, place: Place) -> None:
    """A connection learns its server's name by its first lease: the first get takes one more step, and is a hit."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    SQLModelCache.configure(place.transport())
    with admin(server) as client:
        for leases in (1, 0):
            client.config_resetstat()
            assert hits(engine, pk, "Rusty")
            stats = client.info("commandstats")
            assert stats["cmdstat_mget"]["calls"] == 1
            assert stats.get("cmdstat_evalsha", {"calls": 0})["calls"] == leases


def test_connection_forgets_its_server_when_it_is_closed(place: Place) -> None:
    """The same connection object, connected again to another server, knows nothing of that one."""
    for name in ("one", "two"):
        place.server(name)
        place.leads_to(name)
        transport = RedisSyncTransport(place.client(), timeout=20, commit_timeout=20)
        granted = transport.execute(LEASE)
        transport.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS))
        if name == "two":
            [connection] = transport._reads._client.connection_pool._available_connections
            assert transport.execute(LOOKUP) == PAYLOAD
            connection.disconnect()
            assert transport.execute(LOOKUP) is None
            assert transport.execute(LEASE) == Hit(PAYLOAD)
            assert transport.execute(LOOKUP) == PAYLOAD
        transport.close()


@ONE_DRIVER
@pytest.mark.parametrize("why", ["the user may not ask", "check_server=False"])
def test_server_that_is_not_known_is_trusted(engine: Engine, place: Place, why: str) -> None:
    """Without a name hits go on as ever, and what a restart brings back may be stale: the exception is real."""
    server = place.server("one")
    place.leads_to("one")
    with admin(server) as client:
        if why == "check_server=False":
            SQLModelCache.configure(place.transport(check_server=False))
        else:
            client.execute_command("ACL", "SETUSER", "default", "-info")
            SQLModelCache.configure(place.transport())
        pk = add_hero(engine)
        cached(engine, pk, "Rusty")
        client.save()
        rename(engine, pk, "New")
        cached(engine, pk, "New")
        server.stop()
        server.start()
        if why != "check_server=False":
            client.execute_command("ACL", "SETUSER", "default", "-info")
    get_hero(engine, pk)
    assert get_hero(engine, pk).name == "Rusty"


def test_old_master_that_still_answers(place: Place) -> None:
    """Two servers that both take themselves for the master: what was told to the one is not known to the other.

    This is what is left of the exception. It ends when the old master's connections do.
    """
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    before = place.transport()
    before.execute(Begin(Keys((ELSEWHERE.row,), ()), id_of("opens a connection"), 60_000))
    follow(replica, master)
    cut_off(replica)
    promote(replica)
    place.leads_to("replica")
    after = place.transport()
    granted = after.execute(LEASE)
    assert isinstance(granted, Granted)
    after.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS))
    before.execute(Begin(ROW, id_of("token"), 60_000))  # a commit, on a connection to the old master
    assert after.execute(LOOKUP) == PAYLOAD
    before.close()
    before.execute(Begin(ROW, id_of("token"), 60_000))  # the next one, on a new connection
    assert after.execute(LOOKUP) is None
    before.close()
    after.close()
