"""A Redis without room: every policy of `maxmemory`, under gets and commits. Nothing stale, nothing raised."""

from __future__ import annotations

import random
import re

import pytest
import redis
from models import Hero, add_hero, get_hero
from sqlalchemy import Engine
from sqlmodel import Session
from trouble.places import Place, admin, cached, owes, rename
from waiting import until

from sqlmodel_cache import InvalidationError, SQLModelCache

ROWS, STEPS = 60, 250
ROOM = 250_000  # bytes above what an empty server takes: about a third of what the rows need

POLICIES = [
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
]
SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


def add_heroes(engine: Engine) -> dict[int, str]:
    """Insert heroes with long names; return the names by primary key."""
    with Session(engine) as session:
        heroes = [Hero(name=f"{number} " + "x" * 12_000) for number in range(ROWS)]
        session.add_all(heroes)
        session.commit()
        return {hero.id: hero.name for hero in heroes if hero.id is not None}


def fill_up(client: redis.Redis) -> None:
    """Leave a server no room, and nothing that it may evict."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)


@SQLITE
@pytest.mark.parametrize("policy", POLICIES)
def test_policy_that_evicts(engine: Engine, place: Place, policy: str) -> None:
    """Whatever is evicted, a get gives what was committed last, and rows go on being cached."""
    server = place.server("one")
    place.leads_to("one")
    names = add_heroes(engine)
    chance = random.Random(policy)
    SQLModelCache.configure(place.transport())
    with admin(server) as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", client.info("memory")["used_memory"] + ROOM)
        for step in range(STEPS):
            pk = min(chance.choice(list(names)), chance.choice(list(names)))  # some rows are asked for more often
            if step % 8 == 0:
                names[pk] = f"{step} " + "y" * 12_000
                rename(engine, pk, names[pk])
            assert get_hero(engine, pk).name == names[pk]
        assert client.info("stats")["evicted_keys"] > ROWS / 4
    assert SQLModelCache.stats().hits > 0
    cached(engine, 1, names[1])


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_no_eviction_in_serve_mode(engine: Engine, place: Place) -> None:
    """What is cached is hit, what is not is read from the database; a commit goes on, is owed, and delivered later."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport())
    pk, other = add_hero(engine), add_hero(engine, "Other")
    cached(engine, pk, "Rusty")
    with admin(server) as client:
        fill_up(client)
        cached(engine, pk, "Rusty")
        assert get_hero(engine, other).name == "Other"
        assert SQLModelCache.stats().errors > 0
        rename(engine, pk, "New")
        assert owes()
        assert get_hero(engine, pk).name == "New"
        client.config_set("maxmemory", 0)
        until(lambda: get_hero(engine, pk).name == "New" and not owes())
    assert get_hero(engine, pk).name == "New"


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_no_eviction_in_refuse_mode(engine: Engine, place: Place) -> None:
    """A commit that cannot be fenced is refused and rolled back; reads go on."""
    server = place.server("one")
    place.leads_to("one")
    SQLModelCache.configure(place.transport(), on_unreachable="refuse")
    pk, other = add_hero(engine), add_hero(engine, "Other")
    cached(engine, pk, "Rusty")
    with admin(server) as client:
        fill_up(client)
        with pytest.raises(InvalidationError) as raised:
            rename(engine, pk, "New")
        assert re.search("OOM|OutOfMemory", str(raised.value.__cause__))  # releases differ
        cached(engine, pk, "Rusty")
        assert get_hero(engine, other).name == "Other"
        client.config_set("maxmemory", 0)
    rename(engine, pk, "New")
    assert get_hero(engine, pk).name == "New"
