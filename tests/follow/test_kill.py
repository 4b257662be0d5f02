"""SIGKILL and SIGSTOP of followers, in processes of their own: nothing is lost, and another takes over."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from follow.conftest import PATIENCE, Following, catch_up, eventually
from follow.process import NOWHERE, POINTS
from models import add_hero, get_hero
from sqlalchemy import Engine

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

ROOT = Path(__file__).parents[2]


@contextmanager
def process(point: str, database: Engine, redis_url: str, *, first: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Yield a follower that has caught up, if it is the first, and stops when it reaches the point."""
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, str(Path(__file__).with_name("process.py")), point, url, redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        overdue = threading.Timer(2 * PATIENCE, running.kill)
        overdue.start()
        try:
            if first:
                hear(running, "leads")
            yield running
        finally:
            running.kill()
            overdue.cancel()


def hear(running: subprocess.Popen[str], line: str) -> None:
    """Wait until a process has said something."""
    assert running.stdout is not None
    for said in running.stdout:
        if said.strip() == line:
            return
    raise AssertionError(f"the follower has ended without {line!r}")


@pytest.fixture
def pks(database: Engine, redis_client: redis.Redis) -> list[int]:
    """Three rows, cached in Redis, of a database that can be followed."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    added = [add_hero(database) for _ in range(3)]
    SQLModelCache.follower(database).source.setup()
    return added


@pytest.mark.parametrize("point", POINTS)
def test_follower_killed_at_a_point_has_lost_nothing(
    database: Engine, outside: psycopg.Connection[Any], redis_url: str, pks: list[int], point: str
) -> None:
    """Whoever follows next invalidates what the one before had not, at whatever step it was killed."""
    with process(point, database, redis_url) as killed, process(NOWHERE, database, redis_url, first=False) as successor:
        # One that knows other models would begin by invalidating everything, and prove nothing.
        for pk in pks * 2:
            get_hero(database, pk)
        assert SQLModelCache.stats().hits >= 3
        outside.execute("UPDATE hero SET name = 'new'")
        hear(killed, point)
        names = [get_hero(database, pk).name for pk in pks]
        expected = {"changes read": 3, "partly invalidated": 2}.get(point, 0)
        assert names.count("Rusty") == expected
        killed.kill()
        killed.wait()
        outside.execute("UPDATE hero SET age = 1")
        hear(successor, "leads")
        catch_up(outside)
        assert [get_hero(database, pk).name for pk in pks] == ["new"] * 3
        assert [get_hero(database, pk).age for pk in pks] == [1] * 3
        successor.send_signal(signal.SIGUSR1)
        hear(successor, "tables 0")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_another_takes_over_within_five_seconds(
    database: Engine, outside: psycopg.Connection[Any], redis_url: str, pks: list[int], number: signal.Signals
) -> None:
    """One that is killed lets go at once; one that is frozen has not said for a while that it lives."""
    with process("changes read", database, redis_url) as first:
        waiting = Following(SQLModelCache.follower(database))
        try:
            eventually(lambda: waiting.follower.source._replication is not None)
            assert not waiting.leads()
            first.send_signal(number)
            assert eventually(waiting.leads) < 5
            get_hero(database, pks[0])
            outside.execute("UPDATE hero SET name = 'new'")
            catch_up(outside)
            assert get_hero(database, pks[0]).name == "new"
        finally:
            waiting.stop()


def test_many_kills_while_others_write_lose_nothing(database: Engine) -> None:
    """The soak program, shortly; `make soak` changes a million rows and kills twenty followers."""
    command = [sys.executable, "-m", "soak.following", "--changes", "6000", "--kills", "3", "--seed", "1"]
    command += ["--database", database.url.set(drivername="postgresql").render_as_string(hide_password=False)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    figures = dict(re.findall(r"^(\D+?) +([\d,]+)$", done.stdout, re.MULTILINE))
    assert figures["changes by others"] == "6,000"
    assert (figures["followers killed"], figures["lost invalidations"]) == ("3", "0")
