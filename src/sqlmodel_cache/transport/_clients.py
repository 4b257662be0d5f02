"""Clients and connection pools that the transports make of the given ones' settings. Connects to nothing.

A pool of our own has short time-outs and no retries: the protocol repeats what it must, with a new id.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.cluster
import redis.connection
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import ConfigurationError
from ._cluster import Node, Remap
from ._masters import AsyncMasterPool, MasterPool
from ._servers import begin_to_sign, closing, plain, signing, signing_async

# Connection settings that mean the same to redis-py's sync and async connections.
SHARED_SETTINGS = frozenset(
    """host port db username password path client_name protocol credential_provider encoding encoding_errors
    socket_keepalive socket_keepalive_options socket_type health_check_interval
    ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_path ssl_ca_data ssl_check_hostname ssl_password
    ssl_min_version ssl_ciphers ssl_include_verify_flags ssl_exclude_verify_flags""".split()  # noqa: SIM905
)

_OF_ONE_SERVER = frozenset({"host", "port", "db", "path"})

TWINS: tuple[tuple[type, type], ...] = (
    (redis.SSLConnection, redis.asyncio.SSLConnection),
    (redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection),
    (redis.Connection, redis.asyncio.Connection),
    (redis.sentinel.SentinelManagedConnection, redis.asyncio.sentinel.SentinelManagedConnection),
    (redis.sentinel.SentinelManagedSSLConnection, redis.asyncio.sentinel.SentinelManagedSSLConnection),
)

# Before 6.0, redis-py knows the errors of a cluster in its clusters' connections only, by their parser.
_PARSER, _ASYNC_PARSER = (getattr(module, "ClusterParser", None) for module in (redis.cluster, redis.asyncio.cluster))

_SENTINEL_POOLS = (redis.sentinel.SentinelConnectionPool, redis.asyncio.sentinel.SentinelConnectionPool)
_CLUSTERS = (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster)


@dataclass(frozen=True)
class Members:
    """How to reach the nodes of a Redis Cluster: what a `RedisCluster` was told, without its connections."""

    seeds: tuple[Node, ...]
    connection_class: type
    settings: Mapping[str, Any] = field(repr=False)
    remap: Remap | None = None

    @classmethod
    def of(cls, client: Any) -> Members:
        """Return a cluster client's members, sync or asyncio."""
        if isinstance(client, Members):
            return client
        manager = client.nodes_manager
        settings = dict(manager.connection_kwargs)
        to_async = isinstance(client, redis.asyncio.cluster.RedisCluster)
        plain, tls = (pair[to_async] for pair in (TWINS[2], TWINS[0]))
        kind = settings.get("connection_class", tls if settings.get("ssl") else plain)
        shared = {name: value for name, value in _shared(settings).items() if name not in _OF_ONE_SERVER}
        seeds = tuple((str(node.host), int(node.port)) for node in manager.startup_nodes.values())
        return cls(seeds, kind, shared, manager.address_remap)

    def twin(self, *, to_async: bool) -> Members:
        """Return the members for the other kind of connections. Raises ConfigurationError as `twin_client` does."""
        return Members(self.seeds, _twin_class(self, self.connection_class, to_async), self.settings, self.remap)

    def pool(self, node: Node, timeout: float | None, *, signs: bool) -> Any:
        """Return a pool of connections to a node, of the kind of the connection class."""
        host, port = node
        return _pool(self.connection_class, {**self.settings, "host": host, "port": port}, timeout, signs=signs)


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that both kinds of connections share, and that say something: an old release knows fewer."""
    return {
        name: value
        for name, value in settings.items()
        if name in SHARED_SETTINGS and (value is not None or name == "ssl_cert_reqs")  # whose None is not its default
    }


def is_cluster(client: object) -> bool:
    """Return whether a client is a cluster's."""
    return isinstance(client, (*_CLUSTERS, Members))


def bounded(client: redis.Redis, timeout: float, *, signs: bool = False) -> redis.Redis:
    """Return a sync client with the same settings whose calls end within `timeout` seconds, each read of a reply.

    Its connections sign their replies, or not: where a connection does not always speak to one server.
    A pool of a class that is not redis-py's own may know more than its settings say, and is used as it is.
    """
    pool: Any = client.connection_pool
    settings = dict(pool.connection_kwargs)
    if type(pool) in (redis.sentinel.SentinelConnectionPool, MasterPool):
        del settings["connection_pool"]  # its own, by which its connections ask where the master is
        manager = copy.copy(pool.sentinel_manager)
        manager.sentinels = [bounded(each, timeout) for each in manager.sentinels]
        own = _pool(pool.connection_class, settings, timeout, _master(pool, manager), signs=signs)
        return redis.Redis(connection_pool=own)
    if type(pool) in (redis.ConnectionPool, redis.BlockingConnectionPool):
        return redis.Redis(connection_pool=_pool(pool.connection_class, settings, timeout, signs=signs))
    return client


# As above: other pools than these may know more than their settings say.
_PLAIN_POOLS: tuple[Any, ...] = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool, AsyncMasterPool)


def know_errors(client: Any) -> None:
    """Let an async client's connections know a cluster's errors by their classes, from now on."""
    pool = client.connection_pool
    if _ASYNC_PARSER is not None and type(pool) in _PLAIN_POOLS:
        pool.connection_kwargs.setdefault("parser_class", _ASYNC_PARSER)


