"""A get in the common case: what is sent, what is stored, what comes back."""

from __future__ import annotations

import datetime
import math
import uuid
from decimal import Decimal
from typing import Any

import pytest
from conftest import Log, Store
from models import Color, Gadget, Hero, Plain, Sample, add_hero, get_hero
from sqlalchemy import Engine, inspect
from sqlalchemy import orm as sa_orm
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Session, select

from sqlmodel_cache import SQLModelCache
from sqlmodel_cache._admission import _UNASKED, Admission


def test_get_fills_then_hits(engine: Engine, cache: Store, sql: Log) -> None:
    """The second get in another session issues no SQL and takes no connection."""
    pk = add_hero(engine)
    sql.take()
    first = get_hero(engine, pk)
    assert len(sql.take()) == 1
    assert len(cache.values()) == 1
    checkouts = sql.checkouts

    second = get_hero(engine, pk)

    assert sql.take() == []
    assert sql.checkouts == checkouts
    assert first == second
    assert repr(first) == repr(second)  # the order of attributes, too
    assert (second.id, second.name, second.age) == (pk, "Rusty", 48)
    assert SQLModelCache.stats().hits == 1


def test_commit_invalidates(engine: Engine, cache: Store, sql: Log) -> None:
    """A get that begins after a commit reads the new row from the database."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        hero = session.get_one(Hero, pk)
        hero.name = "Rusty-Man"
        session.commit()
    assert cache.values() == {}
    sql.take()

    assert get_hero(engine, pk).name == "Rusty-Man"

    assert len(sql.take()) == 1
    assert get_hero(engine, pk).name == "Rusty-Man"
    assert sql.take() == []


def test_delete_invalidates(engine: Engine, cache: Store) -> None:
    """A get after the commit of a delete returns None."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        session.delete(session.get_one(Hero, pk))
        session.commit()
    with Session(engine) as session:
        assert session.get(Hero, pk) is None
        with pytest.raises(NoResultFound):
            session.get_one(Hero, pk)


def test_missing_row_is_not_stored(engine: Engine, cache: Store, sql: Log) -> None:
    """A missing row is read from the database every time, and appears once it is there."""
    with Session(engine) as session:
        assert session.get(Hero, 7) is None
    sql.take()
    with Session(engine) as session:
        assert session.get(Hero, 7) is None
    assert len(sql.take()) == 1
    assert cache.values() == {}
    with Session(engine) as session:
        session.add(Hero(id=7, name="Late"))
        session.commit()
    assert get_hero(engine, 7).name == "Late"


def test_every_type_comes_back_as_it_was(engine: Engine, cache: Store, sql: Log) -> None:
    """A hit has values of the types and with the contents that the SELECT gave."""
    sample = Sample(
        amount=Decimal("12.30"),
        day=datetime.date(2026, 1, 31),
        at=datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=datetime.UTC),
        naive=datetime.datetime(2026, 1, 31, 12, 0, 0, 7),
        spent=datetime.timedelta(days=2, microseconds=7),
        color=Color.BLUE,
        ratio=math.pi,
        raw=bytes(range(256)),
        active=True,
        tags={"a": [1, 2.5, None, "x"], "b": {"c": True}},
    )
    pk = sample.id
    with Session(engine) as session:
        session.add(sample)
        session.commit()
    with Session(engine) as session:
        loaded = session.get_one(Sample, pk).model_dump()
    sql.take()

    with Session(engine) as session:
        hit = session.get_one(Sample, pk).model_dump()

    assert sql.take() == []
    assert hit == loaded
    assert {key: type(value) for key, value in hit.items()} == {key: type(value) for key, value in loaded.items()}
    assert isinstance(hit["id"], uuid.UUID)
    assert str(hit["amount"]) == "12.30"


def test_composite_key(engine: Engine, cache: Store, sql: Log) -> None:
    """Composite keys hit as tuple, list and dict; their text cannot be confused."""
    with Session(engine) as session:
        session.add(Gadget(owner="a:1", number=2, label="one"))
        session.add(Gadget(owner="a", number=12, label="two"))
        session.commit()
    for key, label in (("a:1", 2), "one"), (("a", 12), "two"):
        with Session(engine) as session:
            assert session.get_one(Gadget, key).label == label
    sql.take()
    with Session(engine) as session:
        assert session.get_one(Gadget, ["a:1", 2]).label == "one"
        assert session.get_one(Gadget, {"owner": "a", "number": 12}).label == "two"
    assert sql.take() == []


def test_hit_is_a_persistent_object(engine: Engine, cache: Store) -> None:
    """A hit is persistent, unmodified and complete, in the identity map, and one object per session."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        hero = session.get_one(Hero, pk)
        state = inspect(hero)
        assert state.persistent
        assert not state.modified
        assert state.unloaded == set()
        assert hero in session
        assert not session.dirty
        assert session.get(Hero, pk) is hero
        assert session.exec(select(Hero)).one() is hero
    assert SQLModelCache.stats().hits == 1


def test_hit_can_be_modified_refreshed_and_deleted(engine: Engine, cache: Store) -> None:
    """What came from the cache is saved, refreshed, expired and deleted as anything else."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        hero = session.get_one(Hero, pk)
        hero.age = 50
        session.commit()
        assert hero.age == 50
        session.refresh(hero)
    get_hero(engine, pk)
    with Session(engine) as session:
        hero = session.get_one(Hero, pk)
        session.expire(hero)
        assert hero.age == 50
        session.delete(hero)
        session.commit()
    with Session(engine) as session:
        assert session.get(Hero, pk) is None


