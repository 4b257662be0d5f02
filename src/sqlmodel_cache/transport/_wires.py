"""Ways of sending commands: to one server or to the nodes of a cluster, sync and async side by side. Decides nothing.

All return a reply for each command, in order; what a server refuses replies with its error. A sync wire is made for one
time-out, an async one is told it with every call. Both are bounds for all nodes together, but for this: a node that
stops in the middle of a reply, or takes its time to accept a connection, costs a sync caller one more.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from .._effects import Lookup
from .._plan import arun, run
from . import _commands
from ._clients import Members, bounded, close_bounded, know_errors, sign
from ._cluster import Mail, Node, Slots
from ._commands import Command, Words
from ._servers import signed

# What a client raises for a server in trouble. RuntimeError: an event loop that is closed, or another one's client.
# The last three: a reply that no server gives, in the client's parser or on the way to the node that it names.
TROUBLE = (RedisError, OSError, TimeoutError, RuntimeError, ValueError, TypeError, OverflowError)

# Before 5.3, redis-py wants the command's name, which it does not use; from then on it warns of it.
_COMMAND = inspect.signature(redis.ConnectionPool.get_connection).parameters["command_name"]
_UNNAMED = () if _COMMAND.default is None else ("",)


class Server:
    """One server, sync."""

    by_slot = False  # whether look-ups of several slots must not share an MGET

    def __init__(self, client: redis.Redis, timeout: float, *, signs: bool) -> None:
        self._given = client
        self._client: Any = bounded(client, timeout, signs=signs)

    def ask(self, effect: Lookup) -> Any:
        """Return the reply to a look-up, or its error."""
        return exchange(self._client.connection_pool, (_commands.look_up(effect),))[0]

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to commands."""
        replies = self._post([_commands.words(command) for command in commands])
        again = _commands.repeats(commands, replies)
        if again:
            for at, reply in zip(again, self._post(list(again.values())), strict=True):
                replies[at] = reply
        return replies

    def _post(self, lines: Sequence[Words]) -> list[Any]:
        pool = self._client.connection_pool
        return [reply for portion in _commands.portions(lines) for reply in exchange(pool, portion)]

    def nodes(self) -> list[Node | None]:
        """Return the servers that `say` takes: the one that there is."""
        return [None]

    def say(self, node: Node | None, lines: Sequence[Words]) -> list[Any]:
        """Return the replies to lines that no slot decides the server of."""
        return self._post(lines)

    def close(self) -> None:
        """Close the connections, unless they are the given client's."""
        if self._client is not self._given:
            close_bounded(self._client)