def sign(client: Any) -> bool:
    """Return whether an async client's connections sign their replies to the transport, from now on."""
    pool = client.connection_pool
    if type(pool) not in _PLAIN_POOLS:
        return False
    pool.connection_class = signing_async(plain(pool.connection_class))
    # Those that are open already, too: they live as long as their pool, and what does not sign is never hit.
    for name in ("_available_connections", "_in_use_connections"):
        for connection in vars(pool).get(name, ()):
            begin_to_sign(connection)
    return True


def close_bounded(client: redis.Redis) -> None:
    """Close the connections of a client that `bounded` has made, to the sentinels, too."""
    pool: Any = client.connection_pool
    pool.disconnect()
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        for each in pool.sentinel_manager.sentinels:
            each.connection_pool.disconnect()


def is_own_to_be(client: Any) -> bool:
    """Return whether an asyncio client is used by its settings only: a sentinel's pool does not see its master go."""
    return isinstance(client.connection_pool, redis.asyncio.sentinel.SentinelConnectionPool)


def twin_client(client: Any, *, to_async: bool) -> Any:
    """Return a client of the other kind, or another event loop's, to the same server.

    Raises:
        ConfigurationError: the client's connections are of a class that has no known twin.
    """
    if is_cluster(client):
        return Members.of(client).twin(to_async=to_async)
    pool = client.connection_pool
    connection_class = _twin_class(client, pool.connection_class, to_async)
    settings = _shared(pool.connection_kwargs)
    module: Any = redis.asyncio if to_async else redis
    if isinstance(pool, _SENTINEL_POOLS):
        return module.Redis(connection_pool=_twin_sentinel_pool(pool, connection_class, settings, to_async))
    return module.Redis(connection_pool=module.ConnectionPool(connection_class=connection_class, **settings))


def _twin_sentinel_pool(pool: Any, connection_class: type, settings: dict[str, Any], to_async: bool) -> Any:
    module: Any = redis.asyncio.sentinel if to_async else redis.sentinel
    theirs = pool.sentinel_manager
    manager = module.Sentinel([], theirs.min_other_sentinels, {})
    if hasattr(theirs, "_force_master_ip"):
        manager._force_master_ip = theirs._force_master_ip
    manager.sentinels = [twin_client(each, to_async=to_async) for each in theirs.sentinels]
    kind: Any = AsyncMasterPool if to_async else MasterPool
    return kind(connection_class=connection_class, **settings, **_master(pool, manager))


def _master(pool: Any, manager: Any) -> dict[str, Any]:
    """Return what a sentinel's pool is told besides its connections' settings."""
    return {
        "service_name": pool.service_name,
        "sentinel_manager": manager,
        "is_master": pool.is_master,
        "check_connection": pool.check_connection,
    }


def _pool(
    connection_class: Any,
    settings: Mapping[str, Any],
    timeout: float | None,
    master: Mapping[str, Any] | None = None,
    *,
    signs: bool,
) -> Any:
    """Return a pool of our own; `timeout` is in seconds, None where the caller bounds its calls itself."""
    own = dict(settings)
    to_async = issubclass(connection_class, redis.asyncio.connection.AbstractConnection)
    if timeout is not None:
        own.update(socket_timeout=timeout, socket_connect_timeout=timeout)
    retry: Any = redis.asyncio.retry.Retry if to_async else Retry
    own.update(retry=retry(NoBackoff(), 0), retry_on_error=[], decode_responses=False)
    own.pop("retry_on_timeout", None)
    parser = _ASYNC_PARSER if to_async else _PARSER
    if parser is not None:
        own.setdefault("parser_class", parser)
    module: Any = redis.asyncio if to_async else redis
    kind: Any = module.ConnectionPool if master is None else MasterPool
    made = plain(connection_class)
    if not to_async:
        made = closing(made)
    if signs:
        made = signing_async(made) if to_async else signing(made)
    return kind(connection_class=made, **own, **(master or {}))


def _twin_class(client: object, connection_class: type, to_async: bool) -> type:
    for pair in TWINS:
        if plain(connection_class) in pair:
            return pair[to_async]
    kind, other = ("async", "async_transport") if to_async else ("sync", "transport")
    raise ConfigurationError(
        "transport",
        client,
        f"no {kind} client can be derived from {connection_class.__name__} connections; "
        f"give configure() both: transport=RedisSyncTransport(...), async_transport=RedisAsyncTransport(...) ({other} "
        "is the one that is missing)",
    )


_CONNECTIONS = (redis.connection.AbstractConnection, redis.asyncio.connection.AbstractConnection)
_SYNC = (redis.Redis, redis.cluster.RedisCluster)
_ASYNC = (redis.asyncio.Redis, redis.asyncio.cluster.RedisCluster)


def check(client: object, *, to_async: bool) -> None:
    """Raise ConfigurationError unless it is a client of the wanted kind."""
    if isinstance(client, _ASYNC if to_async else _SYNC):
        return
    if isinstance(client, Members) and issubclass(client.connection_class, _CONNECTIONS[to_async]):
        return
    module, other = ("redis.asyncio", "RedisSyncTransport") if to_async else ("redis", "RedisAsyncTransport")
    wanted = f"give a {module}.Redis, or a {module}.cluster.RedisCluster"
    hint = f"{wanted}; or use {other}" if isinstance(client, _SYNC if to_async else _ASYNC) else wanted
    raise ConfigurationError("client", client, hint)
