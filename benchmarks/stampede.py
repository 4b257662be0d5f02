"""A stampede: threads of several processes that want one cold row at the same moment, and the SELECTs that it costs."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

import redis
from sqlalchemy import event
from sqlmodel import Session, create_engine

POOL = 10  # connections of each process: all together stay below what PostgreSQL accepts
SECONDS = 120  # after which a process that has died lets the others go


@dataclass(frozen=True)
class Rush:
    """What one stampede has cost."""

    selects: int
    seconds: float


def rush(
    database_url: str, redis_url: str, client: redis.Redis, processes: int, threads: int, *, rounds: int
) -> list[Rush]:
    """Return the cost of each of several stampedes."""
    context = multiprocessing.get_context("spawn")
    everybody = context.Barrier(processes * threads + 1)
    selects = context.Value("i", 0)
    arguments = (database_url, redis_url, threads, rounds, everybody, selects)
    crew = [context.Process(target=crowd, args=arguments, daemon=True) for _ in range(processes)]
    for process in crew:
        process.start()
    found = []
    for _ in range(rounds + 1):
        keys: Any = client.keys("*}:*")
        if keys:
            client.delete(*keys)
        selects.value = 0
        everybody.wait(SECONDS)
        began = time.perf_counter()
        everybody.wait(SECONDS)
        found.append(Rush(selects.value, time.perf_counter() - began))
    for process in crew:
        process.join()
    return found[1:]  # in the first, the processes open their connections


def crowd(database_url: str, redis_url: str, threads: int, rounds: int, everybody: Barrier, selects: Any) -> None:
    """Run the threads of one process."""
    from benchmarks.model import Product
    from benchmarks.world import cached
    from sqlmodel_cache import SQLModelCache

    engine = create_engine(database_url, pool_size=POOL, max_overflow=0)
    with Session(engine) as session:
        session.get(Product, 2)

    @event.listens_for(engine, "before_cursor_execute")
    def _executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM product" in statement:
            with selects.get_lock():
                selects.value += 1

    client = redis.Redis.from_url(redis_url)
    SQLModelCache.configure(cached(client))

    def want() -> None:
        for _ in range(rounds + 1):
            everybody.wait(SECONDS)
            with Session(engine) as session:
                assert session.get(Product, 1) is not None
            everybody.wait(SECONDS)

    waiting = [threading.Thread(target=want) for _ in range(threads)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    SQLModelCache.reset()
    client.close()
    engine.dispose()
