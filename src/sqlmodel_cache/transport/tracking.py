"""The ear of the near cache: one connection on which Redis tells what is written under a key prefix.

It speaks RESP3 and asks for client tracking in broadcast mode, so that it hears of every key under the prefix, whoever
writes it, and of nothing else. redis-py connects and authenticates it; the messages are read here, since its releases
differ in what they make of them. It decides nothing: whoever listens does.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import selectors
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import ConfigurationError
from ._clients import SHARED_SETTINGS, TWINS
from ._servers import plain

log = logging.getLogger("sqlmodel_cache")

BEAT = 0.25  # seconds from an answer to the next PING
FIRST_PAUSE = 0.05  # seconds before connecting again; doubled with every attempt that fails
LAST_PAUSE = 5.0  # seconds
GOODBYE = 0.5  # seconds that `stop` waits for the thread; only a connect that hangs takes longer than a moment
CHUNK = 65_536  # bytes
CHUNKS = 16  # that are read before anything else gets its turn

_PING = b"*1\r\n$4\r\nPING\r\n"
_POOLS = (
    redis.ConnectionPool,
    redis.BlockingConnectionPool,
    redis.asyncio.ConnectionPool,
    redis.asyncio.BlockingConnectionPool,
)


class Listener(Protocol):
    """Whom the connection tells. All but `forget` are called from its thread."""

    def alive(self, sent: float) -> None:
        """Everything has been told that had happened by `sent`, in seconds of `time.monotonic()`."""

    def hear(self, keys: Iterable[str]) -> None:
        """These keys have been written, have expired, or were evicted."""

    def empty(self) -> None:
        """All keys are gone."""

    def lost(self) -> None:
        """The connection is gone, and what it had to tell with it."""

    def forget(self) -> None:
        """The process has been forked."""


class Tracking:
    """One connection to Redis, in a daemon thread of its own, opened when it is first wanted, and again when lost.

    Args:
        client: a `redis.Redis` or `redis.asyncio.Redis`, whose settings are used.
        prefix: of the keys to hear of.
        listener: whom to tell.
        late: seconds that an answer to a PING, or to anything else, may take.

    Raises:
        ConfigurationError: the client's connections are of a kind that cannot be opened one by one.
    """

    def __init__(self, client: Any, prefix: str, listener: Listener, *, late: float) -> None:
        self._make = _maker(client, late)
        self._prefix = prefix
        self._listener = listener
        self._late = late
        self._fork_safe_state()
        _watch_forks()
        _alive.add(self)

    def _fork_safe_state(self) -> None:
        self._lock = threading.Lock()  # guards `_thread`
        self._thread: _Thread | None = None

    def after_fork(self) -> None:
        """Begin anew in a child: it has no thread, and the connection is its parent's."""
        thread = self._thread
        self._fork_safe_state()
        self._listener.forget()
        if thread is not None:
            thread.close()

    def start(self) -> None:
        """Connect, if that has not begun. Returns at once; does nothing where no thread can be started any more."""
        if self._thread is not None:
            return
        with self._lock, contextlib.suppress(RuntimeError, OSError):
            if self._thread is None:
                thread = _Thread(self._make, self._prefix, self._listener, self._late)
                thread.start()
                self._thread = thread

    def stop(self) -> None:
        """Close the connection and end the thread. `start` would begin anew."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()
            thread.join(GOODBYE)


class _Thread(threading.Thread):
    """The thread, from `start` to `stop`."""

    def __init__(self, make: Callable[[], Any], prefix: str, listener: Listener, late: float) -> None:
        super().__init__(name="sqlmodel-cache-near", daemon=True)
        self._make = make
        self._prefix = prefix
        self._listener = listener
        self._late = late
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._sock: socket.socket | None = None  # while it is connected
        self._stopping = False
        self._answered = False  # since it connected last

    def stop(self) -> None:
        """Ask it to end."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def close(self) -> None:
        """Close what it has opened: where it ends, or in a child, to which it has not come along.

        A connection that a child held open would stay with Redis when the parent dies, and nobody would read from it.
        """
        for opened in (self._waker, self._woken, self._selector, self._sock):
            if opened is not None:
                opened.close()

    def run(self) -> None:
        """Stay connected until told to stop."""
        pause, complained = FIRST_PAUSE, False
        self._selector.register(self._woken, selectors.EVENT_READ)
        while not self._stopping:
            self._answered = False
            try:
                self._connect()
            except Exception as why:  # whatever it is, nothing is heard any more
                if self._answered:
                    pause, complained = FIRST_PAUSE, False
                log.log(logging.DEBUG if complained else logging.WARNING, "the near cache hears nothing: %r", why)
                complained = True
            finally:
                self._listener.lost()
            if not self._stopping:
                self._selector.select(pause)
                pause = min(2 * pause, LAST_PAUSE)
        self.close()

    def _connect(self) -> None:
        connection = self._make()
        try:
            connection.connect()
            self._sock = sock = connection._sock  # redis-py has no public name for it
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
            try:
                self._listen(connection, sock)
            finally:
                self._selector.unregister(sock)
        finally:
            self._sock = None
            connection.disconnect()

    def _listen(self, connection: Any, sock: socket.socket) -> None:
        """Ask for tracking, and then a PING at a time. Its answer comes after all that was told before."""
        messages = Messages()
        words = connection.pack_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._prefix)
        sent, waiting, more = time.monotonic(), True, False
        sock.sendall(b"".join(words))
        while True:
            due = sent + (self._late if waiting else BEAT)
            self._selector.select(0 if more else max(0.0, due - time.monotonic()))
            if self._stopping:
                return
            data = _received(sock)
            more = len(data) == CHUNKS
            for message in messages.feed(b"".join(data)):
                if isinstance(message, Push):
                    self._told(message)
                elif message in (b"OK", b"PONG"):
                    self._listener.alive(sent)
                    waiting, self._answered = False, True
                else:
                    raise ConnectionError(f"Redis says: {message!r:.200}")
            now = time.monotonic()
            if waiting and now >= sent + self._late:
                raise TimeoutError(f"no answer for {self._late:g} s")
            if not waiting and now >= sent + BEAT:
                sent, waiting = now, True
                sock.sendall(_PING)

    def _told(self, push: Push) -> None:
        if push[:1] == [b"invalidate"]:
            keys = push[1]
            if keys is None:
                self._listener.empty()
            else:
                self._listener.hear([key.decode("utf-8", "surrogateescape") for key in keys])


