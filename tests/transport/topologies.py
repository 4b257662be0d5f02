"""Clients of clusters and of sentinels' masters, and transports on them behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from servers import RedisCluster, RedisSentinel

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport
from sqlmodel_cache._plan import Effect

PATIENT = 10.0  # seconds, where an answer must come


def client_of(servers: RedisCluster | RedisSentinel, *, to_async: bool = False, **options: Any) -> Any:
    """Return a client of a cluster, or of a sentinel's master."""
    module: Any = redis.asyncio if to_async else redis
    if isinstance(servers, RedisSentinel):
        return module.sentinel.Sentinel(servers.addresses).master_for(servers.NAME, **options)
    return module.cluster.RedisCluster(host="127.0.0.1", port=servers.nodes[0].port, **options)


def _sentinels(client: Any) -> Any:
    pool = getattr(client, "connection_pool", None)
    return getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())


def close(client: Any) -> None:
    """Close a client, and its connections to sentinels."""
    client.close()
    for each in _sentinels(client):
        each.close()


async def aclose(client: Any) -> None:
    """The same, for asyncio."""
    await client.aclose()
    if isinstance(client, redis.asyncio.Redis):  # a pool that it was given stays open
        await client.connection_pool.disconnect()
    for each in _sentinels(client):
        await each.aclose()


class Caller:
    """A transport, called as sync code, whichever it is."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.transport = transport
        self._loop = loop

    def __call__(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        if self._loop is None:
            return self.transport.execute(effect)
        return self._loop.run_until_complete(self.transport.aexecute(effect))

    def ttl(self, key: str) -> float | None:
        """Return the seconds that a key has left."""
        left: float | None
        if self._loop is None:
            left = self.transport.ttl(key)
        else:
            left = self._loop.run_until_complete(self.transport.attl(key))
        return left


@contextmanager
def caller_on(
    given: Any, *, timeout: float = PATIENT, commit_timeout: float = PATIENT, check_server: bool = False
) -> Iterator[Caller]:
    """Yield a transport on a client, and close both. What a server has stored counts on others too, unless asked."""
    limits: Any = {"timeout": timeout, "commit_timeout": commit_timeout, "check_server": check_server}
    if isinstance(given, redis.Redis | redis.cluster.RedisCluster):
        sync = RedisSyncTransport(given, **limits)
        yield Caller(sync, None)
        sync.close()
        close(given)
        return
    loop = asyncio.new_event_loop()
    transport = RedisAsyncTransport(given, **limits)
    yield Caller(transport, loop)
    loop.run_until_complete(transport.aclose())
    loop.run_until_complete(aclose(given))
    loop.close()
