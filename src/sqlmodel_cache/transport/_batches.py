"""Effects that wait in the same turn of an event loop travel together. Knows neither Redis nor what the effects mean.

The first to come leads: it lets the loop take one turn, and whoever comes meanwhile joins. If nobody does, it goes on
alone, as if there were no batches. Otherwise a task that belongs to none of them sends all at once, so that nobody's
cancellation is anybody else's. The next to come lead a batch of their own, and do not wait for this one.

An effect joins only before its batch is sent: its reply is as fresh as if it had been sent alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, TypeAlias

from .._plan import Effect
from ..errors import TransportError

MAX_BATCH = 500  # effects; each look-up asks for two keys

Send: TypeAlias = Callable[[Sequence[Effect[Any]]], Awaitable[Sequence[Any]]]
"""Returns the reply to each of several effects, or its TransportError."""

_Member: TypeAlias = tuple[Effect[Any], "asyncio.Future[Any]"]


class Batches:
    """The batches of one event loop."""

    def __init__(self, alone: Callable[[Any], Awaitable[Any]], together: Send) -> None:
        self._alone = alone
        self._together = together
        self._open: list[_Member] | None = None  # who has joined the one that leads now
        self._sent: set[asyncio.Task[None]] = set()  # the loop itself refers to its tasks weakly

    async def execute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply; raises its TransportError, and nobody else's."""
        batch = self._open
        if batch is not None and len(batch) < MAX_BATCH - 1:
            return await self._joined(batch, effect)
        batch = self._open = []
        try:
            await asyncio.sleep(0)
        except BaseException:
            # 1 A: leads   2 B: joins   3 A: is cancelled before its turn: B must be sent all the same
            if batch and not batch[0][1].get_loop().is_closed():
                self._send(batch)
            raise
        finally:
            if self._open is batch:
                self._open = None
        if not batch:
            return await self._alone(effect)
        self._send(batch)
        return await self._joined(batch, effect)  # the task has not begun yet

    async def drain(self) -> None:
        """Wait for what has been sent: no longer than its time-outs."""
        await asyncio.gather(*self._sent, return_exceptions=True)

    async def _joined(self, batch: list[_Member], effect: Effect[Any]) -> Any:
        future = asyncio.get_running_loop().create_future()
        batch.append((effect, future))
        reply = await future
        if isinstance(reply, TransportError):
            raise reply
        return reply

    def _send(self, batch: list[_Member]) -> None:
        # A context of its own: whatever a client leaves there, or reads, is not the first caller's.
        task = batch[0][1].get_loop().create_task(self._perform(batch), context=Context())
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)

    async def _perform(self, batch: list[_Member]) -> None:
        batch[:] = [member for member in batch if not member[1].done()]  # the others were cancelled
        if not batch:
            return
        replies: Sequence[Any]
        try:
            replies = await self._together([effect for effect, _ in batch])
        except asyncio.CancelledError:
            _tell(batch, [TransportError("the event loop is closing") for _ in batch])
            raise
        except Exception as error:
            replies = [TransportError(f"{type(effect).__name__}: {error}") for effect, _ in batch]
            for reply in replies:
                reply.__cause__ = error.__cause__ or error
        _tell(batch, replies)


def _tell(batch: list[_Member], replies: Sequence[Any]) -> None:
    # An error is a result here, as it is in `Together`; who awaits it raises it.
    for (_, future), reply in zip(batch, replies, strict=True):
        if not future.done():
            future.set_result(reply)
