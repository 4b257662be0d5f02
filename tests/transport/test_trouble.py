"""A Redis that is away, dies, hangs or refuses: TransportError, within the time-out, and well again afterwards.

Times are compared with a multiple of the time-out that only a hang exceeds.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis
import redis.asyncio
import servers
from proxy import Proxy
from transport.backends import ENTRY, FENCE_TTL_MS, FINGERPRINT, NEIGHBOUR, PAYLOAD, ROW, TTL_MS, id_of

from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, TransportError
from sqlmodel_cache._effects import Begin, End, Fill, Granted, Keys, Lease, Lookup
from sqlmodel_cache._plan import Effect

TIMEOUT = 0.1  # seconds
BRIEF = 0.25  # seconds, where both happen
PATIENT = 2.0  # seconds, where an answer must come
HANG = 5.0  # seconds that no call may take

TOKEN = id_of("token")
MANY = Keys(ROW.rows, tuple(f"c:{{db/team:{shard}}}" for shard in range(16)))
EFFECTS: list[Effect[Any]] = [
    Lookup(ENTRY, FINGERPRINT),
    Lease(ENTRY, FINGERPRINT, TOKEN),
    Fill(ENTRY, Granted(TOKEN, TOKEN), FINGERPRINT, PAYLOAD, TTL_MS),
    Begin(MANY, TOKEN, FENCE_TTL_MS),
    End(MANY, TOKEN, id_of("end")),
]


class Caller:
    """Executes effects on a server that may be in trouble, sync or async."""

    def __init__(
        self, url: str, loop: asyncio.AbstractEventLoop | None, *, timeout: float = TIMEOUT, **options: Any
    ) -> None:
        self._loop = loop
        self._client: Any
        limits = {"timeout": timeout, "commit_timeout": timeout}
        if loop is None:
            self._client = redis.Redis.from_url(url, **options)
            self.transport: Any = RedisSyncTransport(self._client, **limits)
        else:
            self._client = redis.asyncio.Redis.from_url(url, **options)
            self.transport = RedisAsyncTransport(self._client, **limits)

    def __call__(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        if self._loop is None:
            return self.transport.execute(effect)
        return self._loop.run_until_complete(self.transport.aexecute(effect))

    def fails(self, effect: Effect[Any]) -> None:
        """Assert that the effect is a TransportError that names it, and that it did not hang."""
        began = time.monotonic()
        with pytest.raises(TransportError, match=type(effect).__name__) as raised:
            self(effect)
        assert time.monotonic() - began < HANG
        assert raised.value.__cause__ is not None

    def close(self) -> None:
        """Close everything."""
        if self._loop is None:
            self.transport.close()
            self._client.close()
        else:
            self._loop.run_until_complete(self.transport.aclose())
            self._loop.run_until_complete(self._client.aclose())


@pytest.fixture(params=["redis", "redis.asyncio"])
def caller_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop | None:
    """None for the sync transport, an event loop for the async one."""
    if request.param == "redis":
        return None
    loop: asyncio.AbstractEventLoop = request.getfixturevalue("loop")
    return loop


@pytest.fixture
def server() -> Iterator[servers.RedisServer]:
    """A Redis of the test's own, to be killed."""
    server = servers.RedisServer()
    yield server
    server.stop()


def test_dead_port_is_a_transport_error(caller_loop: asyncio.AbstractEventLoop | None) -> None:
    """Where nobody listens every effect fails, and none waits long."""
    with closing(Caller(f"redis://127.0.0.1:{servers.free_port()}/0", caller_loop)) as call:
        for effect in EFFECTS:
            call.fails(effect)


