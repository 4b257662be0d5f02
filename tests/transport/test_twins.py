"""The other kind of client, derived from the given one's settings; and what is refused instead of guessed."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio
from transport.backends import ENTRY, FINGERPRINT, PAYLOAD, ROW, TTL_MS, id_of

from sqlmodel_cache import (
    ConfigurationError,
    MemoryTransport,
    RedisAsyncTransport,
    RedisSyncTransport,
    SQLModelCache,
)
from sqlmodel_cache._effects import Begin, Fill, Hit, Lease, Lookup
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport import AsyncTransport, SyncTransport
from sqlmodel_cache.transport.redis import from_url

LEASE = Lease(ENTRY, FINGERPRINT, id_of("lease"))
LOOKUP = Lookup(ENTRY, FINGERPRINT)
BEGIN = Begin(ROW, id_of("token"), 60_000)

ADDRESS = {"host": "cache.test", "port": 6380, "db": 3, "username": "app", "password": "secret", "client_name": "web"}
TLS = {
    "ssl": True,
    "ssl_keyfile": "/key.pem",
    "ssl_certfile": "/cert.pem",
    "ssl_ca_certs": "/ca.pem",
    "ssl_ca_data": "pem",
    "ssl_check_hostname": False,
    "ssl_cert_reqs": "none",
}
PLAIN_KINDS = [redis.Connection, redis.asyncio.Connection]
TLS_KINDS = [redis.SSLConnection, redis.asyncio.SSLConnection]
UNIX_KINDS = [redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection]

CASES: dict[str, tuple[dict[str, Any], list[type]]] = {
    "TCP": (ADDRESS, PLAIN_KINDS),
    "TLS": ({**ADDRESS, **TLS}, TLS_KINDS),
    "unix socket": ({"unix_socket_path": "/run/redis.sock", "db": 2, "password": "secret"}, UNIX_KINDS),
    "RESP3, keepalive": ({**ADDRESS, "protocol": 3, "socket_keepalive": True, "health_check_interval": 5}, PLAIN_KINDS),
}


def _pair(to_async: bool, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return a transport on a client with these options, and its twin."""
    given: Any
    if to_async:
        given = RedisSyncTransport(redis.Redis(**options), timeout=0.5, commit_timeout=3)
    else:
        given = RedisAsyncTransport(redis.asyncio.Redis(**options), timeout=0.5, commit_timeout=3)
    return given, given.twin()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("to_async", [True, False])
def test_twin_has_the_same_settings(name: str, to_async: bool) -> None:
    """Address, credentials, TLS and protocol are carried over, and are accepted by the other kind of connection."""
    options, kinds = CASES[name]
    given, twin = _pair(to_async, options)
    assert isinstance(twin, RedisAsyncTransport if to_async else RedisSyncTransport)
    assert (twin.limits.timeout_ms, twin.limits.commit_timeout_ms) == (500, 3_000)
    pool = twin.client.connection_pool
    assert pool.connection_class is kinds[to_async]
    theirs = given.client.connection_pool.connection_kwargs
    for option in options:
        key = {"unix_socket_path": "path"}.get(option, option)
        if option != "ssl":
            assert pool.connection_kwargs[key] == theirs[key] == options[option]
    connection = pool.make_connection()
    assert isinstance(connection, kinds[to_async])
    assert (connection.db, connection.password if hasattr(connection, "password") else "secret") == (
        options["db"],
        "secret",
    )


def test_twin_of_a_twin_is_like_the_first() -> None:
    """Nothing is lost on the way there and back."""
    given, twin = _pair(True, {**ADDRESS, **TLS})
    back = twin.twin()
    own = given.client.connection_pool
    assert back.client.connection_pool.connection_class is own.connection_class
    for key in {*ADDRESS, *TLS} - {"ssl"}:
        assert back.client.connection_pool.connection_kwargs[key] == own.connection_kwargs[key]


def test_clients_of_a_url_share_a_server(redis_url: str, redis_client: redis.Redis) -> None:
    """`from_url` gives both transports: what one fills the other hits."""
    sync, twin = from_url(redis_url)
    granted = sync.execute(LEASE)
    assert sync.execute(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
    assert asyncio.run(_execute_and_close(twin, LEASE)) == Hit(PAYLOAD)
    assert redis_client.exists(ENTRY.row)
    sync.close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://:pw@h:1/2", redis.Connection),
        ("rediss://h", redis.SSLConnection),
        ("unix:///run/redis.sock?db=1", redis.UnixDomainSocketConnection),
    ],
)
def test_url_of_each_scheme_gives_both_transports(url: str, kind: type) -> None:
    """`redis://`, `rediss://` and `unix://` are understood, and nothing is connected."""
    sync, twin = from_url(url)
    assert sync.client.connection_pool.connection_class is kind
    assert twin.client.connection_pool.connection_class.__name__ == kind.__name__


