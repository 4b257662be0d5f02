"""One face for every transport: execute effects, look at what a key holds, and reach behind the transport's back.

The layout of keys in Redis is written here a second time, from the header of `lua/marks.lua`, so that a change of it
is noticed.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
import redis.asyncio

from sqlmodel_cache import MemoryTransport
from sqlmodel_cache._effects import Entry, Granted, Keys
from sqlmodel_cache._plan import Effect
from sqlmodel_cache.transport.memory import _Fence, _Value

ENTRY = Entry("c:{db/hero:0}:1", "c:{db/hero:0}")
NEIGHBOUR = Entry("c:{db/hero:0}:17", "c:{db/hero:0}")
ELSEWHERE = Entry("c:{db/hero:1}:2", "c:{db/hero:1}")
ROW = Keys((ENTRY.row,), ())
TABLE = Keys((), (ENTRY.table,))

FINGERPRINT, OTHER_FINGERPRINT = b"release1", b"release2"
PAYLOAD = b"\x93the row\x00\xff"
FENCE_TTL_MS = 60_000
TTL_MS = 300_000
PAST = 1.0  # a deadline in 1970, and long before any monotonic clock's now
FAR = 1e15

HERE, ANOTHER, NOBODY = b"this very server", b"another, or once", b"-" * 16  # servers that a table's key may name


def id_of(name: str) -> bytes:
    """Return the 16 bytes of a name."""
    return name.encode().ljust(16, b"\0")


def version_of(name: str) -> bytes:
    """Return the 12 bytes of a version's name."""
    return name.encode().ljust(12, b"\0")


@dataclass(frozen=True)
class Fence:
    """What a key holds: a version; the tokens that are written there, with their deadlines in ms; an election's end.

    A table's names a server, too.
    """

    version: bytes
    pending: tuple[tuple[bytes, float], ...] = ()
    election: float | None = None
    server: bytes | None = None

    @property
    def tokens(self) -> frozenset[bytes]:
        """Return the tokens, lapsed or not."""
        return frozenset(token for token, _ in self.pending)

    def raw(self) -> bytes:
        """Return the fence as Redis holds it."""
        tokens = b"".join(token + struct.pack(">d", deadline) for token, deadline in self.pending)
        head = b"F" if self.server is None else b"T" + self.server
        return head + self.version + tokens + (b"" if self.election is None else struct.pack(">d", self.election))


@dataclass(frozen=True)
class Value:
    """What a key holds: a row under a version and its table's, once for each fingerprint, the latest first."""

    version: bytes
    table_version: bytes
    payloads: tuple[tuple[bytes, bytes], ...]

    def raw(self) -> bytes:
        """Return the value as Redis holds it."""
        stored = b"".join(name + struct.pack(">I", len(payload)) + payload for name, payload in self.payloads)
        return b"V\x03" + self.version + self.table_version + stored


Held = Fence | Value | None


class Backend:
    """A transport under test."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        return self.transport.execute(effect)

    def peek(self, key: str) -> Held:
        """Return what a key holds."""
        raise NotImplementedError

    def place(self, key: str, held: Fence | Value) -> None:
        """Write a key behind the transport's back."""
        raise NotImplementedError

    def evict(self, key: str) -> None:
        """Lose a key."""
        raise NotImplementedError

    def ttl(self, key: str) -> float:
        """Return the seconds that a value has left."""
        raise NotImplementedError

    def told_ttl(self, key: str) -> float | None:
        """Return them as the transport tells them."""
        left: float | None = self.transport.ttl(key)
        return left

    def lapse(self, key: str, tokens: Iterable[bytes] | None = None) -> None:
        """Let the deadlines of a key's tokens pass: of all, or of some."""
        held = self.peek(key)
        assert isinstance(held, Fence)
        names = held.tokens if tokens is None else frozenset(tokens)
        pending = tuple((token, PAST if token in names else deadline) for token, deadline in held.pending)
        self.place(key, replace(held, pending=pending))

    def lapse_election(self, key: str) -> None:
        """Let the time of the one who is elected to fill a row pass."""
        held = self.peek(key)
        assert isinstance(held, Fence)
        assert held.election is not None
        self.place(key, replace(held, election=PAST))

    def forget_server(self, key: str) -> None:
        """Let a table's key name another server: as after a restart, a restore or a failover."""
        held = self.peek(key)
        assert isinstance(held, Fence)
        self.place(key, replace(held, server=ANOTHER))

    def own_version(self, key: str) -> bytes:
        """Return the version of a fence or a value, or 12 bytes that are nobody's."""
        held = self.peek(key)
        return version_of("nobody's") if held is None else held.version

    def granted(self) -> Granted:
        """Return the lease that a reader of `ENTRY` would hold now."""
        return Granted(self.own_version(ENTRY.row), self.own_version(ENTRY.table))


