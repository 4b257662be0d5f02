"""`doctor`: each thing that can be wrong is, on a real server, and is named with its remedy."""

from __future__ import annotations

import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel
from cli.commands import Done, run, sqlite
from models import Hero
from servers import RedisCluster, RedisSentinel, RedisServer

from sqlmodel_cache import NearCache, RedisAsyncTransport, RedisSyncTransport, SQLModelCache
from sqlmodel_cache.cli import _checks

SECURITY = (Path(__file__).parents[2] / "SECURITY.md").read_text()
[LINE] = re.findall(r"^ACL SETUSER cache (.*)$", SECURITY, re.MULTILINE)
RULES: list[str] = LINE.split()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server that a test may set up as it likes."""
    made = RedisServer()
    yield made
    made.stop()


@pytest.fixture
def sound(server: RedisServer) -> RedisServer:
    """The server, as it should be."""
    server.say("FLUSHALL")
    server.say("CONFIG", "SET", "maxmemory", "100mb")
    server.say("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    return server


class Clock:
    """A stand-in for `time`, by which every round trip takes as long as a test says."""

    def __init__(self) -> None:
        self.offset = 0.0  # seconds that this host's clock is off
        self.step = 0.001  # seconds between two looks at it
        self._ticks = 0.0

    def time(self) -> float:
        """Return the time of day."""
        return time.time() + self.offset

    def perf_counter(self) -> float:
        """Return a count of seconds."""
        self._ticks += self.step
        return self._ticks


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """No warning depends on how busy this machine is."""
    made = Clock()
    monkeypatch.setattr(_checks, "time", made)
    return made


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of an application, to be imported by the commands."""
    module = types.ModuleType("cli_application")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def checks(done: Done) -> dict[str, dict[str, Any]]:
    """Return the checks by name; of several servers', the last."""
    return {check["name"]: check for check in done.json["checks"]}


def wrong(done: Done) -> dict[str, str]:
    """Return what is not as it should be, with its status."""
    return {name: check["status"] for name, check in checks(done).items() if check["status"] != "ok"}


def test_all_is_well(sound: RedisServer, tmp_path: Path) -> None:
    """Exit code 0, a line for each check, and no key is left behind for longer than a second."""
    words = ("doctor", "models:Hero", "--database", sqlite(tmp_path), "--transport", sound.url)
    done = run(*words)
    assert (done.code, done.stderr) == (0, "")
    assert [line.split()[1].rstrip(":") for line in done.stdout.splitlines()[:-1]] == [
        *("packages", "version", "permissions", "writes", "protocol", "clock", "latency", "eviction", "replication"),
        *("tracking", "database", "database", "model"),
    ]
    found = run(*words, "--json")
    assert found.json["status"] == "ok"
    assert set(found.json["checks"][0]) == {"name", "status", "detail", "remedy", "server", "unreachable"}
    with redis.Redis(port=sound.port) as client:
        assert all(client.pttl(key) <= 1000 for key in client.keys("*"))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule[0] in "+~" and rule != "+info"])
def test_each_missing_permission_is_named(sound: RedisServer, rule: str) -> None:
    """What SECURITY.md says is needed is what `doctor` misses, and the remedy is the very rule."""
    sound.say("ACL", "SETUSER", "cache", "reset", *(each for each in RULES if each != rule), "+info")
    done = run("doctor", "--json", "--transport", f"redis://cache:password@127.0.0.1:{sound.port}")
    assert done.code == 2
    assert checks(done)["permissions"]["remedy"] == f"ACL SETUSER cache {rule}"


def test_the_documented_user_is_enough_but_for_info(sound: RedisServer) -> None:
    """A warning says what INFO is for."""
    sound.say("ACL", "SETUSER", "cache", "reset", *RULES)
    done = run("doctor", "--json", "--transport", f"redis://cache:password@127.0.0.1:{sound.port}")
    assert done.code == 1
    assert wrong(done) == {"version": "warning", "permissions": "warning"}
    assert "+info" in checks(done)["permissions"]["remedy"]
    assert "not possible" in checks(done)["tracking"]["detail"]


def test_a_wrong_password_is_no_outage(sound: RedisServer) -> None:
    """It is to be mended: 2, not 3. The password is not repeated."""
    url = f"redis://cache:wrong@127.0.0.1:{sound.port}"
    for command in ("doctor", "stats"):
        done = run(command, "--transport", url)
        assert done.code == 2
        assert "wrong@" not in done.stdout + done.stderr


def test_nobody_there() -> None:
    """One line, and 3."""
    done = run("doctor", "--json", "--transport", "redis://:secret@127.0.0.1:1")
    assert done.code == 3
    assert wrong(done) == {"connection": "failure"}
    assert "secret" not in done.stdout


