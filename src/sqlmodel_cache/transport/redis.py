"""The Redis transport: two thin clients around the commands of `_commands.py`.

The sync transport opens a pool of its own with the given client's settings, short time-outs and no retries: the
protocol repeats what it must, with a new id. The async one bounds the given client's calls with `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from .._effects import Begin, End, Fill, Lease, Lookup, Resign, Together
from .._plan import Effect
from ..config import Duration, flag, milliseconds
from ..errors import ConfigurationError
from . import _commands
from ._batches import Batches
from ._commands import Command, Words
from ._servers import plain, signing, signing_async

# What a client raises for a server in trouble. RuntimeError: an event loop that is closed, or another one's client.
_TROUBLE = (RedisError, OSError, TimeoutError, RuntimeError, ValueError)

# Connection settings that mean the same to redis-py's sync and async connections.
_SHARED_SETTINGS = frozenset(
    """host port db username password path client_name protocol credential_provider encoding encoding_errors
    socket_keepalive socket_keepalive_options socket_type health_check_interval
    ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_path ssl_ca_data ssl_check_hostname ssl_password
    ssl_min_version ssl_ciphers ssl_include_verify_flags ssl_exclude_verify_flags""".split()  # noqa: SIM905
)

_TWINS: tuple[tuple[type, type], ...] = (
    (redis.SSLConnection, redis.asyncio.SSLConnection),
    (redis.UnixDomainSocketConnection, redis.asyncio.UnixDomainSocketConnection),
    (redis.Connection, redis.asyncio.Connection),
)


class RedisSyncTransport:
    """Cached rows in Redis, for `Session`.

    Args:
        client: a `redis.Redis`. Its settings are used; its time-outs, retries and decoding are not, and it stays
            yours to close.
        timeout: seconds that one read of the cache may take.
        commit_timeout: seconds that one invalidation around a commit may take.
        check_server: whether a value is valid only on the server, and in that run of it, under which it was stored:
            a restored or promoted server serves nothing that it may have missed the invalidation of. False where one
            connection speaks to several servers: through a proxy that spreads keys or reads.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    blocking = True

    def __init__(
        self,
        client: redis.Redis,
        *,
        timeout: Duration = 0.25,
        commit_timeout: Duration = 1.0,
        check_server: bool = True,
    ) -> None:
        if not isinstance(client, redis.Redis):
            raise ConfigurationError("client", client, _wrong_client(client, "redis.Redis", "RedisAsyncTransport"))
        self.client = client
        self.timeout_ms = milliseconds("timeout", timeout)
        self.commit_timeout_ms = milliseconds("commit_timeout", commit_timeout)
        self.check_server = flag("check_server", check_server)
        self._reads: Any = _bounded(client, self.timeout_ms, signs=self.check_server)
        self._commits: Any = _bounded(client, self.commit_timeout_ms, signs=False)

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises TransportError when Redis does not give one in time."""
        try:
            if type(effect) is Lookup:  # the one that every hit pays for
                reply = self._reads.execute_command(*_commands.look_up(effect), NEVER_DECODE=True)
                return _commands.found(effect, reply)
            client = self._commits if _is_commit(effect) else self._reads
            if type(effect) is Together:
                parcel = _commands.pack(effect.effects)
                replies = self._send(client, parcel.commands)
                return tuple(_commands.unpack(effect.effects, parcel, replies))
            return _commands.decode(effect, self._send(client, _commands.encode(effect)))
        except _TROUBLE as error:
            raise _commands.failed(effect, error) from error

    def _send(self, client: Any, commands: list[Command]) -> list[Any]:
        """Return the replies to commands; what the server refuses replies with its error."""
        replies = self._post(client, [_commands.words(command) for command in commands])
        again = _commands.repeats(commands, replies)
        if again:
            for at, reply in zip(again, self._post(client, list(again.values())), strict=True):
                replies[at] = reply
        return replies

    def _post(self, client: Any, lines: Sequence[Words]) -> list[Any]:
        if len(lines) == 1:
            try:
                return [client.execute_command(*lines[0], NEVER_DECODE=True)]
            except ResponseError as error:
                return [error]
        replies: list[Any] = []
        for portion in _commands.portions(lines):
            with client.pipeline(transaction=False) as pipe:
                for line in portion:
                    pipe.execute_command(*line, NEVER_DECODE=True)
                replies += pipe.execute(raise_on_error=False)
        return replies

    def close(self) -> None:
        """Close the connections that the transport opened; the given client stays open."""
        for own in (self._reads, self._commits):
            if own is not self.client:
                own.connection_pool.disconnect()

    def twin(self) -> RedisAsyncTransport:
        """Return an async transport to the same server, with a client of its own in every event loop."""
        twin = RedisAsyncTransport(
            _twin_client(self.client, to_async=True),
            timeout=self.timeout_ms / 1000,
            commit_timeout=self.commit_timeout_ms / 1000,
            check_server=self.check_server,
        )
        twin._given_away = True
        return twin


class _Loop:
    """The client of one event loop, and the batches that go through it. Times are in seconds."""

    def __init__(self, client: Any, timeout: float, commit_timeout: float) -> None:
        self.client = client
        self.batches = Batches(self.execute, self.execute_all)
        self._timeout = timeout
        self._commit_timeout = commit_timeout

    async def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        try:
            async with asyncio.timeout(self._commit_timeout if _is_commit(effect) else self._timeout):
                if type(effect) is Lookup:  # the one that every hit pays for
                    reply = await self.client.execute_command(*_commands.look_up(effect), NEVER_DECODE=True)
                    return _commands.found(effect, reply)
                if type(effect) is Together:
                    return tuple(await self._together(effect.effects))
                return _commands.decode(effect, await self._send(_commands.encode(effect)))
        except _TROUBLE as error:
            raise _commands.failed(effect, error) from error

    async def execute_all(self, effects: Sequence[Effect[Any]]) -> list[Any]:
        """Return the reply to each of several effects of readers, or its TransportError."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._together(effects)
        except _TROUBLE as error:
            return [_commands.failed(effect, error) for effect in effects]

    async def _together(self, effects: Sequence[Effect[Any]]) -> list[Any]:
        parcel = _commands.pack(effects)
        return _commands.unpack(effects, parcel, await self._send(parcel.commands))

    async def _send(self, commands: list[Command]) -> list[Any]:
        """Return the replies to commands; what the server refuses replies with its error."""
        replies = await self._post([_commands.words(command) for command in commands])
        again = _commands.repeats(commands, replies)
        if again:
            for at, reply in zip(again, await self._post(list(again.values())), strict=True):
                replies[at] = reply
        return replies

    async def _post(self, lines: Sequence[Words]) -> list[Any]:
        if len(lines) == 1:
            try:
                return [await self.client.execute_command(*lines[0], NEVER_DECODE=True)]
            except ResponseError as error:
                return [error]
        replies: list[Any] = []
        for portion in _commands.portions(lines):
            async with self.client.pipeline(transaction=False) as pipe:
                for line in portion:
                    await _queued(pipe.execute_command(*line, NEVER_DECODE=True))
                replies += await pipe.execute(raise_on_error=False)
        return replies


