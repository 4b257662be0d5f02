"""Fixtures of the transport tests: every transport behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from transport.backends import AsyncRedisBackend, Backend, MemoryBackend, RedisBackend, Sent

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop for the test, which runs it by hand."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture(params=["memory", "redis", "redis.asyncio"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each transport, empty."""
    if request.param == "memory":
        yield MemoryBackend()
    else:
        yield from _on_redis(request, request.param, {})


@pytest.fixture(params=["redis", "redis.asyncio"])
def redis_backend(request: pytest.FixtureRequest) -> Iterator[RedisBackend]:
    """Each transport on Redis, empty."""
    yield from _on_redis(request, request.param, {})


CLIENTS: dict[str, dict[str, Any]] = {
    "RESP2": {"protocol": 2},
    "RESP3": {"protocol": 3},
    "RESP2, decoding": {"protocol": 2, "decode_responses": True},
    "RESP3, decoding": {"protocol": 3, "decode_responses": True},
    "Latin-1": {"encoding": "latin-1", "decode_responses": True},
}


@pytest.fixture(params=[(kind, name) for kind in ("redis", "redis.asyncio") for name in CLIENTS], ids=", ".join)
def any_client_backend(request: pytest.FixtureRequest) -> Iterator[RedisBackend]:
    """Each transport on Redis, with a client of each dialect."""
    kind, name = request.param
    yield from _on_redis(request, kind, CLIENTS[name])


def _on_redis(request: pytest.FixtureRequest, kind: str, options: dict[str, Any]) -> Iterator[RedisBackend]:
    url: str = request.getfixturevalue("redis_url")
    client: redis.Redis = request.getfixturevalue("redis_client")
    generous = {"timeout": 10, "commit_timeout": 10}
    if kind == "redis":
        with redis.Redis.from_url(url, **options) as given:
            transport = RedisSyncTransport(given, **generous)
            yield RedisBackend(transport, client)
            transport.close()
    else:
        loop: asyncio.AbstractEventLoop = request.getfixturevalue("loop")
        theirs: Any = redis.asyncio.Redis.from_url(url, **options)
        async_transport = RedisAsyncTransport(theirs, **generous)
        yield AsyncRedisBackend(async_transport, client, loop)
        loop.run_until_complete(async_transport.aclose())
        loop.run_until_complete(theirs.aclose())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What every client writes from now on."""
    return Sent(monkeypatch)
