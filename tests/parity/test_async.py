"""The same through AsyncSession: what a hit leaves unloaded is loaded, or raises, as after a SELECT."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from parity.aftermath import AFTERMATHS
from parity.case import Case
from parity.looks import content, portrait
from parity.runner import Databases, Different, World, agree
from parity.zoo_declarative import DDeferred, DListened, DMutable, DVersion
from parity.zoo_relations import RChild, RDynamic, RParent, RToy
from parity.zoo_sqlmodel import ZHero, ZPrivate, ZTypes
from sqlalchemy import select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import joinedload
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from sqlmodel_cache import MemoryTransport, SQLModelCache

# What SQLAlchemy leaves behind when it raises MissingGreenlet.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

Play = Callable[[World, AsyncEngine], Awaitable[None]]


async def both(databases: Databases, play: Play) -> None:
    """Run a scenario without and with the library."""
    journals = []
    for name in ("truth", "cached"):
        SQLModelCache.reset()
        path = databases.engine(name).url.database
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        if name == "cached":
            SQLModelCache.configure(MemoryTransport())
        world = World(engine.sync_engine, name == "cached")
        try:
            await play(world, engine)
        except Different:
            raise
        except Exception as error:
            world.journal.append(("raised", type(error).__name__, str(error)))
        finally:
            world.close()
            await engine.dispose()
            await SQLModelCache.aclose()
        journals.append(world.journal)
        gc.collect()
    SQLModelCache.reset()
    agree(*journals)


async def warm(world: World, engine: AsyncEngine, *wanted: tuple[Any, Any]) -> None:
    """Get rows in sessions of their own."""
    with world.quiet():
        for model, pk in wanted:
            async with AsyncSession(engine) as session:
                await session.get(model, pk)


async def tried(world: World, label: str, function: Callable[[], Any]) -> None:
    """Put what a call or a coroutine gives or raises into the journal."""
    try:
        value = function()
        world.see(label, await value if hasattr(value, "__await__") else value)
    except Exception as error:
        world.see(label, (type(error).__name__, str(error)))


async def test_attributes(databases: Databases) -> None:
    """Lazy attributes raise MissingGreenlet outside, and load through awaitable_attrs, run_sync and refresh."""

    async def play(world: World, engine: AsyncEngine) -> None:
        wanted: list[Any] = [RParent, RChild, RToy, RDynamic, DDeferred, DVersion, DMutable, DListened, ZHero, ZPrivate]
        await warm(world, engine, *((model, 1) for model in wanted))
        for model in wanted:
            async with AsyncSession(engine) as session:
                with world.expecting("hit"):
                    obj = await session.get(model, 1)
                world.look("got", obj)
                for name in model.__mapper__.attrs.keys():  # noqa: SIM118
                    await tried(
                        world, f"outside {name}", lambda n=name, o=obj: getattr(o, n) if "dynamic" not in n else 0
                    )
                await session.refresh(obj)
                world.look("refreshed", obj)
                for name in model.__mapper__.attrs.keys():  # noqa: SIM118
                    if (model, name) != (RDynamic, "children"):
                        await tried(
                            world, f"run_sync {name}", lambda n=name, o=obj: session.run_sync(lambda _: getattr(o, n))
                        )
                world.look("loaded", obj)
                await session.commit()
                await tried(world, "expired", lambda o=obj: o.id)
                await session.run_sync(lambda s, m=model: world.look("again", s.get(m, 1)))

    await both(databases, play)


async def test_kinds_of_sessions(databases: Databases) -> None:
    """Makers, scoped sessions, begin blocks, SQLModel's session, streams beside it."""

    async def play(world: World, engine: AsyncEngine) -> None:
        await warm(world, engine, (ZHero, 1))
        makers: list[Any] = [
            async_sessionmaker(engine),
            async_sessionmaker(engine, class_=SQLModelAsyncSession, expire_on_commit=False),
            lambda: SQLModelAsyncSession(engine),
        ]
        for make in makers:
            async with make() as session, session.begin():
                with world.expecting("hit"):
                    obj = await session.get(ZHero, 1)
                world.look("got", obj)
                world.see("one", (await session.get_one(ZHero, 1)) is obj)
                world.see("content", content(session.sync_session))
            world.look("after the block", obj)
            async with make() as session:
                await tried(world, "missing", lambda s=session: s.get_one(ZHero, 99))
                await tried(world, "joined", lambda s=session: s.get(ZHero, 1, options=[joinedload(ZHero.team)]))
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        with world.expecting("hit"):
            obj = await scoped.get(ZHero, 1)
        world.look("scoped", obj)
        await scoped.remove()
        async with AsyncSession(engine, autobegin=False) as session:
            await tried(world, "not begun", lambda: session.get(ZHero, 1))
        async with AsyncSession(engine) as session:
            stream = await session.stream_scalars(select(ZHero))
            async for each in stream:
                world.see("same", (await session.get(ZHero, each.id)) is each)

    await both(databases, play)