class RedisAsyncTransport:
    """Cached rows in Redis, for `AsyncSession`.

    Args:
        client: a `redis.asyncio.Redis`; it stays yours to close. In an event loop other than the first that used
            it, a client with the same settings takes its place.
        timeout: seconds that one read of the cache may take.
        commit_timeout: seconds that one invalidation around a commit may take.
        check_server: whether a value is valid only on the server, and in that run of it, under which it was stored:
            a restored or promoted server serves nothing that it may have missed the invalidation of. False where one
            connection speaks to several servers: through a proxy that spreads keys or reads.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        timeout: Duration = 0.25,
        commit_timeout: Duration = 1.0,
        check_server: bool = True,
    ) -> None:
        if not isinstance(client, redis.asyncio.Redis):
            raise ConfigurationError(
                "client", client, _wrong_client(client, "redis.asyncio.Redis", "RedisSyncTransport")
            )
        self.client = client
        self.timeout_ms = milliseconds("timeout", timeout)
        self.commit_timeout_ms = milliseconds("commit_timeout", commit_timeout)
        self.check_server = flag("check_server", check_server)
        # A connection belongs to the event loop that opened it, and so does a batch.
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()
        self._given_away = False  # whether an event loop has taken `client`

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises TransportError when Redis does not give one in time.

        Effects of readers that wait in the same turn of the event loop travel together.
        """
        here = self._here()
        if type(effect) in _BATCHED:
            return await here.batches.execute(effect)
        return await here.execute(effect)

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            client = _twin_client(self.client, to_async=True) if self._given_away else self.client
            self._given_away = True
            if self.check_server:
                _sign(client)
            here = self._loops[loop] = _Loop(client, self.timeout_ms / 1000, self.commit_timeout_ms / 1000)
        return here

    async def aclose(self) -> None:
        """Close the connections that the transport opened in this event loop; the given client stays open."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.batches.drain()
            if here.client is not self.client:
                await here.client.connection_pool.disconnect()

    def twin(self) -> RedisSyncTransport:
        """Return a sync transport to the same server."""
        return RedisSyncTransport(
            _twin_client(self.client, to_async=False),
            timeout=self.timeout_ms / 1000,
            commit_timeout=self.commit_timeout_ms / 1000,
            check_server=self.check_server,
        )


# What readers send. A commit's own effects are one round trip for all of its rows already.
_BATCHED = frozenset({Lookup, Lease, Fill, Resign})


def _is_commit(effect: Effect[Any]) -> bool:
    if type(effect) is Together:
        return any(map(_is_commit, effect.effects))
    return type(effect) in (Begin, End)


async def _queued(answer: Any) -> None:
    """A pipeline's execute_command only queues, and is or is not a coroutine, depending on redis-py's release."""
    if asyncio.iscoroutine(answer):
        await answer


def from_url(url: str) -> tuple[RedisSyncTransport, RedisAsyncTransport]:
    """Return both transports of a `redis://`, `rediss://` or `unix://` URL."""
    try:
        sync = RedisSyncTransport(redis.Redis.from_url(url))
    except (ValueError, RedisError) as error:
        raise ConfigurationError("transport", _without_password(url), f"not a Redis URL: {error}") from None
    return sync, sync.twin()


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url


def _bounded(client: redis.Redis, timeout_ms: int, *, signs: bool) -> redis.Redis:
    """Return a client with the same settings whose calls end within `timeout_ms` (each read of a reply).

    Its connections sign their replies, or not: where a connection does not always speak to one server.
    """
    pool = client.connection_pool
    if type(pool) not in (redis.ConnectionPool, redis.BlockingConnectionPool):
        return client  # a sentinel's or a test's own pool knows more than its settings say
    own = dict(pool.connection_kwargs)
    own.update(socket_timeout=timeout_ms / 1000, socket_connect_timeout=timeout_ms / 1000)
    own.update(retry=Retry(NoBackoff(), 0), retry_on_error=[], decode_responses=False)
    own.pop("retry_on_timeout", None)
    kind = signing(pool.connection_class) if signs else pool.connection_class
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **own))


# As above: a sentinel's or a test's own knows more than its settings say.
_PLAIN_POOLS: tuple[Any, ...] = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool)


def _sign(client: Any) -> None:
    """Let the connections that an async client opens from now on sign their replies to the transport."""
    pool = client.connection_pool
    if type(pool) in _PLAIN_POOLS:
        pool.connection_class = signing_async(plain(pool.connection_class))


def _twin_client(client: Any, *, to_async: bool) -> Any:
    """Return a client of the other kind, or another event loop's, to the same server.

    Raises:
        ConfigurationError: the client's connections are of a class that has no known twin.
    """
    pool = client.connection_pool
    kind = plain(pool.connection_class)
    for pair in _TWINS:
        if kind in pair:
            connection_class = pair[to_async]
            settings = {key: value for key, value in pool.connection_kwargs.items() if key in _SHARED_SETTINGS}
            module: Any = redis.asyncio if to_async else redis
            return module.Redis(connection_pool=module.ConnectionPool(connection_class=connection_class, **settings))
    wanted, other = ("async", "async_transport") if to_async else ("sync", "transport")
    raise ConfigurationError(
        "transport",
        client,
        f"no {wanted} client can be derived from {kind.__name__} connections; "
        f"give configure() both: transport=RedisSyncTransport(...), async_transport=RedisAsyncTransport(...) ({other} "
        "is the one that is missing)",
    )


def _wrong_client(client: object, wanted: str, other: str) -> str:
    kinds: dict[type, str] = {redis.Redis: "sync", redis.asyncio.Redis: "async"}
    if any(isinstance(client, kind) for kind in kinds):
        return f"give a {wanted}, or use {other}"
    return f"give a {wanted}"
