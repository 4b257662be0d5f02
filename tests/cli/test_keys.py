"""`stats` and `top`: what is in Redis, seen by a bounded number of keys."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cli.commands import get, run, sqlite
from models import Badge, Gadget, Hero
from rich.console import Console
from servers import RedisCluster, RedisServer
from sqlmodel import Session, create_engine

from sqlmodel_cache import SQLModelCache, _keys
from sqlmodel_cache.cli import _sampling, _top

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with heroes 1 to 200."""
    return sqlite(tmp_path, heroes=200)


@pytest.fixture(scope="module")
def lfu() -> Iterator[RedisServer]:
    """A server that counts how often keys are read."""
    made = RedisServer(None, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu")
    yield made
    made.stop()


def test_stats_counts_each_table(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Rows and their memory, by table and database; others' keys are not among them."""
    get(database, redis_url, Hero, *range(1, 21))
    get(database, redis_url, Badge, "a", "b")
    get(database, redis_url, Hero, 1, key_prefix="other[*]")
    redis_client.set("sqlmodelcache:mine", "x")
    done = run("stats", "--json", REDIS_URL=redis_url)
    assert done.code == 0
    assert {table["table"]: table["rows"] for table in done.json["tables"]} == {"hero": 20, "badge": 2}
    hero = next(table for table in done.json["tables"] if table["table"] == "hero")
    keys = list(redis_client.keys("sqlmodelcache:{*/hero:*"))
    assert hero["bytes"] == sum(redis_client.memory_usage(key) or 0 for key in keys)
    assert hero["rows"] + hero["shards"] == len(keys)
    everything = len(redis_client.keys())
    assert done.json["sample"] == {"examined": everything, "keys": everything, "complete": True}
    [server] = done.json["servers"]
    assert server["keyspace_hits"] > 0
    assert server["used_memory"] > 0
    hits, misses = server["keyspace_hits"], server["keyspace_misses"]
    assert hits != misses
    assert server["hit_rate"] == round(hits / (hits + misses), 4)
    assert "SQLModelCache.stats()" in done.json["note"]
    other = run("stats", "--json", "--key-prefix", "other[*]", REDIS_URL=redis_url)
    assert [(table["table"], table["rows"]) for table in other.json["tables"]] == [("hero", 1)]


def test_stats_for_people(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """The same as a table; and what to look for where there is nothing."""
    empty = run("stats", REDIS_URL=redis_url)
    assert "are the key prefix and the database the right ones?" in empty.stdout
    get(database, redis_url, Hero, 1)
    done = run("stats", REDIS_URL=redis_url)
    assert [line.split()[0] for line in done.stdout.splitlines()][-3:-1] == ["table", "hero"]
    assert "SQLModelCache.stats()" in done.stdout


def test_strangers_keys_command_no_terminal(redis_url: str, redis_client: redis.Redis) -> None:
    """Below the prefix, but none that the library writes: what commands a terminal or turns its text, or no UTF-8."""
    redis_client.set(b"sqlmodelcache:{db/hero:1}:1", "V")
    for name in (b"\x1b[2J", b"a\nb", b"\xff", b"\x7f", "\x9b2J".encode(), "\u202e1".encode()):
        redis_client.set(b"sqlmodelcache:{db/hero:1}:" + name, "V")
        redis_client.set(b"sqlmodelcache:{" + name + b"/hero:1}:2", "V")
    [table] = run("stats", "--json", REDIS_URL=redis_url).json["tables"]
    assert (table["namespace"], table["rows"]) == ("db", 1)
    assert [row["pk"] for row in run("top", "--json", REDIS_URL=redis_url).json["largest"]] == ["1"]
    assert "\x1b" not in run("top", REDIS_URL=redis_url).stdout


def test_text_in_keys_commands_no_terminal() -> None:
    """Whatever character a primary key has, its text in a key is none that the commands would not show."""
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    assert _sampling.parsed(f"p:{{db/hero:1}}:{_keys.escape(text)}".encode()) is not None


def test_stats_knows_unique_keys(redis_url: str, redis_client: redis.Redis) -> None:
    """What leads from a unique key to a row is not a row."""
    redis_client.set("sqlmodelcache:{db/hero:1}:/email=abc", "V")
    redis_client.set("sqlmodelcache:{db/hero:1}:1:2", "V")
    [table] = run("stats", "--json", REDIS_URL=redis_url).json["tables"]
    assert (table["namespace"], table["rows"], table["unique_keys"]) == ("db", 1, 1)


def test_a_sample_is_bounded_and_extrapolated(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more keys are looked at than were asked for, and it says so."""
    redis_client.mset({f"sqlmodelcache:{{db/hero:{number % 16}}}:{number}": "V" for number in range(3_000)})
    monkeypatch.setattr(_sampling, "STEP", 100)
    done = run("stats", "--json", "--sample", 500, REDIS_URL=redis_url)
    assert done.json["sample"] == {"examined": 500, "keys": 3000, "complete": False}
    assert 2_000 < done.json["tables"][0]["rows"] < 4_000
    commands = redis_client.info("commandstats")
    assert "~" in run("stats", "--sample", 500, REDIS_URL=redis_url).stdout
    again = redis_client.info("commandstats")
    assert again["cmdstat_scan"]["calls"] - commands["cmdstat_scan"]["calls"] == 5


def test_what_sampling_takes(database: str) -> None:
    """A user without SCAN is told which permissions it takes; without the others, less is shown."""
    server = RedisServer()
    try:
        server.say("ACL", "SETUSER", "cache", "on", ">pw", "~*", "+mget", "+eval")
        url = f"redis://cache:pw@127.0.0.1:{server.port}"
        for command in ("stats", "top"):
            done = run(command, REDIS_URL=url)
            assert (done.code, len(done.stderr.splitlines())) == (2, 1)
            assert _sampling.PERMISSIONS in done.stderr
        server.say("ACL", "SETUSER", "cache", "+scan", "+dbsize")
        server.say("SET", "sqlmodelcache:{db/hero:1}:1", "V")
        [table] = run("stats", "--json", REDIS_URL=url).json["tables"]
        assert (table["rows"], table["bytes"]) == (1, None)
        top = run("top", "--json", REDIS_URL=url).json
        assert (len(top["largest"]), top["hottest"], top["by"]) == (1, [], None)
    finally:
        server.stop()


def test_the_documented_operator_may_sample(redis_url: str, database: str) -> None:
    """With the rules of the page, nothing is missing in what is shown; a key of others is not seen."""
    [rules] = re.findall(r"^ACL SETUSER operator (.*)$", PAGE.read_text(), re.MULTILINE)
    server = RedisServer()
    try:
        get(database, server.url, Hero, 1)
        server.say("ACL", "SETUSER", "operator", *rules.split())
        url = f"redis://operator:password@127.0.0.1:{server.port}"
        stats = run("stats", "--json", REDIS_URL=url).json
        assert None not in [*stats["servers"][0].values(), *stats["tables"][0].values()]
        [row] = run("top", "--json", REDIS_URL=url).json["hottest"]
        assert None not in (row["bytes"], row["idle_seconds"], row["ttl_seconds"])
    finally:
        server.stop()


def test_top_shows_the_largest(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """By memory; in the order of their size, with table, key and TTL."""
    engine = create_engine(database)
    with Session(engine) as session:
        session.add_all(Gadget(owner="[red]o", number=number, label="x" * number * 500) for number in range(1, 6))
        session.commit()
    engine.dispose()
    get(database, redis_url, Gadget, *(("[red]o", number) for number in range(1, 6)))
    get(database, redis_url, Hero, *range(1, 50))
    done = run("top", "--json", "-n", 3, REDIS_URL=redis_url)
    assert [row["table"] for row in done.json["largest"]] == ["gadget"] * 3
    assert [row["pk"] for row in done.json["largest"]] == ["[red]o:5", "[red]o:4", "[red]o:3"]
    assert all(200 < row["ttl_seconds"] <= 300 for row in done.json["largest"])
    assert (done.json["by"], len(done.json["hottest"])) == ("idle", 3)
    assert done.json["sample"]["complete"]
    shown = run("top", "-n", 3, REDIS_URL=redis_url)
    assert "gadget [red]o:5" in shown.stdout


def test_top_shows_the_hottest_where_reads_are_counted(lfu: RedisServer, database: str) -> None:
    """An LFU policy counts them; looking does not."""
    get(database, lfu.url, Hero, *range(1, 30))
    for _ in range(60):
        get(database, lfu.url, Hero, 7)
    done = run("top", "--json", "-n", 2, REDIS_URL=lfu.url)
    assert (done.json["by"], done.json["hottest"][0]["pk"]) == ("frequency", "7")
    assert done.json["hottest"][0]["frequency"] > done.json["hottest"][1]["frequency"]


def test_top_stays_until_it_is_interrupted(
    redis_url: str, redis_client: redis.Redis, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal it looks again and again; Ctrl-C ends it with 130."""
    get(database, redis_url, Hero, 1)
    screen = io.StringIO()
    monkeypatch.setattr(_top, "out", Console(file=screen, force_terminal=True, width=100))
    looks: list[Any] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            get(database, redis_url, Hero, 2)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(_top.time, "sleep", pause)
    done = run("top", "--interval", 0.5, REDIS_URL=redis_url)
    assert done.code == 130
    assert looks == [0.5, 0.5]
    assert "hero 2" in screen.getvalue()


def test_the_keys_of_a_cluster(cluster: RedisCluster, database: str) -> None:
    """Those of all primaries."""
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    words = ("models:Hero", "--database", database, "--cluster", "--transport", url, "--json")
    assert run("warm", *words).json["stored"] == 200
    done = run("stats", *words[3:])
    assert [(table["table"], table["rows"]) for table in done.json["tables"]] == [("hero", 200)]
    assert len(done.json["servers"]) == 3
    assert len(run("top", *words[3:], "-n", 200).json["largest"]) == 200
    assert SQLModelCache.get_config() is None
