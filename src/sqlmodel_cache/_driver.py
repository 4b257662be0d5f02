"""Runs plans: against a sync transport in a thread, against an async one inside an `AsyncSession`'s greenlet.

SQLAlchemy runs an `AsyncSession` as a sync session in a greenlet, so both kinds of sessions arrive here as sync code,
and only the way of waiting differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import _protocol, _sqlalchemy
from ._debts import Debts
from ._plan import Effect, Plan, run
from .errors import ConfigurationError
from .transport import AsyncTransport, SyncTransport


def new_id() -> bytes:
    """Return 16 random bytes, never the same twice, also after a fork."""
    return os.urandom(16)


class Driver:
    """The transports of one configuration, and what could not be delivered to them."""

    def __init__(
        self,
        sync_transport: SyncTransport | None,
        async_transport: AsyncTransport | None,
        *,
        fence_ttl_ms: int,
        replicas: int = 0,
    ) -> None:
        self.sync_transport = sync_transport
        self.async_transport = async_transport
        self.debts = Debts()
        self._fence_ttl_ms = fence_ttl_ms
        self._replicas = replicas
        self.execute: Callable[[Effect[Any]], Any] = self._execute
        if sync_transport is not None and not sync_transport.blocking:  # it serves every kind of session
            self.execute = sync_transport.execute

    def run(self, plan: Plan[Any]) -> Any:
        """Return a plan's result; all its effects go to the cache."""
        return run(plan, self.execute)

    def _execute(self, effect: Effect[Any]) -> Any:
        """Return the cache's reply, waiting in the way that fits the caller.

        Raises:
            TransportError: the cache did not answer.
            ConfigurationError: no transport serves this kind of session.
        """
        if _sqlalchemy.in_greenlet():
            if self.async_transport is None:
                raise _missing("async_transport", self.sync_transport, "an AsyncSession")
            return _sqlalchemy.wait_for(self.async_transport.aexecute(effect))
        if self.sync_transport is None:
            raise _missing("transport", self.async_transport, "a Session")
        return self.sync_transport.execute(effect)

    def pay_debts(self) -> None:
        """Deliver what is owed, if anything is and it is time to try again."""
        if self.debts:
            keys = self.debts.due()
            if keys is not None:
                plan = _protocol.settle(
                    keys, self.debts, fence_ttl_ms=self._fence_ttl_ms, new_id=new_id, replicas=self._replicas
                )
                self.run(plan)

    def close(self) -> None:
        """Close the connections that the transports opened; those of event loops only from within one."""
        if self.sync_transport is not None:
            self.sync_transport.close()
        if self.async_transport is not None and _sqlalchemy.in_greenlet():
            _sqlalchemy.wait_for(self.async_transport.aclose())


def _missing(argument: str, given: object, session: str) -> ConfigurationError:
    return ConfigurationError(
        argument,
        None,
        f"{session} needs a transport that {type(given).__name__} cannot give; "
        "configure(transport=..., async_transport=...) takes both",
    )
