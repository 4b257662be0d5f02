"""A near cache in front of encrypted values under hashed keys: it holds what has been opened, and nothing else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import redis
from near.rows import add_stars, get_star, near, resize, until, warm
from near.test_near import LONG, SQLITE, ask, other_process
from patient import PATIENCE
from sqlalchemy import Engine

from sqlmodel_cache import SQLModelCache

OLD, NEW = (base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))


def configure(redis_url: str, *keys: str, hash_keys: bool = True, **options: Any) -> None:
    """Begin as a process does that has these keys; nothing is near yet."""
    options |= {"near_cache": LONG, "encryption_key": list(keys), "hash_keys": hash_keys}
    SQLModelCache.configure(redis_url, commit_timeout=PATIENCE, **options)


def stored(client: redis.Redis) -> list[bytes]:
    """Return the values in Redis."""
    held = [client.get(key) for key in client.keys("*}:*")]
    return [value for value in held if value is not None and value[:1] == b"V"]


def near_payloads() -> list[bytes]:
    """Return what is held in this process."""
    return [bytes(held.payload) for held in near()._rows.values()]


BOTH_KINDS = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)


@BOTH_KINDS
def test_hits_and_commits(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Near rows are plain, those of Redis are not; a commit evicts them by their hashed keys."""
    configure(redis_url, OLD)
    add_stars(engine)
    warm(engine)
    assert [b"Star 1" in payload for payload in near_payloads()] == [True]
    assert [b"Star 1" in value for value in stored(redis_client)] == [False]
    resize(engine, 5)
    assert get_star(engine).size == 5
    warm(engine)
    assert SQLModelCache.stats().corrupt == 0


@SQLITE
def test_commits_of_another_process(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Redis tells the hashed keys, and who has the secret knows which of his rows they are."""
    configure(redis_url, OLD)
    add_stars(engine)
    warm(engine)
    with other_process(engine, redis_url, OLD) as process:
        ask(process, "7")
        until(lambda: get_star(engine).size == 7)
    warm(engine)
    assert SQLModelCache.stats().corrupt == 0


@SQLITE
@pytest.mark.parametrize("hash_keys", [False, True])
def test_rotation(engine: Engine, redis_url: str, redis_client: redis.Redis, hash_keys: bool) -> None:
    """Each step has near what the one before has sealed; with hashed keys, the one that changes their secret misses."""
    configure(redis_url, OLD, hash_keys=hash_keys)
    add_stars(engine)
    warm(engine)
    for step, misses in (([OLD, NEW], 0), ([NEW, OLD], int(hash_keys))):
        configure(redis_url, *step, hash_keys=hash_keys)
        warm(engine)
        assert (SQLModelCache.stats().misses, SQLModelCache.stats().corrupt) == (misses, 0)
    resize(engine, 9)  # sealed by the new key from now on
    warm(engine)
    configure(redis_url, NEW, hash_keys=hash_keys)
    warm(engine)
    assert get_star(engine).size == 9
    assert (SQLModelCache.stats().misses, SQLModelCache.stats().corrupt) == (0, 0)


@SQLITE
def test_what_does_not_open_is_replaced(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Without the key that it was sealed with, a row is read from the database, sealed anew, and near again."""
    configure(redis_url, OLD, hash_keys=False)
    add_stars(engine)
    warm(engine)
    configure(redis_url, NEW, hash_keys=False)
    assert get_star(engine).name == "Star 1"
    assert SQLModelCache.stats().corrupt == 1
    warm(engine)
    assert SQLModelCache.stats().corrupt == 1


@SQLITE
def test_what_is_too_large_is_never_near(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """What another process was allowed to store is asked for each time: nothing stands near in its place."""
    configure(redis_url, OLD)
    add_stars(engine)
    warm(engine)
    configure(redis_url, OLD, max_payload_bytes=5)
    until(lambda: get_star(engine).name == "Star 1" and near().ticket() is not None)
    for _ in range(2):
        before = SQLModelCache.stats().corrupt
        assert get_star(engine).name == "Star 1"
        assert SQLModelCache.stats().corrupt == before + 1
        assert near_payloads() == []
    assert SQLModelCache.stats().near_hits == 0