def exchange(pool: Any, lines: Sequence[Words]) -> list[Any]:
    """Return one server's reply to each line, or its error, of a sync pool; raises what befalls the connection.

    1 R: sends, is interrupted: a signal's handler raises   2 R2: sends on this connection, and reads the reply to R
    redis-py would give R2 the connection, so it is closed unless all that it owes has been read.
    """
    connection = pool.get_connection(*_UNNAMED)
    replies: list[Any] = []
    try:
        connection.send_packed_command(connection.pack_commands(lines))
        while len(replies) < len(lines):
            try:
                replies.append(connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
    finally:
        if len(replies) < len(lines):
            connection.disconnect()
        pool.release(connection)
    return replies


class Cluster:
    """The nodes of a cluster, sync. All are written to before any is read from: they work side by side."""

    by_slot = True

    def __init__(self, members: Members, slots: Slots, timeout: float, *, signs: bool) -> None:
        self._members = members
        self._slots = slots
        self._timeout = timeout
        self._signs = signs
        self._pools: dict[Node, Any] = {}  # threads share it, without a lock that a fork might leave to a child, held

    def ask(self, effect: Lookup) -> Any:
        """Return the reply to a look-up, or its error."""
        return self.send(_commands.encode(effect))[0]

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to commands."""
        deadline = time.monotonic() + self._timeout
        return run(self._slots.deliver(commands), lambda mail: self._perform(mail.to, deadline))  # type: ignore[attr-defined]

    def nodes(self) -> list[Node | None]:
        """Return the servers that `say` takes: those that own slots."""
        self.send([])
        return [*self._slots.owners()]

    def say(self, node: Node | None, lines: Sequence[Words]) -> list[Any]:
        """Return the replies to lines that no slot decides the server of."""
        assert node is not None  # noqa: S101  as `nodes` says
        return self._perform({node: list(lines)}, time.monotonic() + self._timeout)[node]

    def _perform(self, to: dict[Node, list[Words]], deadline: float) -> dict[Node, list[Any]]:
        answers: dict[Node, list[Any]] = {}
        calls: dict[Node, _Call] = {}
        try:
            for node, lines in to.items():
                try:
                    calls[node] = _Call(self._pool(node), lines, deadline)
                except TROUBLE as error:
                    answers[node] = [error] * len(lines)
            for node, call in calls.items():
                answers[node] = call.replies(deadline)
        finally:
            for call in calls.values():
                call.end()
        return answers

    def _pool(self, node: Node) -> Any:
        pool = self._pools.get(node)
        if pool is None:  # of two that are made at once, one is kept; the other has opened nothing
            pool = self._pools.setdefault(node, self._members.pool(node, self._timeout, signs=self._signs))
        return pool

    def close(self) -> None:
        """Close the connections."""
        pools, self._pools = self._pools, {}
        for pool in list(pools.values()):
            pool.disconnect()


class _Call:
    """Lines that are written to a connection, and the replies that it owes."""

    def __init__(self, pool: Any, lines: Sequence[Words], deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise TimeoutError("no time is left")
        self._pool = pool
        self._connection = pool.get_connection(*_UNNAMED)
        self._owed = len(lines)
        try:
            self._connection.send_packed_command(self._connection.pack_commands(lines))
        except BaseException:
            self.end()
            raise

    def replies(self, deadline: float) -> list[Any]:
        """Return what the node says to each line; once the connection is in trouble, that."""
        found: list[Any] = []
        lines = self._owed
        try:
            # What has come by now counts, however late it is for the others.
            if not self._connection.can_read(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("the node does not answer")
            while self._owed:
                try:
                    reply = self._connection.read_response(disable_decoding=True)
                except ResponseError as error:
                    reply = error
                self._owed -= 1
                found.append(reply)
        except TROUBLE as error:
            found += [error] * (lines - len(found))
        return found

    def end(self) -> None:
        """Give the connection back; one that still owes replies must not give them to the next caller."""
        if self._owed:
            self._connection.disconnect()
        self._pool.release(self._connection)


class AsyncServer:
    """One server, in one event loop."""

    by_slot = False  # whether look-ups of several slots must not share an MGET

    def __init__(self, client: Any, *, given: bool, signs: bool) -> None:
        self._client = client
        self._given = given
        know_errors(client)
        self._signs = signs and sign(client)

    async def ask(self, effect: Lookup, timeout: float) -> Any:
        """Return the reply to a look-up, or raise its error: the shortest way there is."""
        async with asyncio.timeout(timeout):
            reply = await self._client.execute_command(*_commands.look_up(effect), NEVER_DECODE=True)
        return signed(reply) if self._signs else reply

    async def send(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Return the replies to commands."""
        async with asyncio.timeout(timeout):
            replies = await post(self._client, [_commands.words(command) for command in commands])
            again = _commands.repeats(commands, replies)
            if again:
                for at, reply in zip(again, await post(self._client, list(again.values())), strict=True):
                    replies[at] = reply
        return list(map(signed, replies)) if self._signs else replies

    async def close(self) -> None:
        """Close the connections, unless they are the given client's."""
        if not self._given:
            pool = self._client.connection_pool
            await pool.disconnect()
            for each in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
                await each.connection_pool.disconnect()


class AsyncCluster:
    """The nodes of a cluster, in one event loop."""

    by_slot = True

    def __init__(self, members: Members, slots: Slots, *, signs: bool) -> None:
        self._members = members
        self._slots = slots
        self._signs = signs
        self._clients: dict[Node, Any] = {}

    async def ask(self, effect: Lookup, timeout: float) -> Any:
        """Return the reply to a look-up, or its error."""
        return (await self.send(_commands.encode(effect), timeout))[0]

    async def send(self, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Return the replies to commands."""
        deadline = asyncio.get_running_loop().time() + timeout

        async def perform(mail: Any) -> dict[Node, list[Any]]:
            return await self._perform(mail, deadline)

        return await arun(self._slots.deliver(commands), perform)

    async def _perform(self, mail: Mail, deadline: float) -> dict[Node, list[Any]]:
        if len(mail.to) == 1:
            [(node, lines)] = mail.to.items()
            return {node: await self._post(node, lines, deadline)}
        answers = await asyncio.gather(*(self._post(node, lines, deadline) for node, lines in mail.to.items()))
        return dict(zip(mail.to, answers, strict=True))

    async def _post(self, node: Node, lines: list[Words], deadline: float) -> list[Any]:
        try:
            async with asyncio.timeout_at(deadline):
                return await post(self._client(node), lines)
        except TROUBLE as error:
            return [error] * len(lines)

    def _client(self, node: Node) -> Any:
        client = self._clients.get(node)
        if client is None:
            client = redis.asyncio.Redis(connection_pool=self._members.pool(node, None, signs=self._signs))
            self._clients[node] = client
        return client

    async def close(self) -> None:
        """Close the connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.connection_pool.disconnect()


async def post(client: Any, lines: Sequence[Words]) -> list[Any]:
    """Return one server's reply to each line, or its error, of an asyncio client."""
    if len(lines) == 1:
        try:
            return [await client.execute_command(*lines[0], NEVER_DECODE=True)]
        except ResponseError as error:
            return [error]
    replies: list[Any] = []
    for portion in _commands.portions(lines):
        async with client.pipeline(transaction=False) as pipe:
            for line in portion:
                await _queued(pipe.execute_command(*line, NEVER_DECODE=True))
            replies += await pipe.execute(raise_on_error=False)
    return replies


async def _queued(answer: Any) -> None:
    """A pipeline's execute_command only queues, and is or is not a coroutine, depending on redis-py's release."""
    if asyncio.iscoroutine(answer):
        await answer
