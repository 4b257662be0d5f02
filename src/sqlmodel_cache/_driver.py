"""Runs plans: against a sync transport in a thread, against an async one inside an `AsyncSession`'s greenlet.

SQLAlchemy runs an `AsyncSession` as a sync session in a greenlet, so both kinds of sessions arrive here as sync code,
and only the way of waiting differs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import os
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from . import _protocol, _sqlalchemy
from ._debts import Debts
from ._effects import End, Keys, Lookup
from ._near import Near
from ._plan import Effect, Plan, run
from ._recovery import Breaker, Keeper
from ._sealing import Gate
from .errors import ConfigurationError, TransportError
from .transport import AsyncTransport, SyncTransport

LOOP_PATIENCE = 5.0  # seconds that an event loop may take to let a transport ask; it is the application's


class NotAsked(TransportError):
    """The cache has not answered lately, and is not asked until it does."""


def new_id() -> bytes:
    """Return 16 random bytes, never the same twice, also after a fork."""
    return os.urandom(16)


class Driver:
    """The transports of one configuration, what stands in front of them, and what could not be delivered to them.

    Args:
        sync_transport: for sessions, and for the thread that tries again while the cache does not answer.
        async_transport: for `AsyncSession`.
        fence_ttl_ms: deadline of a fence that nobody releases.
        longest_ttl_ms: after that, nothing that is stale now is left in the cache.
        prefix: begins the one key that is written to see whether the cache answers.

    Attributes:
        execute: returns the cache's reply to an effect, waiting in the way that fits the caller. Raises
            TransportError when the cache does not answer, or has not answered so often that it is not asked, and
            ConfigurationError when no transport serves this kind of session.
    """

    def __init__(
        self,
        sync_transport: SyncTransport | None,
        async_transport: AsyncTransport | None,
        gate: Gate,
        *,
        fence_ttl_ms: int,
        longest_ttl_ms: Callable[[], int] = lambda: 0,
        prefix: str = "sqlmodelcache",
        near: Near | None = None,
        replicas: int = 0,
    ) -> None:
        self.sync_transport = sync_transport
        self.async_transport = async_transport
        self._gate = gate
        self.breaker = Breaker()
        self._fence_ttl_ms = fence_ttl_ms
        self._longest_ttl_ms = longest_ttl_ms
        self._nobody = Keys((f"{prefix}:{{-}}:-",), ())
        self._loop: asyncio.AbstractEventLoop | None = None  # the last one in which the cache did not answer
        self._posted: set[asyncio.Task[None]] = set()
        self._owe_to(Debts())
        self._replicas = replicas
        self.execute: Callable[[Effect[Any]], Any] = self._execute
        self._serves_all = sync_transport is not None and not sync_transport.blocking
        if sync_transport is not None and self._serves_all and not gate.seals:
            self.execute = sync_transport.execute  # what is in this process is no larger than what was let in
        self._alone: Callable[[Effect[Any]], Any] = self._perform_alone
        self._near = near
        if near is not None:
            self.execute = _with_near(near, self.execute)
            self._alone = _with_near(near, self._perform_alone)

    @property
    def read_seconds(self) -> float:
        """How long one read may wait for the cache in all: as long as its transport waits for one reply."""
        transports = [transport for transport in (self.sync_transport, self.async_transport) if transport is not None]
        return max((getattr(transport, "timeout_ms", math.inf) for transport in transports), default=math.inf) / 1000

    def as_stored(self, lookup: Lookup) -> Lookup:
        """Return a look-up as the transports get it: what is encrypted has another fingerprint."""
        put: Any = self._gate.put(lookup)
        return put if isinstance(put, Lookup) else lookup

    def run(self, plan: Plan[Any]) -> Any:
        """Return a plan's result; all its effects go to the cache."""
        return run(plan, self.execute)

    def reading(self, spent: float = 0.0) -> Callable[[Effect[Any]], Any]:
        """Return `execute` for one read, which has spent so many seconds: it asks no more when its time is up."""
        if self.read_seconds == math.inf:
            return self.execute
        left = self.read_seconds - spent

        def execute(effect: Effect[Any]) -> Any:
            nonlocal left
            if left <= 0:
                raise TransportError(f"{type(effect).__name__}: this read has spent its time on the cache")
            began = time.monotonic()
            try:
                return self.execute(effect)
            finally:  # the database's time is not the cache's
                left -= time.monotonic() - began

        return execute

    def looking_up(self, lookup: Lookup) -> Awaitable[bytes | None] | None:
        """Return what a coroutine awaits for `execute(lookup)`; None where more has to be done than to look it up."""
        if self._serves_all:
            return self._at_once(lookup)
        if lookup.near and self._near is not None:
            payload = self._near.find(lookup)
            return None if payload is None else _ready(payload)
        if self.async_transport is None or self.breaker.is_open:
            return None
        return self._look_up(self.async_transport, lookup)

    async def _at_once(self, lookup: Lookup) -> Any:
        return self.execute(lookup)

    async def _look_up(self, transport: AsyncTransport, lookup: Lookup) -> Any:
        try:
            reply = await transport.aexecute(self._gate.put(lookup))
        except TransportError:
            self._failed()
            raise
        self.breaker.answered()
        return self._gate.take(lookup, reply)

    def _execute(self, effect: Effect[Any]) -> Any:
        if self.breaker.is_open and not (type(effect) is End and effect.insists):
            self._wake()
            raise NotAsked(f"{type(effect).__name__}: the cache does not answer, and is not asked until it does")
        try:
            reply = self._perform(effect)
        except TransportError:
            self._failed()
            raise
        self.breaker.answered()
        return reply

    def _failed(self) -> None:
        if self.breaker.failed():
            self._wake()

    def _perform(self, effect: Effect[Any]) -> Any:
        put = self._gate.put(effect)
        if not self._serves_all and _sqlalchemy.in_greenlet():
            if self.async_transport is None:
                raise _missing("async_transport", self.sync_transport, "an AsyncSession")
            reply = _sqlalchemy.wait_for(self.async_transport.aexecute(put))
        elif self.sync_transport is None:
            raise _missing("transport", self.async_transport, "a Session")
        else:
            reply = self.sync_transport.execute(put)
        return self._gate.take(effect, reply)

    def ttl(self, key: str) -> float | None:
        """Return the seconds that a row's key has left, where its transport tells."""
        if not self._serves_all and _sqlalchemy.in_greenlet():
            aask = getattr(self.async_transport, "attl", None)
            return None if aask is None else _sqlalchemy.wait_for(aask(key))
        ask = getattr(self.sync_transport, "ttl", None)
        return None if ask is None else ask(key)

    def post(self, effect: Effect[Any]) -> None:
        """Have an effect performed that nobody waits for, in the event loop of a caller that is being cancelled."""
        if self._serves_all:
            with contextlib.suppress(TransportError):
                self.execute(effect)
        elif self.async_transport is not None and _sqlalchemy.in_greenlet() and not self.breaker.is_open:
            task = asyncio.get_running_loop().create_task(_performed(self.async_transport, effect), context=Context())
            self._posted.add(task)  # the loop itself refers to its tasks weakly
            task.add_done_callback(self._posted.discard)

    # the keeper's side

    def _owe_to(self, debts: Debts) -> None:
        self.debts = debts
        debts.longest_ttl_ms, debts.owing = self._longest_ttl_ms, self._wake
        self._keeper = Keeper(self.breaker, debts, ask=self._ask, deliver=self._deliver)

    def succeed(self, previous: Driver) -> None:
        """Take over what another driver owes, before anybody has used this one. The other one does so no more."""
        self._owe_to(previous.debts)
        if self.debts:
            self._wake()

    def _wake(self) -> None:
        if self.sync_transport is None:
            with contextlib.suppress(RuntimeError):  # no loop: the one that was known
                self._loop = asyncio.get_running_loop()
        self._keeper.wake()

    def _ask(self) -> None:
        # What a commit sends, to a row that nobody has: a server that answers readers may refuse writers.
        self._perform_alone(End(self._nobody, new_id(), new_id()))

    def _perform_alone(self, effect: Effect[Any]) -> Any:
        """Return the cache's reply in a thread that is nobody's."""
        if self.sync_transport is not None:
            return self.sync_transport.execute(effect)
        assert self.async_transport is not None  # noqa: S101  configure() has seen to that
        if self._loop is not None and self._loop.is_running():  # its client may be able to live there only
            return _perform_in(self._loop, self.async_transport, effect)
        return asyncio.run(_once(self.async_transport, effect))

    def _deliver(self, keys: Keys) -> None:
        plan = _protocol.settle(
            keys, self.debts, fence_ttl_ms=self._fence_ttl_ms, new_id=new_id, replicas=self._replicas
        )
        if not run(plan, self._alone):
            raise TransportError("what is owed to the cache could not be delivered")

    def settle(self, patience: float) -> bool:
        """Stop trying, after one more attempt; return whether everything that was owed has been delivered."""
        return self._keeper.close(patience)

    def close(self) -> None:
        """Close the connections that the transports opened; those of event loops only from within one."""
        self._keeper.close()
        if self.sync_transport is not None:
            self.sync_transport.close()
        if self.async_transport is not None and _sqlalchemy.in_greenlet():
            _sqlalchemy.wait_for(self.async_transport.aclose())


