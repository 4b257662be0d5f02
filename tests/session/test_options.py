"""What one call, one model, one session or one engine may say about caching."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
from conftest import Log, Store
from models import Gadget, Hero, Team, add_hero, get_hero
from sqlalchemy import Engine, event, inspect
from sqlalchemy import orm as sa_orm
from sqlmodel import Field, Session, SQLModel

from sqlmodel_cache import CacheConfig, ConfigurationError, SQLModelCache, _sqlalchemy


def only_ttl(store: Store) -> float:
    """Return the seconds that the one stored row has left."""
    [key] = store.values()
    return store.ttl(key)


def test_cache_false_neither_reads_nor_fills(engine: Engine, cache: Store, sql: Log) -> None:
    """`{"cache": False}` goes to the database and leaves the cache as it was."""
    pk = add_hero(engine)
    sql.take()
    for _ in range(2):
        with Session(engine) as session:
            session.get(Hero, pk, execution_options={"cache": False})
    assert len(sql.take()) == 2
    assert cache.values() == {}
    get_hero(engine, pk)
    before = cache.values()
    sql.take()
    with Session(engine) as session:
        session.get_one(Hero, pk, execution_options={"cache": False})
    assert len(sql.take()) == 1
    assert cache.values() == before


def test_ttl_precedence(engine: Engine, store: Store) -> None:
    """The call's TTL goes before the model's, and the model's before the default; jitter never lengthens one."""
    SQLModelCache.configure(store.transport, default_ttl=1000)
    pk = add_hero(engine)
    with Session(engine) as session:
        session.add(Team(id=1, name="t"))
        session.commit()
    for get, ttl in (
        (lambda s: s.get(Hero, pk, execution_options={"cache_ttl": 60}), 60),
        (lambda s: s.get(Hero, pk, execution_options={"cache_ttl": datetime.timedelta(minutes=2)}), 120),
        (lambda s: s.get(Hero, pk), 600),
        (lambda s: s.get(Team, 1), 1000),
    ):
        with Session(engine) as session:
            get(session)
        assert 0.89 * ttl < only_ttl(store) <= ttl
        store.clear()


def test_jitter_spreads_expiry(engine: Engine, cache: Store) -> None:
    """Rows that are filled together do not expire together."""
    pks = [add_hero(engine) for _ in range(20)]
    for pk in pks:
        get_hero(engine, pk)
    left = [cache.ttl(key) for key in cache.values()]
    assert len(left) == 20
    assert max(left) - min(left) > 5


def test_session_and_engine_options(engine: Engine, cache: Store, sql: Log) -> None:
    """Execution options of an engine count; those of the call go before them."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    uncached = engine.execution_options(cache=False)
    sql.take()
    with Session(uncached) as session:
        session.get(Hero, pk)
    assert len(sql.take()) == 1
    with Session(uncached) as session:
        session.get(Hero, pk, execution_options={"cache": True})
    assert sql.take() == []


@pytest.mark.parametrize(
    "options",
    [
        {"with_for_update": True},
        {"with_for_update": {"read": True}},
        {"populate_existing": True},
        {"options": [sa_orm.load_only(Hero.name)]},  # type: ignore[arg-type]
        {"identity_token": "here"},
        {"execution_options": {"populate_existing": True}},
        {"execution_options": {"unheard_of": 1}},
        {"bind_arguments": {"mapper": Hero}},
    ],
    ids=str,
)
def test_special_gets_go_to_the_database(engine: Engine, cache: Store, sql: Log, options: dict[str, Any]) -> None:
    """A get that asks for more than the row as it is committed is neither answered nor stored."""
    pk = add_hero(engine)
    for stored in (0, 1):
        sql.take()
        with Session(engine) as session:
            assert session.get_one(Hero, pk, **options).name == "Rusty"
        assert len(sql.take()) == 1
        assert len(cache.values()) == stored
        get_hero(engine, pk)
    assert SQLModelCache.stats().bypasses == 2


@pytest.mark.parametrize("ident", ["1", True, 1.0, (1,), [1], {"id": 1}], ids=repr)
def test_key_of_another_type(engine: Engine, cache: Store, ident: Any) -> None:
    """A key whose type is not its column's does what the database does, cached or not."""
    with Session(engine) as session:
        session.add(Hero(id=1, name="One"))
        session.commit()
    get_hero(engine, 1)
    outcomes = []
    for configured in (True, False):
        if not configured:
            SQLModelCache.reset()
        with Session(engine) as session:
            try:
                outcomes.append(repr(session.get(Hero, ident).name))  # type: ignore[union-attr]
            except Exception as error:
                outcomes.append(repr(type(error)))
    assert outcomes[0] == outcomes[1]
    assert len(cache.values()) == 1


