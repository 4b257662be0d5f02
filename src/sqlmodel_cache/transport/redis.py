"""The Redis transport: effects to commands and replies to effects, as plain functions, and two thin clients.

`encode` and `decode` hold everything that sync and async share. A command is an MGET or a Lua script, and touches one
hash slot. The layout of fences and values is described once, in `lua/marks.lua`.

The sync transport opens a pool of its own with the given client's settings, short time-outs and no retries: the
protocol repeats what it must, with a new id. The async one bounds the given client's calls with `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from .. import _keys
from .._effects import VARIANTS, Begin, End, Fenced, Fill, Granted, Hit, Lease, Lookup
from .._plan import Effect
from ..config import Duration, milliseconds
from ..errors import ConfigurationError, TransportError

FORMAT = b"V\x02"  # a value, and the version of its layout


class Command(NamedTuple):
    """One Redis command: a script if it has one, otherwise an MGET."""

    script: _Script | None
    keys: Sequence[str]
    args: Sequence[bytes | int]


@dataclass(frozen=True)
class _Script:
    source: str
    sha: str


def _script(name: str) -> _Script:
    folder = files("sqlmodel_cache.transport").joinpath("lua")
    source = folder.joinpath("marks.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
    digest = hashlib.sha1(source.encode(), usedforsecurity=False)  # what EVALSHA names a script by
    return _Script(source, digest.hexdigest())


LEASE, FILL, BEGIN, END = map(_script, ("lease", "fill", "begin", "end"))


def encode(effect: Effect[Any]) -> list[Command]:
    """Return the commands of an effect, one per hash slot."""
    match effect:
        case Lookup(entry):
            return [Command(None, entry, ())]
        case Lease(entry, fingerprint, id, replace):
            return [Command(LEASE, entry, (id, fingerprint, int(replace)))]
        case Fill(entry, lease, fingerprint, payload, ttl_ms):
            return [
                Command(
                    FILL, (entry.row,), (lease.version, lease.table_version, fingerprint, payload, ttl_ms, VARIANTS)
                )
            ]
        case Begin(keys, id, fence_ttl_ms):
            slots = _by_slot((keys.rows, keys.tables))
            return [Command(BEGIN, rows + tables, (id, fence_ttl_ms)) for rows, tables in slots]
        case End(keys, token, id):
            slots = _by_slot((keys.rows, keys.tables))
            return [Command(END, rows + tables, (token, id, len(rows))) for rows, tables in slots]
    raise TransportError(f"the Redis transport does not know {type(effect).__name__}")


def decode(effect: Effect[Any], replies: Sequence[Any]) -> Any:
    """Return the effect's reply from the replies to its commands; raises TransportError for anything unexpected."""
    match effect, replies:
        case Lookup(_, fingerprint), [[value, table]]:
            return _payload(value, table, fingerprint)
        case Lease(), [[b"hit", bytes(payload)]]:
            return Hit(payload)
        case Lease(), [[b"granted", bytes(version), bytes(table_version)]]:
            return Granted(version, table_version)
        case Lease(), [[b"fenced"]]:
            return Fenced()
        case Fill(), [0 | 1 as stored]:
            return stored == 1
        case ((Begin() | End()), _) if all(reply == 1 for reply in replies):
            return None
    raise TransportError(f"unexpected reply to {type(effect).__name__}: {replies!r:.200}")


def _payload(value: bytes | None, table: bytes | None, fingerprint: bytes) -> bytes | None:
    # A table's fence without pending tokens is exactly "F" and its version; with tokens it is longer, and the script
    # that knows the server's clock decides.
    if value is None or table is None or len(table) != 17 or table[:1] != b"F":
        return None
    if value[:2] != FORMAT or value[18:34] != table[1:]:
        return None
    at = 34
    while at + 12 <= len(value):
        end = at + 12 + int.from_bytes(value[at + 8 : at + 12])
        if value[at : at + 8] == fingerprint:
            return value[at + 12 : end] if end <= len(value) else None
        at = end
    return None


def _by_slot(kinds: tuple[tuple[str, ...], tuple[str, ...]]) -> list[tuple[list[str], list[str]]]:
    slots: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for kind, keys in enumerate(kinds):
        for key in keys:
            slots[_keys.slot_tag(key)][kind].append(key)
    return list(slots.values())


def _words(command: Command, *, whole: bool = False) -> list[Any]:
    """Return the command's words; `whole` sends the script's source in place of its digest."""
    script, keys, args = command
    if script is None:
        return ["MGET", *keys]
    head = ["EVAL", script.source] if whole else ["EVALSHA", script.sha]
    return [*head, len(keys), *keys, *args]


