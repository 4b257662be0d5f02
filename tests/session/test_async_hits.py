"""A hit of an `AsyncSession` waits for nothing but the cache, without a greenlet; all else is as SQLAlchemy does it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from models import Hero, add_hero
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import MemoryTransport, SQLModelCache
from sqlmodel_cache.errors import TransportError

pytestmark = pytest.mark.parametrize("engine", ["sqlite+aiosqlite"], indirect=True)


class Slow:
    """An async transport over one in memory, whose look-ups wait until they are let go."""

    blocking = True

    def __init__(self) -> None:
        self.rows = MemoryTransport()
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.broken = False

    async def aexecute(self, effect: Any) -> Any:
        """Return the reply."""
        self.asked.set()
        await self.let_go.wait()
        if self.broken:
            raise TransportError("broken")
        return self.rows.execute(effect)

    async def aclose(self) -> None:
        """Close nothing."""


@pytest.fixture
def slow(engine: Engine) -> Iterator[Slow]:
    """The transport that is configured."""
    transport = Slow()
    SQLModelCache.configure(async_transport=transport)
    yield transport
    SQLModelCache.reset()


async def cached(engine: Engine) -> int:
    """Return the key of a hero that is cached."""
    async with AsyncEngine(engine).connect() as connection:
        pk = await connection.run_sync(lambda _: add_hero(engine))
    async with AsyncSession(AsyncEngine(engine)) as session:
        await session.get(Hero, pk)
    return pk


async def test_no_greenlet(engine: Engine, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit is made without one, and so is a get of what the session has; the transaction begins as with a SELECT."""
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine)) as session:
        with monkeypatch.context() as patch:
            patch.setattr(sa_asyncio.session, "greenlet_spawn", None)
            hero = await session.get(Hero, pk)
            assert hero is not None
            assert hero.name == "Rusty"
            assert session.in_transaction()
            assert await session.get(Hero, pk) is hero
        await session.rollback()
        assert sa_asyncio.async_object_session(hero) is not None
        await session.refresh(hero)
        assert hero.name == "Rusty"


async def test_all_else_is_done_in_one(engine: Engine, slow: Slow) -> None:
    """A miss, a get with options, one of an expired object, one after a write, and one while the cache is broken."""
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine), expire_on_commit=True) as session:
        assert await session.get(Hero, pk + 1) is None
        hero = await session.get_one(Hero, pk)
        assert await session.get(Hero, pk, populate_existing=True) is hero
        session.expire(hero)
        assert (await session.get_one(Hero, pk)).name == "Rusty"
        hero.name = "New"
        session.add(Hero(id=pk + 1, name="Second"))
        assert (await session.get_one(Hero, pk + 1)).name == "Second"
        await session.commit()
    slow.broken = True
    async with AsyncSession(AsyncEngine(engine)) as session:
        assert (await session.get_one(Hero, pk)).name == "New"
        second = await session.get(Hero, pk + 1)
        assert second is not None
        assert second.name == "Second"
    assert SQLModelCache.stats().errors > 0


async def test_own_get_has_its_say(engine: Engine, slow: Slow) -> None:
    """An application's session class may have a `get` of its own; an `AsyncSession` calls that one."""
    pk = await cached(engine)
    said: list[object] = []

    class Mine(Session):
        def get(self, entity: Any, ident: Any, **options: Any) -> Any:
            said.append(ident)
            return super().get(entity, ident, **options)

    async with AsyncSession(AsyncEngine(engine), sync_session_class=Mine) as session:
        await session.get(Hero, pk)
        await session.get(Hero, pk)
    assert said == [pk, pk]


async def test_load_listener_may_wait(engine: Engine, slow: Slow) -> None:
    """Who listens to loads may load something: on a hit as after a SELECT."""
    pk = await cached(engine)
    seen: list[str] = []

    def listen(session: Session, hero: Hero) -> None:
        seen.extend(session.scalars(select(Hero.name)).all())

    async with AsyncSession(AsyncEngine(engine)) as session:
        event.listen(session.sync_session, "loaded_as_persistent", listen)
        hits = SQLModelCache.stats().hits
        await session.get(Hero, pk)
        assert SQLModelCache.stats().hits == hits + 1
    assert seen == ["Rusty"]


async def test_cancelled_look_up_leaves_the_session_usable(engine: Engine, slow: Slow) -> None:
    """Nothing was opened that would have to be closed."""
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine)) as session:
        slow.let_go.clear()
        slow.asked.clear()
        task = asyncio.ensure_future(session.get(Hero, pk))
        await slow.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.let_go.set()
        assert (await session.get_one(Hero, pk)).name == "Rusty"


async def test_two_tasks_on_one_session(engine: Engine, slow: Slow) -> None:
    """It is not allowed, and it gives both the same object, as without a cache."""
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine)) as session:
        one, two = await asyncio.gather(session.get(Hero, pk), session.get(Hero, pk))
        assert one is two


async def test_commit_during_the_look_up(engine: Engine, slow: Slow) -> None:
    """A get that has begun before a commit may see either row; the next one sees the new."""
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine)) as reader, AsyncSession(AsyncEngine(engine)) as writer:
        (await writer.get_one(Hero, pk)).name = "New"
        slow.let_go.clear()
        slow.asked.clear()
        task = asyncio.ensure_future(reader.get(Hero, pk))
        await slow.asked.wait()
        slow.let_go.set()
        await writer.commit()
        found = await task
        assert found is not None
        assert found.name in ("Rusty", "New")
    async with AsyncSession(AsyncEngine(engine)) as session:
        assert (await session.get_one(Hero, pk)).name == "New"


async def test_closed_for_good(engine: Engine, slow: Slow) -> None:
    """Such a session raises on a hit as on a SELECT."""
    pk = await cached(engine)
    session = AsyncSession(AsyncEngine(engine), close_resets_only=False)
    await session.close()
    with pytest.raises(InvalidRequestError, match="permanently closed"):
        await session.get(Hero, pk)


async def test_reset_leaves_nothing(engine: Engine, slow: Slow) -> None:
    """`AsyncSession.get` is SQLAlchemy's own afterwards."""
    hooked = sa_asyncio.AsyncSession.get
    SQLModelCache.reset()
    assert sa_asyncio.AsyncSession.get is not hooked
    assert sa_asyncio.AsyncSession.get.__module__ == "sqlalchemy.ext.asyncio.session"
    assert not hasattr(sa_asyncio.AsyncSession.get, "__wrapped__")


async def test_memory_needs_no_greenlet_either(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in this process is at hand."""
    SQLModelCache.configure()
    pk = await cached(engine)
    async with AsyncSession(AsyncEngine(engine)) as session:
        with monkeypatch.context() as patch:
            patch.setattr(sa_asyncio.session, "greenlet_spawn", None)
            assert (await session.get(Hero, pk)) is not None
    assert SQLModelCache.stats().hits == 1
