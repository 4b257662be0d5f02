"""Readers of one row in processes of their own.

together DATABASE_URL REDIS_URL PK PROCESSES THREADS   forks processes whose threads get the row at the same moment,
                                                       and prints the names found and the SELECTs sent, as JSON
stalls DATABASE_URL REDIS_URL PK                       prints "selecting" when it is about to send its SELECT, sends
                                                       it when it reads a line, and prints the name found
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
from models import Hero
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

PATIENCE = 60


def prepared(database_url: str, redis_url: str, selecting: Any) -> Engine:
    """Configure this process; `selecting` is called before each SELECT of a hero that exists."""
    transport = RedisSyncTransport(redis.Redis.from_url(redis_url), timeout=PATIENCE, commit_timeout=PATIENCE)
    SQLModelCache.configure(transport, fill_wait=PATIENCE)
    engine = create_engine(database_url)
    with Session(engine) as session:
        session.get(Hero, -1)  # from now on it knows which database it is

    @event.listens_for(engine, "before_cursor_execute")
    def _executed(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM hero" in statement:
            selecting()

    return engine


def name_of(engine: Engine, pk: int) -> str | None:
    """Return the name of a hero."""
    with Session(engine) as session:
        hero = session.get(Hero, pk)
        return None if hero is None else hero.name


def read(database_url: str, redis_url: str, pk: int, threads: int, start: Any, results: Any) -> None:
    """Get the row in several threads once everybody is ready."""
    selects: list[None] = []
    names: list[str | None] = []
    engine = prepared(database_url, redis_url, lambda: selects.append(None))

    def get() -> None:
        start.wait(PATIENCE)
        names.append(name_of(engine, pk))

    running = [threading.Thread(target=get) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    results.put((names, len(selects)))


def together(database_url: str, redis_url: str, pk: str, processes: str, threads: str) -> None:
    """Print what all of them have found."""
    fork: Any = multiprocessing.get_context("fork")
    start, results = fork.Barrier(int(processes) * int(threads)), fork.Queue()
    arguments = (database_url, redis_url, int(pk), int(threads), start, results)
    children = [fork.Process(target=read, args=arguments) for _ in range(int(processes))]
    for child in children:
        child.start()
    found = [results.get(timeout=PATIENCE) for _ in children]
    for child in children:
        child.join()
    names = [name for some, _ in found for name in some]
    print(json.dumps({"names": names, "selects": sum(count for _, count in found)}))


def stalls(database_url: str, redis_url: str, pk: str) -> None:
    """Stop before the SELECT."""

    def selecting() -> None:
        print("selecting", flush=True)
        sys.stdin.readline()

    print(name_of(prepared(database_url, redis_url, selecting), int(pk)), flush=True)


if __name__ == "__main__":
    {"together": together, "stalls": stalls}[sys.argv[1]](*sys.argv[2:])
