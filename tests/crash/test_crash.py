"""SIGKILL at every point between the flush and the release: no stale row, then or later, and no row stuck.

Deadlines lapse where the test says: they are rewritten in Redis, in the layout of `lua/marks.lua`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from crash.points import COMMITTED, FENCED, POINTS
from crash.rows import hits_of, lapse, name_of
from models import add_hero
from sqlalchemy import Engine

from sqlmodel_cache import RedisSyncTransport, SQLModelCache


class Writers:
    """Starts writers that stop at a point of their commit."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    @contextmanager
    def at(self, point: str, kind: str, engine: Engine, redis_url: str, pk: int) -> Iterator[Callable[[], None]]:
        """Yield, when a writer has reached the point, what kills it; it is killed in any case."""
        url = engine.url.render_as_string(hide_password=False)
        self._say(f"{point.replace(' ', '_')} {kind} {url} {redis_url} {pk}")
        child = int(self._hear())
        alive = True

        def kill() -> None:
            nonlocal alive
            if alive:
                os.kill(child, signal.SIGKILL)
                assert self._hear() == "gone"
                alive = False

        try:
            assert self._hear() == point
            yield kill
        finally:
            kill()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    """Writers, forked from one process so that each starts at once."""
    command = [sys.executable, str(Path(__file__).with_name("writer.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Writers(process)


@pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)
@pytest.mark.parametrize("kind", ["row", "table"])
@pytest.mark.parametrize("point", POINTS)
def test_writer_killed_at_a_point_leaves_no_stale_row(
    engine: Engine, redis_url: str, redis_client: redis.Redis, writers: Writers, point: str, kind: str
) -> None:
    """Readers see what the database has, before and after the kill; a fence holds until its deadline, no longer."""
    pk = add_hero(engine)
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=20, commit_timeout=20))
    assert hits_of(engine, pk) == 1
    expected = "New" if point in COMMITTED else "Rusty"
    with writers.at(point, kind, engine, redis_url, pk) as kill:
        assert name_of(engine, pk) == expected
        kill()
        assert name_of(engine, pk) == expected
        if point in FENCED:
            assert hits_of(engine, pk) == 0
            assert SQLModelCache.stats().fenced == 4
            assert lapse(redis_client) > 0
    assert name_of(engine, pk) == expected
    assert hits_of(engine, pk) == 2