@pytest.mark.parametrize("url", ["redis://:secret@host:port/0", "http://:secret@host", "redis://:secret@h:1/0?db=x"])
def test_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    """The error shows where the URL is wrong, and never the password."""
    with pytest.raises(ConfigurationError, match="not a Redis URL") as raised:
        from_url(url)
    assert "secret" not in str(raised.value)
    assert raised.value.argument == "transport"


@pytest.mark.parametrize(
    ("kind", "client", "hint"),
    [
        (RedisSyncTransport, redis.asyncio.Redis(), "use RedisAsyncTransport"),
        (RedisAsyncTransport, redis.Redis(), "use RedisSyncTransport"),
        (RedisSyncTransport, "redis://localhost", "give a redis.Redis"),
        (RedisAsyncTransport, None, "give a redis.asyncio.Redis"),
        (RedisSyncTransport, redis.ConnectionPool(), "give a redis.Redis"),
        (RedisSyncTransport, redis.Redis, "give a redis.Redis"),
    ],
)
def test_client_of_the_wrong_kind_is_refused(kind: Any, client: object, hint: str) -> None:
    """A sync client in the async transport, a URL, a pool, ...: the error says what to give instead."""
    with pytest.raises(ConfigurationError, match=hint) as raised:
        kind(client)
    assert raised.value.argument == "client"
    assert raised.value.value is client


@pytest.mark.parametrize("argument", ["timeout", "commit_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "1", True])
def test_timeout_that_is_none_is_refused(argument: str, value: object) -> None:
    """Time-outs are positive durations in seconds."""
    wrong: Any = {argument: value}
    for build in (lambda: RedisSyncTransport(redis.Redis(), **wrong), lambda: RedisAsyncTransport(_async(), **wrong)):
        with pytest.raises(ConfigurationError) as raised:
            build()
        assert raised.value.argument == argument


@pytest.mark.parametrize("to_async", [True, False])
def test_configure_says_the_time_outs_that_no_constructor_did(to_async: bool, redis_url: str) -> None:
    """Unconfigured, a transport has `configure()`'s defaults; what its constructor was told stays, in its twin, too."""
    kind: Any = RedisSyncTransport if to_async else RedisAsyncTransport
    make: Any = redis.Redis.from_url if to_async else redis.asyncio.Redis.from_url
    told, free = kind(make(redis_url), timeout=7, commit_timeout=30), kind(make(redis_url))
    assert [(each.limits.timeout_ms, each.limits.commit_timeout_ms) for each in (told, free)] == [
        (7_000, 30_000),
        (50, 1_000),
    ]
    for each in (told, told.twin(), free, free.twin()):
        each.limit(20_000, 30_000)
        assert each.limits.timeout_ms == (7_000 if each.limits.fixed else 20_000)
        assert each.limits.commit_timeout_ms == 30_000
        if isinstance(each, RedisSyncTransport):
            settings = [wire._client.connection_pool.connection_kwargs for wire in (each._reads, each._commits)]
            assert [own["socket_timeout"] for own in settings] == [each.limits.timeout_ms / 1000, 30]
            assert each.execute(BEGIN) is None
            each.close()
        else:
            assert asyncio.run(_execute_and_close(each, BEGIN)) is None


def test_configure_hands_its_time_outs_to_both_transports(redis_url: str) -> None:
    """`configure(timeout=..., commit_timeout=...)` reaches the given transport and its twin."""
    transport = RedisSyncTransport(redis.Redis.from_url(redis_url))
    SQLModelCache.configure(transport, timeout=0.3, commit_timeout=timedelta(seconds=4))
    driver: Any = SQLModelCache._cache.driver  # type: ignore[union-attr]
    for side in (transport, driver.sync_transport, driver.async_transport):
        assert (side.limits.timeout_ms, side.limits.commit_timeout_ms) == (300, 4_000)
    with pytest.raises(ConfigurationError, match="commit_timeout"):
        SQLModelCache.configure(transport, timeout=9, commit_timeout=0)
    assert transport.limits.timeout_ms == 300


def test_time_outs_change_for_a_loop_that_is_in_use(redis_url: str) -> None:
    """What `configure()` says holds at once, also in an event loop that has used the transport before."""
    transport = RedisAsyncTransport(redis.asyncio.Redis.from_url(redis_url), commit_timeout=30)

    async def use() -> tuple[int, int]:
        transport.limit(9_000, 1)
        before = transport._here().limits.timeout_ms
        await transport.aexecute(LOOKUP)
        transport.limit(8_000, 1)
        assert await transport.aexecute(BEGIN) is None
        after = transport._here().limits.timeout_ms
        await transport.aclose()
        await transport.client.aclose()
        return before, after

    assert asyncio.run(use()) == (9_000, 8_000)


def test_connections_without_a_known_twin_are_refused() -> None:
    """A connection class of the user's own has no twin: the error asks for both transports."""

    class Own(redis.Connection):
        pass

    transport = RedisSyncTransport(redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Own)))
    with pytest.raises(ConfigurationError, match=r"Own connections; give configure\(\) both") as raised:
        transport.twin()
    assert raised.value.argument == "transport"


