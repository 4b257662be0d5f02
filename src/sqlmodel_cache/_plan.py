"""Protocol code as generators: an operation is a list of round trips with decisions between them.

A *plan* yields effects and receives their replies. It does no I/O, reads no clock and no random numbers, and does not
know whether its driver waits or awaits. Its yields are the protocol's steps, so a test can run several plans in every
possible order.

Two rules keep an abandoned plan harmless: a plan recovers with `except Exception` only, and never yields in a
`finally`. A driver that is cancelled closes the plan where it stands; deadlines in the cache clean up behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeAlias, TypeVar

R = TypeVar("R")
T = TypeVar("T")


class Effect(Generic[R]):
    """One round trip; `R` is the type of its reply."""

    __slots__ = ()


Plan: TypeAlias = Generator[Effect[Any], Any, T]


def perform(effect: Effect[R]) -> Plan[R]:
    """Return the reply to an effect.

    `found = yield from perform(Lookup(entry))` gives `found` the type of the reply.
    """
    reply: R = yield effect
    return reply


def run(plan: Plan[T], execute: Callable[[Effect[Any]], Any]) -> T:
    """Return the plan's result, with every effect answered by `execute`.

    An `Exception` from `execute` is thrown into the plan, which may recover. Anything else (cancellation, exit) closes
    the plan and propagates.
    """
    try:
        effect = next(plan)
        while True:
            try:
                reply = execute(effect)
            except Exception as error:
                effect = plan.throw(error)
            else:
                effect = plan.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        plan.close()


async def arun(plan: Plan[T], execute: Callable[[Effect[Any]], Awaitable[Any]]) -> T:
    """`run`, with an `execute` that is awaited."""
    try:
        effect = next(plan)
        while True:
            try:
                reply = await execute(effect)
            except Exception as error:
                effect = plan.throw(error)
            else:
                effect = plan.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        plan.close()
