"""`sqlmodel_cache.testing` in this process: what it refuses, and that nothing of it stays."""

from __future__ import annotations

import pytest
from models import Hero, add_hero, get_hero
from sqlalchemy import Engine
from sqlmodel import Session

from sqlmodel_cache import ConfigurationError, MemoryTransport, SQLModelCache
from sqlmodel_cache.testing import fresh_cache


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"hit": 1}, "expect\\(hit\\)=1: give some of hits"), ({"hits": -1}, "how often"), ({}, "name a counter")],
)
def test_expect_refuses_what_it_does_not_know(counts: dict[str, int], said: str) -> None:
    """A counter that does not exist would hold for ever."""
    with fresh_cache() as cache, pytest.raises(ConfigurationError, match=said), cache.expect(**counts):
        raise AssertionError("not reached")


def test_fresh_cache_leaves_no_trace() -> None:
    """`configure` is the library's own again, after an error too, and what was owed in the test is forgotten."""
    configure = SQLModelCache.configure
    with pytest.raises(KeyError), fresh_cache():
        assert SQLModelCache.configure is not configure
        raise KeyError
    assert SQLModelCache.configure == configure
    assert SQLModelCache.get_config() is None


def test_fresh_cache_takes_any_other_transport_that_is_given() -> None:
    """Who gives a transport of their own means it."""
    mine = MemoryTransport()
    with fresh_cache():
        SQLModelCache.configure(mine)
        config = SQLModelCache.get_config()
        assert config is not None
        assert config.transport is mine


def test_clear_forgets_every_row(engine: Engine) -> None:
    """The next get is a miss; what was counted stays."""
    with fresh_cache() as cache:
        pk = add_hero(engine)
        get_hero(engine, pk)
        with cache.expect(hits=1, misses=0):
            get_hero(engine, pk)
        cache.clear()
        with cache.expect(hits=0, misses=1):
            get_hero(engine, pk)
        assert cache.stats.hits == 1


def test_faults_are_met_by_sessions(engine: Engine) -> None:
    """What an application does when its cache misses or fails can be seen in a test, sync and async."""
    with Session(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        session.commit()

    def read() -> None:
        with Session(engine) as session:
            assert session.get(Hero, 1) is not None

    with fresh_cache() as cache:
        read()
        with cache.faults.miss(times=1) as missed, cache.expect(misses=1, hits=1, fills=1):
            read()
            read()
        assert missed.injected == 1
        with cache.faults.fail("lookup", times=1), cache.expect(misses=1, errors=1, hits=1):
            read()
            read()
        with cache.faults.fail("begin", "end"), Session(engine) as session:
            hero = session.get(Hero, 1)
            assert hero is not None
            hero.name = "Rusty-Man"
            session.commit()
        assert cache.stats.owed == 1
    assert SQLModelCache.get_config() is None
