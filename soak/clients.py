"""Clients of every topology, from a URL."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

MASTER = "mymaster"  # as the sentinels of the tests call it


def client(url: str, *, to_async: bool = False) -> Any:
    """Return a client of a Redis, of a cluster (`cluster://host:port,...`), or of a sentinel's master."""
    module: Any = redis.asyncio if to_async else redis
    scheme, _, addresses = url.partition("://")
    if scheme == "redis":
        return module.Redis.from_url(url, socket_timeout=0.5)
    nodes = [(host, int(port)) for host, _, port in (each.partition(":") for each in addresses.split(","))]
    if scheme == "sentinel":
        return module.sentinel.Sentinel(nodes).master_for(MASTER)
    return module.cluster.RedisCluster(startup_nodes=[module.cluster.ClusterNode(*node) for node in nodes])