async def _ready(payload: bytes) -> bytes:
    return payload


async def _performed(transport: AsyncTransport, effect: Effect[Any]) -> None:
    with contextlib.suppress(TransportError):
        await transport.aexecute(effect)


async def _once(transport: AsyncTransport, effect: Effect[Any]) -> Any:
    try:
        return await transport.aexecute(effect)
    finally:
        await transport.aclose()


def _perform_in(loop: asyncio.AbstractEventLoop, transport: AsyncTransport, effect: Effect[Any]) -> Any:
    """Return the reply of a transport that is asked in another thread's event loop."""
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    async def ask() -> None:
        try:
            answer.set_result(await transport.aexecute(effect))
        except BaseException as error:
            answer.set_exception(TransportError(f"{type(effect).__name__}: {type(error).__name__}: {error}"))
            if not isinstance(error, Exception):  # the loop is at its end
                raise

    # The loop makes the coroutine: one that is made here, for a loop that has ended, would be awaited by nobody.
    tasks: list[asyncio.Task[None]] = []
    try:
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(ask())))
        return answer.result(LOOP_PATIENCE)
    except (RuntimeError, concurrent.futures.TimeoutError) as error:
        raise TransportError(f"{type(effect).__name__}: the event loop does not answer") from error


def _with_near(near: Near, execute: Callable[[Effect[Any]], Any]) -> Callable[[Effect[Any]], Any]:
    """Return what executes effects with a near cache in front."""

    def execute_near(effect: Effect[Any]) -> Any:
        if type(effect) is Lookup:  # the one that every hit pays for
            if not effect.near:
                return execute(effect)
            payload = near.find(effect)
            if payload is not None:
                return payload
        elif type(effect) not in near.kinds:
            return execute(effect)
        return run(near.plan(effect), execute)

    return execute_near


def _missing(argument: str, given: object, session: str) -> ConfigurationError:
    return ConfigurationError(
        argument,
        None,
        f"{session} needs a transport that {type(given).__name__} cannot give; "
        "configure(transport=..., async_transport=...) takes both",
    )