def test_pool_of_a_class_of_the_users_own_is_used_as_it_is() -> None:
    """Such a pool may know more than its settings say: the transport takes no copy of it."""

    class Own(redis.ConnectionPool):
        pass

    client = redis.Redis(connection_pool=Own())
    transport = RedisSyncTransport(client)
    assert transport._reads._client is client
    assert transport._commits._client is client
    transport.close()


def test_given_client_keeps_its_settings_and_its_connections(redis_url: str) -> None:
    """The sync transport uses a pool of its own: the application's client is neither changed nor closed."""
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=7) as client:
        before = dict(client.connection_pool.connection_kwargs)
        client.set("c:mine", "x")
        transport = RedisSyncTransport(client)
        transport.execute(LOOKUP)
        transport.close()
        assert client.connection_pool.connection_kwargs == before
        assert client.get("c:mine") == "x"
        client.delete("c:mine")


def test_each_event_loop_has_its_own_connections(redis_url: str) -> None:
    """One async transport serves event loops one after the other and side by side; a loop that is gone is forgotten."""
    transport = RedisAsyncTransport(redis.asyncio.Redis.from_url(redis_url), timeout=10, commit_timeout=10)

    async def use() -> None:
        for _ in range(3):
            assert await transport.aexecute(BEGIN) is None
        await transport.aclose()
        await transport.client.aclose()

    for _ in range(3):
        asyncio.run(use())
    gc.collect()
    assert len(transport._loops) == 0


def in_step(function: Any) -> Callable[[Any, str, Any], Any]:
    """Return a trace function for two threads: each line of a function is begun when both have done the one before."""
    both = threading.Barrier(2, timeout=30)

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if event == "return":
            both.abort()  # the other goes on alone
        with suppress(threading.BrokenBarrierError):
            both.wait()
        return trace

    return trace


def test_only_one_of_two_event_loops_takes_the_given_client(redis_url: str) -> None:
    """In two threads that begin at the same moment: with each other's connections, calls of both would fail."""
    transport = RedisAsyncTransport(redis.asyncio.Redis.from_url(redis_url), timeout=10, commit_timeout=10)
    step = in_step(RedisAsyncTransport._wire)

    async def use() -> Any:
        before = sys.gettrace()
        sys.settrace(step)
        try:
            wire: Any = transport._here().wire
        finally:
            sys.settrace(before)
        assert await transport.aexecute(BEGIN) is None
        await transport.aclose()
        await wire._client.connection_pool.disconnect()
        return wire._client

    with ThreadPoolExecutor(2) as threads:
        clients = [*threads.map(lambda _: asyncio.run(use()), range(2))]
    assert [client is transport.client for client in clients].count(True) == 1


def test_closing_the_async_transport_leaves_the_given_client(redis_url: str) -> None:
    """`aclose` closes what the transport opened; the given client still answers."""

    async def use() -> Any:
        client: Any = redis.asyncio.Redis.from_url(redis_url)
        transport = RedisAsyncTransport(client, timeout=10)
        await transport.aexecute(LOOKUP)
        await transport.aclose()
        answer = await client.ping()
        await client.aclose()
        return answer

    assert asyncio.run(use()) is True


def test_transports_are_what_they_say() -> None:
    """The protocols in `transport/__init__` fit the three transports, each on its own side."""
    sync, twin = from_url("redis://localhost")
    assert isinstance(sync, SyncTransport)
    assert isinstance(MemoryTransport(), SyncTransport)
    assert isinstance(twin, AsyncTransport)
    assert not isinstance(twin, SyncTransport)
    assert sync.blocking is True
    assert MemoryTransport().blocking is False


async def _execute_and_close(transport: RedisAsyncTransport, effect: Effect[Any]) -> Any:
    found = await transport.aexecute(effect)
    await transport.aclose()
    await transport.client.aclose()
    return found


def _async() -> Any:
    return redis.asyncio.Redis()