async def test_aftermath(databases: Databases) -> None:
    """What may happen to an object, inside run_sync."""

    async def play(world: World, engine: AsyncEngine) -> None:
        cases = [
            Case(ZHero, 1, list, ("age", 5)),
            Case(ZTypes, uuid.UUID(int=0xABC), list, ("active", False)),
            Case(RChild, 1, list, ("name", "q")),
        ]
        for case in cases:
            for name in ("nothing", "read_all", "rollback", "expire", "refresh", "savepoint", "no_change"):
                await warm(world, engine, (case.model, case.ident))
                async with AsyncSession(engine) as session:
                    obj = await session.run_sync(lambda s, c=case: world.get(s, c.model, c.ident))
                    world.look("got", obj)
                    await session.run_sync(lambda s, n=name, o=obj, c=case: AFTERMATHS[n](world, s, o, c))
                    await session.rollback()

    await both(databases, play)


async def test_many_tasks(databases: Databases) -> None:
    """Tasks with a session each get equal objects, none of which is another's."""

    async def play(world: World, engine: AsyncEngine) -> None:
        await warm(world, engine, (ZHero, 1), (RParent, 1), (DMutable, 1))

        async def one(model: Any) -> Any:
            async with AsyncSession(engine) as session:
                obj = await session.get(model, 1)
                await asyncio.sleep(0)
                return obj

        with world.quiet():
            objects = await asyncio.gather(*(one(model) for model in (ZHero, RParent, DMutable) * 20))
        world.see("distinct", len({id(obj) for obj in objects}))
        world.see("equal", len({repr(portrait(obj)) for obj in objects}))
        world.see("values", len({id(obj.data) for obj in objects if isinstance(obj, DMutable)}))

    await both(databases, play)


async def test_cancelled(databases: Databases) -> None:
    """A get that is cancelled leaves a session that works."""

    async def play(world: World, engine: AsyncEngine) -> None:
        await warm(world, engine, (ZHero, 1))
        async with AsyncSession(engine) as session:
            task = asyncio.ensure_future(session.get(ZHero, 1))
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                world.see("cancelled", True)
            with world.quiet():
                world.look("then", await session.get(ZHero, 1))

    await both(databases, play)


async def test_get_outside_of_a_greenlet(databases: Databases) -> None:
    """A get that a miss would end in MissingGreenlet ends so, too, where the row is in the cache."""

    async def play(world: World, engine: AsyncEngine) -> None:
        await warm(world, engine, (ZHero, 1))
        async with AsyncSession(engine) as session:
            await tried(world, "outside", lambda: session.sync_session.get(ZHero, 1))
        async with AsyncSession(engine) as session:
            with world.expecting("hit"):
                world.look("inside", await session.get(ZHero, 1))

    await both(databases, play)