class MemoryBackend(Backend):
    """The in-process transport, on a clock that stands still."""

    def __init__(self, transport: type[MemoryTransport] = MemoryTransport) -> None:
        self.now = 1_000.0
        super().__init__(transport(clock=lambda: self.now))

    def peek(self, key: str) -> Held:
        held = self.transport._rows.get(key) or self.transport._tables.get(key)
        if isinstance(held, _Value):
            return Value(held.version, held.table_version, tuple(reversed(held.payloads.items())))
        if held is None:
            return None
        return Fence(held.version, tuple(held.pending.items()), held.election or None, self._name_of(key, held))

    def _name_of(self, key: str, held: _Fence) -> bytes | None:
        if not key.endswith("}"):
            return None
        return HERE if held.server is self.transport._server else NOBODY if held.server is None else ANOTHER

    def place(self, key: str, held: Fence | Value) -> None:
        if isinstance(held, Value):
            payloads = dict(reversed(held.payloads))
            self.transport._rows[key] = _Value(held.version, held.table_version, payloads, FAR)
            return
        home = self.transport._tables if key.endswith("}") else self.transport._rows
        server = self.transport._server if held.server == HERE else held.server
        home[key] = _Fence(held.version, dict(held.pending), election=held.election or 0.0, server=server)

    def evict(self, key: str) -> None:
        self.transport.evict(key)

    def ttl(self, key: str) -> float:
        return float(self.transport.ttl(key))


class RedisBackend(Backend):
    """A transport on a real Redis; `client` is the test's own way in."""

    def __init__(self, transport: Any, client: redis.Redis) -> None:
        super().__init__(transport)
        self.client: Any = client

    def peek(self, key: str) -> Held:
        raw = self.client.get(key)
        held = None if raw is None else parse(raw)
        if isinstance(held, Fence) and held.server not in (None, NOBODY, ANOTHER):
            assert held.server == self.client.info("replication")["master_replid"][:16].encode()
            held = replace(held, server=HERE)
        return held

    def place(self, key: str, held: Fence | Value) -> None:
        if isinstance(held, Fence) and held.server == HERE:
            held = replace(held, server=self.client.info("replication")["master_replid"][:16].encode())
        self.client.set(key, held.raw(), keepttl=True)

    def evict(self, key: str) -> None:
        self.client.delete(key)

    def ttl(self, key: str) -> float:
        return float(self.client.pttl(key)) / 1000

    def all_expire(self) -> bool:
        """Return whether every key of the database has a TTL."""
        return all(self.client.pttl(key) > 0 for key in self.client.scan_iter())


class AsyncRedisBackend(RedisBackend):
    """The async transport, in an event loop that lives as long as the test."""

    def __init__(self, transport: Any, client: redis.Redis, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport, client)
        self._loop = loop

    def execute(self, effect: Effect[Any]) -> Any:
        return self._loop.run_until_complete(self.transport.aexecute(effect))

    def told_ttl(self, key: str) -> float | None:
        left: float | None = self._loop.run_until_complete(self.transport.attl(key))
        return left


def parse(raw: bytes) -> Fence | Value:
    """Return what the bytes of a key mean."""
    if raw[:2] == b"V\x03":
        payloads, rest = [], raw[26:]
        while rest:
            fingerprint, length = struct.unpack(">8sI", rest[:12])
            payloads.append((fingerprint, rest[12 : 12 + length]))
            rest = rest[12 + length :]
        return Value(raw[2:14], raw[14:26], tuple(payloads))
    if raw[:1] == b"T":
        fence = parse(b"F" + raw[17:])
        assert isinstance(fence, Fence)
        return replace(fence, server=raw[1:17])
    assert raw[:1] == b"F"
    if len(raw) == 21:
        return Fence(raw[1:13], (), struct.unpack(">d", raw[13:])[0])
    assert (len(raw) - 13) % 24 == 0
    return Fence(raw[1:13], tuple(struct.iter_unpack(">16sd", raw[13:])))


class Sent:
    """Counts how often a client writes to its connections."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        for kind in (redis.connection.AbstractConnection, redis.asyncio.connection.AbstractConnection):
            monkeypatch.setattr(kind, "send_packed_command", self._counting(kind.send_packed_command))

    def _counting(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            self.times += 1
            return send(*args, **options)

        return counting

    def by(self, act: Callable[[], object]) -> int:
        """Return how often `act` writes."""
        before = self.times
        act()
        return self.times - before