def test_rollback_expires_a_hit(engine: Engine, cache: Store) -> None:
    """After rollback() an object from a hit is read anew, as one from a SELECT is."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    with Session(engine) as session:
        hero = session.get_one(Hero, pk)
        with Session(engine) as other:
            other.get_one(Hero, pk).name = "Changed"
            other.commit()
        session.rollback()
        assert hero.name == "Changed"


def test_hit_keeps_the_rules_of_the_session(engine: Engine, cache: Store) -> None:
    """Without autobegin, and in a closed session, a get raises what it raises without a cache."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    outcomes = []
    for configured in (True, False):
        if not configured:
            SQLModelCache.reset()
        raised = []
        for session in (Session(engine, autobegin=False), Session(engine, close_resets_only=False)):
            if session.autobegin:
                session.close()
            with pytest.raises(Exception, match=r".") as error:
                session.get(Hero, pk)
            raised.append((type(error.value), str(error.value)))
            session.close()
        with Session(engine) as session:
            session.get(Hero, pk)
            raised.append(session.in_transaction())
            with pytest.raises(Exception, match="already begun") as error:
                session.begin()
            raised.append((type(error.value), str(error.value)))
        outcomes.append(raised)
    assert outcomes[0] == outcomes[1]


def test_select_passes_through(engine: Engine, cache: Store, sql: Log) -> None:
    """select(), execute and query send the same SQL as ever and touch no cache."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    sent = []
    for configured in (True, False):
        if not configured:
            SQLModelCache.reset()
        sql.take()
        before = SQLModelCache.stats()
        with Session(engine) as session:
            assert session.exec(select(Hero).where(Hero.id == pk)).one().name == "Rusty"
        with Session(engine) as session:
            assert session.execute(select(Hero.name)).scalars().all() == ["Rusty"]
        with sa_orm.Session(engine) as session:
            assert session.query(Hero).filter_by(id=pk).one().name == "Rusty"
        assert SQLModelCache.stats() == before
        sent.append(sql.take())
    assert sent[0] == sent[1]


def test_uncached_model_is_left_alone(engine: Engine, cache: Store, sql: Log) -> None:
    """A model without __cache_config__ costs no cache traffic, read or written."""
    with Session(engine) as session:
        session.add(Plain(id=1, name="p"))
        session.commit()
    for _ in range(2):
        with Session(engine) as session:
            session.get_one(Plain, 1).name += "!"
            session.commit()
    assert len([s for s in sql.take() if s.startswith("SELECT")]) == 2
    assert SQLModelCache.stats() == type(SQLModelCache.stats())()


def test_kinds_of_sessions(engine: Engine, cache: Store, sql: Log) -> None:
    """SQLAlchemy's Session, sessionmaker, scoped_session and subclasses of them all hit."""

    class Mine(Session):
        def get(self, entity, ident, **options):
            return super().get(entity, ident, **options)

    pk = add_hero(engine)
    get_hero(engine, pk)
    scoped = sa_orm.scoped_session(sa_orm.sessionmaker(engine))
    sql.take()
    for make in (
        lambda: sa_orm.Session(engine),
        sa_orm.sessionmaker(engine),
        sa_orm.sessionmaker(engine, class_=Session),
        lambda: Mine(engine),
    ):
        with make() as session:
            assert session.get(Hero, pk).name == "Rusty"
        with make() as session:
            assert session.get_one(Hero, pk).name == "Rusty"
    assert scoped.get(Hero, pk).name == "Rusty"
    scoped.remove()
    assert sql.take() == []


@pytest.mark.parametrize("given", [{}, *_UNASKED])
def test_a_lane_is_found_once(
    engine: Engine, cache: Store, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    """Sessions that have done nothing yet are alike: what one of them may ask is found out once."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    found: list[Any] = []
    monkeypatch.setattr(Admission, "_find", lambda *arguments: found.append(arguments) or "option")
    with Session(engine) as session:
        assert session.get(Hero, pk, **given).name == "Rusty"
        assert session.get(Hero, pk + 1, with_for_update={}) is None
    assert len(found) == 1


def test_get_one_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `get_one` passes to `get` is known to mean nothing, on this release of SQLAlchemy."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(Session, "get", lambda self, entity, ident, **options: given.append(options) or "hero")
    Session().get_one(Hero, 1)
    assert given[0] in _UNASKED


async def test_an_async_session_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an AsyncSession adds to a get is known to mean nothing, on this release of SQLAlchemy."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(Session, "get", lambda self, entity, ident, **options: given.append(options))
    await AsyncSession(sync_session_class=Session).get(Hero, 1)
    assert given[0] in _UNASKED
