"""A server in the place of Redis that says what it likes: an effect ends in a reply of its own kind, or an error."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from transport.backends import ENTRY, FENCE_TTL_MS, FINGERPRINT, PAYLOAD, ROW, TTL_MS, id_of
from transport.topologies import Caller

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, TransportError
from sqlmodel_cache._effects import Begin, End, Fenced, Fill, Filling, Granted, Hit, Lease, Lookup, Resign, Together
from sqlmodel_cache.transport._clients import Members

NESTED = 3_000
NEVER = Retry(NoBackoff(), 0)
REPLIES = {
    "an integer": b":5\r\n",
    "integers": b"*2\r\n:5\r\n:6\r\n",
    "an integer beside a value": b"*2\r\n$1\r\na\r\n:6\r\n",
    "a boolean": b"#t\r\n",
    "booleans": b"*2\r\n#t\r\n#f\r\n",
    "doubles": b"*2\r\n,1.5\r\n,inf\r\n",
    "lists": b"*2\r\n*1\r\n:1\r\n*0\r\n",
    "errors": b"*2\r\n-ERR a\r\n-MOVED b\r\n",
    "a map": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "a map of lists": b"%1\r\n*1\r\n:1\r\n$1\r\nb\r\n",
    "a set of lists": b"~1\r\n*1\r\n:1\r\n",
    "nothing": b"_\r\n",
    "an array of less than nothing": b"*-7\r\n",
    "text of less than nothing": b"$-7\r\n",
    "more than there is": b"*99999999999\r\n:1\r\n",
    "more text than there is": b"$99999999999\r\na\r\n",
    "too many digits": b":" + b"9" * 5_000 + b"\r\n",
    "no number": b":x\r\n",
    "a deep nest": b"*1\r\n" * NESTED + b":1\r\n",
    "a push": b">1\r\n:5\r\n:1\r\n",
    "no RESP": b"\xff\xfe\r\n\r\n",
    "an error that is no text": b"-\xff\xfe\r\n",
    "MOVED without a node": b"-MOVED 5\r\n",
    "MOVED to nowhere": b"-MOVED 5 :999999999999999999999\r\n",
    "ASK without a port": b"-ASK 5 localhost\r\n",
    "scripts that are never known": b"-NOSCRIPT x\r\n",
    "a hit of something else": b"*3\r\n$3\r\nhit\r\n$2\r\nxx\r\n:5\r\n",
    "a filling for true": b"*5\r\n$7\r\nfilling\r\n$1\r\nx\r\n$1\r\nx\r\n$1\r\nx\r\n#t\r\n",
}
ALL_SLOTS = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
MAPS = {
    "a node without a name": b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n:5\r\n:6\r\n",
    "a port that is none": b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:999999999999999999999\r\n",
    "a port that is no number": b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "slots that are no numbers": b"*1\r\n*3\r\n$1\r\na\r\n$1\r\nb\r\n*2\r\n$1\r\na\r\n:1\r\n",
    "slots for ever": b"*1\r\n*3\r\n:0\r\n:999999999999999999\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
    "slots before the first": b"*1\r\n*3\r\n:-99999\r\n:5\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
    "a replica that is none": b"*1\r\n*4\r\n:0\r\n:5\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n:5\r\n",
    "rows of nothing": b"*2\r\n*0\r\n:1\r\n",
}
EFFECTS: list[tuple[Any, tuple[type, ...]]] = [
    (Lookup(ENTRY, FINGERPRINT), (type(None), bytes)),
    (Lease(ENTRY, FINGERPRINT, id_of("lease"), elect_ms=500), (Hit, Granted, Filling, Fenced)),
    (Fill(ENTRY, Granted(b"v" * 12, b"t" * 12), FINGERPRINT, PAYLOAD, TTL_MS), (bool,)),
    (Begin(ROW, id_of("begin"), FENCE_TTL_MS), (type(None),)),
    (End(ROW, id_of("begin"), id_of("end")), (type(None),)),
    (Resign(ENTRY, Granted(b"v" * 12, b"t" * 12)), (type(None),)),
    (Together((Lookup(ENTRY, FINGERPRINT), Lease(ENTRY, FINGERPRINT, id_of("lease")))), (tuple,)),
]


class Impostor:
    """Says one thing to whatever it is asked, and hangs up; it lets clients introduce themselves."""

    def __init__(self, reply: bytes, slots: bytes | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._reply = reply
        self._slots = ALL_SLOTS % self.port if slots is None else slots
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while asked := client.recv(65_536):
                if b"HELLO" in asked:
                    client.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n")
                elif b"SETINFO" in asked:
                    client.sendall(b"+OK\r\n" * asked.count(b"SETINFO"))
                elif b"SLOTS" in asked:
                    client.sendall(self._slots)
                else:
                    client.sendall(self._reply)
                    client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def caller_on(server: Impostor, kind: str, protocol: int, *, to_cluster: bool) -> Iterator[Caller]:
    """Yield a transport on a server."""
    module: Any = redis if kind == "sync" else redis.asyncio
    if to_cluster:  # a RedisCluster would connect
        client: Any = Members((("127.0.0.1", server.port),), module.Connection, {"protocol": protocol})
    else:
        client = module.Redis(port=server.port, protocol=protocol, retry=None if kind == "sync" else NEVER)
    if kind == "sync":
        sync = RedisSyncTransport(client, timeout=30, commit_timeout=30)
        yield Caller(sync, None)
        sync.close()
        return
    loop = asyncio.new_event_loop()
    transport = RedisAsyncTransport(client, timeout=30, commit_timeout=30)
    yield Caller(transport, loop)
    loop.run_until_complete(transport.aclose())
    if not to_cluster:
        loop.run_until_complete(client.aclose())
    loop.close()


def check(kind: str, protocol: int, *, to_cluster: bool, reply: bytes, slots: bytes | None = None) -> None:
    """Ask for everything."""
    server = Impostor(reply, slots)
    try:
        with caller_on(server, kind, protocol, to_cluster=to_cluster) as call:
            for effect, kinds in EFFECTS:
                try:
                    found = call(effect)
                except TransportError:
                    continue
                assert isinstance(found, kinds), effect
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("to_cluster", [False, True], ids=["server", "cluster"])
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_whatever_a_server_says(kind: str, protocol: int, to_cluster: bool, reply: bytes) -> None:
    """An effect is answered by what it may be answered with, or fails as a transport fails."""
    check(kind, protocol, to_cluster=to_cluster, reply=reply)


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("slots", MAPS.values(), ids=MAPS)
def test_whatever_a_map_says(kind: str, slots: bytes) -> None:
    """A node whose map is none is one that does not know; nothing grows to the size that it names."""
    check(kind, 2, to_cluster=True, reply=b":1\r\n", slots=slots)
