"""`SQLModelCache.trace()`: the gets of a block, of whichever thread or task they are."""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path
from threading import Thread

import pytest
from conftest import Store
from models import Hero, Plain, Team, add_hero, get_hero
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session, SQLModel

from sqlmodel_cache import SQLModelCache, Trace, tracing

BOTH = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
MEMORY = pytest.mark.parametrize("store", ["memory"], indirect=True)


def told(trace: Trace) -> list[tuple[str, str | None, str, str | None]]:
    """Return what it lists, without the times."""
    return [(get.model, get.pk, get.outcome, get.reason) for get in trace]


@BOTH
def test_each_get_is_listed(engine: Engine, cache: Store) -> None:
    """With its model, key, outcome and reason, and none of what is not the cache's."""
    pk = add_hero(engine)
    hero = "models:Hero"
    with SQLModelCache.trace() as trace:
        assert str(trace) == "no get"
        get_hero(engine, pk)
        get_hero(engine, pk)
        with Session(engine) as session:
            session.get(Plain, 1)
            held = session.get(Hero, pk)
            assert session.get(Hero, pk) is held
            session.get(Hero, "x")
            session.get(Hero, pk + 1, execution_options={"cache": False})
    get_hero(engine, pk)
    assert told(trace) == [
        (hero, str(pk), "miss", "absent"),
        (hero, str(pk), "hit", None),
        (hero, str(pk), "hit", None),
        (hero, None, "bypass", "key"),
        (hero, str(pk + 1), "bypass", "disabled"),
    ]
    assert len(trace) == 5
    assert all(get.seconds > 0 for get in trace)
    assert str(trace).startswith(f"{hero} {pk}: miss (absent), ")
    assert not tracing.active


@SQLITE
@MEMORY
def test_rows_of_one_call_are_listed_each(engine: Engine, cache: Store) -> None:
    """In the order in which they were asked for, bypasses at the end; `get_by` is one get."""
    pks = [add_hero(engine) for _ in range(2)]
    get_hero(engine, pks[1])
    with SQLModelCache.trace() as trace, Session(engine) as session:
        SQLModelCache.get_many(session, Hero, [*pks, 99.5])
    assert [(get.pk, get.outcome, get.reason) for get in trace] == [
        (str(pks[0]), "miss", "absent"),
        (str(pks[1]), "hit", None),
        (None, "bypass", "key"),
    ]


@SQLITE
@MEMORY
def test_hidden_keys_stay_hidden(engine: Engine, store: Store) -> None:
    """Who hashes keys does not want them in a log."""
    SQLModelCache.configure(store.transport, hash_keys=True)
    pk = add_hero(engine)
    with SQLModelCache.trace() as trace, Session(engine) as session:
        session.get(Hero, pk)
        session.get(Team, 1, execution_options={"cache": False})
    assert [get.pk for get in trace] == [None, None]


@SQLITE
@MEMORY
def test_traces_nest_and_keep_apart(engine: Engine, cache: Store) -> None:
    """A block within a block lists for both; another thread's gets are its own, unless it has the block's context."""
    pk = add_hero(engine)
    with SQLModelCache.trace() as outer:
        get_hero(engine, pk)
        with SQLModelCache.trace() as inner:
            get_hero(engine, pk)
        threads = [
            Thread(target=get_hero, args=(engine, pk)),
            Thread(target=contextvars.copy_context().run, args=(get_hero, engine, pk)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert (len(outer), len(inner)) == (3, 1)


async def test_tasks(tmp_path: Path) -> None:
    """Those that the block has begun are listed, until it ends; those of other blocks are not."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/tasks.db")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    SQLModelCache.configure()
    left = asyncio.Event()

    async def get(wait: bool = False) -> None:
        async with AsyncSession(engine) as session:
            await session.get(Hero, 1)
            if wait:
                await left.wait()
                await session.get(Hero, 2)

    async def block() -> tuple[Trace, asyncio.Task[None]]:
        with SQLModelCache.trace() as trace:
            late = asyncio.create_task(get(wait=True))
            await asyncio.gather(get(), get(), asyncio.to_thread(lambda: None))
            while len(trace) < 3:
                await asyncio.sleep(0)
        return trace, late

    traces = await asyncio.gather(block(), block())
    left.set()
    await asyncio.gather(*(late for _, late in traces))
    assert [len(trace) for trace, _ in traces] == [3, 3]
    assert not tracing.active
    await engine.dispose()


def test_a_block_may_end_in_another_context() -> None:
    """As a dependency of a web framework does."""
    block = SQLModelCache.trace()
    contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(block.__exit__, None, None, None)
    assert not tracing.active


@SQLITE
@MEMORY
def test_blocks_may_end_in_any_order(engine: Engine, cache: Store) -> None:
    """The one that is still open goes on, and who has ended lists nothing, in contexts that were copied before, too."""
    pk = add_hero(engine)
    first, second = SQLModelCache.trace(), SQLModelCache.trace()
    one, two = first.__enter__(), second.__enter__()
    copied = contextvars.copy_context()
    first.__exit__(None, None, None)
    get_hero(engine, pk)
    copied.run(get_hero, engine, pk)
    assert (len(one), len(two)) == (0, 2)
    second.__exit__(None, None, None)
    assert tracing._traces.get() == ()


@SQLITE
@MEMORY
def test_watchers_see_every_get(engine: Engine, cache: Store) -> None:
    """Until they are taken off."""
    pk = add_hero(engine)
    seen: list[tracing.TracedGet] = []
    tracing.watch(seen.append)
    try:
        get_hero(engine, pk)
    finally:
        tracing.unwatch(seen.append)
    get_hero(engine, pk)
    assert [get.outcome for get in seen] == ["miss"]
