"""The Redis transport: two thin clients around the commands of `_commands.py`.

The sync transport opens a pool of its own with the given client's settings, short time-outs and no retries: the
protocol repeats what it must, with a new id. The async one bounds the given client's calls with `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from .._effects import Begin, End, Fill, Lease, Lookup, Resign, Together
from .._plan import Effect
from ..config import COMMIT_TIMEOUT, TIMEOUT, Duration, milliseconds
from ..errors import ConfigurationError
from . import _commands
from ._batches import Batches
from ._commands import Command, Words

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


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a transport waits for replies, in milliseconds; `fixed` are those that its constructor was told."""

    timeout_ms: int
    commit_timeout_ms: int
    fixed: frozenset[str]

    @classmethod
    def of(cls, timeout: Duration | None, commit_timeout: Duration | None) -> Limits:
        """Return a constructor's arguments, with defaults for those that are None."""
        given = {"timeout": timeout, "commit_timeout": commit_timeout}
        return cls(
            milliseconds("timeout", TIMEOUT if timeout is None else timeout),
            milliseconds("commit_timeout", COMMIT_TIMEOUT if commit_timeout is None else commit_timeout),
            frozenset(name for name, value in given.items() if value is not None),
        )

    def told(self, timeout_ms: int, commit_timeout_ms: int) -> Limits:
        """Return these limits with others in the place of those that are not fixed."""
        if "timeout" in self.fixed:
            timeout_ms = self.timeout_ms
        if "commit_timeout" in self.fixed:
            commit_timeout_ms = self.commit_timeout_ms
        return Limits(timeout_ms, commit_timeout_ms, self.fixed)

    def seconds(self, *, commit: bool) -> float:
        """Return the time-out of a read, or of a commit's invalidation, in seconds."""
        return (self.commit_timeout_ms if commit else self.timeout_ms) / 1000


class RedisSyncTransport:
    """Cached rows in Redis, for `Session`.

    Args:
        client: a `redis.Redis`. Its settings are used; its time-outs, retries and decoding are not, and it stays
            yours to close.
        timeout: seconds that one read of the cache may take; None means what `configure()` says.
        commit_timeout: seconds that one invalidation around a commit may take; None as above.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    blocking = True

    def __init__(
        self, client: redis.Redis, *, timeout: Duration | None = None, commit_timeout: Duration | None = None
    ) -> None:
        if not isinstance(client, redis.Redis):
            raise ConfigurationError("client", client, _wrong_client(client, "redis.Redis", "RedisAsyncTransport"))
        self.client = client
        self.limits = Limits.of(timeout, commit_timeout)
        self._open()

    def _open(self) -> None:
        self._reads: Any = _bounded(self.client, self.limits.timeout_ms)
        self._commits: Any = _bounded(self.client, self.limits.commit_timeout_ms)

    def limit(self, timeout_ms: int, commit_timeout_ms: int) -> None:
        """Take the time-outs that `configure()` says, where the constructor was told none."""
        limits = self.limits.told(timeout_ms, commit_timeout_ms)
        if limits != self.limits:
            self.close()
            self.limits = limits
            self._open()

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
        twin = RedisAsyncTransport(_twin_client(self.client, to_async=True))
        twin.limits = self.limits
        twin._given_away = True
        return twin


class _Loop:
    """The client of one event loop, and the batches that go through it."""

    def __init__(self, client: Any, limits: Limits) -> None:
        self.client = client
        self.limits = limits
        self.batches = Batches(self.execute, self.execute_all)

    async def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        try:
            async with asyncio.timeout(self.limits.seconds(commit=_is_commit(effect))):
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
            async with asyncio.timeout(self.limits.seconds(commit=False)):
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
        timeout: seconds that one read of the cache may take; None means what `configure()` says.
        commit_timeout: seconds that one invalidation around a commit may take; None as above.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    def __init__(
        self, client: redis.asyncio.Redis, *, timeout: Duration | None = None, commit_timeout: Duration | None = None
    ) -> None:
        if not isinstance(client, redis.asyncio.Redis):
            raise ConfigurationError(
                "client", client, _wrong_client(client, "redis.asyncio.Redis", "RedisSyncTransport")
            )
        self.client = client
        self.limits = Limits.of(timeout, commit_timeout)
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

    def limit(self, timeout_ms: int, commit_timeout_ms: int) -> None:
        """Take the time-outs that `configure()` says, where the constructor was told none."""
        self.limits = self.limits.told(timeout_ms, commit_timeout_ms)
        for here in list(self._loops.values()):
            here.limits = self.limits

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            client = _twin_client(self.client, to_async=True) if self._given_away else self.client
            self._given_away = True
            here = self._loops[loop] = _Loop(client, self.limits)
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
        twin = RedisSyncTransport(_twin_client(self.client, to_async=False))
        twin.limits = self.limits
        twin._open()
        return twin


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


def _bounded(client: redis.Redis, timeout_ms: int) -> redis.Redis:
    """Return a client with the same settings whose calls end within `timeout_ms` (each read of a reply)."""
    pool = client.connection_pool
    if type(pool) not in (redis.ConnectionPool, redis.BlockingConnectionPool):
        return client  # a sentinel's or a test's own pool knows more than its settings say
    own = dict(pool.connection_kwargs)
    own.update(socket_timeout=timeout_ms / 1000, socket_connect_timeout=timeout_ms / 1000)
    own.update(retry=Retry(NoBackoff(), 0), retry_on_error=[], decode_responses=False)
    own.pop("retry_on_timeout", None)
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **own))


def _twin_client(client: Any, *, to_async: bool) -> Any:
    """Return a client of the other kind, or another event loop's, to the same server.

    Raises:
        ConfigurationError: the client's connections are of a class that has no known twin.
    """
    pool = client.connection_pool
    for pair in _TWINS:
        if pool.connection_class in pair:
            connection_class = pair[to_async]
            settings = {key: value for key, value in pool.connection_kwargs.items() if key in _SHARED_SETTINGS}
            module: Any = redis.asyncio if to_async else redis
            return module.Redis(connection_pool=module.ConnectionPool(connection_class=connection_class, **settings))
    kind, other = ("async", "async_transport") if to_async else ("sync", "transport")
    raise ConfigurationError(
        "transport",
        client,
        f"no {kind} client can be derived from {pool.connection_class.__name__} connections; "
        f"give configure() both: transport=RedisSyncTransport(...), async_transport=RedisAsyncTransport(...) ({other} "
        "is the one that is missing)",
    )


def _wrong_client(client: object, wanted: str, other: str) -> str:
    kinds: dict[type, str] = {redis.Redis: "sync", redis.asyncio.Redis: "async"}
    if any(isinstance(client, kind) for kind in kinds):
        return f"give a {wanted}, or use {other}"
    return f"give a {wanted}"
