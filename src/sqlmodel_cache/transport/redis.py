"""The Redis transports: one server, a sentinel's master or a cluster, behind the same two classes.

The sync transport opens a pool of its own with the given client's settings, short time-outs and no retries: the
protocol repeats what it must, with a new id. The async one bounds the given client's calls with `asyncio.timeout`.
Of a sentinel's or a cluster's client, both take the settings only.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.exceptions import ClusterCrossSlotError, RedisError

from .._effects import Begin, End, Fill, Lease, Lookup, Resign, Together
from .._plan import Effect, run
from ..config import COMMIT_TIMEOUT, TIMEOUT, Duration, flag, milliseconds
from ..errors import ConfigurationError, TransportError
from . import _clients, _commands
from ._batches import Batches
from ._clients import Members
from ._cluster import Slots
from ._sampling import Sample, sample, together
from ._wires import TROUBLE, AsyncCluster, AsyncServer, Cluster, Server

SyncClient: TypeAlias = redis.Redis | redis.cluster.RedisCluster
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster


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
        client: a `redis.Redis`, a sentinel's `master_for(...)` or a `redis.cluster.RedisCluster`. Its settings are
            used; its time-outs, retries and decoding are not, and it stays yours to close. Of a client on a pool class
            of your own the pool is used as it is, time-outs included.
        timeout: seconds that one read of the cache may take; None means what `configure()` says.
        commit_timeout: seconds that one invalidation around a commit may take; None as above.
        check_server: whether a value is valid only on the server, and in that run of it, under which it was stored:
            a restored or promoted server serves nothing that it may have missed the invalidation of. False where one
            connection speaks to several servers: through a proxy that spreads keys or reads.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    blocking = True

    def __init__(
        self,
        client: SyncClient,
        *,
        timeout: Duration | None = None,
        commit_timeout: Duration | None = None,
        check_server: bool = True,
    ) -> None:
        _clients.check(client, to_async=False)
        self.client: Any = client
        self.limits = Limits.of(timeout, commit_timeout)
        self.check_server = flag("check_server", check_server)
        self._members = Members.of(client) if _clients.is_cluster(client) else None
        self._slots = _slots(self._members)
        self._by_slot = self._members is not None
        self._open()

    def _open(self) -> None:
        self._reads = self._wire(commit=False)
        self._commits = self._wire(commit=True)

    def _wire(self, *, commit: bool) -> Server | Cluster:
        timeout = self.limits.seconds(commit=commit)
        if self._members is None:
            return Server(self.client, timeout, signs=self.check_server and not commit)
        return Cluster(self._members, self._slots, timeout, signs=self.check_server and not commit)

    @property
    def timeout_ms(self) -> int:
        """How long one read may take, in milliseconds."""
        return self.limits.timeout_ms

    @property
    def is_cluster(self) -> bool:
        """Whether it speaks to the nodes of a cluster."""
        return self._members is not None

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
                return _commands.found(effect, self._reads.ask(effect))
            wire = self._commits if _is_commit(effect) else self._reads
            if type(effect) is Together:
                return tuple(self._together(wire, effect.effects))
            return _commands.decode(effect, wire.send(_commands.encode(effect)))
        except TROUBLE as error:
            raise _commands.failed(effect, error) from error

    def ttl(self, key: str) -> float | None:
        """Return the seconds that a key has left; None if Redis does not tell."""
        try:
            return _commands.seconds(self._reads.send([_commands.time_left(key)])[0])
        except TROUBLE:
            return None

    def _together(self, wire: Server | Cluster, effects: Sequence[Effect[Any]]) -> list[Any]:
        parcel = _commands.pack(effects, by_slot=self._by_slot)
        replies = wire.send(parcel.commands)
        if _crossed(replies) and not self._by_slot:
            self._by_slot = True
            return self._together(wire, effects)
        return _commands.unpack(effects, parcel, replies)

    def sample(self, prefix: str, most: int) -> Sample:
        """Return what is known of some keys with a prefix, at most about so many; raises TransportError.

        It takes a few round trips of at most `commit_timeout` each, and touches no key's place in an eviction.
        """
        wire = self._commits
        try:
            nodes = wire.nodes()
            share = -(-most // len(nodes))
            return together([run(sample(prefix, share), lambda say: wire.say(node, say.lines)) for node in nodes])  # type: ignore[attr-defined]  # noqa: B023
        except TROUBLE as error:
            raise TransportError(f"sample: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the connections that the transport opened; the given client stays open."""
        self._reads.close()
        self._commits.close()

    def twin(self) -> RedisAsyncTransport:
        """Return an async transport to the same servers, with a client of its own in every event loop."""
        twin = RedisAsyncTransport(_clients.twin_client(self.client, to_async=True), check_server=self.check_server)
        twin.limits = self.limits
        twin._free.clear()
        return twin


