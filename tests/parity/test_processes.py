"""Threads, and processes that are forked from one that has configured the library and used it."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import redis
from parity.looks import portrait
from parity.runner import Databases
from parity.zoo_sqlmodel import ZHero, ZTeam
from patient import PATIENCE
from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlmodel_cache import MemoryTransport, RedisSyncTransport, SQLModelCache


@pytest.fixture(params=["memory", "redis"])
def transport(request: pytest.FixtureRequest) -> Any:
    """Each transport."""
    if request.param == "memory":
        return MemoryTransport()
    client: redis.Redis = request.getfixturevalue("redis_client")
    return RedisSyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE)


def _portraits(engine: Engine) -> str:
    with Session(engine) as session:
        held = [session.get(ZHero, 1), session.get(ZTeam, 1), session.get(ZHero, 9)]
        return repr([portrait(each) for each in held])


def test_threads(databases: Databases, transport: Any) -> None:
    """Threads with a session each, and one scoped session, get what one thread gets."""
    truth = _portraits(databases.engine("truth"))
    SQLModelCache.configure(transport)
    engine = databases.engine("cached")
    scoped = scoped_session(sessionmaker(engine))
    seen: list[str] = []
    objects: list[Any] = []

    def read() -> None:
        for _ in range(10):
            seen.append(_portraits(engine))  # noqa: PERF401
        objects.append(scoped.get(ZHero, 1))
        seen.append(truth if scoped.get(ZHero, 1) is objects[-1] or len(objects) > 1 else "another object")
        scoped.remove()

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {truth}
    assert len({id(each) for each in objects}) == len(threads)
    assert SQLModelCache.stats().hits > 60
    engine.dispose()


def in_child(function: Callable[[], Any]) -> Any:
    """Return what a function returns in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer: Any = function()
        except BaseException:
            answer = traceback.format_exc()
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return answer


@pytest.mark.parametrize("used", [False, True], ids=["configured", "used"])
def test_fork(databases: Databases, transport: Any, used: bool) -> None:
    """As gunicorn with preload: the parent configures, perhaps reads and writes, and forks; both go on."""
    truth = _portraits(databases.engine("truth"))
    SQLModelCache.configure(transport)
    engine = databases.engine("cached")
    if used:
        _portraits(engine)
        with Session(engine) as session:
            session.add(ZTeam(id=80, name="by the parent"))
            session.commit()
        assert _portraits(engine) == truth
    engine.dispose()

    def child() -> Any:
        engine.dispose(close=False)
        before = SQLModelCache.stats()
        seen = [_portraits(engine) for _ in range(3)]
        after = SQLModelCache.stats()
        with Session(engine) as session:
            session.get_one(ZTeam, 1).name = f"by a child of {os.getppid()}"
            session.commit()
        with Session(engine) as session:
            return seen, after.hits - before.hits, session.get_one(ZTeam, 1).name

    for _ in range(2):
        with Session(engine) as session:
            session.get_one(ZTeam, 1).name = "t"
            session.commit()
        engine.dispose()
        answer = in_child(child)
        assert isinstance(answer, tuple), answer
        seen, hits, name = answer
        assert seen == [truth] * 3
        assert hits >= 3
        assert name == f"by a child of {os.getpid()}"
        if isinstance(transport, RedisSyncTransport):
            with Session(engine) as session:
                assert session.get_one(ZTeam, 1).name == name  # the parent hears of it
        else:
            SQLModelCache.invalidate_all(bind=engine)  # memory is one process's
    engine.dispose()
