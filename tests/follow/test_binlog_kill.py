"""SIGKILL and SIGSTOP of followers of a binary log, in processes of their own: nothing is lost."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
import redis
from follow.conftest import PATIENCE, Following, eventually
from follow.maria import Place
from follow.process import NOWHERE
from follow.test_kill import ROOT, hear, process
from models import add_hero, get_hero

from sqlmodel_cache import RedisSyncTransport, SQLModelCache


@pytest.fixture
def pks(place: Place, redis_client: redis.Redis) -> list[int]:
    """Three rows, cached in Redis, of a database that can be followed."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    added = [add_hero(place.engine) for _ in range(3)]
    SQLModelCache.follower(place.engine).source.setup()
    return added


@pytest.mark.parametrize(("point", "left"), [("changes read", 3), ("all invalidated", 0)])
def test_follower_killed_at_a_point_has_lost_nothing(
    place: Place, redis_url: str, pks: list[int], point: str, left: int
) -> None:
    """Whoever follows next invalidates what the one before had not, at whatever step it was killed."""
    with process(point, place.engine, redis_url) as killed:
        waiting = Following(SQLModelCache.follower(place.engine))
        try:
            for pk in pks * 2:
                get_hero(place.engine, pk)
            assert SQLModelCache.stats().hits >= 3
            place.write("UPDATE hero SET name = 'new'")
            hear(killed, point)
            names = [place.name_of(pk) for pk in pks]
            assert names.count("Rusty") == left
            assert not waiting.leads()
            killed.kill()
            killed.wait()
            place.write("UPDATE hero SET age = 1")
            assert eventually(waiting.leads) < 5
            place.catch_up()
            assert [(place.name_of(pk), get_hero(place.engine, pk).age) for pk in pks] == [("new", 1)] * 3
            assert waiting.stats.tables == 0
        finally:
            waiting.stop()


def test_another_takes_over_from_one_that_is_frozen(place: Place, redis_url: str, pks: list[int]) -> None:
    """It has not said for a while that it lives: its session ends, and with it the lock."""
    with process(NOWHERE, place.engine, redis_url) as first:
        waiting = Following(SQLModelCache.follower(place.engine))
        try:
            eventually(lambda: waiting.follower.source._sql is not None)
            assert not waiting.leads()
            first.send_signal(signal.SIGSTOP)
            assert eventually(waiting.leads) < 5
            get_hero(place.engine, pks[0])
            place.write("UPDATE hero SET name = 'new'")
            place.catch_up()
            assert place.name_of(pks[0]) == "new"
        finally:
            waiting.stop()


def test_many_kills_while_others_write_lose_nothing(place: Place, redis_url: str) -> None:
    """The soak program, shortly, on this database."""
    command = [sys.executable, "-m", "soak.following", "--changes", "6000", "--kills", "3", "--seed", "1"]
    done = subprocess.run(
        [*command, "--database", place.server.url], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    figures = dict(re.findall(r"^(\D+?) +([\d,]+)$", done.stdout, re.MULTILINE))
    assert figures["changes by others"] == "6,000"
    assert (figures["followers killed"], figures["lost invalidations"]) == ("3", "0")