class _Loop:
    """The connections of one event loop, and the batches that go through them."""

    def __init__(self, wire: AsyncServer | AsyncCluster, limits: Limits) -> None:
        self.wire = wire
        self.limits = limits
        self.batches = Batches(self.execute, self.execute_all)
        self._by_slot = wire.by_slot

    async def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        try:
            if type(effect) is Lookup:  # the one that every hit pays for
                return _commands.found(effect, await self.wire.ask(effect, self.limits.seconds(commit=False)))
            timeout = self.limits.seconds(commit=_is_commit(effect))
            if type(effect) is Together:
                return tuple(await self._together(effect.effects, timeout))
            return _commands.decode(effect, await self.wire.send(_commands.encode(effect), timeout))
        except TROUBLE as error:
            raise _commands.failed(effect, error) from error

    async def execute_all(self, effects: Sequence[Effect[Any]]) -> list[Any]:
        """Return the reply to each of several effects of readers, or its TransportError."""
        try:
            return await self._together(effects, self.limits.seconds(commit=False))
        except TROUBLE as error:
            return [_commands.failed(effect, error) for effect in effects]

    async def _together(self, effects: Sequence[Effect[Any]], timeout: float) -> list[Any]:
        parcel = _commands.pack(effects, by_slot=self._by_slot)
        replies = await self.wire.send(parcel.commands, timeout)
        if _crossed(replies) and not self._by_slot:
            self._by_slot = True
            return await self._together(effects, timeout)
        return _commands.unpack(effects, parcel, replies)


class RedisAsyncTransport:
    """Cached rows in Redis, for `AsyncSession`.

    Args:
        client: a `redis.asyncio.Redis`, a sentinel's `master_for(...)` or a `redis.asyncio.cluster.RedisCluster`; it
            stays yours to close. In an event loop other than the first that used it, a client with the same settings
            takes its place; of a sentinel's or a cluster's client, the settings are used only.
        timeout: seconds that one read of the cache may take; None means what `configure()` says.
        commit_timeout: seconds that one invalidation around a commit may take; None as above.
        check_server: whether a value is valid only on the server, and in that run of it, under which it was stored:
            a restored or promoted server serves nothing that it may have missed the invalidation of. False where one
            connection speaks to several servers: through a proxy that spreads keys or reads.

    Raises:
        ConfigurationError: `client` is something else; the duration is not positive.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        timeout: Duration | None = None,
        commit_timeout: Duration | None = None,
        check_server: bool = True,
    ) -> None:
        _clients.check(client, to_async=True)
        self.client: Any = client
        self.limits = Limits.of(timeout, commit_timeout)
        self.check_server = flag("check_server", check_server)
        self._members = Members.of(client) if _clients.is_cluster(client) else None
        self._slots = _slots(self._members)
        # A connection belongs to the event loop that opened it, and so does a batch.
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()
        # 1 A: the client is free   2 B, in another thread: it is   3 A, B: take it, and each other's connections
        # So the loop that takes it takes it out of here, which only one can.
        self._free: list[Any] = [client] if self._members is None and not _clients.is_own_to_be(client) else []

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises TransportError when Redis does not give one in time.

        Effects of readers that wait in the same turn of the event loop travel together.
        """
        here = self._here()
        if type(effect) in _BATCHED:
            return await here.batches.execute(effect)
        return await here.execute(effect)

    async def attl(self, key: str) -> float | None:
        """Return the seconds that a key has left; None if Redis does not tell."""
        timeout = self.limits.seconds(commit=False)
        try:
            return _commands.seconds((await self._here().wire.send([_commands.time_left(key)], timeout))[0])
        except TROUBLE:
            return None

    def limit(self, timeout_ms: int, commit_timeout_ms: int) -> None:
        """Take the time-outs that `configure()` says, where the constructor was told none."""
        self.limits = self.limits.told(timeout_ms, commit_timeout_ms)
        for here in list(self._loops.values()):
            here.limits = self.limits

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = _Loop(self._wire(), self.limits)
        return here

    def _wire(self) -> AsyncServer | AsyncCluster:
        if self._members is not None:
            return AsyncCluster(self._members, self._slots, signs=self.check_server)
        try:
            return AsyncServer(self._free.pop(), given=True, signs=self.check_server)
        except IndexError:
            twin = _clients.twin_client(self.client, to_async=True)
            return AsyncServer(twin, given=False, signs=self.check_server)

    @property
    def timeout_ms(self) -> int:
        """How long one read may take, in milliseconds."""
        return self.limits.timeout_ms

    @property
    def is_cluster(self) -> bool:
        """Whether it speaks to the nodes of a cluster."""
        return self._members is not None

    async def aclose(self) -> None:
        """Close the connections that the transport opened in this event loop; the given client stays open."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.batches.drain()
            await here.wire.close()

    def twin(self) -> RedisSyncTransport:
        """Return a sync transport to the same servers."""
        twin = RedisSyncTransport(_clients.twin_client(self.client, to_async=False), check_server=self.check_server)
        twin.limits = self.limits
        twin._open()
        return twin


# What readers send. A commit's own effects are one round trip for all of its rows already.
_BATCHED = frozenset({Lookup, Lease, Fill, Resign})


def _is_commit(effect: Effect[Any]) -> bool:
    if type(effect) is Together:
        return any(map(_is_commit, effect.effects))
    return type(effect) in (Begin, End)


def _crossed(replies: Sequence[Any]) -> bool:
    """Return whether look-ups that share an MGET must not: the server is a cluster's, or a proxy in front of one."""
    return any(isinstance(reply, ClusterCrossSlotError) for reply in replies)


def _slots(members: Members | None) -> Slots:
    # One map for all connections and event loops of a transport: what one of them learns, the others know.
    return Slots(()) if members is None else Slots(members.seeds, members.remap)


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
