"""`configure(wait_replicas=...)`: a fence counts as set when the replicas have it, too."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import redis
from models import add_hero, get_hero
from sqlalchemy import Engine
from transport.backends import ENTRY, FENCE_TTL_MS, FINGERPRINT, ROW, id_of
from trouble.places import Place, admin, cached, cut_off, follow, owes, promote, rename
from waiting import until

from sqlmodel_cache import ConfigurationError, InvalidationError, MemoryTransport, SQLModelCache, TransportError
from sqlmodel_cache._effects import Begin, End, Fenced, Lease

BOTH_DRIVERS = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)

BEGIN = Begin(ROW, id_of("token"), FENCE_TTL_MS, replicas=1)


@BOTH_DRIVERS
def test_commit_that_no_replica_has_is_refused(engine: Engine, place: Place) -> None:
    """Where the replica has the fence the commit goes on; where it is cut off nothing is committed."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    SQLModelCache.configure(place.transport(), on_unreachable="refuse", wait_replicas=1)
    follow(replica, master)
    pk = add_hero(engine)
    cached(engine, pk, "Rusty")
    rename(engine, pk, "New")
    cached(engine, pk, "New")
    cut_off(replica)
    with pytest.raises(InvalidationError) as raised:
        rename(engine, pk, "Newer")
    assert "0 of 1 replicas" in str(raised.value.__cause__)
    assert get_hero(engine, pk).name == "New"


@BOTH_DRIVERS
def test_commit_that_no_replica_has_is_owed(engine: Engine, place: Place) -> None:
    """In serve mode it goes on, and is owed until a replica has it: the END alone settles nothing."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    SQLModelCache.configure(place.transport(), wait_replicas=1)
    pk = add_hero(engine)
    follow(replica, master)
    cached(engine, pk, "Rusty")
    cut_off(replica)
    rename(engine, pk, "New")
    assert owes()
    assert get_hero(engine, pk).name == "New"
    follow(replica, master)
    until(lambda: get_hero(engine, pk).name == "New" and not owes())


@pytest.mark.parametrize("effect", [BEGIN, End(ROW, id_of("token"), id_of("end"), replicas=1)])
def test_replica_has_what_was_answered(place: Place, effect: Any) -> None:
    """When the reply is there the replica has the key; nobody needs to wait for it."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    follow(replica, master)
    transport = place.transport()
    with admin(replica) as client:
        for _ in range(20):
            client_has = client.get(ENTRY.row)
            transport.execute(effect)
            assert client.get(ENTRY.row) != client_has
    transport.close()


def test_script_that_is_sent_again_is_waited_for(place: Place) -> None:
    """A WAIT that was sent behind a script which the server did not know has waited for nothing, and is sent again."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    follow(replica, master)
    transport = place.transport()
    replica.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TransportError, match="0 of 1 replicas"):
            transport.execute(BEGIN)
    finally:
        replica.process.send_signal(signal.SIGCONT)
    transport.execute(BEGIN)
    transport.close()


def test_replica_that_has_the_fence_is_promoted(place: Place) -> None:
    """The writer may die after its COMMIT, and its server with it: the next one lets nobody fill."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    follow(replica, master)
    transport = place.transport()
    transport.execute(BEGIN)
    master.stop()
    promote(replica)
    place.leads_to("replica")
    transport.close()
    assert transport.execute(Lease(ENTRY, FINGERPRINT, id_of("lease"))) == Fenced()
    transport.close()


def test_old_master_that_still_answers_fences_nothing(place: Place) -> None:
    """A commit that would be told to the old master alone is told so: this closes what is left of the exception."""
    master, replica = place.server("master"), place.server("replica")
    place.leads_to("master")
    follow(replica, master)
    transport = place.transport()
    transport.execute(BEGIN)
    cut_off(replica)
    promote(replica)
    with pytest.raises(TransportError, match="0 of 1 replicas"):
        transport.execute(BEGIN)
    transport.close()


def test_transaction_of_very_many_tables_is_not_waited_for(place: Place) -> None:
    """WAIT knows the writes of its own connection only: what does not fit one pipeline could not be set."""
    place.server("master")
    place.leads_to("master")
    many = ROW._replace(rows=tuple(f"c:{{db/t{number}:0}}:1" for number in range(1_000)))
    transport = place.transport()
    with pytest.raises(TransportError, match="too many"):
        transport.execute(Begin(many, id_of("token"), FENCE_TTL_MS, replicas=1))
    transport.execute(Begin(many, id_of("token"), FENCE_TTL_MS))
    transport.close()


@pytest.mark.parametrize("count", [-1, True, 1.5, "1", None])
def test_number_of_replicas_is_a_number(count: Any, redis_client: redis.Redis) -> None:
    """Anything else is refused, and a cache in this process has none."""
    for transport in (MemoryTransport(), None):
        with pytest.raises(ConfigurationError) as raised:
            SQLModelCache.configure(transport, wait_replicas=count)
        assert raised.value.argument == "wait_replicas"
    with pytest.raises(ConfigurationError, match="MemoryTransport"):
        SQLModelCache.configure(wait_replicas=1)
