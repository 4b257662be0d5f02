"""`inspect`: it says of each state of a row what a get then does."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import redis
from cli.commands import Done, get, rows_in, run, sqlite
from models import Badge, Gadget, Hero
from servers import RedisCluster, RedisServer
from sqlalchemy import make_url
from sqlmodel import Session, SQLModel, create_engine
from transport.topologies import client_of, close

from sqlmodel_cache import RedisSyncTransport, SQLModelCache
from sqlmodel_cache._effects import Begin, Entry, Keys, Lease

KEY = base64.b64encode(os.urandom(32)).decode()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with a hero, 1."""
    return sqlite(tmp_path, heroes=1)


def look(redis_url: str, database: str, *words: object, **environment: str) -> Done:
    """Inspect hero 1, or what the words say."""
    words = words or ("models:Hero", 1)
    return run("inspect", *words, "--database", database, "--json", REDIS_URL=redis_url, **environment)


def test_a_value(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """All that there is to know of it, and exit code 0."""
    get(database, redis_url, Hero, 1)
    done = look(redis_url, database)
    found = done.json
    assert done.code == 0
    assert (found["state"], found["hit"]) == ("value", True)
    assert found["columns"] == {"id": 1, "name": "hero 1", "age": 1, "team_id": None}
    assert [found["key"]] == rows_in(redis_client)
    assert found["table_key"] == found["key"].rpartition(":")[0]
    assert 500 < found["ttl_seconds"] <= 600
    assert found["bytes"] == len(redis_client.get(found["key"]) or b"")
    assert found["memory_bytes"] == redis_client.memory_usage(found["key"])
    assert [(each["kind"], each["model"]) for each in found["shapes"]] == [("row", "models:Hero")]
    assert get(database, redis_url, Hero, 1) == 1


def test_text_says_the_same(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """For people; --no-columns keeps values off the screen."""
    get(database, redis_url, Hero, 1)
    words = ("inspect", "models:Hero", 1, "--database", database)
    shown = run(*words, REDIS_URL=redis_url)
    assert "state    value: a get is a hit" in shown.stdout
    assert "column   name = 'hero 1'" in shown.stdout
    assert "hero 1'" not in run(*words, "--no-columns", REDIS_URL=redis_url).stdout


def test_nothing(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Exit code 1; and so for what is not the library's."""
    done = look(redis_url, database)
    assert (done.code, done.json["state"], done.json["shapes"]) == (1, "nothing", [])
    redis_client.set(done.json["key"], "something")
    assert look(redis_url, database).json["state"] == "nothing"


def test_absence(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """A get would be a hit that finds no row."""
    get(database, redis_url, Badge, "x y/z")
    done = look(redis_url, database, "models:Badge", "x y/z")
    assert (done.code, done.json["state"], done.json["hit"], done.json["columns"]) == (0, "absent", True, None)


@pytest.mark.parametrize(("model", "pk"), [(Badge, "ü: {✓}/%,\\"), (Badge, " "), (Gadget, ("a:b ü", 7))], ids=str)
def test_keys_are_spelled_as_they_are(
    redis_url: str, redis_client: redis.Redis, database: str, model: type, pk: Any
) -> None:
    """Separators, spaces, other alphabets, several columns: the row that the application has, and no other."""
    texts = [str(part) for part in (pk if isinstance(pk, tuple) else (pk,))]
    engine = create_engine(database)
    with Session(engine) as session:
        session.add(Badge(code=pk, label="x") if model is Badge else Gadget(owner=pk[0], number=pk[1]))
        session.commit()
    engine.dispose()
    name = f"models:{model.__name__}"
    get(database, redis_url, model, pk)
    assert look(redis_url, database, name, *texts).json["hit"]
    assert get(database, redis_url, model, pk) == 1
    assert run("invalidate", name, *texts, "--database", database, REDIS_URL=redis_url).code == 0
    assert look(redis_url, database, name, *texts).json["state"] == "leased"
    assert get(database, redis_url, model, pk) == 0


def test_invalidated(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """By its row, and by its table."""
    for words, state in ((("models:Hero", 1), "leased"), (("models:Hero",), "outdated")):
        get(database, redis_url, Hero, 1)
        assert run("invalidate", *words, "--yes", "--database", database, REDIS_URL=redis_url).code == 0
        done = look(redis_url, database)
        assert (done.code, done.json["state"], done.json["hit"]) == (1, state, False)
        assert get(database, redis_url, Hero, 1) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_a_commit_in_flight(redis_url: str, redis_client: redis.Redis, database: str, whole: bool) -> None:
    """Of the row or of its table: how long it may take at most."""
    get(database, redis_url, Hero, 1)
    found = look(redis_url, database).json
    keys = Keys((), (found["table_key"],)) if whole else Keys((found["key"],), ())
    transport = RedisSyncTransport(redis_client)
    transport.execute(Begin(keys, os.urandom(16), 60_000))
    transport.close()
    done = look(redis_url, database)
    assert (done.code, done.json["state"]) == (1, "fenced")
    assert "at most" in done.json["reason"]


def test_a_reader_is_about_to_fill(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """An election is told from an invalidation."""
    get(database, redis_url, Hero, 1)
    run("invalidate", "models:Hero", 1, "--database", database, REDIS_URL=redis_url)
    invalidated = look(redis_url, database).json
    entry = Entry(invalidated["key"], invalidated["table_key"])
    transport = RedisSyncTransport(redis_client)
    transport.execute(Lease(entry, b"12345678", os.urandom(16), elect_ms=60_000))
    transport.close()
    done = look(redis_url, database)
    assert (done.json["state"], "about to fill" in done.json["reason"]) == ("leased", True)
    assert "about to fill" not in invalidated["reason"]


def test_another_servers_value(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """What was restored is no hit, and is not called one."""
    get(database, redis_url, Hero, 1)
    redis_client.setrange(look(redis_url, database).json["table_key"], 1, "0" * 16)
    done = look(redis_url, database)
    assert (done.code, done.json["state"]) == (1, "outdated")
    assert "started" in done.json["reason"]
    assert get(database, redis_url, Hero, 1) == 0


def test_encryption(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """Without the key, that it is encrypted; with it, the columns."""
    get(database, redis_url, Hero, 1, encryption_key=KEY)
    done = look(redis_url, database)
    assert (done.code, done.json["hit"], done.json["columns"]) == (1, False, None)
    assert [each["kind"] for each in done.json["shapes"]] == ["encrypted"]
    opened = look(redis_url, database, SQLMODEL_CACHE_ENCRYPTION_KEY=KEY)
    assert (opened.code, opened.json["columns"]["name"]) == (0, "hero 1")
    newer = base64.b64encode(os.urandom(32)).decode()
    rotated = look(redis_url, database, SQLMODEL_CACHE_ENCRYPTION_KEY=f"{newer},{KEY}")
    assert rotated.json["columns"]["name"] == "hero 1"


def test_hashed_keys(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """They are found, too; during a rollout under each name."""
    get(database, redis_url, Hero, 1, hash_keys=True)
    words = ("models:Hero", 1, "--hash-keys")
    assert look(redis_url, database).code == 1
    assert look(redis_url, database, *words, "yes").json["state"] == "value"
    assert [each["state"] for each in look(redis_url, database, *words, "rollout").json] == ["nothing", "value"]


def test_another_release(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """A payload that this process cannot have stored is not decoded."""
    get(database, redis_url, Hero, 1)
    key = look(redis_url, database).json["key"]
    redis_client.setrange(key, 26, "otherone")  # the fingerprint
    done = look(redis_url, database)
    assert (done.code, done.json["state"], done.json["hit"]) == (1, "value", False)
    assert [each["kind"] for each in done.json["shapes"]] == ["other"]


def test_a_key_of_several_columns(redis_url: str, redis_client: redis.Redis, database: str) -> None:
    """One word for each, of each column's own type."""
    engine = create_engine(database)
    with Session(engine) as session:
        session.add(Gadget(owner="a b", number=-7, label="x"))
        session.commit()
    engine.dispose()
    get(database, redis_url, Gadget, ("a b", -7))
    words = ("models:Gadget", "--namespace", "mine", "--", "a b", -7)
    base = ("inspect", "--database", database, "--json", *words)
    assert run(*base, REDIS_URL=redis_url).code == 1  # another namespace than the one that was filled
    done = run(*(word for word in base if word not in ("--namespace", "mine")), REDIS_URL=redis_url)
    assert (done.code, done.json["columns"]["label"]) == (0, "x")


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"])
def test_postgresql_by_the_applications_driver(
    redis_url: str, redis_client: redis.Redis, postgres_url: str, driver: str
) -> None:
    """What a driver has warmed is found by it; a condition may have casts and percent signs."""
    database = make_url(postgres_url)
    plain = create_engine(database.set(drivername="postgresql+psycopg"))
    SQLModel.metadata.drop_all(plain)
    SQLModel.metadata.create_all(plain)
    with Session(plain) as session:
        session.add_all([Hero(id=1, name="Rusty"), Hero(id=2, name="12:30")])
        session.commit()
    url = database.set(drivername=driver).render_as_string(hide_password=False)
    where = "name::text LIKE 'Ru%' OR name = '12:30'"
    warmed = run("warm", "models:Hero", "--database", url, "--where", where, "--json", REDIS_URL=redis_url)
    assert (warmed.code, warmed.json["stored"]) == (0, 2)
    done = look(redis_url, url)
    assert (done.code, done.json["columns"]["name"]) == (0, "Rusty")
    SQLModel.metadata.drop_all(plain)
    plain.dispose()


def test_cluster(cluster: RedisCluster, database: str) -> None:
    """The node that has the key is asked."""
    client = client_of(cluster)
    SQLModelCache.configure(RedisSyncTransport(client), timeout=30, commit_timeout=30)
    engine = create_engine(database)
    with Session(engine) as session:
        session.get(Hero, 1)
    SQLModelCache.reset()
    engine.dispose()
    close(client)
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    words = ("inspect", "models:Hero", 1, "--cluster", "--transport", url, "--database", database, "--json")
    done = run(*words)
    assert (done.code, done.json["state"]) == (0, "value")


def test_a_user_that_may_do_no_more_than_the_library(redis_url: str, database: str) -> None:
    """INFO and MEMORY are left out, nothing else."""
    server = RedisServer()
    try:
        rules = "on >pw ~* +mget +eval +evalsha +get +set +pexpire +pttl +time"
        server.say("ACL", "SETUSER", "cache", *rules.split())
        url = f"redis://cache:pw@127.0.0.1:{server.port}"
        get(database, url, Hero, 1)
        done = look(url, database)
        assert (done.code, done.json["memory_bytes"]) == (0, None)
    finally:
        server.stop()