def test_memory_that_is_not_bounded_or_refuses(sound: RedisServer) -> None:
    """No maxmemory, noeviction, and full."""
    sound.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    done = run("doctor", "--json", "--transport", sound.url)
    assert (done.code, wrong(done)) == (1, {"eviction": "warning"})
    assert "when it is full" in checks(done)["eviction"]["remedy"]
    sound.say("CONFIG", "SET", "maxmemory", "1")
    full = run("doctor", "--json", "--transport", sound.url)
    assert full.code == 2
    assert wrong(full)["writes"] == "failure"
    assert "allkeys-lru" in checks(full)["writes"]["remedy"]
    sound.say("CONFIG", "SET", "maxmemory", "0")
    unbound = run("doctor", "--json", "--transport", sound.url)
    assert (unbound.code, wrong(unbound)) == (1, {"eviction": "warning"})


def test_a_replica_is_not_the_server_to_give(sound: RedisServer) -> None:
    """Neither its role nor its refusals go unseen."""
    sound.say("REPLICAOF", "127.0.0.1", "1")
    try:
        done = run("doctor", "--json", "--transport", sound.url)
    finally:
        sound.say("REPLICAOF", "NO", "ONE")
    assert done.code == 2
    assert wrong(done) == {"writes": "failure", "replication": "failure"}
    assert "master" in checks(done)["writes"]["remedy"]


def test_a_clock_that_is_off(sound: RedisServer, clock: Clock) -> None:
    """A warning; a failure where payloads are sealed with their expiry."""
    clock.offset = 90
    done = run("doctor", "--json", "--transport", sound.url)
    assert (done.code, wrong(done)) == (1, {"clock": "warning"})
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    sealed = run("doctor", "--json", "--transport", sound.url, SQLMODEL_CACHE_ENCRYPTION_KEY=key)
    assert (sealed.code, wrong(sealed)) == (2, {"clock": "failure"})


def test_what_the_application_asks_for(sound: RedisServer, application: Any, clock: Clock) -> None:
    """`--app` runs its configure(): replicas that are not there, a near cache that may not listen, a time-out."""

    def configure() -> None:
        client = redis.asyncio.Redis(port=sound.port, username="cache", password="password")
        SQLModelCache.configure(RedisAsyncTransport(client), wait_replicas=1, near_cache=NearCache(), timeout=0.1)

    sound.say("ACL", "SETUSER", "cache", "reset", *RULES, "+info")
    application.configure = configure
    clock.step = 0.03
    done = run("doctor", "--json", "--app", "cli_application:configure")
    assert done.code == 2
    assert checks(done)["permissions"]["remedy"] == "ACL SETUSER cache +wait"
    assert wrong(done) == {
        "permissions": "failure",
        "replication": "failure",
        "tracking": "failure",
        "latency": "warning",
    }


def test_a_cluster_is_looked_at_node_by_node(cluster: RedisCluster) -> None:
    """Every primary; and a client that takes one for a server is told."""
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    done = run("doctor", "--json", "--cluster", "--transport", url)
    assert (done.code, wrong(done)) == (1, {"eviction": "warning"})
    names = [(check["name"], check["server"]) for check in done.json["checks"]]
    assert len({server for name, server in names if name in ("protocol", "cluster")}) == 3
    alone = run("doctor", "--json", "--transport", url)
    assert alone.code == 2
    assert "--cluster" in checks(alone)["cluster"]["remedy"]


def test_a_sentinels_master(sentinel: RedisSentinel, application: Any) -> None:
    """The application's own client leads to it."""

    def configure() -> None:
        SQLModelCache.configure(
            RedisSyncTransport(redis.sentinel.Sentinel(sentinel.addresses).master_for(sentinel.NAME))
        )

    application.configure = configure
    done = run("doctor", "--json", "--app", "cli_application:configure")
    assert (done.code, wrong(done)) == (1, {"eviction": "warning"})
    assert checks(done)["replication"]["detail"].startswith("master, 1 replicas")


def test_databases(sound: RedisServer, postgres_url: str) -> None:
    """PostgreSQL by either driver has the same name in keys; one that is not there is 3."""
    names = set()
    for driver in ("postgresql+psycopg", "postgresql+asyncpg"):
        url = driver + postgres_url[postgres_url.index("://") :]
        done = run("doctor", "--json", "--transport", sound.url, DATABASE_URL=url)
        assert (done.code, wrong(done)) == (0, {}), done.stdout
        names.add(checks(done)["database name"]["detail"])
    assert len(names) == 1
    gone = run("doctor", "--json", "--transport", sound.url, "--database", "postgresql+psycopg://127.0.0.1:1/x")
    assert (gone.code, wrong(gone)) == (3, {"database": "failure"})


def test_models(sound: RedisServer) -> None:
    """What is not cached is told with the reason."""
    done = run("doctor", "models:Plain", f"{Hero.__module__}:Hero", "--json", "--transport", sound.url)
    assert (done.code, wrong(done)) == (1, {"model models:Plain": "warning"})
    assert "no __cache_config__" in checks(done)["model models:Plain"]["detail"]