@pytest.mark.parametrize("accepts", [True, False])
def test_server_that_never_answers_costs_the_timeout(
    caller_loop: asyncio.AbstractEventLoop | None, accepts: bool
) -> None:
    """A black hole, accepting connections or not, is bounded by the time-out, whatever the client's own is."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(16 if accepts else 0)
        url = f"redis://127.0.0.1:{hole.getsockname()[1]}/0"
        slow = {"socket_timeout": 60, "socket_connect_timeout": 60}
        with ExitStack() as full, closing(Caller(url, caller_loop, **slow)) as call:
            for _ in range(0 if accepts else 8):
                waiting = full.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(hole.getsockname())
            for effect in EFFECTS:
                call.fails(effect)


def test_server_killed_and_restarted(
    caller_loop: asyncio.AbstractEventLoop | None, server: servers.RedisServer
) -> None:
    """A kill between two calls is an error, not a wrong answer; a server that is back, empty, is used again."""
    with closing(Caller(server.url, caller_loop, timeout=PATIENT)) as call:
        granted = call(EFFECTS[1])
        assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
        assert call(EFFECTS[0]) == PAYLOAD
        server.stop()
        for effect in EFFECTS:
            call.fails(effect)
        server.start()
        assert call(EFFECTS[0]) is None
        assert isinstance(call(EFFECTS[1]), Granted)
        assert call(EFFECTS[3]) is None


def test_late_reply_is_never_taken_for_the_next_one(
    caller_loop: asyncio.AbstractEventLoop | None, server: servers.RedisServer
) -> None:
    """A connection whose reply came too late is dropped: what is asked next gets its own answer."""
    with closing(Caller(server.url, caller_loop, timeout=BRIEF)) as call, redis.Redis.from_url(server.url) as admin:
        granted = call(EFFECTS[1])
        assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
        for effect in EFFECTS:
            server.process.send_signal(signal.SIGSTOP)
            call.fails(effect)
            server.process.send_signal(signal.SIGCONT)
            assert admin.ping()  # waits until it answers again
            assert call(Lookup(ENTRY, b"another!")) is None
        assert call(EFFECTS[3]) is None
        assert call(EFFECTS[2]) is False


def test_server_that_wants_a_password_is_a_transport_error(caller_loop: asyncio.AbstractEventLoop | None) -> None:
    """A server that refuses the client's credentials is as good as away."""
    server = servers.RedisServer()
    try:
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("requirepass", "secret")
        with closing(Caller(server.url, caller_loop)) as call:
            for effect in EFFECTS:
                call.fails(effect)
        with closing(Caller(server.url.replace("//", "//:secret@"), caller_loop, timeout=PATIENT)) as call:
            assert call(EFFECTS[0]) is None
    finally:
        server.stop()


def test_closed_transport_can_be_used_again(caller_loop: asyncio.AbstractEventLoop | None, redis_url: str) -> None:
    """Closing releases connections only; a call after it opens new ones, and the given client stays usable."""
    call = Caller(redis_url, caller_loop, timeout=PATIENT)
    assert call(EFFECTS[3]) is None
    call.close()
    with closing(call):
        assert call(EFFECTS[4]) is None


def test_cancelled_call_leaves_no_reply_behind(loop: asyncio.AbstractEventLoop, server: servers.RedisServer) -> None:
    """A task that is cancelled while it waits is cancelled, and the next call on the transport gets its own answer."""
    call = Caller(server.url, loop, timeout=HANG)

    async def cancel(effect: Effect[Any]) -> None:
        task = asyncio.ensure_future(call.transport.aexecute(effect))
        for _ in range(20):  # turns of the loop: the command is out, the server does not answer
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with closing(call):
        granted = call(EFFECTS[1])
        assert call(Fill(ENTRY, granted, FINGERPRINT, PAYLOAD, TTL_MS)) is True
        for effect in EFFECTS:
            server.process.send_signal(signal.SIGSTOP)
            loop.run_until_complete(cancel(effect))
            server.process.send_signal(signal.SIGCONT)
            assert call(Lookup(ENTRY, b"another!")) is None
        assert call(EFFECTS[3]) is None


class Interruption(BaseException):
    """What a signal's handler raises, as KeyboardInterrupt or a task queue's time limit."""


@pytest.mark.parametrize("method", ["send_packed_command", "read_response"])
@pytest.mark.parametrize("when", ["opening", "asking"])
def test_interrupted_call_leaves_no_reply_to_the_next(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, method: str, when: str
) -> None:
    """Interrupted between sending and reading: the next call gets its own reply, and no other row's."""
    writer = RedisSyncTransport(redis_client, timeout=PATIENT, commit_timeout=PATIENT)
    rows = {ENTRY: b"row", NEIGHBOUR: b"neighbour"}
    for entry, payload in rows.items():
        lease = writer.execute(Lease(entry, FINGERPRINT, id_of("lease")))
        assert writer.execute(Fill(entry, lease, FINGERPRINT, payload, TTL_MS))
    proxy = Proxy(redis_client.connection_pool.connection_kwargs["port"])
    original = getattr(redis.Connection, method)
    pending: list[Interruption] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if pending and method == "read_response":
            raise pending.pop()
        reply = original(*arguments, **options)
        if pending:
            raise pending.pop()
        return reply

    monkeypatch.setattr(redis.Connection, method, interrupted)
    transport = RedisSyncTransport(redis.Redis(port=proxy.port, protocol=3), timeout=PATIENT, check_server=False)
    if when == "asking":
        transport.execute(Lookup(ENTRY, FINGERPRINT))
    proxy.be("slow")  # the reply has not arrived by the time of the next call
    pending.append(Interruption())
    with pytest.raises(Interruption):
        transport.execute(Lookup(ENTRY, FINGERPRINT))
    for _ in range(2):
        for entry, payload in rows.items():
            assert transport.execute(Lookup(entry, FINGERPRINT)) == payload
    transport.close()
    proxy.close()