def test_wrong_identifiers_raise_as_ever(engine: Engine, cache: Store) -> None:
    """Too many, too few or misnamed key values raise what they raise without a cache."""
    outcomes = []
    for configured in (True, False):
        if not configured:
            SQLModelCache.reset()
        raised = []
        for entity, ident in (
            (Hero, (1, 2)),
            (Gadget, "a"),
            (Gadget, {"owner": "a", "nr": 1}),
            (Hero, {"x": 1}),
            (SQLModel, 1),
            ("Hero", 1),
        ):
            with Session(engine) as session, pytest.raises(Exception, match=r".") as error:
                session.get(entity, ident)  # type: ignore[arg-type]
            raised.append((type(error.value), str(error.value)))
        outcomes.append(raised)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("ttl", [0, -1, True, math.nan, math.inf, "60", [], 1e12, datetime.timedelta(0)], ids=repr)
def test_wrong_ttl_of_a_call(engine: Engine, cache: Store, ttl: Any) -> None:
    """A TTL that is not a positive duration is named, with its value and what to give."""
    pk = add_hero(engine)
    with Session(engine) as session, pytest.raises(ConfigurationError, match="cache_ttl") as error:
        session.get(Hero, pk, execution_options={"cache_ttl": ttl})
    assert error.value.value is ttl
    assert "give" in str(error.value)


def test_wrong_cache_option(engine: Engine, cache: Store) -> None:
    """`cache` is True or False."""
    with Session(engine) as session, pytest.raises(ConfigurationError, match="cache"):
        session.get(Hero, 1, execution_options={"cache": "no"})


def test_disabled_model_and_library(engine: Engine, store: Store, sql: Log) -> None:
    """Disabled means neither read nor filled, while commits still invalidate what other processes cached."""
    SQLModelCache.configure(store.transport)
    pk = add_hero(engine)
    get_hero(engine, pk)
    assert len(store.values()) == 1
    SQLModelCache.configure(store.transport, enabled=False)
    sql.take()
    get_hero(engine, pk)
    assert len(sql.take()) == 1
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "New"
        session.commit()
    assert store.values() == {}
    SQLModelCache.configure(store.transport)
    assert get_hero(engine, pk).name == "New"


def test_load_events_fire_on_a_hit(engine: Engine, cache: Store) -> None:
    """A load event fires for a hit as for a SELECT, and what it changes is not what is stored."""
    pk = add_hero(engine)

    def renamed(hero: Hero, context: object) -> None:
        hero.name += "!"

    event.listen(Hero, "load", renamed)
    try:
        for _ in range(3):
            hero = get_hero(engine, pk)
            assert hero.name == "Rusty!"
            assert not inspect(hero).modified
    finally:
        event.remove(Hero, "load", renamed)
    assert SQLModelCache.stats().hits == 2
    assert get_hero(engine, pk).name == "Rusty"


def test_load_event_that_is_first_keeps_the_row_out(engine: Engine, cache: Store) -> None:
    """What a listener has changed before the library could see it is not stored."""
    pk = add_hero(engine)

    def renamed(hero: Hero, context: object) -> None:
        hero.name += "!"

    event.listen(Hero, "load", renamed)
    get_hero(engine, pk)
    event.remove(Hero, "load", renamed)
    cache.clear()

    def first(hero: Hero, context: object) -> None:
        hero.name += "?"

    event.listen(Hero, "load", first, insert=True)
    try:
        for _ in range(2):
            assert get_hero(engine, pk).name == "Rusty?"
        assert cache.values() == {}
    finally:
        event.remove(Hero, "load", first)


def test_sessions_that_filter_go_to_the_database(engine: Engine, cache: Store) -> None:
    """A session whose do_orm_execute event may narrow the SELECT sees what that SELECT finds."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:

        @event.listens_for(session, "do_orm_execute")
        def only_blue(state: sa_orm.ORMExecuteState) -> None:
            state.statement = state.statement.options(sa_orm.with_loader_criteria(Hero, Hero.name == "Blue"))

        assert session.get(Hero, pk) is None
    assert get_hero(engine, pk).name == "Rusty"


def test_wrong_declarations() -> None:
    """A `__cache_config__` that is not one is an error where it is written, or when the library is configured."""
    SQLModelCache.configure()
    with pytest.raises(ConfigurationError, match=r"Wrong\.__cache_config__"):

        class Wrong(SQLModel, table=True):
            __cache_config__ = {"ttl": 5}
            id: int | None = Field(default=None, primary_key=True)

    class Base(SQLModel):
        __cache_config__ = CacheConfig()

    with pytest.raises(ConfigurationError, match="no table"):
        Session().get(Base, 1)
    SQLModel.metadata.remove(SQLModel.metadata.tables["wrong"])
    for mapper in _sqlalchemy.mappers():  # the class lives on until its garbage is collected
        if mapper.class_.__name__ == "Wrong":
            mapper.class_.__cache_config__ = None


@pytest.mark.parametrize("ttl", [0, -1, True, math.nan, "60"], ids=repr)
def test_wrong_ttl_of_a_model(ttl: Any) -> None:
    """CacheConfig checks its ttl when it is made."""
    with pytest.raises(ConfigurationError, match=r"CacheConfig\(ttl\)"):
        CacheConfig(ttl=ttl)
    with pytest.raises(ConfigurationError, match=r"CacheConfig\(enabled\)"):
        CacheConfig(enabled=1)  # type: ignore[arg-type]
