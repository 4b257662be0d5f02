"""A process whose children change a row and stop at a point of their commit, to be killed there.

For each line of its input, five words (POINT with "_" for a space, KIND, DATABASE_URL, REDIS_URL, PRIMARY_KEY), it
forks a child and prints the child's process id. The child prints the point when it has reached it. When the child has
been killed, "gone" is printed. KIND is `row` or `table`: how much the commit fences.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg  # noqa: F401  imported once, before the forks
import psycopg  # noqa: F401
import redis
from crash.points import watch_commit, watched
from models import Hero
from sqlalchemy import Engine, make_url, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlmodel import Session, create_engine

from sqlmodel_cache import RedisSyncTransport, SQLModelCache


def serve() -> None:
    """Fork a child for every line of input."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            commit_until(*line.split())
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)


def commit_until(point: str, kind: str, database_url: str, redis_url: str, pk: str) -> None:
    """Change the row, and stop at the point for good."""

    def reach(reached: str) -> None:
        if reached == point.replace("_", " "):
            print(reached, flush=True)
            while True:
                signal.pause()

    transport = RedisSyncTransport(redis.Redis.from_url(redis_url), timeout=20, commit_timeout=20)
    SQLModelCache.configure(watched(transport, reach), async_transport=watched(transport.twin(), reach))
    url = make_url(database_url)
    if url.drivername.endswith("asyncpg"):
        engine = create_async_engine(url).sync_engine
        watch_commit(engine, reach)
        asyncio.run(greenlet_spawn(write, engine, kind, int(pk)))
    else:
        engine = create_engine(url)
        watch_commit(engine, reach)
        write(engine, kind, int(pk))


def write(engine: Engine, kind: str, pk: int) -> None:
    """Change the row and commit."""
    with Session(engine) as session:
        if kind == "row":
            session.get_one(Hero, pk).name = "New"
        else:
            session.execute(update(Hero).where(Hero.name == "Rusty").values(name="New"))  # type: ignore[arg-type]
        session.commit()


if __name__ == "__main__":
    serve()