def _received(sock: socket.socket) -> list[bytes]:
    """Return what has arrived."""
    data: list[bytes] = []
    while len(data) < CHUNKS:
        try:
            chunk = sock.recv(CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            break
        if not chunk:
            raise ConnectionError("Redis has closed the connection")
        data.append(chunk)
    return data


class Push(list[Any]):
    """A message that nobody has asked for."""


class Messages:
    """RESP3, as far as this connection hears it, from bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._parser = self._parse()

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that are complete now. Raises ConnectionError for what is no RESP3."""
        del self._buffer[: self._at]
        self._at = 0
        self._buffer += data
        found: list[Any] = []
        for message in self._parser:
            if message is _MORE:
                break
            found.append(message)
        return found

    def _parse(self) -> Generator[Any, None, None]:
        while True:
            yield (yield from self._value())

    def _value(self) -> Generator[Any, None, Any]:
        line = yield from self._take(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else (yield from self._take(size))
        if kind in (b"*", b">"):
            values: list[Any] = Push() if kind == b">" else []
            for _ in range(int(rest)):
                values.append((yield from self._value()))  # noqa: PERF401  a comprehension cannot yield
            return values
        if kind == b"_":
            return None
        if kind == b"+":
            return rest
        if kind == b"-":
            return ConnectionError(rest.decode("utf-8", "replace"))
        raise ConnectionError(f"not what a tracking connection hears: {line!r:.200}")

    def _take(self, end: bytes | int) -> Generator[Any, None, bytes]:
        """Return the bytes before an end of line, or so many and an end of line."""
        while True:
            at = self._buffer.find(end, self._at) if isinstance(end, bytes) else self._at + end
            if 0 <= at <= len(self._buffer) - 2:
                taken = bytes(self._buffer[self._at : at])
                self._at = at + 2
                return taken
            yield _MORE


_MORE = object()


def _maker(client: Any, late: float) -> Callable[[], Any]:
    """Return what makes a connection with a client's settings, its protocol and time-outs excepted."""
    pool = getattr(client, "connection_pool", client)  # a cluster's client has many
    for pair in TWINS:
        if type(pool) in _POOLS and plain(pool.connection_class) in pair:
            settings = {key: value for key, value in pool.connection_kwargs.items() if key in SHARED_SETTINGS}
            settings |= {"protocol": 3, "health_check_interval": 0, "retry": Retry(NoBackoff(), 0)}
            settings |= {"socket_timeout": late, "socket_connect_timeout": late}
            return lambda: pair[0](**settings)
    made = getattr(pool, "connection_class", type(pool)).__name__
    raise ConfigurationError(
        "near_cache",
        client,
        f"no connection for it can be derived from {type(pool).__name__} and {made} "
        "(Sentinel and Cluster are not supported yet); leave near_cache out, or give a transport whose client has a "
        "plain connection pool",
    )


_alive: weakref.WeakSet[Tracking] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_anew)


def _begin_anew() -> None:
    for tracking in _alive:
        tracking.after_fork()