def _unknown(replies: Sequence[Any]) -> list[int]:
    """Return the positions of commands whose script the server has not loaded; raises any other error."""
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, NoScriptError):
            raise reply
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def _failed(effect: Effect[Any], error: BaseException) -> TransportError:
    return TransportError(f"{type(effect).__name__}: {type(error).__name__}: {error}")


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

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    blocking = True

    def __init__(self, client: redis.Redis, *, timeout: Duration = 0.25, commit_timeout: Duration = 1.0) -> None:
        if not isinstance(client, redis.Redis):
            raise ConfigurationError("client", client, _wrong_client(client, "redis.Redis", "RedisAsyncTransport"))
        self.client = client
        self.timeout_ms = milliseconds("timeout", timeout)
        self.commit_timeout_ms = milliseconds("commit_timeout", commit_timeout)
        self._reads: Any = _bounded(client, self.timeout_ms)
        self._commits: Any = _bounded(client, self.commit_timeout_ms)

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises TransportError when Redis does not give one in time."""
        client = self._commits if isinstance(effect, Begin | End) else self._reads
        try:
            commands = encode(effect)
            replies = self._send(client, commands)
            for at in _unknown(replies):
                replies[at] = client.execute_command(*_words(commands[at], whole=True), NEVER_DECODE=True)
        except _TROUBLE as error:
            raise _failed(effect, error) from error
        return decode(effect, replies)

    def _send(self, client: Any, commands: list[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [client.execute_command(*_words(commands[0]), NEVER_DECODE=True)]
            except NoScriptError as unknown:
                return [unknown]
        with client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*_words(command), NEVER_DECODE=True)
            return list(pipe.execute(raise_on_error=False))

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
        )
        twin._given_away = True
        return twin


class RedisAsyncTransport:
    """Cached rows in Redis, for `AsyncSession`.

    Args:
        client: a `redis.asyncio.Redis`; it stays yours to close. In an event loop other than the first that used
            it, a client with the same settings takes its place.
        timeout: seconds that one read of the cache may take.
        commit_timeout: seconds that one invalidation around a commit may take.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    def __init__(
        self, client: redis.asyncio.Redis, *, timeout: Duration = 0.25, commit_timeout: Duration = 1.0
    ) -> None:
        if not isinstance(client, redis.asyncio.Redis):
            raise ConfigurationError(
                "client", client, _wrong_client(client, "redis.asyncio.Redis", "RedisSyncTransport")
            )
        self.client = client
        self.timeout_ms = milliseconds("timeout", timeout)
        self.commit_timeout_ms = milliseconds("commit_timeout", commit_timeout)
        # A connection belongs to the event loop that opened it.
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis] = (
            weakref.WeakKeyDictionary()
        )
        self._given_away = False  # whether an event loop has taken `client`

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises TransportError when Redis does not give one in time."""
        budget_ms = self.commit_timeout_ms if isinstance(effect, Begin | End) else self.timeout_ms
        try:
            async with asyncio.timeout(budget_ms / 1000):
                client = self._client()
                commands = encode(effect)
                replies = await self._send(client, commands)
                for at in _unknown(replies):
                    replies[at] = await client.execute_command(*_words(commands[at], whole=True), NEVER_DECODE=True)
        except _TROUBLE as error:
            raise _failed(effect, error) from error
        return decode(effect, replies)

    async def _send(self, client: Any, commands: list[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await client.execute_command(*_words(commands[0]), NEVER_DECODE=True)]
            except NoScriptError as unknown:
                return [unknown]
        async with client.pipeline(transaction=False) as pipe:
            for command in commands:
                await _queued(pipe.execute_command(*_words(command), NEVER_DECODE=True))
            return list(await pipe.execute(raise_on_error=False))

    def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = _twin_client(self.client, to_async=True) if self._given_away else self.client
            self._given_away = True
            self._clients[loop] = client
        return client

    async def aclose(self) -> None:
        """Close the connections that the transport opened in this event loop; the given client stays open."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None and client is not self.client:
            await client.connection_pool.disconnect()

    def twin(self) -> RedisSyncTransport:
        """Return a sync transport to the same server."""
        return RedisSyncTransport(
            _twin_client(self.client, to_async=False),
            timeout=self.timeout_ms / 1000,
            commit_timeout=self.commit_timeout_ms / 1000,
        )


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
