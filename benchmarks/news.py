"""How soon one process sees, in its near cache, what another has committed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import redis
from sqlmodel import Session, create_engine

from benchmarks.model import Nearby
from benchmarks.table import Goal, Line, time_of
from benchmarks.world import PATIENCE, World, cached
from sqlmodel_cache import NearCache, SQLModelCache

SECONDS = 20  # after which a commit was never heard of


def near_news(world: World) -> Iterator[Line]:
    """From when `commit()` has returned in one process to when a get begins in another that sees it."""
    engine, client = world.postgresql(), world.client()
    ours, theirs = multiprocessing.Pipe()
    writer = multiprocessing.get_context("spawn").Process(
        target=commit_each, args=(world.postgres_url, world.redis_url, theirs), daemon=True
    )
    writer.start()
    SQLModelCache.configure(cached(client), near_cache=NearCache(max_age=PATIENCE))

    def weight() -> float:
        with Session(engine) as session:
            return session.get_one(Nearby, 1).weight

    took = []
    for number in range(1, world.effort.commits_heard + 1):
        before = SQLModelCache.stats().near_hits
        while SQLModelCache.stats().near_hits == before:
            weight()
        ours.send(float(number))
        returned = ours.recv()
        began = time.monotonic()
        while weight() != number:
            began = time.monotonic()
            assert began - returned < SECONDS
        took.append(max(0.0, began - returned) * 1e6)
    ours.send(None)
    writer.join()
    SQLModelCache.reset()
    took.sort()
    slow, middle = took[len(took) * 99 // 100 - 1], took[len(took) // 2]
    goal = Goal("ms, 99 of 100", slow / 1000, 50)
    yield Line("a commit, in another process's near cache", f"{time_of(middle)}, the median", (goal,))


def commit_each(database_url: str, redis_url: str, asked: Connection) -> None:
    """Commit each weight that is asked for, and say when `commit()` has returned."""
    engine, client = create_engine(database_url), redis.Redis.from_url(redis_url)
    SQLModelCache.configure(cached(client))
    while (weight := asked.recv()) is not None:
        with Session(engine) as session:
            session.get_one(Nearby, 1).weight = weight
            session.commit()
        asked.send(time.monotonic())
    SQLModelCache.reset()
    client.close()
    engine.dispose()
