"""Which server a connection speaks to, as far as it matters: whether a table's version is one that it has made itself.

    unknown   --a lease tells its name-->   known, or nameless   --disconnected, or no master any more-->   unknown

A server has another name after every start and every promotion, and no connection outlives a start. So a value that
was restored, or that a replica kept because it missed an invalidation, is under a name that is not its server's.

A connection signs its replies with the server that gave them: by the time that a reply is looked at, the connection
may be another caller's, and connected to another server.
"""

from __future__ import annotations

import functools
from typing import Any

from redis.exceptions import MasterDownError, MovedError, ReadOnlyError

_NOT_A_MASTER = (ReadOnlyError, MasterDownError, MovedError)


class Server:
    """What one connection knows, from when it is opened until it is closed.

    `mark` is what a table's key begins with when its version is valid here: nothing does while the server is unknown.
    """

    __slots__ = ("mark",)

    def __init__(self, mark: bytes = b"?") -> None:
        self.mark = mark

    def learn(self, name: bytes) -> None:
        """Take note of the server's name; it is empty when the server does not tell."""
        self.mark = b"T" + name


ANY = Server(b"T")  # whose connections do not sign: every table's version is valid


class _Own:
    """What a connection's class is extended by."""


class _Signing(_Own):
    """What it is extended by so that it signs its replies."""

    server: Server

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.server = Server()

    def _signed(self, reply: Any, raw: bool) -> Any:
        # Only the transport's own commands ask for raw replies.
        return (self.server, reply) if raw and type(reply) is list else reply

    def _refused(self, error: BaseException) -> None:
        # 1 M is demoted, its connections stay open   2 M has a new name by the time that it is a master again
        if isinstance(error, _NOT_A_MASTER):
            self.server = Server()


@functools.cache
def closing(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections, sync, that are closed when anything interrupts their opening."""

    class Closing(_Own, connection_class):  # type: ignore[misc]
        def connect(self, *args: Any, **options: Any) -> None:
            # 1 R: opens, greets, is interrupted: a signal's handler raises   2 R2: asks, and reads the reply to R
            try:
                super().connect(*args, **options)
            except BaseException:
                self.disconnect()
                raise

    return Closing


@functools.cache
def signing(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections, sync, whose raw replies are `(server, reply)` where they are lists."""

    class Signing(_Signing, connection_class):  # type: ignore[misc]
        def disconnect(self, *args: Any, **options: Any) -> None:
            self.server = Server()
            super().disconnect(*args, **options)

        def read_response(self, disable_decoding: bool = False, **options: Any) -> Any:
            try:
                reply = super().read_response(disable_decoding=disable_decoding, **options)
            except _NOT_A_MASTER as error:
                self._refused(error)
                raise
            return self._signed(reply, disable_decoding)

    return Signing


@functools.cache
def signing_async(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections, asyncio, whose raw replies are `(server, reply)` where they are lists."""

    class Signing(_Signing, connection_class):  # type: ignore[misc]
        async def disconnect(self, *args: Any, **options: Any) -> None:
            self.server = Server()
            await super().disconnect(*args, **options)

        async def read_response(self, disable_decoding: bool = False, **options: Any) -> Any:
            try:
                reply = await super().read_response(disable_decoding=disable_decoding, **options)
            except _NOT_A_MASTER as error:
                self._refused(error)
                raise
            return self._signed(reply, disable_decoding)

    return Signing


def begin_to_sign(connection: Any) -> None:
    """Let an asyncio connection that exists sign its replies from now on; which server it speaks to is unknown."""
    if not isinstance(connection, _Signing):
        kind: Any = type(connection)
        connection.__class__ = signing_async(kind)
        connection.server = Server()


def signed(reply: Any) -> Any:
    """Return a reply that ought to be signed: one that is not is that of a server that nobody knows."""
    return (Server(), reply) if type(reply) is list else reply


def plain(connection_class: Any) -> Any:
    """Return a class of connections as it was before it was made one of these."""
    return next(each for each in connection_class.__mro__ if not issubclass(each, _Own))


def unsigned(reply: Any) -> tuple[Server, Any]:
    """Return who gave a reply, and the reply."""
    return reply if type(reply) is tuple else (ANY, reply)
